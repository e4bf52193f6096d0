//! `up`, `down`, and what they leave behind (SPEC TB-1, TB-3).

use std::net::TcpStream;
use std::path::Path;

use crate::support::cluster::{Home, text};
use crate::support::process::{alive, parent, run, signal, with_env};
use crate::support::{Cluster, Request, SOON, eventually};

/// Every process of a cluster: nodes, launcher, Machines.
fn processes(cluster: &Cluster) -> Vec<u32> {
    let nodes = cluster.nodes().into_iter().map(|node| cluster.pid(&node));
    let machines = cluster.machines("hello").into_iter().flat_map(|machine| {
        let pids = with_env("FLY_MACHINE_ID", &text(&machine["id"]));
        assert!(!pids.is_empty(), "a Machine is a process of its own: {machine}");
        pids
    });
    nodes.chain([cluster.launcher()]).chain(machines).collect()
}

#[track_caller]
fn all_gone(pids: &[u32]) {
    eventually("no process is left", SOON, || {
        let left: Vec<u32> = pids.iter().copied().filter(|pid| alive(*pid)).collect();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

#[track_caller]
fn nobody_listens(cluster: &Cluster) {
    for url in std::iter::once(&cluster.json["api"]["url"])
        .chain(cluster.json["nodes"].as_array().expect("nodes").iter().map(|node| &node["api"]))
    {
        let address = text(url);
        assert!(
            TcpStream::connect(address.trim_start_matches("http://")).is_err(),
            "{address} still listens"
        );
    }
}

#[test]
fn down_leaves_no_process_no_port_and_may_be_repeated() {
    let cluster = Cluster::up(&["--regions", "iad,lhr"]);
    let pids = processes(&cluster);
    cluster.home.run(&["down", "--name", cluster.name()]).ok();
    let left: Vec<u32> = pids.into_iter().filter(|pid| alive(*pid)).collect();
    assert!(left.is_empty(), "down has returned, and these still run: {left:?}");
    nobody_listens(&cluster);
    cluster.home.run(&["down", "--name", cluster.name()]).ok();
    cluster.home.run(&["down", "--name", "never-heard-of"]).ok();
}

#[test]
fn a_killed_launcher_takes_everything_with_it() {
    let cluster = Cluster::up(&["--regions", "iad,lhr"]);
    let pids = processes(&cluster);
    signal(cluster.launcher(), "KILL");
    all_gone(&pids);
    nobody_listens(&cluster);
}

#[test]
fn ctrl_c_in_the_foreground_leaves_nothing() {
    let home = Home::new();
    let mut command = home.skein();
    command.args(["up", "--name", &home.name, "--regions", "iad"]).current_dir("/");
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    command.stderr(std::process::Stdio::null());
    let mut up = crate::support::process::Owned::start(&mut command);
    let ids = eventually("the cluster serves", crate::support::cluster::UP, || {
        let list = run(
            home.skein().args(["--cluster", &home.name, "machines", "list", "-a", "hello", "--json"]),
            SOON,
        );
        let machines: Vec<serde_json::Value> = serde_json::from_str(&list.stdout).map_err(|_| list.stderr)?;
        let started = !machines.is_empty() && machines.iter().all(|machine| machine["state"] == "started");
        if started { Ok(machines) } else { Err(list.stdout) }
    });
    let pids: Vec<u32> =
        ids.iter().flat_map(|machine| with_env("FLY_MACHINE_ID", &text(&machine["id"]))).collect();
    assert!(!pids.is_empty());
    signal(up.pid(), "INT");
    let status = eventually("up ends", SOON, || up.0.try_wait().expect("wait").ok_or("still running"));
    assert_eq!(status.code(), Some(130), "ended by SIGINT, as shells count it");
    all_gone(&pids);
}

#[test]
fn two_clusters_live_side_by_side_and_a_name_is_given_once() {
    let one = Cluster::up(&["--regions", "iad"]);
    let again = one.home.up(Path::new("/"), &["--regions", "lhr"], &[]).refused();
    assert!(again.contains(one.name()), "{again}");
    assert_eq!(one.get("hello", "iad-1", "/").field("region"), "iad", "the first one goes on");

    let two = Cluster::up(&["--regions", "iad"]);
    assert_ne!(one.json["api"]["url"], two.json["api"]["url"]);
    assert_ne!(
        one.get("hello", "iad-1", "/").field("machine"),
        two.get("hello", "iad-1", "/").field("machine")
    );
}

#[test]
fn up_says_where_everything_is_and_each_part_is_a_process_of_its_own() {
    let cluster = Cluster::up(&["--regions", "iad:2"]);
    let json = &cluster.json;
    assert_eq!(json["name"], cluster.name());
    for key in ["dashboard", "ca"] {
        assert!(json.get(key).is_some(), "the key {key} is there, null until its part is built: {json}");
    }
    for key in ["grpc", "http"] {
        assert!(text(&json["otlp"][key]).starts_with("http://127.0.0.1:"), "{json}");
    }
    let mut pids: Vec<u32> = cluster.nodes().iter().map(|node| cluster.pid(node)).collect();
    for node in cluster.nodes() {
        assert_eq!(parent(cluster.pid(&node)), Some(cluster.launcher()));
        let metrics = text(&cluster.node(&node)["metrics"]);
        let to = metrics.trim_start_matches("http://").trim_end_matches("/metrics").parse().unwrap();
        assert!(Request::get(to, "/metrics").ok().text().contains("fly_"), "no token is needed on loopback");
        assert!(cluster.data_dir(&node).is_dir());
    }
    for machine in cluster.machines("hello") {
        assert_eq!(machine["state"], "started");
        assert_eq!(machine["config"]["image"], "skein/hello");
        pids.extend(with_env("FLY_MACHINE_ID", &text(&machine["id"])));
    }
    pids.sort_unstable();
    pids.dedup();
    assert!(pids.len() >= 4, "two nodes and two Machines are four processes or more: {pids:?}");
}
