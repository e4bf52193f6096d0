//! Node processes: started in a process group of their own, watched by SIGCHLD, signalled by id
//! only while they are known to be ours, never left behind.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::node::Life;

/// All processes of one testbed.
#[derive(Debug)]
pub(crate) struct Processes {
    table: Arc<Mutex<Table>>,
    _sweeper: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Table {
    live: BTreeMap<Pid, watch::Sender<Life>>,
}

/// One process. Dropped while it lives, it is killed and waited for.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    life: watch::Receiver<Life>,
    table: Arc<Mutex<Table>>,
    /// The node ends when this closes, as it does when this process is killed.
    _stdin: Option<ChildStdin>,
}

fn with<T>(table: &Mutex<Table>, f: impl FnOnce(&mut Table) -> T) -> T {
    let mut guard: MutexGuard<'_, Table> = table.lock().unwrap_or_else(PoisonError::into_inner);
    f(&mut guard)
}

impl Processes {
    /// Begins to watch children of this process.
    pub(crate) fn new() -> io::Result<Self> {
        let table = Arc::new(Mutex::new(Table::default()));
        let mut signals = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::child())?;
        let mut sweeper = JoinSet::new();
        let watched = table.clone();
        sweeper.spawn(async move {
            while signals.recv().await.is_some() {
                with(&watched, Table::sweep);
            }
        });
        Ok(Self { table, _sweeper: sweeper })
    }

    /// Starts `command` with a pipe for its input.
    pub(crate) fn spawn(&self, command: &mut Command) -> io::Result<Process> {
        // A group of its own: Ctrl-C at the terminal is for the launcher, which ends nodes in order.
        command.stdin(Stdio::piped()).process_group(0);
        with(&self.table, |table| {
            let mut child = command.spawn()?;
            let pid = Pid::from_raw(child.id() as i32);
            let (sender, life) = watch::channel(Life::Running);
            table.live.insert(pid, sender);
            Ok(Process { pid, life, table: self.table.clone(), _stdin: child.stdin.take() })
        })
    }
}

impl Table {
    fn sweep(&mut self) {
        self.live.retain(|pid, life| {
            loop {
                let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED | WaitPidFlag::WCONTINUED;
                match waitpid(*pid, Some(flags)) {
                    Ok(WaitStatus::Stopped(..)) => drop(life.send_replace(Life::Paused)),
                    Ok(WaitStatus::Continued(_)) => drop(life.send_replace(Life::Running)),
                    Ok(status) => match ended(status) {
                        Some(how) => {
                            life.send_replace(Life::Gone(how));
                            return false;
                        }
                        None => return true,
                    },
                    Err(Errno::EINTR) => {}
                    Err(error) => {
                        life.send_replace(Life::Gone(format!("was lost ({error})")));
                        return false;
                    }
                }
            }
        });
        #[cfg(target_os = "linux")]
        orphans::reap(&self.live);
    }
}

fn ended(status: WaitStatus) -> Option<String> {
    match status {
        WaitStatus::Exited(_, code) => Some(format!("exited with status {code}")),
        WaitStatus::Signaled(_, signal, _) => Some(format!("was killed by {signal}")),
        WaitStatus::StillAlive | WaitStatus::Stopped(..) | WaitStatus::Continued(_) => None,
        #[cfg(target_os = "linux")]
        WaitStatus::PtraceEvent(..) | WaitStatus::PtraceSyscall(_) => None,
    }
}

impl Process {
    pub(crate) fn life(&self) -> watch::Receiver<Life> {
        self.life.clone()
    }

    /// Sends a signal; `false` when the process is gone.
    pub(crate) fn signal(&self, signal: Signal) -> bool {
        // Under the table's lock the id can't have been waited for, so it is still this process.
        with(&self.table, |table| table.live.contains_key(&self.pid) && kill(self.pid, signal).is_ok())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        with(&self.table, |table| {
            let Some(life) = table.live.remove(&self.pid) else { return };
            let _already_gone = kill(self.pid, Signal::SIGKILL);
            let how = loop {
                match waitpid(self.pid, None) {
                    Ok(status) => match ended(status) {
                        Some(how) => break how,
                        None => continue,
                    },
                    Err(Errno::EINTR) => continue,
                    Err(error) => break format!("was lost ({error})"),
                }
            };
            life.send_replace(Life::Gone(how));
        });
    }
}

/// Makes this process the parent of what its nodes leave behind when they are killed, so that it can
/// wait for those processes too. For a daemon that starts no other children; Linux only, elsewhere
/// the system's first process inherits them.
///
/// # Errors
/// When the kernel refuses.
pub fn adopt_orphans() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    orphans::adopt()?;
    Ok(())
}

/// Waits until this process has no child left; what still lives at the deadline is killed. Does
/// nothing unless [`adopt_orphans`] was called.
pub(crate) async fn wait_for_orphans(deadline: tokio::time::Instant) {
    #[cfg(target_os = "linux")]
    orphans::wait(deadline).await;
    #[cfg(not(target_os = "linux"))]
    let _elsewhere_they_are_not_ours = deadline;
}

#[cfg(target_os = "linux")]
mod orphans {
    use std::collections::BTreeMap;
    use std::io;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use nix::errno::Errno;
    use nix::sys::signal::{Signal, kill};
    use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
    use nix::unistd::Pid;

    /// A property of the process, as the kernel keeps it.
    static ADOPTING: AtomicBool = AtomicBool::new(false);

    pub(super) fn adopt() -> io::Result<()> {
        nix::sys::prctl::set_child_subreaper(true)?;
        ADOPTING.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Waits for children that ended and are in no table.
    pub(super) fn reap<T>(known: &BTreeMap<Pid, T>) -> bool {
        if !ADOPTING.load(Ordering::Relaxed) {
            return true;
        }
        loop {
            // A look first: waiting for any child at once would take a node's status away.
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            match waitid(Id::All, flags) {
                Ok(status) => match status.pid() {
                    Some(pid) if !known.contains_key(&pid) => {
                        let _status_of_no_interest = waitpid(pid, Some(WaitPidFlag::WNOHANG));
                    }
                    // A node ended this moment: its own signal brings the next sweep.
                    Some(_) | None => return false,
                },
                Err(Errno::EINTR) => {}
                Err(_) => return true,
            }
        }
    }

    pub(super) async fn wait(deadline: tokio::time::Instant) {
        if !ADOPTING.load(Ordering::Relaxed) {
            return;
        }
        let none: BTreeMap<Pid, ()> = BTreeMap::new();
        while !reap(&none) {
            if tokio::time::Instant::now() >= deadline {
                for pid in children() {
                    let _already_gone = kill(pid, Signal::SIGKILL);
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn children() -> Vec<Pid> {
        let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let texts = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        let pids = texts.flat_map(|text| {
            text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()
        });
        pids.map(Pid::from_raw).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    async fn until(process: &Process, wanted: impl Fn(&Life) -> bool) -> Life {
        let mut life = process.life();
        let seen = tokio::time::timeout(Duration::from_secs(30), life.wait_for(wanted)).await;
        seen.expect("the process changes").expect("somebody watches it").clone()
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn an_exit_is_seen_with_its_status() {
        let processes = Processes::new().unwrap();
        let process = processes.spawn(&mut shell("exit 7")).unwrap();
        let life = until(&process, |life| matches!(life, Life::Gone(_))).await;
        assert_eq!(life, Life::Gone("exited with status 7".into()));
        assert!(!process.signal(Signal::SIGTERM));
    }

    #[tokio::test]
    async fn a_stopped_process_is_seen_as_paused_and_resumes() {
        let processes = Processes::new().unwrap();
        let process = processes.spawn(&mut shell("read line")).unwrap();
        assert!(process.signal(Signal::SIGSTOP));
        until(&process, |life| *life == Life::Paused).await;
        assert!(process.signal(Signal::SIGCONT));
        until(&process, |life| *life == Life::Running).await;
    }

    #[tokio::test]
    async fn dropping_leaves_no_process() {
        let processes = Processes::new().unwrap();
        let process = processes.spawn(&mut shell("trap '' TERM; while :; do read line; done")).unwrap();
        let pid = process.pid;
        drop(process);
        assert_eq!(kill(pid, None), Err(Errno::ESRCH));
    }

    #[tokio::test]
    async fn a_command_that_does_not_exist_is_an_error() {
        let processes = Processes::new().unwrap();
        assert!(processes.spawn(&mut Command::new("/nonexistent/skein")).is_err());
    }
}
