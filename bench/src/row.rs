//! The rows: each is a few lines over peers, load and rounds.

mod connections;
mod memory;
mod propagation;
mod throughput;
mod up;
mod wake;

use std::pin::Pin;
use std::time::Duration;

use crate::Args;
use crate::report::Report;
use crate::rounds::Rounds;

type Measuring<'a> = Pin<Box<dyn Future<Output = anyhow::Result<Report>> + 'a>>;

/// A measurement.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    what: &'static str,
    measure: for<'a> fn(&'a Args) -> Measuring<'a>,
}

/// All of them.
pub(crate) const ROWS: &[Row] = &[
    Row { name: "hop", what: "requests through one node", measure: |args| Box::pin(throughput::hop(args)) },
    Row {
        name: "two-hops",
        what: "requests through two nodes on one core",
        measure: |args| Box::pin(throughput::two_hops(args)),
    },
    Row {
        name: "replay",
        what: "requests that the app sends on to the other region",
        measure: |args| Box::pin(throughput::replay(args)),
    },
    Row {
        name: "latency",
        what: "the 99th percentile at half of what a program can take",
        measure: |args| Box::pin(throughput::latency(args)),
    },
    Row { name: "memory", what: "memory of an idle node", measure: |args| Box::pin(memory::idle(args)) },
    Row { name: "up", what: "time until a testbed is ready", measure: |args| Box::pin(up::ready(args)) },
    Row {
        name: "wake",
        what: "a request that starts a stopped Machine, beside the process alone",
        measure: |args| Box::pin(wake::start(args)),
    },
    Row {
        name: "resume",
        what: "a request that wakes a suspended Machine, beside SIGCONT",
        measure: |args| Box::pin(wake::resume(args)),
    },
    Row {
        name: "connections",
        what: "memory of idle connections",
        measure: |args| Box::pin(connections::idle(args)),
    },
    Row {
        name: "propagation",
        what: "a Machine's change, until every node has it",
        measure: |args| Box::pin(propagation::run(args)),
    },
];

impl Row {
    pub(crate) async fn run(&self, args: &Args) -> anyhow::Result<Report> {
        (self.measure)(args).await
    }
}

impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// The row of that name.
pub(crate) fn find(name: &str) -> Result<&'static Row, String> {
    let names = || ROWS.iter().map(|row| row.name).collect::<Vec<_>>().join(", ");
    ROWS.iter().find(|row| row.name == name).ok_or_else(|| format!("there are: {}", names()))
}

/// What each row measures, for `--help`.
pub(crate) fn help() -> String {
    let lines = ROWS.iter().map(|row| format!("  {:<12} {}\n", row.name, row.what));
    format!("Rows:\n{}", lines.collect::<String>())
}

fn rounds(args: &Args) -> Rounds {
    Rounds { count: args.rounds, time: Duration::from_secs(args.seconds) }
}

fn settings(args: &Args) -> String {
    format!(
        "medians of {} interleaved rounds of {} s, {} keep-alive connections, 100-byte bodies, 1 core; \
         of Skein's requests 1 % traced",
        args.rounds, args.seconds, args.connections
    )
}
