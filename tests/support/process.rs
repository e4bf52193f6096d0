//! Processes: run with a deadline, found in `/proc`, killed by pid.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::now;

/// What a command did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Its output, after it succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert!(self.status.success(), "{self:#?}");
        self.stdout
    }

    /// Its last words, after it failed with an exit code of its own.
    #[track_caller]
    pub(crate) fn refused(self) -> String {
        let code = self.status.code();
        assert!(code.is_some_and(|code| code != 0), "expected a refusal, not {self:#?}");
        assert!(!self.stderr.contains("panicked at"), "{self:#?}");
        assert!(self.stdout.is_empty(), "a refusal is for people, so on stderr: {self:#?}");
        assert!(!self.stderr.trim().is_empty(), "a refusal says why: {self:#?}");
        self.stderr
    }
}

/// Runs a command to its end; both of its outputs must reach their end too, so nothing that it
/// leaves behind may hold them. Panics after the deadline.
#[track_caller]
pub(crate) fn run(command: &mut Command, deadline: Duration) -> Ran {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{shown}: {error}"));
    let stdout = reader(child.stdout.take().expect("piped"));
    let stderr = reader(child.stderr.take().expect("piped"));
    let end = now() + deadline;
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait") {
            break status;
        }
        if now() >= end {
            // Its own words tell where it hangs; killed, it closes its outputs.
            let _gone = child.kill();
            let _reaped = child.wait();
            let said = stderr.recv_timeout(Duration::from_secs(1)).unwrap_or_default();
            panic!("{shown}: not done within {deadline:?}; stderr so far:\n{said}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let rest = Duration::from_secs(10);
    let held = "something that it left behind holds its output";
    let stdout = stdout.recv_timeout(rest).unwrap_or_else(|_| panic!("{shown}: {held}"));
    let stderr = stderr.recv_timeout(rest).unwrap_or_else(|_| panic!("{shown}: {held}"));
    Ran { status, stdout, stderr }
}

fn reader(mut from: impl Read + Send + 'static) -> std::sync::mpsc::Receiver<String> {
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // A broken pipe ends the output like its end does.
        let _read = from.read_to_end(&mut bytes);
        let _nobody_waits = send.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receive
}

/// A process that is killed when the test is done with it.
pub(crate) struct Owned(pub(crate) Child);

impl Owned {
    /// Starts a command; its outputs go where the command says.
    #[track_caller]
    pub(crate) fn start(command: &mut Command) -> Self {
        let shown = format!("{command:?}");
        Self(command.spawn().unwrap_or_else(|error| panic!("{shown}: {error}")))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Sends a signal by name, for example `KILL`.
#[track_caller]
pub(crate) fn signal(pid: u32, name: &str) {
    let signal = format!("SIG{name}").parse::<nix::sys::signal::Signal>().expect("a signal");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
    nix::sys::signal::kill(pid, signal).unwrap_or_else(|error| panic!("kill -{name} {pid}: {error}"));
}

/// Whether a process runs; a zombie does not.
pub(crate) fn alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z' && state != 'X')
}

/// The parent of a process.
pub(crate) fn parent(pid: u32) -> Option<u32> {
    stat(pid).map(|(_, parent)| parent)
}

/// State and parent; the name before them is in parentheses and may hold any character.
fn stat(pid: u32) -> Option<(char, u32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut rest = text.rsplit_once(')')?.1.split_ascii_whitespace();
    Some((rest.next()?.chars().next()?, rest.next()?.parse().ok()?))
}

/// Resident memory of a process, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) resident: u64,
    /// The most since its start, or since [`forget_peak`].
    pub(crate) peak: u64,
}

/// What a process has in memory.
#[track_caller]
pub(crate) fn memory(pid: u32) -> Memory {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let bytes = |name: &str| {
        let mut words = status.lines().find_map(|line| line.strip_prefix(name))?.split_ascii_whitespace();
        words.next()?.parse::<u64>().ok().map(|kib| kib << 10)
    };
    let of = |name: &str| bytes(name).unwrap_or_else(|| panic!("no {name} in {status}"));
    Memory { resident: of("VmRSS:"), peak: of("VmHWM:") }
}

/// Lets the peak of a process begin with what it has in memory now (`proc_pid_clear_refs(5)`).
pub(crate) fn forget_peak(pid: u32) -> std::io::Result<()> {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5")
}

/// Living processes whose environment has this variable with this value.
pub(crate) fn with_env(name: &str, value: &str) -> Vec<u32> {
    let wanted = format!("{name}={value}");
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|pair| pair == wanted.as_bytes()) && alive(*pid)
    })
    .collect()
}

/// The path of a program, if it is installed.
pub(crate) fn program(name: &str) -> Option<std::path::PathBuf> {
    let path = super::env("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}
