//! Machines as real processes under machine-init (SPEC RUN-1 to RUN-9).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{Node, PATIENCE, create, exit, gone, with};
use nix::sys::signal::{SigHandler, Signal, signal};
use serde_json::json;
use skein_cluster::Upstream;
use skein_core::machine::MachineState::{Destroyed, LaunchFailed, Started, Stopped};
use skein_machine::MachineError;

const FOREVER: &str = "echo up; exec tail -f /dev/null";

/// SPEC RUN-1, RUN-5, RUN-6.
#[tokio::test]
async fn a_machine_starts_writes_its_log_and_stops_at_its_signal() {
    let node = Node::new().await;
    let made = node.script("echo hi; echo oh >&2; exec tail -f /dev/null", json!({})).await;
    assert_eq!(made.private_ip, "fdaa:0:1:0:1:0:1:2");
    let id = node.reach(made.id, Started).await.id;
    node.says(id, "hi").await;
    node.says(id, "oh").await;
    let lines = node.machines.logs(id).unwrap();
    assert!(lines.iter().any(|line| line.stream == "stderr" && line.line == "oh"), "{lines:?}");
    node.machines.stop(id, None, None).await.unwrap();
    let stopped = node.reach(id, Stopped).await;
    assert_eq!(exit(&stopped)["signal"], 2, "SIGINT by default");
    assert_eq!(exit(&stopped)["requested_stop"], true);
    let kinds: Vec<&str> = stopped.events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["exit", "stop", "start", "launch"], "newest first");
    let previous = node.machines.start_machine(id).await.unwrap();
    assert_eq!(previous, Stopped);
    node.reach(id, Started).await;
    node.end().await;
}

/// What decides whether a request waits for a start: the time of the last one, kept over the node's lives.
#[tokio::test]
async fn a_machine_knows_how_long_its_last_start_took() {
    let node = Node::new().await;
    let skip = skein_machine::Create {
        skip_launch: true,
        ..create(json!({"init": {"exec": ["/bin/sh", "-c", FOREVER]}}))
    };
    let id = node.machines.create(skip).await.unwrap().id;
    assert_eq!(node.record(id, |_| true).await.start_ms, 0, "it was never started");
    node.machines.start_machine(id).await.unwrap();
    let took = node.record(id, |record| record.start_ms > 0).await.start_ms;
    node.machines.stop(id, None, None).await.unwrap();
    assert_eq!(node.reach(id, Stopped).await.start_ms, took);
    let node = Node::on(node.end().await).await;
    assert_eq!(node.record(id, |_| true).await.start_ms, took);
    node.end().await;
}

/// What a shell runs in the background ignores SIGINT, and so would all that it starts.
#[tokio::test]
async fn a_machine_stops_at_its_signal_although_its_node_ignores_it() {
    // For the whole test program, so every Machine of it is told apart from its node by this.
    #[allow(unsafe_code, reason = "installs no handler")]
    unsafe { signal(Signal::SIGINT, SigHandler::SigIgn) }.unwrap();
    let node = Node::new().await;
    let id = node.script(FOREVER, json!({})).await.id;
    node.says(id, "up").await;
    node.machines.stop(id, None, None).await.unwrap();
    assert_eq!(exit(&node.reach(id, Stopped).await)["signal"], 2);
    node.end().await;
}

/// A node does without huge pages to stay small; what it runs is not to pay for that.
#[tokio::test]
async fn a_machine_has_huge_pages_although_its_node_has_none() {
    nix::sys::prctl::set_thp_disable(true).unwrap();
    let node = Node::new().await;
    let made = node.script(&format!("grep THP_enabled /proc/self/status; {FOREVER}"), json!({})).await;
    node.says(made.id, "up").await;
    assert_eq!(node.output(made.id).first().unwrap().split_whitespace().last(), Some("1"));
    node.end().await;
}

/// SPEC RUN-4.
#[tokio::test]
async fn what_follows_an_exit_is_the_restart_policys_to_say() {
    let node = Node::new().await;
    let policy = |name: &str, retries: u32| json!({"restart": {"policy": name, "max_retries": retries}});
    let never = node.script("exit 3", policy("no", 9)).await;
    let failing = node.script("echo run; exit 3", policy("on-failure", 2)).await;
    let done = node.script("exit 0", policy("on-failure", 9)).await;
    let always = node.script("echo run; exit 0", policy("always", 2)).await;
    assert_eq!(exit(&node.reach(never.id, Stopped).await)["exit_code"], 3);
    assert_eq!(exit(&node.reach(done.id, Stopped).await)["exit_code"], 0);
    for (machine, code) in [(failing, 3), (always, 0)] {
        let stopped = node.reach(machine.id, Stopped).await;
        assert_eq!(exit(&stopped)["exit_code"], code);
        assert_eq!(node.output(machine.id), ["run"; 3], "two restarts");
        let why = node.machines.last_error(machine.id).unwrap();
        assert!(why.contains("restarted 2 times within 5 minutes"), "{why}");
    }
    node.end().await;
}

/// The cause is where the failure is told, not only in a log.
#[tokio::test]
async fn a_process_that_ends_badly_leaves_its_last_words_in_the_error_and_the_event() {
    let node = Node::new().await;
    let script = "echo fine; echo 'Traceback:' >&2; printf 'Address in use' >&2; exit 1";
    let made = node.script(script, json!({"restart": {"policy": "no"}})).await;
    let stopped = node.reach(made.id, Stopped).await;
    let why = "its process exited with code 1; it last wrote: Traceback: / Address in use";
    assert_eq!(node.machines.last_error(made.id).as_deref(), Some(why));
    assert_eq!(exit(&stopped)["error"], why);
    let quiet = node.script("exit 1", json!({"restart": {"policy": "no"}})).await;
    node.reach(quiet.id, Stopped).await;
    let why = "its process exited with code 1; see its log";
    assert_eq!(node.machines.last_error(quiet.id).as_deref(), Some(why));
    let well = node.script("echo bye >&2", json!({"restart": {"policy": "no"}})).await;
    assert_eq!(exit(&node.reach(well.id, Stopped).await)["error"], "");
    assert_eq!(node.machines.last_error(well.id), None);
    node.end().await;
}

#[tokio::test]
async fn a_command_that_does_not_exist_fails_at_once_and_says_what_to_do() {
    let node = Node::new().await;
    let made = node.create(json!({"init": {"exec": ["no-such-command-here", "x"]}})).await;
    let error = node.machines.wait(made.id, vec![Started], None, PATIENCE).await.unwrap_err();
    assert!(matches!(error, MachineError::Unreachable { current: LaunchFailed, .. }), "{error:?}");
    assert!(error.to_string().contains("was not found in PATH"), "{error}");
    let failed = node.machines.get(made.id).unwrap();
    let text = failed.events[0].request.as_ref().unwrap()["error"].as_str().unwrap().to_owned();
    assert!(text.contains("no-such-command-here"), "{text}");
    // With a command that exists it starts.
    let config = serde_json::from_value(json!({"init": {"exec": ["/bin/sh", "-c", FOREVER]}})).unwrap();
    node.machines.update(made.id, config, false, None).await.unwrap();
    node.reach(made.id, Started).await;
    node.end().await;
}

/// SPEC RUN-3.
#[tokio::test]
async fn an_image_that_can_not_be_run_is_refused_and_leaves_nothing() {
    let node = Node::new().await;
    let error = node.machines.create(create(json!({"image": "nginx"}))).await.unwrap_err();
    assert_eq!(error.status(), 400);
    assert!(node.machines.list(None).is_empty());
    node.end().await;
}

/// SPEC RUN-5: SIGINT, SIGTERM, SIGKILL.
#[tokio::test]
async fn a_process_that_ignores_every_signal_is_killed_with_all_it_made() {
    let node = Node::new().await;
    let stubborn = "trap 'echo int' INT; trap 'echo term' TERM; setsid sh -c 'echo pid $$; exec tail -f /dev/null' & \
                    echo up; while :; do sleep 0.05; done";
    let made = node.script(stubborn, json!({"stop_config": {"timeout": "100ms"}})).await;
    node.says(made.id, "up").await;
    let pid = node.says(made.id, "pid ").await;
    assert!(common::alive(&pid));
    node.machines.stop(made.id, None, None).await.unwrap();
    let stopped = node.reach(made.id, Stopped).await;
    assert_eq!(exit(&stopped)["signal"], 9);
    let output = node.output(made.id);
    assert!(output.contains(&"int".into()) && output.contains(&"term".into()), "{output:?}");
    gone(&[pid]).await;
    node.end().await;
}

/// SPEC RUN-5: out of routing first, signalled once nothing is in flight.
#[tokio::test]
async fn a_stop_waits_for_what_is_in_flight() {
    let node = Node::new().await;
    let made = node
        .script(FOREVER, json!({"services": [{"internal_port": 80}], "stop_config": {"timeout": "60s"}}))
        .await;
    let id = node.reach(made.id, Started).await.id;
    let permit = node.locals.load()[&id].slots[0].try_acquire(None).unwrap();
    node.machines.stop(id, None, None).await.unwrap();
    let local = node.locals.load()[&id].clone();
    assert_eq!(local.state, skein_core::machine::MachineState::Stopping);
    assert_eq!(local.slots[0].in_flight(), 1, "the same slots");
    // It is still draining after a while that would be long enough without the request.
    let early = node.machines.wait(id, vec![Stopped], None, Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(early, MachineError::Deadline { .. }), "{early:?}");
    drop(permit);
    node.reach(id, Stopped).await;
    node.end().await;
}

/// SPEC RUN-7: no orphan after any exit.
#[tokio::test]
async fn nothing_outlives_the_first_process_of_a_machine() {
    let node = Node::new().await;
    let script =
        "for i in 1 2 3; do setsid sh -c 'echo pid $$; exec tail -f /dev/null' & done; sleep 0.3; exit 7";
    let made = node.script(script, json!({"restart": {"policy": "no"}})).await;
    let stopped = node.reach(made.id, Stopped).await;
    assert_eq!(exit(&stopped)["exit_code"], 7);
    let pids: Vec<String> =
        node.output(made.id).iter().filter_map(|line| line.strip_prefix("pid ").map(str::to_owned)).collect();
    assert!(!pids.is_empty());
    assert!(pids.iter().all(|pid| !common::alive(pid)), "gone before the Machine counts as stopped");
    node.end().await;
}

/// SPEC RUN-2, RUN-9.
#[tokio::test]
async fn a_process_knows_who_and_where_it_is_and_gets_ports_of_its_own() {
    let node = Node::new().await;
    let config = json!({"services": [{"internal_port": 8080}, {"internal_port": 9000}], "env": {"A": "b"}, "image": "skein/command"});
    let first = node.script("env; exec tail -f /dev/null", config.clone()).await;
    let second = node.script("env; exec tail -f /dev/null", config).await;
    let mut seen = std::collections::BTreeSet::new();
    for machine in [first, second] {
        let id = node.reach(machine.id, Started).await.id;
        for (key, value) in [
            ("FLY_APP_NAME=", "an-app".to_owned()),
            ("FLY_MACHINE_ID=", id.to_string()),
            ("FLY_ALLOC_ID=", id.to_string()),
            ("FLY_REGION=", "iad".to_owned()),
            ("FLY_PRIVATE_IP=", machine.private_ip.clone()),
            ("FLY_IMAGE_REF=", "skein/command".to_owned()),
            ("FLY_MACHINE_VERSION=", machine.instance_id.to_string()),
            ("FLY_PROCESS_GROUP=", "app".to_owned()),
            ("FLY_VM_MEMORY_MB=", "256".to_owned()),
            ("A=", "b".to_owned()),
            ("HOME=", "/tmp".to_owned()),
        ] {
            assert_eq!(node.says(id, key).await, value, "{key}");
        }
        let port = node.says(id, "SKEIN_PORT_8080=").await;
        assert_eq!(node.says(id, "PORT=").await, port);
        let other = node.says(id, "SKEIN_PORT_9000=").await;
        let Upstream::Loopback(ports) = &node.locals.load()[&id].upstream else { panic!("not by loopback") };
        assert_eq!(ports[&8080].port().to_string(), port);
        assert_eq!(ports[&9000].port().to_string(), other);
        assert!(seen.insert(port) && seen.insert(other), "each port once");
    }
    node.end().await;
}

/// SPEC RUN-9: a grant beside its refusal.
#[tokio::test]
async fn a_root_nodes_processes_are_nobody_unless_another_user_is_named() {
    let node = Node::new().await;
    let who = "echo id $(id -u):$(id -g):$(id -G); exec tail -f /dev/null";
    let plain = node.script(who, json!({})).await;
    let plain = node.says(plain.id, "id ").await;
    if !nix::unistd::geteuid().is_root() {
        assert!(plain.starts_with(&format!("{}:", nix::unistd::geteuid())), "the invoking user: {plain}");
        let other = json!({"init": {"exec": ["id"]}, "metadata": {"skein_user": "0"}});
        let refused = node.machines.create(create(other)).await.unwrap_err();
        assert!(refused.to_string().contains("run the node as root"), "{refused}");
        println!("SKIPPED a_root_nodes_processes_are_nobody_unless_another_user_is_named: not root");
        return drop(node.end().await);
    }
    assert_eq!(plain, "65534:65534:65534");
    let root = node.script(who, json!({"metadata": {"skein_user": "root"}})).await;
    assert!(node.says(root.id, "id ").await.starts_with("0:0:"));
    let numbers = node.script(who, json!({"processes": [{"user": "1234:4321"}]})).await;
    assert_eq!(node.says(numbers.id, "id ").await, "1234:4321:4321");
    // What is root's own stays closed to nobody, and open to root.
    let secret = node.dir.path().join("secret");
    std::fs::write(&secret, "s").unwrap();
    nix::sys::stat::fchmodat(
        nix::fcntl::AT_FDCWD,
        &secret,
        nix::sys::stat::Mode::from_bits_truncate(0o600),
        nix::sys::stat::FchmodatFlags::FollowSymlink,
    )
    .unwrap();
    let read = format!("cat {} 2>/dev/null && echo read || echo refused", secret.display());
    let refused = node.script(&read, json!({"restart": {"policy": "no"}})).await;
    node.says(refused.id, "refused").await;
    let granted =
        node.script(&read, json!({"restart": {"policy": "no"}, "metadata": {"skein_user": "0"}})).await;
    node.says(granted.id, "sread").await;
    node.end().await;
}

#[tokio::test]
async fn an_update_replaces_the_process_and_guards_against_lost_updates() {
    let node = Node::new().await;
    let made = node.script("echo one; exec tail -f /dev/null", json!({})).await;
    node.says(made.id, "one").await;
    let next =
        |script: &str| serde_json::from_value(json!({"init": {"exec": ["/bin/sh", "-c", script]}})).unwrap();
    let stale = Some("01JNRQ9VVKJ7HZFMJWJB3M3RYN".to_owned());
    let error = node.machines.update(made.id, next("exit 0"), false, stale).await.unwrap_err();
    assert_eq!(error.status(), 409, "{error}");
    let current = Some(made.instance_id.to_string());
    let script = "echo two; exec tail -f /dev/null";
    let updated = node.machines.update(made.id, next(script), false, current).await.unwrap();
    assert_ne!(updated.instance_id, made.instance_id);
    let version = Some(updated.instance_id);
    node.machines.wait(made.id, vec![Started], version, PATIENCE).await.unwrap();
    node.says(made.id, "two").await;
    let hash = node.record(made.id, |_| true).await.config;
    let json = node.machines.config_json(hash).unwrap();
    assert!(String::from_utf8_lossy(&json).contains("echo two"));
    // Without a launch it ends stopped.
    node.machines.update(made.id, next("exit 0"), true, None).await.unwrap();
    node.reach(made.id, Stopped).await;
    node.end().await;
}

#[tokio::test]
async fn a_running_machine_is_destroyed_by_force_only_and_then_gone() {
    let node = Node::new().await;
    let made = node.script(FOREVER, json!({})).await;
    node.reach(made.id, Started).await;
    let error = node.machines.destroy(made.id, false).await.unwrap_err();
    assert_eq!(error.status(), 412, "{error}");
    node.machines.destroy(made.id, true).await.unwrap();
    node.reach(made.id, Destroyed).await;
    assert!(!node.machines.records().borrow().contains_key(&made.id));
    assert!(!node.locals.load().contains_key(&made.id));
    assert_eq!(node.machines.start_machine(made.id).await.unwrap_err().status(), 404);
    let node = Node::on(node.end().await).await;
    assert_eq!(node.machines.get(made.id).unwrap_err().status(), 404);
    // Its number, a part of addresses, is not given again.
    let next = node.script(FOREVER, json!({})).await;
    assert_eq!(next.private_ip, "fdaa:0:1:0:1:0:2:2");
    node.end().await;
}

#[tokio::test]
async fn a_cordoned_machine_says_so_and_back() {
    let node = Node::new().await;
    let made = node.script(FOREVER, json!({})).await;
    node.machines.cordon(made.id).await.unwrap();
    assert!(node.record(made.id, |record| record.cordoned).await.cordoned);
    assert!(node.locals.load()[&made.id].cordoned);
    node.machines.uncordon(made.id).await.unwrap();
    node.record(made.id, |record| !record.cordoned).await;
    node.end().await;
}

/// SPEC RUN-7: what a client was told survives; SPEC RUN-1: states come back as they were meant.
#[tokio::test]
async fn machines_come_back_as_they_were_meant_with_their_history() {
    let node = Node::new().await;
    let running = node.script(FOREVER, json!({})).await;
    let stopped = node.script(FOREVER, json!({})).await;
    let over = node.script("exit 0", json!({})).await;
    let cordoned = node.script(FOREVER, json!({})).await;
    for id in [running.id, stopped.id, cordoned.id] {
        node.reach(id, Started).await;
    }
    node.machines.stop(stopped.id, None, None).await.unwrap();
    node.machines.cordon(cordoned.id).await.unwrap();
    node.reach(stopped.id, Stopped).await;
    node.reach(over.id, Stopped).await;
    let node = Node::on(node.end().await).await;
    assert_eq!(node.machines.records().borrow().len(), 4, "all are known at once");
    let back = node.reach(running.id, Started).await;
    assert_eq!(back.instance_id, running.instance_id);
    assert!(back.events.iter().any(|event| event.kind == "launch"), "{:?}", back.events);
    assert_eq!(node.machines.get(stopped.id).unwrap().state, Stopped);
    assert_eq!(node.machines.get(over.id).unwrap().state, Stopped);
    assert!(node.reach(cordoned.id, Started).await.cordoned);
    node.end().await;
}

#[tokio::test]
async fn the_sample_app_is_this_program_itself() {
    let node = Node::new().await;
    let service = json!([{"internal_port": 8080, "checks": [{"type": "http", "interval": "1s"}]}]);
    let made = node.create(with(json!({"image": "skein/hello"}), json!({"services": service}))).await;
    node.record(made.id, |record| record.routable()).await;
    node.end().await;
}

/// SPEC RUN-9: portable Machines share this machine's ports.
#[tokio::test]
async fn machines_without_services_do_not_meet_at_one_port() {
    let node = Node::new().await;
    let mut ports = std::collections::BTreeSet::new();
    for _ in 0..2 {
        let made = node.script("env; exec tail -f /dev/null", json!({})).await;
        assert!(ports.insert(node.says(made.id, "PORT=").await));
    }
    node.end().await;
}
