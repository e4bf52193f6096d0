//! What stops: the excess of an app in a region (SPEC AUTO-1).
//!
//! Judged per process group: Machines of another group serve other services, so they are no capacity of
//! this one. Machines that take nothing now (cordoned, unhealthy, on a node that drains or is away) are
//! neither counted nor stopped: somebody or something else has to do with them.

use std::collections::BTreeMap;

use crate::autostop::{Rest, floor, node_acts, rest};
use crate::id::{MachineId, NodeNumber, ProcessGroup};
use crate::load::LoadClass;
use crate::machine::MachineState;
use crate::planted::{self, Bug};
use crate::region::RegionCode;
use crate::snapshot::{AppView, MachineView, Snapshot};

/// A Machine that runs and takes requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// The Machine.
    pub id: MachineId,
    /// Its node.
    pub node: NodeNumber,
    /// How it comes to rest, if ever.
    pub rest: Option<Rest>,
    /// How many of its kind run at least.
    pub floor: u32,
    /// Whether it is at or over its soft limit.
    pub over_soft: bool,
    /// Believed load.
    pub load: u32,
}

/// What is to stop.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stops {
    /// At most so many.
    pub count: usize,
    /// Of these, in this order: one whose node says no is skipped.
    pub among: Vec<(MachineId, NodeNumber, Rest)>,
}

/// What of the Machines of one app, region and process group is to stop now, at most `batch`.
///
/// "excess capacity = num of machines - (num machines over soft limit + 1)"; the only one stops at a load
/// of 0. A load is believed here: the Machine's own node knows it.
pub fn stops(running: &[Running], batch: usize) -> Stops {
    let over = running.iter().filter(|machine| machine.over_soft).count();
    let excess = match running {
        [] => 0,
        [only] => usize::from(only.load == 0),
        several => several.len().saturating_sub(over + 1),
    };
    let count = excess.min(batch).min(running.len().saturating_sub(least(running)));
    if count == 0 {
        return Stops::default();
    }
    let mut among: Vec<_> = running
        .iter()
        .filter(|machine| !machine.over_soft)
        .filter_map(|machine| Some((machine.load, machine.id, machine.node, machine.rest?)))
        .collect();
    among.sort_unstable();
    Stops { count, among: among.into_iter().map(|(_, id, node, rest)| (id, node, rest)).collect() }
}

fn least(running: &[Running]) -> usize {
    if planted::is(Bug::Floor) {
        return 0;
    }
    running.iter().map(|machine| machine.floor).max().unwrap_or(0) as usize
}

/// What a Machine's own node knows of it, exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Own {
    /// What is in flight.
    pub in_flight: u32,
    /// Whether it has been started for an interval.
    pub settled: bool,
    /// Whether it took nothing for an interval.
    pub quiet: bool,
}

/// Why a Machine stays up, though who decides asked for its rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Stays {
    /// It does not run, or takes nothing.
    #[error("it does not run, or is out of routing")]
    NotRunning,
    /// Its configuration does not want it.
    #[error("its services do not all say auto_stop_machines")]
    Off,
    /// Something is in flight.
    #[error("something is in flight")]
    Busy,
    /// It was started less than an interval ago.
    #[error("it was started a short time ago")]
    Young,
    /// It is the only one, and took something within an interval.
    #[error("it is the only one and was used a short time ago")]
    Used,
    /// `min_machines_running` would not be met.
    #[error("min_machines_running would not be met")]
    Floor,
}

/// The last word of a Machine's own node: `running` are those of its app, region and group that it knows.
///
/// # Errors
/// [`Stays`].
pub fn may_rest(id: MachineId, running: &[Running], own: Own) -> Result<Rest, Stays> {
    let machine = running.iter().find(|machine| machine.id == id).ok_or(Stays::NotRunning)?;
    let rest = machine.rest.ok_or(Stays::Off)?;
    if own.in_flight > 0 {
        return Err(Stays::Busy);
    }
    if !own.settled {
        return Err(Stays::Young);
    }
    if running.len() == 1 && !own.quiet {
        return Err(Stays::Used);
    }
    if running.len() <= least(running) {
        return Err(Stays::Floor);
    }
    Ok(rest)
}

/// The Machines of an app in a region that run and take requests, by process group.
pub fn running(
    app: &AppView,
    region: RegionCode,
    snapshot: &Snapshot,
    now_ms: u64,
) -> BTreeMap<ProcessGroup, Vec<Running>> {
    let mut groups: BTreeMap<ProcessGroup, Vec<Running>> = BTreeMap::new();
    for machine in app.machines.values().filter(|machine| machine.region == region) {
        if let Some(running) = of(machine, snapshot, now_ms) {
            groups.entry(machine.record.group.clone()).or_default().push(running);
        }
    }
    groups
}

fn of(machine: &MachineView, snapshot: &Snapshot, now_ms: u64) -> Option<Running> {
    let record = &machine.record;
    let takes = record.state == MachineState::Started && record.healthy && !record.cordoned;
    let config = machine.config.as_ref().filter(|_| takes && node_acts(machine, snapshot))?;
    let over_soft = record.load > LoadClass::BelowSoft;
    Some(Running {
        id: record.id,
        node: machine.node,
        rest: rest(config),
        floor: floor(config, machine.region),
        over_soft,
        load: machine.estimate.load(now_ms).max(u32::from(over_soft)),
    })
}
