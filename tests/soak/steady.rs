//! One of three Machines after the other stops, starts, restarts, is cordoned and is killed under load
//! (SPEC LB-5, LB-6, HTTP-11, RUN-5): nobody who asks for what may be repeated notices.

use std::net::SocketAddr;

use crate::load::{Load, Mix, rate};
use crate::scale;
use crate::support::process::{signal, with_env};
use crate::support::{Cluster, SOON, eventually, now};

/// Requests in a second, all edges together.
const RATE: f64 = 500.0;
/// Rounds at scale 1; each does everything once.
const ROUNDS: f64 = 5.0;

#[test]
fn no_request_fails_while_machines_stop_start_restart_are_cordoned_and_killed() {
    let rounds = (ROUNDS * scale()).ceil() as usize;
    let cluster = Cluster::up(&["--regions", "iad,lhr,nrt", "--trace-sample", "0"]);
    let nodes = cluster.nodes();
    let machines: Vec<String> =
        ["iad", "lhr", "nrt"].iter().map(|region| cluster.machines_in("hello", region)[0].clone()).collect();
    let edges: Vec<SocketAddr> = nodes.iter().map(|node| cluster.endpoint("hello", node)).collect();
    let rate = rate(&edges, RATE);
    let began = now();
    let load = Load::start(&edges, rate, Mix::Repeatable);
    let does = |round: usize, what: &str, machine: &str| {
        load.phase(format!("round {round}, {what} {machine}"));
        cluster.skein(&["machines", what, machine]).ok();
    };
    for round in 0..rounds {
        let before = load.failed();
        let one = |step: usize| &machines[(round + step) % machines.len()];
        // Each verb returns when its state is reached: the next one follows at once.
        does(round, "stop", one(0));
        does(round, "start", one(0));
        machines.iter().for_each(|machine| does(round, "restart", machine));
        does(round, "cordon", one(1));
        does(round, "uncordon", one(1));
        load.phase(format!("round {round}, SIGKILL {}", one(2)));
        kill(one(2));
        let took = now().saturating_duration_since(began).as_secs_f64();
        let failed = load.failed() - before;
        eprintln!("steady: round {} of {rounds} at {took:.1} s, {failed} failed", round + 1);
        load.failures(before).iter().for_each(|failure| explain(&cluster, failure));
    }
    let tally = load.stop();
    let took = now().saturating_duration_since(began).as_secs_f64();
    eprintln!(
        "steady: {rounds} rounds in {took:.1} s; {} requests at {rate:.0}/s, {} held back, {} failed, {} sent again",
        tally.answered,
        tally.held,
        tally.failed.len(),
        tally.again
    );
    let [half, most, nearly, all] = [0.5, 0.99, 0.999, 1.0].map(|share| tally.quantile(share));
    eprintln!("steady: p50 {half:.1} ms, p99 {most:.1} ms, p99.9 {nearly:.1} ms, slowest {all:.1} ms");
    let first: Vec<_> = tally.failed.iter().take(20).collect();
    assert!(first.is_empty(), "{} requests failed, the first of them: {first:#?}", tally.failed.len());
    assert!(tally.answered as f64 > rate * took / 2.0, "the load went on all the time");
}

/// Shows why a request failed, as its edge tells it.
fn explain(cluster: &Cluster, failure: &str) {
    let id = failure.split_once("skein explain ").map(|(_, rest)| rest.split(')').next().unwrap_or_default());
    let told = id.map(|id| cluster.skein(&["explain", id]));
    eprintln!("steady: {failure}\n{}", told.map_or("no story".to_owned(), |ran| ran.stdout + &ran.stderr));
}

/// Kills the process of a Machine as the kernel does when memory is short, and waits for another one.
fn kill(machine: &str) {
    let before = with_env("FLY_MACHINE_ID", machine);
    assert!(!before.is_empty(), "{machine} runs");
    before.iter().for_each(|pid| signal(*pid, "KILL"));
    eventually("its policy starts it again", SOON, || {
        let after = with_env("FLY_MACHINE_ID", machine);
        let is_new = !after.is_empty() && after.iter().all(|pid| !before.contains(pid));
        if is_new { Ok(()) } else { Err(after) }
    });
}
