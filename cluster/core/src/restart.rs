//! Restarting, as a policy over the past (SPEC RUN-4, STYLE: supervision with intensity).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::machine::RestartPolicy;

/// The window in which restarts are counted.
pub const WINDOW: Duration = Duration::from_secs(300);
/// Restarts within [`WINDOW`] when a configuration says nothing.
pub const DEFAULT_RETRIES: u32 = 10;
/// The wait before the first restart; it doubles up to [`MAX_WAIT`].
pub const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest wait before a restart.
pub const MAX_WAIT: Duration = Duration::from_secs(30);

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    /// Whether it ended well.
    pub fn is_success(self) -> bool {
        self == Self::Code(0)
    }
}

/// What follows an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Start it again after this time.
    Restart {
        /// The wait.
        after: Duration,
    },
    /// Leave it: it ended as its policy wants.
    Stay,
    /// Leave it: it was restarted too often.
    GiveUp,
}

/// The restarts of one thing within the window.
#[derive(Debug, Clone, Default)]
pub struct History(VecDeque<Instant>);

impl History {
    /// Counts a restart at `now` and says how to go on: at most `limit` within the window, each wait
    /// twice the one before.
    pub fn restart(&mut self, now: Instant, limit: u32) -> Decision {
        while self.0.front().is_some_and(|at| now.saturating_duration_since(*at) >= WINDOW) {
            self.0.pop_front();
        }
        let so_far = self.0.len() as u32;
        if so_far >= limit {
            return Decision::GiveUp;
        }
        self.0.push_back(now);
        let after = FIRST_WAIT.saturating_mul(1 << so_far.min(16)).min(MAX_WAIT);
        Decision::Restart { after }
    }
}

/// Decides after a process ended by itself.
pub fn on_exit(
    now: Instant,
    history: &mut History,
    policy: RestartPolicy,
    max_retries: u32,
    exit: Exit,
) -> Decision {
    match policy {
        RestartPolicy::No => Decision::Stay,
        RestartPolicy::OnFailure if exit.is_success() => Decision::Stay,
        RestartPolicy::OnFailure | RestartPolicy::Always => history.restart(now, max_retries),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn base() -> Instant {
        // Any instant will do: only differences count.
        std::sync::LazyLock::force(&BASE).to_owned()
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "an instant can't be made otherwise; only differences count"
    )]
    static BASE: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);

    /// SPEC RUN-4, AUTO-4.
    #[test]
    fn policies_tell_good_exits_from_bad_ones() {
        let on = |policy, exit| on_exit(base(), &mut History::default(), policy, 10, exit);
        assert_eq!(on(RestartPolicy::OnFailure, Exit::Code(0)), Decision::Stay);
        assert!(matches!(on(RestartPolicy::OnFailure, Exit::Code(1)), Decision::Restart { .. }));
        assert!(matches!(on(RestartPolicy::OnFailure, Exit::Signal(9)), Decision::Restart { .. }));
        assert!(matches!(on(RestartPolicy::Always, Exit::Code(0)), Decision::Restart { .. }));
        assert_eq!(on(RestartPolicy::No, Exit::Code(1)), Decision::Stay);
    }

    proptest! {
        #[test]
        fn never_more_than_the_limit_within_any_window(gaps in proptest::collection::vec(0u64..120, 1..80), limit in 0u32..12) {
            let (mut history, mut now, mut restarts) = (History::default(), base(), Vec::new());
            for gap in gaps {
                now += Duration::from_secs(gap);
                if let Decision::Restart { after } = history.restart(now, limit) {
                    prop_assert!((FIRST_WAIT..=MAX_WAIT).contains(&after));
                    restarts.push(now);
                }
                let recent = restarts.iter().filter(|at| now - **at < WINDOW).count();
                prop_assert!(recent as u32 <= limit);
            }
        }
    }
}
