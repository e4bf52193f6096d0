//! What a node says of itself, with the version of each key.

use std::sync::Arc;

use imbl::OrdMap;
use skein_core::key::NodeRecord;
use skein_core::record::Record;
use skein_core::{MachineId, codec};

/// Characters of base 64 for so many bytes.
pub(super) fn text(bytes: usize) -> usize {
    (bytes * 4).div_ceil(3)
}

/// Bytes of a key, its version and its lengths: `m/` and 14 digits.
const KEY: usize = 16 + 8 + 4 + 1;

/// What a node says: immutable, each change is the next value.
#[derive(Debug, Clone, Default)]
pub struct Said {
    version: u64,
    node: Option<(u64, NodeRecord)>,
    machines: OrdMap<MachineId, Arc<Record>>,
    /// The version at which each key last changed, deleted ones included, with the length of its
    /// value.
    keys: OrdMap<MachineId, (u64, usize)>,
}

impl Said {
    /// Grows by one with each key that changes.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The node's own record.
    pub fn node(&self) -> Option<&NodeRecord> {
        self.node.as_ref().map(|(_, record)| record)
    }

    /// Its Machines' records.
    pub fn machines(&self) -> &OrdMap<MachineId, Arc<Record>> {
        &self.machines
    }

    /// What says exactly this; the same value when nothing changes.
    pub(super) fn next(
        self: &Arc<Self>,
        node: &NodeRecord,
        machines: &OrdMap<MachineId, Record>,
    ) -> Arc<Self> {
        let mut next = Self::clone(self);
        let gone: Vec<MachineId> =
            self.machines.keys().filter(|id| !machines.contains_key(*id)).copied().collect();
        for id in gone {
            next.version += 1;
            next.machines.remove(&id);
            next.keys.insert(id, (next.version, 0));
        }
        for (id, record) in machines {
            if self.machines.get(id).is_none_or(|known| **known != *record) {
                next.version += 1;
                next.machines.insert(*id, Arc::new(record.clone()));
                next.keys.insert(*id, (next.version, text(record.encode().len())));
            }
        }
        if self.node() != Some(node) {
            next.version += 1;
            next.node = Some((next.version, node.clone()));
        }
        if next.version == self.version { Arc::clone(self) } else { Arc::new(next) }
    }

    /// Bytes of the keys that changed after `version`.
    pub(super) fn bytes_after(&self, version: u64) -> usize {
        let machines = self.keys.values().filter(|(changed, _)| *changed > version);
        let machines: usize = machines.map(|(_, length)| KEY + length).sum();
        let node = self.node.as_ref().filter(|(changed, _)| *changed > version);
        machines + node.map_or(0, |(_, record)| KEY + text(codec::encode(record).len()))
    }
}
