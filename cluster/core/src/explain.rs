//! What an edge decided for a request, and why, for `skein explain` (SPEC OBS-5).
//!
//! What: [`Steps`] are written down while the request is on its way, as numbers and ids; at its end
//! they and what became of it make a [`Story`], of which the newest are [`Kept`]. Words are made only
//! when somebody asks ([`lines`]). What not: no header values and no query; a host's name only where
//! no app answers to it.
//!
//! Each request pays for this, so a decision costs one allocation and a few comparisons per Machine.
//! All is bounded: a story takes at most [`MAX_BYTES`], however often its request was tried.

mod kept;
mod tell;

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use http::Method;
use serde::{Deserialize, Serialize};

use crate::balance::{self, Candidate, Constraint, EQUAL_RTT, PassedOver, Pick, PickReason};
use crate::code::ErrorCode;
use crate::id::{AppName, InvalidId, MachineId, NodeName, NodeNumber, OrgId, RequestId, TraceId};
use crate::region::{RegionCode, Regions};
use crate::replay::Replay;
use crate::retry::Failure;
use crate::route::Stop;
use crate::snapshot::MachineView;

pub use kept::Kept;
pub use tell::lines;

/// Machines that one decision lists; the rest is counted.
pub const MAX_LISTED: usize = 64;
/// Machines that all decisions of a story list together; beyond it each lists the one it chose.
pub const MAX_LISTED_IN_ALL: usize = 128;
/// Steps of a story; later ones are counted.
pub const MAX_STEPS: usize = 128;
/// Bytes of a path that are kept.
pub const MAX_PATH: usize = 256;
/// Bytes of any other text that is kept.
pub const MAX_WORDS: usize = 256;
/// The most memory that a story takes, in bytes.
pub const MAX_BYTES: usize = 48 << 10;
/// The most bytes of a story as JSON.
pub const MAX_JSON: usize = 128 << 10;

/// What an edge decided for one request, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Story {
    /// The request's id.
    pub request_id: RequestId,
    /// Its trace's id; `None` when it was not traced.
    pub trace_id: Option<TraceId>,
    /// When its head came: milliseconds since 1970 on the edge's clock.
    pub begun_ms: u64,
    /// The edge; known once it is told.
    pub edge: Option<NodeName>,
    /// The app that the client named; `None` when it named none.
    pub app: Option<AppName>,
    /// That app's organization.
    pub org_id: Option<OrgId>,
    /// The method.
    pub method: Cow<'static, str>,
    /// The path, without the query; at most [`MAX_PATH`] bytes.
    pub path: Box<str>,
    /// What was decided and tried, in order.
    pub steps: Vec<Step>,
    /// Steps that were not kept.
    pub steps_left_out: u32,
    /// What became of it.
    pub ended: Ended,
}

/// The end of a request at its edge.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ended {
    /// The response's status; `None` when the client went before there was one.
    pub status: Option<u16>,
    /// The code, when the proxy answered an error itself.
    pub code: Option<Cow<'static, str>>,
    /// What that error says; at most [`MAX_WORDS`] bytes.
    pub why: Option<Box<str>>,
    /// The Machine that was asked last.
    pub machine: Option<MachineId>,
    /// From head to end, in microseconds.
    pub took_us: u64,
    /// Bytes of the body that were sent to the client.
    pub sent: u64,
    /// Whether the response was sent to its end.
    pub complete: bool,
}

/// Something that was decided or came about. Another kind is a variant here, who writes it down
/// ([`Pen`]) and its words (`tell.rs`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// The Machines of the app were judged, and one picked.
    Decided(Decided),
    /// A Machine did not answer the request.
    Failed(Failed),
    /// Another node passed it on: the edge could not reach the Machine's.
    Relayed(Relayed),
    /// It waited until a Machine had room (SPEC LB-4).
    Queued(Queued),
    /// A Machine answered an instruction to replay, which was followed.
    Replayed(Replayed),
    /// A Machine answered an instruction that was not followed.
    NotReplayed(NotReplayed),
}

impl Step {
    /// How many Machines it lists.
    fn listed(&self) -> usize {
        match self {
            Self::Decided(decided) => decided.machines.len(),
            Self::Failed(_)
            | Self::Queued(_)
            | Self::Relayed(_)
            | Self::Replayed(_)
            | Self::NotReplayed(_) => 0,
        }
    }
}

/// A decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// When, in microseconds since the request's head.
    pub at_us: u32,
    /// How many Machines could have taken it.
    pub candidates: u32,
    /// Why the one was chosen; `None` when none was.
    pub reason: Option<PickReason>,
    /// The code to answer with when none was.
    pub code: Option<ErrorCode>,
    /// The one chosen first, then those that could have been, then those that were passed over.
    pub machines: Vec<Judged>,
    /// Machines that are not listed.
    pub more: u32,
}

/// A Machine in a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    /// The Machine.
    pub machine: MachineId,
    /// The node it is on.
    pub node: NodeNumber,
    /// That node's region.
    pub region: RegionCode,
    /// What the decision was for it.
    pub verdict: Verdict,
    /// What it rests on; `None` for one that was passed over.
    pub facts: Option<Facts>,
}

/// What became of a Machine in a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It got the request.
    Chosen,
    /// It could have taken it, and the one chosen is better.
    Worse(Worse),
    /// It could not take it.
    PassedOver(PassedOver),
}

/// Why a Machine that could have taken the request was not chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Worse {
    /// It is outside the region that the request asks for or prefers.
    Elsewhere,
    /// Its node is counted as dead.
    Dead,
    /// Its node is suspect.
    Suspect,
    /// The edge avoids it: it takes no connection, or answers nobody.
    Out,
    /// What is known of it is old.
    Old,
    /// It seems to be at its hard limit.
    Full,
    /// It is further away.
    Further,
    /// It is at or above its soft limit.
    AboveSoft,
    /// It is more loaded for its size.
    MoreLoaded,
    /// It is as good: lots were drawn.
    Tie,
}

impl Worse {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Elsewhere => "outside the region asked for",
            Self::Dead => "its node is dead",
            Self::Suspect => "its node is silent",
            Self::Out => "it takes no connection or answers nobody",
            Self::Old => "what is known of it is old",
            Self::Full => "at its hard limit",
            Self::Further => "further away",
            Self::AboveSoft => "at its soft limit",
            Self::MoreLoaded => "more loaded",
            Self::Tie => "as good: drawn by lot",
        }
    }
}

/// What the edge believed of a Machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Round trip to its node, in microseconds.
    pub rtt_us: u32,
    /// In flight.
    pub load: u32,
    /// Its soft limit.
    pub soft: u32,
    /// Its hard limit; `None` is no limit.
    pub hard: Option<u32>,
    /// Milliseconds since its node last confirmed this; `u32::MAX` is never.
    pub age_ms: u32,
}

/// A failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// When, in microseconds since the request's head.
    pub at_us: u32,
    /// How long it took, in microseconds.
    pub took_us: u32,
    /// Who was asked.
    pub machine: MachineId,
    /// Its region.
    pub region: RegionCode,
    /// How it failed.
    pub failure: Failure,
    /// The code of that.
    pub code: ErrorCode,
    /// What was in flight at the Machine, if it said.
    pub load: Option<u32>,
    /// It only closed an old connection: nothing speaks against the Machine.
    pub stale: bool,
}

/// A way around a link that is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relayed {
    /// When it was begun, in microseconds since the request's head.
    pub at_us: u32,
    /// The Machine that it goes to.
    pub machine: MachineId,
    /// The node in between.
    pub via: NodeNumber,
}

/// A wait for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queued {
    /// When it ended, in microseconds since the request's head.
    pub at_us: u32,
    /// How long it took, in microseconds.
    pub took_us: u32,
    /// How often it was the request's turn. What was tried at each but the last found no room, and is not
    /// told.
    pub turns: u32,
    /// Whether it ended with a turn; else it had waited for as long as it may.
    pub turn: bool,
}

/// A replay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replayed {
    /// When, in microseconds since the request's head.
    pub at_us: u32,
    /// Who answered the instruction.
    pub machine: MachineId,
    /// Its region.
    pub region: RegionCode,
    /// How many replays there were with this one.
    pub hop: u32,
    /// The instruction, without its state; at most [`MAX_WORDS`] bytes.
    pub to: Box<str>,
}

/// An instruction that was not followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotReplayed {
    /// When, in microseconds since the request's head.
    pub at_us: u32,
    /// Who answered the instruction.
    pub machine: MachineId,
    /// Its region.
    pub region: RegionCode,
    /// The code that says why.
    pub code: ErrorCode,
    /// More of it; at most [`MAX_WORDS`] bytes.
    pub why: Option<Box<str>>,
}

/// What was written down of a request so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Steps {
    steps: Vec<Step>,
    /// Machines in all decisions.
    listed: usize,
    left_out: u32,
}

/// Writes steps down that come about at one time.
#[derive(Debug)]
pub struct Pen<'a> {
    steps: &'a mut Steps,
    at_us: u32,
}

impl Steps {
    /// To write down what comes about so long after the request's head.
    pub fn at(&mut self, since_head: Duration) -> Pen<'_> {
        Pen { steps: self, at_us: micros(since_head) }
    }

    /// What a story takes of them: the steps, and how many were left out.
    pub fn end(self) -> (Vec<Step>, u32) {
        (self.steps, self.left_out)
    }

    /// The reasons of the last decision with how many Machines each kept from being chosen, for traces.
    /// At most some hundred bytes.
    pub fn passed_over(&self) -> String {
        let Some(Step::Decided(decided)) = self.steps.last() else { return String::new() };
        let mut reasons: Vec<(&'static str, u32)> = Vec::new();
        for judged in &decided.machines {
            let reason = match judged.verdict {
                Verdict::Chosen => continue,
                Verdict::Worse(worse) => worse.as_str(),
                Verdict::PassedOver(why) => why.as_str(),
            };
            match reasons.iter_mut().find(|(known, _)| *known == reason) {
                Some((_, count)) => *count += 1,
                None => reasons.push((reason, 1)),
            }
        }
        let more = (decided.more > 0).then(|| format!("{} not listed", decided.more));
        let reasons = reasons.into_iter().map(|(reason, count)| format!("{count} {reason}"));
        reasons.chain(more).collect::<Vec<_>>().join(", ")
    }

    fn push(&mut self, step: Step) {
        if self.steps.len() >= MAX_STEPS {
            self.left_out = self.left_out.saturating_add(1);
            return;
        }
        if self.steps.is_empty() {
            // Most requests have one step.
            self.steps.reserve_exact(1);
        }
        self.steps.push(step);
    }
}

impl Pen<'_> {
    /// A decision, by the verdicts of all Machines of the app.
    pub fn decided(
        self,
        verdicts: &[balance::Verdict<'_>],
        picked: Result<&Pick<'_>, ErrorCode>,
        constraint: &Constraint,
        regions: &Regions,
    ) {
        let Self { steps, at_us } = self;
        if steps.steps.len() >= MAX_STEPS {
            steps.left_out = steps.left_out.saturating_add(1);
            return;
        }
        let room = MAX_LISTED.min(MAX_LISTED_IN_ALL.saturating_sub(steps.listed)).max(1).min(verdicts.len());
        let mut machines = Vec::with_capacity(room);
        let candidates = verdicts.iter().filter(|(_, verdict)| verdict.is_ok()).count();
        if let Ok(pick) = picked {
            let chosen = &pick.candidate;
            machines.push(judged(chosen.machine, Verdict::Chosen, Some(chosen)));
            let comparison = Comparison::new(pick, verdicts, constraint, regions);
            for candidate in verdicts.iter().filter_map(|(_, verdict)| verdict.as_ref().ok()) {
                if machines.len() < room && !std::ptr::eq(candidate.machine, chosen.machine) {
                    let worse = Verdict::Worse(comparison.worse(candidate));
                    machines.push(judged(candidate.machine, worse, Some(candidate)));
                }
            }
        }
        for (machine, verdict) in verdicts {
            if machines.len() == room {
                break;
            }
            match verdict {
                // Without a choice, what could take it is not where it is to go.
                Ok(candidate) if picked.is_err() => {
                    let elsewhere = Verdict::Worse(Worse::Elsewhere);
                    machines.push(judged(machine, elsewhere, Some(candidate)));
                }
                Ok(_) => {}
                Err(why) => machines.push(judged(machine, Verdict::PassedOver(*why), None)),
            }
        }
        steps.listed += machines.len();
        steps.push(Step::Decided(Decided {
            at_us,
            candidates: count(candidates),
            reason: picked.ok().map(|pick| pick.reason),
            code: picked.err(),
            more: count(verdicts.len() - machines.len()),
            machines,
        }));
    }

    /// An attempt at a Machine that failed after so long.
    pub fn failed(
        self,
        machine: &MachineView,
        failure: Failure,
        load: Option<u32>,
        stale: bool,
        took: Duration,
    ) {
        let Self { steps, at_us } = self;
        steps.push(Step::Failed(Failed {
            at_us,
            took_us: micros(took),
            machine: machine.record.id,
            region: machine.region,
            failure,
            code: failure.code(),
            load,
            stale,
        }));
    }

    /// A wait for room that ended after so long, with the request's turn or without. It goes on with the
    /// wait before, if there was room for nobody at that one's turn.
    pub fn queued(self, took: Duration, turn: bool) {
        let Self { steps, at_us } = self;
        let (took_us, turns) = (micros(took), u32::from(turn));
        let last = steps.steps.iter().rposition(|step| matches!(step, Step::Queued(_) | Step::Replayed(_)));
        if let Some(last) = last
            && let Some(Step::Queued(before)) = steps.steps.get_mut(last)
        {
            let (took_us, turns) = (before.took_us.saturating_add(took_us), before.turns + turns);
            *before = Queued { at_us, took_us, turns, turn };
            let in_vain = steps.steps.drain(last + 1..);
            steps.listed -= in_vain.map(|step| step.listed()).sum::<usize>();
            return;
        }
        steps.push(Step::Queued(Queued { at_us, took_us, turns, turn }));
    }

    /// An instruction of a Machine, which is followed as replay number `hop` or not followed.
    pub fn told_to_replay(self, machine: &MachineView, hop: u32, followed: Result<&Replay, &Stop>) {
        let Self { steps, at_us } = self;
        let (machine, region) = (machine.record.id, machine.region);
        steps.push(match followed {
            Ok(replay) => {
                let to = Replay { state: None, ..replay.clone() }.to_string();
                Step::Replayed(Replayed { at_us, machine, region, hop, to: bounded(&to, MAX_WORDS) })
            }
            Err(Stop { code, why }) => {
                let why = why.as_deref().map(|why| bounded(why, MAX_WORDS));
                Step::NotReplayed(NotReplayed { at_us, machine, region, code: *code, why })
            }
        });
    }

    /// An attempt that goes through another node.
    pub fn relayed(self, machine: MachineId, via: NodeNumber) {
        self.steps.push(Step::Relayed(Relayed { at_us: self.at_us, machine, via }));
    }
}

fn judged(machine: &MachineView, verdict: Verdict, candidate: Option<&Candidate<'_>>) -> Judged {
    let facts = candidate.map(|candidate| Facts {
        rtt_us: micros(candidate.rtt),
        load: candidate.load,
        soft: candidate.limits.soft,
        hard: candidate.limits.hard,
        age_ms: u32::try_from(candidate.age.as_millis()).unwrap_or(u32::MAX),
    });
    Judged { machine: machine.record.id, node: machine.node, region: machine.region, verdict, facts }
}

/// What the others of a decision are compared with.
struct Comparison<'a> {
    chosen: &'a Candidate<'a>,
    /// Of those that load is compared among, the nearest one's round trip.
    shortest: Duration,
    /// The region's name that the choice was kept to, by what the request asks for or prefers.
    within: Option<&'a str>,
    regions: &'a Regions,
}

impl<'a> Comparison<'a> {
    fn new(
        pick: &'a Pick<'_>,
        verdicts: &[balance::Verdict<'_>],
        constraint: &'a Constraint,
        regions: &'a Regions,
    ) -> Self {
        let chosen = &pick.candidate;
        let preferred = pick.reason == PickReason::PreferredRegion;
        let named = if preferred { &constraint.prefer } else { &constraint.regions };
        // The first name that has a candidate is the first that the chosen one matches.
        let within = named.iter().find(|name| regions.matches(name, chosen.machine.region) == Some(true));
        let mut comparison =
            Self { chosen, shortest: chosen.rtt, within: within.map(String::as_str), regions };
        let rivals = verdicts.iter().filter_map(|(_, verdict)| verdict.as_ref().ok());
        let shortest = rivals.filter(|rival| rival.rtt < chosen.rtt && comparison.is_rival(rival));
        comparison.shortest = shortest.map(|rival| rival.rtt).min().unwrap_or(chosen.rtt);
        comparison
    }

    /// Whether only its distance or its load speaks against it.
    fn is_rival(&self, other: &Candidate<'_>) -> bool {
        self.before_load(other).is_none()
    }

    /// What speaks against it before round trips and loads inside the region are compared: the order of
    /// [`balance::pick`].
    fn before_load(&self, other: &Candidate<'_>) -> Option<Worse> {
        let chosen = self.chosen;
        if self.within.is_some_and(|name| self.regions.matches(name, other.machine.region) != Some(true)) {
            return Some(Worse::Elsewhere);
        }
        let (theirs, best) = (balance::tier(other), balance::tier(chosen));
        if theirs != best {
            return Some(match () {
                () if theirs.0 != best.0 => Worse::Dead,
                () if theirs.1 != best.1 => Worse::Suspect,
                () if theirs.2 != best.2 => Worse::Out,
                () => Worse::Old,
            });
        }
        if balance::is_full(chosen) {
            // All are: only their load is compared.
            return None;
        }
        if balance::is_full(other) {
            return Some(Worse::Full);
        }
        if other.machine.region != chosen.machine.region {
            return Some(Worse::Further);
        }
        if other.silent && !chosen.silent {
            return Some(Worse::Out);
        }
        (chosen.load < chosen.limits.soft && other.load >= other.limits.soft).then_some(Worse::AboveSoft)
    }

    fn worse(&self, other: &Candidate<'_>) -> Worse {
        if let Some(worse) = self.before_load(other) {
            return worse;
        }
        if !balance::is_full(self.chosen) && other.rtt.saturating_sub(self.shortest) > EQUAL_RTT {
            return Worse::Further;
        }
        if balance::by_load(other, self.chosen).is_gt() { Worse::MoreLoaded } else { Worse::Tie }
    }
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The begin of a text, at most so many bytes.
pub fn bounded(text: &str, most: usize) -> Box<str> {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].into()
}

/// A method as a story has it: at most 32 bytes of one that is not known.
pub fn method(method: &Method) -> Cow<'static, str> {
    let known = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT"];
    match known.into_iter().find(|known| *known == method.as_str()) {
        Some(known) => Cow::Borrowed(known),
        None => Cow::Owned(bounded(method.as_str(), 32).into()),
    }
}

impl Story {
    /// Whether it is worth keeping longer than what simply went well: the proxy answered it an error of
    /// its own, or it took more than one decision.
    pub fn is_notable(&self) -> bool {
        let failed = self.ended.code.is_some() && self.ended.status.is_some_and(|status| status >= 500);
        failed || self.steps.len() > 1
    }
}

/// Whose story is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// That of a request (`Fly-Request-Id`).
    Request(RequestId),
    /// That of the newest request of a trace.
    Trace(TraceId),
}

impl Wanted {
    /// Whether that story is it.
    pub fn is(self, story: &Story) -> bool {
        match self {
            Self::Request(id) => story.request_id == id,
            Self::Trace(id) => story.trace_id == Some(id),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(id) => id.fmt(f),
            Self::Trace(id) => id.fmt(f),
        }
    }
}

impl FromStr for Wanted {
    type Err = InvalidId;
    fn from_str(value: &str) -> Result<Self, InvalidId> {
        match value.parse() {
            Ok(trace) => Ok(Self::Trace(trace)),
            Err(_) => value.parse().map(Self::Request),
        }
    }
}

#[cfg(test)]
mod tests;
