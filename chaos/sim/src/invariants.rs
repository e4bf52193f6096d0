//! What must hold, each coded once, over plain observations: whoever can make these observations of
//! a run can judge it, a live one too.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use skein_core::queue::MAX_FULL;
use skein_core::region::Regions;
use skein_core::{AppId, MachineId, NodeNumber, RegionCode};

use crate::agenda::{MS, Micros};
use crate::reference::Taken;

/// An invariant that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: &'static str,
    /// What was seen.
    pub seen: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.seen)
    }
}

/// Whether it held.
pub type Verdict = Result<(), Violation>;

fn hold(holds: bool, invariant: &'static str, seen: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(Violation { invariant, seen: seen() }) }
}

/// No request is delivered to a Machine of another app.
///
/// # Errors
/// [`Violation`].
pub fn delivered_to_its_app(request: u64, wanted: AppId, machine: MachineId, of: AppId) -> Verdict {
    hold(wanted == of, "a request reaches only Machines of its app", || {
        format!("request {request} for {wanted} came to {machine} of {of}")
    })
}

/// Never more in flight at a Machine than its hard limit.
///
/// # Errors
/// [`Violation`].
pub fn within_hard_limit(machine: MachineId, in_flight: u32, hard: Option<u32>) -> Verdict {
    hold(hard.is_none_or(|hard| in_flight <= hard), "never over hard_limit", || {
        format!("{in_flight} in flight at {machine}, hard_limit {hard:?}")
    })
}

/// An app sees a request that may not be repeated at most once per hop.
///
/// # Errors
/// [`Violation`].
pub fn executed_at_most_once(request: u64, hop: u32, idempotent: bool, times: u32) -> Verdict {
    hold(idempotent || times <= 1, "a POST is executed at most once", || {
        format!("request {request} was executed {times} times in hop {hop}")
    })
}

/// What a node knows of another node's facts is never replaced by what was before.
///
/// # Errors
/// [`Violation`].
pub fn never_goes_back(
    viewer: NodeNumber,
    of: NodeNumber,
    before: (u64, u64),
    after: Option<(u64, u64)>,
) -> Verdict {
    hold(after.is_some_and(|after| after >= before), "facts never go back", || {
        format!("node {viewer} had {before:?} of node {of} and then {after:?}")
    })
}

/// The age of facts about a node goes back only when the node has spoken: what counts as confirmed
/// never becomes earlier, and of a node that lives and is heard all along it is never old.
///
/// # Errors
/// [`Violation`].
pub fn ages_are_true(
    viewer: NodeNumber,
    of: NodeNumber,
    age: Duration,
    before: Option<Duration>,
    heard_all_along: bool,
) -> Verdict {
    const NAME: &str = "ages never go back";
    // What was confirmed at a moment stays confirmed at least as late.
    hold(before.is_none_or(|before| age <= before), NAME, || {
        format!("node {viewer} knew node {of} confirmed {before:?} ago, and now {age:?} ago")
    })?;
    hold(!heard_all_along || age <= Duration::from_secs(5), NAME, || {
        format!("node {viewer} hears node {of} all along, but its facts are {age:?} old")
    })
}

/// A routable claim about a Machine, comparable between nodes: state, health, cordon, load class.
pub type Claim = String;

/// A node's view as it is compared: of each node whether it lives, with its Machines' claims; and the
/// names of apps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// By node: alive, draining, and each Machine's claim.
    pub nodes: BTreeMap<NodeNumber, (bool, bool, BTreeMap<MachineId, Claim>)>,
    /// The apps, with the Machines that each has.
    pub apps: BTreeMap<AppId, Vec<(MachineId, NodeNumber)>>,
}

/// Views of all nodes are equal.
///
/// # Errors
/// [`Violation`] with the first two that differ and in what.
pub fn views_are_equal(views: &BTreeMap<NodeNumber, View>, reference: &View) -> Verdict {
    for (number, view) in views {
        hold(view == reference, "views equal after healing", || {
            format!("node {number} differs from what is true: {}", difference(view, reference))
        })?;
    }
    Ok(())
}

/// Once all is healed, a majority of the voters follows a leader within `limit`, both in microseconds.
///
/// # Errors
/// [`Violation`].
pub fn led_in_time(since_healing: Micros, limit: Micros) -> Verdict {
    hold(since_healing <= limit, "a leader within seconds of healing", || {
        format!("no majority follows a leader {} ms after healing", since_healing / MS)
    })
}

/// While all is well, the registry's leader stays: nobody who was cut off disturbs it.
///
/// # Errors
/// [`Violation`].
pub fn leader_stays(before: (NodeNumber, u64), after: Option<(NodeNumber, u64)>) -> Verdict {
    hold(after == Some(before), "a healed cluster keeps its leader", || {
        format!("node {} led in term {:x}, now it is {after:x?}", before.0, before.1)
    })
}

/// The incremental fold equals the fold from nothing.
///
/// # Errors
/// [`Violation`].
pub fn folds_are_equal(viewer: NodeNumber, incremental: &View, from_nothing: &View) -> Verdict {
    hold(incremental == from_nothing, "the incremental fold equals the fold from nothing", || {
        format!("at node {viewer}: {}", difference(incremental, from_nothing))
    })
}

fn difference(a: &View, b: &View) -> String {
    for (number, node) in &a.nodes {
        match b.nodes.get(number) {
            Some(other) if other == node => {}
            other => return format!("node {number} is {node:?} instead of {other:?}"),
        }
    }
    if let Some(number) = b.nodes.keys().find(|number| !a.nodes.contains_key(number)) {
        return format!("node {number} is missing");
    }
    for (app, machines) in &a.apps {
        match b.apps.get(app) {
            Some(other) if other == machines => {}
            other => return format!("app {app} has {machines:?} instead of {other:?}"),
        }
    }
    "an app is missing".to_owned()
}

/// What an edge knew of a Machine when it decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The Machine.
    pub machine: MachineId,
    /// Its region.
    pub region: RegionCode,
    /// Started, healthy, not cordoned, on a node that does not drain, with a service on the port.
    pub routable: bool,
    /// It refused or failed this request before, or the app asked for another one.
    pub excluded: bool,
    /// Its node counts as alive.
    pub alive: bool,
    /// Its node is suspect.
    pub suspect: bool,
    /// The edge avoids it (LB-7).
    pub out: bool,
    /// It owes the edge answers (LB-7).
    pub silent: bool,
    /// Time since its node last confirmed what is known of it.
    pub age: Duration,
    /// Round trip to it.
    pub rtt: Duration,
    /// Believed load.
    pub load: u32,
    /// Its limits.
    pub soft: u32,
    /// None is no limit.
    pub hard: Option<u32>,
}

impl Known {
    fn room(&self) -> bool {
        self.hard.is_none_or(|hard| self.load < hard)
    }

    fn tier(&self) -> u8 {
        // Dead ones last, before them suspect ones, those that are avoided (LB-7), those known by old
        // facts (LB-8).
        let old = self.age > Duration::from_secs(5);
        u8::from(!self.alive) * 8 + u8::from(self.suspect) * 4 + u8::from(self.out) * 2 + u8::from(old)
    }

    /// Load in parts of the soft limit, compared without fractions.
    fn lighter_than(&self, other: &Self) -> bool {
        u64::from(self.load) * u64::from(other.soft.max(1))
            < u64::from(other.load) * u64::from(self.soft.max(1))
    }
}

/// Why `pick` may not be chosen over `other`, by LB-1 and LB-3 and the rule that suspect nodes and
/// dead ones come last; `None` when it may.
fn beaten(pick: &Known, other: &Known, all: &[&Known]) -> Option<&'static str> {
    if other.tier() < pick.tier() {
        return Some("its node answers, the pick's may not");
    }
    if other.tier() > pick.tier() {
        return None;
    }
    if other.room() != pick.room() {
        return other.room().then_some("it has room below its hard limit, the pick has none");
    }
    if !pick.room() {
        return other.lighter_than(pick).then_some("all seem full, and it is less loaded");
    }
    if other.region != pick.region {
        let nearest = |region: RegionCode| {
            let inside = all.iter().filter(|c| c.region == region && c.room() && c.tier() == pick.tier());
            inside.map(|c| c.rtt).min()
        };
        return (nearest(other.region) < nearest(pick.region)).then_some("its region is nearer and has room");
    }
    if other.silent != pick.silent {
        return (!other.silent).then_some("it owes no answers, the pick does");
    }
    let below = |known: &Known| known.load < known.soft;
    if below(other) != below(pick) {
        return below(other).then_some("it is below its soft limit, the pick is not");
    }
    // Nearness inside a region counts in steps of 5 ms from its nearest.
    let pool = all.iter().filter(|c| {
        c.region == pick.region
            && c.room()
            && c.tier() == pick.tier()
            && c.silent == pick.silent
            && below(c) == below(pick)
    });
    let shortest = pool.map(|c| c.rtt).min().unwrap_or_default();
    let near = |known: &Known| known.rtt.saturating_sub(shortest) <= Duration::from_millis(5);
    match (near(pick), near(other)) {
        (false, true) => Some("it is nearer inside the region"),
        (true, true) => other.lighter_than(pick).then_some("it is as near and less loaded"),
        _ => None,
    }
}

/// What a decision asked for and chose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// The request.
    pub request: u64,
    /// Exactly this Machine was asked for.
    pub machine: Option<MachineId>,
    /// One of these regions was asked for: codes or aliases in order of preference; empty is any.
    pub regions: Vec<String>,
    /// Every Machine of the app that the edge knew.
    pub known: Vec<Known>,
    /// What was chosen.
    pub pick: Option<MachineId>,
    /// Full Machines that it met since it waited last, or came.
    pub full: u32,
    /// Whether it goes there, instead of waiting.
    pub goes: bool,
}

/// Requests at one edge that want the same try, and are served, in the order in which they came, except
/// while an earlier one tries itself (SPEC LB-4).
///
/// # Errors
/// [`Violation`].
pub fn in_their_order(edge: NodeNumber, request: u64, ahead: Option<u64>) -> Verdict {
    hold(ahead.is_none(), "first come, first served at one edge", || {
        format!("request {request} at {edge} was let try before {ahead:?}, which waits for the same")
    })
}

/// A free slot that is kept for an edge is taken by no other (SPEC LB-4).
///
/// # Errors
/// [`Violation`].
pub fn kept_for_whom_it_was_offered(machine: MachineId, edge: NodeNumber, taken: Taken) -> Verdict {
    let Taken { free, others, .. } = taken;
    hold(free.is_none_or(|free| free > others), "a free slot goes to the edge whose turn it is", || {
        format!("{edge} took one of {free:?} free slots of {machine}, of which {others} were kept for others")
    })
}

/// A Machine is full for an edge only if no slot is free that is not kept for others.
///
/// # Errors
/// [`Violation`].
pub fn full_for_it(machine: MachineId, edge: NodeNumber, (free, kept): (u32, u32)) -> Verdict {
    hold(free <= kept, "a worker refuses nothing that it has room for", || {
        format!("{machine} refused {edge} with {free} slots free, {kept} kept for others")
    })
}

/// While an edge waits and asks, every other is served a bounded number of times (SPEC LB-4).
///
/// # Errors
/// [`Violation`].
pub fn nobody_starves(machine: MachineId, taken: Taken, most: u32) -> Verdict {
    let (served, edge) = taken.starved.unwrap_or((0, NodeNumber(0)));
    hold(served <= most, "no edge that waits is starved", || {
        format!("{served} others were served at {machine} while {edge} waited, of {} edges", taken.edges)
    })
}

/// Retries are at most a fifth of an app's requests at an edge, or ten (SPEC LB-9).
///
/// # Errors
/// [`Violation`].
pub fn retried_within_budget(edge: NodeNumber, app: AppId, (retries, most): (u32, u32)) -> Verdict {
    hold(retries <= most, "retries stay within their budget", || {
        format!("{edge} made {retries} retries for {app} where {most} are allowed")
    })
}

/// One node decides for an app in a region (SPEC AUTO-1).
///
/// # Errors
/// [`Violation`].
pub fn one_decides(app: AppId, region: RegionCode, node: NodeNumber, other: Option<NodeNumber>) -> Verdict {
    hold(other.is_none(), "one node decides for an app in a region", || {
        format!("{node} and {other:?} decide for {app} in {region}")
    })
}

/// Autostop leaves `min_machines_running` up (SPEC AUTO-1).
///
/// # Errors
/// [`Violation`].
pub fn enough_stay_up(machine: MachineId, left: u32, least: u32) -> Verdict {
    hold(left >= least, "min_machines_running stay up", || {
        format!("{machine} comes to rest, {left} are left of at least {least}")
    })
}

/// What has something in flight does not come to rest (SPEC AUTO-1).
///
/// # Errors
/// [`Violation`].
pub fn only_idle_ones_rest(machine: MachineId, in_flight: u32) -> Verdict {
    hold(in_flight == 0, "only idle Machines come to rest", || {
        format!("{machine} comes to rest with {in_flight} in flight")
    })
}

/// Nothing is started that the load does not need (SPEC AUTO-2): room of what is up, and the load.
///
/// # Errors
/// [`Violation`].
pub fn started_for_a_load(machine: MachineId, needed: Option<(u32, u32)>) -> Verdict {
    let holds = needed.is_none_or(|(room, load)| room < load);
    hold(holds, "a start has a load that needs it", || {
        format!("{machine} is started with room, load {needed:?}")
    })
}

/// A request is passed on at most once per attempt (SPEC LB-8).
///
/// # Errors
/// [`Violation`].
pub fn relayed_once(request: u64, times: u32) -> Verdict {
    hold(times <= 1, "a request is passed on at most once", || format!("request {request}: {times} times"))
}

/// A request is passed on only while its edge's own link to the worker is in trouble (SPEC LB-8).
///
/// # Errors
/// [`Violation`].
pub fn relayed_around_trouble(edge: NodeNumber, to: NodeNumber, troubled: bool) -> Verdict {
    hold(troubled, "a request takes no detour while its link is whole", || {
        format!("{edge} went around its link to {to}, which was whole")
    })
}

/// Whoever is first in line gets what is free (SPEC LB-4).
///
/// # Errors
/// [`Violation`].
pub fn served_when_free(edge: NodeNumber, request: u64, left: Result<(), String>) -> Verdict {
    left.map_err(|why| Violation {
        invariant: "no slot stays free while somebody waits for it",
        seen: format!("request {request} at {edge}: {why}"),
    })
}

/// A decision is one that LB-1 and LB-3 allow, given what its edge knew.
///
/// # Errors
/// [`Violation`].
pub fn decided_well(decided: &Decided, regions: &Regions) -> Verdict {
    const NAME: &str = "a decision follows LB-1 and LB-3";
    let able = |known: &&Known| {
        known.routable && !known.excluded && decided.machine.is_none_or(|machine| machine == known.machine)
    };
    let mut able: Vec<&Known> = decided.known.iter().filter(able).collect();
    if !decided.regions.is_empty() {
        let within = |name: &String| -> Vec<&Known> {
            able.iter().filter(|known| regions.matches(name, known.region) == Some(true)).copied().collect()
        };
        able = decided.regions.iter().map(within).find(|inside| !inside.is_empty()).unwrap_or_default();
    }
    let Some(machine) = decided.pick else {
        return hold(able.is_empty(), NAME, || {
            format!("request {}: nothing was picked of {able:?}", decided.request)
        });
    };
    let Some(pick) = able.iter().find(|known| known.machine == machine) else {
        return hold(false, NAME, || format!("request {}: {machine} could not take it", decided.request));
    };
    hold(
        !decided.goes || decided.full < MAX_FULL || pick.room(),
        "stale views cost at most two hops",
        || format!("request {} goes to {pick:?} after {} full ones", decided.request, decided.full),
    )?;
    for other in able.iter().filter(|other| other.machine != machine) {
        if let Some(why) = beaten(pick, other, &able) {
            return hold(false, NAME, || {
                format!("request {}: {pick:?} was picked instead of {other:?}: {why}", decided.request)
            });
        }
    }
    Ok(())
}

/// A request, or an attempt of one, failed for a cause that was there.
///
/// # Errors
/// [`Violation`] when the reference model knows no cause.
pub fn failed_for_a_reason(request: u64, with: &str, confirmed: Result<&str, String>) -> Verdict {
    confirmed.map(drop).map_err(|why| Violation {
        invariant: "a request fails only with a code whose cause is there",
        seen: format!("request {request} ended with {with}: {why}"),
    })
}

#[cfg(test)]
mod tests;
