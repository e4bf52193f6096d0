//! A node's outside of the model: what `skein_cluster::Gossip` is in a real node.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use imbl::OrdMap;
use skein_cluster::Members;
use skein_cluster::gossip::{MAX_VALUE, Membership, ValueTooLong};
use skein_core::key::NodeRecord;
use skein_core::record::Record;
use skein_core::{MachineId, NodeNumber, codec};
use tokio::sync::watch;

use super::said::text;
use crate::seam::{Bell, lock};

/// A node's part in gossip. Clones share it; the [`Gossiper`](super::Gossiper) does what it says at
/// its next look.
#[derive(Debug, Clone)]
pub struct Member {
    pub(super) number: NodeNumber,
    pub(super) wanted: Arc<Mutex<Wanted>>,
    pub(super) members: watch::Sender<Members>,
    bell: Bell,
}

/// What is to be said, and whom it may ask.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) node: Option<NodeRecord>,
    pub(super) machines: OrdMap<MachineId, Record>,
    pub(super) changed: bool,
    pub(super) seeds: BTreeSet<NodeNumber>,
    pub(super) new_seeds: bool,
}

/// Whether a value of that many bytes fits.
fn fits(bytes: usize) -> Result<(), ValueTooLong> {
    let length = text(bytes);
    if length > MAX_VALUE { Err(ValueTooLong(length)) } else { Ok(()) }
}

impl Member {
    pub(super) fn new(number: NodeNumber, bell: Bell) -> Self {
        Self { number, wanted: Arc::default(), members: watch::Sender::new(Members::new()), bell }
    }

    fn change(&self, change: impl FnOnce(&mut Wanted) -> bool) {
        if change(&mut lock(&self.wanted)) {
            self.bell.ring(self.number);
        }
    }
}

impl Membership for Member {
    fn set_node(&self, record: &NodeRecord) -> Result<(), ValueTooLong> {
        fits(codec::encode(record).len())?;
        self.change(|wanted| {
            let changed = wanted.node.as_ref() != Some(record);
            wanted.node = Some(record.clone());
            wanted.changed |= changed;
            changed
        });
        Ok(())
    }

    fn set_machines(&self, records: &OrdMap<MachineId, Record>) -> Result<(), ValueTooLong> {
        records.values().try_for_each(|record| fits(record.encode().len()))?;
        self.change(|wanted| {
            let changed = wanted.machines != *records;
            wanted.machines = records.clone();
            wanted.changed |= changed;
            changed
        });
        Ok(())
    }

    fn set_seeds(&self, mut seeds: BTreeSet<NodeNumber>) {
        seeds.remove(&self.number);
        self.change(|wanted| {
            let new = !seeds.is_subset(&wanted.seeds);
            wanted.seeds = seeds;
            wanted.new_seeds |= new;
            new
        });
    }

    fn members(&self) -> watch::Receiver<Members> {
        self.members.subscribe()
    }
}
