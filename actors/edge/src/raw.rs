//! Raw TCP: bytes pass unchanged, both ways, with half-close preserved (SPEC HND-1).

use std::sync::Arc;

use skein_cluster::backhaul::{FrameReceiver, FrameSender};
use skein_cluster::clock;
use skein_cluster::entropy::Entropy;
use skein_core::balance::{self, Candidate, Constraint};
use skein_core::load::InFlight;
use skein_core::snapshot::AppView;
use skein_core::wire::{Admitted, Frame, Preamble, Protocol, Target};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::TcpStream;

use crate::connection::Ends;
use crate::core::{Core, Passage};
use crate::metrics::AppCounters;

/// Serves a connection that another node's edge sent.
pub(crate) async fn serve(
    core: &Core,
    preamble: &Preamble,
    mut sender: FrameSender,
    mut receiver: FrameReceiver,
    passage: &Passage,
) {
    let taken = core.worker.raw(preamble.app, preamble.port, preamble.target, preamble.hops).await;
    let (machine, permit, mut stream) = match taken {
        Ok(taken) => taken,
        Err(refused) => {
            if sender.send(Frame::Refused(refused)).await.is_ok() {
                // As in `pump`.
                let _closed = sender.finish();
            }
            return;
        }
    };
    let admitted = Admitted { machine: machine.id, load: permit.in_flight() };
    if sender.send_all([Frame::Admitted(admitted), Frame::Upgraded]).await.is_err() {
        return;
    }
    if matches!(receiver.next().await, Ok(Some(Frame::Upgraded))) {
        let mut edge = tokio::io::join(receiver.into_raw(), sender.into_raw());
        pass(passage, &mut edge, &mut stream).await;
    }
}

/// Passes bytes until both ends are done, or a drain's deadline.
async fn pass<A, B>(passage: &Passage, one: &mut A, other: &mut B) -> (u64, u64)
where
    A: AsyncRead + AsyncWrite + Unpin + ?Sized,
    B: AsyncRead + AsyncWrite + Unpin + ?Sized,
{
    tokio::select! {
        biased;
        () = passage.era().forced.cancelled() => (0, 0),
        passed = copy_bidirectional(one, other) => match passed {
            Ok(passed) => passed,
            Err(error) => {
                tracing::debug!(%error, "raw connection ended");
                (0, 0)
            }
        },
    }
}

/// Serves a client's connection to an app's raw port: nothing was read from it yet, so every attempt
/// may be repeated elsewhere.
pub(crate) async fn connection(core: &Core, ends: Ends, mut client: TcpStream, passage: &Passage) {
    let snapshot = core.reader.load();
    let Some(app) =
        snapshot.registry.app_at(ends.public.ip()).and_then(|address| snapshot.apps.get(&address.app))
    else {
        return;
    };
    let counters: Arc<AppCounters> = core.metrics.app(app.app.id);
    counters.connect();
    let deadline = clock::now() + core.config.route_timeout;
    let mut constraint = Constraint::default();
    let mut rng = Entropy::default();
    while clock::now() < deadline {
        let verdicts =
            balance::candidates(app, &snapshot, ends.public.port(), &constraint, &*core.peers, core.now_ms());
        let candidates: Vec<Candidate<'_>> = verdicts
            .iter()
            .filter_map(|(_, verdict)| (*verdict).ok())
            .filter(|it| core.sends_to(it))
            .collect();
        let Some(pick) = balance::pick(&candidates, &constraint, &core.regions, &mut rng) else { break };
        let machine = pick.candidate.machine;
        let in_flight = machine.estimate.enter();
        if machine.node == core.config.node {
            let target = Target::Machine(machine.record.id);
            if let Ok((_, _permit, mut upstream)) =
                core.worker.raw(app.app.id, ends.public.port(), target, 0).await
            {
                let (received, sent) = pass(passage, &mut client, &mut upstream).await;
                counters.data(received, sent);
                return;
            }
        } else if let Some((sender, receiver)) = remote(core, app, ends, &pick.candidate, &in_flight).await {
            let mut upstream = tokio::io::join(receiver.into_raw(), sender.into_raw());
            let (received, sent) = pass(passage, &mut client, &mut upstream).await;
            counters.data(received, sent);
            return;
        }
        constraint.exclude.push(machine.record.id);
    }
    tracing::warn!(app = %app.app.name, public = %ends.public, "no Machine took a connection");
}

async fn remote(
    core: &Core,
    app: &AppView,
    ends: Ends,
    candidate: &Candidate<'_>,
    _in_flight: &InFlight,
) -> Option<(FrameSender, FrameReceiver)> {
    let preamble = Preamble {
        app: app.app.id,
        port: ends.public.port(),
        protocol: Protocol::Tcp,
        target: Target::Machine(candidate.machine.record.id),
        deadline_ms: u32::try_from(core.config.connect_timeout.as_millis()).unwrap_or(u32::MAX),
        hops: 0,
        edge: core.config.node,
        edge_region: core.config.region,
        client: ends.client,
        public: ends.public,
        request_id: String::new(),
        traceparent: None,
    };
    let node = candidate.machine.node;
    let stream = core.backhaul.open_with(node, preamble, [Frame::Upgraded]).await.ok()?;
    let (sender, mut receiver) = stream.split();
    let answered = async {
        loop {
            match receiver.next().await.ok()?? {
                Frame::Admitted(admitted) => candidate.machine.estimate.tell(admitted.load, core.now_ms()),
                Frame::Refused(refused) => {
                    candidate.machine.estimate.tell(refused.load, core.now_ms());
                    return None;
                }
                Frame::Upgraded => return Some(()),
                Frame::Open(_)
                | Frame::RequestHead(_)
                | Frame::ResponseHead(_)
                | Frame::Data(_)
                | Frame::Trailers(_)
                | Frame::Reset(_)
                | Frame::Answer(_) => return None,
            }
        }
    };
    // The worker dials the Machine for as long as its own limit says.
    tokio::time::timeout(core.config.connect_timeout * 2, answered).await.ok()??;
    Some((sender, receiver))
}
