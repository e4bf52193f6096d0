//! What a node's transport knows of its peers, on the virtual clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use skein_core::region::Regions;
use skein_core::suspicion::{Proximity, Signs};
use skein_core::{NodeNumber, RegionCode};

use crate::agenda::{Micros, SECOND, micros};
use crate::net::IDLE;

/// How long after its last use a peer counts as in use: backhaul's.
const IN_USE: Duration = Duration::from_secs(2);
/// Never.
const NEVER: u64 = u64::MAX;

/// The virtual time where the production wants an [`Instant`]. Only distances between instants
/// reach a decision, so it does not matter when a run begins.
#[derive(Debug)]
pub struct Clock {
    epoch: Instant,
    now: AtomicU64,
}

impl Default for Clock {
    fn default() -> Self {
        Self { epoch: skein_cluster::clock::now(), now: AtomicU64::new(0) }
    }
}

impl Clock {
    /// Makes it be `now`.
    pub fn set(&self, now: Micros) {
        self.now.store(now, Ordering::Relaxed);
    }

    /// The time.
    pub fn now(&self) -> Micros {
        self.now.load(Ordering::Relaxed)
    }

    /// A time as the production sees it.
    pub fn instant(&self, at: Micros) -> Instant {
        self.epoch + Duration::from_micros(at)
    }

    /// Milliseconds since the run began, never 0: the clock of load estimates.
    pub fn ms(&self) -> u64 {
        self.now() / 1_000 + 1
    }
}

/// One peer.
#[derive(Debug)]
pub struct Peer {
    clock: Arc<Clock>,
    signs: Signs,
    connected: AtomicBool,
    /// Since when it is probed without a break.
    probed_since: AtomicU64,
}

impl Peer {
    fn now(&self) -> Instant {
        self.clock.instant(self.clock.now())
    }

    /// Something came from it.
    pub fn heard(&self) {
        self.signs.heard(self.now());
        self.connected.store(true, Ordering::Relaxed);
    }

    /// Something was sent that it answers within a round trip.
    pub fn owes(&self) {
        self.signs.owes(self.now());
    }

    /// Somebody uses it.
    pub fn uses(&self) {
        self.signs.uses(self.now());
    }

    /// A round trip took so long.
    pub fn measured(&self, rtt: Micros) {
        self.signs.measured(Duration::from_micros(rtt));
    }

    /// Whether a connection is up.
    pub fn connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// When it could be suspect at the earliest; `None` when it is.
    pub fn suspect_at(&self) -> Option<Micros> {
        self.signs.suspect_in(self.now()).map(|wait| self.clock.now() + micros(wait))
    }

    /// Whether it is to be probed now; `busy` when something of this node waits for it.
    pub fn probe(&self, busy: bool) -> bool {
        let in_use = busy || self.signs.used_ago(self.now()).is_some_and(|ago| ago < IN_USE);
        let since = self.probed_since.load(Ordering::Relaxed);
        let next = if !in_use { NEVER } else { since.min(self.clock.now()) };
        self.probed_since.store(next, Ordering::Relaxed);
        in_use
    }

    /// Whether its connection is lost by now: then it is down.
    pub fn loses(&self) -> bool {
        let now = self.clock.now();
        let probed = self.probed_since.load(Ordering::Relaxed);
        let silent = self.signs.heard_ago(self.now()).is_none_or(|ago| micros(ago) >= IDLE);
        let lost = silent && probed != NEVER && now.saturating_sub(probed) >= IDLE;
        lost && self.connected.swap(false, Ordering::Relaxed)
    }
}

/// All peers of a node.
#[derive(Debug)]
pub struct Peers {
    local: NodeNumber,
    peers: BTreeMap<NodeNumber, Peer>,
}

impl Peers {
    /// The peers of `local`, as far as their regions are until they are measured.
    pub fn new(
        local: NodeNumber,
        nodes: &[(NodeNumber, RegionCode)],
        regions: &Regions,
        clock: &Arc<Clock>,
    ) -> Self {
        let here = nodes.iter().find(|(number, _)| *number == local).map(|(_, region)| *region);
        let peer = |(number, region): &(NodeNumber, RegionCode)| {
            let guess = here.map_or(Duration::ZERO, |here| regions.simulated_rtt(here, *region));
            let peer = Peer {
                clock: Arc::clone(clock),
                signs: Signs::new(clock.instant(0), guess),
                connected: AtomicBool::new(false),
                probed_since: AtomicU64::new(NEVER),
            };
            (*number, peer)
        };
        Self { local, peers: nodes.iter().filter(|(number, _)| *number != local).map(peer).collect() }
    }

    /// One of them.
    pub fn get(&self, peer: NodeNumber) -> Option<&Peer> {
        self.peers.get(&peer)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (NodeNumber, &Peer)> {
        self.peers.iter().map(|(number, peer)| (*number, peer))
    }
}

impl Proximity for Peers {
    fn rtt(&self, node: NodeNumber) -> Duration {
        self.get(node).map_or(Duration::ZERO, |peer| peer.signs.rtt())
    }
    fn suspect(&self, node: NodeNumber) -> bool {
        node != self.local && self.get(node).is_some_and(|peer| peer.signs.is_suspect(peer.now()))
    }
}

/// How long a probe waits for the next.
pub const PROBE: Micros = SECOND / 4;
