//! A client's connection: HTTP/1.1 on it, its counters, its end.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::core::{Core, Passage};
use crate::joined::Joined;
use crate::metrics::AppCounters;
use crate::request::handle;

/// The two ends of a client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ends {
    /// The client.
    pub(crate) client: SocketAddr,
    /// The public address and port that it dialled.
    pub(crate) public: SocketAddr,
}

/// What the requests of a connection share.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) core: Arc<Core>,
    pub(crate) ends: Ends,
    pub(crate) passage: Passage,
    /// The app of the first request: bytes are counted for it.
    app: OnceLock<Arc<AppCounters>>,
    received: AtomicU64,
    sent: AtomicU64,
}

impl Connection {
    pub(crate) fn new(core: Arc<Core>, ends: Ends) -> Arc<Self> {
        let passage = core.gate.enter();
        let (received, sent) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { core, ends, passage, app: OnceLock::new(), received, sent })
    }

    /// A request for this app came.
    pub(crate) fn met(&self, app: &Arc<AppCounters>) {
        if self.app.set(Arc::clone(app)).is_ok() {
            app.connect();
        }
    }

    /// Adds the bytes since the last time to the app's counters.
    pub(crate) fn flush(&self) {
        if let Some(app) = self.app.get() {
            app.data(self.received.swap(0, Ordering::Relaxed), self.sent.swap(0, Ordering::Relaxed));
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Serves HTTP/1.1 until the client leaves, is idle for too long, or the node drains.
pub(crate) async fn http(core: Arc<Core>, ends: Ends, stream: TcpStream) {
    // Only delays small writes if it fails.
    let _slower = stream.set_nodelay(true);
    let connection = Connection::new(Arc::clone(&core), ends);
    let era = Arc::clone(connection.passage.era());
    let io = TokioIo::new(Joined(Counted { stream, connection: Arc::clone(&connection) }));
    let service = service_fn(move |request| {
        let connection = Arc::clone(&connection);
        async move { Ok::<_, Infallible>(handle(&connection, request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(core.config.keep_alive)
        .max_buf_size(core.config.max_head.max(8192))
        .max_header_size(core.config.max_head)
        .serve_connection(io, service);
    let mut served = pin!(served);
    let ended = tokio::select! {
        biased;
        ended = served.as_mut() => ended,
        () = era.quiet.cancelled() => {
            served.as_mut().graceful_shutdown();
            tokio::select! {
                ended = served.as_mut() => ended,
                () = era.forced.cancelled() => return,
            }
        }
    };
    if let Err(error) = ended {
        if error.is_parse() {
            core.metrics.malformed.fetch_add(1, Ordering::Relaxed);
            tracing::info!(client = %ends.client, public = %ends.public, %error, "malformed request refused");
        } else {
            tracing::debug!(client = %ends.client, %error, "connection ended");
        }
    }
}

/// A stream whose bytes are counted.
#[derive(Debug)]
struct Counted {
    stream: TcpStream,
    connection: Arc<Connection>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.connection.received.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        polled
    }
}

impl Counted {
    fn count(&self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = written {
            self.connection.sent.fetch_add(*bytes as u64, Ordering::Relaxed);
        }
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.count(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.count(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
