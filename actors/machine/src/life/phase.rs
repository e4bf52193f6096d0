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
    /// Waits until nothing is in flight, at most until then.
    Draining { until: Instant, signal: i32, timeout: Duration },
    /// The first signal was sent.
    Signalled { until: Instant },
    /// SIGTERM was sent.
    Terminated { until: Instant },
    /// SIGKILL was sent to all of it.
    Killed,
}
