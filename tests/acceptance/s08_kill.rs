//! S8, its first part: `wrk` loads every other edge while a worker is killed (SPEC CLU-4, LB-6).

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use skein_cluster::clock::unix_us;

use crate::support::cluster::text;
use crate::support::process::{Owned, program};
use crate::support::{Cluster, Request, SOON, eventually, skipped};

/// How long wrk runs, in seconds.
const LOAD: u64 = 8;
/// Connections of each wrk: the most that can be in flight.
const CONNECTIONS: u64 = 16;

/// What one wrk saw.
#[derive(Debug, Default)]
struct Seen {
    /// Wall clock in microseconds, status, the proxy's own code.
    failed: Vec<(u64, u16, String)>,
    /// Region, answers, wall clock of the last one in microseconds.
    answered: Vec<(String, u64, u64)>,
    /// Connect, read, write, timeout.
    sockets: [u64; 4],
    requests: u64,
    /// Microseconds.
    slowest: u64,
}

#[test]
fn s8_a_killed_worker_gets_no_request_after_a_second_and_failures_are_explained() {
    let Some(wrk) = program("wrk") else { return skipped("S8", "wrk is not installed") };
    let cluster = Cluster::up(&["--regions", "iad,lhr,nrt", "--trace-sample", "0"]);
    let edges = ["iad-1", "nrt-1"].map(|node| cluster.endpoint("hello", node));
    for edge in edges {
        eventually("the victim serves", SOON, || {
            let reply = Request::get(edge, "/").header("fly-prefer-region", "lhr").ok();
            if reply.field("region") == "lhr" { Ok(()) } else { Err(reply.field("region")) }
        });
    }
    let mut loads: Vec<(Owned, std::path::PathBuf)> = Vec::new();
    for (index, edge) in edges.into_iter().enumerate() {
        let out = cluster.home.path().join(format!("wrk-{index}.txt"));
        loads.push((load(&wrk, edge, &out), out));
    }
    eventually("half of the load is over", SOON, || {
        let running = loads[0].0.0.id();
        let since = started(running);
        if since > Duration::from_secs(LOAD / 2) { Ok(()) } else { Err(since) }
    });
    cluster.kill("lhr-1");
    let killed = unix_us();

    for ((mut load, out), node) in loads.into_iter().zip(["iad-1", "nrt-1"]) {
        let status = eventually("wrk ends", SOON, || load.0.try_wait().unwrap().ok_or("still running"));
        let text = std::fs::read_to_string(&out).unwrap();
        assert!(status.success(), "{text}");
        let seen = parse(&text);
        eprintln!("{}", report(&seen, killed));
        let lhr = seen.answered.iter().find(|(region, _, _)| region == "lhr");
        assert!(lhr.is_some_and(|(_, count, _)| *count > 100), "the load went to the victim: {seen:?}");
        assert!(lhr.is_some_and(|(_, _, last)| *last < killed + 1_000_000), "{seen:?}");
        let others = seen.answered.iter().filter(|(region, _, last)| region != "lhr" && *last > killed);
        assert!(others.count() > 0, "others went on: {seen:?}");
        let late: Vec<_> = seen.failed.iter().filter(|(at, _, _)| *at > killed + 1_000_000).collect();
        assert!(late.is_empty(), "failed more than a second after the kill: {late:?}");
        let unexplained: Vec<_> = seen.failed.iter().filter(|(_, _, code)| code == "none").collect();
        assert!(unexplained.is_empty(), "failures without the proxy's code: {unexplained:?}");
        // A response that had begun when its worker died can't be taken back: its connection is cut, so
        // that nobody takes the part for the whole, and the edge counts it.
        let [connect, read, write, timeout] = seen.sockets;
        assert_eq!([connect, write, timeout], [0; 3], "{seen:?}");
        let cut = cut_off(&cluster, node);
        assert!(read <= cut && read <= CONNECTIONS, "{read} broken connections, {cut} counted: {seen:?}");
    }
}

/// Responses that an edge cut off, by its own count.
fn cut_off(cluster: &Cluster, node: &str) -> u64 {
    let metrics = text(&cluster.node(node)["metrics"]);
    let address = metrics.trim_start_matches("http://").trim_end_matches("/metrics").parse().unwrap();
    let page = Request::get(address, "/metrics").ok().text();
    let line = page.lines().find(|line| line.starts_with("skein_edge_cut_off_count{"));
    line.and_then(|line| line.rsplit_once(' ')?.1.parse().ok())
        .unwrap_or_else(|| panic!("no count in {page}"))
}

fn load(wrk: &Path, edge: SocketAddr, out: &Path) -> Owned {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/acceptance/load/record.lua");
    let file = std::fs::File::create(out).unwrap();
    let mut command = Command::new(wrk);
    command.args([
        "-t1",
        &format!("-c{CONNECTIONS}"),
        &format!("-d{LOAD}s"),
        "--timeout",
        "10s",
        "--latency",
        "-s",
        script,
    ]);
    command.args(["-H", "fly-prefer-region: lhr", &format!("http://{edge}/")]);
    Owned::start(command.stdin(Stdio::null()).stdout(file).stderr(Stdio::null()))
}

/// How long a process has run.
fn started(pid: u32) -> Duration {
    let ticks = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse::<u64>().ok());
    let up = std::fs::read_to_string("/proc/uptime").unwrap();
    let up: f64 = up.split(' ').next().unwrap().parse().unwrap();
    // The kernel tells the start in hundredths of a second since boot.
    Duration::from_secs_f64((up - ticks.map_or(0.0, |ticks| ticks as f64 / 100.0)).max(0.0))
}

fn parse(text: &str) -> Seen {
    let mut seen = Seen::default();
    for line in text.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |index: usize| words.get(index).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        match words.first().copied() {
            Some("failed") => {
                seen.failed.push((number(1), number(2) as u16, words.get(3).unwrap_or(&"none").to_string()));
            }
            Some("answered") => seen.answered.push((words[1].to_owned(), number(2), number(3))),
            Some("sockets") => seen.sockets = [number(1), number(2), number(3), number(4)],
            Some("requests") if words.len() > 5 => (seen.requests, seen.slowest) = (number(1), number(5)),
            _ => {}
        }
    }
    seen
}

/// What a person wants to read of it.
fn report(seen: &Seen, killed: u64) -> String {
    let mut codes = std::collections::BTreeMap::<&str, usize>::new();
    for (_, _, code) in &seen.failed {
        *codes.entry(code).or_default() += 1;
    }
    let last = seen.failed.iter().map(|(at, _, _)| at.saturating_sub(killed) / 1000).max();
    format!(
        "{} requests, {} failed {codes:?}, the last {last:?} ms after the kill; slowest {} ms",
        seen.requests,
        seen.failed.len(),
        seen.slowest / 1000
    )
}
