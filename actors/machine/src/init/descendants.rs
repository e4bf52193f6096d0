//! All processes that came from this one.
//!
//! Init is a subreaper: a process whose parent ended becomes init's child, whatever session or
//! process group it is in. So all processes of a Machine are below init in the tree of parents.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// The processes below `root`, parents before their children. A process that ends meanwhile may be
/// missing or stand there in vain.
pub fn below(root: Pid) -> Vec<Pid> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    for entry in entries {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // A process that just ended has no line any more.
        let Ok(line) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        if let Some(parent) = parent_in(&line) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut next = vec![root.as_raw()];
    while let Some(parent) = next.pop() {
        // `remove`: each process is visited once, so a tree that changed while it was read ends too.
        for child in children.remove(&parent).unwrap_or_default() {
            found.push(Pid::from_raw(child));
            next.push(child);
        }
    }
    found
}

/// The parent's id in a line of `/proc/<pid>/stat`: the second field after the name, which stands in
/// parentheses and may hold anything.
fn parent_in(line: &str) -> Option<i32> {
    line.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// SIGKILL for everything below this process, until nothing is below it; ends of children are given
/// to `reaped`. Whether all are gone: a process may refuse to die for as long as it hangs in the
/// kernel, and after `patience` nobody waits for it.
pub fn end_all(patience: Duration, mut reaped: impl FnMut(Pid, WaitStatus)) -> bool {
    let mut waited = Duration::ZERO;
    let mut pause = Duration::from_millis(1);
    loop {
        for pid in below(Pid::this()) {
            // It may have ended by itself, or, run as another user, not be ours to signal.
            let _ = kill(pid, Signal::SIGKILL);
        }
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => break,
                Ok(status) => {
                    if let Some(pid) = status.pid() {
                        reaped(pid, status);
                    }
                }
                Err(Errno::EINTR) => {}
                // ECHILD: no child is left, so no descendant is.
                Err(_) => return true,
            }
        }
        if waited >= patience {
            return false;
        }
        std::thread::sleep(pause);
        waited += pause;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_found_whatever_the_name_holds() {
        assert_eq!(parent_in("12 (sh) S 7 12 12 0 -1"), Some(7));
        assert_eq!(parent_in("12 (a) 9 (b) R 8 1"), Some(8));
        assert_eq!(parent_in("12 (a b\n) S 3 1"), Some(3));
        assert_eq!(parent_in("12"), None);
        assert_eq!(parent_in(""), None);
    }
}
