//! A client's request from head to response: app, headers, decision, attempts, replays.
//!
//! It loads one snapshot and keeps it. What goes wrong becomes a [`Reply`] in one place.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, Version, request};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use skein_cluster::clock;
use skein_cluster::entropy::Entropy;
use skein_core::autostop::wake::Wake;
use skein_core::balance::{self, Candidate, Pick};
use skein_core::code::ErrorCode;
use skein_core::explain::Steps;
use skein_core::headers::{self, FLY_PREFER_REGION, FLY_REPLAY_SRC, FLY_REQUEST_ID, Forward};
use skein_core::machine::{HttpOptions, MachineConfig};
use skein_core::queue::Crowded;
use skein_core::retry::Failure;
use skein_core::route::{Decision, Repeat, Route, Stop, Way};
use skein_core::service::HandlerChain;
use skein_core::snapshot::{AppView, MachineView, Snapshot};
use skein_core::wire::RefuseReason;
use skein_core::{Random, RequestId, attr, replay, retry, strict};
use ulid::Ulid;

use crate::access::Access;
use crate::attempt::{Aim, Answered, Exchange, Failed, Outcome};
use crate::body::{ClientStream, KeptBody, NotKept};
use crate::client_body::{Answer, ClientBody, Held};
use crate::connection::{Connection, Ends};
use crate::core::Core;
use crate::encode;
use crate::hosts;
use crate::reply::{Reply, Tried};
use crate::trace::Trace;
use crate::tunnel::Tunnel;

/// Bytes of a refused request that are read, so that the client reads the answer before it finds the
/// connection closed.
const LINGER_BYTES: usize = 4 << 20;
/// How long that may take.
const LINGER: Duration = Duration::from_secs(2);

/// Answers a client's request.
pub(crate) async fn handle(connection: &Arc<Connection>, request: Request<Incoming>) -> Response<ClientBody> {
    let (core, ends) = (&connection.core, connection.ends);
    let mut rng = Entropy::default();
    let (started, start_us) = (clock::now(), clock::unix_us());
    let (parts, incoming) = request.into_parts();
    let id = request_id(core, start_us / 1000, &mut rng);
    let request_id: Arc<str> = id.into();
    let trace = begin(core, ends, &parts, &request_id, start_us / 1000, &mut rng);
    connection.watch.begin();
    let mut access = Box::new(Access {
        started,
        connection: Arc::clone(connection),
        method: parts.method.clone(),
        uri: parts.uri.clone(),
        id,
        request_id: Arc::clone(&request_id),
        app: None,
        org: None,
        status: None,
        code: None,
        why: None,
        machine: None,
        attempts: 0,
        last: None,
        replays: 0,
        queued: None,
        waiting: None,
        woke: false,
        sent: 0,
        complete: false,
        trace,
        steps: Steps::default(),
    });
    let version = parts.version;
    let snapshot = core.reader.load();
    let prepared = prepare(core, &snapshot, ends, parts, incoming, &request_id, start_us, &mut access);
    let (mut exchange, app) = match prepared {
        Ok(prepared) => prepared,
        Err((reply, asked)) => return own(core, &reply, &asked, version, access),
    };
    match proxy(core, &snapshot, app, &mut exchange, &mut access, &mut rng).await {
        Ok((answered, served)) => {
            let options = served.options(ends.public.port());
            let Answered { mut head, answer, held, .. } = *answered;
            let none = HeaderValue::from_static("");
            let id = exchange.headers.get(FLY_REQUEST_ID).unwrap_or(&none);
            let changes = options.and_then(|options| options.response.as_ref());
            let answer = match answer {
                Answer::Upgraded(far) => {
                    let spoken = head.headers.get(UPGRADE).cloned();
                    headers::to_client(&mut head.headers, version, &core.server, id, changes);
                    access.status = Some(head.status.as_u16());
                    let begun =
                        Tunnel::begin(exchange.upgrade.take(), far, head, spoken, options, access, held);
                    let (tunnel, response) = begun;
                    connection.upgrade(tunnel);
                    return response;
                }
                answer @ (Answer::Own(_) | Answer::Machine(_) | Answer::Frames(_) | Answer::Encoded(_)) => {
                    answer
                }
            };
            headers::to_client(&mut head.headers, version, &core.server, id, changes);
            head.version = Version::HTTP_11;
            access.status = Some(head.status.as_u16());
            let on = options.and_then(|options| options.compress).unwrap_or(true);
            let (answer, promised) =
                encode::answer(core, &exchange.method, &exchange.headers, &mut head, answer, on);
            say_if_last(connection, version, &mut head.headers);
            Response::from_parts(head, ClientBody::new(answer, promised, access, held))
        }
        Err(_) if exchange.body.as_ref().is_some_and(KeptBody::is_broken) => {
            // Whatever became of the attempt: it could only fail.
            let late = exchange.body.as_ref().is_some_and(KeptBody::is_late);
            let reply = if late { Reply::SlowBody } else { Reply::BadBody };
            own(core, &reply, &exchange.headers, version, access)
        }
        Err(reply) => {
            if let (Some(body), false) = (&exchange.body, exchange.expects) {
                // A client that is still sending meets the answer only once it is done, or given up.
                let _gave_up = Box::pin(tokio::time::timeout(LINGER, body.discard(LINGER_BYTES))).await;
            }
            own(core, &reply, &exchange.headers, version, access)
        }
    }
}

/// While the node drains, a response is the last one of its connection.
fn say_if_last(connection: &Connection, version: Version, headers: &mut HeaderMap) {
    if connection.passage.is_last() {
        match version {
            Version::HTTP_2 => connection.last.notify_one(),
            _ => drop(headers.insert(CONNECTION, HeaderValue::from_static("close"))),
        }
    }
}

fn request_id(core: &Core, now_ms: u64, rng: &mut Entropy) -> RequestId {
    let random = (u128::from(rng.next_u64()) << 64) | u128::from(rng.next_u64());
    RequestId { ulid: Ulid::from_parts(now_ms, random), region: core.config.region }
}

fn begin(
    core: &Core,
    ends: Ends,
    parts: &request::Parts,
    request_id: &Arc<str>,
    now_ms: u64,
    rng: &mut Entropy,
) -> Trace {
    let method = parts.method.as_str();
    let trace = Trace::begin(&parts.headers, method, &core.sampler, now_ms, rng);
    trace.set(attr::METHOD, || method.to_owned());
    trace.set(attr::SCHEME, || "http");
    trace.set(attr::PATH, || parts.uri.path().to_owned());
    trace.set(attr::CLIENT, || ends.client.ip().to_string());
    trace.set(attr::SERVER_ADDRESS, || ends.public.ip().to_string());
    trace.set(attr::SERVER_PORT, || i64::from(ends.public.port()));
    trace.set(attr::PROTOCOL_VERSION, || match parts.version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    });
    trace.set(attr::REQUEST_ID, || request_id.to_string());
    trace.set(attr::NODE, || core.config.node_name.to_string());
    trace.set(attr::REGION, || core.config.region.to_string());
    trace
}

/// Finds the app and makes the request that its Machine will see.
#[expect(clippy::too_many_arguments, reason = "all that is known of a request meets here once")]
#[expect(clippy::result_large_err, reason = "the client's headers go back to whoever answers")]
fn prepare<'s>(
    core: &Core,
    snapshot: &'s Snapshot,
    ends: Ends,
    parts: request::Parts,
    incoming: Incoming,
    request_id: &Arc<str>,
    start_us: u64,
    access: &mut Access,
) -> Result<(Exchange, &'s Arc<AppView>), (Reply, HeaderMap)> {
    let request::Parts { method, uri, version, mut headers, mut extensions, .. } = parts;
    if method == Method::CONNECT {
        return Err((Reply::Connect, headers));
    }
    if let Err(refusal) = strict::check(&method, &uri, &headers, core.config.max_target) {
        return Err((Reply::Strict(refusal), headers));
    }
    let found = hosts::host(&uri, &headers).or_else(|reply| {
        // HTTP/1.0 knows no Host; a dedicated address needs none.
        let dedicated = version == Version::HTTP_10 && !headers.contains_key(HOST);
        if dedicated { Ok(Cow::Borrowed("")) } else { Err(reply) }
    });
    let app = match found.and_then(|host| hosts::app(snapshot, ends.public.ip(), &host)) {
        Ok(app) => app,
        Err(reply) => return Err((reply, headers)),
    };
    let counters = core.metrics.app(app.app.id);
    access.connection.met(&counters);
    counters.budget.request(clock::ms(access.started));
    access.app = Some((app.app.name.clone(), counters));
    access.org = Some(app.app.org);
    access.trace.set(attr::APP, || app.app.name.to_string());
    let port = ends.public.port();
    let Some((HandlerChain::Http, settings)) = hosts::service(app, port) else {
        return Err((Reply::NoService(port), headers));
    };
    let target = uri.path_and_query().map_or(Uri::from_static("/"), |target| Uri::from(target.clone()));
    if settings.force_https {
        let host = hosts::host(&uri, &headers).unwrap_or_default();
        return Err((Reply::Https(format!("https://{host}{target}")), headers));
    }
    if let Some(authority) = uri.authority() {
        // RFC 9112 section 3.2.2, RFC 9113 section 8.3.1: what the target names stands for Host.
        if let Ok(value) = HeaderValue::from_str(authority.as_str()) {
            headers.insert(HOST, value);
        }
    }
    if version == Version::HTTP_2 {
        headers::join_cookies(&mut headers);
    }
    access.connection.watch.limit(settings.http_options.as_ref());
    // hyper adds it to what asks for an upgrade. A body would have to be sent before the change.
    let upgrade = extensions.remove::<OnUpgrade>().filter(|_| incoming.is_end_stream());
    let upgrade = upgrade.and_then(|upgrade| Some((upgrade, headers::upgrade(&headers)?)));
    // The edge answers 100 itself, once the body is wanted.
    let expects = headers.remove(EXPECT).is_some();
    // The id is ASCII.
    let id = HeaderValue::from_str(request_id).unwrap_or(HeaderValue::from_static(""));
    let forward =
        Forward { origin: access.connection.origin(), request_id: &id, tls: false, version, start_us };
    if let Err(headers::Loop(passes)) = headers::to_machine(&mut headers, &forward) {
        return Err((Reply::Loop(passes), headers));
    }
    let body = (!incoming.is_end_stream())
        .then(|| ClientStream::new(incoming, version))
        .map(|body| KeptBody::new(body, core.config.replay_buffer, Arc::clone(&core.budget)));
    if let Some(body) = &body {
        body.hurry(&access.connection, version);
    }
    if body.is_some() && !headers.contains_key(CONTENT_LENGTH) {
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    let upgrade = upgrade.map(|(upgrade, protocol)| {
        headers::set_upgrade(&mut headers, protocol);
        upgrade
    });
    let deadline = access.started + core.config.route_timeout;
    let request_id = Arc::clone(request_id);
    Ok((
        Exchange {
            ends,
            method,
            target,
            headers,
            body,
            upgrade,
            expects,
            request_id,
            resend: 0,
            hop: None,
            relayed: None,
            place: None,
            deadline,
        },
        app,
    ))
}

/// Which configuration, and which service of it, answered.
struct Served {
    config: Option<Arc<MachineConfig>>,
    service: usize,
}

impl Served {
    fn by(machine: &MachineView, service: usize) -> Self {
        Self { config: machine.config.clone(), service }
    }

    /// How the service wants its responses.
    fn options(&self, port: u16) -> Option<&HttpOptions> {
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
async fn proxy(
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
                core.metrics.retries.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
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
    core.metrics.unretried.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
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
    core.metrics.replays.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
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

/// A response that the proxy makes itself.
fn own(
    core: &Core,
    reply: &Reply,
    asked: &HeaderMap,
    version: Version,
    mut access: Box<Access>,
) -> Response<ClientBody> {
    access.status = Some(reply.status().as_u16());
    if let Some(code) = reply.code() {
        access.fail(code, &reply.help());
    }
    let tried = access.last.map(|last| Tried { attempts: access.attempts, last });
    let response = reply.response(asked, version, &core.server, &access.request_id, tried);
    let (mut head, body): (_, Bytes) = response.into_parts();
    say_if_last(&access.connection, version, &mut head.headers);
    let promised = Some(body.len() as u64);
    let answer = Answer::Own(Some(body).filter(|body| !body.is_empty()));
    Response::from_parts(head, ClientBody::new(answer, promised, access, Held::default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<F>(_: impl FnOnce(&'static Arc<Connection>, Request<Incoming>) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn what_a_request_keeps_while_it_waits_is_small() {
        // It is moved when it begins, and every connection has room for it, also while it is idle.
        let size = size(handle);
        assert!(size <= 4_000, "{size} bytes");
    }
}
