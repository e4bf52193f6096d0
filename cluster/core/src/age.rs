//! The age of facts: how long ago their owner last confirmed them (SPEC LB-8).
//!
//! A node's heartbeat, or a change of it, confirms all that it said before; a record that never
//! changes is as fresh as the node's last heartbeat. The cell survives snapshots, so a heartbeat
//! makes no new one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::planted::{self, Bug};

/// Facts older than this are used only if nothing fresher exists (SPEC LB-8).
pub const OLD: Duration = Duration::from_secs(5);

/// When a node's facts were last confirmed, on this node's monotonic clock.
#[derive(Debug, Default)]
pub struct Confirmed {
    /// Milliseconds; 0 is never.
    at_ms: AtomicU64,
}

impl Confirmed {
    /// Confirmed at `now_ms`; an earlier time than the last changes nothing.
    pub fn at(now_ms: u64) -> Self {
        Self { at_ms: AtomicU64::new(now_ms) }
    }

    /// The owner spoke: all that is known of it holds now.
    pub fn confirm(&self, now_ms: u64) {
        if planted::is(Bug::Age) {
            return;
        }
        self.at_ms.fetch_max(now_ms, Ordering::Relaxed);
    }

    /// How long ago; the longest time when it never was.
    pub fn age(&self, now_ms: u64) -> Duration {
        match self.at_ms.load(Ordering::Relaxed) {
            0 => Duration::MAX,
            at => Duration::from_millis(now_ms.saturating_sub(at)),
        }
    }

    /// Whether it is older than [`OLD`].
    pub fn is_old(&self, now_ms: u64) -> bool {
        self.age(now_ms) > OLD
    }
}

/// Two cells are equal when they say the same.
impl PartialEq for Confirmed {
    fn eq(&self, other: &Self) -> bool {
        self.at_ms.load(Ordering::Relaxed) == other.at_ms.load(Ordering::Relaxed)
    }
}
impl Eq for Confirmed {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lb_8_an_age_counts_from_the_last_word_of_the_owner_and_never_goes_back() {
        let confirmed = Confirmed::default();
        assert!(confirmed.is_old(1) && confirmed.age(1) == Duration::MAX, "never confirmed");
        confirmed.confirm(1_000);
        assert_eq!(confirmed.age(4_000), Duration::from_secs(3));
        confirmed.confirm(500);
        assert_eq!(confirmed.age(4_000), Duration::from_secs(3), "an older word changes nothing");
        assert!(!confirmed.is_old(6_000) && confirmed.is_old(6_001));
        assert_eq!(confirmed.age(900), Duration::ZERO);
    }
}
