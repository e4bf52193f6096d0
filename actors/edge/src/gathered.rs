//! Small sends of a thread's turn, together.
//!
//! A send to a peer that sleeps wakes it, and on the same computer that is a good part of what the
//! send costs. A proxy at work meets this with each message: the peer is done with the last one just
//! as the next arrives. So small messages are kept until the thread has run all that is ready, and
//! then sent one after the other: the peer is woken for the first and finds the others.
//!
//! What: [`Gathered`] is a TCP stream whose small writes are kept on threads that call [`end_of_turn`]
//! before they park; on other threads they are sent at once. What not: large writes, which go out at
//! once behind what was kept.
//!
//! Invariants: bytes leave in the order of the writes; at most [`MANY`] connections are kept waiting,
//! and for at most [`LONG`] reads and writes of their thread; a dropped stream has sent what it kept,
//! or the kernel had no room. A lock is held for one send, and by one thread at a time unless a
//! connection changes threads.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Up to so many bytes are kept, and copied into one piece: gathering them costs the kernel more.
const SMALL: usize = 2048;
/// Connections of a thread that may wait; then all are sent.
const MANY: usize = 16;
/// Reads and writes of a thread while some wait; then all are sent.
const LONG: usize = 32;

/// A TCP stream whose small writes go out with others'.
#[derive(Debug)]
pub(crate) struct Gathered {
    stream: TcpStream,
    kept: Arc<Kept>,
}

#[derive(Debug)]
struct Kept {
    state: Mutex<State>,
    /// Whether the task has to look: not all could be sent, or sending failed.
    look: AtomicBool,
}

#[derive(Debug)]
struct State {
    /// `None` once the stream is gone.
    fd: Option<RawFd>,
    bytes: Vec<u8>,
    task: Option<Waker>,
}

#[derive(Default)]
struct Turn {
    /// Whether the thread calls [`end_of_turn`].
    gathers: bool,
    waiting: Vec<Arc<Kept>>,
    passed: usize,
    /// Memory of sent bytes.
    spare: Vec<Vec<u8>>,
}

thread_local! {
    static TURN: RefCell<Turn> = RefCell::default();
}

/// Sends what the connections of this thread kept, and lets them keep what comes: a runtime of one
/// thread calls it before it parks.
pub fn end_of_turn() {
    TURN.with_borrow_mut(|turn| {
        turn.gathers = true;
        turn.send();
    });
}

impl Turn {
    fn send(&mut self) {
        self.passed = 0;
        for kept in self.waiting.drain(..) {
            let sent = kept.lock().send(&kept.look);
            if let Some(bytes) = sent.filter(|bytes| bytes.capacity() <= SMALL && self.spare.len() < MANY) {
                self.spare.push(bytes);
            }
        }
    }

    /// Something else of the thread came first.
    fn pass(&mut self) {
        if !self.waiting.is_empty() {
            self.passed += 1;
            if self.passed >= LONG {
                self.send();
            }
        }
    }
}

impl Kept {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Sends what is there; gives its memory back when all of it went out.
    fn send(&mut self, look: &AtomicBool) -> Option<Vec<u8>> {
        let fd = self.fd?;
        while !self.bytes.is_empty() {
            match send(fd, &self.bytes, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) {
                Ok(sent) => drop(self.bytes.drain(..sent)),
                Err(Errno::EINTR) => {}
                Err(_) => {
                    // No room, or the connection is broken: the task sends the rest, or meets that too.
                    look.store(true, Ordering::Release);
                    if let Some(task) = self.task.take() {
                        task.wake();
                    }
                    return None;
                }
            }
        }
        Some(std::mem::take(&mut self.bytes))
    }
}

impl Gathered {
    pub(crate) fn new(stream: TcpStream) -> Self {
        let state = State { fd: Some(stream.as_raw_fd()), bytes: Vec::new(), task: None };
        let kept = Arc::new(Kept { state: Mutex::new(state), look: AtomicBool::new(false) });
        Self { stream, kept }
    }

    /// Keeps the bytes; false when they have to be sent at once.
    fn keep(&self, cx: &Context<'_>, bufs: &[IoSlice<'_>], length: usize) -> bool {
        TURN.with_borrow_mut(|turn| {
            if !turn.gathers {
                return false;
            }
            let mut state = self.kept.lock();
            let first = state.bytes.is_empty();
            if state.bytes.len() + length > SMALL || self.kept.look.load(Ordering::Acquire) {
                return false;
            }
            if first {
                state.bytes = turn.spare.pop().unwrap_or_else(|| Vec::with_capacity(SMALL));
                if state.task.as_ref().is_none_or(|task| !task.will_wake(cx.waker())) {
                    state.task = Some(cx.waker().clone());
                }
            }
            bufs.iter().for_each(|buf| state.bytes.extend_from_slice(buf));
            drop(state);
            if first {
                turn.waiting.push(Arc::clone(&self.kept));
                if turn.waiting.len() >= MANY {
                    turn.send();
                }
            }
            true
        })
    }

    /// Sends what was kept, before anything else is.
    fn poll_kept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.kept.lock();
        while !state.bytes.is_empty() {
            let sent = ready!(Pin::new(&mut self.stream).poll_write(cx, &state.bytes))?;
            state.bytes.drain(..sent);
        }
        self.kept.look.store(false, Ordering::Release);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Gathered {
    fn drop(&mut self) {
        let mut state = self.kept.lock();
        // Whoever cuts a connection off in the middle has no use for an error.
        drop(state.send(&self.kept.look));
        (state.fd, state.task) = (None, None);
    }
}

impl AsyncRead for Gathered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        TURN.with_borrow_mut(Turn::pass);
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Gathered {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = bufs.iter().map(|buf| buf.len()).sum();
        if length <= SMALL && self.keep(cx, bufs, length) {
            return Poll::Ready(Ok(length));
        }
        TURN.with_borrow_mut(Turn::pass);
        ready!(self.poll_kept(cx))?;
        if length > SMALL {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        }
        let mut joined = [0; SMALL];
        let mut end = 0;
        for buf in bufs {
            joined[end..end + buf.len()].copy_from_slice(buf);
            end += buf.len();
        }
        Pin::new(&mut self.stream).poll_write(cx, &joined[..length])
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What is kept goes out by itself, unless that was tried.
        if self.kept.look.load(Ordering::Acquire) {
            ready!(self.poll_kept(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_kept(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::runtime::{Builder, Runtime};

    use super::*;

    fn gathering() -> Runtime {
        end_of_turn();
        Builder::new_current_thread().enable_all().on_thread_park(end_of_turn).build().unwrap()
    }

    async fn pair() -> (Gathered, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Gathered::new(near), listener.accept().await.unwrap().0)
    }

    fn nothing_came(far: &TcpStream) -> bool {
        far.try_read(&mut [0; 1]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    #[test]
    fn small_writes_leave_at_the_end_of_the_turn_and_on_other_threads_at_once() {
        gathering().block_on(async {
            let (mut near, mut far) = pair().await;
            near.write_all(b"hel").await.unwrap();
            near.write_all(b"lo").await.unwrap();
            let mut got = [0; 5];
            far.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"hello");
            near.write_all(b"x").await.unwrap();
            assert!(nothing_came(&far), "the turn is not over");
        });
        let at_once = std::thread::spawn(|| {
            Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
                let (mut near, far) = pair().await;
                near.write_all(b"x").await.unwrap();
                near.kept.lock().bytes.is_empty() && far.peek(&mut [0; 1]).await.unwrap() == 1
            })
        });
        assert!(at_once.join().unwrap());
    }

    #[test]
    fn many_waiting_connections_or_much_else_to_do_end_the_wait() {
        gathering().block_on(async {
            let mut pairs = Vec::new();
            for _ in 0..MANY {
                pairs.push(pair().await);
            }
            for (near, _) in &mut pairs {
                near.write_all(b"x").await.unwrap();
            }
            assert!(pairs.iter().all(|(near, _)| near.kept.lock().bytes.is_empty()));
            let (near, _) = &mut pairs[0];
            near.write_all(b"x").await.unwrap();
            let kept = |near: &Gathered| !near.kept.lock().bytes.is_empty();
            assert!(kept(near));
            for _ in 0..LONG {
                assert!(kept(near));
                TURN.with_borrow_mut(Turn::pass);
            }
            assert!(!kept(near));
        });
    }

    /// A peer that reads late: what could not be sent comes later, in order, with small and large
    /// writes mixed.
    #[test]
    fn all_bytes_arrive_in_order_also_when_the_peer_is_slow() {
        gathering().block_on(async {
            let (mut near, mut far) = pair().await;
            let sent: Vec<u8> = (0..8_000_000u32).map(|n| (n / 251) as u8).collect();
            let writing = async {
                let (mut rest, mut size) = (&sent[..], 1);
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(size.min(rest.len()));
                    near.write_all(now).await.unwrap();
                    near.flush().await.unwrap();
                    (rest, size) = (later, size * 7 % 5003 + 1);
                }
                drop(near);
            };
            let reading = async {
                tokio::task::yield_now().await;
                let mut got = Vec::new();
                far.read_to_end(&mut got).await.unwrap();
                got
            };
            let ((), got) = tokio::join!(writing, reading);
            assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
        });
    }

    #[test]
    fn a_stream_that_goes_has_sent_what_it_kept() {
        gathering().block_on(async {
            let (mut near, mut far) = pair().await;
            near.write_all(b"last words").await.unwrap();
            drop(near);
            let mut got = Vec::new();
            far.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"last words");
        });
    }

    #[test]
    fn a_send_that_fails_later_is_told() {
        gathering().block_on(async {
            let (mut near, far) = pair().await;
            far.set_zero_linger().unwrap();
            drop(far);
            let failing = async {
                loop {
                    if let Err(error) = near.write_all(b"x").await {
                        break error;
                    }
                    // The thread parks, which ends the turn.
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
            };
            let failed = tokio::time::timeout(std::time::Duration::from_secs(60), failing).await;
            let failed = failed.expect("a write should fail once a send has failed");
            assert!(matches!(failed.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{failed}");
        });
    }
}
