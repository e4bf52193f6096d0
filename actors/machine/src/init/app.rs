//! Starting the Machine's process.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::fcntl::OFlag;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{self, Pid};

use super::protocol::{FromInit, Launch, Program};

/// The process, and the reading ends of its output.
pub(super) struct App {
    pub(super) pid: Pid,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// Starts the process, or says why that is not possible.
pub(super) fn start(launch: &Launch) -> Result<App, FromInit> {
    spawn(launch).map_err(|error| refusal(launch, &error))
}

fn spawn(launch: &Launch) -> io::Result<App> {
    let (stdout, stdout_end) = unistd::pipe2(OFlag::O_CLOEXEC)?;
    let (stderr, stderr_end) = unistd::pipe2(OFlag::O_CLOEXEC)?;
    let mut command = match &launch.program {
        Program::Named(name) => Command::new(name),
        Program::Own => {
            let mut command = Command::new("/proc/self/exe");
            command.arg0("skein");
            command
        }
    };
    command.args(&launch.args).env_clear().envs(launch.env.iter().map(|(key, value)| (key, value)));
    command.stdin(Stdio::null()).stdout(stdout_end).stderr(stderr_end);
    if let Some(user) = launch.run_as {
        // Also drops all supplementary groups.
        command.uid(user.uid).gid(user.gid);
    }
    let dir = CString::new(launch.dir.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let init = Pid::this();
    #[allow(unsafe_code, reason = "runs between fork and exec; makes system calls only, allocates nothing")]
    unsafe {
        command.pre_exec(move || before_exec(&dir, init));
    }
    let child = command.spawn()?;
    // Reaped by init's loop together with everything else, so the handle may go.
    let pid = Pid::from_raw(child.id() as i32);
    Ok(App { pid, stdout, stderr })
}

/// In the new process, already as its user.
fn before_exec(dir: &CString, init: Pid) -> io::Result<()> {
    unistd::setsid()?;
    default_signals(1..=libc::SIGRTMAX());
    SigSet::all().thread_unblock()?;
    // Changing the user cleared it, executing keeps it: init's own violent death ends the process.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // Skein's own processes do without; it is inherited, and would slow a database or a JVM down.
    // Where the call is forbidden, the node's had no effect either.
    prctl::set_thp_disable(false).ok();
    if unistd::getppid() != init {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    if unistd::chdir(dir.as_c_str()).is_err() {
        unistd::chdir(c"/")?;
    }
    Ok(())
}

/// Undoes whatever whoever started Skein did to these signals: a shell ignores SIGINT for what it runs
/// in the background, and what is ignored stays so in all that is executed.
pub(super) fn default_signals(signals: impl IntoIterator<Item = libc::c_int>) {
    for signal in signals {
        // KILL and STOP, and those that the C library keeps for itself, can't be changed.
        #[allow(unsafe_code, reason = "installs no handler")]
        let _before = unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

fn refusal(launch: &Launch, error: &io::Error) -> FromInit {
    let name = match &launch.program {
        Program::Named(name) => name.as_str(),
        Program::Own => "the sample app",
    };
    let path = launch.env.iter().find(|(key, _)| key == "PATH").map_or("", |(_, value)| value);
    let user = launch.run_as.map_or(String::new(), |user| format!(" as uid {}", user.uid));
    let found = name.contains('/').then(|| name.to_owned()).or_else(|| find(name, path));
    let text = match (error.raw_os_error(), found) {
        (Some(libc::ENOENT), _) if name.contains('/') => {
            format!(
                "the command {name:?} does not exist, or its interpreter does not; name a file that is there"
            )
        }
        // Without permission to look into some directory of PATH, the kernel's answer is EACCES too.
        (Some(libc::ENOENT | libc::EACCES), None) => {
            format!("the command {name:?} was not found in PATH ({path}); install it or give its whole path")
        }
        (Some(libc::EACCES | libc::ENOENT), Some(found)) => format!(
            "the command {found:?} may not be executed{user}; make it and its directories readable and executable for that user, or choose another user"
        ),
        (Some(libc::EPERM), _) if launch.run_as.is_some() => {
            format!("the node may not start processes{user}; run the node as root or leave the user out")
        }
        (Some(libc::ENOEXEC), _) => {
            format!("the command {name:?} is not a program; a script needs a first line like #!/bin/sh")
        }
        (Some(libc::E2BIG), _) => "arguments and environment are longer than the kernel allows".to_owned(),
        _ => format!("the command {name:?} could not be started{user}: {error}"),
    };
    FromInit::Refused { errno: error.raw_os_error(), text }
}

/// Where a command is, as far as init may look.
fn find(name: &str, path: &str) -> Option<String> {
    let candidates = path.split(':').map(|dir| format!("{dir}/{name}"));
    candidates.into_iter().find(|file| std::path::Path::new(file).is_file())
}
