//! Passes a stream on to the node that has the Machine, for an edge that can't reach it (SPEC LB-8).
//!
//! Frames pass as bytes; only the preamble is new. It is done once: what was passed on already is
//! refused, and so is what is for a node that this one can't reach either.

use skein_cluster::backhaul::FrameStream;
use skein_core::NodeNumber;
use skein_core::suspicion::Proximity;
use skein_core::wire::{Frame, Preamble, RefuseReason, Refused};
use tokio::io::AsyncWriteExt;

use crate::core::{Core, Passage};
use crate::trace::Trace;

/// Bytes in flight each way, beside what QUIC holds.
const BUFFER: usize = 64 << 10;

/// Passes `stream` on to `to`, until both directions are done or one breaks.
pub(crate) async fn pass_on(
    core: &Core,
    to: NodeNumber,
    mut preamble: Preamble,
    stream: FrameStream,
    passage: &Passage,
) {
    let span = preamble.traceparent.as_deref().and_then(Trace::resume);
    let hop = span.as_ref().map(Trace::backhaul);
    if let Some(span) = &span {
        span.set(skein_core::attr::NODE, || core.config.node_name.to_string());
        span.set(skein_core::attr::REGION, || core.config.region.to_string());
        span.set(skein_core::attr::REQUEST_ID, || preamble.request_id.clone());
    }
    if let Some(context) = hop.as_ref().and_then(Trace::traceparent) {
        preamble.traceparent = Some(context);
    }
    let (mut sender, receiver) = stream.split();
    let refusal = match preamble.hops {
        0 if core.peers.suspect(to) => Some(RefuseReason::Unreachable),
        0 => None,
        _ => Some(RefuseReason::Hops),
    };
    preamble.hops = preamble.hops.saturating_add(1);
    preamble.relay = None;
    let opened = match refusal {
        Some(reason) => Err(reason),
        None => core.backhaul.open(to, preamble).await.map_err(|error| {
            tracing::debug!(%to, %error, "nothing is passed on");
            RefuseReason::Unreachable
        }),
    };
    let onward = match opened {
        Ok(onward) => onward,
        Err(reason) => {
            if let Some(span) = &span {
                span.fail("refused");
            }
            let refused = Refused { reason, age_ms: 0, load: 0 };
            if sender.send(Frame::Refused(refused)).await.is_ok() {
                // As in `pump`.
                let _closed = sender.finish();
            }
            return;
        }
    };
    let (onward_sender, onward_receiver) = onward.split();
    let mut edge = tokio::io::join(receiver.into_raw(), sender.into_raw());
    let mut worker = tokio::io::join(onward_receiver.into_raw(), onward_sender.into_raw());
    let passed = tokio::select! {
        biased;
        () = passage.era().forced.cancelled() => return,
        passed = tokio::io::copy_bidirectional_with_sizes(&mut edge, &mut worker, BUFFER, BUFFER) => passed,
    };
    match passed {
        // Both ends have finished; what they sent last is on its way.
        Ok(_) => drop((edge.shutdown().await, worker.shutdown().await)),
        // Dropped, both streams are reset: each end sees that it is not whole.
        Err(error) => tracing::debug!(%to, %error, "what was passed on broke off"),
    }
}
