//! Raw TCP: bytes pass unchanged, both ways, with half-close preserved (SPEC HND-1).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use skein_cluster::admission::Asked;
use skein_cluster::backhaul::{FrameReceiver, FrameSender};
use skein_cluster::clock;
use skein_cluster::entropy::Entropy;
use skein_core::autostop::wake::{self, Sight, Wake};
use skein_core::balance::{self, Candidate, Constraint};
use skein_core::queue::{POLL, Service, Want};
use skein_core::snapshot::{AppView, MachineView, Snapshot};
use skein_core::suspicion::Proximity;
use skein_core::wire::{Admitted, Frame, Preamble, Protocol, RefuseReason, Refused, Target};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::connection::Ends;
use crate::core::{Core, Passage};
use crate::demand::Waiting;
use crate::hosts;
use crate::metrics::AppCounters;
use crate::queue::Place;
use crate::relay::{Manner, Passed, Why, relay};
use crate::serve::asked;

/// Serves a connection that another node's edge sent.
pub(crate) async fn serve(
    core: &Core,
    preamble: &Preamble,
    mut sender: FrameSender,
    mut receiver: FrameReceiver,
    passage: &Passage,
) {
    let taken = core.worker.raw(asked(preamble)).await;
    let (machine, permit, stream) = match taken {
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
        let edge = tokio::io::join(receiver.into_raw(), sender.into_raw());
        pass(passage, edge, stream, None, core.worker.local().suspended(machine.id)).await;
    }
}

/// Passes bytes until both ends are done, nothing moved for too long, a drain's deadline, or its Machine
/// is `suspended`.
async fn pass(
    passage: &Passage,
    client: impl AsyncRead + AsyncWrite,
    machine: impl AsyncRead + AsyncWrite,
    idle: Option<Duration>,
    suspended: impl Future<Output = ()>,
) -> Passed {
    let manner = Manner { websocket: false, idle };
    // It has no word for a goodbye: it ends with its Machine, or at the deadline.
    let era = passage.era();
    let forced = async {
        tokio::select! {
            () = era.forced.cancelled() => {}
            () = suspended => {}
        }
    };
    relay(client, machine, manner, std::future::pending(), forced).await
}

/// Takes note of a connection that has ended.
fn ended(core: &Core, counters: &AppCounters, ends: Ends, passed: Passed) {
    counters.data(passed.received, passed.sent);
    if passed.why == Why::Idle {
        core.metrics.idle.fetch_add(1, Ordering::Relaxed);
        tracing::info!(client = %ends.client, public = %ends.public, "a raw connection was idle for too long");
    }
}

/// Serves a client's connection to an app's raw port: nothing was read from it yet, so every attempt
/// may be repeated elsewhere.
pub(crate) async fn connection(core: &Core, ends: Ends, client: TcpStream, passage: &Passage) {
    let mut news = core.reader.watch();
    let mut snapshot = core.reader.load();
    let at = |snapshot: &Snapshot| {
        let address = snapshot.registry.app_at(ends.public.ip())?;
        snapshot.apps.get(&address.app).map(Arc::clone)
    };
    let Some(mut app) = at(&snapshot) else { return };
    let counters: Arc<AppCounters> = core.metrics.app(app.app.id);
    counters.connect();
    let options = hosts::service(&app, ends.public.port()).and_then(|(_, port)| port.http_options.as_ref());
    let idle = options.and_then(|options| options.idle_timeout).map(Duration::from_secs);
    let deadline = clock::now() + core.config.route_timeout;
    let mut constraint = Constraint::default();
    let (mut waiting, mut woke): (Option<Waiting>, bool) = (None, false);
    let (mut line, mut full) = (Line::default(), false);
    let mut rng = Entropy::default();
    while clock::now() < deadline {
        let verdicts = balance::candidates(
            &app,
            &snapshot,
            ends.public.port(),
            &constraint,
            &*core.peers,
            core.now_ms(),
        );
        let candidates: Vec<Candidate<'_>> = verdicts
            .iter()
            .filter_map(|(_, verdict)| (*verdict).ok())
            .filter(|it| core.sends_to(it))
            .collect();
        let pick = balance::pick(&candidates, &constraint, &core.regions, &mut rng);
        if let Some(demands) = &core.demands {
            let (port, refused) = (ends.public.port(), constraint.exclude.as_slice());
            let waits = woke;
            let asked = wake::Asked { port, constraint: &constraint, stopped: &[], refused, waits };
            let sight = Sight {
                snapshot: &snapshot,
                proximity: &*core.peers,
                regions: &core.regions,
                unix_ms: clock::unix_ms(),
            };
            let wake = wake::judge(&verdicts, pick.as_ref(), asked, sight);
            woke |= matches!(wake, Wake::Wait(_));
            match wake {
                Wake::Nothing => {}
                Wake::GoOn(want) => demands.want(app.app.id, port, want),
                Wake::Wait(want) | Wake::Await(want) => {
                    if !waiting.as_ref().is_some_and(|waiting| waiting.is_for(app.app.id, want)) {
                        core.metrics.starts_wanted.fetch_add(1, Ordering::Relaxed);
                        waiting = Some(demands.wait(app.app.id, port, want));
                    }
                    // Nothing of it reached any Machine: whoever refused it may take it then.
                    constraint.exclude.clear();
                    let look = tokio::time::timeout(POLL, news.changed()).await;
                    if matches!(look, Ok(Err(_))) {
                        break;
                    }
                    snapshot = core.reader.load();
                    let Some(known) = at(&snapshot) else { break };
                    app = known;
                    continue;
                }
            }
        }
        let service = (app.app.id, ends.public.port());
        if line.must_wait(core, service) || (pick.is_none() && std::mem::take(&mut full)) {
            // Whoever refused it may take it later (SPEC LB-4).
            constraint.exclude.clear();
            if !line.turn(core, service, deadline).await {
                break;
            }
            snapshot = core.reader.load();
            let Some(known) = at(&snapshot) else { break };
            app = known;
            continue;
        }
        let Some(pick) = pick else { break };
        let machine = pick.candidate.machine;
        let mut in_flight = machine.estimate.enter(core.now_ms());
        if machine.node == core.config.node {
            let target = Target::Machine(machine.record.id);
            let (app, port) = (app.app.id, ends.public.port());
            let asked = Asked { app, port, target, hops: 0, edge: core.config.node };
            match core.worker.raw(asked).await {
                Ok((_, _permit, upstream)) => {
                    in_flight.answered(core.now_ms());
                    drop((waiting, line));
                    let suspended = core.worker.local().suspended(machine.record.id);
                    ended(core, &counters, ends, pass(passage, client, upstream, idle, suspended).await);
                    return;
                }
                Err(refused) => full |= note(core, machine, Some(&refused)),
            }
        } else {
            match remote(core, &snapshot, &app, ends, &pick.candidate).await {
                Ok((sender, receiver)) => {
                    in_flight.answered(core.now_ms());
                    drop((waiting, line));
                    let upstream = tokio::io::join(receiver.into_raw(), sender.into_raw());
                    // Its own node ends it then.
                    let suspended = std::future::pending();
                    ended(core, &counters, ends, pass(passage, client, upstream, idle, suspended).await);
                    return;
                }
                // There is a way around: the same Machine again.
                Err(Missed::Silent) => continue,
                Err(Missed::Refused(refused)) => full |= note(core, machine, Some(&refused)),
                Err(Missed::Broken) => full |= note(core, machine, None),
            }
        }
        constraint.exclude.push(machine.record.id);
    }
    tracing::warn!(app = %app.app.name, public = %ends.public, "no Machine took a connection");
}

/// A connection's place among those that wait for room.
#[derive(Default)]
struct Line {
    place: Option<Place>,
    until: Option<Instant>,
}

impl Line {
    /// Whether it comes behind others that wait for the same.
    fn must_wait(&self, core: &Core, service: Service) -> bool {
        self.place.is_none() && core.queue.is_ahead(service, Want::default)
    }

    /// Waits until it may try; `false` when it may not wait, or no longer.
    async fn turn(&mut self, core: &Core, service: Service, deadline: Instant) -> bool {
        if let Some(place) = &self.place {
            place.again();
        } else {
            let since = clock::now();
            let Ok(place) = core.queue.join(service, Want::default(), since) else { return false };
            self.until = Some(deadline.min(since + core.config.queue_timeout));
            self.place = Some(place);
        }
        let (Some(place), Some(until)) = (&self.place, self.until) else { return false };
        tokio::time::timeout_at(until.into(), place.turn(std::future::pending())).await.is_ok()
    }
}

/// Takes note of an attempt that came to nothing; whether the Machine was only full.
fn note(core: &Core, machine: &MachineView, refused: Option<&Refused>) -> bool {
    let Some(refused) = refused else { return false };
    machine.estimate.tell(refused.load, core.now_ms());
    if matches!(refused.reason, RefuseReason::Connect(_)) {
        machine.estimate.outlier().unconnected(core.now_ms());
    }
    refused.reason == RefuseReason::Full
}

/// Why no other node took a connection.
enum Missed {
    /// It said so.
    Refused(Refused),
    /// It is silent, and another node may reach it.
    Silent,
    /// It broke off, or is silent.
    Broken,
}

async fn remote(
    core: &Core,
    snapshot: &Snapshot,
    app: &AppView,
    ends: Ends,
    candidate: &Candidate<'_>,
) -> Result<(FrameSender, FrameReceiver), Missed> {
    let target = candidate.machine.node;
    let around = || skein_core::relay::via(snapshot, &*core.peers, &core.regions, core.config.node, target);
    // SPEC LB-8, as for requests.
    let via = if core.peers.suspect(target) { around() } else { None };
    if via.is_some() {
        core.metrics.relayed.fetch_add(1, Ordering::Relaxed);
    }
    let node = via.unwrap_or(target);
    let preamble = Preamble {
        app: app.app.id,
        port: ends.public.port(),
        protocol: Protocol::Tcp,
        target: Target::Machine(candidate.machine.record.id),
        deadline_ms: u32::try_from(core.config.connect_timeout.as_millis()).unwrap_or(u32::MAX),
        relay: via.map(|_| target),
        hops: 0,
        edge: core.config.node,
        edge_region: core.config.region,
        client: ends.client,
        public: ends.public,
        request_id: String::new(),
        traceparent: None,
    };
    let answered = async {
        let stream = core.backhaul.open_with(node, preamble, [Frame::Upgraded]).await;
        let (sender, mut receiver) = stream.map_err(|_| Missed::Broken)?.split();
        loop {
            match receiver.next().await {
                Ok(Some(Frame::Admitted(admitted))) => {
                    candidate.machine.estimate.tell(admitted.load, core.now_ms());
                }
                Ok(Some(Frame::Refused(refused))) => return Err(Missed::Refused(refused)),
                Ok(Some(Frame::Upgraded)) => return Ok((sender, receiver)),
                Ok(_) | Err(_) => return Err(Missed::Broken),
            }
        }
    };
    let silent = async {
        core.peers.until_suspect(node).await;
        if around().is_none_or(|other| Some(other) == via) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        // The worker dials the Machine for as long as its own limit says.
        answered = tokio::time::timeout(core.config.connect_timeout * 2, answered) => {
            answered.unwrap_or(Err(Missed::Broken))
        }
        () = silent => Err(Missed::Silent),
    }
}
