//! Seeds: fixed ones, a fresh one, and what one seed promises.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::process::{Command, Output};

use proptest::prelude::*;
use skein_cluster::entropy::Entropy;
use skein_core::Random;
use skein_sim::run::{Plan, shrink};

fn holds(seed: u64) {
    let plan = Plan::new(seed);
    let ran = plan.run();
    if let Some(violation) = ran.violation {
        let short = shrink(&plan, &violation, 100);
        panic!("seed {seed}: {violation}\nrepeat it with: {}", short.command());
    }
    assert!(ran.counts.answered > 10, "seed {seed} does too little: {:?}", ran.counts);
}

#[test]
fn fixed_seeds_hold() {
    (1..=20).for_each(holds);
}

#[test]
fn a_fresh_seed_holds() {
    let seed = Entropy::default().next_u64() >> 32;
    println!("fresh seed {seed}");
    holds(seed);
}

fn log_of(seed: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_skein-sim")).args(["run", seed]).output().unwrap()
}

#[test]
fn one_seed_gives_the_same_log_byte_for_byte_in_two_processes_and_another_seed_another() {
    let (first, second, other) = (log_of("4"), log_of("4"), log_of("5"));
    assert!(first.status.success() && first.stdout.len() > 1_000);
    assert!(first.stdout == second.stdout, "the logs of one seed differ");
    assert_ne!(first.stdout, other.stdout);
}

#[test]
fn a_log_holds_nothing_of_this_machine_or_of_the_time() {
    let log = String::from_utf8(log_of("7").stdout).unwrap();
    for line in log.lines() {
        let (time, what) = line.split_once(' ').unwrap();
        assert!(time.bytes().all(|b| b.is_ascii_digit() || b == b'.'), "{line}");
        assert!(!what.contains('/') && !what.contains("0x"), "a path or an address: {line}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_bytes_are_a_run_that_holds(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        skein_sim::fuzz(&bytes);
    }
}
