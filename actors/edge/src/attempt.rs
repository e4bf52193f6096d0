//! One attempt: a request to one Machine, here or on another node.
//!
//! Both ways run the same worker code; the wire only carries it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::header::TRANSFER_ENCODING;
use http::{HeaderMap, Method, Request, StatusCode, Uri, response};
use hyper::upgrade::OnUpgrade;
use skein_cluster::admission::Asked;
use skein_cluster::backhaul::{FrameReceiver, FrameSender, OpenError, StreamError};
use skein_cluster::clock;
use skein_core::code::ErrorCode;
use skein_core::headers::TRACEPARENT;
use skein_core::relay;
use skein_core::retry::{self, Failure};
use skein_core::snapshot::{MachineView, Snapshot};
use skein_core::suspicion::Proximity;
use skein_core::wire::{Frame, Preamble, Protocol, Refused, RequestHead, Reset, Target};
use skein_core::{AppId, NodeNumber, attr};

use crate::body::{KeptBody, KeptReader, RequestBody};
use crate::client_body::{Answer, Held, Stopper};
use crate::connection::Ends;
use crate::core::Core;
use crate::frames::{FrameBody, PumpError, pump};
use crate::queue::Place;
use crate::trace::Trace;
use crate::tunnel::Far;
use crate::worker::{Seat, log_refusal};

/// A request that is to be answered, as the Machine will see it.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) ends: Ends,
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) target: Uri,
    /// For the Machine; `traceparent` is set per attempt.
    pub(crate) headers: HeaderMap,
    pub(crate) body: Option<KeptBody>,
    /// The client's connection, when the request asks to change its protocol.
    pub(crate) upgrade: Option<OnUpgrade>,
    /// Whether the client waits for 100 before it sends the body.
    pub(crate) expects: bool,
    pub(crate) request_id: Arc<str>,
    /// Attempts before this one.
    pub(crate) resend: u32,
    /// How many replays came before, and what the last one named.
    pub(crate) hop: Option<(u32, &'static str)>,
    /// The node that passes the attempt on, when one does.
    pub(crate) relayed: Option<NodeNumber>,
    /// Its place in the queue, until a Machine has it.
    pub(crate) place: Option<Box<Place>>,
    /// By when a Machine must have it.
    pub(crate) deadline: Instant,
}

/// Where an attempt goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Aim<'a> {
    pub(crate) app: AppId,
    pub(crate) machine: &'a MachineView,
    /// Whether another Machine could take the request, on a node that answers: then a node that
    /// falls silent is given up.
    pub(crate) alternatives: bool,
    /// When that was decided.
    pub(crate) now: Instant,
}

/// What came of an attempt.
#[derive(Debug)]
pub(crate) enum Outcome {
    Answered(Box<Answered>),
    Failed(Failed),
}

/// A response's head has come.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) head: response::Parts,
    pub(crate) answer: Answer,
    /// What was in flight at the Machine.
    pub(crate) load: u32,
    pub(crate) held: Held,
}

/// No response came.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) failure: Failure,
    /// What is told of it.
    pub(crate) code: ErrorCode,
    /// What was in flight at the Machine, if it said.
    pub(crate) load: Option<u32>,
    /// Nothing speaks against the Machine: it closed an old connection at the same moment.
    pub(crate) stale: bool,
}

impl Failed {
    fn broken(code: ErrorCode, reached_app: bool) -> Outcome {
        let failure = Failure::Broken { code, reached_app };
        Outcome::Failed(Self { failure, code, load: None, stale: false })
    }

    fn refused(refused: &Refused) -> Outcome {
        Outcome::Failed(Self {
            failure: Failure::Refused(refused.reason),
            code: retry::refused_code(refused),
            load: Some(refused.load),
            stale: false,
        })
    }

    /// The node did not answer; with another way there nothing speaks against the Machine.
    fn unreachable(stale: bool) -> Outcome {
        let (failure, code) = (Failure::Unreachable, Failure::Unreachable.code());
        Outcome::Failed(Self { failure, code, load: None, stale })
    }
}

impl Exchange {
    fn reader(&self) -> Option<KeptReader> {
        self.body.as_ref().map(KeptBody::reader)
    }

    /// A worker has taken it.
    fn admitted(&mut self) {
        self.place = None;
        if let Some(body) = &self.body {
            body.admit();
        }
    }

    /// The headers for an attempt. It gets the map that has room for more: hyper goes on to use it.
    fn headers(&mut self, trace: Option<&Trace>) -> HeaderMap {
        let kept = self.headers.clone();
        let mut headers = std::mem::replace(&mut self.headers, kept);
        if let Some(context) = trace.and_then(Trace::header) {
            headers.insert(TRACEPARENT, context);
        }
        headers
    }

    /// Which attempt a span is of.
    fn note(&self, span: &Trace) {
        if self.resend > 0 {
            span.set(attr::RESEND, || i64::from(self.resend));
        }
        if let Some((hop, kind)) = self.hop {
            span.set(attr::REPLAY_HOP, || i64::from(hop));
            span.set(attr::REPLAY_KIND, || kind);
        }
    }

    pub(crate) fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(clock::now())
    }

    /// Sends the request to a Machine of this node.
    pub(crate) async fn local(&mut self, core: &Core, aim: Aim<'_>, trace: &Trace) -> Outcome {
        let target = Target::Machine(aim.machine.record.id);
        let port = self.ends.public.port();
        let asked = Asked { app: aim.app, port, target, hops: 0, edge: core.config.node };
        let seat = match core.worker.seat(asked, aim.now).await {
            Ok(seat) => seat,
            Err(refused) => {
                log_refusal(&self.request_id, asked, &refused);
                return Failed::refused(&refused);
            }
        };
        let span = machine_span(trace, self.method.as_str(), &seat);
        self.note(&span);
        let body = self.reader().map_or_else(RequestBody::empty, RequestBody::kept);
        self.admitted();
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.target.clone();
        *request.headers_mut() = self.headers(Some(&span));
        let machine = seat.machine();
        match seat.send(request, core.worker.tasks()).await {
            Ok((response, load)) => {
                let (mut head, body) = response.into_parts();
                note_status(&span, head.status);
                let held = Held { in_flight: None, _upload: None, _trace: Some(span) };
                let upgrade = self.upgrade.as_ref().and_then(|_| head.extensions.remove::<OnUpgrade>());
                let body = Box::new(body);
                let answer = match upgrade {
                    Some(upgrade) => Answer::Upgraded(Box::new(Far::Here { machine, body, upgrade })),
                    None => Answer::Machine(body),
                };
                Outcome::Answered(Box::new(Answered { head, answer, load, held }))
            }
            Err(failure) => {
                span.fail(failure.code.as_str());
                Outcome::Failed(Failed {
                    failure: Failure::Broken { code: failure.code, reached_app: failure.reached_app },
                    code: failure.code,
                    load: None,
                    stale: failure.stale,
                })
            }
        }
    }

    /// Sends the request to a Machine of another node: straight there, or through a node in between while
    /// this one can't reach it (SPEC LB-8).
    pub(crate) async fn remote(
        &mut self,
        core: &Core,
        snapshot: &Snapshot,
        aim: Aim<'_>,
        trace: &Trace,
    ) -> Outcome {
        let target = aim.machine.node;
        let around = || relay::via(snapshot, &*core.peers, &core.regions, core.config.node, target);
        let via = if core.peers.suspect(target) { around() } else { None };
        self.relayed = via;
        let node = via.unwrap_or(target);
        let span = trace.backhaul();
        if let Some(via) = via {
            core.metrics.relayed.fetch_add(1, Ordering::Relaxed);
            span.set(attr::RELAY, || i64::from(via.0));
        }
        span.set(attr::TRANSPORT, || "quic");
        span.set(attr::REGION, || aim.machine.region.to_string());
        span.set(attr::MACHINE, || aim.machine.record.id.to_string());
        self.note(&span);
        let traceparent = span.traceparent();
        // A node that traces makes the Machine's context itself.
        let headers = self.headers(traceparent.is_none().then_some(&span));
        let mut preamble = self.preamble(core, aim, traceparent);
        preamble.relay = via.map(|_| target);
        let head =
            RequestHead { method: self.method.as_str().to_owned(), target: self.target.to_string(), headers };
        let reader = self.reader();
        let whole = reader.is_none() && self.upgrade.is_none();
        let last = whole.then_some(Frame::Trailers(Vec::new()));
        let sent = [Frame::RequestHead(head)].into_iter().chain(last);

        let silent = async {
            core.peers.until_suspect(node).await;
            // Whoever has no other way waits for this one.
            if !aim.alternatives && around().is_none_or(|other| Some(other) == via) {
                std::future::pending::<()>().await;
            }
        };
        tokio::pin!(silent);
        let opened = tokio::select! {
            biased;
            opened = core.backhaul.open_with(node, preamble, sent) => opened,
            () = &mut silent => Err(OpenError::Timeout(node)),
        };
        let stream = match opened {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%node, %error, "no stream");
                span.fail("unreachable");
                return Failed::unreachable(around().is_some_and(|other| Some(other) != via));
            }
        };
        let (mut sender, mut receiver) = stream.split();
        let mut waiting = None;
        let upload = match reader {
            Some(reader) => Some(Stopper(core.worker.tasks().spawn(upload(reader, sender)))),
            None if self.upgrade.is_some() => {
                waiting = Some(sender);
                None
            }
            None => {
                // The message is whole; a stream that is gone already shows when reading.
                let _gone = sender.finish();
                None
            }
        };
        let idempotent = self.method.is_idempotent();
        let mut admitted = false;
        loop {
            let frame = tokio::select! {
                biased;
                frame = receiver.next() => frame,
                () = &mut silent, if idempotent => {
                    span.fail("suspect");
                    let code = ErrorCode::PM02;
                    let failure = Failure::Broken { code, reached_app: true };
                    let stale = around().is_some_and(|other| Some(other) != via);
                    return Outcome::Failed(Failed { failure, code, load: None, stale });
                }
                () = tokio::time::sleep_until(self.deadline.into()), if !admitted => {
                    span.fail("timeout");
                    return Failed::broken(ErrorCode::PM02, true);
                }
            };
            match frame {
                Ok(Some(Frame::Admitted(told))) if !admitted => {
                    admitted = true;
                    aim.machine.estimate.tell(told.load, core.now_ms());
                    self.admitted();
                }
                Ok(Some(Frame::Refused(refused))) if !admitted => {
                    span.fail("refused");
                    span.set(attr::ERROR_CODE, || retry::refused_code(&refused).as_str());
                    return Failed::refused(&refused);
                }
                Ok(Some(Frame::ResponseHead(head))) if admitted => {
                    let (load, whole) = (head.load, head.whole);
                    let Some(parts) = parts(head) else { return Failed::broken(ErrorCode::PU01, true) };
                    note_status(&span, parts.status);
                    let held = Held { in_flight: None, _upload: upload, _trace: Some(span) };
                    let answer = match waiting.take() {
                        Some(sender) if parts.status == StatusCode::SWITCHING_PROTOCOLS => {
                            match upgraded(receiver, sender).await {
                                Some(far) => Answer::Upgraded(Box::new(far)),
                                None => return Failed::broken(ErrorCode::PM02, true),
                            }
                        }
                        _ if whole => Answer::Own(None),
                        _ => Answer::Frames(Box::new(FrameBody::new(receiver))),
                    };
                    return Outcome::Answered(Box::new(Answered { head: parts, answer, load, held }));
                }
                Ok(Some(Frame::Reset(Reset { code, reached_app }))) => {
                    span.fail(code.as_str());
                    // What the app has not seen says nothing against the Machine: its connection was
                    // old, or it refused a stream.
                    return Outcome::Failed(Failed {
                        failure: Failure::Broken { code, reached_app },
                        code,
                        load: None,
                        stale: !reached_app,
                    });
                }
                Ok(_) => {
                    span.fail("protocol");
                    return Failed::broken(ErrorCode::PM02, true);
                }
                Err(error) => {
                    tracing::debug!(%node, %error, "stream broke");
                    span.fail("stream");
                    let code = match error {
                        StreamError::Lost(_) => ErrorCode::PM02,
                        // Behind the node in between the way broke.
                        StreamError::Reset(_) if via.is_some() => ErrorCode::PM02,
                        StreamError::Reset(_)
                        | StreamError::Truncated
                        | StreamError::Garbage(_)
                        | StreamError::Closed => ErrorCode::PU02,
                    };
                    return Failed::broken(code, true);
                }
            }
        }
    }

    fn preamble(&self, core: &Core, aim: Aim<'_>, traceparent: Option<String>) -> Preamble {
        Preamble {
            app: aim.app,
            port: self.ends.public.port(),
            protocol: Protocol::Http,
            target: Target::Machine(aim.machine.record.id),
            deadline_ms: u32::try_from(self.left().as_millis()).unwrap_or(u32::MAX),
            relay: None,
            hops: 0,
            edge: core.config.node,
            edge_region: core.config.region,
            client: self.ends.client,
            public: self.ends.public,
            request_id: self.request_id.as_ref().to_owned(),
            traceparent,
        }
    }
}

/// Agrees with the worker that raw bytes follow.
async fn upgraded(mut receiver: FrameReceiver, mut sender: FrameSender) -> Option<Far> {
    if !matches!(receiver.next().await, Ok(Some(Frame::Upgraded))) {
        return None;
    }
    sender.send(Frame::Upgraded).await.ok()?;
    Some(Far::There { receiver, sender })
}

async fn upload(reader: KeptReader, mut sender: FrameSender) {
    match pump([], reader, &mut sender).await {
        Ok(()) => {}
        Err(PumpError::Body) => {
            let reset = Frame::Reset(Reset { code: ErrorCode::PU03, reached_app: true });
            if sender.send(reset).await.is_ok() {
                // As in `pump`.
                let _closed = sender.finish();
            }
        }
        // Whoever reads the response meets the same error.
        Err(PumpError::Stream(error)) => tracing::debug!(%error, "upload ended"),
    }
}

fn parts(head: skein_core::wire::ResponseHead) -> Option<response::Parts> {
    let mut response = http::Response::new(());
    *response.status_mut() = StatusCode::from_u16(head.status).ok()?;
    *response.headers_mut() = head.headers;
    Some(response.into_parts().0)
}

/// The span of a request to a Machine of this node.
pub(crate) fn machine_span(trace: &Trace, method: &str, seat: &Seat) -> Trace {
    let span = trace.machine(method);
    span.set(attr::METHOD, || method.to_owned());
    span.set(attr::MACHINE, || seat.machine().to_string());
    span.set(attr::SERVER_ADDRESS, || seat.address().ip().to_string());
    span.set(attr::SERVER_PORT, || i64::from(seat.address().port()));
    span
}

/// Client spans fail from 400 on.
pub(crate) fn note_status(span: &Trace, status: StatusCode) {
    span.set(attr::STATUS, || i64::from(status.as_u16()));
    if status.as_u16() >= 400 {
        span.fail(if status.as_u16() >= 500 { "5xx" } else { "4xx" });
    }
}

/// Whether a request has a body, by its head.
pub(crate) fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(TRANSFER_ENCODING)
        || headers
            .get(http::header::CONTENT_LENGTH)
            .is_some_and(|length| length.as_bytes().iter().any(|digit| *digit != b'0'))
}
