//! Connections to Machines that speak HTTP/2 (`h2_backend`): each carries many requests, on the core
//! that made it.
//!
//! A lane that was told to go away, ended or was unused for too long takes no request; a request that
//! the Machine says it did not look at may be sent again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_TYPE, HOST, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::uri::{Authority, Parts, Scheme};
use http::{HeaderValue, Request, Response, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use skein_cluster::clock;
use skein_core::code::ErrorCode;
use tokio_util::task::TaskTracker;

use crate::body::RequestBody;
use crate::config::EdgeConfig;
use crate::upstream::connect;
use crate::upstream::pool::Pool;

/// Requests at once on one connection, if the Machine takes that many; more open another one.
const STREAMS: usize = 100;
/// Bytes of a response that may wait here unread. A connection may hold that for each of its streams:
/// a client that does not read must not stop the others.
const STREAM_WINDOW: u32 = 256 << 10;
/// Bytes of a request that may wait for the Machine.
const SEND_BUFFER: usize = 64 << 10;
/// Trailers of gRPC, which no server announces.
const GRPC_TRAILERS: HeaderValue =
    HeaderValue::from_static("grpc-status, grpc-message, grpc-status-details-bin");
/// How long a Machine with requests on its way may be silent before it is asked, and to answer that.
const PING: Duration = Duration::from_secs(20);

/// All lanes of a worker.
#[derive(Debug)]
pub(crate) struct Lanes {
    shards: Box<[Mutex<Shard>]>,
    idle: Duration,
    connect_timeout: Duration,
    max_head: usize,
    /// Owns the tasks of connections.
    tasks: TaskTracker,
}

type Shard = BTreeMap<SocketAddr, ToAddress>;

#[derive(Debug, Default)]
struct ToAddress {
    open: Vec<Arc<Lane>>,
    /// Held by who dials: others wait for its connection.
    dialing: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct Lane {
    sender: SendRequest<RequestBody>,
    address: SocketAddr,
    /// Requests on it.
    load: AtomicUsize,
    /// Requests that the Machine takes at once.
    limit: AtomicUsize,
    /// When the last request ended, on the clock of [`clock::monotonic_ms`].
    used: AtomicU64,
}

/// A request's place on a lane, until it is dropped.
#[derive(Debug)]
pub(crate) struct Ride {
    lane: Arc<Lane>,
    /// Whether the connection carried requests before.
    pub(crate) reused: bool,
}

impl Ride {
    fn new(lane: &Arc<Lane>, reused: bool) -> Self {
        lane.load.fetch_add(1, Ordering::AcqRel);
        Self { lane: Arc::clone(lane), reused }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.lane.address
    }

    /// Sends a request and waits for the response's head.
    ///
    /// # Errors
    /// As [`SendRequest::try_send_request`].
    pub(crate) async fn send(
        &self,
        mut request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        to_http2(&mut request, self.lane.address);
        let mut response = self.lane.sender.clone().try_send_request(request).await?;
        announce(&mut response);
        Ok(response)
    }
}

impl Drop for Ride {
    fn drop(&mut self) {
        self.lane.used.store(clock::monotonic_ms(), Ordering::Relaxed);
        self.lane.load.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Lane {
    fn has_room(&self) -> bool {
        self.load.load(Ordering::Acquire) < self.limit.load(Ordering::Relaxed).min(STREAMS)
    }

    fn is_unused(&self, idle: Duration) -> bool {
        let since = clock::monotonic_ms().saturating_sub(self.used.load(Ordering::Relaxed));
        self.load.load(Ordering::Acquire) == 0 && Duration::from_millis(since) >= idle
    }
}

#[derive(Debug, Clone)]
struct Tasks(TaskTracker);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

impl Lanes {
    pub(crate) fn new(config: &EdgeConfig, tasks: TaskTracker) -> Self {
        Self {
            shards: (0..Pool::shards()).map(|_| Mutex::default()).collect(),
            idle: config.upstream_idle,
            connect_timeout: config.connect_timeout,
            max_head: config.max_head,
            tasks,
        }
    }

    fn with<T>(&self, shard: usize, f: impl FnOnce(&mut Shard) -> T) -> T {
        let shard = &self.shards[shard % self.shards.len()];
        f(&mut shard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A place on a connection to `address`.
    ///
    /// # Errors
    /// The code that names why there is none.
    pub(crate) async fn ride(self: &Arc<Self>, address: SocketAddr) -> Result<Ride, ErrorCode> {
        let shard = Pool::own();
        let dialing = match self.take(shard, address, true) {
            Ok(ride) => return Ok(ride),
            Err(dialing) => dialing,
        };
        let _turn = dialing.lock().await;
        match self.take(shard, address, false) {
            Ok(ride) => Ok(ride),
            Err(_) => self.dial(shard, address).await,
        }
    }

    /// A place on an open connection, or the turn to dial.
    fn take(
        &self,
        shard: usize,
        address: SocketAddr,
        reused: bool,
    ) -> Result<Ride, Arc<tokio::sync::Mutex<()>>> {
        self.with(shard, |shard| {
            let to = shard.entry(address).or_default();
            to.open.retain(|lane| !lane.sender.is_closed());
            match to.open.iter().find(|lane| lane.has_room()) {
                Some(lane) => Ok(Ride::new(lane, reused)),
                None => Err(Arc::clone(&to.dialing)),
            }
        })
    }

    async fn dial(self: &Arc<Self>, shard: usize, address: SocketAddr) -> Result<Ride, ErrorCode> {
        let stream = connect::tcp(address, self.connect_timeout).await?;
        let (sender, mut connection) = Builder::new(Tasks(self.tasks.clone()))
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(STREAM_WINDOW * STREAMS as u32)
            .max_header_list_size(u32::try_from(self.max_head).unwrap_or(u32::MAX))
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|_| ErrorCode::PC06)?;
        let lane = Arc::new(Lane {
            sender,
            address,
            load: AtomicUsize::new(0),
            limit: AtomicUsize::new(STREAMS),
            used: AtomicU64::new(clock::monotonic_ms()),
        });
        let ride = Ride::new(&lane, false);
        self.with(shard, |shard| shard.entry(address).or_default().open.push(Arc::clone(&lane)));
        let lanes = Arc::clone(self);
        self.tasks.spawn(async move {
            let mut ended = pin!(std::future::poll_fn(|cx| {
                let polled = std::pin::Pin::new(&mut connection).poll(cx);
                lane.limit.store(connection.current_max_send_streams(), Ordering::Relaxed);
                polled
            }));
            let ended = loop {
                tokio::select! {
                    biased;
                    ended = &mut ended => break ended,
                    () = tokio::time::sleep(lanes.idle) => {
                        if lanes.remove(shard, &lane, |lane| lane.is_unused(lanes.idle)) {
                            // The last handle to an unused connection: it closes.
                            break Ok(());
                        }
                    }
                }
            };
            lanes.remove(shard, &lane, |_| true);
            if let Err(error) = ended {
                // The requests on it met the same error and answer for it.
                tracing::debug!(%address, %error, "connection to a Machine ended");
            }
        });
        Ok(ride)
    }

    /// Takes a lane out, if it is still so; answers whether it was.
    fn remove(&self, shard: usize, lane: &Arc<Lane>, still: impl Fn(&Lane) -> bool) -> bool {
        self.with(shard, |shard| {
            let Some(to) = shard.get_mut(&lane.address) else { return false };
            let before = to.open.len();
            to.open.retain(|other| !(Arc::ptr_eq(other, lane) && still(lane)));
            let removed = to.open.len() < before;
            if to.open.is_empty() && Arc::strong_count(&to.dialing) == 1 {
                shard.remove(&lane.address);
            }
            removed
        })
    }
}

/// Makes an HTTP/1.1 head one of HTTP/2 (RFC 9113 section 8.3.1).
fn to_http2(request: &mut Request<RequestBody>, address: SocketAddr) {
    *request.version_mut() = Version::HTTP_2;
    let headers = request.headers_mut();
    headers.remove(CONNECTION);
    headers.remove(TRANSFER_ENCODING);
    headers.remove(UPGRADE);
    let host = headers.remove(HOST);
    let named = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let mut parts = Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = named.or_else(|| address.to_string().parse().ok());
    parts.path_and_query = request.uri().path_and_query().cloned();
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
}

/// Announces the trailers of gRPC: HTTP/1 carries no others than those announced.
fn announce(response: &mut Response<Incoming>) {
    let headers = response.headers_mut();
    let grpc = headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if grpc && !headers.contains_key(TRAILER) {
        headers.insert(TRAILER, GRPC_TRAILERS);
    }
}

/// Whether the Machine says that it did not look at a request: it refused the stream, or went away
/// before it came to it (RFC 9113 sections 5.4.1 and 6.8).
pub(crate) fn is_unseen(error: &hyper::Error) -> bool {
    let error = std::error::Error::source(error).and_then(|error| error.downcast_ref::<h2::Error>());
    error.is_some_and(|error| {
        let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        error.is_remote() && (refused || error.is_go_away())
    })
}
