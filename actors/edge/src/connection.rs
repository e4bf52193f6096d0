//! A client's connection: HTTP on it, its counters, its end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use skein_core::headers::Origin;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::bell::{First, beside};
use crate::core::{Core, Passage};
use crate::counted::Counted;
use crate::hosts;
use crate::http2::{self, Streams};
use crate::metrics::AppCounters;
use crate::request::handle;
use crate::speech::{self, Speech};
use crate::tunnel::Tunnel;
use crate::watch::{Limits, Phase, Watch};

/// What hyper takes without being told; being told makes it allocate for more.
const DEFAULT_FIELDS: usize = 100;

/// How long a client may take to leave an idle HTTP/2 connection after it was asked to.
const LEAVE: Duration = Duration::from_secs(1);

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
    /// Told when an HTTP/2 client that came during a drain got its response.
    pub(crate) last: Notify,
    pub(crate) watch: Watch,
    /// What goes on once HTTP/1 has ended.
    tunnel: Mutex<Option<Box<Tunnel>>>,
    upgraded: AtomicBool,
    /// Whether a head had `Content-Length` twice.
    repeats_length: AtomicBool,
    /// Made for the first request: most connections that only wait have none.
    origin: OnceLock<Box<Origin>>,
    /// The app of the first request: bytes are counted for it.
    app: OnceLock<Arc<AppCounters>>,
    received: AtomicU64,
    sent: AtomicU64,
}

impl Connection {
    pub(crate) fn new(core: Arc<Core>, ends: Ends) -> Arc<Self> {
        let passage = core.gate.enter();
        Arc::new(Self {
            core,
            ends,
            passage,
            last: Notify::new(),
            watch: Watch::default(),
            tunnel: Mutex::default(),
            upgraded: AtomicBool::new(false),
            repeats_length: AtomicBool::new(false),
            origin: OnceLock::new(),
            app: OnceLock::new(),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
        })
    }

    /// What the headers of its requests say of it.
    pub(crate) fn origin(&self) -> &Origin {
        let Ends { client, public } = self.ends;
        self.origin.get_or_init(|| Box::new(Origin::new(client, public, self.core.config.region)))
    }

    /// An address of an app's own tells its limits before the first request does.
    fn meet_own_app(&self) {
        let snapshot = self.core.reader.load();
        let address = snapshot.registry.app_at(self.ends.public.ip());
        let app = address.and_then(|address| snapshot.apps.get(&address.app));
        if let Some((_, settings)) = app.and_then(|app| hosts::service(app, self.ends.public.port())) {
            self.watch.limit(settings.http_options.as_ref());
        }
    }

    fn limits(&self) -> Limits {
        let config = &self.core.config;
        Limits {
            idle: config.keep_alive,
            head: Some(config.head_timeout),
            body: config.body_timeout,
            write: config.write_timeout,
        }
    }

    /// A request for this app came.
    pub(crate) fn met(&self, app: &Arc<AppCounters>) {
        if self.app.set(Arc::clone(app)).is_ok() {
            app.connect();
        }
    }

    /// Takes note that its client took too long.
    fn cut_off(&self, phase: Phase) {
        let Ends { client, public } = self.ends;
        if phase == Phase::Idle {
            tracing::debug!(%client, %public, "connection unused for too long");
        } else {
            self.core.metrics.slow.fetch_add(1, Ordering::Relaxed);
            tracing::info!(%client, %public, waited_for = ?phase, "slow client cut off");
        }
    }

    /// Adds the bytes since the last time to the app's counters.
    pub(crate) fn flush(&self) {
        if let Some(app) = self.app.get() {
            app.data(self.received.swap(0, Ordering::Relaxed), self.sent.swap(0, Ordering::Relaxed));
        }
    }

    /// The connection goes on as a tunnel after this response.
    pub(crate) fn upgrade(&self, tunnel: Box<Tunnel>) {
        self.upgraded.store(true, Ordering::Relaxed);
        *self.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(tunnel);
    }

    fn tunnel(&self) -> Option<Box<Tunnel>> {
        self.tunnel.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether what comes is no HTTP any more.
    pub(crate) fn is_upgraded(&self) -> bool {
        self.upgraded.load(Ordering::Relaxed)
    }

    /// A head had `Content-Length` twice.
    pub(crate) fn repeats_length(&self) {
        self.repeats_length.store(true, Ordering::Relaxed);
    }

    /// Takes note of a client whose bytes are not what they should be.
    fn refused(&self, error: &dyn std::fmt::Display, fault: Option<h2::Reason>) {
        let Ends { client, public } = self.ends;
        let repeats_length = self.repeats_length.load(Ordering::Relaxed);
        self.core.metrics.malformed.fetch_add(1, Ordering::Relaxed);
        tracing::info!(%client, %public, %error, ?fault, repeats_length, "malformed request refused");
    }

    /// Bytes came, or none are there.
    pub(crate) fn received(&self, bytes: usize) {
        if bytes > 0 {
            self.received.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        self.watch.read(bytes);
    }

    /// Bytes went; `None` when they have to wait.
    pub(crate) fn sent(&self, bytes: Option<usize>) {
        self.watch.wrote(bytes.is_some());
        self.sent.fetch_add(bytes.unwrap_or(0) as u64, Ordering::Relaxed);
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
    Overdue(Phase),
}

/// Serves HTTP until the client leaves or takes too long, the node drains, or `stopped`. `speech` is
/// known when TLS has agreed on it; else the first bytes tell.
pub(crate) async fn http<S>(
    core: Arc<Core>,
    ends: Ends,
    stream: S,
    speech: Option<Speech>,
    stopped: &CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let connection = Connection::new(core, ends);
    connection.meet_own_app();
    let mut stream = Counted::new(stream, Arc::clone(&connection));
    let speech = match speech {
        Some(speech) => speech,
        None => {
            let quiet = connection.passage.era().quiet.cancelled();
            let end = end(&connection, stopped, quiet, connection.limits());
            let heard = match beside(pin!(speech::listen(&mut stream)), end).await {
                First::Busy(Ok(heard)) => heard,
                First::Seldom(End::Overdue(phase)) => return connection.cut_off(phase),
                First::Busy(Err(_)) | First::Seldom(End::Now | End::Quiet) => return,
            };
            stream.unread(heard.first);
            let Some(speech) = heard.speech else { return connection.refused(&"this is not HTTP", None) };
            speech
        }
    };
    if speech == Speech::Http1 {
        stream.watch_heads();
    }
    let io = TokioIo::new(stream);
    let ended = match speech {
        Speech::Http1 => http1(&connection, io, stopped).await,
        // Larger, and HTTP/1 has no need of the room.
        Speech::Http2 => Box::pin(http2(&connection, io, stopped)).await,
    };
    let Err(error) = ended else { return };
    let fault = http2::fault(&error);
    if error.is_parse() || fault.is_some() || connection.repeats_length.load(Ordering::Relaxed) {
        connection.refused(&error, fault);
    } else {
        tracing::debug!(client = %ends.client, %error, "connection ended");
    }
}

/// Waits for a reason to end the connection; `quiet` ends when a drain asks for it.
async fn end(
    connection: &Connection,
    stopped: &CancellationToken,
    quiet: impl Future<Output = ()>,
    limits: Limits,
) -> End {
    tokio::select! {
        biased;
        () = stopped.cancelled() => End::Now,
        () = quiet => End::Quiet,
        phase = connection.watch.overdue(limits) => End::Overdue(phase),
    }
}

/// Waits until the connection must end, whatever it does.
async fn forced(connection: &Connection, stopped: &CancellationToken) {
    tokio::select! {
        () = stopped.cancelled() => {}
        () = connection.passage.era().forced.cancelled() => {}
    }
}

type Io<S> = TokioIo<Counted<S>>;

async fn http1<S>(connection: &Arc<Connection>, io: Io<S>, stopped: &CancellationToken) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let config = &connection.core.config;
    let service = service_fn(|request: Request<Incoming>| async move {
        Ok::<_, Infallible>(handle(connection, request).await)
    });
    // Its own limit for a head sets a timer for each request; `Watch` has one for the connection.
    let mut builder = http1::Builder::new();
    builder.max_buf_size(config.max_head.max(8192)).max_header_size(config.max_head);
    if config.max_fields != DEFAULT_FIELDS {
        builder.max_headers(config.max_fields);
    }
    let served = builder.serve_connection(io, service).with_upgrades();
    let mut served = pin!(served);
    let came_late = connection.passage.is_last();
    let quiet = connection.passage.era().quiet.cancelled();
    match beside(served.as_mut(), end(connection, stopped, quiet, connection.limits())).await {
        First::Busy(ended) => ended?,
        First::Seldom(End::Now) => return Ok(()),
        First::Seldom(End::Overdue(phase)) => {
            connection.cut_off(phase);
            return Ok(());
        }
        First::Seldom(End::Quiet) => {
            served.as_mut().graceful_shutdown();
            match beside(served, forced(connection, stopped)).await {
                First::Busy(ended) => ended?,
                First::Seldom(()) => return Ok(()),
            }
        }
    }
    if let Some(tunnel) = connection.tunnel() {
        let leaving = async {
            match came_late {
                // The drain that it came during does not concern it.
                true => std::future::pending().await,
                false => connection.passage.era().last.cancelled().await,
            }
        };
        Box::pin(tunnel.run(connection, leaving, forced(connection, stopped))).await;
    }
    Ok(())
}

async fn http2<S>(connection: &Arc<Connection>, io: Io<S>, stopped: &CancellationToken) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let config = &connection.core.config;
    let (streams, _end) = Streams::new();
    let shared = Arc::clone(connection);
    let service = service_fn(move |request: Request<Incoming>| {
        let connection = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(handle(&connection, request).await) }
    });
    let served = config.http2.server(config.max_head, streams).serve_connection(io, service);
    let mut served = pin!(served);
    // Who comes while the node drains is answered once, as over HTTP/1.
    let came_late = connection.passage.is_last();
    let last = async {
        match came_late {
            true => connection.last.notified().await,
            false => connection.passage.era().last.cancelled().await,
        }
    };
    // Not every byte here begins a head; keep-alive pings find who is gone.
    let limits = Limits { head: None, ..connection.limits() };
    match beside(served.as_mut(), end(connection, stopped, last, limits)).await {
        First::Busy(ended) => return ended,
        First::Seldom(End::Now) => return Ok(()),
        // GOAWAY: what the client has already sent is answered, nothing new comes.
        First::Seldom(End::Quiet | End::Overdue(Phase::Idle | Phase::Head)) => {
            served.as_mut().graceful_shutdown();
        }
        // It would not even read a GOAWAY.
        First::Seldom(End::Overdue(phase)) => {
            connection.cut_off(phase);
            return Ok(());
        }
    }
    let over = async {
        loop {
            tokio::select! {
                () = forced(connection, stopped) => return,
                () = tokio::time::sleep(LEAVE) => if !connection.watch.is_busy() { return },
            }
        }
    };
    match beside(served, over).await {
        First::Busy(ended) => ended,
        First::Seldom(()) => Ok(()),
    }
}
