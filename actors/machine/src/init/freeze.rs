//! Suspending: all processes that came from this one are stopped, and keep their memory (SPEC AUTO-3).

use std::collections::BTreeSet;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::descendants::{self, Process, Seen};

/// Looks in a row that must find everything stopped. In the first one, a process that was looked at
/// early may have been set going by one that was stopped late; in the second nobody is left to do that.
const QUIET_LOOKS: u32 = 2;

/// The processes that were stopped, parents before their children.
#[derive(Debug, Default)]
pub(super) struct Frozen(Vec<Process>);

impl Frozen {
    /// SIGSTOP for everything below this process, until nothing below it moves. `None` when something
    /// still does after `patience`: then all go on as before.
    pub(super) fn all(patience: Duration) -> Option<Self> {
        let mut frozen = Self::default();
        let (mut quiet, mut waited, mut pause) = (0, Duration::ZERO, Duration::from_micros(100));
        loop {
            let moving = frozen.moving(&descendants::below(Pid::this()));
            quiet = if moving.is_empty() { quiet + 1 } else { 0 };
            if quiet == QUIET_LOOKS {
                return Some(frozen);
            }
            for process in moving {
                // It may have ended meanwhile. One that may not be signalled keeps moving.
                if descendants::signal(process, Signal::SIGSTOP).is_ok() && !frozen.0.contains(&process) {
                    frozen.0.push(process);
                }
            }
            if waited >= patience {
                frozen.thaw();
                return None;
            }
            if quiet == 0 {
                std::thread::sleep(pause);
                waited += pause;
                pause = (pause * 2).min(Duration::from_millis(20));
            }
        }
    }

    /// Those that are not stopped.
    fn moving(&self, seen: &[Seen]) -> Vec<Process> {
        let known: BTreeSet<&Process> = self.0.iter().collect();
        let moves = |seen: &&Seen| match seen.doing {
            'T' | 't' => false,
            // They hang in the kernel, as in the middle of a vfork whose child is stopped, or only other threads than the first are left. They were told,
            // and stop before they run any code of their own.
            'D' | 'Z' | 'X' => !known.contains(&seen.process),
            _ => true,
        };
        seen.iter().filter(moves).map(|seen| seen.process).collect()
    }

    /// SIGCONT for those that were stopped. Children first: a shell that looks after its jobs finds
    /// none of them stopped.
    pub(super) fn thaw(self) {
        for process in self.0.into_iter().rev() {
            // Whoever was killed meanwhile needs none.
            let _ = descendants::signal(process, Signal::SIGCONT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_stopped_before_or_hangs_in_the_kernel_is_not_waited_for() {
        let seen = |pid: i32, doing: char| Seen::for_test(pid, doing);
        let looked = [seen(1, 'S'), seen(2, 'T'), seen(3, 'D'), seen(4, 'R'), seen(5, 'Z')];
        let moving = Frozen::default().moving(&looked);
        assert_eq!(moving, [looked[0], looked[2], looked[3], looked[4]].map(|seen| seen.process));
        let told = Frozen(moving);
        let again = [seen(1, 'T'), seen(2, 'T'), seen(3, 'D'), seen(4, 'R'), seen(5, 'Z')];
        assert_eq!(told.moving(&again), [again[3].process], "one that still runs is told again");
        let born = [again[0], seen(6, 'T'), seen(7, 'S')];
        assert_eq!(told.moving(&born), [born[2].process], "a new one is found");
    }
}
