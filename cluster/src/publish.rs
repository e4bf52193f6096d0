//! The one task that makes snapshots: folds what gossip, the registry and the workers told into the
//! last snapshot, and publishes the result.
//!
//! Changes within [`BATCH`] go together; the first after a quiet time goes at once. A change whose
//! fold panics is left out, logged and counted, the others of its batch go on: a fact of a shape
//! never met before must not stop a node (SPEC CLU-6), and the last good snapshot always stands.

use std::any::Any;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use skein_core::ConfigHash;
use skein_core::facts::State;
use skein_core::machine::MachineConfig;
use skein_core::snapshot::{Changes, Snapshot, fold};
use tokio::sync::{mpsc, watch};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::gossip::Members;
use crate::reader::Publisher;

/// The least time between two folds.
pub const BATCH: Duration = Duration::from_millis(10);

/// Arrived configurations that one fold takes at most.
const MAX_ARRIVED: usize = 256;

/// Configurations that no record names and that are kept all the same, for Machines that come back.
const SPARE_CONFIGS: usize = 1_024;

/// What snapshots are made of.
#[derive(Debug)]
pub struct Inputs {
    /// Gossip's members.
    pub members: watch::Receiver<Members>,
    /// The registry, with the index of the entry it has applied.
    pub registry: watch::Receiver<(u64, Arc<State>)>,
    /// Configurations that arrived, from [`crate::configs::run`].
    pub configs: mpsc::Receiver<(ConfigHash, Arc<MachineConfig>)>,
}

/// What happened since the start; each only grows.
#[derive(Debug, Default)]
pub struct PublishCounters {
    folds: AtomicU64,
    left_out: AtomicU64,
}

impl PublishCounters {
    /// Snapshots published.
    pub fn folds(&self) -> u64 {
        self.folds.load(Ordering::Relaxed)
    }

    /// Changes left out because their fold panicked: an alarm.
    pub fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }
}

type Fold = fn(&Snapshot, Changes) -> Snapshot;

/// Publishes a snapshot for each batch of changes until cancelled.
pub async fn run(inputs: Inputs, out: Publisher, counters: Arc<PublishCounters>, cancel: CancellationToken) {
    Folder::new(counters).run(inputs, out, cancel).await;
}

/// Makes the next snapshot of the last one and of what was told since: [`run`] without time and
/// tasks.
pub struct Folder {
    last: Snapshot,
    /// The members that the last snapshot holds.
    folded: Members,
    fold: Fold,
    counters: Arc<PublishCounters>,
}

impl std::fmt::Debug for Folder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Folder").field("last", &self.last.version).finish_non_exhaustive()
    }
}

impl Folder {
    /// Begins with an empty snapshot.
    pub fn new(counters: Arc<PublishCounters>) -> Self {
        Self { last: Snapshot::default(), folded: Members::new(), fold, counters }
    }

    /// The last snapshot.
    pub fn snapshot(&self) -> &Snapshot {
        &self.last
    }

    async fn run(mut self, inputs: Inputs, out: Publisher, cancel: CancellationToken) {
        let Inputs { mut members, mut registry, mut configs } = inputs;
        let (mut members_open, mut registry_open, mut configs_open) = (true, true, true);
        let mut arrived = Vec::new();
        let mut next_fold = Instant::now();
        let mut due = true;
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = time::sleep_until(next_fold), if due => {
                    due = false;
                    let now = (members.borrow_and_update().clone(), registry.borrow_and_update().clone());
                    let before = self.last.version;
                    if self.step(now.0, now.1, std::mem::take(&mut arrived), clock::unix_ms()) {
                        next_fold = Instant::now() + BATCH;
                    }
                    if self.last.version != before {
                        out.publish(self.last.clone());
                    }
                }
                changed = members.changed(), if members_open => {
                    members_open = changed.is_ok();
                    due = true;
                }
                changed = registry.changed(), if registry_open => {
                    registry_open = changed.is_ok();
                    due = true;
                }
                config = configs.recv(), if configs_open && arrived.len() < MAX_ARRIVED => match config {
                    Some(config) => {
                        arrived.push(config);
                        due = true;
                    }
                    None => configs_open = false,
                },
            }
        }
    }

    /// Folds what is new at `now_ms` (milliseconds since 1970 on this node's clock); whether anything
    /// was. [`Folder::snapshot`] is the next one then, unless each of its changes was left out.
    pub fn step(
        &mut self,
        members: Members,
        registry: (u64, Arc<State>),
        configs: Vec<(ConfigHash, Arc<MachineConfig>)>,
        now_ms: u64,
    ) -> bool {
        let known = |number, facts| self.folded.get(number).is_some_and(|known| Arc::ptr_eq(known, facts));
        let nodes = members.iter().filter(|(number, facts)| !known(*number, *facts));
        let nodes: Vec<_> = nodes.map(|(_, facts)| facts.as_ref().clone()).collect();
        let same = registry.0 == self.last.applied && Arc::ptr_eq(&registry.1, &self.last.registry);
        let changes = Changes { registry: (!same).then_some(registry), nodes, configs, now_ms };
        self.folded = members;
        if changes.registry.is_none() && changes.nodes.is_empty() && changes.configs.is_empty() {
            return false;
        }
        let before = self.last.version;
        if let Err(reason) = self.try_fold(changes.clone()) {
            tracing::warn!(reason, "a fold failed; its changes are tried one by one");
            for (what, change) in one_by_one(changes) {
                if let Err(reason) = self.try_fold(change) {
                    self.counters.left_out.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(what, reason, "a change was left out of the snapshot: its fold failed");
                }
            }
        }
        if self.last.version != before {
            forget_configs(&mut self.last, SPARE_CONFIGS);
            self.counters.folds.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    /// Replaces the last snapshot, or leaves it as it was.
    fn try_fold(&mut self, changes: Changes) -> Result<(), String> {
        // The fold builds a new value: what it panics in is dropped whole.
        let next = catch_unwind(AssertUnwindSafe(|| (self.fold)(&self.last, changes)));
        self.last = next.map_err(|panic| message_of(panic.as_ref()))?;
        Ok(())
    }
}

/// Each change on its own, with its name.
fn one_by_one(changes: Changes) -> Vec<(String, Changes)> {
    let Changes { registry, nodes, configs, now_ms } = changes;
    let registry = registry.map(|(applied, state)| {
        let change = Changes { registry: Some((applied, state)), now_ms, ..Changes::default() };
        (format!("registry entry {applied}"), change)
    });
    let nodes = nodes.into_iter().map(|facts| {
        let what = format!("node {} at version {}.{}", facts.record.number, facts.generation, facts.version);
        (what, Changes { nodes: vec![facts], now_ms, ..Changes::default() })
    });
    let configs = configs.into_iter().map(|(hash, config)| {
        (
            format!("configuration {hash}"),
            Changes { configs: vec![(hash, config)], now_ms, ..Changes::default() },
        )
    });
    registry.into_iter().chain(nodes).chain(configs).collect()
}

/// Drops configurations that no record names once there are more than `spare` of them; one that is
/// needed again is asked for again.
fn forget_configs(snapshot: &mut Snapshot, spare: usize) {
    if snapshot.configs.len() <= spare {
        return;
    }
    let machines = snapshot.nodes.values().flat_map(|node| node.machines.values());
    let named: BTreeSet<ConfigHash> = machines.map(|machine| machine.record.config).collect();
    if snapshot.configs.len() > named.len() + spare {
        snapshot.configs = snapshot
            .configs
            .iter()
            .filter(|(hash, _)| named.contains(hash))
            .map(|(hash, config)| (*hash, Arc::clone(config)))
            .collect();
    }
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests;
