//! `skein-sim`: runs the simulator and what belongs to it.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use skein_core::random::Seed;
use skein_sim::fit;

#[derive(Debug, Parser)]
#[command(name = "skein-sim", about = "Simulates many nodes on a virtual clock and network")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures the real chitchat and openraft and the models of them, side by side.
    Fit {
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
    },
}

fn main() -> anyhow::Result<ExitCode> {
    match Args::parse().command {
        Command::Fit { nodes, loss, changes, deaths } => fit_all(&nodes, &loss, changes, deaths),
    }
}

#[expect(clippy::print_stdout, reason = "the table is what the command is for")]
fn fit_all(nodes: &[u32], loss: &[f64], changes: u32, deaths: u32) -> anyhow::Result<ExitCode> {
    println!("{}", fit::stats::HEADING);
    for count in nodes {
        for loss in loss {
            for row in fit::gossip::rows(*count, loss / 100.0, changes, deaths, &Seed::new(1))? {
                println!("{row}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
