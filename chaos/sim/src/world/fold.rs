//! Snapshots: folded of what came through the seams, with the configurations that are missing.

use std::sync::Arc;

use skein_cluster::configs::by_hash;
use skein_core::NodeNumber;

use super::{Event, Packet, World};
use crate::agenda::{MS, Micros, SECOND};
use crate::invariants;
use crate::node::view;

/// The least time between two folds: the production's.
const BATCH: Micros = 10 * MS;
/// Between two questions for a configuration: the first pause, and the longest.
const FIRST_PAUSE: Micros = 100 * MS;
const LONGEST_PAUSE: Micros = 5 * SECOND;

impl World {
    pub(super) fn fold_soon(&mut self, number: NodeNumber) {
        let now = self.now();
        if let Some(node) = self.nodes.get_mut(&number)
            && let Some(life) = node.life.filter(|_| !node.folds)
        {
            node.folds = true;
            let at = node.next_fold.max(now);
            self.agenda.at(at, Event::Fold(number, life));
        }
    }

    pub(super) fn fold(&mut self, number: NodeNumber) {
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
        self.news(number);
    }

    /// As `skein_cluster::configs` does, with its [`Turns`](skein_cluster::configs::Turns): a question
    /// that is not answered by the end of the pause has failed.
    pub(super) fn want_configs(&mut self, number: NodeNumber) {
        let now = self.now();
        let Some(node) = self.nodes.get_mut(&number) else { return };
        let missing = by_hash(&node.snapshot);
        node.asked.retain(|hash, _| missing.contains_key(hash));
        let mut own = Vec::new();
        let mut asks = Vec::new();
        for (hash, owners) in missing {
            if owners.iter().any(|(owner, _)| *owner == number) {
                let machine = node.machines.values().find(|machine| machine.hash == hash);
                own.extend(machine.map(|machine| (hash, Arc::clone(&machine.config))));
                continue;
            }
            let asked = node.asked.entry(hash).or_default();
            if let Some(of) = asked.turns.next(&owners, asked.again > now) {
                let failures = asked.turns.failed(of);
                asked.again = now + (FIRST_PAUSE << (failures - 1).min(16)).min(LONGEST_PAUSE);
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
}
