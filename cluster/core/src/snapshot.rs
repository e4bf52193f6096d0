//! The snapshot: all that a node knows, as one immutable value, and the fold that makes the next.
//!
//! A request loads one snapshot and keeps it. The fold copies only what changed: the maps are
//! persistent, and only apps with a changed Machine or fact are rebuilt. Invariant, held by a
//! property test: folding changes one after another equals folding everything at once.
//!
//! Liveness is an attribute of a node, never its existence: a dead node's Machines stay known. What
//! ends a node is its removal from the registry: then it and its Machines are gone, whatever gossip
//! says. One that the registry does not tell of yet is known: gossip may be ahead.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::OrdMap;

use crate::age::Confirmed;
use crate::facts::{App, State};
use crate::id::{AppId, ConfigHash, MachineId, NodeNumber};
use crate::key::NodeRecord;
use crate::load::Estimate;
use crate::machine::MachineConfig;
use crate::planted::{self, Bug};
use crate::record::Record;
use crate::region::RegionCode;

/// What gossip holds of a node, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// What it says of itself.
    pub record: NodeRecord,
    /// Its gossip generation: grows at each start of the node.
    pub generation: u64,
    /// Its gossip version: grows with each change.
    pub version: u64,
    /// Whether gossip counts it as alive.
    pub alive: bool,
    /// When it last spoke, on this node's clock; shared by all versions of these facts.
    pub confirmed: Arc<Confirmed>,
    /// Its Machines.
    pub machines: OrdMap<MachineId, Arc<Record>>,
}

/// What changed since the last fold.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// When they are folded: milliseconds since 1970 on this node's clock.
    pub now_ms: u64,
    /// The registry, with the index of the entry it has applied.
    pub registry: Option<(u64, Arc<State>)>,
    /// Whole nodes; an older (generation, version) than the known one is ignored.
    pub nodes: Vec<NodeFacts>,
    /// Configurations that arrived from their workers.
    pub configs: Vec<(ConfigHash, Arc<MachineConfig>)>,
}

/// A node.
#[derive(Debug, Clone)]
pub struct NodeView {
    /// What it says of itself.
    pub record: NodeRecord,
    /// Its gossip generation.
    pub generation: u64,
    /// Its gossip version.
    pub version: u64,
    /// Whether gossip counts it as alive.
    pub alive: bool,
    /// When it last spoke, on this node's clock (SPEC LB-8).
    pub confirmed: Arc<Confirmed>,
    /// Its Machines.
    pub machines: OrdMap<MachineId, Arc<MachineView>>,
}

/// A Machine, as this node sees it.
#[derive(Debug, Clone)]
pub struct MachineView {
    /// What gossip says of it.
    pub record: Arc<Record>,
    /// The node it is on.
    pub node: NodeNumber,
    /// That node's region.
    pub region: RegionCode,
    /// Its configuration; `None` until its worker told it.
    pub config: Option<Arc<MachineConfig>>,
    /// When this node learned of this record: milliseconds since 1970 on its own clock.
    pub seen_ms: u64,
    /// This node's belief of its load; survives snapshots.
    pub estimate: Arc<Estimate>,
}

/// An app with all its Machines. A Machine id that two nodes claim stands twice: both claims are
/// seen, and each worker decides for itself.
#[derive(Debug, Clone)]
pub struct AppView {
    /// Its facts.
    pub app: Arc<App>,
    /// Its Machines.
    pub machines: OrdMap<(MachineId, NodeNumber), Arc<MachineView>>,
}

/// All that a node knows.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Grows by one with each fold.
    pub version: u64,
    /// The registry's facts.
    pub registry: Arc<State>,
    /// The registry entry that they follow from.
    pub applied: u64,
    /// All nodes that gossip knows, without removed ones.
    pub nodes: OrdMap<NodeNumber, Arc<NodeView>>,
    /// All apps of the registry.
    pub apps: OrdMap<AppId, Arc<AppView>>,
    /// Configurations by hash.
    pub configs: OrdMap<ConfigHash, Arc<MachineConfig>>,
}

impl Snapshot {
    /// The app of that name.
    pub fn app_by_name(&self, name: &str) -> Option<&Arc<AppView>> {
        self.apps.get(&self.registry.app_by_name(name)?.id)
    }

    /// The Machine of that id, on the lowest-numbered node that claims it.
    pub fn machine(&self, id: MachineId) -> Option<&Arc<MachineView>> {
        self.nodes.values().find_map(|node| node.machines.get(&id))
    }

    /// Configurations that are named by a record and not known yet, with the nodes to ask.
    pub fn missing_configs(&self) -> Vec<(ConfigHash, NodeNumber)> {
        let mut missing = BTreeSet::new();
        for (number, node) in &self.nodes {
            let unknown = node.machines.values().filter(|machine| machine.config.is_none());
            missing.extend(unknown.map(|machine| (machine.record.config, *number)));
        }
        missing.into_iter().collect()
    }
}

/// The snapshot after `changes`.
pub fn fold(prev: &Snapshot, changes: Changes) -> Snapshot {
    let mut next = prev.clone();
    next.version += 1;
    // Machines whose view changed, as (app, machine, node).
    let mut touched: BTreeSet<(AppId, MachineId, NodeNumber)> = BTreeSet::new();
    let new_configs: BTreeSet<ConfigHash> = changes.configs.iter().map(|(hash, _)| *hash).collect();
    next.configs.extend(changes.configs);

    for facts in changes.nodes {
        fold_node(&mut next, facts, changes.now_ms, &mut touched);
    }
    if !new_configs.is_empty() {
        supply_configs(&mut next, &new_configs, &mut touched);
    }
    if let Some((applied, registry)) = changes.registry {
        fold_registry(&mut next, applied, registry, &mut touched);
    }
    for (app, machine, node) in touched {
        let Some(view) = next.apps.get_mut(&app) else { continue };
        let view = Arc::make_mut(view);
        let current = next.nodes.get(&node).and_then(|node| node.machines.get(&machine));
        match current.filter(|current| current.record.app == app) {
            Some(current) => drop(view.machines.insert((machine, node), Arc::clone(current))),
            None => drop(view.machines.remove(&(machine, node))),
        }
    }
    next
}

fn fold_node(
    next: &mut Snapshot,
    facts: NodeFacts,
    now_ms: u64,
    touched: &mut BTreeSet<(AppId, MachineId, NodeNumber)>,
) {
    let number = facts.record.number;
    if next.registry.was_removed(number) {
        return;
    }
    let prev = next.nodes.get(&number).cloned();
    if prev.as_ref().is_some_and(|prev| (facts.generation, facts.version) < (prev.generation, prev.version)) {
        return;
    }
    let moved = prev.as_ref().is_some_and(|prev| prev.record.region != facts.record.region);
    let mut machines = prev.as_ref().map(|prev| prev.machines.clone()).unwrap_or_default();
    let gone: Vec<_> = machines.keys().filter(|id| !facts.machines.contains_key(*id)).copied().collect();
    for id in gone.into_iter().filter(|_| !planted::is(Bug::Withdrawal)) {
        if let Some(view) = machines.remove(&id) {
            touched.insert((view.record.app, id, number));
        }
    }
    for (id, record) in &facts.machines {
        let known = machines.get(id);
        if let Some(known) = known
            && !moved
            && (Arc::ptr_eq(&known.record, record) || known.record == *record)
        {
            continue;
        }
        if let Some(known) = known {
            touched.insert((known.record.app, *id, number));
        }
        touched.insert((record.app, *id, number));
        if let Some(known) = known.filter(|known| known.record.state != record.state) {
            // What spoke against it ended with its last state.
            known.estimate.outlier().pardon();
        }
        let view = MachineView {
            record: Arc::clone(record),
            node: number,
            region: facts.record.region,
            config: next.configs.get(&record.config).cloned(),
            seen_ms: now_ms,
            estimate: known.map(|known| Arc::clone(&known.estimate)).unwrap_or_default(),
        };
        machines.insert(*id, Arc::new(view));
    }
    let NodeFacts { record, generation, version, alive, confirmed, machines: _ } = facts;
    next.nodes.insert(number, Arc::new(NodeView { record, generation, version, alive, confirmed, machines }));
}

fn supply_configs(
    next: &mut Snapshot,
    new: &BTreeSet<ConfigHash>,
    touched: &mut BTreeSet<(AppId, MachineId, NodeNumber)>,
) {
    let numbers: Vec<NodeNumber> = next.nodes.keys().copied().collect();
    for number in numbers {
        let Some(node) = next.nodes.get(&number).cloned() else { continue };
        let waiting = node
            .machines
            .values()
            .filter(|machine| machine.config.is_none() && new.contains(&machine.record.config));
        let mut machines = node.machines.clone();
        for machine in waiting {
            let config = next.configs.get(&machine.record.config).cloned();
            touched.insert((machine.record.app, machine.record.id, number));
            machines
                .insert(machine.record.id, Arc::new(MachineView { config, ..MachineView::clone(machine) }));
        }
        next.nodes.insert(number, Arc::new(NodeView { machines, ..NodeView::clone(&node) }));
    }
}

fn fold_registry(
    next: &mut Snapshot,
    applied: u64,
    registry: Arc<State>,
    touched: &mut BTreeSet<(AppId, MachineId, NodeNumber)>,
) {
    if applied < next.applied {
        return;
    }
    let removed: Vec<_> =
        next.nodes.keys().filter(|number| registry.was_removed(**number)).copied().collect();
    for number in removed {
        if let Some(node) = next.nodes.remove(&number) {
            touched.extend(node.machines.values().map(|m| (m.record.app, m.record.id, number)));
        }
    }
    let gone: Vec<_> = next.apps.keys().filter(|id| registry.app(**id).is_none()).copied().collect();
    for id in gone {
        next.apps.remove(&id);
    }
    let mut added = BTreeSet::new();
    for app in registry.apps() {
        match next.apps.get_mut(&app.id) {
            Some(view) if Arc::ptr_eq(&view.app, app) || view.app == *app => {}
            Some(view) => Arc::make_mut(view).app = Arc::clone(app),
            None => {
                next.apps.insert(app.id, Arc::new(AppView { app: Arc::clone(app), machines: OrdMap::new() }));
                added.insert(app.id);
            }
        }
    }
    if !added.is_empty() {
        for (number, node) in &next.nodes {
            let mine = node.machines.values().filter(|machine| added.contains(&machine.record.app));
            touched.extend(mine.map(|machine| (machine.record.app, machine.record.id, *number)));
        }
    }
    next.applied = applied;
    next.registry = registry;
}

#[cfg(test)]
mod tests;
