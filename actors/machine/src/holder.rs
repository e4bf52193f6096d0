//! The node's side of a machine-init: starting it, and the socket to it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc as std_mpsc;

use skein_core::MachineId;
use skein_core::restart::Exit;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::init::protocol::{self, FromInit, Launch, ToInit};
use crate::log::MachineLog;
use crate::strays;

/// Orders that may wait for an init that does not read.
pub(crate) const ORDERS: usize = 64;

/// How long an init may take to answer the node that asks for its Machine.
const ANSWER: std::time::Duration = std::time::Duration::from_secs(3);

/// What becomes of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The process runs.
    Up,
    /// It could not be started.
    Refused(String),
    /// It ended, with all that came from it; what it wrote last to its standard error.
    Ended(Exit, String),
    /// No process runs, and all keep their memory.
    Suspended,
    /// Some process could not be made to wait, so all run.
    NotSuspended,
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
    machine: MachineId,
    launch: Launch,
    link: Link,
    log: &MachineLog,
    tell: impl Fn(Fate),
) {
    let (mut stream, mut child) = match spawner.spawn(machine.to_string()).await {
        Ok(started) => started,
        Err(error) => return tell(Fate::Lost(format!("machine-init could not be started: {error}"))),
    };
    let first = protocol::frame(&ToInit::Launch(Box::new(launch)));
    let fate = match stream.write_all(&first).await {
        Ok(()) => converse(Answer { stream, heard: Vec::new() }, link, log, &tell).await,
        Err(error) => Fate::Lost(format!("machine-init did not take its order: {error}")),
    };
    // It exits by itself once its socket is closed or its last word is said.
    if let Err(error) = child.wait().await {
        tracing::warn!(%error, "machine-init could not be waited for");
    }
    if matches!(fate, Fate::Lost(_)) {
        // Before the loss is told: afterwards the next run may begin.
        sweep(machine).await;
    }
    tell(fate);
}

/// A run that another process of this node started and left behind.
pub(crate) async fn adopt(
    init: Answer,
    machine: MachineId,
    link: Link,
    log: &MachineLog,
    tell: impl Fn(Fate),
) {
    let fate = converse(init, link, log, &tell).await;
    if matches!(fate, Fate::Lost(_)) {
        sweep(machine).await;
    }
    tell(fate);
}

/// Ends what a lost init left.
async fn sweep(machine: MachineId) {
    let swept = tokio::task::spawn_blocking(move || strays::end(&BTreeSet::from([machine]))).await;
    // Only a runtime that shuts down does not do it; it has the same work at its next start.
    if let Ok(count @ 1..) = swept {
        tracing::warn!(%machine, count, "processes that had lost their machine-init were killed");
    }
}

/// An init that gives its Machine to this node, and what it said first.
pub(crate) struct Answer {
    stream: UnixStream,
    heard: Vec<u8>,
}

/// Asks the init that listens at `path` for its Machine; it has said so when this returns.
pub(crate) async fn ask_for(path: &Path, secret: [u8; 32]) -> io::Result<Answer> {
    let asking = async {
        let mut stream = UnixStream::connect(path).await?;
        stream.write_all(&protocol::frame(&ToInit::Adopt(secret))).await?;
        // An init that does not know the secret says nothing and closes.
        let mut heard = Vec::new();
        match stream.read_buf(&mut heard).await? {
            0 => Err(io::Error::other("its machine-init knows another secret")),
            _ => Ok(Answer { stream, heard }),
        }
    };
    tokio::time::timeout(ANSWER, asking).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Ends what a former life of this node left and nobody wants any more.
pub(crate) async fn end(path: &Path, secret: [u8; 32]) -> io::Result<()> {
    let Answer { mut stream, .. } = ask_for(path, secret).await?;
    stream.write_all(&protocol::frame(&ToInit::Kill)).await?;
    // Until init closes, with everything gone.
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(drop)
}

/// What the actor says to a run.
pub(crate) struct Link {
    pub(crate) orders: mpsc::Receiver<ToInit>,
    /// Cancelled to kill everything: an order that no full queue can keep back.
    pub(crate) kill: CancellationToken,
}

async fn converse(init: Answer, link: Link, log: &MachineLog, tell: &impl Fn(Fate)) -> Fate {
    let (mut read, mut write) = init.stream.into_split();
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
        fate = listen(&mut read, init.heard, log, tell) => fate,
        () = speak => Fate::Lost("the conversation with machine-init ended".into()),
    }
}

async fn listen(
    read: &mut OwnedReadHalf,
    mut buffer: Vec<u8>,
    log: &MachineLog,
    tell: &impl Fn(Fate),
) -> Fate {
    let mut writer = log.writer();
    loop {
        loop {
            match protocol::take::<FromInit>(&mut buffer) {
                Ok(Some(FromInit::Started { .. } | FromInit::Resumed)) => tell(Fate::Up),
                Ok(Some(FromInit::Suspended)) => tell(Fate::Suspended),
                Ok(Some(FromInit::NotSuspended)) => tell(Fate::NotSuspended),
                Ok(Some(FromInit::Output(output, bytes))) => writer.write(output, &bytes),
                Ok(Some(FromInit::Refused { text, .. })) => return Fate::Refused(text),
                Ok(Some(FromInit::Exited(ended))) => return Fate::Ended(ended.into(), writer.end()),
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
