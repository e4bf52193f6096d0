//! Instructions that a decision costs: counted, not timed, so that a busy machine does not matter.
//!
//! `run` does a piece of work so many times; `compare` counts its instructions under valgrind with two
//! numbers of times, here and with another build, and fails when one became dearer. What both numbers
//! have in common, such as making the world that is decided on, cancels out.

mod compare;
mod work;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::work::Work;

#[derive(Debug, Parser)]
#[command(about = "Instructions that decisions cost")]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Does one piece of work so many times
    Run {
        /// Which
        #[arg(value_enum)]
        work: Work,
        /// How often
        times: u64,
        /// Does every tenth one twice: a slow-down that a comparison must find
        #[arg(long)]
        planted: bool,
    },
    /// Counts instructions here and with another build of this program
    Compare {
        /// The other build, made from the parent commit
        #[arg(long, value_name = "PROGRAM")]
        base: PathBuf,
        /// Growth that is let pass, in percent
        #[arg(long, default_value_t = 5.0)]
        limit: f64,
        /// Only these; all of them by default
        #[arg(value_enum)]
        works: Vec<Work>,
        /// Plants a slow-down here, to see it caught
        #[arg(long)]
        planted: bool,
    },
}

fn main() -> ExitCode {
    let done = match Args::parse().verb {
        Verb::Run { work, times, planted } => {
            work.run(times, planted);
            Ok(true)
        }
        Verb::Compare { base, limit, works, planted } => compare::all(&base, limit, &works, planted),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}
