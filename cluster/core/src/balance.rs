//! Balancing: which Machine gets the next request (SPEC LB-1, LB-3, CLU-3, CLU-4).
//!
//! Order: what the request asks for (a Machine, regions); nodes that answer before those of which
//! only old facts are known before Machines that are out (SPEC LB-7) before suspect nodes before dead
//! ones; the nearest region that has room below a hard limit; inside it Machines below
//! their soft limit; round trips within 5 ms count as equal; the lowest in-flight ÷ soft; ties at
//! random. Soft limits shift load inside a region only: traffic leaves it when all its Machines are
//! at their hard limit or cannot take anything.
//!
//! The edge's view of load is a guess. When every Machine seems to be at its hard limit the least
//! loaded is still named: the worker decides, and a refusal costs one hop.

use std::cmp::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::age::OLD;
use crate::id::{MachineId, NodeNumber};
use crate::load::Limits;
use crate::machine::MachineState;
use crate::planted::{self, Bug};
use crate::random::Random;
use crate::region::{RegionCode, Regions};
use crate::snapshot::{AppView, MachineView, Snapshot};
use crate::suspicion::Proximity;

/// Round trips that differ by at most this count as equal inside a region.
pub const EQUAL_RTT: Duration = Duration::from_millis(5);

/// A Machine that could take the request.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// The Machine.
    pub machine: &'a MachineView,
    /// Index of the service in its configuration.
    pub service: usize,
    /// That service's limits.
    pub limits: Limits,
    /// Believed load.
    pub load: u32,
    /// Measured round trip to its node.
    pub rtt: Duration,
    /// Whether its node is suspect.
    pub suspect: bool,
    /// Whether gossip counts its node as alive.
    pub alive: bool,
    /// Whether this edge avoids it: it takes no connection, or answers nobody (SPEC LB-7).
    pub out: bool,
    /// Whether it owes answers, and too little is known of it to say that it stalls (SPEC LB-7).
    pub silent: bool,
    /// Time since its node last confirmed what is known of it (SPEC LB-8).
    pub age: Duration,
}

/// Why a Machine cannot take the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PassedOver {
    /// Its state is not `started`.
    NotStarted(MachineState),
    /// Its checks fail.
    Unhealthy,
    /// It is cordoned.
    Cordoned,
    /// Its node drains.
    Draining,
    /// Its configuration is not known here yet.
    Unconfigured,
    /// It has no service on that port.
    NoService,
    /// Another one was asked for.
    NotAsked,
    /// It refused or failed this request before.
    Tried,
}

impl PassedOver {
    /// In words, for `explain` and traces.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotStarted(state) => state.as_str(),
            Self::Unhealthy => "unhealthy",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
            Self::Unconfigured => "unconfigured",
            Self::NoService => "no service on the port",
            Self::NotAsked => "another was asked for",
            Self::Tried => "tried",
        }
    }
}

/// What the request asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Constraint {
    /// Exactly this Machine.
    pub machine: Option<MachineId>,
    /// Only regions that one of these names (codes or aliases), in order of preference; empty is any.
    pub regions: Vec<String>,
    /// Regions to try first, in order; others when none of them has a candidate.
    pub prefer: Vec<String>,
    /// Never these.
    pub exclude: Vec<MachineId>,
}

/// A Machine, and whether it can take the request.
pub type Verdict<'a> = (&'a MachineView, Result<Candidate<'a>, PassedOver>);

/// Judges every Machine of an app for a request on `port`.
pub fn candidates<'a>(
    app: &'a AppView,
    snapshot: &Snapshot,
    port: u16,
    constraint: &Constraint,
    proximity: &dyn Proximity,
    now_ms: u64,
) -> Vec<Verdict<'a>> {
    let judge = |machine: &'a MachineView| -> Result<Candidate<'a>, PassedOver> {
        if constraint.machine.is_some_and(|id| id != machine.record.id) {
            return Err(PassedOver::NotAsked);
        }
        if constraint.exclude.contains(&machine.record.id) {
            return Err(PassedOver::Tried);
        }
        if machine.record.state != MachineState::Started {
            return Err(PassedOver::NotStarted(machine.record.state));
        }
        if machine.record.cordoned {
            return Err(PassedOver::Cordoned);
        }
        if !machine.record.healthy {
            return Err(PassedOver::Unhealthy);
        }
        let node = snapshot.nodes.get(&machine.node);
        if node.is_some_and(|node| node.record.draining) {
            return Err(PassedOver::Draining);
        }
        let config = machine.config.as_ref().ok_or(PassedOver::Unconfigured)?;
        let (service, settings, _) = config.tcp_service(port).ok_or(PassedOver::NoService)?;
        let limits = settings.limits();
        let load = machine.estimate.load(now_ms).max(gossiped(machine, limits, now_ms));
        Ok(Candidate {
            machine,
            service,
            limits,
            load,
            rtt: proximity.rtt(machine.node),
            suspect: proximity.suspect(machine.node),
            alive: node.is_some_and(|node| node.alive),
            out: machine.estimate.outlier().is_out(now_ms),
            silent: machine.estimate.outlier().is_silent(now_ms),
            age: node.map_or(Duration::MAX, |node| node.confirmed.age(now_ms)),
        })
    };
    app.machines.values().map(|machine| (machine.as_ref(), judge(machine))).collect()
}

/// What the gossiped class alone says: used until the worker told its exact load.
fn gossiped(machine: &MachineView, limits: Limits, now_ms: u64) -> u32 {
    if machine.estimate.is_told(now_ms) {
        return 0;
    }
    match machine.record.load {
        crate::load::LoadClass::BelowSoft => 0,
        crate::load::LoadClass::SoftToHard => limits.soft,
        crate::load::LoadClass::AtHard => limits.hard.unwrap_or(limits.soft),
    }
}

/// Why that Machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PickReason {
    /// The only one, or the one that was asked for.
    Only,
    /// In a region that the request prefers.
    PreferredRegion,
    /// The least loaded of the nearest region with room.
    Nearest,
    /// Its region's Machines are all at or above their soft limit.
    AboveSoft,
    /// Every Machine seems full: the worker decides.
    SeemsFull,
    /// Its node is suspect or dead, it is avoided, or what is known of it is old, and no other can take it.
    LastResort,
}

impl PickReason {
    /// In words, for `explain` and traces.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Only => "only",
            Self::PreferredRegion => "preferred region",
            Self::Nearest => "nearest",
            Self::AboveSoft => "above soft",
            Self::SeemsFull => "seems full",
            Self::LastResort => "last resort",
        }
    }
}

/// The choice.
#[derive(Debug, Clone, Copy)]
pub struct Pick<'a> {
    /// Who gets the request.
    pub candidate: Candidate<'a>,
    /// Why.
    pub reason: PickReason,
}

impl Pick<'_> {
    /// Whether it is at its hard limit, as far as the edge knows.
    pub fn seems_full(&self) -> bool {
        self.candidate.limits.hard.is_some_and(|hard| self.candidate.load >= hard)
    }
}

/// Picks one of `candidates`; `None` when none of them is in a region that the request allows.
pub fn pick<'a>(
    candidates: &[Candidate<'a>],
    constraint: &Constraint,
    regions: &Regions,
    rng: &mut impl Random,
) -> Option<Pick<'a>> {
    let within = |names: &[String]| -> Option<Vec<Candidate<'a>>> {
        names.iter().find_map(|name| {
            let inside = |c: &&Candidate<'a>| regions.matches(name, c.machine.region) == Some(true);
            let found: Vec<_> = candidates.iter().filter(inside).copied().collect();
            (!found.is_empty()).then_some(found)
        })
    };
    if constraint.machine.is_some() || candidates.len() == 1 {
        let allowed = |c: &&Candidate<'a>| {
            constraint.regions.is_empty()
                || constraint.regions.iter().any(|name| regions.matches(name, c.machine.region) == Some(true))
        };
        let candidate = *candidates.iter().find(allowed)?;
        return Some(Pick { candidate, reason: PickReason::Only });
    }
    if !constraint.regions.is_empty() {
        return among(&within(&constraint.regions)?, rng);
    }
    if let Some(preferred) = within(&constraint.prefer)
        && let Some(pick) = among(&preferred, rng)
        && matches!(pick.reason, PickReason::Nearest | PickReason::AboveSoft)
    {
        return Some(Pick { reason: PickReason::PreferredRegion, ..pick });
    }
    among(candidates, rng)
}

/// How little its node is relied on; the least comes first.
pub(crate) fn tier(candidate: &Candidate<'_>) -> (bool, bool, bool, bool) {
    (!candidate.alive, candidate.suspect, candidate.out, candidate.age > OLD)
}

/// Whether it seems to be at its hard limit.
pub(crate) fn is_full(candidate: &Candidate<'_>) -> bool {
    candidate.limits.hard.is_some_and(|hard| candidate.load >= hard)
}

/// Which of two is less loaded for its size.
pub(crate) fn by_load(a: &Candidate<'_>, b: &Candidate<'_>) -> Ordering {
    // load ÷ soft without fractions: a/b < c/d as a·d < c·b; a soft limit of 0 counts as 1.
    let weight = |c: &Candidate<'_>| (u64::from(c.load), u64::from(c.limits.soft.max(1)));
    let ((la, sa), (lb, sb)) = (weight(a), weight(b));
    let order = (la * sb).cmp(&(lb * sa));
    if planted::is(Bug::Balancer) { order.reverse() } else { order }
}

fn among<'a>(candidates: &[Candidate<'a>], rng: &mut impl Random) -> Option<Pick<'a>> {
    let best = candidates.iter().map(tier).min()?;
    let tiered: Vec<Candidate<'a>> = candidates.iter().filter(|c| tier(c) == best).copied().collect();
    let (candidate, reason) = nearest(&tiered, rng)?;
    let reason = if best == (false, false, false, false) { reason } else { PickReason::LastResort };
    Some(Pick { candidate, reason })
}

fn nearest<'a>(candidates: &[Candidate<'a>], rng: &mut impl Random) -> Option<(Candidate<'a>, PickReason)> {
    let with_room: Vec<Candidate<'a>> = candidates.iter().filter(|c| !is_full(c)).copied().collect();
    if with_room.is_empty() {
        return least_loaded(candidates, rng).map(|c| (c, PickReason::SeemsFull));
    }
    // The region of the nearest Machine with room; a region is as near as its nearest one.
    let region = with_room.iter().min_by_key(|c| (c.rtt, c.machine.region))?.machine.region;
    let local: Vec<Candidate<'a>> =
        with_room.iter().filter(|c| c.machine.region == region).copied().collect();
    let sound: Vec<Candidate<'a>> = local.iter().filter(|c| !c.silent).copied().collect();
    let local = if sound.is_empty() { local } else { sound };
    let below: Vec<Candidate<'a>> = local.iter().filter(|c| c.load < c.limits.soft).copied().collect();
    let (pool, reason) =
        if below.is_empty() { (local, PickReason::AboveSoft) } else { (below, PickReason::Nearest) };
    let shortest = pool.iter().map(|c| c.rtt).min()?;
    let equal: Vec<Candidate<'a>> =
        pool.into_iter().filter(|c| c.rtt.saturating_sub(shortest) <= EQUAL_RTT).collect();
    least_loaded(&equal, rng).map(|c| (c, reason))
}

fn least_loaded<'a>(candidates: &[Candidate<'a>], rng: &mut impl Random) -> Option<Candidate<'a>> {
    let least = candidates.iter().min_by(|a, b| by_load(a, b))?;
    let ties: Vec<_> = candidates.iter().filter(|c| by_load(c, least).is_eq()).collect();
    ties.get(rng.below(ties.len())).map(|c| **c)
}

/// A [`Proximity`] in which every node is equally near and none is suspect: for one node, and tests.
#[derive(Debug, Clone, Copy, Default)]
pub struct AllNear;

impl Proximity for AllNear {
    fn rtt(&self, _: NodeNumber) -> Duration {
        Duration::ZERO
    }
    fn suspect(&self, _: NodeNumber) -> bool {
        false
    }
}

/// The regions that a comma-separated header value names, in order (`fly-prefer-region`); names that
/// the table does not hold are left out.
pub fn named_regions(value: &str, regions: &Regions) -> Vec<String> {
    let any: Option<RegionCode> = regions.iter().next().map(|region| region.code);
    let known = |name: &&str| any.is_some_and(|any| regions.matches(name, any).is_some());
    value.split(',').map(str::trim).filter(known).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests;
