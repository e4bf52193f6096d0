//! Nodes of a launcher that was killed: each ends by itself when its input closes.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skein_core::api::BoundJson;
use tokio::time::Instant;

use crate::home::ClusterDir;
use crate::launch::LOOK;

/// How long they may take to end by themselves.
const PATIENCE: Duration = Duration::from_secs(15);

/// Waits until no node of an earlier launcher of `dir` runs; kills those that outstay.
pub(crate) async fn wait(dir: &ClusterDir) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left: Vec<Pid> = dir.node_dirs().iter().filter_map(|node| alive(node)).collect();
        if left.is_empty() {
            return;
        }
        if Instant::now() >= deadline {
            for pid in left {
                let _already_gone = kill(pid, Signal::SIGKILL);
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn alive(node_dir: &std::path::Path) -> Option<Pid> {
    let bytes = std::fs::read(node_dir.join("bound.json")).ok()?;
    let bound: BoundJson = serde_json::from_slice(&bytes).ok()?;
    let pid = Pid::from_raw(i32::try_from(bound.pid).ok()?);
    is_node(pid, &node_dir.join("node.toml")).then_some(pid)
}

/// Whether process `pid` is the node of that configuration: ids are used again.
#[cfg(target_os = "linux")]
fn is_node(pid: Pid, config: &std::path::Path) -> bool {
    use std::os::unix::ffi::OsStrExt as _;
    // Empty for a process that ended and was not waited for.
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    arguments.split(|byte| *byte == 0).any(|argument| argument == config.as_os_str().as_bytes())
}

/// Without a way to see its arguments, a process of that id is taken for gone: none is ever killed
/// by mistake.
#[cfg(not(target_os = "linux"))]
fn is_node(_pid: Pid, _config: &std::path::Path) -> bool {
    false
}
