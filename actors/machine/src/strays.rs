//! Processes of a Machine that lost its machine-init.
//!
//! Init can be killed like anything else. Its first child dies with it (a parent-death signal), but
//! what that child made is handed to whoever collects orphans here. Every process of a Machine was
//! started with the Machine's id in its environment, which the kernel remembers and shows.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skein_core::MachineId;

/// The variable that every process of a Machine was started with (SPEC RUN-2).
const KEY: &[u8] = b"FLY_MACHINE_ID=";
/// How long processes that hang in the kernel are waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Kills every process of these Machines, until none is left; how many there were. Blocks.
pub(crate) fn end(machines: &BTreeSet<MachineId>) -> usize {
    let mut ended = BTreeSet::new();
    let (mut waited, mut pause) = (Duration::ZERO, Duration::from_millis(1));
    while !machines.is_empty() && waited < PATIENCE {
        let found = of(machines);
        if found.is_empty() {
            break;
        }
        for pid in found {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            ended.insert(pid);
        }
        std::thread::sleep(pause);
        waited += pause;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    ended.len()
}

/// The processes that were started for these Machines. A zombie has no environment any more.
fn of(machines: &BTreeSet<MachineId>) -> Vec<i32> {
    let own = Pid::this().as_raw();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let ours = |pid: &i32| {
        // Processes of other users may not be looked at; they are none of this node's.
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        *pid != own && machine_in(&environ).is_some_and(|id| machines.contains(&id))
    };
    pids.filter(ours).collect()
}

fn machine_in(environ: &[u8]) -> Option<MachineId> {
    let value = environ.split(|byte| *byte == 0).find_map(|pair| pair.strip_prefix(KEY))?;
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_named_by_its_own_variable_only() {
        let id: MachineId = "0123456789abcd".parse().unwrap();
        assert_eq!(machine_in(b"A=b\0FLY_MACHINE_ID=0123456789abcd\0"), Some(id));
        assert_eq!(machine_in(b"X_FLY_MACHINE_ID=0123456789abcd\0"), None);
        assert_eq!(machine_in(b"FLY_MACHINE_ID=short\0"), None);
        assert_eq!(machine_in(b""), None);
    }
}
