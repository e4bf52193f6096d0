//! Init's life: one process, one loop.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{self, Pid};
use skein_cluster::clock;

use super::app::{self, App};
use super::control::Control;
use super::descendants;
use super::freeze::Frozen;
use super::protocol::{self, Ended, FromInit, Launch, MAX_OUTPUT, Output, ToInit};

/// How long init waits for processes that hang in the kernel after SIGKILL.
const LAST_PATIENCE: Duration = Duration::from_secs(30);
/// How long processes may take to stop for a suspension.
const FREEZE_PATIENCE: Duration = Duration::from_secs(2);
/// How long the node may take to read the last words.
const FAREWELL: Duration = Duration::from_secs(5);

/// Runs as machine-init; standard input is the socket to the node. The arguments carry nothing, they
/// only name the Machine in the list of processes.
///
/// The exit code is 0 when the Machine's processes are all gone, 1 otherwise.
pub fn machine_init_main() -> ExitCode {
    match begin() {
        Ok(()) => ExitCode::SUCCESS,
        // There is nobody to tell: the node sees that init ended without a word.
        Err(_) => ExitCode::FAILURE,
    }
}

fn begin() -> io::Result<()> {
    // A leader of its own session gets no signal from the terminal that the node runs in. It fails
    // only for one who is a leader already.
    let _ = unistd::setsid();
    prctl::set_name(c"machine-init")?;
    prctl::set_child_subreaper(true)?;
    let mut stream = take_stdin()?;
    let mut caught = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        // An ignored one would never arrive.
        app::default_signals([signal as i32]);
        caught.add(signal);
    }
    caught.thread_block()?;
    let signals = SignalFd::with_flags(&caught, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let Some(launch) = first_message(&mut stream)? else { return Ok(()) };
    let mut control = Control::new(stream)?;
    // Before the process exists: whoever sees it run can take it over.
    let adopt = Adopt::bind(&launch);
    match app::start(&launch) {
        Ok(app) => {
            control.queue(&FromInit::Started { pid: app.pid.as_raw() });
            Holder::new(control, signals, app, adopt, *launch).run()
        }
        Err(refusal) => {
            control.queue(&refusal);
            farewell(&mut control);
            Ok(())
        }
    }
}

/// Takes the socket off descriptor 0, so that the Machine's processes never inherit it.
fn take_stdin() -> io::Result<UnixStream> {
    let null = std::fs::File::open("/dev/null")?;
    let copy = fcntl(io::stdin(), FcntlArg::F_DUPFD_CLOEXEC(3))?;
    #[allow(unsafe_code, reason = "the descriptor was made on the line above and has no other owner")]
    let socket = unsafe { OwnedFd::from_raw_fd(copy) };
    unistd::dup2_stdin(&null)?;
    Ok(UnixStream::from(socket))
}

/// The launch order; `None` when the node is gone before it gave one.
fn first_message(stream: &mut UnixStream) -> io::Result<Option<Box<Launch>>> {
    let mut buffer = Vec::new();
    let mut piece = [0; 8 << 10];
    loop {
        match protocol::take::<ToInit>(&mut buffer).map_err(io::Error::other)? {
            Some(ToInit::Launch(launch)) => return Ok(Some(launch)),
            Some(_) => return Err(io::Error::other("the first message launches nothing")),
            None => {}
        }
        match stream.read(&mut piece) {
            Ok(0) => return Ok(None),
            Ok(read) => buffer.extend_from_slice(&piece[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Writes what is queued, waiting for the node a little.
fn farewell(control: &mut Control) {
    let until = clock::now() + FAREWELL;
    while control.wants_write() && control.flush() && control.wants_write() {
        let left = until.saturating_duration_since(clock::now());
        if left.is_zero() {
            return;
        }
        let mut fds = [PollFd::new(control.fd(), PollFlags::POLLOUT)];
        // An interruption only means to look again.
        let _ = poll(&mut fds, timeout(left));
    }
}

fn timeout(left: Duration) -> PollTimeout {
    // One more millisecond, so that a deadline is over when the wait is.
    PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
}

struct Holder {
    /// The node, while there is one.
    control: Option<Control>,
    signals: SignalFd,
    app: Pid,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    ended: Option<Ended>,
    /// While the Machine is suspended.
    frozen: Option<Frozen>,
    launch: Launch,
    adopt: Option<Adopt>,
    /// When the Machine ends unless a node comes for it.
    orphan_until: Option<Instant>,
}

/// Where a new node of the same identity may take over.
struct Adopt {
    listener: UnixListener,
    path: PathBuf,
}

impl Adopt {
    /// Listens where the launch says; without it the Machine ends with its node.
    fn bind(launch: &Launch) -> Option<Self> {
        let path = launch.adopt_at.clone().filter(|_| launch.adopt_grace_ms > 0)?;
        // What a former init left there; this name is this Machine's own.
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).ok()?;
        listener.set_nonblocking(true).ok()?;
        Some(Self { listener, path })
    }
}

impl Drop for Adopt {
    fn drop(&mut self) {
        // It may be gone with the whole data directory.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Holder {
    fn new(control: Control, signals: SignalFd, app: App, adopt: Option<Adopt>, launch: Launch) -> Self {
        for pipe in [&app.stdout, &app.stderr] {
            // Reading must never make the loop wait; a failure leaves a pipe that polls before reads.
            let _ = fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
            let _ = fcntl(pipe, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
        }
        Self {
            control: Some(control),
            signals,
            app: app.pid,
            stdout: Some(app.stdout),
            stderr: Some(app.stderr),
            ended: None,
            frozen: None,
            launch,
            adopt,
            orphan_until: None,
        }
    }

    fn run(mut self) -> io::Result<()> {
        while self.ended.is_none() {
            if self.orphan_until.is_some_and(|until| clock::now() >= until) {
                break;
            }
            self.turn()?;
        }
        self.finish()
    }

    /// Waits for anything and deals with it.
    fn turn(&mut self) -> io::Result<()> {
        if self.control.as_mut().is_some_and(|control| !control.flush()) {
            self.orphaned();
        }
        let ready = self.wait()?;
        if ready.signals {
            self.take_signals()?;
        }
        if ready.control {
            self.take_orders();
        }
        if ready.adopt {
            self.take_over();
        }
        if ready.stdout {
            self.relay(Output::Stdout);
        }
        if ready.stderr {
            self.relay(Output::Stderr);
        }
        Ok(())
    }

    fn wait(&self) -> io::Result<Ready> {
        // With the node's buffer full the output stays in its pipes.
        let read_output = self.control.as_ref().is_none_or(|control| !control.is_full());
        let output = |pipe: &'_ Option<OwnedFd>| pipe.as_ref().filter(|_| read_output).map(raw);
        let control = self.control.as_ref().map(|control| {
            let out = if control.wants_write() { PollFlags::POLLOUT } else { PollFlags::empty() };
            (raw(&control.fd()), PollFlags::POLLIN | out)
        });
        let wanted = [
            Some((raw(&self.signals), PollFlags::POLLIN)),
            control,
            self.adopt.as_ref().map(|adopt| (raw(&adopt.listener), PollFlags::POLLIN)),
            output(&self.stdout).map(|fd| (fd, PollFlags::POLLIN)),
            output(&self.stderr).map(|fd| (fd, PollFlags::POLLIN)),
        ];
        #[allow(
            unsafe_code,
            reason = "every descriptor is owned by self, which is borrowed until poll returns"
        )]
        let borrow = |fd| unsafe { BorrowedFd::borrow_raw(fd) };
        let mut fds: Vec<PollFd<'_>> =
            wanted.iter().flatten().map(|(fd, flags)| PollFd::new(borrow(*fd), *flags)).collect();
        let left = match self.orphan_until {
            Some(until) => timeout(until.saturating_duration_since(clock::now())),
            None => PollTimeout::NONE,
        };
        match poll(&mut fds, left) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut results = fds.iter().map(|fd| fd.any().unwrap_or(true));
        let [signals, control, adopt, stdout, stderr] =
            wanted.map(|wanted| wanted.is_some() && results.next().unwrap_or(false));
        Ok(Ready { signals, control, adopt, stdout, stderr })
    }

    fn take_signals(&mut self) -> io::Result<()> {
        while let Some(info) = self.signals.read_signal()? {
            match Signal::try_from(info.ssi_signo as i32) {
                Ok(Signal::SIGCHLD) => self.reap(),
                // Whoever signals init means the Machine.
                Ok(signal) => self.signal(signal),
                Err(_) => {}
            }
        }
        Ok(())
    }

    fn reap(&mut self) {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => return,
                Ok(status) => self.reaped(status),
                Err(Errno::EINTR) => {}
                // No child is left.
                Err(_) => return,
            }
        }
    }

    fn reaped(&mut self, status: WaitStatus) {
        if status.pid() == Some(self.app) {
            self.ended = ended(status).or(self.ended);
        }
    }

    fn signal(&self, signal: Signal) {
        // Not reaped before `ended` is set, so the number still means the app.
        if self.ended.is_none() {
            let _ = kill(self.app, signal);
        }
    }

    fn take_orders(&mut self) {
        let Some(control) = &mut self.control else { return };
        let alive = control.fill();
        let mut orders = Vec::new();
        let sane = loop {
            match control.next() {
                Ok(Some(order)) => orders.push(order),
                Ok(None) => break true,
                // A node that does not speak this protocol is no node.
                Err(_) => break false,
            }
        };
        for order in orders {
            match order {
                ToInit::Signal(number) => {
                    if let Ok(signal) = Signal::try_from(number) {
                        self.signal(signal);
                    }
                }
                ToInit::Kill => {
                    self.ended = self.ended.or(Some(Ended::Signal(Signal::SIGKILL as i32)));
                }
                ToInit::Suspend => self.suspend(),
                ToInit::Resume => self.resume(),
                ToInit::Launch(_) | ToInit::Adopt(_) => {}
            }
        }
        if !alive || !sane {
            self.orphaned();
        }
    }

    fn suspend(&mut self) {
        if self.frozen.is_none() {
            self.frozen = Frozen::all(FREEZE_PATIENCE);
        }
        self.say(&if self.frozen.is_some() { FromInit::Suspended } else { FromInit::NotSuspended });
    }

    fn resume(&mut self) {
        if let Some(frozen) = self.frozen.take() {
            frozen.thaw();
        }
        self.say(&FromInit::Resumed);
    }

    fn say(&mut self, word: &FromInit) {
        if let Some(control) = &mut self.control {
            control.queue(word);
        }
    }

    fn orphaned(&mut self) {
        self.control = None;
        let grace = if self.adopt.is_some() { self.launch.adopt_grace_ms } else { 0 };
        self.orphan_until = Some(clock::now() + Duration::from_millis(grace));
    }

    /// A node asks for the Machine: it gets it if it knows the secret.
    fn take_over(&mut self) {
        let Some(adopt) = &self.adopt else { return };
        let Ok((mut stream, _)) = adopt.listener.accept() else { return };
        if !knows_secret(&mut stream, &self.launch.secret) {
            return;
        }
        let Ok(mut control) = Control::new(stream) else { return };
        control.queue(&FromInit::Started { pid: self.app.as_raw() });
        self.control = Some(control);
        self.orphan_until = None;
    }

    /// Hands what the process wrote to the node; without a node it is lost.
    fn relay(&mut self, which: Output) {
        let pipe = match which {
            Output::Stdout => &mut self.stdout,
            Output::Stderr => &mut self.stderr,
        };
        let Some(fd) = pipe else { return };
        let mut buffer = vec![0; MAX_OUTPUT];
        match unistd::read(&*fd, &mut buffer) {
            Ok(0) => *pipe = None,
            Ok(read) => {
                buffer.truncate(read);
                if let Some(control) = &mut self.control {
                    control.queue(&FromInit::Output(which, buffer));
                }
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => *pipe = None,
        }
    }

    /// Ends every process, hands over the last output and the exit.
    fn finish(mut self) -> io::Result<()> {
        let (app, mut last) = (self.app, None);
        let all_gone = descendants::end_all(LAST_PATIENCE, |pid, status| {
            if pid == app {
                last = ended(status);
            }
        });
        // After an order to kill, the process may still have ended by itself a moment before.
        let ended = last.or(self.ended).unwrap_or(Ended::Signal(Signal::SIGKILL as i32));
        for which in [Output::Stdout, Output::Stderr] {
            // All writers are gone, so the pipes end. One that doesn't is held by a process that
            // was handed over to somebody else; its words are not waited for.
            loop {
                let before = self.control.as_ref().map_or(0, Control::queued);
                self.relay(which);
                if self.control.as_ref().map_or(0, Control::queued) == before {
                    break;
                }
            }
        }
        if let Some(control) = &mut self.control {
            control.queue(&FromInit::Exited(ended));
            farewell(control);
        }
        if all_gone { Ok(()) } else { Err(io::Error::other("a process did not die")) }
    }
}

struct Ready {
    signals: bool,
    control: bool,
    adopt: bool,
    stdout: bool,
    stderr: bool,
}

fn raw(fd: &impl AsFd) -> std::os::fd::RawFd {
    use std::os::fd::AsRawFd;
    fd.as_fd().as_raw_fd()
}

fn ended(status: WaitStatus) -> Option<Ended> {
    #[allow(clippy::wildcard_enum_match_arm, reason = "stops and traces are no ends")]
    match status {
        WaitStatus::Exited(_, code) => Some(Ended::Code(code)),
        WaitStatus::Signaled(_, signal, _) => Some(Ended::Signal(signal as i32)),
        _ => None,
    }
}

/// Reads the first message of a caller, who has a moment for it.
fn knows_secret(stream: &mut UnixStream, secret: &[u8; 32]) -> bool {
    let patience = Some(Duration::from_secs(1));
    if stream.set_read_timeout(patience).is_err() || stream.set_nonblocking(false).is_err() {
        return false;
    }
    let mut buffer = Vec::new();
    let mut piece = [0; 256];
    while buffer.len() < 1024 {
        match protocol::take::<ToInit>(&mut buffer) {
            Ok(Some(ToInit::Adopt(shown))) => return shown == *secret,
            Ok(Some(_)) | Err(_) => return false,
            Ok(None) => {}
        }
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return false,
            Ok(read) => buffer.extend_from_slice(&piece[..read]),
        }
    }
    false
}
