//! How long a client may keep a connection without a request (SPEC HTTP-6, HTTP-9).
//!
//! A timer per request would be set and taken back some hundred thousand times before it fires once.
//! Here a request only counts; a look every tenth of the shortest limit sees what moved since the
//! last one. So a limit is kept to a tenth of the shortest.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Looks per shortest limit.
const LOOKS: u32 = 10;

/// How long each phase of a connection may last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Nothing of a request has come.
    pub(crate) idle: Duration,
    /// A head has begun, or none was ever there.
    pub(crate) head: Duration,
}

/// What a connection does, as its requests and bytes tell.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    begun: AtomicU32,
    ended: AtomicU32,
    /// Whether bytes came since the last request began.
    heard: AtomicBool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Requests are served.
    Busy,
    /// Part of a head is there.
    Head,
    Idle,
}

impl Watch {
    /// Bytes came.
    pub(crate) fn hear(&self) {
        if !self.heard.load(Ordering::Relaxed) {
            self.heard.store(true, Ordering::Relaxed);
        }
    }

    /// A request's head is complete.
    pub(crate) fn begin(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.heard.store(false, Ordering::Relaxed);
    }

    /// Its response is complete, or given up.
    pub(crate) fn end(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether a request is served.
    pub(crate) fn is_busy(&self) -> bool {
        self.look().1 == Phase::Busy
    }

    fn look(&self) -> (u32, Phase) {
        let (begun, ended) = (self.begun.load(Ordering::Relaxed), self.ended.load(Ordering::Relaxed));
        let phase = if begun != ended {
            Phase::Busy
        } else if begun == 0 || self.heard.load(Ordering::Relaxed) {
            Phase::Head
        } else {
            Phase::Idle
        };
        (begun, phase)
    }

    /// Waits until the connection was without a request for too long.
    pub(crate) async fn overdue(&self, limits: Limits) {
        let tick = limits.idle.min(limits.head) / LOOKS;
        let (mut seen, mut since) = (self.look(), Instant::now());
        loop {
            let limit = match seen.1 {
                Phase::Busy => None,
                Phase::Head => Some(since + limits.head),
                Phase::Idle => Some(since + limits.idle),
            };
            let next = Instant::now() + tick;
            sleep_until(limit.map_or(next, |limit| limit.min(next))).await;
            let look = self.look();
            if look != seen {
                (seen, since) = (look, Instant::now());
            } else if limit.is_some_and(|limit| limit <= Instant::now()) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { idle: Duration::from_secs(60), head: Duration::from_secs(30) };

    /// Seconds until the connection is overdue.
    async fn overdue(watch: &Watch) -> u64 {
        let begun = Instant::now();
        watch.overdue(LIMITS).await;
        begun.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn http_9_a_head_must_come_in_its_time_and_an_idle_connection_has_another() {
        let watch = Watch::default();
        assert_eq!(overdue(&watch).await, 30, "nothing ever came");
        watch.begin();
        watch.end();
        assert_eq!(overdue(&watch).await, 60, "idle");
        watch.hear();
        assert_eq!(overdue(&watch).await, 30, "a head that does not end");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_with_a_request_is_never_overdue_and_each_request_begins_the_time_anew() {
        let watch = Watch::default();
        watch.begin();
        let served = async {
            tokio::time::sleep(Duration::from_secs(1000)).await;
            watch.end();
            tokio::time::sleep(Duration::from_secs(50)).await;
            watch.begin();
            watch.end();
        };
        let (overdue, ()) = tokio::join!(overdue(&watch), served);
        assert!((1110..=1113).contains(&overdue), "{overdue}: to a tenth of the shortest limit");
    }
}
