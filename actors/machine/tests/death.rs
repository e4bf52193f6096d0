//! What survives what (SPEC RUN-7): nothing survives its node, whatever it did to hide.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{Node, NodeProcess, alive, gone, notes, pids};
use serde_json::json;
use skein_core::machine::MachineState::{Destroyed, Started, Stopped};

/// An app that ignores every signal it can and leaves grandchildren in sessions of their own. It
/// writes the process ids of all of them to a file.
fn stubborn(file: &std::path::Path) -> String {
    let file = file.display();
    format!(
        "trap '' INT TERM HUP QUIT; \
         for i in 1 2 3; do setsid sh -c \"setsid sh -c 'echo \\$\\$ >> {file}; exec tail -f /dev/null' & exec sleep 0\" & done; \
         echo $$ >> {file}; while :; do sleep 0.05; done"
    )
}

#[tokio::test]
async fn kill_9_of_a_node_leaves_no_process_and_its_machines_come_back_with_it() {
    let node = Node::new().await;
    let (_notes, file) = notes();
    let made = node.script(&stubborn(&file), json!({"stop_config": {"timeout": "0s"}})).await;
    let first = pids(&file, 4).await;
    assert!(first.iter().all(|pid| alive(pid)), "{first:?}");
    let dir = node.end().await;
    gone(&first).await;

    // In a process that can be killed it starts again without a hand, and dies with it.
    let mut process = NodeProcess::on(dir.path(), Duration::ZERO);
    let second = pids(&file, 8).await;
    process.kill();
    gone(&second).await;

    // What the client was told is there after kill -9.
    let node = Node::on(dir).await;
    node.reach(made.id, Started).await;
    let third = pids(&file, 12).await;
    node.machines.destroy(made.id, true).await.unwrap();
    gone(&third).await;
    node.end().await;
}

fn kill_9(pid: &str) {
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid.parse().unwrap()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
}

#[tokio::test]
async fn kill_9_of_a_machine_init_is_a_failure_of_its_machine_and_leaves_no_process() {
    let node = Node::new().await;
    let script = "echo parent $PPID; setsid sh -c 'echo child $$; exec tail -f /dev/null' & \
                  echo self $$; exec tail -f /dev/null";
    let made = node.script(script, json!({"restart": {"policy": "no"}})).await;
    let (init, app) = (node.says(made.id, "parent ").await, node.says(made.id, "self ").await);
    let child = node.says(made.id, "child ").await;
    kill_9(&init);
    node.reach(made.id, Stopped).await;
    assert!(node.machines.last_error(made.id).unwrap().contains("machine-init"));
    gone(&[init, app, child]).await;
    node.end().await;
}

/// SPEC RUN-7: a node of the same identity takes its Machines over, within the grace and not after.
#[tokio::test]
async fn within_the_grace_a_machine_outlives_its_node_and_is_taken_over() {
    let (_notes, file) = notes();
    let grace = Duration::from_secs(120);
    let script = format!("echo $$ >> {}; while :; do echo tick; sleep 0.05; done", file.display());
    let service = json!({"services": [{"internal_port": 8080}]});
    // Made by one node, started by another in a process of its own, which can be killed.
    let node = Node::with_grace(tempfile::tempdir().unwrap(), grace).await;
    let id = node.script(&script, service).await.id;
    let first = pids(&file, 1).await;
    let dir = node.end().await;
    gone(&first).await;
    let mut process = NodeProcess::on(dir.path(), grace);
    let pid = pids(&file, 2).await.pop().unwrap();
    // Its init listens for the next node before it tells this one of the start.
    process.kill();
    assert!(alive(&pid), "it outlives its node");
    let node = Node::with_grace(dir, grace).await;
    node.reach(id, Started).await;
    assert!(alive(&pid));
    assert_eq!(pids(&file, 2).await.len(), 2, "the same process, not another");
    node.says(id, "tick").await;
    assert!(
        matches!(&node.locals.load()[&id].upstream, skein_cluster::Upstream::Loopback(p) if p.len() == 1)
    );
    node.machines.stop(id, None, None).await.unwrap();
    node.reach(id, Stopped).await;
    gone(&[pid]).await;
    node.end().await;
}

#[tokio::test]
async fn after_the_grace_nobody_is_left() {
    let (_notes, file) = notes();
    let node = Node::new().await;
    let made = node.script(&stubborn(&file), json!({"stop_config": {"timeout": "0s"}})).await;
    let first = pids(&file, 4).await;
    let dir = node.end().await;
    gone(&first).await;
    let mut process = NodeProcess::on(dir.path(), Duration::from_millis(200));
    let second = pids(&file, 8).await;
    process.kill();
    gone(&second).await;
    // The next life starts it anew.
    let node = Node::with_grace(dir, Duration::from_millis(200)).await;
    node.reach(made.id, Started).await;
    pids(&file, 12).await;
    node.machines.destroy(made.id, true).await.unwrap();
    node.reach(made.id, Destroyed).await;
    node.end().await;
}
