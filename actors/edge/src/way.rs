//! The way of a client's request: decisions, attempts, waits, replays, until a Machine has answered.
//!
//! What is decided is `skein_core`'s; here it is carried out, written down and told to the trace. Each round
//! goes by one snapshot; what failed late, or waited, goes on by a newer one.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use http::HeaderValue;
use skein_cluster::clock;
use skein_cluster::entropy::Entropy;
use skein_core::autostop::wake::Wake;
use skein_core::balance::{self, Candidate, Pick};
use skein_core::code::ErrorCode;
use skein_core::headers::{FLY_PREFER_REGION, FLY_REPLAY_SRC};
use skein_core::machine::{HttpOptions, MachineConfig};
use skein_core::queue::Crowded;
use skein_core::retry::Failure;
use skein_core::route::{Decision, Repeat, Route, Stop, Way};
use skein_core::snapshot::{AppView, MachineView, Snapshot};
use skein_core::wire::RefuseReason;
use skein_core::{attr, replay, retry};

use crate::access::Access;
use crate::attempt::{Aim, Answered, Exchange, Failed, Outcome};
use crate::body::{KeptBody, NotKept};
use crate::client_body::Answer;
use crate::core::Core;
use crate::reply::Reply;

/// Which configuration, and which service of it, answered.
pub(crate) struct Served {
    config: Option<Arc<MachineConfig>>,
    service: usize,
}

impl Served {
    fn by(machine: &MachineView, service: usize) -> Self {
        Self { config: machine.config.clone(), service }
    }

    /// How the service wants its responses.
    pub(crate) fn options(&self, port: u16) -> Option<&HttpOptions> {
        self.config.as_ref()?.services.get(self.service)?.port(port)?.http_options.as_ref()
    }
}

/// What came of going to Machines as one snapshot has them.
enum Round {
    /// One answered, without an instruction.
    Answered(Box<Answered>, Served),
    /// None has room, or runs: it waits.
    Full,
    /// One failed, and more is known now than when it was chosen.
    Outdated,
}

/// Sends the request to Machines until one answers without an instruction; waits when none has room.
pub(crate) async fn proxy(
    core: &Core,
    snapshot: &Snapshot,
    app: &Arc<AppView>,
    exchange: &mut Exchange,
    access: &mut Access,
    rng: &mut Entropy,
) -> Result<(Box<Answered>, Served), Reply> {
    let prefer = exchange.headers.get(FLY_PREFER_REGION).and_then(|value| value.to_str().ok());
    let prefer = prefer.map(|value| balance::named_regions(value, &core.regions)).unwrap_or_default();
    let mut route = Route::new(app, exchange.ends.public.port(), prefer);
    match round(core, snapshot, &mut route, exchange, access, rng).await? {
        Round::Answered(answered, served) => Ok((answered, served)),
        // Seldom needed, and large.
        Round::Full => Box::pin(queue(core, route.wait(), exchange, access, rng)).await,
        Round::Outdated => Box::pin(again(core, route.into_way(), exchange, access, rng)).await,
    }
}

/// Goes on after a failure, and waits when none has room.
async fn again(
    core: &Core,
    way: Way,
    exchange: &mut Exchange,
    access: &mut Access,
    rng: &mut Entropy,
) -> Result<(Box<Answered>, Served), Reply> {
    match rounds(core, way, exchange, access, rng).await? {
        Ok(answered) => Ok(answered),
        Err(way) => queue(core, way, exchange, access, rng).await,
    }
}

/// Goes on with what is known now, after each failure anew: a Machine may have held the request for long
/// before it failed, and others came meanwhile (SPEC LB-5). Gives the way back when none has room.
async fn rounds(
    core: &Core,
    mut way: Way,
    exchange: &mut Exchange,
    access: &mut Access,
    rng: &mut Entropy,
) -> Result<Result<(Box<Answered>, Served), Way>, Reply> {
    loop {
        let snapshot = core.reader.load();
        let Some(mut route) = way.resume(&snapshot) else { return Err(Reply::Code(ErrorCode::PR01, None)) };
        match round(core, &snapshot, &mut route, exchange, access, rng).await? {
            Round::Answered(answered, served) => return Ok(Ok((answered, served))),
            Round::Full => return Ok(Err(route.wait())),
            Round::Outdated => way = route.into_way(),
        }
    }
}

/// Waits for room or a start, and tries each time that there may be some (SPEC LB-4, AUTO-2).
async fn queue(
    core: &Core,
    mut way: Way,
    exchange: &mut Exchange,
    access: &mut Access,
    rng: &mut Entropy,
) -> Result<(Box<Answered>, Served), Reply> {
    let full = |why: &str| Reply::Code(ErrorCode::PR04, Some(why.to_owned()));
    let mut until = None;
    let mut news = core.reader.watch();
    loop {
        let place = match exchange.place.take() {
            Some(place) => place,
            // It waits for the first time, or again after a replay.
            None => {
                let since = clock::now();
                until = Some(exchange.deadline.min(since + core.config.queue_timeout));
                let joined = core.queue.join(way.service(), way.want(), since);
                Box::new(joined.map_err(|Crowded| full("too many requests wait already"))?)
            }
        };
        let span = access.trace.queue();
        let waiting = access.waiting.as_ref();
        if let Some(waiting) = waiting {
            span.set(attr::AUTOSTART, || waiting.want.to_string());
        }
        let starts = waiting.is_some_and(|waiting| waiting.only);
        let until = until.filter(|_| !starts).unwrap_or(exchange.deadline);
        // A Machine that comes up is in the next snapshot; room is told of by other ways.
        let changed = async {
            match waiting {
                Some(_) if news.changed().await.is_ok() => {}
                Some(_) | None => std::future::pending().await,
            }
        };
        let began = clock::now();
        let turn = tokio::time::timeout_at(until.into(), place.turn(changed)).await;
        let now = clock::now();
        access.at(now).queued(now.saturating_duration_since(began), turn.is_ok());
        if turn.is_err() {
            let code = if starts { ErrorCode::PM01 } else { ErrorCode::PR04 };
            span.fail(code.as_str());
            access.waited(now.saturating_duration_since(place.since));
            let why = if starts { "none came up in time" } else { "it waited for as long as it may" };
            return Err(Reply::Code(code, Some(why.to_owned())));
        }
        drop(span);
        let waited = now.saturating_duration_since(place.since);
        exchange.place = Some(place);
        news.mark_unchanged();
        let went = rounds(core, way, exchange, access, rng).await;
        match (&exchange.place, &went) {
            (Some(place), Ok(Err(_))) => place.again(),
            // A Machine had it, or it failed.
            _ => access.waited(waited),
        }
        match went? {
            Ok(answered) => return Ok(answered),
            Err(again) => way = again,
        }
    }
}

/// Sends the request to Machines, as one snapshot has them, until one answers without an instruction.
async fn round<'s>(
    core: &'s Core,
    snapshot: &'s Snapshot,
    route: &mut Route<'s>,
    exchange: &mut Exchange,
    access: &mut Access,
    rng: &mut Entropy,
) -> Result<Round, Reply> {
    let mut now = if access.attempts == 0 { access.started } else { clock::now() };
    loop {
        let Some((aim, service)) = choose(core, snapshot, route, exchange, access, now, rng)? else {
            return Ok(Round::Full);
        };
        let machine = aim.machine;
        let mut in_flight = machine.estimate.enter(clock::ms(now));
        access.machine = Some((machine.record.id, machine.node));
        exchange.resend = access.attempts;
        access.attempts += 1;
        let outcome = if machine.node == core.config.node {
            exchange.local(core, aim, &access.trace).await
        } else {
            // What it keeps while it waits is much: a request that stays here has no room for it.
            Box::pin(exchange.remote(core, snapshot, aim, &access.trace)).await
        };
        if let Some(via) = exchange.relayed.take() {
            access.at(now).relayed(machine.record.id, via);
        }
        let decided = std::mem::replace(&mut now, clock::now());
        let mut answered = match outcome {
            Outcome::Answered(answered) => answered,
            Outcome::Failed(failed) => {
                drop(in_flight);
                if matches!(failed.failure, Failure::Refused(RefuseReason::Connect(_))) {
                    machine.estimate.outlier().unconnected(clock::ms(now));
                }
                access.last = Some(failed.code);
                let Failed { failure, load, stale, .. } = failed;
                access.at(now).failed(machine, failure, load, stale, now.saturating_duration_since(decided));
                after_failure(core, route, exchange, &failed, machine, now)?;
                core.metrics.retries.fetch_add(1, Ordering::Relaxed);
                if core.reader.load().version != snapshot.version {
                    return Ok(Round::Outdated);
                }
                continue;
            }
        };
        machine.estimate.tell(answered.load, clock::ms(now));
        in_flight.answered(clock::ms(now));
        let upgraded = matches!(answered.answer, Answer::Upgraded(_));
        if answered.head.status == http::StatusCode::SWITCHING_PROTOCOLS && !upgraded {
            // Nobody asked for it.
            return Err(Reply::Code(ErrorCode::PU01, None));
        }
        let Some(instruction) = answered.head.headers.get(replay::HEADER).cloned() else {
            if let Some(body) = &exchange.body {
                body.settle();
            }
            answered.held.in_flight = Some(in_flight);
            return Ok(Round::Answered(answered, Served::by(machine, service)));
        };
        drop((answered, in_flight));
        Box::pin(follow(core, snapshot, route, exchange, access, instruction.as_bytes(), machine)).await?;
        access.replays = route.replays();
        access.woke = false;
    }
}

/// Where the request goes now, and which service of the Machine's configuration it is for; `None` when it
/// waits.
///
/// # Errors
/// The answer when there is neither a way nor anything to wait for.
fn choose<'s>(
    core: &'s Core,
    snapshot: &'s Snapshot,
    route: &Route<'s>,
    exchange: &mut Exchange,
    access: &mut Access,
    now: Instant,
    rng: &mut Entropy,
) -> Result<Option<(Aim<'s>, usize)>, Reply> {
    let (way, port) = (route.way(), exchange.ends.public.port());
    if exchange.place.is_none() && core.queue.is_ahead(way.service(), || way.want()) {
        let wake = wake(core, snapshot, route, None, false, now);
        wait_for(core, route, port, access, wake);
        return Ok(None);
    }
    let decided = decide(core, snapshot, route, now, access, rng);
    let waits = access.woke;
    let wake = match &decided {
        Ok(decision) if !decision.asleep && !waits => Wake::Nothing,
        Ok(decision) => wake(core, snapshot, route, Some(&decision.pick), waits, now),
        Err(_) => wake(core, snapshot, route, None, waits, now),
    };
    let decision = match (decided, wake) {
        (Ok(decision), Wake::Nothing) if !decision.enough => decision,
        (Ok(decision), Wake::GoOn(want)) if !decision.enough => {
            if let Some(demands) = &core.demands {
                core.metrics.starts_wanted.fetch_add(1, Ordering::Relaxed);
                demands.want(route.app().app.id, port, want);
            }
            decision
        }
        (Ok(_) | Err(ErrorCode::PR04), wake)
        | (Err(_), wake @ (Wake::Wait(_) | Wake::Await(_) | Wake::GoOn(_))) => {
            wait_for(core, route, port, access, wake);
            return Ok(None);
        }
        (Err(ErrorCode::PR01), Wake::Nothing) if access.woke => {
            return Err(Reply::Code(ErrorCode::PM01, None));
        }
        (Err(code), Wake::Nothing) => return Err(Reply::Code(code, None)),
    };
    // It counts where it goes, and no longer among those who wait.
    access.waiting = None;
    let Decision { pick, alternatives, .. } = decision;
    let Candidate { machine, service, .. } = pick.candidate;
    Ok(Some((Aim { app: route.app().app.id, machine, alternatives, now }, service)))
}

/// What the request does about Machines that do not run; nothing where nobody could start them.
fn wake<'s>(
    core: &'s Core,
    snapshot: &'s Snapshot,
    route: &Route<'s>,
    pick: Option<&Pick<'s>>,
    waits: bool,
    now: Instant,
) -> Wake {
    match &core.demands {
        Some(_) => route.wake(&core.world(snapshot, now), pick, waits, clock::unix_ms()),
        None => Wake::Nothing,
    }
}

/// Notes what is to be started while the request waits.
fn wait_for(core: &Core, route: &Route<'_>, port: u16, access: &mut Access, wake: Wake) {
    let (want, only) = match wake {
        Wake::Nothing => return access.waiting = None,
        Wake::GoOn(want) => (want, false),
        Wake::Wait(want) | Wake::Await(want) => (want, true),
    };
    access.woke |= matches!(wake, Wake::Wait(_));
    let app = route.app().app.id;
    let waiting = access.waiting.take().filter(|waiting| waiting.is_for(app, want));
    let waiting = waiting.or_else(|| {
        core.metrics.starts_wanted.fetch_add(1, Ordering::Relaxed);
        let demands = core.demands.as_ref()?;
        Some(demands.wait(app, port, want))
    });
    access.waiting = waiting.map(|mut waiting| {
        waiting.only = only;
        waiting
    });
}

/// Decides, writes it down, and tells the trace.
fn decide<'s>(
    core: &'s Core,
    snapshot: &'s Snapshot,
    route: &Route<'s>,
    now: Instant,
    access: &mut Access,
    rng: &mut Entropy,
) -> Result<Decision<'s>, ErrorCode> {
    let span = access.trace.route();
    span.set(attr::SNAPSHOT_VERSION, || i64::try_from(snapshot.version).unwrap_or(i64::MAX));
    let (world, pen) = (core.world(snapshot, now), access.at(now));
    let decided = route.decide(&world, |candidate| core.sends_to(candidate), rng, pen);
    span.set(attr::ROUTE_PASSED_OVER, || access.steps.passed_over());
    match decided {
        Ok(decision) => {
            let candidate = &decision.pick.candidate;
            span.set(attr::ROUTE_CANDIDATES, || i64::try_from(decision.candidates).unwrap_or(i64::MAX));
            span.set(attr::ROUTE_REASON, || decision.pick.reason.as_str());
            span.set(attr::ROUTE_AGE, || i64::try_from(candidate.age.as_millis()).unwrap_or(i64::MAX));
            span.set(attr::MACHINE, || candidate.machine.record.id.to_string());
            span.set(attr::REGION, || candidate.machine.region.to_string());
            Ok(decision)
        }
        Err(code) => {
            span.set(attr::ROUTE_CANDIDATES, || 0i64);
            span.fail(code.as_str());
            Err(code)
        }
    }
}

/// Makes the route ready for the next attempt.
fn after_failure(
    core: &Core,
    route: &mut Route<'_>,
    exchange: &Exchange,
    failed: &Failed,
    machine: &MachineView,
    now: Instant,
) -> Result<(), Reply> {
    if let Some(load) = failed.load {
        machine.estimate.tell(load, clock::ms(now));
    }
    tracing::debug!(
        request = &*exchange.request_id, machine = %machine.record.id, failure = ?failed.failure, "attempt failed"
    );
    let request = Repeat {
        idempotent: retry::is_idempotent(&exchange.method),
        replayable: exchange.body.as_ref().is_none_or(KeptBody::is_replayable),
        left: exchange.left(),
    };
    route
        .after_failure(machine.record.id, failed.failure, failed.stale, request)
        .map_err(|code| Reply::Code(code, None))?;
    // SPEC LB-9.
    let free = retry::is_before_admission(failed.failure);
    if free || core.metrics.app(route.app().app.id).budget.retry(clock::ms(now)) {
        return Ok(());
    }
    core.metrics.unretried.fetch_add(1, Ordering::Relaxed);
    let why = "the app's budget for retries is spent (a fifth of its requests)";
    Err(Reply::Code(ErrorCode::PR03, Some(why.to_owned())))
}

/// Follows an app's instruction (SPEC RPL-1, RPL-4, RPL-5).
async fn follow<'s>(
    core: &'s Core,
    snapshot: &'s Snapshot,
    route: &mut Route<'s>,
    exchange: &mut Exchange,
    access: &mut Access,
    instruction: &[u8],
    source: &MachineView,
) -> Result<(), Reply> {
    let now = clock::now();
    let followed = route.follow(instruction, source, &core.world(snapshot, now));
    access.at(now).told_to_replay(source, route.replays(), followed.as_ref());
    let wanted = followed.map_err(|Stop { code, why }| Reply::Code(code, why))?;
    core.metrics.replays.fetch_add(1, Ordering::Relaxed);
    if let Some(body) = &exchange.body {
        let limit = core.config.replay_buffer;
        match tokio::time::timeout(exchange.left(), body.complete()).await {
            Ok(Ok(())) => {}
            Ok(Err(NotKept::Limit)) => {
                let more = format!("the limit is {limit} bytes");
                return Err(Reply::Code(ErrorCode::PA01, Some(more)));
            }
            Ok(Err(NotKept::Budget)) => {
                let more = "the node's budget for such bodies is spent (budget); try again".to_owned();
                return Err(Reply::Code(ErrorCode::PA01, Some(more)));
            }
            Ok(Err(NotKept::Client)) | Err(_) => return Err(Reply::Code(ErrorCode::PU03, None)),
        }
    }
    let src = replay::src_header(source.record.id, source.region, clock::unix_us(), wanted.state.as_deref());
    let src = HeaderValue::from_str(&src)
        .map_err(|_| Reply::Code(ErrorCode::PA03, Some("the state is no header value".to_owned())))?;
    exchange.headers.insert(FLY_REPLAY_SRC, src);
    exchange.hop = Some((route.replays(), wanted.kind()));
    Ok(())
}
