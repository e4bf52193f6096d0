//! Ends a testbed from outside, whatever state its daemon is in.

use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skein_core::api::ClusterJson;
use tokio::time::Instant;

use crate::client::NodeClient;
use crate::error::TestbedError;
use crate::home::ClusterDir;
use crate::launch::LOOK;
use crate::leftover;

/// How long a daemon may take to answer, before it gets a signal.
const ANSWER: Duration = Duration::from_secs(5);
/// How long it may take to end its nodes in order, before it is killed; its nodes then end by
/// themselves.
const ORDERLY: Duration = Duration::from_secs(60);

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It ran, and ended.
    Running,
    /// Nothing ran; what a killed daemon had left is gone.
    Leftovers,
    /// There was nothing of that name.
    Nothing,
}

/// Ends the testbed of `dir`; returns when no process, port or lock of it is left, and no file.
///
/// # Errors
/// When files can't be removed.
pub async fn end(dir: &ClusterDir) -> Result<Ended, TestbedError> {
    if !dir.path().exists() {
        return Ok(Ended::Nothing);
    }
    let mut found = Ended::Leftovers;
    if let Some(pid) = dir.holder() {
        found = Ended::Running;
        let pid = pid.map(Pid::from_raw);
        if !ask(dir).await {
            // It takes no SIGTERM while it is stopped. Either may find it gone already.
            let _resumed = pid.map(|pid| kill(pid, Signal::SIGCONT));
            let _ended = pid.map(|pid| kill(pid, Signal::SIGTERM));
        }
        let deadline = Instant::now() + ORDERLY;
        while dir.holder().is_some() || pid.is_some_and(runs) {
            if Instant::now() >= deadline
                && let (Some(Some(now)), Some(pid)) = (dir.holder(), pid)
                && now == pid.as_raw()
            {
                let _already_gone = kill(pid, Signal::SIGKILL);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    leftover::wait(dir).await;
    if !dir.path().exists() {
        return Ok(found);
    }
    let lock = dir.lock()?;
    dir.remove(lock).map_err(TestbedError::io(format!("remove {}", dir.path().display())))?;
    Ok(found)
}

/// Asks the daemon through its API; `false` when that does not reach it.
async fn ask(dir: &ClusterDir) -> bool {
    let Ok(Some(ClusterJson { api, .. })) = dir.read() else { return false };
    let Ok(client) = NodeClient::new(api.token) else { return false };
    let url = format!("{}/skein/v1/testbed/down", api.url);
    client.post::<serde_json::Value>(&url, &serde_json::json!({}), ANSWER).await.is_ok()
}

/// Whether the process is there and did not end: one that ended and was not waited for by the shell
/// that began it holds nothing any more.
fn runs(pid: Pid) -> bool {
    if kill(pid, None) == Err(Errno::ESRCH) {
        return false;
    }
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state stands behind the name, which may hold anything.
    !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::Home;

    fn dir(home: &tempfile::TempDir) -> ClusterDir {
        Home::new(home.path()).cluster(&"default".parse().unwrap())
    }

    #[tokio::test]
    async fn an_unknown_name_is_no_error() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(end(&dir(&home)).await.unwrap(), Ended::Nothing);
    }

    #[tokio::test]
    async fn what_a_killed_daemon_left_is_removed() {
        let home = tempfile::tempdir().unwrap();
        let dir = dir(&home);
        drop(dir.lock().unwrap());
        let node = dir.node(&"iad-1".parse().unwrap());
        std::fs::create_dir_all(&node).unwrap();
        // The id of a process that is not this node: it must not be waited for, nor killed.
        let bound = serde_json::json!({
            "name": "iad-1", "region": "iad", "pid": std::process::id(), "api": "http://127.0.0.1:1",
            "metrics": "http://127.0.0.1:1/metrics", "dns": null, "wireguard": null, "data_dir": node,
        });
        std::fs::write(node.join("bound.json"), bound.to_string()).unwrap();
        assert_eq!(end(&dir).await.unwrap(), Ended::Leftovers);
        assert!(!dir.path().exists());
    }

    #[tokio::test]
    async fn a_daemon_that_does_not_answer_gets_a_signal() {
        let home = tempfile::tempdir().unwrap();
        let dir = dir(&home);
        dir.create().unwrap();
        let lock = dir.path().join("lock");
        // A shell that holds the lock as a daemon does, and ends by SIGTERM.
        let script = "exec 9<>\"$0\"; flock -x 9; echo $$ > \"$0\"; echo held; while :; do read line; done";
        let mut shell = std::process::Command::new("/bin/bash");
        let piped = std::process::Stdio::piped;
        shell.args(["-c", script]).arg(&lock).stdin(piped()).stdout(piped());
        let mut child = shell.spawn().unwrap();
        let mut held = String::new();
        let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut output, &mut held).unwrap();
        let waiting = std::thread::spawn(move || child.wait().unwrap());
        assert_eq!(end(&dir).await.unwrap(), Ended::Running);
        assert!(!waiting.join().unwrap().success());
        assert!(!dir.path().exists());
    }
}
