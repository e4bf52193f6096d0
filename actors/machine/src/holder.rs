//! The node's side of a machine-init: starting it, and the socket to it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc as std_mpsc;

use skein_core::restart::Exit;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::init::protocol::{self, FromInit, Launch, ToInit};
use crate::log::MachineLog;

/// Orders that may wait for an init that does not read.
pub(crate) const ORDERS: usize = 64;

/// What becomes of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The process runs.
    Up,
    /// It could not be started.
    Refused(String),
    /// It ended, with all that came from it.
    Ended(Exit),
    /// Init ended without a word, or could not be started.
    Lost(String),
}

/// Starts inits, all from one thread that never ends: the kernel ties some things of a child to the
/// thread that made it, and threads of a runtime come and go (`PR_SET_PDEATHSIG`).
#[derive(Debug, Clone)]
pub(crate) struct Spawner(std_mpsc::Sender<Job>);

struct Job {
    label: String,
    runtime: tokio::runtime::Handle,
    reply: oneshot::Sender<io::Result<(StdStream, Child)>>,
}

impl Spawner {
    /// A spawner of the program at `exe`, which is opened now: later its path may be anything.
    pub(crate) fn new(exe: &Path) -> io::Result<Self> {
        let exe = File::open(exe)?;
        let (sender, jobs) = std_mpsc::channel::<Job>();
        std::thread::Builder::new().name("machine-spawner".into()).spawn(move || {
            for Job { label, runtime, reply } in jobs {
                // Nobody waits when the Machine's actor is gone; dropping the socket ends that init.
                let _ = reply.send(start(&exe, &label, &runtime));
            }
        })?;
        Ok(Self(sender))
    }

    async fn spawn(&self, label: String) -> io::Result<(UnixStream, Child)> {
        let (reply, answer) = oneshot::channel();
        let gone = || io::Error::other("the spawner thread is gone");
        let runtime = tokio::runtime::Handle::current();
        self.0.send(Job { label, runtime, reply }).map_err(|_| gone())?;
        let (stream, child) = answer.await.map_err(|_| gone())??;
        stream.set_nonblocking(true)?;
        Ok((UnixStream::from_std(stream)?, child))
    }
}

/// The socket is init's standard input: nothing else of the node is inherited, for all its
/// descriptors close on exec.
fn start(exe: &File, label: &str, runtime: &tokio::runtime::Handle) -> io::Result<(StdStream, Child)> {
    let (ours, theirs) = StdStream::pair()?;
    let mut command = std::process::Command::new(format!("/proc/self/fd/{}", exe.as_raw_fd()));
    command
        .arg0("skein")
        .args(["machine-init", label])
        .env_clear()
        .current_dir("/")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let _runtime = runtime.enter();
    let child = tokio::process::Command::from(command).spawn()?;
    Ok((ours, child))
}

/// One run of a Machine's process, from its launch to its end. When this future is dropped, the
/// socket closes and init ends everything.
pub(crate) async fn hold(
    spawner: Spawner,
    label: String,
    launch: Launch,
    link: Link,
    log: &MachineLog,
    tell: impl Fn(Fate),
) {
    let (mut stream, mut child) = match spawner.spawn(label).await {
        Ok(started) => started,
        Err(error) => return tell(Fate::Lost(format!("machine-init could not be started: {error}"))),
    };
    let first = protocol::frame(&ToInit::Launch(Box::new(launch)));
    let fate = match stream.write_all(&first).await {
        Ok(()) => converse(stream, link, log, &tell).await,
        Err(error) => Fate::Lost(format!("machine-init did not take its order: {error}")),
    };
    // It exits by itself once its socket is closed or its last word is said.
    if let Err(error) = child.wait().await {
        tracing::warn!(%error, "machine-init could not be waited for");
    }
    tell(fate);
}

/// A run that another process of this node started and left behind.
pub(crate) async fn adopt(stream: UnixStream, link: Link, log: &MachineLog, tell: impl Fn(Fate)) {
    let fate = converse(stream, link, log, &tell).await;
    tell(fate);
}

/// Asks the init that listens at `path` for its Machine.
pub(crate) async fn ask_for(path: &Path, secret: [u8; 32]) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(&protocol::frame(&ToInit::Adopt(secret))).await?;
    Ok(stream)
}

/// What the actor says to a run.
pub(crate) struct Link {
    pub(crate) orders: mpsc::Receiver<ToInit>,
    /// Cancelled to kill everything: an order that no full queue can keep back.
    pub(crate) kill: CancellationToken,
}

async fn converse(stream: UnixStream, link: Link, log: &MachineLog, tell: &impl Fn(Fate)) -> Fate {
    let (mut read, mut write) = stream.into_split();
    let Link { mut orders, kill } = link;
    let speak = async {
        loop {
            let order = tokio::select! {
                biased;
                () = kill.cancelled() => ToInit::Kill,
                Some(order) = orders.recv() => order,
                else => break,
            };
            // A failed write means that init is gone, which reading tells too.
            if write.write_all(&protocol::frame(&order)).await.is_err() || order == ToInit::Kill {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        fate = listen(&mut read, log, tell) => fate,
        () = speak => Fate::Lost("the conversation with machine-init ended".into()),
    }
}

async fn listen(read: &mut OwnedReadHalf, log: &MachineLog, tell: &impl Fn(Fate)) -> Fate {
    let mut writer = log.writer();
    let mut buffer = Vec::with_capacity(4 << 10);
    loop {
        loop {
            match protocol::take::<FromInit>(&mut buffer) {
                Ok(Some(FromInit::Started { .. })) => tell(Fate::Up),
                Ok(Some(FromInit::Output(output, bytes))) => writer.write(output, &bytes),
                Ok(Some(FromInit::Refused { text, .. })) => return Fate::Refused(text),
                Ok(Some(FromInit::Exited(ended))) => return Fate::Ended(ended.into()),
                Ok(None) => break,
                Err(error) => return Fate::Lost(format!("machine-init spoke nonsense: {error}")),
            }
        }
        match read.read_buf(&mut buffer).await {
            Ok(0) => return Fate::Lost("machine-init ended without a word".into()),
            Ok(_) => {}
            Err(error) => return Fate::Lost(format!("the socket to machine-init broke: {error}")),
        }
    }
}
