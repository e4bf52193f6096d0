//! Gossip: what nodes tell each other of themselves and their Machines (DESIGN section 3).
//!
//! What: chitchat keeps the state and reconciles it; this module gives it a wire (any
//! [`GossipTransport`]), writes this node's own keys, and turns its state into [`Members`]:
//! every known node, as the highest generation of it says.
//!
//! What not: chitchat's types and lock stay inside. Nobody reads gossip per request; the snapshot
//! is made of [`Members`] by [`crate::publish`].
//!
//! Invariants: what a peer sends can neither stop this node nor hide another entry: an entry that
//! does not decode is counted and harms only itself. Liveness is an attribute, never existence: a
//! node that chitchat has forgotten stays a member, not alive. A value longer than [`MAX_VALUE`] is
//! never written (chitchat would silently stop spreading this node's later keys).

mod driver;
mod entry;
#[cfg(test)]
pub(crate) mod net;
pub mod push;
mod socket;
#[cfg(test)]
mod tests;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use imbl::OrdMap;
use skein_core::key::{GossipKey, NodeRecord};
use skein_core::record::Record;
use skein_core::snapshot::NodeFacts;
use skein_core::{MachineId, NodeNumber};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use ulid::Ulid;

use crate::BoxFuture;
use crate::keeper::Keeper;

pub use entry::{MAX_VALUE, ValueTooLong};

/// Carries gossip messages to peers; backhaul implements it.
pub trait GossipTransport: Send + Sync + 'static {
    /// Hands `message` (at most [`MAX_MESSAGE`] bytes) to the network. Never blocks; a message
    /// that cannot be sent is dropped: gossip repeats itself.
    fn send(&self, peer: NodeNumber, message: Bytes);
}

/// The longest message that chitchat makes, in bytes (65,507 and three of its header); longer ones
/// from peers are dropped and counted.
pub const MAX_MESSAGE: usize = 65_510;

/// Every node that gossip has heard of and that said who it is, dead ones included. Values are
/// shared with earlier versions of the map: an unchanged node keeps its `Arc`, an unchanged Machine
/// keeps its record's.
pub type Members = OrdMap<NodeNumber, Arc<NodeFacts>>;

/// What a node says of itself and learns of the others: gossip's outside. [`Gossip`] is chitchat's;
/// the simulator has a model of it.
pub trait Membership: Send + Sync + 'static {
    /// Says this of the node. Set the Machines before it at the start: nothing is told to others
    /// until it is set.
    ///
    /// # Errors
    /// [`ValueTooLong`]; nothing is changed then. The caller caused it.
    fn set_node(&self, record: &NodeRecord) -> Result<(), ValueTooLong>;

    /// Says this of all Machines: those that are not in `records` disappear everywhere.
    ///
    /// # Errors
    /// The first record that is [`ValueTooLong`]; nothing is changed then. The caller caused it.
    fn set_machines(&self, records: &OrdMap<MachineId, Record>) -> Result<(), ValueTooLong>;

    /// Tells of nodes that exist, usually all of the registry's: those that are not alive are tried
    /// again and again, so partitions heal however long they lasted.
    fn set_seeds(&self, seeds: BTreeSet<NodeNumber>);

    /// All known nodes, this one included, now and whenever something of them changes.
    fn members(&self) -> watch::Receiver<Members>;
}

/// How gossip runs. Make one with [`GossipConfig::new`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GossipConfig {
    /// This node's number.
    pub number: NodeNumber,
    /// Grows at each start of the node (the wall clock in microseconds does); a node that starts
    /// with a smaller one than before is noticed, and takes a greater one by itself.
    pub generation: u64,
    /// The cluster's id; messages of other clusters are refused.
    pub cluster: Ulid,
    /// How often this node gossips with three others, whatever happened. Default 500 ms; shorter
    /// costs CPU and finds dead nodes sooner.
    pub tick: Duration,
    /// The least time between two looks at the state: changes in between go together. Default
    /// 10 ms; it is added to the way of a change under load, not when nothing happens.
    pub coalesce: Duration,
    /// How long a node is not called dead after a message of its own or a new heartbeat, whatever
    /// the failure detector says: it takes pushes for heartbeats, and a burst of them makes it
    /// impatient. Default 2 s.
    pub alive_floor: Duration,
    /// How long chitchat keeps a dead generation of a node. Default 10 minutes: each is in every
    /// digest for half of it, and a digest over 65 KB (some 1,000 of them) is the end of
    /// chitchat's task. [`Members`] keeps the node longer.
    pub dead_grace: Duration,
    /// Up to so many nodes a change is pushed to all others; above, to some of each region, who
    /// pass it on. Default 25.
    pub push_to_all: usize,
    /// Messages that wait for chitchat; more are dropped and counted. Default 256.
    pub queue: usize,
}

impl GossipConfig {
    /// The defaults for a node.
    pub fn new(number: NodeNumber, generation: u64, cluster: Ulid) -> Self {
        Self {
            number,
            generation,
            cluster,
            tick: Duration::from_millis(500),
            coalesce: Duration::from_millis(10),
            alive_floor: Duration::from_secs(2),
            dead_grace: Duration::from_secs(600),
            push_to_all: 25,
            queue: 256,
        }
    }
}

/// What happened since the start; each only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GossipCounters {
    /// Messages given to the transport.
    pub sent: u64,
    /// Messages taken from peers and understood.
    pub received: u64,
    /// Messages dropped because too many waited.
    pub dropped: u64,
    /// Messages that are none, or too long.
    pub bad_messages: u64,
    /// Entries (or whole node states) whose content is malformed or contradicts its key.
    pub bad_entries: u64,
    /// Keys that this build does not know.
    pub unknown_keys: u64,
    /// Values of a format version that this build does not know.
    pub unknown_versions: u64,
    /// Exchanges begun because of a change of this node.
    pub pushes: u64,
    /// Exchanges begun to pass on what was learned.
    pub relays: u64,
    /// Times that chitchat ended by itself, or this node's generation was found to be outlived, and
    /// it was started anew.
    pub restarts: u64,
}

#[derive(Debug, Default)]
struct Counters {
    sent: AtomicU64,
    received: AtomicU64,
    dropped: AtomicU64,
    bad_messages: AtomicU64,
    bad_entries: AtomicU64,
    unknown_keys: AtomicU64,
    unknown_versions: AtomicU64,
    pushes: AtomicU64,
    relays: AtomicU64,
    restarts: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What this node wants to say, and whom it may ask.
#[derive(Debug, Default)]
struct Own {
    /// Nothing is said before the node's own record is set, so that others see a restarted node
    /// with all its Machines at once.
    node: Option<String>,
    machines: BTreeMap<MachineId, String>,
    changed: bool,
    seeds: BTreeSet<NodeNumber>,
    new_seeds: bool,
}

type VersionReply = oneshot::Sender<(u64, u64)>;

/// What one life of chitchat leaves to the next; held while one lives.
#[derive(Debug)]
struct Seat {
    generation: u64,
    lives: u64,
    /// Messages that came before the first life.
    waiting: Option<socket::Waiting>,
    /// What is known outlives a life.
    view: view::View,
    /// Questions for this node's version.
    asked: mpsc::Receiver<VersionReply>,
    /// Those to be answered after the next look.
    owed: Vec<VersionReply>,
}

#[derive(Debug)]
struct Shared {
    config: GossipConfig,
    own: Mutex<Own>,
    /// When each peer was last heard itself.
    heard: Mutex<BTreeMap<NodeNumber, Instant>>,
    wake: Notify,
    inbound: ArcSwap<mpsc::Sender<(NodeNumber, Bytes)>>,
    members: watch::Sender<Members>,
    counters: Counters,
    cancel: CancellationToken,
}

impl Shared {
    fn with_own<T>(&self, action: impl FnOnce(&mut Own) -> T) -> T {
        // A panic while it was held leaves plain data, whole enough to go on with.
        action(&mut self.own.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn with_heard<T>(&self, action: impl FnOnce(&mut BTreeMap<NodeNumber, Instant>) -> T) -> T {
        action(&mut self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Gossip has ended: [`Gossip::shutdown`] was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("gossip has been shut down")]
pub struct Stopped;

/// The node's part in gossip. Clones share it; it ends with [`Gossip::shutdown`] or the last clone.
#[derive(Debug, Clone)]
pub struct Gossip {
    shared: Arc<Shared>,
    requests: mpsc::Sender<VersionReply>,
    seat: Arc<tokio::sync::Mutex<Seat>>,
    _stop: Arc<DropGuard>,
}

impl Gossip {
    /// Starts gossiping. chitchat is one life of `keeper`'s: it fails when a peer made its task panic,
    /// or others know a later generation of this node, and comes back with a later one.
    pub fn start(config: GossipConfig, transport: Arc<dyn GossipTransport>, keeper: &dyn Keeper) -> Self {
        let (requests, asked) = mpsc::channel(16);
        let cancel = CancellationToken::new();
        let (inbound, waiting) = mpsc::channel(config.queue.max(1));
        let seat = Seat {
            generation: config.generation,
            lives: 0,
            waiting: Some(waiting),
            view: view::View::new(config.number),
            asked,
            owed: Vec::new(),
        };
        let seat = Arc::new(tokio::sync::Mutex::new(seat));
        let shared = Arc::new(Shared {
            config,
            own: Mutex::default(),
            heard: Mutex::default(),
            wake: Notify::new(),
            inbound: ArcSwap::from_pointee(inbound),
            members: watch::Sender::new(Members::new()),
            counters: Counters::default(),
            cancel: cancel.clone(),
        });
        let (of, held) = (Arc::clone(&shared), Arc::clone(&seat));
        let life = move |cancel| -> BoxFuture<'static, Result<(), String>> {
            Box::pin(driver::live(Arc::clone(&of), Arc::clone(&transport), Arc::clone(&held), cancel))
        };
        keeper.keep("gossip".to_owned(), Arc::new(life));
        Self { shared, requests, seat, _stop: Arc::new(cancel.drop_guard()) }
    }

    /// Says this of one Machine.
    ///
    /// # Errors
    /// [`ValueTooLong`]; nothing is changed then. The caller caused it.
    pub fn set_machine(&self, record: &Record) -> Result<(), ValueTooLong> {
        let text = entry::to_text(record)?;
        self.write(|own| own.machines.insert(record.id, text.clone()).as_ref() != Some(&text));
        Ok(())
    }

    /// Says nothing of a Machine any more: it disappears everywhere.
    pub fn remove_machine(&self, id: MachineId) {
        self.write(|own| own.machines.remove(&id).is_some());
    }

    /// Takes a message of a peer. Never blocks: drops and counts when too many wait.
    pub fn inbound(&self, peer: NodeNumber, message: Bytes) {
        if message.len() > MAX_MESSAGE {
            count(&self.shared.counters.bad_messages);
        } else if self.shared.inbound.load().try_send((peer, message)).is_err() {
            count(&self.shared.counters.dropped);
        }
    }

    /// This node's generation and version, everything that was set before this call included. They
    /// are those that other nodes see once they have it.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn own_version(&self) -> Result<(u64, u64), Stopped> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(reply).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }

    /// What happened since the start.
    pub fn counters(&self) -> GossipCounters {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.shared.counters;
        GossipCounters {
            sent: of(&counters.sent),
            received: of(&counters.received),
            dropped: of(&counters.dropped),
            bad_messages: of(&counters.bad_messages),
            bad_entries: of(&counters.bad_entries),
            unknown_keys: of(&counters.unknown_keys),
            unknown_versions: of(&counters.unknown_versions),
            pushes: of(&counters.pushes),
            relays: of(&counters.relays),
            restarts: of(&counters.restarts),
        }
    }

    /// Ends gossiping; returns when its life has ended. Others call this node dead after some seconds.
    pub async fn shutdown(&self) {
        self.shared.cancel.cancel();
        // Whoever asks for this node's version learns that nobody answers any more.
        self.seat.lock().await.asked.close();
    }

    fn write(&self, change: impl FnOnce(&mut Own) -> bool) {
        let changed = self.shared.with_own(|own| {
            let changed = change(own);
            own.changed |= changed;
            changed
        });
        if changed {
            self.shared.wake.notify_one();
        }
    }
}

impl Membership for Gossip {
    fn set_node(&self, record: &NodeRecord) -> Result<(), ValueTooLong> {
        let text = entry::to_text(record)?;
        self.write(|own| {
            let changed = own.node.as_ref() != Some(&text);
            own.node = Some(text);
            changed
        });
        Ok(())
    }

    fn set_machines(&self, records: &OrdMap<MachineId, Record>) -> Result<(), ValueTooLong> {
        let mut machines = BTreeMap::new();
        for (id, record) in records {
            machines.insert(*id, entry::to_text(record)?);
        }
        self.write(|own| {
            let changed = own.machines != machines;
            own.machines = machines;
            changed
        });
        Ok(())
    }

    fn set_seeds(&self, mut seeds: BTreeSet<NodeNumber>) {
        seeds.remove(&self.shared.config.number);
        let new = self.shared.with_own(|own| {
            let new = !seeds.is_subset(&own.seeds);
            own.seeds = seeds;
            own.new_seeds |= new;
            new
        });
        if new {
            self.shared.wake.notify_one();
        }
    }

    fn members(&self) -> watch::Receiver<Members> {
        self.shared.members.subscribe()
    }
}

/// The key that a node's own record stands under.
fn node_key() -> String {
    GossipKey::Node.to_string()
}

/// The key that a Machine's record stands under.
fn machine_key(id: MachineId) -> String {
    GossipKey::Machine(id).to_string()
}
