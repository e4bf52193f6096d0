//! What survives what (SPEC RUN-7): nothing survives its node, whatever it did to hide.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::process::{Child, Command, Stdio};

use common::{Node, PROGRAM, alive, eventually, gone};
use serde_json::json;
use skein_core::machine::MachineState::{Started, Stopped};

/// A node in a process of its own, ended when the test is.
struct NodeProcess(Child);

impl NodeProcess {
    fn on(dir: &std::path::Path) -> Self {
        let child = Command::new(PROGRAM).arg("node").arg(dir).stdin(Stdio::null()).spawn().unwrap();
        Self(child)
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

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

async fn pids(file: &std::path::Path, count: usize) -> Vec<String> {
    let mut pids = Vec::new();
    eventually(|| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        pids = text.lines().map(str::to_owned).collect();
        if pids.len() >= count && text.ends_with('\n') { Ok(()) } else { Err(format!("only {pids:?}")) }
    })
    .await;
    pids
}

#[tokio::test]
async fn kill_9_of_a_node_leaves_no_process_and_its_machines_come_back_with_it() {
    let node = Node::new().await;
    // Whoever the process runs as may write there.
    let file =
        std::env::temp_dir().join(format!("skein-death-{}", node.dir.path().file_name().unwrap().display()));
    std::fs::write(&file, "").unwrap();
    nix::sys::stat::fchmodat(
        nix::fcntl::AT_FDCWD,
        &file,
        nix::sys::stat::Mode::from_bits_truncate(0o666),
        nix::sys::stat::FchmodatFlags::FollowSymlink,
    )
    .unwrap();
    let made = node.script(&stubborn(&file), json!({"stop_config": {"timeout": "0s"}})).await;
    let first = pids(&file, 4).await;
    assert!(first.iter().all(|pid| alive(pid)), "{first:?}");
    let dir = node.end().await;
    gone(&first).await;

    // In a process that can be killed it starts again without a hand, and dies with it.
    let mut process = NodeProcess::on(dir.path());
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
    std::fs::remove_file(file).unwrap();
}

/// A Machine whose init is killed is lost; what it left is not.
#[tokio::test]
async fn kill_9_of_a_machine_init_is_a_failure_of_its_machine() {
    let node = Node::new().await;
    let script = "echo parent $PPID; echo self $$; exec tail -f /dev/null";
    let made = node.script(script, json!({"restart": {"policy": "no"}})).await;
    let (init, app) = (node.says(made.id, "parent ").await, node.says(made.id, "self ").await);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(init.parse().unwrap()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    node.reach(made.id, Stopped).await;
    assert!(node.machines.last_error(made.id).unwrap().contains("machine-init"));
    gone(&[init, app]).await;
    node.end().await;
}
