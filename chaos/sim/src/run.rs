//! A run of one seed: its log, and if something did not hold, the shortest trace that shows it.

use skein_core::random::Seed;

use crate::agenda::Micros;
use crate::invariants::Violation;
use crate::transition::{Trace, Transition, decode, generate};
use crate::world::{Causes, Counts, Setup, World};

/// Nodes that share regions, two of which are near each other.
const SHARED: &[&str] = &["fra", "fra", "nrt", "fra", "nrt", "ams", "nrt", "ams", "fra"];

/// What is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// How many nodes.
    pub nodes: u8,
    /// How many transitions, beside those that give the cluster something to do.
    pub steps: usize,
    /// Only these of all transitions, by their place; all when there is none.
    pub keep: Option<Vec<usize>>,
}

impl Plan {
    /// The usual plan of a seed: nine nodes, and of every fifth seed one node in each region.
    pub fn new(seed: u64) -> Self {
        let nodes = if seed.is_multiple_of(5) { 18 } else { 9 };
        Self { seed, nodes, steps: 250, keep: None }
    }

    /// Of every fourth seed several nodes share a region.
    fn setup(&self) -> Setup {
        let shares = self.seed % 4 == 2 && usize::from(self.nodes) == SHARED.len();
        if shares { Setup::at(SHARED) } else { Setup::new(self.nodes) }
    }

    /// The command that repeats it.
    pub fn command(&self) -> String {
        let Self { seed, nodes, steps, keep } = self;
        let mut command = format!("just sim {seed}");
        let usual = Self::new(*seed);
        if *nodes != usual.nodes {
            command.push_str(&format!(" --nodes {nodes}"));
        }
        if *steps != usual.steps {
            command.push_str(&format!(" --steps {steps}"));
        }
        if let Some(keep) = keep {
            let keep: Vec<String> = keep.iter().map(ToString::to_string).collect();
            command.push_str(&format!(" --keep {}", keep.join(",")));
        }
        command
    }

    /// All transitions of the seed.
    pub fn whole(&self) -> Trace {
        generate(&Seed::new(self.seed), self.seed, self.nodes, self.steps)
    }

    /// Those that are run, each with its place in the whole.
    pub fn trace(&self) -> Vec<(usize, (Micros, Transition))> {
        let whole = self.whole().into_iter().enumerate();
        match &self.keep {
            None => whole.collect(),
            Some(keep) => whole.filter(|(index, _)| keep.contains(index)).collect(),
        }
    }

    /// Runs it.
    pub fn run(&self) -> Ran {
        play(self.seed, self.setup(), self.trace())
    }
}

/// Runs a trace.
pub fn play(seed: u64, setup: Setup, trace: Vec<(usize, (Micros, Transition))>) -> Ran {
    let (log, counts, causes, violation) = World::new(&Seed::new(seed), setup, trace).run();
    Ran { log, counts, causes, violation }
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// What happened, a line each.
    pub log: String,
    /// What it came to.
    pub counts: Counts,
    /// How often what failed for which cause.
    pub causes: Causes,
    /// What did not hold.
    pub violation: Option<Violation>,
}

/// The plan with as few transitions as still break the same invariant: delta debugging over the
/// trace, with at most `budget` runs.
pub fn shrink(plan: &Plan, violation: &Violation, budget: usize) -> Plan {
    let mut kept: Vec<usize> = plan.trace().into_iter().map(|(index, _)| index).collect();
    let mut left = budget;
    let mut breaks = |keep: &[usize]| {
        if left == 0 {
            return false;
        }
        left -= 1;
        let ran = Plan { keep: Some(keep.to_vec()), ..plan.clone() }.run();
        ran.violation.is_some_and(|found| found.invariant == violation.invariant)
    };
    let mut size = kept.len().div_ceil(2).max(1);
    loop {
        let mut smaller = false;
        let mut start = 0;
        while start < kept.len() {
            let end = (start + size).min(kept.len());
            let rest: Vec<usize> = kept[..start].iter().chain(&kept[end..]).copied().collect();
            if breaks(&rest) {
                kept = rest;
                smaller = true;
            } else {
                start = end;
            }
        }
        if size == 1 && !smaller {
            break;
        }
        size = if smaller { size.min(kept.len().max(1)) } else { size.div_ceil(2) };
    }
    Plan { keep: Some(kept), ..plan.clone() }
}

/// Runs what `bytes` mean, for a fuzzer: any bytes are a trace.
///
/// # Panics
/// When an invariant does not hold; the message names it and holds the log.
pub fn fuzz(bytes: &[u8]) {
    let (first, rest) = bytes.split_first().unwrap_or((&0, &[]));
    let nodes = 3 + first % 4;
    let trace = decode(rest, nodes).into_iter().enumerate().collect();
    let (log, _, _, violation) = World::new(&Seed::new(u64::from(*first)), Setup::new(nodes), trace).run();
    if let Some(violation) = violation {
        panic!("{violation}\n{log}");
    }
}
