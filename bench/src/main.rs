//! Benchmarks of the built program beside its peers, as ratios measured in the same run.
//!
//! The program under measurement has one core for itself; the clients and the app behind it share
//! another one with this process. Every answer is checked. A figure of saturation counts only if the
//! proxy used up its core, else the row says INVALID; a peer that is missing is SKIPPED by name.

mod app;
mod figure;
mod load;
mod machine;
mod peer;
mod process;
mod report;
mod rounds;
mod row;
mod svg;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;

use crate::machine::Machine;
use crate::row::{ROWS, Row};

/// The core of the program under measurement.
const PROXY_CORE: usize = 0;
/// The core of clients, app and this process.
const LOAD_CORE: usize = 1;

#[derive(Debug, Parser)]
#[command(about = "Benchmarks of Skein beside its peers", after_help = row::help())]
struct Args {
    /// Rows to run; all of them by default
    #[arg(value_parser = row::find)]
    rows: Vec<&'static Row>,
    /// The program to measure
    #[arg(long, default_value = "target/release/skein")]
    skein: PathBuf,
    /// Measures this build of the program too, as a peer
    #[arg(long, value_name = "PROGRAM")]
    beside: Option<PathBuf>,
    /// Only these peers, for example nginx,haproxy
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    peers: Option<Vec<String>>,
    /// Rounds; each runs every program once
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of load on each program in each round
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Connections of the load
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Connections of the row of idle ones
    #[arg(long, default_value_t = 10_000)]
    idle: usize,
    /// Nodes of the propagation row
    #[arg(long, default_value_t = 25)]
    nodes: usize,
    /// Changes of the propagation row
    #[arg(long, default_value_t = 200)]
    changes: usize,
    /// Records with perf where the time of Skein goes, for flame graphs; into this folder
    #[arg(long, value_name = "FOLDER")]
    profile: Option<PathBuf>,
    /// Writes all figures there
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draws the figures there
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(&Args::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the rows; whether all of them came to an end.
#[expect(clippy::print_stdout, reason = "the report is this program's output")]
async fn run(args: &Args) -> anyhow::Result<bool> {
    let machine = Machine::read()?;
    println!("{machine}");
    process::pin_self(LOAD_CORE)?;
    let rows = if args.rows.is_empty() { ROWS.iter().collect() } else { args.rows.clone() };
    let (mut reports, mut whole) = (Vec::new(), true);
    for row in rows {
        match row.run(args).await {
            Ok(report) => {
                print!("{report}");
                reports.push(report);
            }
            Err(error) => {
                whole = false;
                eprintln!("{}: {error:#}", row.name);
            }
        }
    }
    if let Some(path) = &args.json {
        let all = serde_json::json!({ "machine": machine, "rows": reports });
        std::fs::write(path, format!("{all:#}\n")).with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(path) = &args.svg {
        let drawn = svg::draw(&machine, &reports);
        std::fs::write(path, drawn).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(whole)
}
