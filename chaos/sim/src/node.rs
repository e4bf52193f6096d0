//! One node: its Machines as its worker publishes them, and what it knows.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use imbl::OrdMap;
use skein_cluster::configs::Turns;
use skein_cluster::gossip::Membership;
use skein_cluster::local::Upstream;
use skein_cluster::publish::Folder;
use skein_cluster::registry::{ProposeError, Registry};
use skein_cluster::{BoxFuture, LocalMachine, Members};
use skein_core::autostop::Rest;
use skein_core::autostop::start::Starter;
use skein_core::budget::RetryBudget;
use skein_core::facts::{Outcome, Proposal, State};
use skein_core::key::NodeRecord;
use skein_core::load::{LoadClass, Permit, Slots};
use skein_core::machine::{Autostop, Concurrency, MachineConfig, MachineState, Port, Service};
use skein_core::queue::Bounds;
use skein_core::record::Record;
use skein_core::snapshot::{Changes, Snapshot, fold};
use skein_core::{AppId, ConfigHash, MachineId, NodeNumber, RegionCode, VersionId, testing};
use tokio::sync::watch;
use ulid::Ulid;

use crate::agenda::{MS, Micros};
use crate::bare::node_record;
use crate::demand::Demands;
use crate::facts::ulid;
use crate::invariants::View;
use crate::peers::{Clock, Peers};
use crate::queue::Queue;
use crate::request::{PORT, Running};
use crate::seam::poll;
use crate::transition::Auto;
use crate::world::Open;

/// A Machine on its node.
#[derive(Debug)]
pub(crate) struct Machine {
    /// Its id.
    pub(crate) id: MachineId,
    /// Its app.
    pub(crate) app: AppId,
    /// Its configuration.
    pub(crate) config: Arc<MachineConfig>,
    /// The hash of that.
    pub(crate) hash: ConfigHash,
    /// Its state.
    pub(crate) state: MachineState,
    /// Whether its checks pass.
    pub(crate) healthy: bool,
    /// Whether it gets nothing new.
    pub(crate) cordoned: bool,
    /// Its slots.
    pub(crate) slots: Arc<Slots>,
    /// Whether one was given back while an edge waited, and nobody was told yet.
    pub(crate) freed: Arc<AtomicBool>,
    /// The class of its load that gossip carries.
    pub(crate) class: LoadClass,
    /// When it changed.
    pub(crate) since: Micros,
    /// Grows with each change of its process: timers of another life do nothing.
    pub(crate) life: u64,
    /// Whether it runs when its node does.
    pub(crate) wanted: bool,
    /// So many of its kind stay up.
    pub(crate) least: u32,
    /// Who waits for its rest: the node that decides, the number of its round and of the question.
    pub(crate) tells: Option<(NodeNumber, u64, u32)>,
}

/// What a node saw of a Machine of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    /// What it had taken.
    pub(crate) taken: u32,
    /// Whether something was in flight.
    pub(crate) busy: bool,
    /// Since when it took nothing and had nothing in flight.
    pub(crate) quiet_since: Micros,
}

/// Machines that a node brings to rest, one after another.
#[derive(Debug)]
pub(crate) struct Carry {
    /// So many more.
    pub(crate) left: usize,
    /// Of these.
    pub(crate) among: VecDeque<(MachineId, NodeNumber, Rest)>,
    /// How many were asked.
    pub(crate) asked: u32,
}

/// A configuration with one service on the public port.
pub(crate) fn config(soft: u32, hard: u32, auto: Auto) -> MachineConfig {
    let port = Port { port: Some(PORT), handlers: vec!["http".to_owned()], ..Port::default() };
    let concurrency =
        Concurrency { kind: "requests".to_owned(), hard_limit: Some(hard), soft_limit: Some(soft) };
    let service = Service {
        protocol: "tcp".to_owned(),
        internal_port: 8080,
        ports: vec![port],
        concurrency: Some(concurrency),
        autostart: Some(auto != Auto::Off),
        autostop: matches!(auto, Auto::Both(_)).then_some(Autostop::Stop),
        min_machines_running: match auto {
            Auto::Both(least) => Some(least.into()),
            Auto::Off | Auto::Starts => None,
        },
        ..Service::default()
    };
    MachineConfig { image: "skein/hello".to_owned(), services: vec![service], ..MachineConfig::default() }
}

/// A request that a Machine serves.
#[derive(Debug)]
pub(crate) struct Work {
    /// Whose it is, its number there, and which attempt.
    pub(crate) from: (NodeNumber, u64, u32),
    /// The Machine.
    pub(crate) machine: MachineId,
    /// Its slot.
    pub(crate) permit: Permit,
    /// What the app will answer.
    pub(crate) instruction: Option<String>,
    /// Nothing of it may arrive before this.
    pub(crate) not_before: Micros,
}

/// A request that a node passes on.
#[derive(Debug)]
pub(crate) struct Passing {
    /// For whom.
    pub(crate) edge: NodeNumber,
    /// To whom.
    pub(crate) to: NodeNumber,
    /// What waits for a connection.
    pub(crate) open: Option<Open>,
    /// The life of the node that it was sent to.
    pub(crate) life: Option<u64>,
    /// Nothing more of it may arrive at the edge before this.
    pub(crate) not_before: Micros,
}

/// An attempt of a request of this node's edge.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// Its number in the request.
    pub(crate) number: u32,
    /// Where the Machine is.
    pub(crate) target: NodeNumber,
    /// Where it is sent: there, or to who passes it on.
    pub(crate) node: NodeNumber,
    /// What the edge knew.
    pub(crate) snapshot: Arc<Snapshot>,
    /// The edge's belief of the Machine's load.
    pub(crate) estimate: Arc<skein_core::load::Estimate>,
    /// Whether the worker took it.
    pub(crate) admitted: bool,
    /// Whether it was sent: else it waits for a connection.
    pub(crate) sent: bool,
    /// The life of its node that it was sent to.
    pub(crate) life: Option<u64>,
    /// Whether another Machine could take it.
    pub(crate) alternatives: bool,
}

/// A request of this node's edge.
#[derive(Debug)]
pub(crate) struct Held {
    /// Its way.
    pub(crate) running: Running,
    /// The attempt that is under way.
    pub(crate) attempt: Option<Attempt>,
    /// What was, or will be, sent to the worker.
    pub(crate) open: Option<Open>,
    /// When that attempt began.
    pub(crate) tried: Micros,
}

/// A configuration that was asked for.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// Whom.
    pub(crate) turns: Turns,
    /// When the pause after the last question ends.
    pub(crate) again: Micros,
}

/// How a write through a node's registry ended.
pub(crate) type Answer = Result<(Outcome, u64), ProposeError>;

/// A running node's ends of the seams, and what it takes from them: each follower its own receiver,
/// as in a real node.
pub(crate) struct Knows {
    /// Gossip.
    pub(crate) membership: Arc<dyn Membership>,
    registry: Arc<dyn Registry>,
    /// For the snapshot.
    members: watch::Receiver<Members>,
    facts: watch::Receiver<(u64, Arc<State>)>,
    /// For gossip's seeds.
    pub(crate) nodes: watch::Receiver<(u64, Arc<State>)>,
    writes: Vec<(Ulid, BoxFuture<'static, Answer>)>,
}

impl std::fmt::Debug for Knows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Knows").field("writes", &self.writes.len()).finish_non_exhaustive()
    }
}

impl Knows {
    /// Of a node that has just started.
    pub(crate) fn new(membership: Arc<dyn Membership>, registry: Arc<dyn Registry>) -> Self {
        let (members, mut facts, mut nodes) = (membership.members(), registry.watch(), registry.watch());
        // What was there before counts as news too.
        facts.mark_changed();
        nodes.mark_changed();
        Self { membership, registry, members, facts, nodes, writes: Vec::new() }
    }

    /// Whether there is something to fold.
    pub(crate) fn has_news(&self) -> bool {
        // Both senders outlive the node.
        self.members.has_changed().is_ok_and(|changed| changed)
            || self.facts.has_changed().is_ok_and(|changed| changed)
    }

    /// Begins a write.
    pub(crate) fn submit(&mut self, proposal: Proposal) {
        let (request, registry) = (proposal.request, Arc::clone(&self.registry));
        let mut write: BoxFuture<'static, Answer> = Box::pin(async move { registry.submit(proposal).await });
        // Nothing is submitted before it is polled; nothing can have come of it yet.
        let begun = poll(write.as_mut());
        debug_assert!(begun.is_none());
        self.writes.push((request, write));
    }

    /// The writes that ended.
    pub(crate) fn answers(&mut self) -> Vec<(Ulid, Answer)> {
        let mut ended = Vec::new();
        self.writes.retain_mut(|(request, write)| match poll(write.as_mut()) {
            Some(answer) => {
                ended.push((*request, answer));
                false
            }
            None => true,
        });
        ended
    }
}

/// A node.
#[derive(Debug)]
pub(crate) struct Node {
    /// Its number.
    pub(crate) number: NodeNumber,
    /// Its region.
    pub(crate) region: RegionCode,
    /// The number of its life; `None` while it is dead.
    pub(crate) life: Option<u64>,
    /// Whether it stands still.
    pub(crate) paused: bool,
    /// When it last began to run, or to run on.
    pub(crate) woke: Micros,
    /// Whether it takes nothing new.
    pub(crate) draining: Arc<AtomicBool>,
    /// How far its wall clock is off, in milliseconds.
    pub(crate) skew: i64,
    /// Its Machines.
    pub(crate) machines: BTreeMap<MachineId, Machine>,
    /// Those, as its worker sees them.
    pub(crate) local: OrdMap<MachineId, Arc<LocalMachine>>,
    /// Its ends of the seams; `None` while it is dead.
    pub(crate) knows: Option<Knows>,
    /// What it knows.
    pub(crate) snapshot: Arc<Snapshot>,
    /// That, for its requests.
    pub(crate) reader: Rc<RefCell<Arc<Snapshot>>>,
    folder: Folder,
    folded: Members,
    /// When it may fold again.
    pub(crate) next_fold: Micros,
    /// Whether a fold is on the agenda.
    pub(crate) folds: bool,
    /// Configurations that were asked for.
    pub(crate) asked: BTreeMap<ConfigHash, Asked>,
    /// Its peers.
    pub(crate) peers: Arc<Peers>,
    /// Requests of its edge.
    pub(crate) held: BTreeMap<u64, Held>,
    /// How many of them may wait.
    bounds: Bounds,
    /// Those of them that wait.
    pub(crate) queue: Rc<Queue>,
    /// What its requests want started.
    pub(crate) demands: Rc<Demands>,
    /// What it starts for edges.
    pub(crate) starter: Starter,
    /// What it saw of its Machines, and when it looked last.
    pub(crate) looks: BTreeMap<MachineId, Look>,
    pub(crate) looked: Option<Micros>,
    /// What it brings to rest.
    pub(crate) carries: BTreeMap<u64, Carry>,
    /// Its apps' budgets for retries.
    pub(crate) budgets: Rc<RefCell<BTreeMap<AppId, RetryBudget>>>,
    /// What its Machines serve, by the work's number.
    pub(crate) work: BTreeMap<u64, Work>,
    /// What it passes on for edges, by request and attempt.
    pub(crate) passing: BTreeMap<(u64, u32), Passing>,
    /// Edges that were told of room and have not answered: the Machine and whom, by the number.
    pub(crate) told: BTreeMap<u64, (MachineId, NodeNumber)>,
}

impl Node {
    /// A node that is dead.
    pub(crate) fn new(number: NodeNumber, region: RegionCode, bounds: Bounds, peers: Arc<Peers>) -> Self {
        Self {
            bounds,
            number,
            region,
            life: None,
            paused: false,
            woke: 0,
            draining: Arc::default(),
            skew: 0,
            machines: BTreeMap::new(),
            local: OrdMap::new(),
            knows: None,
            snapshot: Arc::default(),
            reader: Rc::default(),
            folder: Folder::new(Arc::default()),
            folded: Members::new(),
            next_fold: 0,
            folds: false,
            asked: BTreeMap::new(),
            peers,
            held: BTreeMap::new(),
            queue: Rc::new(Queue::new(bounds)),
            demands: Rc::default(),
            starter: Starter::default(),
            looks: BTreeMap::new(),
            looked: None,
            carries: BTreeMap::new(),
            budgets: Rc::default(),
            work: BTreeMap::new(),
            passing: BTreeMap::new(),
            told: BTreeMap::new(),
        }
    }

    /// Whether it drains.
    pub(crate) fn drains(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Its wall clock: milliseconds since some year.
    pub(crate) fn unix_ms(&self, now: Micros) -> u64 {
        (1_700_000_000_000 + (now / MS) as i64 + self.skew) as u64
    }

    /// What gossip says of one of its Machines.
    pub(crate) fn record(&self, machine: &Machine) -> Record {
        Record {
            app: machine.app,
            state: machine.state,
            healthy: machine.healthy,
            cordoned: machine.cordoned,
            load: machine.class,
            config: machine.hash,
            version: VersionId(ulid(machine.id.bits().into())),
            number: (machine.id.bits() & 0xffff) as u32,
            changed_ms: self.unix_ms(machine.since),
            ..testing::record(machine.id.bits())
        }
    }

    /// Tells gossip of its Machines, as they are.
    pub(crate) fn say_machines(&self) {
        let records = self.machines.values().map(|machine| (machine.id, self.record(machine)));
        let said = self.knows.as_ref().map(|knows| knows.membership.set_machines(&records.collect()));
        debug_assert!(said.is_none_or(|said| said.is_ok()), "a Machine's record is short");
    }

    /// Tells gossip of itself.
    pub(crate) fn say_itself(&self) {
        let record = NodeRecord { draining: self.drains(), ..node_record(self.number, self.region) };
        let said = self.knows.as_ref().map(|knows| knows.membership.set_node(&record));
        debug_assert!(said.is_none_or(|said| said.is_ok()), "a node's record is short");
    }

    /// Publishes a Machine, or its end, to the worker.
    pub(crate) fn publish(&mut self, id: MachineId, clock: &Clock) {
        let Some(machine) = self.machines.get(&id) else {
            self.local.remove(&id);
            return;
        };
        let local = LocalMachine {
            id,
            app: machine.app,
            config: Arc::clone(&machine.config),
            state: machine.state,
            healthy: machine.healthy,
            cordoned: machine.cordoned,
            since: clock.instant(machine.since),
            upstream: Upstream::Loopback(BTreeMap::new()),
            slots: vec![Arc::clone(&machine.slots)],
        };
        self.local.insert(id, Arc::new(local));
    }

    /// Forgets all that a killed process forgets.
    pub(crate) fn die(&mut self, peers: Arc<Peers>) {
        (self.life, self.knows, self.paused, self.folds) = (None, None, false, false);
        (self.snapshot, self.folded) = (Arc::default(), Members::new());
        self.folder = Folder::new(Arc::default());
        self.asked.clear();
        self.held.clear();
        (self.reader, self.budgets) = (Rc::default(), Rc::default());
        self.queue = Rc::new(Queue::new(self.bounds));
        (self.demands, self.starter, self.looked) = (Rc::default(), Starter::default(), None);
        self.looks.clear();
        self.carries.clear();
        self.work.clear();
        self.told.clear();
        self.passing.clear();
        self.peers = peers;
        for machine in self.machines.values_mut() {
            (machine.slots, machine.freed) = (Arc::default(), Arc::default());
            (machine.state, machine.class) = (MachineState::Stopped, LoadClass::BelowSoft);
            machine.life += 1;
            machine.tells = None;
        }
    }

    /// Folds what is new into the snapshot; whether anything was.
    pub(crate) fn fold(&mut self, now: Micros, configs: Vec<(ConfigHash, Arc<MachineConfig>)>) -> bool {
        let now_ms = self.unix_ms(now);
        let Some(knows) = &mut self.knows else { return false };
        let members = knows.members.borrow_and_update().clone();
        let registry = knows.facts.borrow_and_update().clone();
        self.folded = members.clone();
        let folded = self.folder.step(members, registry, configs, now_ms);
        if folded {
            self.snapshot = Arc::new(self.folder.snapshot().clone());
            self.reader.replace(Arc::clone(&self.snapshot));
        }
        folded
    }

    /// The snapshot that comes of everything at once.
    pub(crate) fn folded_from_nothing(&self) -> Snapshot {
        let changes = Changes {
            now_ms: 0,
            registry: Some((self.snapshot.applied, Arc::clone(&self.snapshot.registry))),
            nodes: self.folded.values().map(|facts| facts.as_ref().clone()).collect(),
            configs: self.snapshot.configs.iter().map(|(hash, config)| (*hash, Arc::clone(config))).collect(),
        };
        fold(&Snapshot::default(), changes)
    }
}

/// A snapshot as it is compared; the class of a load changes with every request and is left out
/// unless `whole`.
pub(crate) fn view(snapshot: &Snapshot, whole: bool) -> View {
    let mut view = View::default();
    for (number, node) in &snapshot.nodes {
        let claim = |record: &Record| {
            let Record { state, healthy, cordoned, load, version, .. } = record;
            let load = if whole { *load } else { LoadClass::BelowSoft };
            format!("{state:?} healthy {healthy} cordoned {cordoned} {load:?} {version}")
        };
        let machines = node.machines.iter().map(|(id, machine)| (*id, claim(&machine.record)));
        view.nodes.insert(*number, (node.alive, node.record.draining, machines.collect()));
    }
    for (id, app) in &snapshot.apps {
        view.apps.insert(*id, app.machines.keys().copied().collect());
    }
    view
}
