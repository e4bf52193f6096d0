//! The rules of this node's links: simulated distance, and what chaos adds (DESIGN section 5).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use skein_cluster::link::LinkTable;
use skein_core::facts::State;
use skein_core::fault::LinkRule;
use skein_core::region::Regions;
use skein_core::{NodeName, NodeNumber, RegionCode};

use super::config::Latency;

/// Jitter added to a simulated distance: a fiftieth of it.
const JITTER_SHARE: u64 = 50;

/// Combines both sources of rules into the table that the shim reads.
#[derive(Debug)]
pub struct LinkRules {
    table: LinkTable,
    regions: Arc<Regions>,
    region: RegionCode,
    latency: Latency,
    // Changed by the API and by registry changes only; packets read the table, not this.
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    peers: BTreeMap<NodeNumber, (NodeName, RegionCode)>,
    chaos: BTreeMap<NodeName, LinkRule>,
}

impl LinkRules {
    /// Rules for a node in `region`, written into `table`.
    pub fn new(table: LinkTable, regions: Arc<Regions>, region: RegionCode, latency: Latency) -> Self {
        Self { table, regions, region, latency, inner: Mutex::default() }
    }

    /// Takes the nodes of the registry.
    pub fn follow(&self, state: &State, own: NodeNumber) {
        self.change(|inner| {
            let others = state.nodes().filter(|node| node.number != own);
            inner.peers = others.map(|node| (node.number, (node.name.clone(), node.region))).collect();
        });
    }

    /// Replaces what chaos adds; rules for names that no node has wait for one.
    pub fn set_chaos(&self, rules: BTreeMap<NodeName, LinkRule>) {
        self.change(|inner| inner.chaos = rules);
    }

    /// What chaos adds.
    pub fn chaos(&self) -> BTreeMap<NodeName, LinkRule> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).chaos.clone()
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut inner);
        let distances = inner.peers.iter().map(|(number, (_, region))| (*number, self.distance(*region)));
        self.table.set_distances(distances.filter(|(_, rule)| !rule.is_idle()).collect());
        let faults =
            inner.peers.iter().filter_map(|(number, (name, _))| Some((*number, *inner.chaos.get(name)?)));
        self.table.set_faults(faults.collect());
    }

    fn distance(&self, to: RegionCode) -> LinkRule {
        match self.latency {
            Latency::None => LinkRule::default(),
            Latency::Real => {
                let one_way = self.regions.simulated_rtt(self.region, to) / 2;
                let delay_us = one_way.as_micros() as u64;
                LinkRule { delay_us, jitter_us: delay_us / JITTER_SHARE, ..LinkRule::default() }
            }
        }
    }
}
