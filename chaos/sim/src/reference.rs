//! The reference model: it is told everything at once, and knows for every failure whether its cause
//! was there.
//!
//! An edge acts on what it knew, which lags behind: a cause counts when it was there at some moment
//! from [`LAG`] before the request until its end. While something is broken, knowledge may be older:
//! then the window begins before the trouble did.

use std::collections::BTreeMap;

use skein_core::code::ErrorCode;
use skein_core::region::Regions;
use skein_core::retry::{MAX_ATTEMPTS, MAX_REFUSALS};
use skein_core::{AppId, MachineId, NodeNumber, RegionCode};

use crate::agenda::{Micros, SECOND};
use crate::request::{Asked, Desk};

/// How far knowledge may lag while nothing is broken: the longest way, a relay and a fold (SPEC
/// CLU-4 allows 0.5 s at 25 nodes), and a registry's entry.
pub const LAG: Micros = SECOND;
/// How long after healing knowledge may still be old.
const SETTLE: Micros = 4 * SECOND;
/// A peer's silence shows after so long at the latest.
const SILENCE: Micros = 6 * SECOND;

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
    /// It runs and is not paused.
    pub answers: bool,
    /// It takes nothing new.
    pub draining: bool,
}

/// What was true when.
#[derive(Debug, Clone)]
struct History<T>(Vec<(Micros, T)>);

impl<T> Default for History<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Copy> History<T> {
    fn set(&mut self, at: Micros, value: T) {
        self.0.push((at, value));
    }

    fn now(&self) -> Option<T> {
        self.0.last().map(|(_, value)| *value)
    }

    /// Whether it ever was so between both moments, both included.
    fn ever(&self, from: Micros, to: Micros, wanted: impl Fn(T) -> bool) -> bool {
        let next = |index: usize| self.0.get(index + 1).map_or(Micros::MAX, |(at, _)| *at);
        self.0.iter().enumerate().any(|(i, (at, value))| *at <= to && next(i) >= from && wanted(*value))
    }

    fn began_after(&self, from: Micros) -> bool {
        self.0.first().is_none_or(|(at, _)| *at > from)
    }
}

#[derive(Debug)]
struct Story {
    app: AppId,
    node: NodeNumber,
    region: RegionCode,
    hard: Option<u32>,
    status: History<Status>,
    full: History<bool>,
    in_flight: u32,
}

/// All that is true, and was.
#[derive(Debug, Default)]
pub struct Reference {
    machines: BTreeMap<MachineId, Story>,
    nodes: BTreeMap<NodeNumber, History<NodeStatus>>,
    apps: BTreeMap<AppId, Micros>,
    broken: Vec<(Micros, Option<Micros>)>,
    executed: BTreeMap<(u64, u32), u32>,
}

impl Reference {
    /// A node is so from now on.
    pub fn node(&mut self, now: Micros, node: NodeNumber, status: NodeStatus) {
        self.nodes.entry(node).or_default().set(now, status);
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
        self.machines.insert(machine, Story { app, node, region, hard, status, full, in_flight: 0 });
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
        match (self.broken.last_mut(), broken) {
            (Some((_, None)), true) => {}
            (Some((_, end @ None)), false) => *end = Some(now),
            (_, true) => self.broken.push((now, None)),
            (_, false) => {}
        }
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
        }
    }

    /// An app sees a request: how often it did in that hop.
    pub fn executes(&mut self, request: u64, hop: u32) -> u32 {
        let times = self.executed.entry((request, hop)).or_default();
        *times += 1;
        *times
    }

    /// From when on what is known at `at` may be.
    fn known_since(&self, at: Micros) -> Micros {
        let mut from = at.saturating_sub(LAG);
        for (start, end) in self.broken.iter().rev() {
            if end.is_none_or(|end| end + SETTLE >= from) && *start <= at {
                from = from.min(start.saturating_sub(LAG));
            }
        }
        from
    }

    /// Whether nothing has been broken for so long that all must know of all.
    pub fn calm(&self, now: Micros) -> bool {
        now > CALM && !self.was_broken(now - CALM, now)
    }

    fn was_broken(&self, from: Micros, to: Micros) -> bool {
        self.broken.iter().any(|(start, end)| *start <= to && end.is_none_or(|end| end >= from))
    }

    /// The cause of a failure between `start` and `now`; what is missing when there is none.
    ///
    /// # Errors
    /// What would have to be so, and is not.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a code that nothing here leads to is wrong, new ones too"
    )]
    pub fn confirm(
        &self,
        code: Option<ErrorCode>,
        asked: &Asked,
        desk: &Desk,
        regions: &Regions,
        start: Micros,
        now: Micros,
    ) -> Result<&'static str, String> {
        let from = self.known_since(start);
        let app = desk.app.unwrap_or(asked.app);
        let missing = |app: &AppId| self.apps.get(app).is_none_or(|made| *made > from);
        let Some(code) = code else {
            let cause = missing(&asked.app).then_some("the app was not there yet");
            return cause.ok_or_else(|| "the app existed all the while".to_owned());
        };
        let meant = |(id, story): &(&MachineId, &Story)| {
            let constraint = &desk.constraint;
            let inside = |name: &String| regions.matches(name, story.region) == Some(true);
            story.app == app
                && constraint.machine.is_none_or(|machine| machine == **id)
                && (constraint.regions.is_empty() || constraint.regions.iter().any(inside))
        };
        let meant: Vec<_> = self.machines.iter().filter(meant).collect();
        let unroutable = |story: &Story| {
            let node = self.nodes.get(&story.node);
            let routable = |s: Status| s.exists && s.started && s.healthy && !s.cordoned;
            story.status.began_after(from)
                || story.status.ever(from, now, |status| !routable(status))
                || node.is_none_or(|node| node.ever(from, now, |node| !node.answers || node.draining))
        };
        let full = |story: &Story| story.full.ever(start, now, |full| full);
        // One that said "elsewhere" is left out though it could.
        let left_out = |id: &MachineId| desk.answered.contains(id) && desk.constraint.exclude.contains(id);
        let able = |allow_full: bool| {
            let unable = |story: &Story| unroutable(story) || (allow_full && full(story));
            meant.iter().find(|(id, story)| !unable(story) && !left_out(id))
        };
        let broken = self.was_broken(start.saturating_sub(SILENCE), now);
        match code {
            ErrorCode::PR01 => match able(false) {
                Some((id, _)) if !broken => Err(format!("{id} could take it all the while")),
                Some(_) | None => Ok("no Machine could take it"),
            },
            ErrorCode::PR04 if !meant.iter().any(|(_, story)| full(story)) => {
                Err("no Machine was full".to_owned())
            }
            ErrorCode::PR04 => match able(true) {
                Some((id, _)) if !broken => Err(format!("{id} had room all the while")),
                Some(_) | None => Ok("Machines were full"),
            },
            ErrorCode::PR02 => {
                let named = asked.instruction.as_deref().and_then(|text| text.strip_prefix("instance="));
                let named = named.and_then(|id| id.parse::<MachineId>().ok());
                let gone = |id: &MachineId| {
                    self.machines.get(id).is_none_or(|story| {
                        story.app != app
                            || story.status.began_after(from)
                            || story.status.ever(from, now, |status| !status.exists)
                    })
                };
                let cause = named.is_none_or(|id| gone(&id)) || meant.iter().any(|(id, _)| gone(id));
                if cause {
                    Ok("the Machine was not there")
                } else {
                    Err("it existed all the while".to_owned())
                }
            }
            ErrorCode::PR03 if desk.refusals >= MAX_REFUSALS || desk.attempts >= MAX_ATTEMPTS => {
                Ok("it was tried as often as it may be")
            }
            ErrorCode::PM02 if broken => Ok("a node or a link was in trouble"),
            ErrorCode::PM02 => Err("all nodes answered and all links were whole".to_owned()),
            ErrorCode::PU02 => {
                let ended = |story: &&Story| {
                    let node = self.nodes.get(&story.node);
                    story.status.ever(start, now, |status| !status.started)
                        || node.is_none_or(|node| node.ever(start, now, |node| !node.answers))
                };
                let any = self.machines.values().filter(|story| story.app == app).any(|story| ended(&story));
                if any { Ok("a Machine ended") } else { Err("no Machine of the app ended".to_owned()) }
            }
            ErrorCode::PA05 if asked.instruction.as_deref().is_some_and(|text| text.starts_with("app=")) => {
                let target = desk.target;
                let gone = target.is_none_or(|target| missing(&target));
                if gone { Ok("the other app was not there") } else { Err("the other app existed".to_owned()) }
            }
            other => Err(format!("nothing here leads to {other}")),
        }
    }
}
