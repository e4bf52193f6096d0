//! The reference model: it is told everything at once, and knows for every failure whether its cause
//! was there.
//!
//! An attempt fails for what was true of that very Machine, its node or the links to it while it ran
//! ([`Reference::attempt_failed`]). A request fails for its attempts, and because whatever else could
//! have taken it could not by what its edge knew ([`Reference::confirm`]): an edge decides by the
//! snapshot of the moment at which the request came, which lags [`LAG`] behind while it and the
//! Machine's node hear each other, and as long as they do not.

mod auto;
mod budget;
mod history;
mod line;
mod request;
mod turns;

use std::collections::BTreeMap;

use skein_core::queue::Bounds;
use skein_core::{AppId, MachineId, NodeNumber, RegionCode};

use crate::agenda::{MS, Micros, SECOND};
use history::History;
use line::Waiter;
pub use request::{Cause, Failed};
pub use turns::Taken;

/// How far knowledge may lag while nothing is broken: the longest way, a relay and a fold (SPEC
/// CLU-4 allows 0.5 s at 25 nodes), and a registry's entry.
pub const LAG: Micros = SECOND;
/// How long after two nodes hear each other again one may still not know the other's facts.
const FACTS: Micros = 4 * SECOND;
/// And its configurations: one that was asked in vain is asked again after 5 s at most.
const CONFIGS: Micros = 9 * SECOND;
/// A peer is suspect after 750 ms, the longest round trip and a probe.
const SILENCE: Micros = 1_500 * MS;
/// After so long without trouble whoever lives has been heard of by all.
const CALM: Micros = 10 * SECOND;

/// What is true of a Machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status {
    /// It exists.
    pub exists: bool,
    /// Its process runs.
    pub started: bool,
    /// Its checks pass.
    pub healthy: bool,
    /// It gets nothing new.
    pub cordoned: bool,
}

/// What is true of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its process is there.
    pub runs: bool,
    /// It runs and is not paused.
    pub answers: bool,
    /// It takes nothing new.
    pub draining: bool,
}

#[derive(Debug)]
struct Story {
    app: AppId,
    node: NodeNumber,
    region: RegionCode,
    hard: Option<u32>,
    soft: u32,
    /// Whether traffic may start it.
    starts: bool,
    status: History<Status>,
    full: History<bool>,
    in_flight: u32,
}

/// All that is true, and was.
#[derive(Debug, Default)]
pub struct Reference {
    machines: BTreeMap<MachineId, Story>,
    nodes: BTreeMap<NodeNumber, History<NodeStatus>>,
    /// By sender and receiver: whether packets are lost or late there.
    links: BTreeMap<(NodeNumber, NodeNumber), History<bool>>,
    apps: BTreeMap<AppId, Micros>,
    /// Whether anything is.
    broken: History<bool>,
    executed: BTreeMap<(u64, u32), u32>,
    bounds: Bounds,
    /// When somebody last changed something by hand.
    meddled: Micros,
    /// How many requests for an app edges held, lately.
    held: BTreeMap<Option<AppId>, Vec<(Micros, u32)>>,
    /// Machines that were started for traffic, lately.
    started: Vec<(MachineId, Micros)>,
    /// How often an attempt was passed on.
    passed: BTreeMap<(u64, u32), u32>,
    /// Who waits at edges, in the order in which they came.
    lines: Vec<Waiter>,
    turns: BTreeMap<MachineId, turns::Turns>,
    budgets: BTreeMap<(NodeNumber, AppId), budget::Spent>,
}

impl Reference {
    /// Nothing is so far; so many requests may wait at an edge.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// A node is so from now on.
    pub fn node(&mut self, now: Micros, node: NodeNumber, status: NodeStatus) {
        self.nodes.entry(node).or_default().set(now, status);
    }

    /// A link loses or delays packets from now on, or does not.
    pub fn link(&mut self, now: Micros, from: NodeNumber, to: NodeNumber, faulty: bool) {
        self.links.entry((from, to)).or_default().set(now, faulty);
    }

    /// A Machine is made.
    pub fn deploy(
        &mut self,
        machine: MachineId,
        app: AppId,
        node: NodeNumber,
        region: RegionCode,
        hard: Option<u32>,
    ) {
        let (status, full) = (History::default(), History::default());
        self.machines.insert(
            machine,
            Story { app, node, region, hard, soft: 1, starts: false, status, full, in_flight: 0 },
        );
    }

    /// Its soft limit, and whether traffic may start it.
    pub fn limits(&mut self, machine: MachineId, soft: u32, starts: bool) {
        if let Some(story) = self.machines.get_mut(&machine) {
            (story.soft, story.starts) = (soft, starts);
        }
    }

    /// A Machine is so from now on.
    pub fn machine(&mut self, now: Micros, machine: MachineId, status: Status) {
        if let Some(story) = self.machines.get_mut(&machine) {
            story.status.set(now, status);
        }
    }

    /// An app exists.
    pub fn app(&mut self, now: Micros, app: AppId) {
        self.apps.entry(app).or_insert(now);
    }

    /// Whether anything is broken from now on.
    pub fn broken(&mut self, now: Micros, broken: bool) {
        self.broken.set(now, broken);
    }

    /// The app of a Machine, and its hard limit.
    pub fn of(&self, machine: MachineId) -> Option<(AppId, Option<u32>)> {
        self.machines.get(&machine).map(|story| (story.app, story.hard))
    }

    /// A Machine begins to serve a request: how many it serves now.
    pub fn begins(&mut self, now: Micros, machine: MachineId) -> u32 {
        let Some(story) = self.machines.get_mut(&machine) else { return 0 };
        story.in_flight += 1;
        if story.hard.is_some_and(|hard| story.in_flight >= hard) {
            story.full.set(now, true);
        }
        story.in_flight
    }

    /// A Machine has served one.
    pub fn ends(&mut self, now: Micros, machine: MachineId) {
        if let Some(story) = self.machines.get_mut(&machine) {
            story.in_flight = story.in_flight.saturating_sub(1);
            if story.full.now() == Some(true) && story.hard.is_some_and(|hard| story.in_flight < hard) {
                story.full.set(now, false);
            }
            let free = story.hard.unwrap_or(u32::MAX).saturating_sub(story.in_flight + 1);
            self.counted(now, machine, free);
        }
    }

    /// An app sees a request: how often it did in that hop.
    pub fn executes(&mut self, request: u64, hop: u32) -> u32 {
        let times = self.executed.entry((request, hop)).or_default();
        *times += 1;
        *times
    }

    /// A request is passed on: how often that attempt was.
    pub fn passes_on(&mut self, attempt: (u64, u32)) -> u32 {
        let times = self.passed.entry(attempt).or_default();
        *times += 1;
        *times
    }

    /// Whether two nodes may not have heard each other lately.
    pub fn parted(&self, a: NodeNumber, b: NodeNumber, now: Micros) -> bool {
        self.apart(a, b, now.saturating_sub(SILENCE), now)
    }

    /// Whether nothing has been broken for so long that all must know of all.
    pub fn calm(&self, now: Micros) -> bool {
        now > CALM && !self.broken.ever(now - CALM, now, |broken| broken)
    }

    fn node_was(&self, node: NodeNumber, from: Micros, to: Micros, so: impl Fn(NodeStatus) -> bool) -> bool {
        self.nodes.get(&node).is_some_and(|history| history.ever(from, to, so))
    }

    /// Whether two nodes were kept from hearing each other at some moment: one did not answer, or a
    /// link between them was faulty.
    fn apart(&self, a: NodeNumber, b: NodeNumber, from: Micros, to: Micros) -> bool {
        let away = |node| self.node_was(node, from, to, |status| !status.answers);
        let faulty = |link| self.links.get(&link).is_some_and(|history| history.ever(from, to, |f| f));
        away(a) || away(b) || (a != b && (faulty((a, b)) || faulty((b, a))))
    }

    /// From when on what `viewer` knows of `of` at `at` may be, if it knows all `settle` after they hear
    /// each other again.
    fn known_since(&self, viewer: NodeNumber, of: NodeNumber, at: Micros, settle: Micros) -> Micros {
        let nodes = [viewer, of].into_iter().filter_map(|node| self.nodes.get(&node));
        let away = nodes.flat_map(|history| history.spans(|status| !status.answers));
        let links = [(viewer, of), (of, viewer)].into_iter().filter(|_| viewer != of);
        let faulty = links.filter_map(|link| self.links.get(&link)).flat_map(|h| h.spans(|faulty| faulty));
        since(away.chain(faulty).collect(), at, settle)
    }

    /// From when on the registry's facts may be that some node knows at `at`.
    fn registry_since(&self, at: Micros) -> Micros {
        since(self.broken.spans(|broken| broken).collect(), at, FACTS)
    }
}

/// The begin of what was known at `at`, when these spans of trouble kept news away until `settle`
/// after their ends.
fn since(mut spans: Vec<(Micros, Micros)>, at: Micros, settle: Micros) -> Micros {
    spans.sort_unstable_by_key(|(_, end)| std::cmp::Reverse(*end));
    let mut from = at.saturating_sub(LAG);
    let mut settled = at;
    for (start, end) in spans {
        if start <= at && end.saturating_add(settle) >= settled {
            settled = settled.min(start);
            from = from.min(start.saturating_sub(LAG));
        }
    }
    from
}

#[cfg(test)]
mod tests;
