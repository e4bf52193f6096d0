//! A request at its edge, on the production's [`Route`]: decide, try, follow, wait, until it ends.
//!
//! It is a future that only ever waits for the outcome of its attempt or for its turn in the queue; the
//! world polls it when that has come.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use skein_core::autostop::wake::Wake;
use skein_core::balance::{Constraint, Pick};
use skein_core::budget::RetryBudget;
use skein_core::code::ErrorCode;
use skein_core::explain::Steps;
use skein_core::load::{Estimate, LoadClass};
use skein_core::machine::MachineState;
use skein_core::queue::{Crowded, Want};
use skein_core::random::Seed;
use skein_core::region::Regions;
use skein_core::relay;
use skein_core::retry::{Failure, is_before_admission};
use skein_core::route::{Repeat, Route, Way, World};
use skein_core::snapshot::{AppView, Snapshot};
use skein_core::suspicion::Proximity;
use skein_core::wire::RefuseReason;
use skein_core::{AppId, MachineId, NodeNumber};

use crate::agenda::Micros;
use crate::demand::{Demands, Waiting};
use crate::invariants::{Decided, Known};
use crate::peers::{Clock, Peers};
use crate::queue::{self, Place, Queue};
use crate::reference::Failed;
use crate::seam::poll;

/// The public port of every app.
pub const PORT: u16 = 80;

/// What a client asks for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Its number.
    pub id: u64,
    /// The app.
    pub app: AppId,
    /// POST instead of GET.
    pub post: bool,
    /// How long the app takes.
    pub takes: Micros,
    /// What the first Machine that gets it answers; later ones answer plainly.
    pub instruction: Option<String>,
    /// By when a Machine must have it.
    pub deadline: Micros,
}

/// An attempt that the edge wants made.
#[derive(Debug, Clone)]
pub struct Aim {
    /// The app that it is for.
    pub app: AppId,
    /// The Machine.
    pub machine: MachineId,
    /// Its node.
    pub node: NodeNumber,
    /// The edge's belief of its load.
    pub estimate: Arc<Estimate>,
    /// What the edge knew.
    pub snapshot: Arc<Snapshot>,
    /// Whether another one could take it.
    pub alternatives: bool,
    /// The node that passes it on, while the edge can't reach the Machine's.
    pub via: Option<NodeNumber>,
    /// Replays before it.
    pub hop: u32,
}

/// What came of an attempt.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The app answered, perhaps with an instruction.
    Answered {
        /// What was in flight there.
        load: u32,
        /// `fly-replay`.
        instruction: Option<String>,
    },
    /// No response came.
    Failed {
        /// How.
        failure: Failure,
        /// What was in flight there, if it said.
        load: Option<u32>,
        /// Whether there is another way to the Machine: nothing speaks against it.
        stale: bool,
        /// The node that passed it on.
        via: Option<NodeNumber>,
    },
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The app answered; which Machine.
    Answered(MachineId),
    /// The edge does not know the app.
    NoApp,
    /// The proxy's own answer.
    Code(ErrorCode),
}

/// At what a request ended without a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stopped {
    /// No Machine was left for it.
    #[default]
    Decision,
    /// A failure that may not be followed by another attempt.
    Failure,
    /// An instruction that could not be followed.
    Replay,
    /// A failure, after which the app's budget for retries was spent.
    Budget,
    /// Too many waited already.
    Crowded,
    /// It waited for as long as it may.
    Waited,
    /// It waited for a start, for as long as it may.
    Unstarted,
}

/// What a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It tries by itself.
    Poll,
    /// It was woken.
    Woken,
    /// It waited for as long as it may.
    Late,
}

/// What a request did that the world does not see otherwise.
#[derive(Debug, Clone)]
pub enum Did {
    /// It took a decision.
    Decided(Box<Decided>),
    /// It took its place at the end of the line, for what it asks for.
    Joined(AppId, Constraint, Want),
    /// It waits from now on, the first of its line or not, until then.
    Waits {
        /// Whether it tries by itself.
        first: bool,
        /// By when it gives up.
        until: Micros,
    },
    /// It tries, from its place in the line.
    Tries,
    /// It goes to a Machine, for what it asks for, without a place.
    Passes(AppId, Want),
    /// It takes a retry out of the app's budget.
    Retries(AppId),
}

/// What passes between a request and the world.
#[derive(Debug, Default)]
pub struct Desk {
    /// The attempt to make.
    pub aim: Option<Aim>,
    /// What came of it.
    pub outcome: Option<Outcome>,
    /// Its turn, once it has come.
    pub turn: Option<Turn>,
    /// Its place in the queue, until a Machine has it.
    pub place: Option<Place>,
    /// Whether it waits for a start.
    pub hopes: bool,
    /// How often it began to wait.
    pub waits: u32,
    /// When it loaded the snapshot that it decides by.
    pub loaded: Micros,
    /// What it did since the world looked last.
    pub did: Vec<Did>,
    /// Attempts so far, and how many of them were refused.
    pub attempts: u32,
    /// Refusals so far.
    pub refusals: u32,
    /// What was last asked for.
    pub constraint: Constraint,
    /// The app that it is for now.
    pub app: Option<AppId>,
    /// Attempts that failed since the last replay.
    pub failed: Vec<Failed>,
    /// At what it ended without a response.
    pub stopped: Stopped,
    /// Machines that its edge avoided when it decided.
    pub out: BTreeSet<MachineId>,
    /// Machines that answered it with an instruction.
    pub answered: Vec<MachineId>,
    /// The app that an instruction names, whether it exists or not.
    pub target: Option<AppId>,
}

/// What an edge has.
#[derive(Debug, Clone)]
pub struct Edge {
    /// Its node.
    pub node: NodeNumber,
    /// The clock.
    pub clock: Arc<Clock>,
    /// Its peers.
    pub peers: Arc<Peers>,
    /// The regions.
    pub regions: Arc<Regions>,
    /// Whether it drains.
    pub draining: Arc<AtomicBool>,
    /// What it knows.
    pub reader: Rc<RefCell<Arc<Snapshot>>>,
    /// Requests that wait.
    pub queue: Rc<Queue>,
    /// What its requests want started.
    pub demands: Rc<Demands>,
    /// The budgets for retries, of each app.
    pub budgets: Rc<RefCell<BTreeMap<AppId, RetryBudget>>>,
}

impl Edge {
    /// The way around a link that is cut.
    pub fn via(&self, snapshot: &Snapshot, to: NodeNumber) -> Option<NodeNumber> {
        relay::via(snapshot, &*self.peers, &self.regions, self.node, to)
    }

    fn budget<T>(&self, app: AppId, of: impl Fn(&RetryBudget, u64) -> T) -> T {
        of(self.budgets.borrow_mut().entry(app).or_default(), self.clock.ms())
    }
}

/// A request under way.
pub struct Running {
    /// Its edge.
    pub edge: Edge,
    future: Pin<Box<dyn Future<Output = End>>>,
    /// What passes between it and the world.
    pub desk: Rc<RefCell<Desk>>,
    /// What was asked.
    pub asked: Asked,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("asked", &self.asked).finish_non_exhaustive()
    }
}

impl Running {
    /// Begins a request with the snapshot of this moment.
    pub fn begin(asked: Asked, edge: Edge, rng: Seed) -> Self {
        let desk = Rc::new(RefCell::new(Desk::default()));
        let trip = Trip {
            asked: asked.clone(),
            edge: edge.clone(),
            desk: Rc::clone(&desk),
            rng,
            woke: false,
            waiting: None,
        };
        Self { edge, future: Box::pin(trip.proxy()), desk, asked }
    }

    /// Goes on; the end, if it has come.
    pub fn go_on(&mut self) -> Option<End> {
        poll(self.future.as_mut())
    }
}

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
}

struct Trip {
    asked: Asked,
    edge: Edge,
    desk: Rc<RefCell<Desk>>,
    rng: Seed,
    /// It waited for a start since the last replay.
    woke: bool,
    waiting: Option<Waiting>,
}

impl Trip {
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

    async fn proxy(mut self) -> End {
        let snapshot = self.load();
        let Some(app) = snapshot.apps.get(&self.asked.app) else { return End::NoApp };
        self.edge.budget(app.app.id, RetryBudget::request);
        let mut way = match self.round(&snapshot, Route::new(app, PORT, Vec::new())).await {
            Round::Ended(end) => return end,
            Round::Full(way) => way,
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
            let snapshot = self.load();
            let Some(route) = way.resume(&snapshot) else {
                return self.stop(Stopped::Decision, ErrorCode::PR01);
            };
            match self.round(&snapshot, route).await {
                Round::Ended(end) => return end,
                Round::Full(again) => {
                    self.desk.borrow().place.iter().for_each(Place::again);
                    way = again;
                }
            }
        }
    }

    async fn round<'s>(&mut self, snapshot: &'s Arc<Snapshot>, mut route: Route<'s>) -> Round {
        let (desk, edge) = (Rc::clone(&self.desk), self.edge.clone());
        let mut full = 0;
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
                return Round::Full(route.wait());
            }
            let draining = edge.draining.load(Ordering::Relaxed);
            let mut steps = Steps::default();
            let pen = steps.at(Duration::ZERO);
            let usable = |c: &skein_core::balance::Candidate<'_>| !draining || c.machine.node != edge.node;
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
                full,
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
                    return Round::Full(route.wait());
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
                    full = 0;
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
                    full += u32::from(failure == Failure::Refused(RefuseReason::Full));
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
