//! Service checks and external Machines (SPEC CHK-1, CHK-2, RUN-3).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Node, with};
use serde_json::json;
use skein_cluster::Upstream;
use skein_core::load::LoadClass;
use skein_core::machine::MachineState::{LaunchFailed, Started, Stopped};

/// SPEC CHK-1: a failing check takes the Machine out of routing, a passing one back in; it never
/// restarts it.
#[tokio::test]
async fn a_failing_service_check_takes_a_machine_out_and_a_passing_one_back_in() {
    let node = Node::new().await;
    let flag = node.dir.path().join("fail");
    // The sample app runs as another user, who has to see the flag.
    std::fs::set_permissions(node.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let check = json!({"type": "http", "path": "/health", "interval": "1s", "grace_period": "1s"});
    let service = json!([{"internal_port": 8080, "checks": [check]}]);
    let config = json!({"image": "skein/hello", "services": service, "env": {"FAIL": flag}});
    let made = node.create(config).await;
    let healthy = node.record(made.id, |record| record.routable()).await;
    std::fs::write(&flag, "").unwrap();
    node.record(made.id, |record| !record.healthy).await;
    let sick = node.machines.get(made.id).unwrap();
    assert_eq!((sick.state, sick.checks[0].status.as_str()), (Started, "critical"));
    assert!(sick.checks[0].output.contains("500"), "{:?}", sick.checks);
    assert!(!node.locals.load()[&made.id].healthy);
    std::fs::remove_file(&flag).unwrap();
    let well = node.record(made.id, |record| record.routable()).await;
    assert_eq!(well.version, healthy.version);
    let starts =
        node.machines.get(made.id).unwrap().events.iter().filter(|event| event.kind == "start").count();
    assert_eq!(starts, 1, "never restarted");
    node.end().await;
}

/// SPEC CHK-2.
#[tokio::test]
async fn a_top_level_check_is_reported_and_does_not_affect_routing() {
    let node = Node::new().await;
    let checks = json!({"checks": {"never": {"type": "tcp", "port": 9, "interval": "1s"}}});
    let made = node.script("exec tail -f /dev/null", checks).await;
    node.record(made.id, |record| record.routable()).await;
    common::eventually(|| match node.machines.get(made.id).unwrap().checks[0].status.as_str() {
        "critical" => Ok(()),
        other => Err(other.to_owned()),
    })
    .await;
    assert!(node.machines.records().borrow()[&made.id].healthy);
    node.end().await;
}

#[tokio::test]
async fn an_external_machine_has_no_process_and_is_judged_by_its_checks() {
    let node = Node::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = json!([{"internal_port": 8080, "checks": [{"type": "tcp", "interval": "1s"}]}]);
    let config = json!({"image": "skein/external", "metadata": {"skein_external": address.to_string()}, "services": service});
    let made = node.create(config).await;
    node.record(made.id, |record| record.routable()).await;
    assert_eq!(node.locals.load()[&made.id].upstream, Upstream::External(address));
    drop(listener);
    node.record(made.id, |record| !record.healthy).await;
    assert_eq!(node.machines.get(made.id).unwrap().state, Started);
    let _listener = tokio::net::TcpListener::bind(address).await.unwrap();
    node.record(made.id, |record| record.healthy).await;
    node.machines.stop(made.id, None, None).await.unwrap();
    node.reach(made.id, Stopped).await;
    node.machines.start_machine(made.id).await.unwrap();
    node.reach(made.id, Started).await;
    let nowhere = json!({"metadata": {"skein_external": "no-such-host.invalid:1"}});
    let nowhere = node.create(with(json!({"image": "skein/external"}), nowhere)).await;
    node.reach(nowhere.id, LaunchFailed).await;
    node.end().await;
}

/// An app that listens once a file is there.
fn late(node: &Node, service: serde_json::Value) -> (serde_json::Value, std::path::PathBuf) {
    let file = node.dir.path().join("listen");
    // The sample app runs as another user.
    std::fs::set_permissions(node.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    (json!({"image": "skein/hello", "services": [service], "env": {"AFTER": file}}), file)
}

/// SPEC AUTO-5.
#[tokio::test]
async fn a_machine_gets_requests_once_it_accepts_connections() {
    let node = Node::new().await;
    let (config, file) = late(&node, json!({"internal_port": 8080}));
    let made = node.create(config).await;
    let waits = node.record(made.id, |record| record.state == Started).await;
    assert!(!waits.routable() && !node.locals.load()[&made.id].healthy);
    assert_eq!(waits.start_ms, 0, "its start is not over");
    std::fs::write(&file, "").unwrap();
    let listens = node.record(made.id, |record| record.routable()).await;
    assert!(listens.start_ms > 0);
    assert!(node.locals.load()[&made.id].healthy);
    let kinds: Vec<_> = node.machines.get(made.id).unwrap().events.into_iter().map(|e| e.kind).collect();
    assert_eq!(kinds, ["start", "launch"], "nothing else to tell");
    node.end().await;
}

/// SPEC AUTO-5, PC01: whoever asks has to hear what is wrong.
#[tokio::test]
async fn a_machine_that_never_accepts_connections_says_so_and_is_asked_all_the_same() {
    let node = Node::impatient().await;
    let (config, file) = late(&node, json!({"internal_port": 8080}));
    let made = node.create(config).await;
    let asked = node.record(made.id, |record| record.routable()).await;
    assert_eq!(asked.start_ms, 0, "that was no start");
    let shown = node.machines.get(made.id).unwrap();
    let event = &shown.events[0];
    assert_eq!((&*event.kind, &*event.status, &*event.source), ("unreachable", "started", "flyd"));
    let error = event.request.as_ref().unwrap()["error"].as_str().unwrap().to_owned();
    assert!(error.contains("port 8080") && error.contains("SKEIN_PORT_8080"), "{error}");
    assert_eq!(node.machines.last_error(made.id), Some(error));
    // Better late than never.
    std::fs::write(&file, "").unwrap();
    common::eventually(|| node.machines.last_error(made.id).map_or(Ok(()), Err)).await;
    node.end().await;
}

/// SPEC AUTO-4, AUTO-5.
#[tokio::test]
async fn a_machine_that_exits_at_its_start_gets_nothing_and_stays_stopped() {
    let node = Node::new().await;
    let made = node.script("exit 0", json!({"services": [{"internal_port": 8080}]})).await;
    let mut seen = node.machines.records();
    let mut routable = false;
    let stopped = seen.wait_for(|records| {
        routable |= records[&made.id].routable();
        records[&made.id].state == Stopped
    });
    drop(tokio::time::timeout(common::PATIENCE, stopped).await.unwrap().unwrap());
    assert!(!routable);
    let stopped = node.machines.get(made.id).unwrap();
    assert_eq!(common::exit(&stopped)["exit_code"], 0);
    assert_eq!(common::exit(&stopped)["restarting"], false);
    node.end().await;
}

/// SPEC CHK-1, CHK-3.
#[tokio::test]
async fn a_machine_that_accepts_and_never_answers_is_not_routed_to() {
    let node = Node::new().await;
    let check = json!({"type": "http", "interval": "1s", "timeout": "1s", "grace_period": "0s"});
    let service = json!([{"internal_port": 8080, "checks": [check]}]);
    let made = node.create(json!({"image": "skein/hello", "services": service, "env": {"MUTE": "1"}})).await;
    common::eventually(|| match &node.machines.get(made.id).unwrap().checks[..] {
        [check] if check.status == "critical" && check.output.contains("no answer within 1000 ms") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert!(!node.machines.records().borrow()[&made.id].healthy);
    assert_eq!(node.machines.get(made.id).unwrap().state, Started, "never restarted");
    node.end().await;
}

/// What every node is told of a Machine costs the whole cluster.
#[tokio::test]
async fn a_machine_that_flaps_is_told_of_less_often_than_it_does() {
    let node = Node::new().await;
    let check = json!({"type": "http", "interval": "1s", "grace_period": "0s"});
    let service = json!([{"internal_port": 8080, "checks": [check]}]);
    let made = node.create(json!({"image": "skein/hello", "services": service, "env": {"FLAP": "1"}})).await;
    node.record(made.id, |record| record.routable()).await;
    let (mut records, mut flaps, mut was, mut told) = (node.machines.records(), 0, true, 0);
    common::eventually(|| {
        let healthy = node.locals.load()[&made.id].healthy;
        flaps += u32::from(healthy != was);
        was = healthy;
        told += u32::from(records.has_changed().unwrap());
        records.mark_unchanged();
        if flaps >= 6 { Ok(()) } else { Err(format!("{flaps} times")) }
    })
    .await;
    assert!(told < flaps, "{told} times of {flaps}");
    node.end().await;
}

/// SPEC CLU: gossip carries the class of the load, and only when it changes.
#[tokio::test]
async fn the_load_class_follows_the_slots() {
    let node = Node::impatient().await;
    let limits =
        json!({"services": [{"internal_port": 1, "concurrency": {"soft_limit": 1, "hard_limit": 2}}]});
    let made = node.script("exec tail -f /dev/null", limits).await;
    node.record(made.id, |record| record.routable() && record.load == LoadClass::BelowSoft).await;
    let slots = node.locals.load()[&made.id].slots[0].clone();
    let first = slots.try_acquire(Some(2)).unwrap();
    node.record(made.id, |record| record.load == LoadClass::SoftToHard).await;
    let second = slots.try_acquire(Some(2)).unwrap();
    node.record(made.id, |record| record.load == LoadClass::AtHard).await;
    drop((first, second));
    node.record(made.id, |record| record.load == LoadClass::BelowSoft).await;
    node.end().await;
}
