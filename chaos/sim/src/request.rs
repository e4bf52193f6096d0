//! A request at its edge, on the production's [`Route`](skein_core::route::Route): decide, try, follow, wait, until it ends.
//!
//! It is a future that only ever waits for the outcome of its attempt or for its turn in the queue; the
//! world polls it when that has come.

mod trip;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use skein_core::balance::Constraint;
use skein_core::budget::RetryBudget;
use skein_core::code::ErrorCode;
use skein_core::load::Estimate;
use skein_core::queue::Want;
use skein_core::random::Seed;
use skein_core::region::Regions;
use skein_core::relay;
use skein_core::retry::Failure;
use skein_core::snapshot::Snapshot;
use skein_core::{AppId, MachineId, NodeNumber};

use crate::agenda::Micros;
use crate::demand::Demands;
use crate::invariants::Decided;
use crate::peers::{Clock, Peers};
use crate::queue::{Place, Queue};
use crate::reference::Failed;
use crate::seam::poll;
use trip::Trip;

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
        let trip = Trip::new(asked.clone(), edge.clone(), Rc::clone(&desk), rng);
        Self { edge, future: Box::pin(trip.proxy()), desk, asked }
    }

    /// Goes on; the end, if it has come.
    pub fn go_on(&mut self) -> Option<End> {
        poll(self.future.as_mut())
    }
}
