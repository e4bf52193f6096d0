//! Processes from outside: cores, processor time, memory, and the end of those started here.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, SysconfVar, sysconf};
use serde::Serialize;

/// Memory of a process, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(crate) struct Memory {
    /// Its share of what it maps: pages that are shared count in parts.
    pub(crate) pss: u64,
    /// All that is resident.
    pub(crate) rss: u64,
}

impl std::ops::Add for Memory {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { pss: self.pss + other.pss, rss: self.rss + other.rss }
    }
}

/// Lets this process run on one core only.
pub(crate) fn pin_self(core: usize) -> anyhow::Result<()> {
    pin_thread(0, core).with_context(|| format!("pin this process to core {core}: two cores are needed"))
}

/// Lets all threads of a process run on one core only.
pub(crate) fn pin(pid: u32, core: usize) -> anyhow::Result<()> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = thread?.file_name().to_string_lossy().parse()?;
        pin_thread(thread, core).with_context(|| format!("pin process {pid} to core {core}"))?;
    }
    Ok(())
}

fn pin_thread(thread: i32, core: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    Ok(sched_setaffinity(Pid::from_raw(thread), &set)?)
}

/// A command whose process starts on those cores.
pub(crate) fn on_core(cores: &[usize], program: &str) -> Command {
    let cores = cores.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let mut command = Command::new("taskset");
    command.args(["-c", &cores, program]).stdin(Stdio::null());
    command
}

/// How a command is typed.
pub(crate) fn typed(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Processor time that a process has used, in user and system mode.
pub(crate) fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock ticks")?;
    let ticks = cpu_ticks(&stat).with_context(|| format!("read /proc/{pid}/stat"))?;
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

fn cpu_ticks(stat: &str) -> Option<u64> {
    // The name may hold spaces and parentheses; proc(5): utime and stime are fields 14 and 15.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// The process that started it.
pub(crate) fn parent(pid: u32) -> anyhow::Result<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
    parent.with_context(|| format!("read /proc/{pid}/stat"))
}

/// Memory that a process takes.
pub(crate) fn memory(pid: u32) -> anyhow::Result<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    rollup(&text).with_context(|| format!("read /proc/{pid}/smaps_rollup"))
}

fn rollup(text: &str) -> Option<Memory> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
    };
    Some(Memory { pss: field("Pss:")?, rss: field("Rss:")? })
}

/// A process that ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Owned(Child);

impl Owned {
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Self> {
        let child = command.stdout(Stdio::null()).spawn();
        Ok(Self(child.with_context(|| format!("start {}", typed(command)))?))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

/// Records the stacks of processes with perf, until it is interrupted.
pub(crate) fn record(pids: &[u32], into: &Path) -> anyhow::Result<Owned> {
    let pids = pids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let mut perf = Command::new("perf");
    // The unwind tables are there; frame pointers are not.
    perf.args(["record", "-q", "-F", "499", "--call-graph", "dwarf,16384", "-p", &pids, "-o"]).arg(into);
    Owned::start(perf.stdin(Stdio::null()).stderr(Stdio::null()))
}

impl Owned {
    /// Asks it to end, and waits until it has.
    pub(crate) fn interrupt(&mut self) -> anyhow::Result<()> {
        nix::sys::signal::kill(Pid::from_raw(self.pid().try_into()?), nix::sys::signal::Signal::SIGINT)?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(Some(_))) {
            return;
        }
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("end process {}: {error}", self.0.id());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_past_a_name_with_spaces_and_parentheses() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 99 1 1";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("7 (a) S 1"), None);
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let text =
            "00-ff ---p 00000000 00:00 0 [rollup]\nRss:    2048 kB\nPss:    1024 kB\nPss_Dirty:  8 kB\n";
        assert_eq!(rollup(text), Some(Memory { pss: 1 << 20, rss: 2 << 20 }));
        assert_eq!(rollup("Rss: 1 kB"), None);
    }

    #[test]
    fn this_process_is_there_and_has_a_parent() {
        let pid = std::process::id();
        assert!(memory(pid).unwrap().rss > 0);
        assert!(parent(pid).unwrap() > 0);
        assert!(cpu(pid).is_ok());
    }
}
