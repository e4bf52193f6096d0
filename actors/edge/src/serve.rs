//! The worker's end of a stream: what another node's edge sends is served like a local request.

use std::pin::pin;
use std::time::Duration;

use http::header::{TRANSFER_ENCODING, UPGRADE};
use http::{Method, Request, StatusCode, Uri};
use http_body::Body as _;
use hyper::upgrade::OnUpgrade;
use skein_cluster::admission::Asked;
use skein_cluster::backhaul::{FrameReceiver, FrameSender, FrameStream};
use skein_cluster::clock;
use skein_core::code::ErrorCode;
use skein_core::headers::TRACEPARENT;
use skein_core::wire::{Admitted, Frame, Preamble, Protocol, RequestHead, Reset, ResponseHead};
use skein_core::{MachineId, NodeNumber, attr};

use crate::attempt::{has_body, machine_span, note_status};
use crate::body::RequestBody;
use crate::core::{Core, Passage};
use crate::frames::{FrameBody, PumpError, pump};
use crate::pass_on::pass_on;
use crate::relay::{Manner, relay};
use crate::trace::Trace;
use crate::tunnel::is_websocket;
use crate::worker::{Failure, MachineBody, Seat, log_refusal};

/// How long an edge waits at most for the word that its request was admitted: a response that comes
/// sooner brings it along, in one packet instead of two. Who sends a body hears it at once.
const WORD_WITHIN: Duration = Duration::from_millis(5);

/// Serves a request or connection that `peer` sent for a Machine of this node.
pub(crate) async fn serve(core: &Core, peer: NodeNumber, preamble: Preamble, stream: FrameStream) {
    let passage = core.gate.enter();
    if let Some(to) = preamble.relay.filter(|to| *to != core.config.node) {
        return Box::pin(pass_on(core, to, preamble, stream, &passage)).await;
    }
    let (mut sender, receiver) = stream.split();
    let ended = match preamble.protocol {
        Protocol::Http => {
            let served = http(core, &preamble, &mut sender, receiver);
            let ended = tokio::select! {
                biased;
                () = passage.era().forced.cancelled() => Ok(None),
                ended = served => ended,
            };
            match ended {
                Ok(Some(upgrading)) => {
                    upgrading.run(core, &passage, sender).await;
                    return;
                }
                ended => ended.map(|_| ()),
            }
        }
        Protocol::Tcp => {
            crate::raw::serve(core, &preamble, sender, receiver, &passage).await;
            return;
        }
    };
    if let Err(error) = ended {
        // The edge sees the same end and answers its client.
        tracing::debug!(%peer, request = preamble.request_id, ?error, "stream ended early");
    }
}

async fn http(
    core: &Core,
    preamble: &Preamble,
    sender: &mut FrameSender,
    mut receiver: FrameReceiver,
) -> Result<Option<Upgrading>, PumpError> {
    let trace = preamble.traceparent.as_deref().and_then(Trace::resume);
    if let Some(trace) = &trace {
        trace.set(attr::REQUEST_ID, || preamble.request_id.clone());
        trace.set(attr::NODE, || core.config.node_name.to_string());
        trace.set(attr::REGION, || core.config.region.to_string());
    }
    let seat = match core.worker.seat(asked(preamble), clock::now()).await {
        Ok(seat) => seat,
        Err(refused) => {
            log_refusal(&preamble.request_id, asked(preamble), &refused);
            if let Some(trace) = &trace {
                trace.fail("refused");
            }
            sender.send(Frame::Refused(refused)).await.map_err(PumpError::Stream)?;
            // As in `pump`.
            let _closed = sender.finish();
            return Ok(None);
        }
    };
    let machine = seat.machine();
    let admitted = Frame::Admitted(Admitted { machine: seat.machine(), load: seat.load() });
    let head = match receiver.next().await.map_err(PumpError::Stream)? {
        Some(Frame::RequestHead(head)) => head,
        _ => return reset(sender, ErrorCode::PU03, false).await.map(|()| None),
    };
    let span = trace.as_ref().map(|trace| machine_span(trace, &head.method, &seat));
    // An edge asks for it only when the request has no body.
    let wants_upgrade = head.headers.contains_key(UPGRADE);
    let mut receiver = Some(receiver);
    let body = if wants_upgrade { &mut None } else { &mut receiver };
    let Some(request) = request(head, preamble, span.as_ref(), body) else {
        return reset(sender, ErrorCode::PU03, false).await.map(|()| None);
    };
    let mut word = Some(admitted);
    if !request.body().is_end_stream()
        && let Some(word) = word.take()
    {
        sender.send(word).await.map_err(PumpError::Stream)?;
    }
    let upgraded = exchange(core, seat, request, word, span.as_ref(), sender).await?;
    let (Some((body, upgrade, websocket)), Some(receiver)) = (upgraded, receiver) else { return Ok(None) };
    Ok(Some(Upgrading { machine, body, upgrade, websocket, receiver }))
}

/// What an edge asks of this node.
pub(crate) fn asked(preamble: &Preamble) -> Asked {
    let Preamble { app, port, target, hops, edge, .. } = *preamble;
    Asked { app, port, target, hops, edge }
}

/// A Machine's connection that speaks another protocol from here on.
struct Upgrading {
    machine: MachineId,
    body: MachineBody,
    upgrade: OnUpgrade,
    websocket: bool,
    receiver: FrameReceiver,
}

impl Upgrading {
    /// Passes bytes between the edge and the Machine, once the edge says that it does so too.
    async fn run(mut self, core: &Core, passage: &Passage, sender: FrameSender) {
        if !matches!(self.receiver.next().await, Ok(Some(Frame::Upgraded))) {
            return;
        }
        let Some((upstream, _permit)) = self.body.upgrade(self.upgrade).await else { return };
        let edge = tokio::io::join(self.receiver.into_raw(), sender.into_raw());
        let era = passage.era();
        let leaving = async {
            tokio::select! {
                () = era.last.cancelled() => {}
                () = core.worker.local().leaves(self.machine) => {}
            }
        };
        // Its edge knows how long it may be idle.
        let manner = Manner { websocket: self.websocket, idle: None };
        let forced = async {
            tokio::select! {
                () = era.forced.cancelled() => {}
                () = core.worker.local().suspended(self.machine) => {}
            }
        };
        relay(edge, upstream, manner, leaving, forced).await;
    }
}

/// Sends the request to the Machine and its response to the edge, with the word that it was admitted
/// if that is still to be said.
async fn exchange(
    core: &Core,
    seat: Seat,
    request: Request<RequestBody>,
    mut word: Option<Frame>,
    span: Option<&Trace>,
    sender: &mut FrameSender,
) -> Result<Option<(MachineBody, OnUpgrade, bool)>, PumpError> {
    let wants_upgrade = request.headers().contains_key(UPGRADE);
    let answered = {
        let mut answered = pin!(seat.send(request, core.worker.tasks()));
        let mut late = pin!(tokio::time::sleep(WORD_WITHIN));
        loop {
            tokio::select! {
                biased;
                answered = &mut answered => break answered,
                // The edge has lost its client, or gave this attempt up: so does the Machine's connection.
                error = sender.stopped() => return Err(PumpError::Stream(error)),
                () = &mut late, if word.is_some() => {}
            }
            if let Some(word) = word.take() {
                sender.send(word).await.map_err(PumpError::Stream)?;
            }
        }
    };
    let (response, load) = match answered {
        Ok(answered) => answered,
        Err(Failure { code, reached_app, stale }) => {
            if let Some(span) = span {
                span.fail(code.as_str());
            }
            tracing::debug!(%code, reached_app, stale, "a Machine did not answer");
            return reset(sender, code, reached_app).await.map(|()| None);
        }
    };
    let (mut head, body) = response.into_parts();
    if let Some(span) = span {
        note_status(span, head.status);
    }
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        let Some(upgrade) = head.extensions.remove::<OnUpgrade>().filter(|_| wants_upgrade) else {
            // Nobody asked for it.
            return reset(sender, ErrorCode::PU01, true).await.map(|()| None);
        };
        let websocket = is_websocket(&head.headers);
        let head = ResponseHead { status: head.status.as_u16(), headers: head.headers, load, whole: false };
        let frames = [Frame::ResponseHead(head), Frame::Upgraded];
        sender.send_all(word.into_iter().chain(frames)).await.map_err(PumpError::Stream)?;
        return Ok(Some((body, upgrade, websocket)));
    }
    let whole = body.is_end_stream();
    let head = ResponseHead { status: head.status.as_u16(), headers: head.headers, load, whole };
    if whole {
        let whole = [Frame::ResponseHead(head), Frame::Trailers(Vec::new())];
        sender.send_all(word.into_iter().chain(whole)).await.map_err(PumpError::Stream)?;
        // As in `pump`.
        let _closed = sender.finish();
        return Ok(None);
    }
    let first = word.into_iter().chain([Frame::ResponseHead(head)]);
    match pump(first, body, sender).await {
        Err(PumpError::Body) => {
            if let Some(span) = span {
                span.fail(ErrorCode::PU04.as_str());
            }
            reset(sender, ErrorCode::PU04, true).await?;
        }
        ended => ended?,
    }
    Ok(None)
}

async fn reset(sender: &mut FrameSender, code: ErrorCode, reached_app: bool) -> Result<(), PumpError> {
    sender.send(Frame::Reset(Reset { code, reached_app })).await.map_err(PumpError::Stream)?;
    // As in `pump`.
    let _closed = sender.finish();
    Ok(())
}

fn request(
    head: RequestHead,
    preamble: &Preamble,
    span: Option<&Trace>,
    receiver: &mut Option<FrameReceiver>,
) -> Option<Request<RequestBody>> {
    let mut headers = head.headers;
    match span.and_then(Trace::header) {
        Some(context) => drop(headers.insert(TRACEPARENT, context)),
        // The edge traces and this node does not: the Machine goes on from the edge's span.
        None => {
            if let Some(context) = preamble.traceparent.as_deref().and_then(|text| text.parse().ok()) {
                headers.insert(TRACEPARENT, context);
            }
        }
    }
    let body = match receiver.take().filter(|_| has_body(&headers)) {
        Some(receiver) => RequestBody::frames(FrameBody::new(receiver)),
        None => {
            headers.remove(TRANSFER_ENCODING);
            RequestBody::empty()
        }
    };
    let mut request = Request::new(body);
    *request.method_mut() = Method::from_bytes(head.method.as_bytes()).ok()?;
    *request.uri_mut() = head.target.parse::<Uri>().ok()?;
    *request.headers_mut() = headers;
    Some(request)
}
