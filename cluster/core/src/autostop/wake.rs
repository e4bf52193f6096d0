//! Whether a request wants a Machine started, and whether it waits for it (SPEC AUTO-2).
//!
//! Regions are judged one after another, the nearest first. "If all the running Machines are above their
//! `soft_limit` setting, then the proxy starts a stopped or suspended Machine in the nearest region".

use std::collections::BTreeMap;
use std::time::Duration;

use crate::autostop::start::known;
use crate::autostop::{node_acts, starts_on};
use crate::balance::{Candidate, Constraint, PassedOver, Pick, PickReason, Verdict};
use crate::id::{MachineId, NodeNumber};
use crate::machine::MachineState;
use crate::region::{RegionCode, Regions};
use crate::snapshot::{MachineView, Snapshot};
use crate::suspicion::Proximity;

/// What is to be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Want {
    /// As many Machines of the app in that region as its load needs: the node that decides there knows.
    Region(RegionCode),
    /// Exactly this Machine, on this node: the request can use no other.
    Machine(MachineId, NodeNumber),
}

impl std::fmt::Display for Want {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Region(region) => write!(f, "region {region}"),
            Self::Machine(machine, _) => write!(f, "machine {machine}"),
        }
    }
}

/// What a request does about Machines that do not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// Nothing: it goes where it was to go, or fails.
    Nothing,
    /// A start is wanted, and it goes on meanwhile.
    GoOn(Want),
    /// A start is wanted, and it waits for it.
    Wait(Want),
    /// One came up a moment ago and is not ready yet: it waits for that.
    Await(Want),
}

/// What a request asks for and met so far.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The public port.
    pub port: u16,
    /// What it asks for.
    pub constraint: &'a Constraint,
    /// Machines that refused it because they are stopped: gossip may not say so yet.
    pub stopped: &'a [MachineId],
    /// Machines that refused it for whatever reason, so that nothing of it reached them.
    pub refused: &'a [MachineId],
    /// Whether it waits for a start already: then what is on its way up is waited for, too.
    pub waits: bool,
}

/// What a judgement reads.
#[derive(Clone, Copy)]
pub struct Sight<'a> {
    /// What the edge knows.
    pub snapshot: &'a Snapshot,
    /// Distances.
    pub proximity: &'a dyn Proximity,
    /// The regions it knows.
    pub regions: &'a Regions,
    /// Milliseconds since 1970 on this node's clock, to compare with [`MachineView::seen_ms`].
    pub unix_ms: u64,
}

/// A Machine that is heard to run, and not ready, is waited for at least so long, in milliseconds; and
/// for twice the time that its last start took.
pub const READY_MS: u64 = 2_000;

/// Whether any Machine among these may be started at all: the cheap question before [`judge`].
pub fn any_asleep(verdicts: &[Verdict<'_>]) -> bool {
    verdicts.iter().any(|(_, verdict)| match verdict {
        Err(PassedOver::NotStarted(state)) => sleeps(*state),
        Err(PassedOver::Unhealthy) => true,
        Ok(_) | Err(_) => false,
    })
}

/// Whether a Machine in that state may serve soon: it rests, or is on its way there or back.
fn sleeps(state: MachineState) -> bool {
    use MachineState as S;
    matches!(state, S::Stopped | S::Suspended | S::Stopping | S::Suspending | S::Starting)
}

/// Whether a Machine that was passed over may serve soon, started by this request if need be.
fn is_coming(machine: MachineId, passed_over: PassedOver, asked: Asked<'_>) -> bool {
    match passed_over {
        PassedOver::NotStarted(MachineState::Restarting | MachineState::Updating) | PassedOver::Unhealthy => {
            asked.waits
        }
        PassedOver::NotStarted(state) => sleeps(state),
        // A process that was started a moment ago may not listen yet.
        PassedOver::Tried => {
            asked.stopped.contains(&machine) || (asked.waits && asked.refused.contains(&machine))
        }
        PassedOver::Cordoned
        | PassedOver::Draining
        | PassedOver::Unconfigured
        | PassedOver::NoService
        | PassedOver::NotAsked => false,
    }
}

#[derive(Default)]
struct Place<'a> {
    rank: usize,
    rtt: Option<Duration>,
    running: Vec<&'a Candidate<'a>>,
    asleep: Vec<&'a MachineView>,
    /// They came up a moment ago.
    young: Vec<&'a MachineView>,
    /// A Machine that runs, failed this request and so is of no use to it.
    tried: bool,
}

/// Judges the regions for a request that would go to `pick`.
pub fn judge(verdicts: &[Verdict<'_>], pick: Option<&Pick<'_>>, asked: Asked<'_>, sight: Sight<'_>) -> Wake {
    let mut places: BTreeMap<RegionCode, Place<'_>> = BTreeMap::new();
    for (machine, verdict) in verdicts {
        let Some(rank) = rank(machine.region, asked.constraint, sight.regions) else { continue };
        let place = places.entry(machine.region).or_default();
        let rtt = sight.proximity.rtt(machine.node);
        place.rank = rank;
        place.rtt = Some(place.rtt.map_or(rtt, |known| known.min(rtt)));
        match verdict {
            Ok(candidate) if candidate.alive && !candidate.suspect => place.running.push(candidate),
            Err(why) if is_coming(machine.record.id, *why, asked) => {
                place.asleep.extend(may_start(machine, asked, sight).then_some(*machine));
            }
            Err(PassedOver::Unhealthy) if is_young(machine, sight.unix_ms) => {
                place.young.extend(may_start(machine, asked, sight).then_some(*machine));
            }
            Err(PassedOver::Tried) => place.tried = true,
            Ok(_) | Err(_) => {}
        }
    }
    let mut order: Vec<(RegionCode, Place<'_>)> = places.into_iter().collect();
    order.sort_by_key(|(region, place)| (place.rank, place.rtt, *region));
    let sure = |pick: &&Pick<'_>| pick.reason != PickReason::LastResort && !is_full(&pick.candidate);
    let elsewhere = pick.filter(sure);
    for (region, place) in &order {
        let want = || want(*region, place, asked.constraint);
        if place.running.is_empty() {
            let soonest = |machines: &[&MachineView]| {
                machines.iter().map(|machine| known(machine.record.start_ms)).min()
            };
            let near = |start_ms: u32| {
                let start = Duration::from_millis(start_ms.into());
                elsewhere.is_some_and(|pick| pick.candidate.rtt < start)
            };
            if let Some(start) = soonest(&place.young) {
                // Whatever rests there: one is about to serve.
                return if near(start) { Wake::Nothing } else { Wake::Await(want()) };
            }
            if let Some(start) = soonest(&place.asleep) {
                return if near(start) { Wake::GoOn(want()) } else { Wake::Wait(want()) };
            }
            continue;
        }
        if place.running.iter().any(|candidate| candidate.load < candidate.limits.soft) {
            return Wake::Nothing;
        }
        if !place.asleep.is_empty() {
            return Wake::GoOn(want());
        }
        if !place.running.iter().all(|candidate| is_full(candidate)) {
            // Soft limits send nothing to another region.
            return Wake::Nothing;
        }
    }
    Wake::Nothing
}

fn is_full(candidate: &Candidate<'_>) -> bool {
    candidate.limits.hard.is_some_and(|hard| candidate.load >= hard)
}

/// The decider counts what runs; a request that can't use that names a Machine itself.
fn want(region: RegionCode, place: &Place<'_>, constraint: &Constraint) -> Want {
    let own = constraint.machine.is_some() || (place.tried && place.running.is_empty());
    let quickest = place.asleep.iter().chain(&place.young).min_by_key(|machine| {
        let suspended = machine.record.state == MachineState::Suspended;
        (!suspended, known(machine.record.start_ms), machine.record.id)
    });
    match quickest {
        Some(machine) if own => Want::Machine(machine.record.id, machine.node),
        Some(_) | None => Want::Region(region),
    }
}

/// How a request prefers a region; `None` when it may not go there.
fn rank(region: RegionCode, constraint: &Constraint, regions: &Regions) -> Option<usize> {
    let position =
        |names: &[String]| names.iter().position(|name| regions.matches(name, region) == Some(true));
    if !constraint.regions.is_empty() {
        return position(&constraint.regions);
    }
    Some(position(&constraint.prefer).unwrap_or(constraint.prefer.len()))
}

/// Whether it is heard to run for so short a time that it may not be ready yet, rather than ill.
fn is_young(machine: &MachineView, unix_ms: u64) -> bool {
    let within = READY_MS.max(u64::from(machine.record.start_ms) * 2);
    unix_ms.saturating_sub(machine.seen_ms) <= within
}

fn may_start(machine: &MachineView, asked: Asked<'_>, sight: Sight<'_>) -> bool {
    !machine.record.cordoned
        && node_acts(machine, sight.snapshot)
        && machine.config.as_ref().is_some_and(|config| starts_on(config, asked.port))
}
