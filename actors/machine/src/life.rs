//! The life of a Machine as a pure state machine (SPEC RUN-1, RUN-4, RUN-5).
//!
//! What: states and their transitions, the restart policy, the stop sequence, all as effects of
//! inputs at a given time. What not: processes, sockets, timers, the store; the actor has them.
//!
//! Invariants, property-tested: only transitions of [`allowed`]; at most one run at a time; a run
//! that was launched ends in `Ended`, `Refused` or `Lost` before the next is launched; a Machine
//! that is told to stop gets there whatever its process does, as long as SIGKILL works.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use skein_core::machine::{MachineState, RestartPolicy};
use skein_core::restart::{self, Decision, Exit, History};

use MachineState as S;

pub use self::effect::{Effect, Happening, Refusal};
use self::exit::{describe, exit_event};
pub use self::input::{Desired, Input, Source, StopHow};
use self::phase::{After, Phase};
pub use self::settings::{KILL_TIMEOUT, MAX_KILL_TIMEOUT, Settings, signal_number};
pub use self::transition::allowed;

mod effect;
mod exit;
mod input;
mod phase;
mod settings;
mod suspension;
mod transition;

/// SIGTERM's grace before SIGKILL (SPEC RUN-5).
pub const TERM_WAIT: Duration = Duration::from_secs(1);
/// SIGKILL.
pub const SIGKILL: i32 = 9;
/// SIGTERM.
pub const SIGTERM: i32 = 15;

/// The state machine.
#[derive(Debug, Clone)]
pub struct Core {
    state: MachineState,
    desired: Desired,
    settings: Settings,
    phase: Phase,
    after: After,
    /// The run that exists, and the number of the last one.
    run: Option<u64>,
    last_run: u64,
    started_once: bool,
    closing: bool,
    history: History,
    error: Option<String>,
}

impl Core {
    /// A Machine that was just created.
    pub fn created(settings: Settings, desired: Desired) -> Self {
        Self::at(S::Created, settings, desired)
    }

    /// A Machine as the store remembers it: without a process, in a settled state.
    pub fn restored(state: MachineState, settings: Settings, desired: Desired) -> Self {
        let settled = matches!(state, S::Created | S::Failed | S::LaunchFailed);
        // Only what is to be reclaimed can still be suspended.
        let state = if desired == Desired::Suspended { S::Suspended } else { state };
        let settled = settled || state == S::Suspended;
        let mut core = Self::at(if settled { state } else { S::Stopped }, settings, desired);
        core.started_once = state != S::Created && state != S::LaunchFailed;
        core
    }

    fn at(state: MachineState, settings: Settings, desired: Desired) -> Self {
        Self {
            state,
            desired,
            settings,
            phase: Phase::Rest,
            after: After::Stop,
            run: None,
            last_run: 0,
            started_once: false,
            closing: false,
            history: History::default(),
            error: None,
        }
    }

    /// Its state.
    pub fn state(&self) -> MachineState {
        self.state
    }

    /// What it is meant to be.
    pub fn desired(&self) -> Desired {
        self.desired
    }

    /// What went wrong last; `None` once it runs again.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// Whether its run is being brought to its end.
    pub fn is_stopping(&self) -> bool {
        self.run.is_some() && self.phase.is_ending()
    }

    /// Whether there is no run and none comes by itself.
    pub fn is_at_rest(&self) -> bool {
        self.run.is_none() && self.phase == Phase::Rest
    }

    /// When [`Input::Tick`] is due, and why.
    pub fn deadline(&self) -> Option<(Instant, &'static str)> {
        match self.phase {
            Phase::Rest
            | Phase::Live
            | Phase::Freezing { .. }
            | Phase::Frozen
            | Phase::Thawing
            | Phase::Killed => None,
            Phase::Backoff(until) => Some((until, "restart")),
            Phase::Quieting { until } => Some((until, "suspension")),
            Phase::Draining { until, .. } => Some((until, "drain")),
            Phase::Signalled { until } => Some((until, "kill timeout")),
            Phase::Terminated { until } => Some((until, "SIGTERM")),
        }
    }

    /// Takes an input and says what is to be done, in order.
    ///
    /// # Errors
    /// [`Refusal`] for a call that the state does not allow; nothing changed then.
    pub fn handle(&mut self, now: Instant, input: Input) -> Result<Vec<Effect>, Refusal> {
        let mut out = Vec::new();
        match input {
            Input::Start(source) => self.start(source, &mut out)?,
            Input::Stop(how) => self.stop(now, how, &mut out)?,
            Input::Restart(how) => self.restart(now, how, &mut out)?,
            Input::Suspend(source) => self.suspend(now, source, &mut out)?,
            Input::Reclaim => self.reclaim(&mut out),
            Input::Update { settings, launch } => self.update(now, settings, launch, &mut out)?,
            Input::Destroy { force } => self.destroy(now, force, &mut out)?,
            Input::Signal(signal) => {
                // Whoever waits hears nothing, and would be surprised by it later.
                let waits = matches!(self.phase, Phase::Freezing { .. } | Phase::Frozen);
                let Some(run) = self.run.filter(|_| !waits) else {
                    return Err(self.refusal("signal"));
                };
                out.push(Effect::Signal { run, signal });
            }
            Input::Close => self.close(now, &mut out),
            Input::Tick => self.tick(now, &mut out),
            Input::Idle(run) => {
                if self.run == Some(run)
                    && let Phase::Draining { signal, timeout, .. } = self.phase
                {
                    self.signal(now, signal, timeout, &mut out);
                } else if self.run == Some(run) && matches!(self.phase, Phase::Quieting { .. }) {
                    self.freeze(&mut out);
                }
            }
            Input::Up(run) if self.run == Some(run) => self.up(&mut out),
            Input::Suspended(run) if self.run == Some(run) => self.suspended(&mut out),
            Input::NotSuspended(run) if self.run == Some(run) => self.not_suspended(now, &mut out),
            Input::Listens(run, heard) if self.run == Some(run) => self.listens(heard, &mut out),
            // Words from a run that is over.
            Input::Up(_) | Input::Listens(..) | Input::Suspended(_) | Input::NotSuspended(_) => {}
            // Nobody refuses what already runs: such a run is not to be trusted.
            Input::Refused(run, _) if matches!(self.state, S::Started | S::Suspending | S::Suspended) => {
                self.ended(now, run, None, "", &mut out)
            }
            Input::Refused(run, error) => self.refused(run, error, &mut out),
            Input::Ended(run, exit, wrote) => self.ended(now, run, Some(exit), &wrote, &mut out),
            Input::Lost(run) => self.ended(now, run, None, "", &mut out),
        }
        Ok(out)
    }

    fn go(
        &mut self,
        to: MachineState,
        kind: &'static str,
        source: Source,
        request: Option<Value>,
        out: &mut Vec<Effect>,
    ) {
        debug_assert!(allowed(self.state, to), "{} -> {to}", self.state);
        self.state = to;
        out.push(Effect::Changed(Happening { kind, state: to, source, request }));
    }

    fn launch(&mut self, kind: &'static str, source: Source, out: &mut Vec<Effect>) {
        self.go(S::Starting, kind, source, None, out);
        self.begin_run(out);
    }

    fn begin_run(&mut self, out: &mut Vec<Effect>) {
        self.last_run += 1;
        self.run = Some(self.last_run);
        self.phase = Phase::Live;
        self.after = After::Stop;
        out.push(Effect::Launch { run: self.last_run });
    }

    fn refusal(&self, verb: &str) -> Refusal {
        Refusal(format!("unable to {verb} machine from current state: '{}'", self.state))
    }

    fn start(&mut self, source: Source, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        if self.closing {
            return Err(Refusal("the node is shutting down, refusing to start".into()));
        }
        #[allow(clippy::wildcard_enum_match_arm, reason = "states of parts that do not exist here")]
        match self.state {
            S::Created | S::Stopped | S::Failed | S::LaunchFailed => {
                self.desired = Desired::Started;
                if source == Source::User {
                    self.history = History::default();
                }
                let kind = if self.state == S::Created { "launch" } else { "start" };
                self.launch(kind, source, out);
            }
            S::Starting | S::Started => {}
            S::Suspending | S::Suspended => {
                self.desired = Desired::Started;
                self.wake(source, out);
            }
            S::Restarting | S::Updating => {
                self.desired = Desired::Started;
                if self.phase != Phase::Rest {
                    self.after = After::Start;
                }
            }
            _ => return Err(self.refusal("start")),
        }
        Ok(())
    }

    fn up(&mut self, out: &mut Vec<Effect>) {
        if matches!(self.phase, Phase::Live | Phase::Thawing) && self.state == S::Starting {
            self.phase = Phase::Live;
            self.started_once = true;
            self.error = None;
            self.go(S::Started, "start", Source::Node, None, out);
        }
    }

    /// It is told, and stays as it is: it may do other work well.
    fn listens(&mut self, heard: Result<(), String>, out: &mut Vec<Effect>) {
        if self.phase.is_ending() {
            return;
        }
        self.error = heard.err();
        if let Some(error) = &self.error {
            let request = Some(json!({ "error": error }));
            let (kind, source) = ("unreachable", Source::Node);
            out.push(Effect::Changed(Happening { kind, state: self.state, source, request }));
        }
    }

    fn stop(&mut self, now: Instant, how: StopHow, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        #[allow(clippy::wildcard_enum_match_arm, reason = "states of parts that do not exist here")]
        match self.state {
            S::Created | S::Stopped | S::Failed | S::LaunchFailed => self.desired = Desired::Stopped,
            S::Stopping => {
                self.desired = Desired::Stopped;
                self.after = After::Stop;
                self.hasten(how, out);
            }
            S::Starting | S::Started | S::Suspending | S::Suspended | S::Restarting | S::Updating => {
                self.desired = Desired::Stopped;
                self.end_run(now, S::Stopping, "stop", Source::User, After::Stop, how, out);
            }
            _ => return Err(self.refusal("stop")),
        }
        Ok(())
    }

    fn restart(&mut self, now: Instant, how: StopHow, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        #[allow(clippy::wildcard_enum_match_arm, reason = "states of parts that do not exist here")]
        match self.state {
            S::Starting | S::Started | S::Suspending | S::Suspended | S::Restarting | S::Updating
                if !self.closing =>
            {
                self.desired = Desired::Started;
                self.history = History::default();
                self.end_run(now, S::Restarting, "restart", Source::User, After::Start, how, out);
                Ok(())
            }
            _ => self.start(Source::User, out),
        }
    }

    fn update(
        &mut self,
        now: Instant,
        settings: Settings,
        launch: bool,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        if self.closing {
            return Err(Refusal("the node is shutting down, refusing to update".into()));
        }
        let (desired, after) =
            if launch { (Desired::Started, After::Start) } else { (Desired::Stopped, After::Stop) };
        #[allow(clippy::wildcard_enum_match_arm, reason = "states of parts that do not exist here")]
        match self.state {
            S::Created | S::Stopped | S::Failed | S::LaunchFailed => {
                self.settings = settings;
                self.desired = desired;
                self.history = History::default();
                if launch {
                    self.launch("update", Source::User, out);
                }
            }
            S::Starting | S::Started | S::Suspending | S::Suspended | S::Restarting | S::Updating => {
                self.desired = desired;
                self.history = History::default();
                // The process that runs is stopped as its own configuration says.
                self.end_run(now, S::Updating, "update", Source::User, after, StopHow::default(), out);
                self.settings = settings;
            }
            _ => return Err(self.refusal("update")),
        }
        Ok(())
    }

    fn destroy(&mut self, now: Instant, force: bool, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        if matches!(self.state, S::Destroying | S::Destroyed) {
            return Ok(());
        }
        if self.run.is_some() && self.state != S::Suspended && !force {
            return Err(Refusal(format!(
                "unable to destroy machine, not currently stopped or suspended: '{}'; stop it first or use force",
                self.state
            )));
        }
        self.desired = Desired::Destroyed;
        let how = StopHow { force: true, ..StopHow::default() };
        self.end_run(now, S::Destroying, "destroy", Source::User, After::Destroy, how, out);
        Ok(())
    }

    fn close(&mut self, now: Instant, out: &mut Vec<Effect>) {
        self.closing = true;
        if self.run.is_none() {
            if matches!(self.phase, Phase::Backoff(_)) {
                self.phase = Phase::Rest;
                self.go(S::Stopped, "stop", Source::Node, None, out);
            }
            return;
        }
        if matches!(self.state, S::Stopping | S::Destroying) {
            return;
        }
        self.end_run(now, S::Stopping, "stop", Source::Node, After::Stop, StopHow::default(), out);
    }

    /// Brings the run, if there is one, to its end, showing `state` meanwhile.
    #[allow(clippy::too_many_arguments, reason = "each is one fact of the stop sequence")]
    fn end_run(
        &mut self,
        now: Instant,
        state: MachineState,
        kind: &'static str,
        source: Source,
        after: After,
        how: StopHow,
        out: &mut Vec<Effect>,
    ) {
        self.after = after;
        let request = (how != StopHow::default()).then(|| {
            json!({"signal": how.signal, "timeout_ms": how.timeout.map(|t| t.as_millis() as u64), "force": how.force})
        });
        let Some(run) = self.run else {
            self.phase = Phase::Rest;
            if self.state != state {
                self.go(state, kind, source, request, out);
            }
            return self.rested(out);
        };
        if self.state != state {
            self.go(state, kind, source, request, out);
        }
        if self.phase.is_ending() {
            return self.hasten(how, out);
        }
        let signal = how.signal.unwrap_or(self.settings.kill_signal);
        let timeout = how.timeout.unwrap_or(self.settings.kill_timeout);
        if how.force || signal == SIGKILL {
            return self.kill(out);
        }
        if matches!(self.phase, Phase::Freezing { .. } | Phase::Frozen) {
            // A process that waits would not see the signal.
            out.push(Effect::Resume { run });
        }
        let drain = how.drain.unwrap_or(timeout);
        self.phase = Phase::Draining { until: now + drain, signal, timeout };
        if drain.is_zero() {
            self.signal(now, signal, timeout, out);
        } else {
            out.push(Effect::AwaitIdle { run });
        }
    }

    fn hasten(&mut self, how: StopHow, out: &mut Vec<Effect>) {
        if how.force && self.phase != Phase::Killed {
            self.kill(out);
        }
    }

    fn signal(&mut self, now: Instant, signal: i32, timeout: Duration, out: &mut Vec<Effect>) {
        let Some(run) = self.run else { return };
        self.phase = Phase::Signalled { until: now + timeout };
        out.push(Effect::Signal { run, signal });
    }

    fn kill(&mut self, out: &mut Vec<Effect>) {
        let Some(run) = self.run else { return };
        self.phase = Phase::Killed;
        out.push(Effect::Kill { run });
    }

    fn tick(&mut self, now: Instant, out: &mut Vec<Effect>) {
        if self.deadline().is_none_or(|(at, _)| now < at) {
            return;
        }
        match self.phase {
            Phase::Rest
            | Phase::Live
            | Phase::Freezing { .. }
            | Phase::Frozen
            | Phase::Thawing
            | Phase::Killed => {}
            Phase::Quieting { .. } => self.freeze(out),
            Phase::Backoff(_) => self.launch("start", Source::Node, out),
            Phase::Draining { signal, timeout, .. } => self.signal(now, signal, timeout, out),
            Phase::Signalled { .. } => {
                let Some(run) = self.run else { return };
                self.phase = Phase::Terminated { until: now + TERM_WAIT };
                out.push(Effect::Signal { run, signal: SIGTERM });
            }
            Phase::Terminated { .. } => self.kill(out),
        }
    }

    fn refused(&mut self, run: u64, error: String, out: &mut Vec<Effect>) {
        if self.run != Some(run) {
            return;
        }
        self.run = None;
        let stopping = self.phase.is_ending();
        self.phase = Phase::Rest;
        let request = Some(json!({ "error": error }));
        self.error = Some(error);
        if stopping {
            return self.rested(out);
        }
        self.desired = Desired::Stopped;
        let to = if self.started_once { S::Failed } else { S::LaunchFailed };
        self.go(to, "start", Source::Node, request, out);
        if self.settings.auto_destroy {
            self.vanish(out);
        }
    }

    fn ended(&mut self, now: Instant, run: u64, exit: Option<Exit>, wrote: &str, out: &mut Vec<Effect>) {
        if self.run != Some(run) {
            return;
        }
        self.run = None;
        let phase = std::mem::replace(&mut self.phase, Phase::Rest);
        let stopping = phase.is_ending();
        let event = |restarting: bool| Some(exit_event(exit, wrote, stopping, restarting));
        if stopping {
            return self.rested_with(event(self.after == After::Start), out);
        }
        if matches!(phase, Phase::Quieting { .. } | Phase::Freezing { .. } | Phase::Frozen) {
            self.error = Some(format!("it ended while it was suspended: {}", describe(exit, wrote)));
            // Whoever wants it back gets a new process; nobody else does.
            if phase == (Phase::Freezing { wake: true }) {
                return self.launch("start", Source::Node, out);
            }
            self.desired = Desired::Stopped;
            self.go(S::Stopped, "exit", Source::Node, event(false), out);
            if self.settings.auto_destroy {
                self.vanish(out);
            }
            return;
        }
        if phase == Phase::Thawing {
            // What waited is gone, so its start is a cold one.
            return self.begin_run(out);
        }
        // An init that vanished is no exit of the app's own: it counts as a failure.
        let exit_or_failure = exit.unwrap_or(Exit::Signal(SIGKILL));
        let Settings { policy, max_retries, .. } = self.settings;
        let decision = if self.settings.auto_destroy && policy == RestartPolicy::No {
            Decision::Stay
        } else {
            restart::on_exit(now, &mut self.history, policy, max_retries, exit_or_failure)
        };
        self.error = (!exit_or_failure.is_success()).then(|| describe(exit, wrote));
        match decision {
            Decision::Restart { after } => {
                self.phase = Phase::Backoff(now + after);
                self.after = After::Start;
                self.go(S::Restarting, "exit", Source::Node, event(true), out);
            }
            Decision::Stay | Decision::GiveUp => {
                if decision == Decision::GiveUp {
                    let why = describe(exit, wrote);
                    self.error =
                        Some(format!("it was restarted {max_retries} times within 5 minutes; {why}"));
                }
                self.desired = Desired::Stopped;
                self.go(S::Stopped, "exit", Source::Node, event(false), out);
                if self.settings.auto_destroy {
                    self.vanish(out);
                }
            }
        }
    }

    fn rested(&mut self, out: &mut Vec<Effect>) {
        self.rested_with(None, out);
    }

    /// The run that was being stopped is over.
    fn rested_with(&mut self, exit: Option<Value>, out: &mut Vec<Effect>) {
        let kind = if exit.is_some() { "exit" } else { "stop" };
        match self.after {
            After::Start if !self.closing => {
                self.launch(if exit.is_some() { "exit" } else { "start" }, Source::Node, out);
                if let Some(Effect::Changed(happening)) = out.iter_mut().rev().find(|e| e.is_change()) {
                    happening.request = exit;
                }
            }
            After::Start | After::Stop => {
                self.go(S::Stopped, kind, Source::Node, exit, out);
                if self.settings.auto_destroy && self.desired == Desired::Stopped {
                    self.vanish(out);
                }
            }
            After::Destroy => {
                self.go(S::Destroyed, kind, Source::Node, exit, out);
                out.push(Effect::Forget);
            }
        }
    }

    fn vanish(&mut self, out: &mut Vec<Effect>) {
        self.desired = Desired::Destroyed;
        self.go(S::Destroying, "destroy", Source::Node, None, out);
        self.go(S::Destroyed, "destroy", Source::Node, None, out);
        out.push(Effect::Forget);
    }
}

#[cfg(test)]
mod tests;
