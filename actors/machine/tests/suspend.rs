//! Suspending and resuming (SPEC AUTO-3): the processes stay, with all that they have in memory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{Node, NodeProcess, alive, create, exit, gone, notes, pids};
use serde_json::json;
use skein_core::machine::MachineState::{self, Destroyed, Started, Stopped, Suspended};
use skein_machine::MachineError;

/// Counts, and so do a child and a grandchild that hid in sessions of their own.
const COUNTING: &str = "count() { i=0; while :; do i=$((i+1)); echo \"$1 $$ $i\"; sleep 0.01; done; }; \
    setsid sh -c 'setsid sh -c \"i=0; while :; do i=\\$((i+1)); echo c \\$\\$ \\$i; sleep 0.01; done\" & \
    i=0; while :; do i=$((i+1)); echo b $$ $i; sleep 0.01; done' & count a";

/// The last pid and number that a counter wrote.
fn counted(node: &Node, id: skein_core::MachineId, name: &str) -> Option<(String, u64)> {
    let lines = node.output(id);
    let line = lines.iter().rev().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    let (pid, number) = line.split_once(' ')?;
    Some((pid.to_owned(), number.parse().ok()?))
}

async fn all_count(node: &Node, id: skein_core::MachineId, beyond: [u64; 3]) -> [(String, u64); 3] {
    let mut found = None;
    common::eventually(|| {
        let counts: Vec<_> = ["a", "b", "c"].iter().filter_map(|name| counted(node, id, name)).collect();
        let all: Result<[(String, u64); 3], _> = counts.try_into();
        let all = all.map_err(|some| format!("{some:?}"))?;
        let further = all.iter().zip(beyond).all(|((_, number), beyond)| *number > beyond);
        if !further {
            return Err(format!("{all:?}"));
        }
        found = Some(all);
        Ok(())
    })
    .await;
    found.unwrap()
}

/// The kernel's letter for what a process does.
fn doing(pid: &str) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.trim_start().chars().next().unwrap()
}

/// Whether it is stopped; or is in the middle of a vfork, whose child is: it then can't go on either, and
/// stops as soon as it could.
fn stands_still(pid: &str) -> bool {
    matches!(doing(pid), 'T' | 'D')
}

#[tokio::test]
async fn a_suspended_machine_stands_still_whole_and_goes_on_where_it_was() {
    let node = Node::new().await;
    let made = node.script(COUNTING, json!({})).await;
    let before = all_count(&node, made.id, [0; 3]).await;
    assert_eq!(node.machines.suspend(made.id).await.unwrap(), Started, "the state that it was in");
    node.reach(made.id, Suspended).await;
    for (pid, _) in &before {
        assert!(stands_still(pid), "{pid} of {before:?} is {}", doing(pid));
    }
    assert!(!node.record(made.id, |record| record.state == Suspended).await.routable());
    assert_eq!(node.locals.load()[&made.id].state, Suspended);
    assert_eq!(node.machines.suspend(made.id).await.unwrap(), Suspended, "once more is as well");
    let held = all_count(&node, made.id, [0; 3]).await.map(|(_, number)| number);

    assert_eq!(node.machines.start_machine(made.id).await.unwrap(), Suspended);
    let resumed = node.reach(made.id, Started).await;
    let after = all_count(&node, made.id, held).await;
    for ((pid, _), (same, _)) in before.iter().zip(&after) {
        assert_eq!(pid, same);
    }
    let kinds: Vec<_> = resumed.events.iter().map(|event| (&*event.kind, &*event.status)).collect();
    let expected = [
        ("start", "started"),
        ("start", "starting"),
        ("suspend", "suspended"),
        ("suspend", "suspending"),
        ("start", "started"),
        ("launch", "starting"),
    ];
    assert_eq!(kinds, expected, "newest first");
    assert!(resumed.resume_ms > 0, "it is known how long that took");
    node.end().await;
}

/// SPEC HTTP-11: requests in flight end first.
#[tokio::test]
async fn a_suspension_waits_for_what_is_in_flight() {
    let node = Node::new().await;
    let made = node
        .script(
            "echo up; exec tail -f /dev/null",
            json!({"services": [{"internal_port": 8080}], "stop_config": {"timeout": "300s"}}),
        )
        .await;
    node.says(made.id, "up").await;
    node.record(made.id, |record| record.state == Started).await;
    let slot = node.locals.load()[&made.id].slots[0].try_acquire(None).unwrap();
    node.machines.suspend(made.id).await.unwrap();
    assert_eq!(node.locals.load()[&made.id].state, MachineState::Suspending, "nothing new");
    let still = node.machines.wait(made.id, vec![Suspended], None, Duration::from_millis(100)).await;
    assert!(matches!(still, Err(MachineError::Deadline { .. })), "{still:?}");
    drop(slot);
    node.reach(made.id, Suspended).await;
    node.end().await;
}

/// SPEC AUTO-3: a stop discards it, and its process sees the signal.
#[tokio::test]
async fn a_stop_of_a_suspended_machine_is_seen_by_its_process() {
    let node = Node::new().await;
    let script = "trap 'echo bye; exit 7' INT; echo self $$; while :; do sleep 0.01; done";
    let made = node.script(script, json!({})).await;
    let first = node.says(made.id, "self ").await;
    node.machines.suspend(made.id).await.unwrap();
    node.reach(made.id, Suspended).await;
    node.machines.stop(made.id, None, None).await.unwrap();
    let stopped = node.reach(made.id, Stopped).await;
    assert_eq!(exit(&stopped)["exit_code"], 7);
    node.says(made.id, "bye").await;
    gone(&[first]).await;
    // A new version too; and what follows is a new process.
    node.machines.start_machine(made.id).await.unwrap();
    node.reach(made.id, Started).await;
    node.machines.suspend(made.id).await.unwrap();
    node.reach(made.id, Suspended).await;
    let config =
        create(json!({"init": {"exec": ["/bin/sh", "-c", "echo new; exec tail -f /dev/null"]}})).config;
    node.machines.update(made.id, config, false, None).await.unwrap();
    node.says(made.id, "new").await;
    // One that waits needs no force to be destroyed.
    node.reach(made.id, Started).await;
    node.machines.suspend(made.id).await.unwrap();
    node.reach(made.id, Suspended).await;
    node.machines.destroy(made.id, false).await.unwrap();
    node.reach(made.id, Destroyed).await;
    node.end().await;
}

#[tokio::test]
async fn a_process_that_is_killed_while_it_waits_is_not_restarted() {
    let node = Node::new().await;
    let script = "echo self $$; exec tail -f /dev/null";
    let made = node.script(script, json!({"restart": {"policy": "always"}})).await;
    let pid = node.says(made.id, "self ").await;
    node.machines.suspend(made.id).await.unwrap();
    node.reach(made.id, Suspended).await;
    let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    let stopped = node.reach(made.id, Stopped).await;
    assert_eq!(exit(&stopped)["restarting"], false);
    node.machines.start_machine(made.id).await.unwrap();
    node.reach(made.id, Started).await;
    node.end().await;
}

/// A process that was stopped for another reason stays so.
#[tokio::test]
async fn what_a_machine_had_stopped_itself_is_left_stopped() {
    let node = Node::new().await;
    let script = "sh -c 'kill -STOP $$; sleep 1000' & echo child $!; exec tail -f /dev/null";
    let made = node.script(script, json!({})).await;
    let child = node.says(made.id, "child ").await;
    common::eventually(|| if doing(&child) == 'T' { Ok(()) } else { Err("it runs".into()) }).await;
    node.machines.suspend(made.id).await.unwrap();
    node.reach(made.id, Suspended).await;
    node.machines.start_machine(made.id).await.unwrap();
    node.reach(made.id, Started).await;
    assert_eq!(doing(&child), 'T');
    node.end().await;
}

/// SPEC RUN-7: one that is taken over stays suspended; a suspended one whose process is gone is stopped.
#[tokio::test]
async fn a_node_that_comes_back_finds_its_suspended_machines_or_has_them_stopped() {
    let (_notes, file) = notes();
    let grace = Duration::from_secs(120);
    let script = format!("echo $$ >> {}; i=0; while :; do echo tick; sleep 0.01; done", file.display());
    let node = Node::with_grace(tempfile::tempdir().unwrap(), grace).await;
    let id = node.script(&script, json!({"services": [{"internal_port": 8080}]})).await.id;
    pids(&file, 1).await;
    let dir = node.end().await;
    // A node in a process of its own starts it, suspends it when it is told to, and is killed.
    let mut process = NodeProcess::on(dir.path(), grace);
    let pid = pids(&file, 2).await.pop().unwrap();
    process.suspend(dir.path(), id).await;
    assert!(stands_still(&pid), "{}", doing(&pid));
    process.kill();
    let node = Node::with_grace(dir, grace).await;
    let found = node.machines.get(id).unwrap();
    assert_eq!(found.state, Suspended);
    assert!(alive(&pid) && stands_still(&pid), "it waits for this node");
    node.machines.start_machine(id).await.unwrap();
    node.says(id, "tick").await;
    assert_eq!(pids(&file, 2).await.len(), 2, "the same process, not another");
    node.reach(id, Started).await;

    // Nothing of it outlives a node that ends, so the next one has it stopped, and starts it anew.
    node.machines.suspend(id).await.unwrap();
    node.reach(id, Suspended).await;
    let node = Node::with_grace(node.end().await, grace).await;
    gone(&[pid]).await;
    assert_eq!(node.machines.get(id).unwrap().state, Stopped);
    node.machines.start_machine(id).await.unwrap();
    pids(&file, 3).await;
    node.end().await;
}
