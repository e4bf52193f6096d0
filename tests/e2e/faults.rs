//! What goes on when something breaks, and what comes back (SPEC CLU-3, CLU-4, RUN-7, CH-1).

use crate::support::cluster::text;
use crate::support::process::{signal, with_env};
use crate::support::{Cluster, Request, SOON, eventually};

/// The region that answers at a node's edge when the client prefers `lhr`; the proxy's code when it
/// has no answer.
fn answer(endpoint: std::net::SocketAddr) -> Result<String, String> {
    let reply = Request::get(endpoint, "/").header("fly-prefer-region", "lhr").send();
    let reply = reply.map_err(|error| error.to_string())?;
    if reply.status == 200 { Ok(reply.field("region")) } else { Err(format!("{reply:?}")) }
}

#[test]
fn a_killed_node_is_avoided_leaves_no_orphan_and_comes_back_with_its_machines() {
    let cluster = Cluster::up(&["--regions", "iad,lhr,nrt"]);
    let edges = [cluster.endpoint("hello", "iad-1"), cluster.endpoint("hello", "nrt-1")];
    let before = cluster.machines_in("hello", "lhr");
    let orphans = with_env("FLY_MACHINE_ID", &before[0]);
    assert!(!orphans.is_empty());
    assert_eq!(answer(edges[0]), Ok("lhr".into()));

    cluster.kill("lhr-1");
    for edge in edges {
        eventually("the others go on without it", SOON, || match answer(edge) {
            Ok(region) if region != "lhr" => Ok(()),
            other => Err(other),
        });
        for _ in 0..20 {
            assert!(answer(edge).is_ok_and(|region| region != "lhr"), "once avoided, avoided for good");
        }
    }
    eventually("its Machines end with it", SOON, || {
        let left = with_env("FLY_MACHINE_ID", &before[0]);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    let shown = cluster.machines("hello");
    let lost = shown.iter().find(|machine| machine["id"] == *before[0]).expect("it is still listed");
    assert_eq!(lost["host_status"], "unreachable", "{lost}");

    cluster.skein(&["node", "restart", "lhr-1"]).ok();
    eventually("its Machine answers again", SOON, || match answer(edges[0]) {
        Ok(region) if region == "lhr" => Ok(()),
        other => Err(other),
    });
    assert_eq!(cluster.machines_in("hello", "lhr"), before, "the same Machine, not a new one");
}

#[test]
fn a_frozen_node_is_avoided_and_returns_by_itself() {
    let cluster = Cluster::up(&["--regions", "iad,lhr"]);
    let edge = cluster.endpoint("hello", "iad-1");
    let pid = cluster.pid("lhr-1");
    signal(pid, "STOP");
    eventually("the other goes on without it", SOON, || match answer(edge) {
        Ok(region) if region == "iad" => Ok(()),
        other => Err(other),
    });
    signal(pid, "CONT");
    eventually("it is used again without a hand", SOON, || match answer(edge) {
        Ok(region) if region == "lhr" => Ok(()),
        other => Err(other),
    });
}

#[test]
fn a_crashed_machine_is_started_again_by_its_policy() {
    let cluster = Cluster::up(&["--regions", "iad"]);
    let endpoint = cluster.endpoint("hello", "iad-1");
    let id = cluster.machines_in("hello", "iad")[0].clone();
    let before = with_env("FLY_MACHINE_ID", &id);
    let crash = Request::post(endpoint, "/crash", "").reply();
    assert!(crash.status >= 500, "no answer came from the app: {crash:?}");
    eventually("it answers again", SOON, || match Request::get(endpoint, "/").send() {
        Ok(reply) if reply.status == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(cluster.machines_in("hello", "iad"), std::slice::from_ref(&id), "the same Machine");
    let after = with_env("FLY_MACHINE_ID", &id);
    assert!(after.iter().any(|pid| !before.contains(pid)), "a new process: {before:?}, {after:?}");
}

#[test]
fn a_failing_check_takes_a_machine_out_and_a_passing_one_brings_it_back() {
    let cluster = Cluster::up(&["--regions", "iad,lhr"]);
    let config = cluster.home.path().join("fly.toml");
    std::fs::write(
        &config,
        "app = \"checked\"\nprimary_region = \"iad\"\n[build]\nimage = \"skein/hello\"\n[http_service]\n\
         auto_start_machines = false\n[[http_service.checks]]\ninterval = \"1s\"\ntimeout = \"1s\"\n\
         grace_period = \"1s\"\npath = \"/health\"\n",
    )
    .unwrap();
    let config = config.to_str().unwrap();
    cluster.skein(&["deploy", "-c", config, "--regions", "iad,lhr"]).ok();
    let edge = cluster.endpoint("checked", "lhr-1");
    let region = || {
        let reply = Request::get(edge, "/").send().map_err(|error| error.to_string())?;
        if reply.status == 200 { Ok(reply.field("region")) } else { Err(format!("{reply:?}")) }
    };
    let becomes = |wanted: &str| {
        eventually(&format!("{wanted} answers"), SOON, || match region() {
            Ok(region) if region == wanted => Ok(()),
            other => Err(other),
        });
    };
    becomes("lhr");
    Request::post(edge, "/health?fail=true", "").ok();
    becomes("iad");
    // The unhealthy one gets no traffic, so it is told through its own port.
    let lhr = cluster.machines_in("checked", "lhr")[0].clone();
    let process = with_env("FLY_MACHINE_ID", &lhr);
    let port = process.iter().find_map(|pid| environment(*pid, "PORT")).expect("portable mode sets PORT");
    let own = format!("127.0.0.1:{port}").parse().unwrap();
    Request::post(own, "/health?fail=false", "").ok();
    becomes("lhr");
}

/// A variable of a process's environment.
fn environment(pid: u32, name: &str) -> Option<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let prefix = format!("{name}=");
    bytes
        .split(|byte| *byte == 0)
        .find_map(|pair| std::str::from_utf8(pair).ok()?.strip_prefix(&prefix).map(str::to_owned))
}

#[test]
fn a_partition_is_injected_listed_and_healed() {
    let cluster = Cluster::up(&["--regions", "iad,lhr,nrt"]);
    let edge = cluster.endpoint("hello", "iad-1");
    cluster.skein(&["chaos", "inject", "partition", "iad", "lhr"]).ok();
    eventually("each side serves what it reaches", SOON, || match answer(edge) {
        Ok(region) if region != "lhr" => Ok(()),
        other => Err(other),
    });
    let list = cluster.json_of(&["chaos", "list", "--json"]);
    assert!(list.to_string().contains("partition"), "{list}");
    cluster.skein(&["chaos", "heal"]).ok();
    eventually("healing needs no hand", SOON, || match answer(edge) {
        Ok(region) if region == "lhr" => Ok(()),
        other => Err(other),
    });
    assert_eq!(text(&cluster.get("hello", "lhr-1", "/").json()["region"]), "lhr");
}

#[test]
fn facts_survive_when_every_node_is_killed_and_gossip_knows_nothing() {
    let cluster = Cluster::up(&["--regions", "iad,lhr"]);
    cluster.skein(&["apps", "create", "kept"]).ok();
    let ids = cluster.machines_in("hello", "lhr");
    for node in cluster.nodes() {
        cluster.kill(&node);
        // What gossip knew goes with the process; of itself it keeps only how often it was started.
        std::fs::remove_file(cluster.data_dir(&node).join("generation.json")).unwrap();
    }
    for node in cluster.nodes() {
        cluster.skein(&["node", "restart", &node]).ok();
    }
    let apps = eventually("the API answers", SOON, || {
        let ran = cluster.skein(&["apps", "list", "--json"]);
        if ran.status.success() { Ok(ran.stdout) } else { Err(ran) }
    });
    assert!(apps.contains("kept"), "{apps}");
    assert_eq!(cluster.machines_in("hello", "lhr"), ids);
    let edge = cluster.endpoint("hello", "iad-1");
    eventually("requests are served again", SOON, || match answer(edge) {
        Ok(region) if region == "lhr" => Ok(()),
        other => Err(other),
    });
}
