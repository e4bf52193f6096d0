//! When an actor that ended is started again: a pure policy over the past.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How often a child may be restarted, and how long to wait before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intensity {
    /// Restarts allowed within [`Self::within`].
    pub restarts: u32,
    /// The window that restarts are counted in.
    pub within: Duration,
    /// The wait before the first restart of a window; it doubles with each further one.
    pub first_wait: Duration,
    /// The longest wait.
    pub max_wait: Duration,
}

impl Default for Intensity {
    /// Five restarts a minute, 10 ms before the first, at most 5 s before any.
    fn default() -> Self {
        Self {
            restarts: 5,
            within: Duration::from_secs(60),
            first_wait: Duration::from_millis(10),
            max_wait: Duration::from_secs(5),
        }
    }
}

/// How long a child is meant to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// As long as its supervisor: any end is followed by a restart.
    Permanent,
    /// Until its work is done: only a failure is followed by a restart.
    Transient,
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It stopped itself or was asked to.
    Finished,
    /// It panicked or returned an error.
    Failed,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Start it again after this time.
    Restart {
        /// The wait.
        after: Duration,
    },
    /// Its work is done.
    Ignore,
    /// It failed too often; its supervisor has to act.
    Escalate,
}

/// The restarts of one child.
#[derive(Debug, Clone)]
pub struct Restarts {
    intensity: Intensity,
    life: Life,
    past: VecDeque<Instant>,
}

impl Restarts {
    /// No restart so far.
    pub fn new(life: Life, intensity: Intensity) -> Self {
        Self { intensity, life, past: VecDeque::new() }
    }

    /// Decides after the child ended at `now`, and remembers a restart.
    pub fn on_exit(&mut self, now: Instant, cause: Cause) -> Verdict {
        if self.life == Life::Transient && cause == Cause::Finished {
            return Verdict::Ignore;
        }
        let Intensity { restarts, within, first_wait, max_wait } = self.intensity;
        while self.past.front().is_some_and(|at| now.saturating_duration_since(*at) >= within) {
            self.past.pop_front();
        }
        let so_far = self.past.len() as u32;
        if so_far >= restarts {
            return Verdict::Escalate;
        }
        self.past.push_back(now);
        Verdict::Restart { after: first_wait.saturating_mul(1 << so_far.min(16)).min(max_wait) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[expect(clippy::disallowed_methods, reason = "only differences count, and there is no other instant")]
    fn base() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_transient_child_that_finished_is_left_and_one_that_failed_is_not() {
        let mut restarts = Restarts::new(Life::Transient, Intensity::default());
        assert_eq!(restarts.on_exit(base(), Cause::Finished), Verdict::Ignore);
        assert!(matches!(restarts.on_exit(base(), Cause::Failed), Verdict::Restart { .. }));
    }

    #[test]
    fn a_permanent_child_is_restarted_however_it_ended() {
        let mut restarts = Restarts::new(Life::Permanent, Intensity::default());
        assert!(matches!(restarts.on_exit(base(), Cause::Finished), Verdict::Restart { .. }));
    }

    proptest! {
        #[test]
        fn no_window_holds_more_restarts_than_allowed_and_waits_grow_within_it(
            gaps in proptest::collection::vec(0u64..30_000, 1..100), limit in 0u32..8,
        ) {
            let intensity = Intensity { restarts: limit, ..Intensity::default() };
            let mut restarts = Restarts::new(Life::Permanent, intensity);
            let (mut now, mut done): (_, Vec<Instant>) = (base(), Vec::new());
            for gap in gaps {
                now += Duration::from_millis(gap);
                let recent = done.iter().filter(|at| now - **at < intensity.within).count() as u32;
                match restarts.on_exit(now, Cause::Failed) {
                    Verdict::Restart { after } => {
                        prop_assert!(recent < limit);
                        prop_assert!(after >= intensity.first_wait && after <= intensity.max_wait);
                        done.push(now);
                    }
                    Verdict::Escalate => prop_assert_eq!(recent, limit),
                    Verdict::Ignore => prop_assert!(false, "a failure is never ignored"),
                }
            }
        }

        #[test]
        fn a_quiet_window_forgives_everything(limit in 1u32..8) {
            let intensity = Intensity { restarts: limit, ..Intensity::default() };
            let mut restarts = Restarts::new(Life::Permanent, intensity);
            let start = base();
            for _ in 0..=limit { restarts.on_exit(start, Cause::Failed); }
            prop_assert_eq!(
                restarts.on_exit(start + intensity.within, Cause::Failed),
                Verdict::Restart { after: intensity.first_wait }
            );
        }
    }
}
