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
use hyper_util::rt::TokioIo;
use skein_core::headers::Origin;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::bell::{First, beside};
use crate::core::{Core, Passage};
use crate::joined::Joined;
use crate::metrics::AppCounters;
use crate::request::handle;
use crate::watch::{Limits, Watch};

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
    /// Made for the first request: most connections that only wait have none.
    origin: OnceLock<Box<Origin>>,
    /// The app of the first request: bytes are counted for it.
    app: OnceLock<Arc<AppCounters>>,
    received: AtomicU64,
    sent: AtomicU64,
    pub(crate) watch: Watch,
}

impl Connection {
    pub(crate) fn new(core: Arc<Core>, ends: Ends) -> Arc<Self> {
        let passage = core.gate.enter();
        let (received, sent) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self {
            core,
            ends,
            passage,
            origin: OnceLock::new(),
            app: OnceLock::new(),
            received,
            sent,
            watch: Watch::default(),
        })
    }

    /// What the headers of its requests say of it.
    pub(crate) fn origin(&self) -> &Origin {
        let Ends { client, public } = self.ends;
        self.origin.get_or_init(|| Box::new(Origin::new(client, public, self.core.config.region)))
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

/// Why a connection ends that did not end by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Its handler stopped, or a drain's deadline came.
    Now,
    /// A drain asks it to end after what it does.
    Quiet,
    /// Its client took too long.
    Overdue,
}

/// Serves HTTP/1.1 until the client leaves or takes too long, the node drains, or `stopped`.
pub(crate) async fn http(core: Arc<Core>, ends: Ends, stream: TcpStream, stopped: &CancellationToken) {
    // Only delays small writes if it fails.
    let _slower = stream.set_nodelay(true);
    let connection = Connection::new(Arc::clone(&core), ends);
    let io = TokioIo::new(Joined(Counted { stream, connection: Arc::clone(&connection) }));
    let serving = Arc::clone(&connection);
    let service = service_fn(move |request| {
        let connection = Arc::clone(&serving);
        async move { Ok::<_, Infallible>(handle(&connection, request).await) }
    });
    // Its own limit for a head sets a timer for each request; `Watch` has one for the connection.
    let served = http1::Builder::new()
        .max_buf_size(core.config.max_head.max(8192))
        .max_header_size(core.config.max_head)
        .serve_connection(io, service);
    let mut served = pin!(served);
    let ended = match beside(served.as_mut(), end(&connection, stopped)).await {
        First::Busy(ended) => ended,
        First::Seldom(End::Now) => return,
        First::Seldom(End::Overdue) => {
            tracing::debug!(client = %ends.client, public = %ends.public, "the client took too long");
            return;
        }
        First::Seldom(End::Quiet) => {
            served.as_mut().graceful_shutdown();
            let forced = async {
                tokio::select! {
                    () = stopped.cancelled() => {}
                    () = connection.passage.era().forced.cancelled() => {}
                }
            };
            match beside(served.as_mut(), forced).await {
                First::Busy(ended) => ended,
                First::Seldom(()) => return,
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

/// Waits for a reason to end the connection.
async fn end(connection: &Connection, stopped: &CancellationToken) -> End {
    let era = connection.passage.era();
    let config = &connection.core.config;
    let limits = Limits { idle: config.keep_alive, head: config.head_timeout };
    tokio::select! {
        biased;
        () = stopped.cancelled() => End::Now,
        () = era.quiet.cancelled() => End::Quiet,
        () = connection.watch.overdue(limits) => End::Overdue,
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
        let read = buf.filled().len() - before;
        if read > 0 {
            self.connection.received.fetch_add(read as u64, Ordering::Relaxed);
            self.connection.watch.hear();
        }
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
