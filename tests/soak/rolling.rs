//! Nodes and Machines restart one after the other under load (SPEC HTTP-11, CLU-5, RUN-5).

use std::net::SocketAddr;

use crate::load::{Load, Mix, rate};
use crate::scale;
use crate::support::{Cluster, now};

/// Requests in a second, all edges together.
const RATE: f64 = 500.0;
/// Restarts of a node at scale 1.
const ROUNDS: f64 = 5.0;

#[test]
fn no_request_fails_while_nodes_and_machines_restart_one_after_the_other() {
    let rounds = (ROUNDS * scale()).ceil() as usize;
    let cluster = Cluster::up(&["--regions", "iad,lhr,nrt", "--trace-sample", "0"]);
    let nodes = cluster.nodes();
    let machines: Vec<String> =
        ["iad", "lhr", "nrt"].iter().map(|region| cluster.machines_in("hello", region)[0].clone()).collect();
    let edges: Vec<SocketAddr> = nodes.iter().map(|node| cluster.endpoint("hello", node)).collect();
    let rate = rate(&edges, RATE);
    let began = now();
    let load = Load::start(&edges, rate, Mix::All);
    for round in 0..rounds {
        let (at, node) = (round % nodes.len(), &nodes[round % nodes.len()]);
        load.phase(format!("round {round}, {node} drains"));
        load.withdraw(at);
        cluster.skein(&["node", "drain", node]).ok();
        load.phase(format!("round {round}, {node} restarts"));
        cluster.skein(&["node", "restart", node]).ok();
        load.announce(at);
        let machine = &machines[(round + 1) % machines.len()];
        load.phase(format!("round {round}, Machine {machine} restarts"));
        cluster.skein(&["machines", "restart", machine]).ok();
        let took = now().saturating_duration_since(began).as_secs_f64();
        eprintln!("rolling: round {} of {rounds} at {took:.1} s, {} failed", round + 1, load.failed());
    }
    let tally = load.stop();
    let took = now().saturating_duration_since(began).as_secs_f64();
    eprintln!(
        "rolling: {rounds} nodes and {rounds} Machines restarted in {took:.1} s; {} requests at {rate:.0}/s, {} held back, {} failed",
        tally.answered,
        tally.held,
        tally.failed.len()
    );
    eprintln!(
        "rolling: {} connections opened, {} closed by `Connection: close`, {} found closed, {} requests sent again",
        tally.opened, tally.told, tally.found_closed, tally.again
    );
    eprintln!(
        "rolling: {} WebSockets opened, {} closed with 1012, {} messages came back",
        tally.web_sockets, tally.restarted, tally.heard
    );
    let [half, most, nearly, all] = [0.5, 0.99, 0.999, 1.0].map(|share| tally.quantile(share));
    eprintln!("rolling: p50 {half:.1} ms, p99 {most:.1} ms, p99.9 {nearly:.1} ms, slowest {all:.1} ms");
    let first: Vec<_> = tally.failed.iter().take(20).collect();
    assert!(first.is_empty(), "{} requests failed, the first of them: {first:#?}", tally.failed.len());
    assert!(tally.restarted >= rounds as u64, "who left closed its WebSockets");
    assert!(tally.told >= rounds as u64, "edges that drained told their clients");
}
