//! Benchmarks of the built program beside its peers, as ratios measured in the same run.
//!
//! `just bench` builds the program with optimizations and runs every row. A peer that is not
//! installed is SKIPPED by name, never left out silently.

mod cluster;
mod hop;
mod propagation;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

/// Which row to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Row {
    /// A Machine's state change, until every node has it.
    Propagation,
    /// One hop beside nginx, each on one core.
    Hop,
}

#[derive(Debug, Parser)]
#[command(about = "Benchmarks of Skein beside its peers")]
struct Args {
    /// Rows to run; all of them by default.
    rows: Vec<Row>,
    /// The program to measure.
    #[arg(long, default_value = "target/release/skein")]
    skein: PathBuf,
    /// Nodes of the propagation row.
    #[arg(long, default_value_t = 25)]
    nodes: usize,
    /// Changes of the propagation row.
    #[arg(long, default_value_t = 200)]
    changes: usize,
    /// Rounds of the hop row; each runs both proxies.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of load in each round.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Prints one JSON object per row.
    #[arg(long)]
    json: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    let rows = if args.rows.is_empty() { vec![Row::Propagation, Row::Hop] } else { args.rows.clone() };
    let mut failed = false;
    for row in rows {
        let result = match row {
            Row::Propagation => propagation::run(&args).await,
            Row::Hop => hop::run(&args).await,
        };
        match result {
            Ok(report) => print(args.json, &report),
            Err(error) => {
                failed = true;
                eprintln!("{row:?}: {error:#}");
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// What a row found.
#[derive(Debug, serde::Serialize)]
struct Report {
    row: &'static str,
    /// The figure to watch, with its unit.
    result: String,
    /// How it came about.
    details: Vec<String>,
}

#[expect(clippy::print_stdout, reason = "the report is this program's output")]
fn print(json: bool, report: &Report) {
    if json {
        println!("{}", serde_json::json!(report));
        return;
    }
    println!("{}: {}", report.row, report.result);
    for line in &report.details {
        println!("  {line}");
    }
}

/// The value at quantile `q` of sorted values.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let index = (sorted.len().saturating_sub(1) as f64 * q).round() as usize;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(quantile(&values, 0.5), 101.0);
        assert_eq!(quantile(&values, 0.99), 198.0);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
