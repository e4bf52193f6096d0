//! What others are told of a Machine's health, as a pure state: a Machine that flaps must not flood the
//! cluster.
//!
//! What: the node's own proxy goes by what the checks say at any moment. Others are told of a change
//! when [`HOLD`] has passed since the last one they were told of; of a recovery only after twice the time
//! of the recovery before, up to [`MAX_HOLD`], unless it had stayed well for [`CALM`] since. So whoever
//! flaps counts as ill, and is told of at most four times a minute in the long run.
//!
//! An edge that still takes an ill Machine for a healthy one is refused by its node and tries another.

use std::time::{Duration, Instant};

/// The least time between two changes that others are told of.
pub(crate) const HOLD: Duration = Duration::from_secs(1);
/// The longest time that a recovery is kept back.
pub(crate) const MAX_HOLD: Duration = Duration::from_secs(30);
/// So long must a Machine have been well for its former recoveries to be forgotten.
pub(crate) const CALM: Duration = Duration::from_secs(60);

/// What is said of one run.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    said: bool,
    /// When that was said last; `None` for what it began with.
    since: Option<Instant>,
    /// Times that it was said to have become well again, the first time apart.
    recoveries: u32,
}

impl Health {
    /// A run that begins like this.
    pub(crate) fn new(healthy: bool) -> Self {
        Self { said: healthy, since: None, recoveries: 0 }
    }

    /// What others are told.
    pub(crate) fn said(&self) -> bool {
        self.said
    }

    /// Takes what is so; whether others are told of it now.
    pub(crate) fn observe(&mut self, now: Instant, healthy: bool) -> bool {
        if healthy == self.said || self.due().is_some_and(|at| now < at) {
            return false;
        }
        if healthy && self.since.is_some() {
            self.recoveries += 1;
        }
        if !healthy && self.since.is_some_and(|since| now.saturating_duration_since(since) >= CALM) {
            self.recoveries = 0;
        }
        (self.said, self.since) = (healthy, Some(now));
        true
    }

    /// When the next change may be told, if it may not be at once.
    fn due(&self) -> Option<Instant> {
        let hold = match self.said {
            true => HOLD,
            false => HOLD.saturating_mul(1 << self.recoveries.min(16)).min(MAX_HOLD),
        };
        self.since.map(|since| since + hold)
    }

    /// When to look again, while what is said is not what is so.
    pub(crate) fn look_at(&self, healthy: bool) -> Option<Instant> {
        if healthy == self.said { None } else { self.due() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn now() -> Instant {
        skein_cluster::clock::now()
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_start_an_illness_and_a_recovery_are_told_at_once() {
        let (start, mut health) = (now(), Health::new(false));
        assert!(health.observe(start, true), "its first moment");
        assert!(health.observe(start + s(5), false));
        assert!(health.observe(start + s(9), true));
        assert!(health.said());
    }

    #[test]
    fn whoever_flaps_every_second_is_told_of_ever_less_often() {
        let (start, mut health) = (now(), Health::new(false));
        health.observe(start, true);
        let mut told = Vec::new();
        for second in 1..=3600 {
            if health.observe(start + s(second), second % 2 == 0) {
                told.push(second);
            }
        }
        assert_eq!(told[..8], [1, 2, 3, 6, 7, 12, 13, 22], "ill within a second, well after ever longer");
        let in_the_last_minutes = told.iter().filter(|second| **second > 3000).count();
        assert!(in_the_last_minutes <= 40, "four a minute: {in_the_last_minutes}");
        // After a minute without a failure that is forgotten.
        let well = start + s(3600) + MAX_HOLD;
        health.observe(well, true);
        assert!(health.observe(well + CALM, false));
        assert!(health.observe(well + CALM + HOLD, true));
    }

    proptest! {
        #[test]
        fn what_stays_so_is_told_in_the_end_and_never_two_changes_within_the_hold(
            flips in proptest::collection::vec((1u64..5000, any::<bool>()), 1..200),
        ) {
            let (mut at, mut health, mut last) = (now(), Health::new(false), None::<Instant>);
            for (ms, healthy) in flips {
                at += Duration::from_millis(ms);
                if health.observe(at, healthy) {
                    prop_assert!(last.is_none_or(|last| at - last >= HOLD));
                    last = Some(at);
                }
                if let Some(look) = health.look_at(healthy) {
                    let mut patient = health.clone();
                    prop_assert!(look <= at + MAX_HOLD);
                    prop_assert!(patient.observe(look.max(at), healthy), "nothing else keeps it back");
                }
            }
        }
    }
}
