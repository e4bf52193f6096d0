//! Suspending and going on (SPEC AUTO-3): a run whose process waits is still that run.

use std::time::Instant;

use super::{After, Core, Desired, Effect, Phase, Refusal, S, Source, StopHow};

impl Core {
    pub(super) fn suspend(
        &mut self,
        now: Instant,
        source: Source,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        if self.closing {
            return Err(Refusal("the node is shutting down, refusing to suspend".into()));
        }
        match (self.state, self.run) {
            (S::Started, Some(run)) => {
                self.phase = Phase::Quieting { until: now + self.settings.kill_timeout };
                self.go(S::Suspending, "suspend", source, None, out);
                out.push(Effect::AwaitIdle { run });
            }
            (S::Suspending, _) => {
                if let Phase::Freezing { wake } = &mut self.phase {
                    *wake = false;
                }
            }
            (S::Suspended, _) => {}
            _ => return Err(self.refusal("suspend")),
        }
        self.desired = Desired::Suspended;
        Ok(())
    }

    /// The process that a former life of the node left waiting, if it is there.
    pub(super) fn reclaim(&mut self, out: &mut Vec<Effect>) {
        if self.state == S::Suspended && self.run.is_none() {
            self.last_run += 1;
            self.run = Some(self.last_run);
            self.phase = Phase::Frozen;
            out.push(Effect::Reclaim { run: self.last_run });
        }
    }

    pub(super) fn freeze(&mut self, out: &mut Vec<Effect>) {
        let Some(run) = self.run else { return };
        self.phase = Phase::Freezing { wake: false };
        out.push(Effect::Suspend { run });
    }

    pub(super) fn suspended(&mut self, out: &mut Vec<Effect>) {
        let Phase::Freezing { wake } = self.phase else { return };
        self.phase = Phase::Frozen;
        self.go(S::Suspended, "suspend", Source::Node, None, out);
        if wake {
            self.wake(Source::Node, out);
        }
    }

    /// As at the origin, it is stopped then.
    pub(super) fn not_suspended(&mut self, now: Instant, out: &mut Vec<Effect>) {
        let Phase::Freezing { wake } = self.phase else { return };
        self.phase = Phase::Live;
        if wake {
            self.go(S::Starting, "start", Source::Node, None, out);
            return self.up(out);
        }
        self.desired = Desired::Stopped;
        self.error = Some("its processes could not be suspended, so it was stopped; see its log".into());
        self.end_run(now, S::Stopping, "stop", Source::Node, After::Stop, StopHow::default(), out);
    }

    /// Lets a Machine that is or is being suspended go on.
    pub(super) fn wake(&mut self, source: Source, out: &mut Vec<Effect>) {
        if let Phase::Freezing { wake } = &mut self.phase {
            *wake = true;
            return;
        }
        let frozen = self.phase == Phase::Frozen;
        self.phase = Phase::Thawing;
        self.go(S::Starting, "start", source, None, out);
        match self.run {
            Some(run) if frozen => out.push(Effect::Resume { run }),
            // It was not made to wait yet.
            _ => self.up(out),
        }
    }
}
