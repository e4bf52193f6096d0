//! Lives of nodes and links: start, kill, pause, faults, and the end of all of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use skein_cluster::gossip::Membership;
use skein_cluster::registry::Registry;
use skein_core::fault::LinkRule;
use skein_core::{MachineId, NodeNumber};

use super::{Event, HEALED, World};
use crate::node::Knows;
use crate::peers::{PROBE, Peers};
use crate::reference::NodeStatus;

impl World {
    /// Starts a node that is dead.
    pub(super) fn start(&mut self, number: NodeNumber) {
        let now = self.now();
        self.lives += 1;
        let life = self.lives;
        let Some(node) = self.nodes.get_mut(&number).filter(|node| node.life.is_none()) else { return };
        (node.life, node.woke) = (Some(life), now);
        node.draining.store(false, Ordering::Relaxed);
        let rng = self.seed.child(&format!("gossip {number} {life}"));
        let machines: Vec<MachineId> = node.machines.keys().copied().collect();
        // As a real node's: its wall clock, in microseconds; two lives never begin in one.
        let generation = node.unix_ms(now) * 1_000 + life % 1_000;
        let (mut gossips, mut votes) = (Vec::new(), Vec::new());
        let membership: Arc<dyn Membership> =
            Arc::new(self.gossip.start(now, number, generation, rng, &mut gossips));
        let Some(seat) = self.registry.start(now, number, &mut self.network, &mut votes) else { return };
        let registry: Arc<dyn Registry> = Arc::new(seat);
        node.knows = Some(Knows::new(membership, registry));
        node.say_machines();
        node.say_itself();
        self.put_gossip(gossips);
        self.put_registry(votes);
        self.settle(Some(number));
        self.agenda.after(PROBE, Event::Probe(number, life));
        self.agenda.after(0, Event::Look(number, life));
        self.reference.node(now, number, NodeStatus { runs: true, answers: true, draining: false });
        for machine in machines {
            self.boot(number, machine);
        }
    }

    pub(super) fn kill(&mut self, number: NodeNumber) {
        let now = self.now();
        let Some(node) = self.nodes.get_mut(&number).filter(|node| node.life.is_some()) else { return };
        self.counts.orphaned += node.held.len() as u64;
        let held: Vec<_> = node.held.values().map(|held| held.running.asked.clone()).collect();
        held.iter().for_each(|asked| self.reference.holds(now, asked, false));
        let Some(node) = self.nodes.get_mut(&number) else { return };
        let served: Vec<MachineId> = node.work.values().map(|work| work.machine).collect();
        node.die(Arc::new(Peers::new(number, &self.places, &self.regions, &self.clock)));
        let machines: Vec<MachineId> = node.machines.keys().copied().collect();
        self.reference.forget_edge(number);
        machines.iter().for_each(|machine| self.reference.forget_turns(*machine));
        served.into_iter().for_each(|machine| self.reference.ends(now, machine));
        self.gossip.kill(number);
        self.registry.kill(number);
        self.waiting.remove(&number);
        self.arrived.remove(&number);
        self.confirmed.retain(|(viewer, _), _| *viewer != number);
        self.reference.node(now, number, NodeStatus { runs: false, answers: false, draining: false });
        for machine in machines {
            if let Some(node) = self.nodes.get_mut(&number) {
                node.publish(machine, &self.clock);
            }
            self.tell(number, machine);
        }
        self.trouble();
    }

    /// Heals all; views must become equal from now on.
    pub(super) fn mend(&mut self) {
        self.note(format_args!("all is healed"));
        self.healed = Some(self.now());
        self.heal();
        for (number, _) in self.places.clone() {
            self.pause(number, false);
            self.start(number);
        }
        self.trouble();
        self.agenda.after(HEALED, Event::SeeEqual);
        self.agenda.after(0, Event::SeeLeader);
    }

    /// Tells the reference model whether anything is broken now.
    pub(super) fn trouble(&mut self) {
        let now = self.now();
        let nodes = self.nodes.values().any(|node| node.life.is_none() || node.paused);
        let tables = self.places.iter().filter_map(|(number, _)| self.network.table(*number));
        let links = tables.map(|table| table.faults()).any(|faults| !faults.is_empty());
        self.reference.broken(now, nodes || links);
    }

    pub(super) fn fault(&mut self, from: NodeNumber, to: NodeNumber, rule: LinkRule) {
        let now = self.now();
        if let Some(table) = self.network.table(from).filter(|_| from != to) {
            let mut faults = table.faults();
            faults.insert(to, rule);
            table.set_faults(faults);
            self.reference.link(now, from, to, rule.cut || rule.loss > 0.0 || rule.delay_us > 0);
        }
    }

    pub(super) fn heal(&mut self) {
        let now = self.now();
        for (number, _) in &self.places {
            let Some(table) = self.network.table(*number) else { continue };
            for to in table.faults().keys() {
                self.reference.link(now, *number, *to, false);
            }
            table.set_faults(BTreeMap::new());
        }
    }

    pub(super) fn pause(&mut self, number: NodeNumber, on: bool) {
        let now = self.now();
        let Some(node) = self.nodes.get_mut(&number).filter(|node| node.life.is_some()) else { return };
        if std::mem::replace(&mut node.paused, on) == on {
            return;
        }
        node.woke = now;
        let draining = node.drains();
        self.reference.node(now, number, NodeStatus { runs: true, answers: !on, draining });
        if !on {
            for event in self.waiting.remove(&number).unwrap_or_default() {
                self.agenda.at(now, event);
            }
        }
    }
}
