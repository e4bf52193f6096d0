//! The way of one request: which Machine is next, after a decision, a failure or a replay.
//!
//! What: a state machine without effects. The edge carries out each [`Decision`] and tells what came
//! of it; the simulator drives the same code. What not: headers, bodies, spans, waiting.
//!
//! Invariants: a Machine that failed or refused this request is not asked again; whatever a replay
//! begins, it begins with a clean slate; there are at most [`replay::MAX_REPLAYS`] of them.

use std::sync::Arc;
use std::time::Duration;

use crate::autostop::wake::{self, Asked, Sight, Wake};
use crate::balance::{self, Candidate, Constraint, PassedOver, Pick};
use crate::code::ErrorCode;
use crate::explain::Pen;
use crate::id::{AppId, MachineId};
use crate::queue::{self, Service, Want};
use crate::random::Random;
use crate::region::Regions;
use crate::replay::{self, Replay};
use crate::retry::{self, Attempted, Failure, Next};
use crate::snapshot::{AppView, MachineView, Snapshot};
use crate::suspicion::Proximity;
use crate::wire::RefuseReason;

/// Times a Machine may close an old connection under one request before it counts as failed.
pub const MAX_STALE: u32 = 3;

/// What a decision reads.
#[derive(Clone, Copy)]
pub struct World<'s> {
    /// What the edge knows; loaded once per request.
    pub snapshot: &'s Snapshot,
    /// Distances and suspicion.
    pub proximity: &'s (dyn Proximity + Sync),
    /// The regions it knows.
    pub regions: &'s Regions,
    /// Milliseconds on the edge's monotonic clock, never 0: the clock of load estimates.
    pub now_ms: u64,
}

impl std::fmt::Debug for World<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("snapshot", &self.snapshot.version).finish_non_exhaustive()
    }
}

/// Where the request goes now.
#[derive(Debug, Clone, Copy)]
pub struct Decision<'s> {
    /// The Machine, and why.
    pub pick: Pick<'s>,
    /// How many could have taken it.
    pub candidates: usize,
    /// Whether another one could take it, on a node that answers: then a node that falls silent is
    /// given up.
    pub alternatives: bool,
    /// Whether it seems full too, after [`queue::MAX_FULL`] that were: whoever can wait does so now.
    pub enough: bool,
    /// Whether there are Machines that may be started: whether to ask [`Route::wake`].
    pub asleep: bool,
}

/// What is known of the request when an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeat {
    /// Whether its method may be repeated (RFC 9110 section 9.2.2).
    pub idempotent: bool,
    /// Whether all of its body that was sent can be sent again.
    pub replayable: bool,
    /// Time left.
    pub left: Duration,
}

/// The end of a request without a response of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// The code of the proxy's own response.
    pub code: ErrorCode,
    /// What it adds to the code's help.
    pub why: Option<String>,
}

impl From<ErrorCode> for Stop {
    fn from(code: ErrorCode) -> Self {
        Self { code, why: None }
    }
}

/// What is known of a request's way so far, with the app as one snapshot has it.
#[derive(Debug)]
pub struct Route<'s> {
    app: &'s Arc<AppView>,
    way: Way,
}

/// What is known of a request's way so far, whatever the snapshot: what stays while it waits.
#[derive(Debug)]
pub struct Way {
    app: AppId,
    port: u16,
    constraint: Constraint,
    replays: u32,
    // Since the last replay.
    failed: u32,
    stale: u32,
    last: Option<ErrorCode>,
    // Since it waited last.
    /// Machines that refused it; they are excluded too.
    refused: Vec<MachineId>,
    /// Those of them that are stopped.
    stopped: Vec<MachineId>,
    full: u32,
}

impl Way {
    /// What it waits for.
    pub fn want(&self) -> Want {
        Want::new(&self.constraint, &self.refused)
    }

    /// The service that it waits for.
    pub fn service(&self) -> Service {
        (self.app, self.port)
    }

    /// Goes on with a newer snapshot; `None` when the app is gone.
    pub fn resume(self, snapshot: &Snapshot) -> Option<Route<'_>> {
        Some(Route { app: snapshot.apps.get(&self.app)?, way: self })
    }
}

impl<'s> Route<'s> {
    /// A request for `app` on the public `port` that prefers those regions (codes or aliases).
    pub fn new(app: &'s Arc<AppView>, port: u16, prefer: Vec<String>) -> Self {
        let constraint = Constraint { prefer, ..Constraint::default() };
        let way = Way {
            app: app.app.id,
            port,
            constraint,
            replays: 0,
            failed: 0,
            stale: 0,
            last: None,
            refused: Vec::new(),
            stopped: Vec::new(),
            full: 0,
        };
        Self { app, way }
    }

    /// What it is for, and what it asks for.
    pub fn way(&self) -> &Way {
        &self.way
    }

    /// The request waits: whoever refused it may take it later (SPEC LB-4). Those that failed stay
    /// excluded.
    pub fn wait(self) -> Way {
        let mut way = self.way;
        let refused = std::mem::take(&mut way.refused);
        way.constraint.exclude.retain(|machine| !refused.contains(machine));
        way.stopped.clear();
        way.full = 0;
        way
    }

    /// To go on with a newer snapshot: whoever failed or refused it stays excluded.
    pub fn into_way(self) -> Way {
        self.way
    }

    /// The app that it is for now: a replay may have changed it.
    pub fn app(&self) -> &'s Arc<AppView> {
        self.app
    }

    /// Replays that were followed.
    pub fn replays(&self) -> u32 {
        self.way.replays
    }

    /// What the request, or the last replay, asks for; Machines that failed are excluded.
    pub fn constraint(&self) -> &Constraint {
        &self.way.constraint
    }

    /// Decides which Machine gets the request now, and writes down why. `usable` may leave out candidates
    /// of a node that drains, which is not in the snapshot yet.
    ///
    /// # Errors
    /// The code to answer with when none is left: that of the last failure, else `PR01` or `PR02`.
    pub fn decide(
        &self,
        world: &World<'s>,
        usable: impl Fn(&Candidate<'s>) -> bool,
        rng: &mut impl Random,
        pen: Pen<'_>,
    ) -> Result<Decision<'s>, ErrorCode> {
        let app: &'s AppView = self.app;
        let World { snapshot, proximity, regions, now_ms } = *world;
        let Way { constraint, port, full, last, .. } = &self.way;
        let mut verdicts = balance::candidates(app, snapshot, *port, constraint, proximity, now_ms);
        for (_, verdict) in &mut verdicts {
            if verdict.as_ref().is_ok_and(|candidate| !usable(candidate)) {
                *verdict = Err(PassedOver::Draining);
            }
        }
        let candidates: Vec<Candidate<'s>> =
            verdicts.iter().filter_map(|(_, verdict)| verdict.as_ref().ok().copied()).collect();
        let picked = balance::pick(&candidates, constraint, regions, rng)
            .ok_or_else(|| last.unwrap_or_else(|| self.no_candidate()));
        pen.decided(&verdicts, picked.as_ref().map_err(|code| *code), constraint, regions);
        let pick = picked?;
        let asleep = wake::any_asleep(&verdicts);
        let enough = *full >= queue::MAX_FULL && pick.seems_full();
        let lively = |other: &Candidate<'_>| {
            other.machine.record.id != pick.candidate.machine.record.id && other.alive && !other.suspect
        };
        let alternatives = !pick.candidate.suspect && candidates.iter().any(lively);
        Ok(Decision { pick, candidates: candidates.len(), alternatives, enough, asleep })
    }

    /// What the request does about Machines that do not run (SPEC AUTO-2), when it would go to `pick`;
    /// `waits` says that it waits for a start already, `unix_ms` the time since 1970.
    pub fn wake(&self, world: &World<'s>, pick: Option<&Pick<'s>>, waits: bool, unix_ms: u64) -> Wake {
        let app: &'s AppView = self.app;
        let World { snapshot, proximity, regions, now_ms } = *world;
        let Way { constraint, port, stopped, refused, .. } = &self.way;
        let verdicts = balance::candidates(app, snapshot, *port, constraint, proximity, now_ms);
        let asked = Asked { port: *port, constraint, stopped, refused, waits };
        wake::judge(&verdicts, pick, asked, Sight { snapshot, proximity, regions, unix_ms })
    }

    fn no_candidate(&self) -> ErrorCode {
        let named = |id: MachineId| self.app.machines.keys().any(|(machine, _)| *machine == id);
        match self.way.constraint.machine {
            Some(id) if !named(id) => ErrorCode::PR02,
            Some(_) | None => ErrorCode::PR01,
        }
    }

    /// Takes note of a failed attempt at `machine`; the next decision leaves it out. `stale` says
    /// that nothing speaks against the Machine: it closed an old connection at the same moment.
    ///
    /// # Errors
    /// The code to answer with, when the request may not be tried again.
    pub fn after_failure(
        &mut self,
        machine: MachineId,
        failure: Failure,
        stale: bool,
        request: Repeat,
    ) -> Result<(), ErrorCode> {
        let way = &mut self.way;
        let before = retry::is_before_admission(failure);
        if !before {
            way.failed += 1;
        }
        let so_far = Attempted {
            attempts: way.failed,
            idempotent: request.idempotent,
            replayable: request.replayable,
            left: request.left,
        };
        match retry::after_failure(failure, so_far) {
            Next::Answer(code) => return Err(code),
            Next::Retry => {}
        }
        way.stale += u32::from(stale);
        if !stale || way.stale > MAX_STALE {
            way.constraint.exclude.push(machine);
            if before {
                way.refused.push(machine);
            }
            if failure == Failure::Refused(RefuseReason::Stopped) {
                way.stopped.push(machine);
            }
        }
        way.full += u32::from(failure == Failure::Refused(RefuseReason::Full));
        way.last = Some(match (failure, way.last) {
            // Whatever came later: a Machine that is only full is the most hopeful word.
            (Failure::Refused(RefuseReason::Full), _) | (_, Some(ErrorCode::PR04)) => ErrorCode::PR04,
            (Failure::Refused(reason), _) => retry::refusal_code(reason),
            (Failure::Unreachable, _) => ErrorCode::PM02,
            (Failure::Broken { code, .. }, _) => code,
        });
        Ok(())
    }

    /// Follows an instruction that `source` answered (SPEC RPL-1, RPL-3, RPL-5, RPL-8); the next
    /// decision goes to its target.
    ///
    /// # Errors
    /// [`Stop`]: too many replays, an instruction that is not valid, or a target that is refused.
    pub fn follow(
        &mut self,
        instruction: &[u8],
        source: &MachineView,
        world: &World<'s>,
    ) -> Result<Replay, Stop> {
        if self.way.replays >= replay::MAX_REPLAYS {
            return Err(ErrorCode::PA02.into());
        }
        let wanted = replay::parse(instruction, world.regions)
            .map_err(|error| Stop { code: ErrorCode::PA03, why: Some(error.to_string()) })?;
        let target = replay::resolve(&wanted, self.app, source.record.id, world.snapshot)
            .map_err(|refusal| Stop { code: refusal.code(), why: Some(refusal.to_string()) })?;
        let app = world.snapshot.apps.get(&target.app).ok_or(ErrorCode::PA05)?;
        let mut next = Self::new(app, self.way.port, Vec::new());
        next.way.constraint = target.constraint;
        next.way.replays = self.way.replays + 1;
        *self = next;
        Ok(wanted)
    }
}

#[cfg(test)]
mod tests;
