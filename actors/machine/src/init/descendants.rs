//! All processes that came from this one.
//!
//! Init is a subreaper: a process whose parent ended becomes init's child, whatever session or
//! process group it is in. So all processes of a Machine are below init in the tree of parents.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A process, told apart from a later one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Process {
    pid: i32,
    /// When it was started, in the kernel's ticks.
    started: u64,
}

/// A process as it was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) process: Process,
    /// The kernel's letter for what it does: `T` when it is stopped.
    pub(super) doing: char,
    parent: i32,
}

impl Seen {
    /// What a line of `/proc/<pid>/stat` says. The name stands in parentheses and may hold anything;
    /// after it, the state is the first field, the parent the second, the start the twentieth.
    fn of(pid: i32, line: &str) -> Option<Self> {
        let mut fields = line.rsplit_once(')')?.1.split_ascii_whitespace();
        let doing = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        let started = fields.nth(17)?.parse().ok()?;
        Some(Self { process: Process { pid, started }, doing, parent })
    }

    #[cfg(test)]
    pub(super) fn for_test(pid: i32, doing: char) -> Self {
        Self { process: Process { pid, started: 1 }, doing, parent: 0 }
    }

    fn look(pid: i32) -> Option<Self> {
        // A process that just ended has no line any more.
        Self::of(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }
}

/// The processes below `root`, parents before their children. A process that ends meanwhile may be
/// missing or stand there in vain.
pub(super) fn below(root: Pid) -> Vec<Seen> {
    let mut children: BTreeMap<i32, Vec<Seen>> = BTreeMap::new();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    for entry in entries {
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        if let Some(seen) = pid.and_then(Seen::look) {
            children.entry(seen.parent).or_default().push(seen);
        }
    }
    let mut found = Vec::new();
    let mut next = vec![root.as_raw()];
    while let Some(parent) = next.pop() {
        // `remove`: each process is visited once, so a tree that changed while it was read ends too.
        for child in children.remove(&parent).unwrap_or_default() {
            found.push(child);
            next.push(child.process.pid);
        }
    }
    found
}

/// Signals exactly that process: its number may be another one's by now, which is left alone.
///
/// # Errors
/// The kernel's: it ended, or, run as another user, is not ours to signal.
pub(super) fn signal(process: Process, signal: Signal) -> io::Result<()> {
    #[allow(unsafe_code, reason = "the call takes no pointer")]
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, process.pid, 0) };
    if fd < 0 {
        let error = Errno::last();
        // A kernel or a sandbox without the call: the look comes as close as can be.
        let there =
            error != Errno::ESRCH && Seen::look(process.pid).map(|seen| seen.process) == Some(process);
        return if there { Ok(kill(Pid::from_raw(process.pid), signal)?) } else { Err(Errno::ESRCH.into()) };
    }
    #[allow(unsafe_code, reason = "the kernel just gave the descriptor, which has no other owner")]
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    // From here on the descriptor means whoever has the number now, and nobody later.
    if Seen::look(process.pid).map(|seen| seen.process) != Some(process) {
        return Err(Errno::ESRCH.into());
    }
    let nothing = std::ptr::null::<libc::siginfo_t>();
    #[allow(unsafe_code, reason = "a null pointer stands for the usual origin of a signal")]
    let sent =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), signal as i32, nothing, 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// SIGKILL for everything below this process, until nothing is below it; ends of children are given
/// to `reaped`. Whether all are gone: a process may refuse to die for as long as it hangs in the
/// kernel, and after `patience` nobody waits for it.
pub(super) fn end_all(patience: Duration, mut reaped: impl FnMut(Pid, WaitStatus)) -> bool {
    let mut waited = Duration::ZERO;
    let mut pause = Duration::from_millis(1);
    loop {
        for seen in below(Pid::this()) {
            // It may have ended by itself, or, run as another user, not be ours to signal.
            let _ = signal(seen.process, Signal::SIGKILL);
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
    fn a_process_is_read_whatever_its_name_holds() {
        let rest = "12 12 0 -1 4194304 116 0 0 0 1 0 0 0 20 0 1 0 8123 2719744";
        let seen = |name: &str| Seen::of(12, &format!("12 ({name}) S 7 {rest}"));
        let expected = Seen { process: Process { pid: 12, started: 8123 }, doing: 'S', parent: 7 };
        for name in ["sh", "a) 9 (b", "a b\n"] {
            assert_eq!(seen(name), Some(expected), "{name:?}");
        }
        for broken in ["12", "", "12 (sh) S 7 12"] {
            assert_eq!(Seen::of(12, broken), None, "{broken:?}");
        }
    }

    #[test]
    fn a_process_of_the_same_number_that_started_at_another_time_is_left_alone() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let me = Seen::look(child.id() as i32).unwrap().process;
        let other = Process { started: me.started + 1, ..me };
        assert_eq!(signal(other, Signal::SIGKILL).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        assert!(child.try_wait().unwrap().is_none());
        signal(me, Signal::SIGKILL).unwrap();
        child.wait().unwrap();
    }
}
