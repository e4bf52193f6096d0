//! Passes bytes both ways until both ends are done: raw TCP and upgraded connections.
//!
//! Half-close is preserved. A WebSocket's frames are followed, so that it can be closed between two of
//! them when an end goes away (SPEC HTTP-11); its bytes are not changed. Both directions are polled by
//! one task.

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use skein_cluster::clock;
use skein_cluster::entropy::Entropy;
use skein_core::Random as _;
use skein_core::websocket::{Frames, GOING_AWAY, SERVICE_RESTART, close_frame};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;

/// Bytes that are read at once, each way.
const CHUNK: usize = 8 << 10;
/// How long the ends of a WebSocket may take to answer a close frame.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why bytes are no longer passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// Both ends are done.
    Done,
    /// An end broke off.
    Broken,
    /// The Machine or the node goes away, and the ends were told.
    Leaving,
    /// Nothing moved for too long.
    Idle,
    /// The deadline of a drain came.
    Forced,
}

/// What was passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Passed {
    /// Bytes from the client.
    pub(crate) received: u64,
    /// Bytes to the client.
    pub(crate) sent: u64,
    pub(crate) why: Why,
}

/// How a connection is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Manner {
    /// Whether it speaks WebSocket frames.
    pub(crate) websocket: bool,
    /// How long it may be without a byte, if there is a limit.
    pub(crate) idle: Option<Duration>,
}

#[derive(Debug)]
struct Both {
    /// The status code that a WebSocket is to be closed with; 0 for none.
    close: AtomicU16,
    asked: Notify,
    /// When a byte last moved, on the clock of [`clock::monotonic_ms`].
    moved: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
}

/// Passes bytes between a client and a Machine, or the node on the way to one. A WebSocket is closed with
/// 1012 once `leaving` ends; anything else stays until `forced` ends.
pub(crate) async fn relay<C, M>(
    client: C,
    machine: M,
    manner: Manner,
    leaving: impl Future<Output = ()>,
    forced: impl Future<Output = ()>,
) -> Passed
where
    C: AsyncRead + AsyncWrite,
    M: AsyncRead + AsyncWrite,
{
    let both = Both {
        close: AtomicU16::new(0),
        asked: Notify::new(),
        moved: AtomicU64::new(clock::monotonic_ms()),
        received: AtomicU64::new(0),
        sent: AtomicU64::new(0),
    };
    let (from_client, to_client) = tokio::io::split(client);
    let (from_machine, to_machine) = tokio::io::split(machine);
    let frames = || manner.websocket.then(Frames::default);
    let mask = Some((Entropy::default().next_u64() as u32).to_be_bytes());
    let passing = async {
        let up = both.pass(from_client, to_machine, &both.received, frames(), mask);
        let down = both.pass(from_machine, to_client, &both.sent, frames(), None);
        tokio::try_join!(up, down)
    };
    let why = tokio::select! {
        biased;
        () = forced => Why::Forced,
        passed = passing => match passed {
            _ if both.close.load(Ordering::Relaxed) == SERVICE_RESTART => Why::Leaving,
            _ if both.close.load(Ordering::Relaxed) == GOING_AWAY => Why::Idle,
            Ok(((), ())) => Why::Done,
            Err(error) => {
                tracing::debug!(%error, "an end broke off");
                Why::Broken
            }
        },
        why = both.end(manner, leaving) => why,
    };
    let (received, sent) = (both.received.load(Ordering::Relaxed), both.sent.load(Ordering::Relaxed));
    Passed { received, sent, why }
}

impl Both {
    /// Waits for a reason to end, and ends a WebSocket in its way.
    async fn end(&self, manner: Manner, leaving: impl Future<Output = ()>) -> Why {
        let leaving = async {
            leaving.await;
            if !manner.websocket {
                // It has no word for it: the Machine's end or the deadline will end it.
                std::future::pending::<()>().await;
            }
        };
        let (why, code) = tokio::select! {
            biased;
            () = leaving => (Why::Leaving, SERVICE_RESTART),
            () = self.idle(manner.idle) => (Why::Idle, GOING_AWAY),
        };
        if manner.websocket {
            self.close.store(code, Ordering::Release);
            self.asked.notify_waiters();
            tokio::time::sleep(FAREWELL).await;
        }
        why
    }

    async fn idle(&self, limit: Option<Duration>) {
        let Some(limit) = limit else { return std::future::pending().await };
        loop {
            let quiet = clock::monotonic_ms().saturating_sub(self.moved.load(Ordering::Relaxed));
            match limit.checked_sub(Duration::from_millis(quiet)) {
                None | Some(Duration::ZERO) => return,
                Some(left) => tokio::time::sleep(left).await,
            }
        }
    }

    /// Passes one direction.
    async fn pass(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        count: &AtomicU64,
        frames: Option<Frames>,
        mask: Option<[u8; 4]>,
    ) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        let Some(mut frames) = frames else {
            while let Some(bytes) = read(&mut from, &mut buffer).await? {
                self.write(&mut to, bytes, count).await?;
            }
            return to.shutdown().await;
        };
        // Set once this side has said the last word of this direction.
        let mut last = false;
        loop {
            let mut asked = pin!(self.asked.notified());
            asked.as_mut().enable();
            let close = self.close.load(Ordering::Acquire);
            if close != 0 && !last && frames.is_between() {
                last = true;
                if !frames.is_closed() {
                    to.write_all(&close_frame(close, mask)).await?;
                    to.flush().await?;
                }
                // Whose close frame was passed on before has nothing more to say.
                if frames.is_closed() {
                    break;
                }
            }
            let bytes = tokio::select! {
                biased;
                bytes = read(&mut from, &mut buffer) => bytes?,
                () = asked, if close == 0 => continue,
            };
            let Some(bytes) = bytes else { break };
            if close == 0 {
                frames.take_all(bytes);
                self.write(&mut to, bytes, count).await?;
                continue;
            }
            // To the end of the frame that is under way; what follows is only looked at, for the answer.
            let taken = if last { 0 } else { frames.take(bytes) };
            self.write(&mut to, &bytes[..taken], count).await?;
            if last {
                frames.take_all(bytes);
                if frames.is_closed() {
                    break;
                }
            } else if frames.is_between() && !frames.is_closed() {
                last = true;
                to.write_all(&close_frame(close, mask)).await?;
                to.flush().await?;
                frames.take_all(&bytes[taken..]);
            }
        }
        to.shutdown().await
    }

    async fn write(
        &self,
        to: &mut (impl AsyncWrite + Unpin),
        bytes: &[u8],
        count: &AtomicU64,
    ) -> io::Result<()> {
        self.moved.store(clock::monotonic_ms(), Ordering::Relaxed);
        count.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        to.write_all(bytes).await?;
        to.flush().await
    }
}

/// Some bytes; `None` at the end.
async fn read<'b>(from: &mut (impl AsyncRead + Unpin), buffer: &'b mut [u8]) -> io::Result<Option<&'b [u8]>> {
    let length = from.read(buffer).await?;
    Ok((length > 0).then(|| &buffer[..length]))
}

#[cfg(test)]
mod tests;
