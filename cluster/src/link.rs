//! The shim between QUIC and the network: delays, drops, duplicates, reorders, throttles or cuts what
//! goes to a peer (SPEC TB-4, CH-1).
//!
//! Each node shapes what it sends, so each direction of a link has its own rule. Two layers add up:
//! the simulated distance, which the node sets, and faults, which the API sets. Without a rule for
//! an address a batch passes untouched.

mod queue;
mod socket;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use skein_core::NodeNumber;
use skein_core::fault::LinkRule;
use skein_core::planted::{self, Bug};

pub(crate) use socket::shape;

/// The rules of a node's links. Clones share them; looking one up takes no lock.
#[derive(Debug, Clone, Default)]
pub struct LinkTable(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    layers: Mutex<Layers>,
    by_address: ArcSwap<BTreeMap<SocketAddr, LinkRule>>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Layers {
    distances: BTreeMap<NodeNumber, LinkRule>,
    faults: BTreeMap<NodeNumber, LinkRule>,
    addresses: BTreeMap<NodeNumber, SocketAddr>,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    dropped: AtomicU64,
    delayed: AtomicU64,
    duplicated: AtomicU64,
}

/// What the shim has done since the node started, in packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkCounts {
    /// Dropped by a rule, or because a rate's or the delay queue was full.
    pub dropped: u64,
    /// Held back.
    pub delayed: u64,
    /// Sent twice.
    pub duplicated: u64,
}

impl LinkTable {
    /// Replaces the simulated distances; peers that are not named have none.
    pub fn set_distances(&self, distances: BTreeMap<NodeNumber, LinkRule>) {
        self.change(|layers| layers.distances = distances);
    }

    /// Replaces the faults; an empty map heals all.
    pub fn set_faults(&self, mut faults: BTreeMap<NodeNumber, LinkRule>) {
        self.change(|layers| {
            if planted::is(Bug::Partition) {
                let cut = layers.faults.iter().filter(|(_, rule)| rule.cut);
                faults.extend(cut.map(|(peer, rule)| (*peer, *rule)));
            }
            layers.faults = faults;
        });
    }

    /// The faults that are set.
    pub fn faults(&self) -> BTreeMap<NodeNumber, LinkRule> {
        self.with(|layers| layers.faults.clone())
    }

    /// Distance and faults of the link to `peer` together.
    pub fn effective(&self, peer: NodeNumber) -> LinkRule {
        self.with(|layers| layers.effective(peer))
    }

    /// What the shim has done.
    pub fn counts(&self) -> LinkCounts {
        let Counters { dropped, delayed, duplicated } = &self.0.counters;
        LinkCounts {
            dropped: dropped.load(Ordering::Relaxed),
            delayed: delayed.load(Ordering::Relaxed),
            duplicated: duplicated.load(Ordering::Relaxed),
        }
    }

    /// Says where peers are; rules of other peers wait until their address is known.
    pub(crate) fn set_addresses(&self, addresses: BTreeMap<NodeNumber, SocketAddr>) {
        self.change(|layers| layers.addresses = addresses);
    }

    /// The rule for packets to `address`; `None` when they pass.
    fn rule(&self, address: SocketAddr) -> Option<LinkRule> {
        let rules = self.0.by_address.load();
        if rules.is_empty() {
            return None;
        }
        rules.get(&canonical(address)).copied()
    }

    fn counters(&self) -> &Counters {
        &self.0.counters
    }

    fn with<R>(&self, read: impl FnOnce(&Layers) -> R) -> R {
        read(&self.0.layers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, change: impl FnOnce(&mut Layers)) {
        let mut layers = self.0.layers.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut layers);
        let rules = layers.addresses.iter().map(|(peer, at)| (canonical(*at), layers.effective(*peer)));
        let rules = rules.filter(|(_, rule)| !rule.is_idle()).collect();
        // Stored under the lock: two changes must not publish in the other order.
        self.0.by_address.store(Arc::new(rules));
    }
}

impl Layers {
    fn effective(&self, peer: NodeNumber) -> LinkRule {
        let of = |layer: &BTreeMap<_, LinkRule>| layer.get(&peer).copied().unwrap_or_default();
        of(&self.distances).plus(&of(&self.faults))
    }
}

/// A dual-stack socket names an IPv4 peer by its mapped address.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests;
