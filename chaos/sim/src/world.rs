//! The world: all nodes on one clock and one network, and what happens to them.
//!
//! Everything random comes from children of one seed, everything iterated is ordered, so one seed
//! makes one run. After each event what was observed is judged by [`invariants`](crate::invariants).

mod apply;
mod auto;
mod carry;
mod edge;
mod event;
mod fold;
mod life;
mod line;
mod look;
mod pass;
mod step;
mod worker;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;

use skein_core::machine::MachineConfig;
use skein_core::queue::Bounds;
use skein_core::random::Seed;
use skein_core::region::Regions;
use skein_core::{ConfigHash, MachineId, NodeNumber, RegionCode};

use crate::agenda::{Agenda, Micros, SECOND};
use crate::bare::region_of;
use crate::cluster::Cluster;
use crate::facts;
use crate::gossip::Params;
use crate::invariants::{Verdict, Violation};
use crate::net::Network;
use crate::node::Node;
use crate::peers::{Clock, Peers};
use crate::queue::BOUNDS;
use crate::reference::Reference;
use crate::registry::{self, Registries};
use crate::transition::Transition;
pub(crate) use event::Open;
use event::{Event, Packet};

/// A request waits so long for a Machine to take it.
const PATIENCE: Micros = 20 * SECOND;
/// Views of gossip are equal so long after all is healed.
const HEALED: Micros = 3 * SECOND;
/// So long after all is healed a majority follows a leader; [`HEALED`] after that, and after healing,
/// the registry's views are equal.
const LED: Micros = 5 * SECOND;

/// How a run is made.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// How many nodes.
    pub nodes: u8,
    /// Every so many folds of a node are compared with the fold from nothing.
    pub compare_every: u64,
    /// The nodes' regions, in turn; empty is all there are.
    pub regions: &'static [&'static str],
    /// Between two looks for idle Machines.
    pub interval: Micros,
    /// So many of an app in a region stop at once.
    pub batch: usize,
    /// So many requests may wait at an edge.
    pub bounds: Bounds,
}

impl Setup {
    /// `nodes` nodes; up to 25 each fold is compared, above every tenth.
    pub fn new(nodes: u8) -> Self {
        let compare_every = if nodes <= 25 { 1 } else { 10 };
        Self {
            nodes: nodes.max(1),
            compare_every,
            regions: &[],
            interval: 5 * SECOND,
            batch: 1,
            bounds: BOUNDS,
        }
    }

    /// A node in each of these regions, some of them more than once.
    pub fn at(regions: &'static [&'static str]) -> Self {
        Self { regions, ..Self::new(regions.len() as u8) }
    }

    fn region(&self, regions: &Regions, number: NodeNumber) -> RegionCode {
        let named = self.regions.get(number.0 as usize - 1).and_then(|region| region.parse().ok());
        named.unwrap_or_else(|| region_of(regions, NodeNumber(number.0 * 5)))
    }
}

/// What a run came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Requests that came.
    pub requests: u64,
    /// Those that an app answered.
    pub answered: u64,
    /// Those that failed with a cause.
    pub failed: u64,
    /// Those whose edge died.
    pub orphaned: u64,
    /// Machines that traffic started.
    pub started: u64,
    /// Machines that came to rest.
    pub rested: u64,
    /// Those that waited for room.
    pub waited: u64,
    /// Decisions that were judged.
    pub decisions: u64,
    /// Snapshots.
    pub folds: u64,
    /// The last transition, by its place in the whole.
    pub step: usize,
    /// When the run ended.
    pub at: Micros,
}

/// How often what failed for which cause.
pub type Causes = BTreeMap<(&'static str, &'static str), u64>;

/// Who leads the registry, in which term, after healing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lead {
    who: (NodeNumber, u64),
    /// Since when a majority of the voters follows.
    since: Micros,
    /// Whether all of them did.
    by_all: bool,
}

/// All nodes.
pub struct World {
    seed: Seed,
    setup: Setup,
    trace: Vec<(usize, (Micros, Transition))>,
    agenda: Agenda<Event>,
    clock: Arc<Clock>,
    regions: Arc<Regions>,
    places: Vec<(NodeNumber, RegionCode)>,
    network: Network,
    gossip: Cluster,
    registry: Registries,
    nodes: BTreeMap<NodeNumber, Node>,
    /// What waits for nodes that stand still.
    waiting: BTreeMap<NodeNumber, VecDeque<Event>>,
    reference: Reference,
    /// When a node last knew another's facts to be confirmed, by both.
    confirmed: BTreeMap<(NodeNumber, NodeNumber), Micros>,
    slots: BTreeMap<u8, (NodeNumber, MachineId)>,
    arrived: BTreeMap<NodeNumber, Vec<(ConfigHash, Arc<MachineConfig>)>>,
    lives: u64,
    works: u64,
    /// Hints that were sent.
    hints: u64,
    requests: u64,
    /// When all was healed.
    healed: Option<Micros>,
    /// Who leads the registry since then.
    lead: Option<Lead>,
    counts: Counts,
    causes: Causes,
    log: String,
    violation: Option<Violation>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("now", &self.agenda.now()).finish_non_exhaustive()
    }
}

impl World {
    /// All nodes, started, with `trace` ahead of them; each transition has its place in the whole.
    pub fn new(seed: &Seed, setup: Setup, trace: Vec<(usize, (Micros, Transition))>) -> Self {
        let regions: Arc<Regions> = Arc::default();
        let clock: Arc<Clock> = Arc::default();
        let numbers = (1..=u32::from(setup.nodes)).map(NodeNumber);
        let places: Vec<_> = numbers.map(|n| (n, setup.region(&regions, n))).collect();
        let mut network = Network::new(Arc::clone(&regions), seed.child("network"));
        network.add(places.iter().copied());
        let numbers = places.iter().map(|(number, _)| *number);
        let (beginning, raft) = (facts::beginning(&places), registry::Params::default());
        let registry = Registries::new(numbers, 3, beginning, raft, seed.child("registry"));
        let node = |(number, region): &(NodeNumber, RegionCode)| {
            let peers = Arc::new(Peers::new(*number, &places, &regions, &clock));
            (*number, Node::new(*number, *region, setup.bounds, peers))
        };
        let nodes = places.iter().map(node).collect();
        let mut world = Self {
            seed: seed.clone(),
            setup,
            agenda: Agenda::default(),
            gossip: Cluster::new(Params::default()),
            clock,
            regions,
            network,
            registry,
            nodes,
            places,
            waiting: BTreeMap::new(),
            reference: Reference::new(setup.bounds),
            confirmed: BTreeMap::new(),
            slots: BTreeMap::new(),
            arrived: BTreeMap::new(),
            lives: 0,
            works: 0,
            hints: 0,
            requests: 0,
            healed: None,
            lead: None,
            counts: Counts::default(),
            causes: Causes::new(),
            log: String::new(),
            violation: None,
            trace,
        };
        for (number, _) in world.places.clone() {
            world.start(number);
        }
        for (place, (_, (at, _))) in world.trace.iter().enumerate() {
            world.agenda.at(*at, Event::Transition(place));
        }
        let end = world.end();
        world.agenda.at(end, Event::Mend);
        world
    }

    /// Lets all happen: the log, what it came to, and what did not hold, if anything.
    pub fn run(mut self) -> (String, Counts, Causes, Option<Violation>) {
        let end = self.end() + LED + 2 * HEALED + PATIENCE + 10 * SECOND;
        while self.violation.is_none() {
            let Some(event) = self.agenda.next(end) else { break };
            self.clock.set(self.agenda.now());
            let asleep = event.node().filter(|number| self.nodes.get(number).is_some_and(|node| node.paused));
            match asleep {
                Some(number) => self.waiting.entry(number).or_default().push_back(event),
                None => {
                    let number = event.node();
                    self.happen(event);
                    self.settle(number);
                }
            }
        }
        if self.violation.is_none() {
            let held = self.nodes.values().find_map(|node| node.held.keys().next());
            if let Some(request) = held {
                let seen = format!("request {request} never ended");
                self.violation = Some(Violation { invariant: "every request ends", seen });
            }
        }
        if let Some(violation) = &self.violation {
            let text = violation.to_string();
            self.note(format_args!("VIOLATION {text}"));
        }
        let gossipers = self.places.iter().filter_map(|(number, _)| self.gossip.gossiper(*number));
        let outlived = gossipers.map(|gossiper| gossiper.counts().outlived).sum();
        if outlived > 0 {
            self.causes.insert(("skew", "a clock that went back over a restart"), outlived);
        }
        self.counts.at = self.now();
        let Counts { requests, answered, failed, orphaned, decisions, folds, .. } = self.counts;
        self.note(format_args!(
            "end: {requests} requests, {answered} answered, {failed} failed, {orphaned} orphaned, {decisions} decisions, {folds} folds"
        ));
        (self.log, self.counts, self.causes, self.violation)
    }

    /// When all is healed.
    fn end(&self) -> Micros {
        self.trace.last().map_or(SECOND, |(_, (at, _))| *at) + SECOND
    }

    fn note(&mut self, what: std::fmt::Arguments<'_>) {
        let now = self.agenda.now();
        // Writing to a string does not fail.
        let _ = writeln!(self.log, "{}.{:06} {what}", now / SECOND, now % SECOND);
    }

    fn judge(&mut self, verdict: Verdict) {
        if let Err(violation) = verdict {
            self.violation.get_or_insert(violation);
        }
    }

    fn now(&self) -> Micros {
        self.agenda.now()
    }
}
