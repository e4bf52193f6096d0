//! `skein-sim`: runs the simulator and what belongs to it.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use skein_cluster::entropy::Entropy;
use skein_core::Random;
use skein_core::random::Seed;
use skein_sim::run::{Plan, shrink};
use skein_sim::world::Causes;
use skein_sim::{figures, fit};

#[derive(Debug, Parser)]
#[command(name = "skein-sim", about = "Simulates many nodes on a virtual clock and network")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs one seed; its log goes to stdout, and nothing else does.
    Run {
        /// The seed; a fresh one, which is printed, when there is none.
        seed: Option<u64>,
        /// How many nodes; nine, and of every fifth seed one in each of the 18 regions, unless told.
        #[arg(long)]
        nodes: Option<u8>,
        /// How many transitions; 250 unless told.
        #[arg(long)]
        steps: Option<usize>,
        /// Only these transitions of the seed.
        #[arg(long, value_delimiter = ',')]
        keep: Option<Vec<usize>>,
        /// Runs that finding the shortest trace of a failure may take; 0 shows the whole one.
        #[arg(long, default_value_t = 400)]
        shrinking: usize,
    },
    /// Runs many seeds: those that fail go to stdout, how often what failed for which cause to stderr.
    Seeds {
        /// The first.
        #[arg(long, default_value_t = 1)]
        first: u64,
        /// How many.
        #[arg(long, default_value_t = 200)]
        count: u64,
    },
    /// Plants each bug in turn and finds it; exit code 1 when one is missed.
    #[cfg(feature = "planted")]
    Planted {
        /// Seconds that one may take.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Writes the figures of gossip at several sizes and losses.
    Figures {
        /// The folder.
        #[arg(long)]
        out: std::path::PathBuf,
        /// How many nodes.
        #[arg(long, value_delimiter = ',', default_value = "25,100,500")]
        nodes: Vec<u32>,
        /// Shares of packets that are lost, in percent.
        #[arg(long, value_delimiter = ',', default_value = "0,2,5")]
        loss: Vec<f64>,
    },
    /// Measures the real chitchat and openraft and the models of them, side by side.
    Fit {
        /// Only gossip, or only the registry.
        #[arg(long)]
        only: Option<Which>,
        /// How many nodes.
        #[arg(long, value_delimiter = ',', default_value = "25,100")]
        nodes: Vec<u32>,
        /// Shares of packets that are lost, in percent.
        #[arg(long, value_delimiter = ',', default_value = "0,2,5")]
        loss: Vec<f64>,
        /// Changes that are measured in each case.
        #[arg(long, default_value_t = 60)]
        changes: u32,
        /// Deaths that are measured in each case.
        #[arg(long, default_value_t = 8)]
        deaths: u32,
        /// Writes to the registry that are measured at each number of nodes; each takes up to a
        /// second of real time.
        #[arg(long, default_value_t = 40)]
        writes: u32,
        /// Deaths of a leader that are measured at each number of nodes; each takes some seconds of
        /// real time.
        #[arg(long, default_value_t = 5)]
        leaders: u32,
    },
}

/// What is fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Which {
    Gossip,
    Registry,
}

fn main() -> anyhow::Result<ExitCode> {
    match Args::parse().command {
        Command::Run { seed, nodes, steps, keep, shrinking } => {
            let seed = seed.unwrap_or_else(|| Entropy::default().next_u64() >> 32);
            let usual = Plan::new(seed);
            let (nodes, steps) = (nodes.unwrap_or(usual.nodes), steps.unwrap_or(usual.steps));
            Ok(run(&Plan { seed, nodes, steps, keep }, shrinking))
        }
        Command::Seeds { first, count } => Ok(seeds(first..first + count)),
        #[cfg(feature = "planted")]
        Command::Planted { seconds } => Ok(planted(std::time::Duration::from_secs(seconds))),
        Command::Figures { out, nodes, loss } => {
            let mut figures = Vec::new();
            for nodes in nodes {
                for loss in &loss {
                    figures.push(figures::figure(nodes, loss / 100.0, &Seed::new(1))?);
                }
            }
            std::fs::create_dir_all(&out)?;
            std::fs::write(out.join("simulator.md"), figures::table(&figures))?;
            std::fs::write(out.join("simulator.svg"), figures::plot(&figures))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Fit { only, nodes, loss, changes, deaths, writes, leaders } => {
            let seed = Seed::new(1);
            heading();
            for count in &nodes {
                for loss in loss.iter().filter(|_| only != Some(Which::Registry)) {
                    table(&fit::gossip::rows(*count, loss / 100.0, changes, deaths, &seed)?);
                }
                if only != Some(Which::Gossip) {
                    table(&fit::registry::rows(*count, writes, leaders, &seed)?);
                }
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

#[expect(clippy::print_stdout, reason = "the table is what the command is for")]
fn heading() {
    println!("{}", fit::stats::HEADING);
}

#[expect(clippy::print_stdout, reason = "the table is what the command is for")]
fn table(rows: &[fit::stats::Row]) {
    for row in rows {
        println!("{row}");
    }
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "the log is what the command is for")]
fn run(plan: &Plan, shrinking: usize) -> ExitCode {
    eprintln!("seed {}", plan.seed);
    let ran = plan.run();
    print!("{}", ran.log);
    causes(&ran.causes);
    let Some(violation) = ran.violation else { return ExitCode::SUCCESS };
    eprintln!("seed {}: {violation}", plan.seed);
    let short = shrink(plan, &violation, shrinking);
    eprintln!("the shortest trace that shows it:");
    for (index, (at, transition)) in short.trace() {
        eprintln!("  [{index}] {}.{:06} {transition}", at / 1_000_000, at % 1_000_000);
    }
    eprintln!("repeat it with: {}", short.command());
    ExitCode::FAILURE
}

#[expect(clippy::print_stderr, reason = "stdout is the log's")]
fn causes(causes: &Causes) {
    for ((what, cause), count) in causes {
        eprintln!("{count:>7} {what}: {cause}");
    }
}

#[expect(clippy::print_stdout, reason = "seeds that fail are what the command is for")]
fn seeds(seeds: std::ops::Range<u64>) -> ExitCode {
    let (mut all, mut failed) = (Causes::new(), false);
    for seed in seeds {
        let ran = Plan::new(seed).run();
        for (cause, count) in ran.causes {
            *all.entry(cause).or_default() += count;
        }
        if let Some(violation) = ran.violation {
            println!("seed {seed}: {violation}");
            failed = true;
        }
    }
    causes(&all);
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Looks for each planted bug, seed after seed, and runs the seed that showed it without the bug.
#[cfg(feature = "planted")]
#[expect(clippy::print_stdout, reason = "what was found is what the command is for")]
fn planted(each: std::time::Duration) -> ExitCode {
    use skein_core::planted::{Bug, plant};
    let mut missed = 0;
    for bug in Bug::ALL {
        let start = skein_cluster::clock::now();
        let mut seed = 0;
        let found = loop {
            seed += 1;
            plant(Some(bug));
            let ran = Plan::new(seed).run();
            plant(None);
            if let Some(violation) = ran.violation {
                break Some((ran.counts, violation));
            }
            if start.elapsed() > each {
                break None;
            }
        };
        let Some((counts, violation)) = found else {
            println!("{}: MISSED in {seed} seeds", bug.as_str());
            missed += 1;
            continue;
        };
        println!("{}: found by seed {seed} at step {}: {violation}", bug.as_str(), counts.step);
        if let Some(violation) = Plan::new(seed).run().violation {
            println!("{}: seed {seed} fails without the bug too: {violation}", bug.as_str());
            missed += 1;
        }
    }
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
