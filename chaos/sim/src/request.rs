//! A request at its edge, on the production's [`Route`]: decide, try, follow, until it ends.
//!
//! It is a future that only ever waits for the outcome of its attempt; the world polls it when that
//! has come.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use skein_core::balance::Constraint;
use skein_core::code::ErrorCode;
use skein_core::explain::Steps;
use skein_core::load::{Estimate, LoadClass};
use skein_core::machine::MachineState;
use skein_core::random::Seed;
use skein_core::region::Regions;
use skein_core::retry::Failure;
use skein_core::route::{Repeat, Route, World};
use skein_core::snapshot::{AppView, Snapshot};
use skein_core::suspicion::Proximity;
use skein_core::{AppId, MachineId, NodeNumber};

use crate::agenda::Micros;
use crate::invariants::{Decided, Known};
use crate::peers::{Clock, Peers};
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
    /// Whether another one could take it.
    pub alternatives: bool,
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
}

/// What passes between a request and the world.
#[derive(Debug, Default)]
pub struct Desk {
    /// The attempt to make.
    pub aim: Option<Aim>,
    /// What came of it.
    pub outcome: Option<Outcome>,
    /// Decisions that were taken.
    pub decided: Vec<Decided>,
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
}

/// A request under way.
pub struct Running {
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
    pub fn begin(asked: Asked, edge: Edge, snapshot: Arc<Snapshot>, rng: Seed) -> Self {
        let desk = Rc::new(RefCell::new(Desk::default()));
        let future = Box::pin(proxy(asked.clone(), edge, snapshot, Rc::clone(&desk), rng));
        Self { future, desk, asked }
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

async fn proxy(
    asked: Asked,
    edge: Edge,
    snapshot: Arc<Snapshot>,
    desk: Rc<RefCell<Desk>>,
    mut rng: Seed,
) -> End {
    let Some(app) = snapshot.apps.get(&asked.app) else { return End::NoApp };
    let mut route = Route::new(app, PORT, Vec::new());
    loop {
        let world = World {
            snapshot: &snapshot,
            proximity: &*edge.peers,
            regions: &edge.regions,
            now_ms: edge.clock.ms(),
        };
        let draining = edge.draining.load(Ordering::Relaxed);
        let mut steps = Steps::default();
        let pen = steps.at(Duration::ZERO);
        let decision = route.decide(&world, |c| !draining || c.machine.node != edge.node, &mut rng, pen);
        let constraint = route.constraint().clone();
        let pick = decision.as_ref().ok().map(|decision| decision.pick.candidate.machine.record.id);
        let decided = Decided {
            request: asked.id,
            machine: constraint.machine,
            regions: constraint.regions.clone(),
            known: known(route.app(), &snapshot, &constraint, &edge),
            pick,
        };
        {
            let mut desk = desk.borrow_mut();
            desk.decided.push(decided);
            (desk.constraint, desk.app) = (constraint, Some(route.app().app.id));
        }
        let decision = match decision {
            Ok(decision) => decision,
            Err(code) => return End::Code(code),
        };
        let machine = decision.pick.candidate.machine;
        let mut in_flight = machine.estimate.enter(edge.clock.ms());
        {
            let mut desk = desk.borrow_mut();
            desk.attempts += 1;
            desk.aim = Some(Aim {
                app: route.app().app.id,
                machine: machine.record.id,
                node: machine.node,
                estimate: Arc::clone(&machine.estimate),
                alternatives: decision.alternatives,
                hop: route.replays(),
            });
        }
        let at = edge.clock.now();
        match outcome(&desk).await {
            Outcome::Answered { load, instruction: None } => {
                machine.estimate.tell(load, edge.clock.ms());
                in_flight.answered(edge.clock.ms());
                return End::Answered(machine.record.id);
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
                if let Err(stop) = route.follow(instruction.as_bytes(), machine, &world) {
                    desk.borrow_mut().stopped = Stopped::Replay;
                    return End::Code(stop.code);
                }
            }
            Outcome::Failed { failure, load } => {
                drop(in_flight);
                if let Some(load) = load {
                    machine.estimate.tell(load, edge.clock.ms());
                }
                {
                    let mut desk = desk.borrow_mut();
                    desk.refusals += u32::from(matches!(failure, Failure::Refused(_)));
                    let (machine, node) = (machine.record.id, machine.node);
                    desk.failed.push(Failed { machine, node, at, failure });
                }
                let left = Duration::from_micros(asked.deadline.saturating_sub(edge.clock.now()));
                let repeat = Repeat { idempotent: !asked.post, replayable: true, left };
                if let Err(code) = route.after_failure(machine.record.id, failure, false, repeat) {
                    desk.borrow_mut().stopped = Stopped::Failure;
                    return End::Code(code);
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
            rtt: edge.peers.rtt(machine.node),
            load,
            soft,
            hard,
        }
    };
    app.machines.values().map(known).collect()
}
