//! The causes of failures of attempts and requests.

use skein_core::code::ErrorCode;
use skein_core::load::TOLD_FOR_MS;
use skein_core::queue::{MAX_FULL, POLL};
use skein_core::region::Regions;
use skein_core::retry::{Failure, MAX_ATTEMPTS, refusal_code};
use skein_core::turns::OFFER;
use skein_core::wire::RefuseReason;
use skein_core::{AppId, MachineId, NodeNumber};

use super::{CONFIGS, FACTS, LAG, Reference, SILENCE, Status, Story};
use crate::agenda::{MS, Micros, micros};
use crate::queue::TIMEOUT;
use crate::request::{Asked, Desk, End, Stopped};

/// A count that a worker told stands so long.
const TOLD: Micros = TOLD_FOR_MS * MS;

/// A cause that was there, or what would have to be so and is not.
pub type Cause = Result<&'static str, String>;

/// An attempt that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed {
    /// The Machine that it was for.
    pub machine: MachineId,
    /// Its node.
    pub node: NodeNumber,
    /// The node that passed it on.
    pub via: Option<NodeNumber>,
    /// When it began.
    pub at: Micros,
    /// How it failed.
    pub failure: Failure,
}

/// The code that a failure gives a request that ends with it.
fn code_of(failure: Failure) -> ErrorCode {
    match failure {
        Failure::Refused(reason) => refusal_code(reason),
        Failure::Unreachable => ErrorCode::PM02,
        Failure::Broken { code, .. } => code,
    }
}

fn cause(there: bool, cause: &'static str, missing: impl FnOnce() -> String) -> Cause {
    if there { Ok(cause) } else { Err(missing()) }
}

impl Reference {
    /// The cause of an attempt's failure, which `edge` learns of `now`; `deadline` is its request's.
    ///
    /// # Errors
    /// What would have to be so, and is not.
    pub fn attempt_failed(&self, edge: NodeNumber, failed: &Failed, deadline: Micros, now: Micros) -> Cause {
        let Failed { machine, node, via, at, failure } = *failed;
        let story = self.machines.get(&machine);
        let was = |so: fn(Status) -> bool| story.is_some_and(|story| story.status.ever(at, now, so));
        let none = |what: &str| format!("{machine} was {what} all the while");
        match failure {
            Failure::Refused(RefuseReason::Full) => {
                if story.is_some_and(|story| story.full.ever(at, now, |full| full)) {
                    return Ok("refused: it was full");
                }
                let kept = self.turns.get(&machine).is_some_and(|turns| turns.kept_since(at));
                cause(kept, "refused: what is free was kept for another edge", || none("below its limit"))
            }
            Failure::Refused(RefuseReason::Draining) => {
                let drains = self.node_was(node, at, now, |status| status.draining);
                cause(drains, "refused: its node drained", || format!("{node} never drained"))
            }
            Failure::Refused(RefuseReason::Stopped) => {
                cause(was(|status| !status.started), "refused: it did not run", || none("started"))
            }
            Failure::Refused(RefuseReason::Unhealthy) => {
                cause(was(|status| !status.healthy), "refused: it was not healthy", || none("healthy"))
            }
            Failure::Refused(RefuseReason::Cordoned) => {
                cause(was(|status| status.cordoned), "refused: it was cordoned", || none("not cordoned"))
            }
            Failure::Refused(RefuseReason::Unknown) => {
                cause(was(|status| !status.exists), "refused: it was gone", || none("there"))
            }
            Failure::Refused(RefuseReason::Unreachable) => {
                let before = at.saturating_sub(SILENCE);
                let apart = via.is_some_and(|via| self.apart(via, node, before, now));
                cause(apart, "refused: whom it was passed through did not reach it either", || {
                    format!("{via:?} and {node} heard each other")
                })
            }
            Failure::Refused(RefuseReason::NoService | RefuseReason::Connect(_) | RefuseReason::Hops) => {
                Err(format!("nothing here leads to {failure:?}"))
            }
            Failure::Broken { code: ErrorCode::PU02, .. } => {
                cause(was(|status| !status.started), "broken: its process ended", || none("started"))
            }
            Failure::Unreachable | Failure::Broken { code: ErrorCode::PM02, .. } => {
                if now >= deadline && now < at + LAG {
                    return Ok("its time was up before an answer could come");
                }
                // Suspicion counts silence from before the attempt.
                let before = at.saturating_sub(SILENCE);
                let apart = match via {
                    Some(via) => self.apart(edge, via, before, now) || self.apart(via, node, before, now),
                    None => self.apart(edge, node, before, now),
                };
                cause(apart, "its node or a link to it was in trouble", || {
                    format!("{edge} and {node} answered, and heard each other")
                })
            }
            Failure::Broken { code, .. } => Err(format!("nothing here leads to {code}")),
        }
    }

    /// The cause of a request's failure at `edge`, which has `end`ed `now` and came at `start`.
    ///
    /// # Errors
    /// What would have to be so, and is not.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the reference names those that matter")]
    pub fn confirm(
        &self,
        edge: NodeNumber,
        end: End,
        asked: &Asked,
        desk: &Desk,
        regions: &Regions,
        (start, now): (Micros, Micros),
    ) -> Cause {
        let code = match end {
            End::Answered(_) => return Ok("it did not fail"),
            End::NoApp => {
                let existed = || "the app existed all the while".to_owned();
                return cause(self.missing(asked.app, start), "the app was not there yet", existed);
            }
            End::Code(code) => code,
        };
        match desk.stopped {
            Stopped::Failure => return gave_up(code, asked, desk, now),
            Stopped::Replay => return self.not_followed(edge, code, asked, desk, start),
            Stopped::Budget => {
                let (spent, most) = self.budget(now, edge, desk.app.unwrap_or(asked.app));
                let left = || format!("{spent} of {most} retries were spent");
                return cause(
                    code == ErrorCode::PR03 && spent >= most,
                    "the budget for retries was spent",
                    left,
                );
            }
            Stopped::Crowded => {
                let (app, all) = self.waiting(edge, desk.app.unwrap_or(asked.app));
                let crowded = app >= self.bounds.service || all >= self.bounds.all;
                return cause(code == ErrorCode::PR04 && crowded, "too many waited", || {
                    format!("{app} waited for the app, {all} in all")
                });
            }
            Stopped::Unstarted | Stopped::Decision if code == ErrorCode::PM01 => {
                return self.unstarted(edge, asked, desk, regions, (start, now));
            }
            Stopped::Unstarted => return Err(format!("a start that is waited for in vain is not {code}")),
            Stopped::Waited => return self.waited(edge, code, asked, (start, now)),
            Stopped::Decision => {}
        }
        let last = desk.failed.last();
        // No Machine is left: each that could take it was tried, or could not by what the edge knew.
        for (id, story) in self.meant(asked, desk, regions) {
            if !desk.constraint.exclude.contains(id) && !self.passed_over(edge, story, (start, now)) {
                return Err(format!("{id} could take it all the while, and was not tried"));
            }
        }
        self.unwoken(asked, desk, regions, now)?;
        for id in &desk.constraint.exclude {
            if !desk.failed.iter().any(|failed| failed.machine == *id) && !desk.answered.contains(id) {
                return Err(format!("{id} was left out, and did not fail"));
            }
        }
        match (code, last) {
            (code, Some(last)) if code != ErrorCode::PR04 && code == code_of(last.failure) => match code {
                ErrorCode::PR01 => Ok("no Machine left, and the last could not take it"),
                ErrorCode::PR02 => Ok("no Machine left, and the last was gone"),
                ErrorCode::PM02 => Ok("no Machine left, and the last was out of reach"),
                _ => Ok("no Machine left, and the last broke off"),
            },
            (ErrorCode::PR01, None) => Ok("no Machine could take it"),
            (code, last) => Err(format!("nothing leads to {code} after {last:?}")),
        }
    }

    /// The cause of an end of one that waited for a start.
    fn unstarted(
        &self,
        edge: NodeNumber,
        asked: &Asked,
        desk: &Desk,
        regions: &Regions,
        (start, now): (Micros, Micros),
    ) -> Cause {
        for (id, story) in self.meant(asked, desk, regions) {
            let tried = desk.failed.iter().any(|failed| failed.machine == *id);
            // Beside one that seems full it waits for a start too.
            let full = story.full.ever(start.saturating_sub(TOLD), now, |full| full);
            if !tried && !full && !desk.answered.contains(id) && !self.passed_over(edge, story, (start, now))
            {
                return Err(format!("{id} was up all the while, and was not tried"));
            }
        }
        self.unwoken(asked, desk, regions, now)?;
        Ok("no Machine came up in time")
    }

    /// That traffic could start none for a request, when all must know of all.
    fn unwoken(&self, asked: &Asked, desk: &Desk, regions: &Regions, now: Micros) -> Result<(), String> {
        if !self.settled(now) {
            return Ok(());
        }
        let started = self.meant(asked, desk, regions).find(|(id, story)| {
            let rests = |s: Status| s.exists && !s.started && s.healthy && !s.cordoned;
            let acts = self
                .nodes
                .get(&story.node)
                .and_then(super::history::History::now)
                .is_some_and(|s| !s.draining);
            story.starts && acts && story.status.now().is_some_and(rests) && !desk.answered.contains(id)
        });
        started.map_or(Ok(()), |(id, _)| Err(format!("traffic could start {id}")))
    }

    /// The cause of an end in the queue: that it waited for as long as it may. Whether room was left
    /// meanwhile is judged whenever one leaves its line ([`Self::served_in_turn`]).
    fn waited(&self, edge: NodeNumber, code: ErrorCode, asked: &Asked, (_, now): (Micros, Micros)) -> Cause {
        let waiter = self.lines.iter().find(|waiter| waiter.is(edge, asked.id));
        let Some(waiter) = waiter else { return Err("it had no place in a line".to_owned()) };
        let long = now >= asked.deadline.min(waiter.since + TIMEOUT);
        cause(code == ErrorCode::PR04 && long, "it waited for as long as it may", || {
            format!("it waited for {} µs only", now - waiter.since)
        })
    }

    /// A request leaves its line, if it is in one; what a slot that it could have had stood free for
    /// too long while it was the first, if one did.
    ///
    /// # Errors
    /// Where, and how long.
    pub fn served_in_turn(
        &mut self,
        edge: NodeNumber,
        request: u64,
        desk: &Desk,
        regions: &Regions,
        now: Micros,
        rtt: impl Fn(NodeNumber) -> Micros,
    ) -> Result<(), String> {
        let Some(waiter) = self.leaves(now, edge, request) else { return Ok(()) };
        let failed = |id: MachineId| {
            let full = Failure::Refused(RefuseReason::Full);
            desk.answered.contains(&id)
                || desk.out.contains(&id)
                || desk.failed.iter().any(|failed| failed.machine == id && failed.failure != full)
        };
        let within = |name: &str, region| regions.matches(name, region) == Some(true);
        let meant = self.machines.values().filter(|story| story.app == waiter.app);
        let rtt = meant.map(|story| rtt(story.node)).max().unwrap_or(0);
        let Some((free, machine)) = self.left_free(edge, &waiter, now, failed, within) else {
            return Ok(());
        };
        // A try meets so many Machines at most before it waits again, and an offer may lapse at an edge whose
        // requests found room elsewhere meanwhile, one after another of two that were told.
        let most = micros(OFFER * 2 + POLL) + Micros::from(MAX_FULL + 1) * rtt;
        if free <= most {
            return Ok(());
        }
        Err(format!(
            "a slot of {machine} stood free for {free} µs while it was first in line, {most} are enough"
        ))
    }

    /// Whether a node may not have known of an app.
    fn missing(&self, app: AppId, start: Micros) -> bool {
        let since = self.registry_since(start);
        self.apps.get(&app).is_none_or(|made| *made > since)
    }

    /// The cause of an end at an instruction.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a code that nothing here leads to is wrong, new ones too"
    )]
    fn not_followed(
        &self,
        edge: NodeNumber,
        code: ErrorCode,
        asked: &Asked,
        desk: &Desk,
        start: Micros,
    ) -> Cause {
        match code {
            ErrorCode::PA05 => {
                let gone = desk.target.is_some_and(|app| self.missing(app, start));
                cause(gone, "the other app was not there", || "the other app existed".to_owned())
            }
            ErrorCode::PR02 => {
                let named = asked.instruction.as_deref().and_then(|text| text.strip_prefix("instance="));
                let named = named.and_then(|id| id.parse().ok());
                let gone = named.is_some_and(|id| self.unknown(edge, id, asked, desk, start));
                cause(gone, "the Machine to replay in was not there", || format!("{named:?} existed"))
            }
            other => Err(format!("no instruction here leads to {other}")),
        }
    }

    /// The Machines that a request is meant for.
    fn meant(
        &self,
        asked: &Asked,
        desk: &Desk,
        regions: &Regions,
    ) -> impl Iterator<Item = (&MachineId, &Story)> {
        let (app, wanted) = (desk.app.unwrap_or(asked.app), desk.constraint.clone());
        self.machines.iter().filter(move |(id, story)| {
            let inside = |name: &String| regions.matches(name, story.region) == Some(true);
            story.app == app
                && wanted.machine.is_none_or(|machine| machine == **id)
                && (wanted.regions.is_empty() || wanted.regions.iter().any(inside))
        })
    }

    /// Whether an edge could take a Machine for one that can't take a request.
    fn passed_over(&self, edge: NodeNumber, story: &Story, (start, now): (Micros, Micros)) -> bool {
        let facts = self.known_since(edge, story.node, start, FACTS);
        let configs = self.known_since(edge, story.node, start, CONFIGS);
        let routable = |s: Status| s.exists && s.started && s.healthy && !s.cordoned;
        story.status.began_after(configs)
            || story.status.ever(facts, start, |status| !routable(status))
            || self.node_was(story.node, facts, start, |status| status.draining)
            || (story.node == edge && self.node_was(edge, start, now, |status| status.draining))
            // It forgot all, and had no time to hear of it again.
            || self.node_was(edge, configs, start, |status| !status.runs)
    }

    /// Whether an edge could not know a Machine that a request names.
    fn unknown(&self, edge: NodeNumber, id: MachineId, asked: &Asked, desk: &Desk, start: Micros) -> bool {
        let Some(story) = self.machines.get(&id) else { return true };
        let since = self.known_since(edge, story.node, start, FACTS);
        story.app != desk.app.unwrap_or(asked.app)
            || story.status.began_after(since)
            || story.status.ever(since, start, |status| !status.exists)
            || self.node_was(edge, since, start, |status| !status.runs)
    }
}

/// The cause of an end after a failure that may not be followed by another attempt.
fn gave_up(code: ErrorCode, asked: &Asked, desk: &Desk, now: Micros) -> Cause {
    let Some(last) = desk.failed.last() else { return Err("nothing failed".to_owned()) };
    if code == ErrorCode::PR03 {
        let often = desk.attempts >= MAX_ATTEMPTS;
        return cause(often, "it was tried as often as it may be", || "few attempts failed".to_owned());
    }
    if code != code_of(last.failure) {
        return Err(format!("its last attempt ended with {:?}", last.failure));
    }
    if now >= asked.deadline {
        return Ok("its time was up");
    }
    let reached = matches!(last.failure, Failure::Broken { reached_app: true, .. });
    cause(reached && asked.post, "a POST that may have reached the app", || "it could be repeated".to_owned())
}
