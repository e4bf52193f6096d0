//! Where a Machine stands between states.

use std::time::{Duration, Instant};

/// What follows once the run has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    Stop,
    Start,
    Destroy,
}

/// Where the stop sequence stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// No run.
    Rest,
    /// No run; the next begins at that time.
    Backoff(Instant),
    /// A run that nobody stops.
    Live,
    /// Waits until nothing is in flight, at most until then, to be suspended.
    Quieting { until: Instant },
    /// Its suspension was ordered; `wake` when it is to go on right after.
    Freezing { wake: bool },
    /// Suspended.
    Frozen,
    /// It was ordered to go on.
    Thawing,
    /// Waits until nothing is in flight, at most until then.
    Draining { until: Instant, signal: i32, timeout: Duration },
    /// The first signal was sent.
    Signalled { until: Instant },
    /// SIGTERM was sent.
    Terminated { until: Instant },
    /// SIGKILL was sent to all of it.
    Killed,
}

impl Phase {
    /// Whether the run is being brought to its end.
    pub(super) fn is_ending(self) -> bool {
        match self {
            Self::Draining { .. } | Self::Signalled { .. } | Self::Terminated { .. } | Self::Killed => true,
            Self::Rest
            | Self::Backoff(_)
            | Self::Live
            | Self::Quieting { .. }
            | Self::Freezing { .. }
            | Self::Frozen
            | Self::Thawing => false,
        }
    }
}
