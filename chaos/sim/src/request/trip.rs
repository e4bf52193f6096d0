//! The way of a request: what the production's edge does in `round`, `choose` and `queue`.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use skein_core::AppId;
use skein_core::autostop::wake::Wake;
use skein_core::balance::{Candidate, Constraint, Pick};
use skein_core::budget::RetryBudget;
use skein_core::code::ErrorCode;
use skein_core::explain::Steps;
use skein_core::load::LoadClass;
use skein_core::machine::MachineState;
use skein_core::queue::Crowded;
use skein_core::random::Seed;
use skein_core::retry::{Failure, is_before_admission};
use skein_core::route::{Repeat, Route, Way, World};
use skein_core::snapshot::{AppView, Snapshot};
use skein_core::suspicion::Proximity;
use skein_core::wire::RefuseReason;

use super::{Aim, Asked, Desk, Did, Edge, End, Outcome, PORT, Stopped, Turn};
use crate::demand::Waiting;
use crate::invariants::{Decided, Known};
use crate::queue::{self, Place};
use crate::reference::Failed;

async fn outcome(desk: &RefCell<Desk>) -> Outcome {
    std::future::poll_fn(|_| match desk.borrow_mut().outcome.take() {
        Some(outcome) => Poll::Ready(outcome),
        None => Poll::Pending,
    })
    .await
}

async fn turn(desk: &RefCell<Desk>) -> Turn {
    std::future::poll_fn(|_| match desk.borrow_mut().turn.take() {
        Some(turn) => Poll::Ready(turn),
        None => Poll::Pending,
    })
    .await
}

/// What came of going to Machines as one snapshot has them.
enum Round {
    Ended(End),
    /// None has room: it waits.
    Full(Way),
    /// One failed, and more is known now than when it was chosen.
    Outdated(Way),
}

/// A request on its way.
pub(super) struct Trip {
    asked: Asked,
    edge: Edge,
    desk: Rc<RefCell<Desk>>,
    rng: Seed,
    /// It waited for a start since the last replay.
    woke: bool,
    waiting: Option<Waiting>,
    /// Full Machines that it met since it waited last, or came.
    full: u32,
}

impl Trip {
    pub(super) fn new(asked: Asked, edge: Edge, desk: Rc<RefCell<Desk>>, rng: Seed) -> Self {
        Self { asked, edge, desk, rng, woke: false, waiting: None, full: 0 }
    }

    fn judge<'s>(&self, world: &World<'s>, route: &Route<'s>, pick: Option<&Pick<'s>>, waits: bool) -> Wake {
        route.wake(world, pick, waits, 1_700_000_000_000 + self.edge.clock.ms())
    }

    /// Notes what is to be started while it waits.
    fn wait_for(&mut self, app: AppId, wake: Wake) {
        let (want, only) = match wake {
            Wake::Nothing => return self.set_waiting(None),
            Wake::GoOn(want) => (want, false),
            Wake::Wait(want) | Wake::Await(want) => (want, true),
        };
        self.woke |= matches!(wake, Wake::Wait(_));
        let kept = self.waiting.take().filter(|waiting| waiting.is_for((app, want)));
        let mut waiting = kept.unwrap_or_else(|| self.edge.demands.wait((app, want)));
        waiting.only = only;
        self.set_waiting(Some(waiting));
    }

    fn set_waiting(&mut self, waiting: Option<Waiting>) {
        self.desk.borrow_mut().hopes = waiting.is_some();
        self.waiting = waiting;
    }

    fn stop(&self, at: Stopped, code: ErrorCode) -> End {
        self.desk.borrow_mut().stopped = at;
        End::Code(code)
    }

    fn did(&self, did: Did) {
        self.desk.borrow_mut().did.push(did);
    }

    fn load(&self) -> Arc<Snapshot> {
        self.desk.borrow_mut().loaded = self.edge.clock.now();
        Arc::clone(&self.edge.reader.borrow())
    }

    pub(super) async fn proxy(mut self) -> End {
        let snapshot = self.load();
        let Some(app) = snapshot.apps.get(&self.asked.app) else { return End::NoApp };
        self.edge.budget(app.app.id, RetryBudget::request);
        let mut way = match self.round(&snapshot, Route::new(app, PORT, Vec::new())).await {
            Round::Ended(end) => return end,
            Round::Full(way) => way,
            Round::Outdated(way) => match self.rounds(way).await {
                Ok(end) => return end,
                Err(way) => way,
            },
        };
        // From here on as the production's `queue` does.
        let mut until = self.asked.deadline;
        loop {
            let kept = self.desk.borrow().place.is_some();
            if !kept {
                until = self.asked.deadline.min(self.edge.clock.now() + queue::TIMEOUT);
                match self.edge.queue.join(way.service(), way.want(), self.asked.id) {
                    Ok(place) => self.desk.borrow_mut().place = Some(place),
                    Err(Crowded) => return self.stop(Stopped::Crowded, ErrorCode::PR04),
                }
                let constraint = self.desk.borrow().constraint.clone();
                self.did(Did::Joined(way.service().0, constraint, way.want()));
            }
            let starts = self.waiting.as_ref().is_some_and(|waiting| waiting.only);
            {
                let mut desk = self.desk.borrow_mut();
                let first = desk.place.as_ref().is_some_and(Place::is_first);
                desk.waits += 1;
                let until = if starts { self.asked.deadline } else { until };
                desk.did.push(Did::Waits { first, until });
            }
            match turn(&self.desk).await {
                Turn::Late if starts => return self.stop(Stopped::Unstarted, ErrorCode::PM01),
                Turn::Late => return self.stop(Stopped::Waited, ErrorCode::PR04),
                Turn::Poll => self.desk.borrow().place.iter().for_each(Place::tries),
                Turn::Woken => {}
            }
            self.did(Did::Tries);
            match self.rounds(way).await {
                Ok(end) => return end,
                Err(again) => {
                    self.desk.borrow().place.iter().for_each(Place::again);
                    way = again;
                }
            }
        }
    }

    /// Goes on with what is known now, after each failure anew. Gives the way back when none has room.
    async fn rounds(&mut self, mut way: Way) -> Result<End, Way> {
        loop {
            let snapshot = self.load();
            let Some(route) = way.resume(&snapshot) else {
                return Ok(self.stop(Stopped::Decision, ErrorCode::PR01));
            };
            match self.round(&snapshot, route).await {
                Round::Ended(end) => return Ok(end),
                Round::Full(way) => return Err(way),
                Round::Outdated(again) => way = again,
            }
        }
    }

    /// It waits: whoever was full may be asked again.
    fn full(&mut self, route: Route<'_>) -> Round {
        self.full = 0;
        Round::Full(route.wait())
    }

    async fn round<'s>(&mut self, snapshot: &'s Arc<Snapshot>, mut route: Route<'s>) -> Round {
        let (desk, edge) = (Rc::clone(&self.desk), self.edge.clone());
        loop {
            let world =
                World { snapshot, proximity: &*edge.peers, regions: &edge.regions, now_ms: edge.clock.ms() };
            let (app, constraint) = (route.app().app.id, route.constraint().clone());
            let placed = {
                let mut desk = desk.borrow_mut();
                (desk.constraint, desk.app) = (constraint.clone(), Some(app));
                desk.place.is_some()
            };
            if !placed && edge.queue.is_ahead(route.way().service(), &route.way().want()) {
                let wake = self.judge(&world, &route, None, false);
                self.wait_for(app, wake);
                return self.full(route);
            }
            let draining = edge.draining.load(Ordering::Relaxed);
            let mut steps = Steps::default();
            let pen = steps.at(Duration::ZERO);
            let usable = |c: &Candidate<'_>| !draining || c.machine.node != edge.node;
            let decision = route.decide(&world, usable, &mut self.rng, pen);
            let pick = decision.as_ref().ok().map(|decision| decision.pick.candidate.machine.record.id);
            let known = known(route.app(), snapshot, &constraint, &edge);
            let out = known.iter().filter(|known| known.out).map(|known| known.machine);
            desk.borrow_mut().out.extend(out);
            let decided = Decided {
                request: self.asked.id,
                machine: constraint.machine,
                regions: constraint.regions.clone(),
                known,
                pick,
                full: self.full,
                goes: false,
            };
            let waits = self.woke;
            let wake = match &decision {
                Ok(decision) if !decision.asleep && !waits => Wake::Nothing,
                Ok(decision) => self.judge(&world, &route, Some(&decision.pick), waits),
                Err(_) => self.judge(&world, &route, None, waits),
            };
            let goes = matches!(wake, Wake::Nothing | Wake::GoOn(_));
            let goes = goes && decision.as_ref().is_ok_and(|decision| !decision.enough);
            self.did(Did::Decided(Box::new(Decided { goes, ..decided })));
            let decision = match (decision, wake) {
                (Ok(decision), Wake::Nothing) if !decision.enough => decision,
                (Ok(decision), Wake::GoOn(want)) if !decision.enough => {
                    edge.demands.want((app, want));
                    decision
                }
                (Ok(_) | Err(ErrorCode::PR04), wake)
                | (Err(_), wake @ (Wake::Wait(_) | Wake::Await(_) | Wake::GoOn(_))) => {
                    self.wait_for(app, wake);
                    return self.full(route);
                }
                (Err(ErrorCode::PR01), Wake::Nothing) if self.woke => {
                    return Round::Ended(self.stop(Stopped::Decision, ErrorCode::PM01));
                }
                (Err(code), Wake::Nothing) => {
                    return Round::Ended(self.stop(Stopped::Decision, code));
                }
            };
            self.set_waiting(None);
            if !placed {
                self.did(Did::Passes(app, route.way().want()));
            }
            let machine = decision.pick.candidate.machine;
            let mut in_flight = machine.estimate.enter(edge.clock.ms());
            {
                let mut desk = desk.borrow_mut();
                desk.attempts += 1;
                desk.aim = Some(Aim {
                    app,
                    machine: machine.record.id,
                    node: machine.node,
                    estimate: Arc::clone(&machine.estimate),
                    snapshot: Arc::clone(snapshot),
                    alternatives: decision.alternatives,
                    via: edge.via(snapshot, machine.node).filter(|_| edge.peers.suspect(machine.node)),
                    hop: route.replays(),
                });
            }
            let at = edge.clock.now();
            match outcome(&desk).await {
                Outcome::Answered { load, instruction: None } => {
                    machine.estimate.tell(load, edge.clock.ms());
                    in_flight.answered(edge.clock.ms());
                    return Round::Ended(End::Answered(machine.record.id));
                }
                Outcome::Answered { load, instruction: Some(instruction) } => {
                    machine.estimate.tell(load, edge.clock.ms());
                    in_flight.answered(edge.clock.ms());
                    {
                        let mut desk = desk.borrow_mut();
                        desk.answered.push(machine.record.id);
                        desk.failed.clear();
                    }
                    drop(in_flight);
                    self.full = 0;
                    self.woke = false;
                    if let Err(stop) = route.follow(instruction.as_bytes(), machine, &world) {
                        return Round::Ended(self.stop(Stopped::Replay, stop.code));
                    }
                }
                Outcome::Failed { failure, load, stale, via } => {
                    drop(in_flight);
                    if let Some(load) = load {
                        machine.estimate.tell(load, edge.clock.ms());
                    }
                    self.full += u32::from(failure == Failure::Refused(RefuseReason::Full));
                    {
                        let mut desk = desk.borrow_mut();
                        desk.refusals += u32::from(matches!(failure, Failure::Refused(_)));
                        let (machine, node) = (machine.record.id, machine.node);
                        desk.failed.push(Failed { machine, node, via, at, failure });
                    }
                    let left = Duration::from_micros(self.asked.deadline.saturating_sub(edge.clock.now()));
                    let repeat = Repeat { idempotent: !self.asked.post, replayable: true, left };
                    if let Err(code) = route.after_failure(machine.record.id, failure, stale, repeat) {
                        return Round::Ended(self.stop(Stopped::Failure, code));
                    }
                    if !is_before_admission(failure) {
                        if !edge.budget(app, RetryBudget::retry) {
                            return Round::Ended(self.stop(Stopped::Budget, ErrorCode::PR03));
                        }
                        self.did(Did::Retries(app));
                    }
                    if edge.reader.borrow().version != snapshot.version {
                        return Round::Outdated(route.into_way());
                    }
                }
            }
        }
    }
}

/// What the edge knows of the app's Machines, read without the balancer.
fn known(app: &AppView, snapshot: &Snapshot, constraint: &Constraint, edge: &Edge) -> Vec<Known> {
    let known = |machine: &Arc<skein_core::snapshot::MachineView>| {
        let record = &machine.record;
        let node = snapshot.nodes.get(&machine.node);
        let service = machine.config.as_ref().and_then(|config| config.tcp_service(PORT));
        let limits = service.map(|(_, service, _)| service.limits());
        let (soft, hard) = limits.map_or((1, None), |limits| (limits.soft, limits.hard));
        let drains = node.is_some_and(|node| node.record.draining)
            || (machine.node == edge.node && edge.draining.load(Ordering::Relaxed));
        let now_ms = edge.clock.ms();
        // A count told within two seconds stands; else the class that gossip carries.
        let class = match record.load {
            LoadClass::BelowSoft => 0,
            LoadClass::SoftToHard => soft,
            LoadClass::AtHard => hard.unwrap_or(soft),
        };
        let told = machine.estimate.is_told(now_ms);
        let load = machine.estimate.load(now_ms).max(if told { 0 } else { class });
        let routable = record.state == MachineState::Started && record.healthy && !record.cordoned;
        Known {
            machine: record.id,
            region: machine.region,
            routable: routable && !drains && service.is_some(),
            excluded: constraint.exclude.contains(&record.id),
            alive: node.is_some_and(|node| node.alive),
            age: node.map_or(Duration::MAX, |node| node.confirmed.age(now_ms)),
            suspect: edge.peers.suspect(machine.node),
            out: machine.estimate.outlier().is_out(edge.clock.ms()),
            silent: machine.estimate.outlier().is_silent(edge.clock.ms()),
            rtt: edge.peers.rtt(machine.node),
            load,
            soft,
            hard,
        }
    };
    app.machines.values().map(known).collect()
}
