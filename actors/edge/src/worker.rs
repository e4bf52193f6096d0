//! The worker: takes requests for the Machines of this node (SPEC LB-5, LB-6, HTTP-10).
//!
//! It is the truth about a Machine: it admits by one compare-and-swap and makes the connection
//! before anything of a body is read, so whatever it refuses can go elsewhere whole. Requests of this
//! node's own edge and of other edges take the same way.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use skein_cluster::admission::{Admission, Asked, admit};
use skein_cluster::backhaul::Backhaul;
use skein_cluster::{LocalMachine, LocalReader, clock};
use skein_core::code::ErrorCode;
use skein_core::load::Permit;
use skein_core::region::Regions;
use skein_core::wire::{RefuseReason, Refused, Target};
use skein_core::{MachineId, strict};
use tokio_util::task::TaskTracker;

use crate::body::{BodyError, RequestBody};
use crate::config::EdgeConfig;
use crate::hints::Hints;
use crate::queue::Queue;
use crate::upstream::lane::{self, Lanes};
use crate::upstream::pool::Pool;
use crate::upstream::{Line, connect};

#[derive(Debug)]
pub(crate) struct Worker {
    local: LocalReader,
    pool: Arc<Pool>,
    lanes: Arc<Lanes>,
    tasks: TaskTracker,
    draining: AtomicBool,
    hints: Arc<Hints>,
    connect_timeout: std::time::Duration,
    max_head: usize,
}

/// A Machine that took a request: its slot, and a connection to it.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) machine: Arc<LocalMachine>,
    permit: Permit,
    line: Line,
    /// Whether the connection carried requests before.
    reused: bool,
    /// Where the connection goes afterwards; `None` for services that count connections.
    pool: Option<Arc<Pool>>,
}

/// Why an admitted request got no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: ErrorCode,
    /// Whether the app may have seen the request.
    pub(crate) reached_app: bool,
    /// Whether the connection was an old one that the Machine may have closed at the same moment:
    /// then nothing speaks against the Machine.
    pub(crate) stale: bool,
}

impl Worker {
    pub(crate) fn new(
        config: &EdgeConfig,
        local: LocalReader,
        backhaul: Backhaul,
        queue: Arc<Queue>,
        regions: Arc<Regions>,
    ) -> Self {
        let tasks = TaskTracker::new();
        let hints = Hints {
            node: config.node,
            region: config.region,
            regions,
            local: local.clone(),
            backhaul,
            queue,
            tasks: tasks.clone(),
            useful: AtomicU64::new(0),
        };
        Self {
            local,
            pool: Arc::new(Pool::new(config.upstream_idle, tasks.clone())),
            lanes: Arc::new(Lanes::new(config, tasks.clone())),
            tasks,
            draining: AtomicBool::new(false),
            hints: Arc::new(hints),
            connect_timeout: config.connect_timeout,
            max_head: config.max_head,
        }
    }

    pub(crate) fn local(&self) -> &LocalReader {
        &self.local
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Hints to edges, this one's included, that found somebody waiting.
    pub(crate) fn hints(&self) -> &AtomicU64 {
        &self.hints.useful
    }

    /// Owns the tasks that drive connections and send bodies.
    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    pub(crate) fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Release);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Takes a request or connection for a Machine of the app, unless this node drains.
    ///
    /// # Errors
    /// [`Refused`]: nothing reached the Machine.
    pub(crate) fn admit(&self, asked: Asked, now: Instant) -> Result<Admission, Refused> {
        if self.is_draining() {
            return Err(Refused { reason: RefuseReason::Draining, age_ms: 0, load: 0 });
        }
        admit(&self.local.load(), asked, now).inspect_err(|refused| {
            if refused.reason == RefuseReason::Full {
                self.hints.watch(asked);
            }
        })
    }

    /// Takes a request: a Machine, a slot, and a connection that is ready for a head.
    ///
    /// # Errors
    /// [`Refused`]: nothing reached the Machine.
    pub(crate) async fn seat(&self, asked: Asked, now: Instant) -> Result<Seat, Refused> {
        let Admission { machine, service, permit } = self.admit(asked, now)?;
        let Endpoint { address, pooled, http2 } =
            endpoint(&machine, service, asked.port, permit.in_flight())?;
        let pool = (pooled && !http2).then(|| Arc::clone(&self.pool));
        if let Some(connection) = pool.as_ref().and_then(|pool| pool.take(address, now)) {
            return Ok(Seat { machine, permit, line: Line::Own(connection), reused: true, pool });
        }
        // Seldom needed, and large.
        let line = match http2 {
            true => Box::pin(self.lanes.ride(address)).await.map(|ride| (ride.reused, Line::Lane(ride))),
            false => Box::pin(connect::http1(address, self.connect_timeout, self.max_head))
                .await
                .map(|connection| (false, Line::Own(connection))),
        };
        match line {
            Ok((reused, line)) => Ok(Seat { machine, permit, line, reused, pool }),
            Err(code) => {
                Err(Refused { reason: RefuseReason::Connect(code), age_ms: 0, load: permit.in_flight() - 1 })
            }
        }
    }

    /// Takes a raw connection.
    ///
    /// # Errors
    /// [`Refused`]: nothing reached the Machine.
    pub(crate) async fn raw(
        &self,
        asked: Asked,
    ) -> Result<(Arc<LocalMachine>, Permit, tokio::net::TcpStream), Refused> {
        let Admission { machine, service, permit } = self.admit(asked, clock::now())?;
        let Endpoint { address, .. } = endpoint(&machine, service, asked.port, permit.in_flight())?;
        let stream = connect::tcp(address, self.connect_timeout).await.map_err(|code| Refused {
            reason: RefuseReason::Connect(code),
            age_ms: 0,
            load: permit.in_flight() - 1,
        })?;
        Ok((machine, permit, stream))
    }
}

/// The target of the lines that tell what a worker refused: DEBUG, since a full Machine refuses often.
const REFUSED: &str = "skein::refused";

/// Writes down what this worker did not take, with the request's id: what `skein explain` tells of it can be
/// compared.
pub(crate) fn log_refusal(request: &str, asked: Asked, refused: &Refused) {
    let machine = match asked.target {
        Target::Machine(machine) => Some(tracing::field::display(machine)),
        Target::Any => None,
    };
    let Refused { reason, load, age_ms } = refused;
    let edge = asked.edge.0;
    tracing::debug!(target: REFUSED, request, machine, edge, ?reason, load, age_ms, "refused");
}

/// How a service of a Machine is reached.
struct Endpoint {
    address: SocketAddr,
    /// Whether its connections are kept for further requests.
    pooled: bool,
    /// Whether it speaks HTTP/2.
    http2: bool,
}

fn endpoint(machine: &LocalMachine, service: usize, port: u16, load: u32) -> Result<Endpoint, Refused> {
    let refused = Refused { reason: RefuseReason::NoService, age_ms: 0, load };
    let service = machine.config.services.get(service).ok_or(refused.clone())?;
    let address = machine.upstream.address(service.internal_port).ok_or(refused)?;
    let options = service.port(port).and_then(|port| port.http_options.as_ref());
    let http2 = options.is_some_and(|options| options.h2_backend);
    Ok(Endpoint { address, pooled: service.counts_requests(), http2 })
}

impl Seat {
    pub(crate) fn machine(&self) -> MachineId {
        self.machine.id
    }

    /// What is in flight at the Machine, this request included.
    pub(crate) fn load(&self) -> u32 {
        self.permit.in_flight()
    }

    /// The Machine's address.
    pub(crate) fn address(&self) -> SocketAddr {
        self.line.address()
    }

    /// Sends the request and waits for the response's head; also says what was in flight then. `tasks`
    /// sends the rest of a request whose response comes first.
    ///
    /// # Errors
    /// [`Failure`]; the slot is given back.
    pub(crate) async fn send(
        mut self,
        mut request: Request<RequestBody>,
        tasks: &TaskTracker,
    ) -> Result<(Response<MachineBody>, u32), Failure> {
        let request_done = request.body().done();
        let sent = match &mut self.line {
            Line::Own(connection) => {
                // Whatever the client spoke: the Machine gets HTTP/1.1.
                *request.version_mut() = Version::HTTP_11;
                connection.send(request).await
            }
            // Seldom needed, and large.
            Line::Lane(ride) => Box::pin(ride.send(request)).await,
        };
        let response = sent.map_err(|mut error| {
            let unsent = error.take_message().is_some();
            failure(&error.into_error(), !unsent, self.reused)
        })?;
        let load = self.permit.in_flight();
        let (mut head, incoming) = response.into_parts();
        if let Err(error) = strict::check_response(&mut head.headers) {
            tracing::debug!(machine = %self.machine.id, %error, "a Machine's response is refused");
            return Err(Failure { code: ErrorCode::PU01, reached_app: true, stale: false });
        }
        // A connection that answered HTTP/1.0 is never used again (SPEC HTTP-10).
        let reusable = head.version == Version::HTTP_11;
        let mut line = self.line;
        if !is_done(request_done.as_ref()) {
            line.detach(tasks);
        }
        let pool = self.pool.filter(|_| reusable);
        let rest = Rest { permit: self.permit, line, pool, request_done };
        let mut body = MachineBody { incoming, rest: Some(rest) };
        if body.incoming.is_end_stream() && head.status != StatusCode::SWITCHING_PROTOCOLS {
            body.complete();
        }
        Ok((Response::from_parts(head, body), load))
    }
}

/// Whether a request's body, if any, was sent.
fn is_done(request: Option<&Arc<AtomicBool>>) -> bool {
    request.is_none_or(|done| done.load(Ordering::Acquire))
}

fn failure(error: &hyper::Error, sent: bool, reused: bool) -> Failure {
    if lane::is_unseen(error) {
        return Failure { code: ErrorCode::PU02, reached_app: false, stale: true };
    }
    let code = if error.is_parse() {
        ErrorCode::PU01
    } else if error.is_user() || error.is_body_write_aborted() {
        ErrorCode::PU03
    } else {
        ErrorCode::PU02
    };
    let stale = reused && (!sent || code == ErrorCode::PU02);
    Failure { code, reached_app: sent, stale }
}

/// A Machine's response body. The slot is given back when it ends or is dropped; the connection goes
/// back to the pool only when both sides of the exchange are complete.
#[derive(Debug)]
pub(crate) struct MachineBody {
    incoming: Incoming,
    rest: Option<Rest>,
}

#[derive(Debug)]
struct Rest {
    permit: Permit,
    line: Line,
    /// Where the connection goes, if it may.
    pool: Option<Arc<Pool>>,
    request_done: Option<Arc<AtomicBool>>,
}

impl MachineBody {
    /// The connection behind an answer that changed its protocol, and the slot.
    pub(crate) async fn upgrade(mut self, upgrade: OnUpgrade) -> Option<(TokioIo<Upgraded>, Permit)> {
        let Rest { permit, line, .. } = self.rest.take()?;
        match line {
            Line::Own(connection) => connection.let_go().await,
            Line::Lane(_) => return None,
        }
        let upgraded = upgrade.await.ok()?;
        Some((TokioIo::new(upgraded), permit))
    }

    fn complete(&mut self) {
        let Some(Rest { permit, line, pool, request_done }) = self.rest.take() else { return };
        drop(permit);
        if let (Line::Own(connection), Some(pool), true) = (line, pool, is_done(request_done.as_ref())) {
            pool.give(connection, clock::now());
        }
    }
}

impl Body for MachineBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let polled = match &mut this.rest {
            Some(rest) => rest.line.poll_body(&mut this.incoming, cx),
            None => return Poll::Ready(None),
        };
        match ready!(polled) {
            Some(Ok(frame)) => {
                // Nothing comes after trailers, and nobody asks.
                if self.incoming.is_end_stream() || frame.is_trailers() {
                    self.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(_)) => {
                self.rest = None;
                Poll::Ready(Some(Err(BodyError::Upstream)))
            }
            None => {
                self.complete();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
