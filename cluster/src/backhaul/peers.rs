//! How far peers are and which are suspect: written by transport, read by every decision from
//! atomics, without a lock (DESIGN section 3, SPEC CLU-4).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use imbl::OrdMap;
use skein_core::NodeNumber;
use skein_core::RegionCode;
use skein_core::region::Regions;
use skein_core::suspicion::{Proximity, Signs};
use tokio::sync::Notify;

use crate::clock;

/// The round trip to a node of which nothing is known, not even its region.
const UNKNOWN_RTT: Duration = Duration::from_millis(100);

/// What transport knows of all peers.
#[derive(Debug)]
pub struct Peers {
    local: NodeNumber,
    region: RegionCode,
    regions: Arc<Regions>,
    vitals: ArcSwap<OrdMap<NodeNumber, Arc<Vitals>>>,
}

/// What transport knows of one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerReport {
    /// The peer.
    pub node: NodeNumber,
    /// The round trip, measured or guessed.
    pub rtt: Duration,
    /// Whether the round trip was measured.
    pub measured: bool,
    /// How long ago anything came from it; `None` when nothing ever did.
    pub heard_ago: Option<Duration>,
    /// Whether a connection is up.
    pub connected: bool,
    /// Whether it is suspect.
    pub suspect: bool,
}

impl Peers {
    pub(super) fn new(local: NodeNumber, region: RegionCode, regions: Arc<Regions>) -> Self {
        Self { local, region, regions, vitals: ArcSwap::default() }
    }

    /// The vitals of `node`, made when there are none; `region` gives the guess of its distance.
    pub(super) fn enter(&self, node: NodeNumber, region: Option<RegionCode>) -> Arc<Vitals> {
        let known = self.vitals.load().get(&node).cloned();
        let vitals = known.unwrap_or_else(|| {
            let fresh = Arc::new(Vitals::new(UNKNOWN_RTT));
            self.vitals.rcu(|all| {
                let mut all = OrdMap::clone(all);
                all.entry(node).or_insert_with(|| Arc::clone(&fresh));
                all
            });
            self.vitals.load().get(&node).cloned().unwrap_or(fresh)
        });
        if let Some(region) = region {
            vitals.signs.guess(self.regions.simulated_rtt(self.region, region));
        }
        vitals
    }

    pub(super) fn forget(&self, node: NodeNumber) {
        self.vitals.rcu(|all| all.without(&node));
    }

    /// What is known of every peer, by number.
    pub fn report(&self) -> Vec<PeerReport> {
        let now = clock::now();
        self.vitals.load().iter().map(|(node, vitals)| vitals.report(*node, now)).collect()
    }

    /// Returns when `node` is suspect: for one who waits for it and could do something else. Pends
    /// for ever for a node that is not known.
    pub async fn until_suspect(&self, node: NodeNumber) {
        let Some(vitals) = self.vitals.load().get(&node).cloned() else {
            return std::future::pending().await;
        };
        loop {
            match vitals.signs.suspect_in(clock::now()) {
                None => return,
                Some(wait) => tokio::time::sleep(wait).await,
            }
        }
    }
}

impl Proximity for Peers {
    fn rtt(&self, node: NodeNumber) -> Duration {
        if node == self.local {
            return Duration::ZERO;
        }
        self.vitals.load().get(&node).map_or(UNKNOWN_RTT, |vitals| vitals.signs.rtt())
    }

    fn suspect(&self, node: NodeNumber) -> bool {
        node != self.local
            && self.vitals.load().get(&node).is_some_and(|vitals| vitals.signs.is_suspect(clock::now()))
    }
}

/// One peer: its signs of life, and who waits for them.
#[derive(Debug)]
pub(super) struct Vitals {
    pub(super) signs: Signs,
    pub(super) connections: AtomicU32,
    /// Wakes whoever probes the peer when it came into use.
    pub(super) in_use: Notify,
}

impl Vitals {
    fn new(guess: Duration) -> Self {
        Self { signs: Signs::new(clock::now(), guess), connections: AtomicU32::new(0), in_use: Notify::new() }
    }

    /// Somebody uses the peer: it is probed more often for a while.
    pub(super) fn uses(&self, now: Instant) {
        if self.signs.uses(now) {
            self.in_use.notify_one();
        }
    }

    fn report(&self, node: NodeNumber, now: Instant) -> PeerReport {
        PeerReport {
            node,
            rtt: self.signs.rtt(),
            measured: self.signs.is_measured(),
            heard_ago: self.signs.heard_ago(now),
            connected: self.connections.load(Ordering::Relaxed) > 0,
            suspect: self.signs.is_suspect(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_were_never_measured_are_as_far_as_their_regions() {
        let regions = Arc::new(Regions::default());
        let (iad, nrt): (RegionCode, RegionCode) = ("iad".parse().unwrap(), "nrt".parse().unwrap());
        let peers = Peers::new(NodeNumber(1), iad, Arc::clone(&regions));
        peers.enter(NodeNumber(2), Some(nrt));
        assert_eq!(peers.rtt(NodeNumber(2)).as_millis(), regions.simulated_rtt(iad, nrt).as_millis());
        assert_eq!(peers.rtt(NodeNumber(1)), Duration::ZERO);
        assert!(!peers.suspect(NodeNumber(1)) && !peers.suspect(NodeNumber(2)));
        peers.forget(NodeNumber(2));
        assert_eq!(peers.rtt(NodeNumber(2)), UNKNOWN_RTT);
    }
}
