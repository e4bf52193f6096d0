//! The world: all nodes on one clock and one network, and what happens to them.
//!
//! Everything random comes from children of one seed, everything iterated is ordered, so one seed
//! makes one run. After each event what was observed is judged by [`invariants`].

mod apply;
mod edge;
mod worker;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use skein_cluster::gossip::Membership;
use skein_cluster::registry::Registry;
use skein_core::code::ErrorCode;
use skein_core::machine::MachineConfig;
use skein_core::random::Seed;
use skein_core::region::Regions;
use skein_core::wire::RefuseReason;
use skein_core::{AppId, ConfigHash, MachineId, NodeNumber, RegionCode};

use crate::agenda::{Agenda, MS, Micros, SECOND, micros};
use crate::bare::region_of;
use crate::cluster::{self, Cluster};
use crate::facts;
use crate::gossip::Params;
use crate::invariants::{self, Verdict, Violation};
use crate::net::{Class, IDLE, Network};
use crate::node::{Knows, Node, view};
use crate::peers::{Clock, PROBE, Peers};
use crate::reference::{NodeStatus, Reference};
use crate::registry::{self, Registries};
use crate::transition::Transition;

/// The least time between two folds: the production's.
const BATCH: Micros = 10 * MS;
/// How often a stream is tried again over a link that is cut.
const AGAIN: Micros = 100 * MS;
/// A request waits so long for a Machine to take it.
const PATIENCE: Micros = 20 * SECOND;
/// Views of gossip are equal so long after all is healed.
const HEALED: Micros = 3 * SECOND;
/// The registry's are then: an election may be under way.
const AGREED: Micros = 7 * SECOND;

/// What travels between nodes beside gossip and the registry.
#[derive(Debug, Clone)]
enum Packet {
    Ping(Micros),
    Pong(Micros),
    Open(Open),
    Admitted { request: u64, attempt: u32, load: u32 },
    Refused { request: u64, attempt: u32, reason: RefuseReason, load: u32 },
    Head { request: u64, attempt: u32, load: u32, instruction: Option<String> },
    Reset { request: u64, attempt: u32, code: ErrorCode, reached_app: bool },
    WantConfig(ConfigHash),
    Config(ConfigHash, Arc<MachineConfig>),
}

/// A request on its way to a worker.
#[derive(Debug, Clone)]
pub(crate) struct Open {
    request: u64,
    attempt: u32,
    hop: u32,
    app: AppId,
    machine: MachineId,
    post: bool,
    takes: Micros,
    instruction: Option<String>,
}

/// What happens.
#[derive(Debug, Clone)]
enum Event {
    Transition(usize),
    Gossip(cluster::Event),
    Registry(registry::Event),
    Packet {
        from: NodeNumber,
        to: NodeNumber,
        packet: Packet,
    },
    /// A stream that a cut link holds back is tried again, until its connection is lost.
    Again {
        from: NodeNumber,
        to: NodeNumber,
        packet: Packet,
        not_before: Micros,
        since: Micros,
    },
    Fold(NodeNumber, u64),
    Probe(NodeNumber, u64),
    /// A Machine has finished with a work.
    Served(NodeNumber, u64, u64),
    /// A Machine's process is ready, or has ended.
    Turned(NodeNumber, MachineId, u64),
    /// A peer may be suspect to a request that waits for it.
    Silent(NodeNumber, u64, u64, u32),
    /// A request's patience is at its end.
    Late(NodeNumber, u64, u64),
    /// All is healed.
    Mend,
    /// Views of gossip are equal.
    SeeEqual,
    /// Those of the registry too.
    AgreeEqual,
}

impl Event {
    /// The node that must be awake for it.
    fn node(&self) -> Option<NodeNumber> {
        match self {
            Self::Transition(_) | Self::Mend | Self::SeeEqual | Self::AgreeEqual => None,
            Self::Gossip(event) => Some(event.node()),
            Self::Registry(event) => Some(event.node()),
            Self::Packet { to, .. } => Some(*to),
            Self::Again { from, .. } => Some(*from),
            Self::Fold(node, _)
            | Self::Probe(node, _)
            | Self::Served(node, ..)
            | Self::Turned(node, ..)
            | Self::Silent(node, ..)
            | Self::Late(node, ..) => Some(*node),
        }
    }
}

/// How a run is made.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// How many nodes.
    pub nodes: u8,
    /// Every so many folds of a node are compared with the fold from nothing.
    pub compare_every: u64,
}

impl Setup {
    /// `nodes` nodes; up to 25 each fold is compared, above every tenth.
    pub fn new(nodes: u8) -> Self {
        Self { nodes: nodes.max(1), compare_every: if nodes <= 25 { 1 } else { 10 } }
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
    /// Decisions that were judged.
    pub decisions: u64,
    /// Snapshots.
    pub folds: u64,
    /// The last transition, by its place in the whole.
    pub step: usize,
    /// When the run ended.
    pub at: Micros,
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
    requests: u64,
    mended: bool,
    counts: Counts,
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
        let places: Vec<_> = numbers.map(|n| (n, region_of(&regions, NodeNumber(n.0 * 5)))).collect();
        let mut network = Network::new(Arc::clone(&regions), seed.child("network"));
        network.add(places.iter().copied());
        let numbers = places.iter().map(|(number, _)| *number);
        let (beginning, raft) = (facts::beginning(&places), registry::Params::default());
        let registry = Registries::new(numbers, 3, beginning, raft, seed.child("registry"));
        let node = |(number, region): &(NodeNumber, RegionCode)| {
            let peers = Arc::new(Peers::new(*number, &places, &regions, &clock));
            (*number, Node::new(*number, *region, peers))
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
            reference: Reference::default(),
            confirmed: BTreeMap::new(),
            slots: BTreeMap::new(),
            arrived: BTreeMap::new(),
            lives: 0,
            works: 0,
            requests: 0,
            mended: false,
            counts: Counts::default(),
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
    pub fn run(mut self) -> (String, Counts, Option<Violation>) {
        let end = self.end() + AGREED + PATIENCE + 10 * SECOND;
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
        self.counts.at = self.now();
        let Counts { requests, answered, failed, orphaned, decisions, folds, .. } = self.counts;
        self.note(format_args!(
            "end: {requests} requests, {answered} answered, {failed} failed, {orphaned} orphaned, {decisions} decisions, {folds} folds"
        ));
        (self.log, self.counts, self.violation)
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

    fn happen(&mut self, event: Event) {
        match event {
            Event::Transition(place) => {
                if let Some((index, (_, transition))) = self.trace.get(place).copied() {
                    self.note(format_args!("[{index}] {transition}"));
                    self.counts.step = index;
                    self.apply(index, transition);
                }
            }
            Event::Gossip(event) => {
                if let cluster::Event::Arrive { from, to, .. } = &event {
                    self.heard(*to, *from);
                }
                let mut later = Vec::new();
                self.gossip.handle(self.agenda.now(), event, &mut self.network, &mut later);
                self.put_gossip(later);
            }
            Event::Registry(event) => {
                if let registry::Event::Arrive { from, to, .. } = &event {
                    self.heard(*to, *from);
                }
                let mut later = Vec::new();
                self.registry.handle(self.agenda.now(), event, &mut self.network, &mut later);
                self.put_registry(later);
            }
            Event::Packet { from, to, packet } => {
                if self.nodes.get(&to).is_some_and(|node| node.life.is_some()) {
                    self.heard(to, from);
                    self.packet(from, to, packet);
                }
            }
            Event::Again { from, to, packet, not_before, since } => {
                if self.nodes.get(&from).is_some_and(|node| node.life.is_some()) {
                    self.pass(from, to, packet, not_before, since);
                }
            }
            Event::Fold(number, life) if self.lives(number, life) => self.fold(number),
            Event::Probe(number, life) if self.lives(number, life) => {
                self.see_ages(number);
                self.probe(number, life);
            }
            Event::Served(number, life, work) if self.lives(number, life) => self.served(number, work),
            Event::Turned(number, machine, life) => self.turned(number, machine, life),
            Event::Silent(number, life, request, attempt) if self.lives(number, life) => {
                self.silent(number, request, attempt);
            }
            Event::Late(number, life, request) if self.lives(number, life) => self.late(number, request),
            Event::Fold(..) | Event::Probe(..) | Event::Served(..) | Event::Silent(..) | Event::Late(..) => {}
            Event::Mend => self.mend(),
            Event::SeeEqual => self.see_equal(false),
            Event::AgreeEqual => self.see_equal(true),
        }
    }

    fn lives(&self, number: NodeNumber, life: u64) -> bool {
        self.nodes.get(&number).is_some_and(|node| node.life == Some(life))
    }

    fn heard(&mut self, number: NodeNumber, from: NodeNumber) {
        if let Some(peer) = self.nodes.get(&number).and_then(|node| node.peers.get(from)) {
            peer.heard();
        }
        self.met_another_life(number, from);
    }

    fn put_gossip(&mut self, later: cluster::Later) {
        for (at, event) in later {
            self.agenda.at(at, Event::Gossip(event));
        }
    }

    fn put_registry(&mut self, later: registry::Later) {
        for (at, event) in later {
            self.agenda.at(at, Event::Registry(event));
        }
    }

    /// Brings about what an event at `number` has set off on either side of the seams.
    fn settle(&mut self, number: Option<NodeNumber>) {
        let (now, mut later) = (self.now(), Vec::new());
        let mut moved = self.registry.settle(now, &mut self.network, &mut later);
        self.put_registry(later);
        moved.extend(number);
        for number in moved {
            self.follow(number);
        }
        let mut later = Vec::new();
        self.gossip.settle(now, &mut later);
        self.put_gossip(later);
    }

    /// What a node does about what came through the seams: its registry's nodes are gossip's seeds,
    /// what is new is folded, and writes that ended are noted.
    fn follow(&mut self, number: NodeNumber) {
        let now = self.now();
        let Some(node) = self.nodes.get_mut(&number) else { return };
        let Some(knows) = node.knows.as_mut() else { return };
        if knows.nodes.has_changed().is_ok_and(|changed| changed) {
            let state = Arc::clone(&knows.nodes.borrow_and_update().1);
            let others = state.nodes().map(|other| other.number).filter(|other| *other != number);
            knows.membership.set_seeds(others.collect());
            state.apps().for_each(|app| self.reference.app(now, app.id));
        }
        let news = knows.has_news();
        let answers = knows.answers();
        if news {
            self.fold_soon(number);
        }
        for (request, answer) in answers {
            self.note(format_args!("registry at {number}: write {} is {answer:?}", request.0));
        }
    }

    fn fold_soon(&mut self, number: NodeNumber) {
        let now = self.now();
        if let Some(node) = self.nodes.get_mut(&number)
            && let Some(life) = node.life.filter(|_| !node.folds)
        {
            node.folds = true;
            let at = node.next_fold.max(now);
            self.agenda.at(at, Event::Fold(number, life));
        }
    }

    fn fold(&mut self, number: NodeNumber) {
        let now = self.now();
        let Some(node) = self.nodes.get_mut(&number) else { return };
        node.folds = false;
        let before = Arc::clone(&node.snapshot);
        let configs = self.arrived.remove(&number).unwrap_or_default();
        if !node.fold(now, configs) {
            return;
        }
        node.next_fold = now + BATCH;
        self.counts.folds += 1;
        let after = Arc::clone(&node.snapshot);
        let compare = after.version.is_multiple_of(self.setup.compare_every);
        let from_nothing = compare.then(|| view(&node.folded_from_nothing(), true));
        for (other, was) in &before.nodes {
            let is = after.nodes.get(other).map(|node| (node.generation, node.version));
            let verdict = invariants::never_goes_back(number, *other, (was.generation, was.version), is);
            self.judge(verdict);
        }
        if let Some(from_nothing) = from_nothing {
            let verdict = invariants::folds_are_equal(number, &view(&after, true), &from_nothing);
            self.judge(verdict);
        }
        self.want_configs(number);
    }

    /// Looks at how old a node's facts are.
    fn see_ages(&mut self, number: NodeNumber) {
        let (now, ms) = (self.now(), self.clock.ms());
        let Some(node) = self.nodes.get(&number) else { return };
        let ages: Vec<_> =
            node.snapshot.nodes.iter().map(|(of, known)| (*of, known.confirmed.age(ms))).collect();
        let calm = self.reference.calm(now);
        let awake = now > node.woke + 2 * SECOND;
        for (of, age) in ages {
            let before = self.confirmed.get(&(number, of)).map(|at| Duration::from_micros(now - at));
            let verdict = invariants::ages_are_true(number, of, age, before, calm || (awake && of == number));
            self.judge(verdict);
            if age < Duration::MAX {
                // Ages are whole milliseconds: the earliest moment that this one may mean.
                let at = now.saturating_sub(micros(age) + MS);
                self.confirmed.insert((number, of), at);
            }
        }
    }

    fn want_configs(&mut self, number: NodeNumber) {
        let now = self.now();
        let Some(node) = self.nodes.get_mut(&number) else { return };
        let missing = node.snapshot.missing_configs();
        node.asked.retain(|hash, _| missing.iter().any(|(wanted, _)| wanted == hash));
        let mut own = Vec::new();
        let mut asks = Vec::new();
        for (hash, of) in missing {
            let (again, pause) = node.asked.get(&hash).copied().unwrap_or((0, 100 * MS));
            if of == number {
                let machine = node.machines.values().find(|machine| machine.hash == hash);
                own.extend(machine.map(|machine| (hash, Arc::clone(&machine.config))));
            } else if again <= now {
                node.asked.insert(hash, (now + pause, (pause * 2).min(5 * SECOND)));
                asks.push((of, hash));
            }
        }
        if !own.is_empty() {
            self.arrived.entry(number).or_default().extend(own);
            self.fold_soon(number);
        }
        for (of, hash) in asks {
            self.send(number, of, Packet::WantConfig(hash), 0);
        }
    }

    /// Sends a packet, on a stream if it is not a probe; it arrives at `not_before` at the earliest.
    fn send(&mut self, from: NodeNumber, to: NodeNumber, packet: Packet, not_before: Micros) -> Micros {
        let now = self.now();
        if !matches!(packet, Packet::Pong(_))
            && let Some(peer) = self.nodes.get(&from).and_then(|node| node.peers.get(to))
        {
            peer.owes();
        }
        self.pass(from, to, packet, not_before, now)
    }

    fn pass(
        &mut self,
        from: NodeNumber,
        to: NodeNumber,
        packet: Packet,
        not_before: Micros,
        since: Micros,
    ) -> Micros {
        let now = self.now();
        let probe = matches!(packet, Packet::Ping(_) | Packet::Pong(_));
        let class = if probe { Class::Datagram } else { Class::Stream };
        if !probe && from != to && self.network.rule(from, to).cut {
            if now - since < IDLE {
                self.agenda.after(AGAIN, Event::Again { from, to, packet, not_before, since });
            }
            return not_before;
        }
        let arrivals = if from == to { vec![now] } else { self.network.send(now, from, to, class, 300) };
        let mut last = not_before;
        for at in arrivals {
            last = at.max(not_before);
            self.agenda.at(last, Event::Packet { from, to, packet: packet.clone() });
        }
        last
    }

    fn packet(&mut self, from: NodeNumber, to: NodeNumber, packet: Packet) {
        match packet {
            Packet::Ping(at) => drop(self.send(to, from, Packet::Pong(at), 0)),
            Packet::Pong(at) => {
                let now = self.now();
                if let Some(peer) = self.nodes.get(&to).and_then(|node| node.peers.get(from)) {
                    peer.measured(now - at);
                }
                self.connected(to, from);
            }
            Packet::Open(open) => self.open(to, from, open),
            Packet::Admitted { request, attempt, load } => self.admitted(to, request, attempt, load),
            Packet::Refused { request, attempt, reason, load } => {
                self.refused(to, request, attempt, reason, load);
            }
            Packet::Head { request, attempt, load, instruction } => {
                self.head(to, request, attempt, load, instruction);
            }
            Packet::Reset { request, attempt, code, reached_app } => {
                self.reset(to, request, attempt, code, reached_app);
            }
            Packet::WantConfig(hash) => {
                let machines = self.nodes.get(&to).map(|node| &node.machines);
                let machine = machines.and_then(|all| all.values().find(|machine| machine.hash == hash));
                if let Some(config) = machine.map(|machine| Arc::clone(&machine.config)) {
                    self.send(to, from, Packet::Config(hash, config), 0);
                }
            }
            Packet::Config(hash, config) => {
                self.arrived.entry(to).or_default().push((hash, config));
                self.fold_soon(to);
            }
        }
    }

    /// Starts a node that is dead.
    fn start(&mut self, number: NodeNumber) {
        let now = self.now();
        self.lives += 1;
        let life = self.lives;
        let Some(node) = self.nodes.get_mut(&number).filter(|node| node.life.is_none()) else { return };
        (node.life, node.woke) = (Some(life), now);
        node.draining.store(false, std::sync::atomic::Ordering::Relaxed);
        let rng = self.seed.child(&format!("gossip {number} {life}"));
        let machines: Vec<MachineId> = node.machines.keys().copied().collect();
        let (mut gossips, mut votes) = (Vec::new(), Vec::new());
        let membership: Arc<dyn Membership> =
            Arc::new(self.gossip.start(now, number, life, rng, &mut gossips));
        let Some(seat) = self.registry.start(now, number, &mut votes) else { return };
        let registry: Arc<dyn Registry> = Arc::new(seat);
        node.knows = Some(Knows::new(membership, registry));
        node.say_machines();
        node.say_itself();
        self.put_gossip(gossips);
        self.put_registry(votes);
        self.settle(Some(number));
        self.agenda.after(PROBE, Event::Probe(number, life));
        self.reference.node(now, number, NodeStatus { answers: true, draining: false });
        for machine in machines {
            self.boot(number, machine);
        }
    }

    fn kill(&mut self, number: NodeNumber) {
        let now = self.now();
        let Some(node) = self.nodes.get_mut(&number).filter(|node| node.life.is_some()) else { return };
        self.counts.orphaned += node.held.len() as u64;
        let served: Vec<MachineId> = node.work.values().map(|work| work.machine).collect();
        node.die(Arc::new(Peers::new(number, &self.places, &self.regions, &self.clock)));
        let machines: Vec<MachineId> = node.machines.keys().copied().collect();
        served.into_iter().for_each(|machine| self.reference.ends(now, machine));
        self.gossip.kill(number);
        self.registry.kill(number);
        self.waiting.remove(&number);
        self.arrived.remove(&number);
        self.confirmed.retain(|(viewer, _), _| *viewer != number);
        self.reference.node(now, number, NodeStatus { answers: false, draining: false });
        for machine in machines {
            if let Some(node) = self.nodes.get_mut(&number) {
                node.publish(machine, &self.clock);
            }
            self.tell(number, machine);
        }
        self.trouble();
    }

    /// Heals all; views must become equal from now on.
    fn mend(&mut self) {
        self.note(format_args!("all is healed"));
        self.mended = true;
        self.heal();
        for (number, _) in self.places.clone() {
            self.pause(number, false);
            self.start(number);
        }
        self.trouble();
        self.agenda.after(HEALED, Event::SeeEqual);
        self.agenda.after(AGREED, Event::AgreeEqual);
    }

    fn see_equal(&mut self, apps: bool) {
        let mut truth = invariants::View::default();
        for node in self.nodes.values() {
            let claim = |machine: &crate::node::Machine| {
                let record = node.record(machine);
                let load = skein_core::load::LoadClass::BelowSoft;
                format!(
                    "{:?} healthy {} cordoned {} {load:?} {}",
                    record.state, record.healthy, record.cordoned, record.version
                )
            };
            let machines = node.machines.values().map(|machine| (machine.id, claim(machine)));
            truth.nodes.insert(node.number, (true, node.drains(), machines.collect()));
        }
        if apps {
            let states = self.places.iter().filter_map(|(number, _)| self.registry.state(*number));
            let state = states.max_by_key(|(applied, _)| *applied).map(|(_, state)| state);
            for app in state.iter().flat_map(|state| state.apps()) {
                let machines = self.nodes.values().flat_map(|node| {
                    let mine = node.machines.values().filter(|machine| machine.app == app.id);
                    mine.map(|machine| (machine.id, node.number))
                });
                let mut machines: Vec<_> = machines.collect();
                machines.sort_unstable();
                truth.apps.insert(app.id, machines);
            }
        }
        let views = self.nodes.values().map(|node| {
            let mut view = view(&node.snapshot, false);
            if !apps {
                view.apps.clear();
            }
            (node.number, view)
        });
        let verdict = invariants::views_are_equal(&views.collect(), &truth);
        self.note(format_args!("views are compared{}", if apps { ", the registry's too" } else { "" }));
        self.judge(verdict);
    }

    /// Tells the reference model whether anything is broken now.
    fn trouble(&mut self) {
        let now = self.now();
        let nodes = self.nodes.values().any(|node| node.life.is_none() || node.paused);
        let tables = self.places.iter().filter_map(|(number, _)| self.network.table(*number));
        let links = tables.map(|table| table.faults()).any(|faults| !faults.is_empty());
        self.reference.broken(now, nodes || links);
    }
}
