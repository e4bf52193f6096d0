//! Samples how loaded Machines are: slots change with every request, gossip is told of classes only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use skein_core::MachineId;
use skein_core::load::LoadClass;

use crate::board::Board;

/// Time between samples.
pub(crate) const SAMPLE: Duration = Duration::from_millis(100);

/// Samples until the runtime or its owner ends it.
pub(crate) async fn sample(board: Arc<Board>) {
    let mut ticks = tokio::time::interval(SAMPLE);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut classes = BTreeMap::new();
    loop {
        ticks.tick().await;
        step(&board, &mut classes);
    }
}

/// One sample; `classes` has the classes of the last one, by Machine and service.
fn step(board: &Board, classes: &mut BTreeMap<MachineId, Vec<LoadClass>>) {
    let locals = board.locals();
    classes.retain(|id, _| locals.contains_key(id));
    for (id, local) in &locals {
        let last = classes.entry(*id).or_default();
        last.resize(local.slots.len(), LoadClass::BelowSoft);
        let before = last.iter().max().copied();
        for ((class, slots), service) in last.iter_mut().zip(&local.slots).zip(&local.config.services) {
            *class = class.next(slots.in_flight(), service.limits());
        }
        // The worst of its services speaks for the Machine.
        let now = last.iter().max().copied();
        if now != before {
            board.set_load(*id, now.unwrap_or(LoadClass::BelowSoft));
        }
    }
}
