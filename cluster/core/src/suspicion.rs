//! How far a peer is and whether it is suspect: what transport knows, as decisions see it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::id::NodeNumber;

/// A peer in use that is silent for longer than this plus its round trip is suspect (DESIGN
/// section 3, SPEC CLU-4).
pub const SILENCE: Duration = Duration::from_millis(750);

/// Whether a peer is suspect: something is owed by it since `waiting` (the oldest unanswered thing
/// sent to it), it was last heard `heard` ago, and a round trip takes `rtt`.
///
/// A peer that owes nothing is never suspect: an idle link says nothing.
pub fn is_suspect(waiting: Option<Duration>, heard: Duration, rtt: Duration) -> bool {
    let bound = SILENCE + rtt;
    waiting.is_some_and(|waiting| waiting > bound) && heard > bound
}

/// What decisions ask of the transport. Implementations answer from atomics, without a lock.
pub trait Proximity {
    /// The measured round trip to a node, zero for the node itself; a guess from the regions'
    /// distance where nothing was measured yet.
    fn rtt(&self, node: NodeNumber) -> Duration;
    /// Whether a node is suspect now.
    fn suspect(&self, node: NodeNumber) -> bool;
}

/// The round trip is the least of this many samples: a busy machine delays some, never all.
const SAMPLES: usize = 4;
/// A peer that is used again within this time, in microseconds, is in use all along.
const IN_USE_US: u64 = 200_000;

/// One peer's signs of life, written by transport and read by decisions without a lock.
// Times are microseconds since `epoch`, plus one; 0 is never.
#[derive(Debug)]
pub struct Signs {
    epoch: Instant,
    heard: AtomicU64,
    /// Since when something is owed by the peer: the oldest thing sent since it was last heard.
    owed: AtomicU64,
    used: AtomicU64,
    /// Microseconds; 0 before the first measurement.
    rtt: AtomicU64,
    guess: AtomicU64,
    samples: [AtomicU64; SAMPLES],
    next_sample: AtomicUsize,
}

impl Signs {
    /// Of a peer from which nothing came yet. No later time may be before `epoch`; `guess` is its
    /// round trip until one is measured.
    pub fn new(epoch: Instant, guess: Duration) -> Self {
        Self {
            epoch,
            heard: AtomicU64::new(0),
            owed: AtomicU64::new(0),
            used: AtomicU64::new(0),
            rtt: AtomicU64::new(0),
            guess: AtomicU64::new(guess.as_micros() as u64),
            samples: std::array::from_fn(|_| AtomicU64::new(u64::MAX)),
            next_sample: AtomicUsize::new(0),
        }
    }

    fn stamp(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_micros() as u64 + 1
    }

    fn since(&self, stamp: u64, now: Instant) -> Option<Duration> {
        let stamp = stamp.checked_sub(1)?;
        Some(now.saturating_duration_since(self.epoch + Duration::from_micros(stamp)))
    }

    /// Replaces the guess of its round trip.
    pub fn guess(&self, rtt: Duration) {
        self.guess.store(rtt.as_micros() as u64, Ordering::Relaxed);
    }

    /// Something authentic came from the peer.
    pub fn heard(&self, now: Instant) {
        self.heard.store(self.stamp(now), Ordering::Relaxed);
        self.owed.store(0, Ordering::Relaxed);
    }

    /// Something was sent that a live peer answers within a round trip.
    pub fn owes(&self, now: Instant) {
        let stamp = self.stamp(now);
        // Something older may be owed already; then that counts.
        let _older = self.owed.compare_exchange(0, stamp, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Somebody uses the peer; whether nobody did for a while.
    pub fn uses(&self, now: Instant) -> bool {
        let stamp = self.stamp(now);
        let before = self.used.swap(stamp, Ordering::Relaxed);
        stamp.saturating_sub(before) > IN_USE_US
    }

    /// How long ago it was used; `None` when it never was.
    pub fn used_ago(&self, now: Instant) -> Option<Duration> {
        self.since(self.used.load(Ordering::Relaxed), now)
    }

    /// How long ago it was heard; `None` when it never was.
    pub fn heard_ago(&self, now: Instant) -> Option<Duration> {
        self.since(self.heard.load(Ordering::Relaxed), now)
    }

    /// A round trip took this long.
    pub fn measured(&self, rtt: Duration) {
        let slot = self.next_sample.fetch_add(1, Ordering::Relaxed) % SAMPLES;
        self.samples[slot].store((rtt.as_micros() as u64).max(1), Ordering::Relaxed);
        let least = self.samples.iter().map(|sample| sample.load(Ordering::Relaxed)).min();
        self.rtt.store(least.unwrap_or(0), Ordering::Relaxed);
    }

    /// Whether a round trip was measured.
    pub fn is_measured(&self) -> bool {
        self.rtt.load(Ordering::Relaxed) > 0
    }

    /// The round trip: the least of the last measurements, else the guess.
    pub fn rtt(&self) -> Duration {
        let measured = self.rtt.load(Ordering::Relaxed);
        let micros = if measured == 0 { self.guess.load(Ordering::Relaxed) } else { measured };
        Duration::from_micros(micros)
    }

    /// Whether it is suspect now; see [`is_suspect`].
    pub fn is_suspect(&self, now: Instant) -> bool {
        let owed = self.since(self.owed.load(Ordering::Relaxed), now);
        is_suspect(owed, self.heard_ago(now).unwrap_or(Duration::MAX), self.rtt())
    }

    /// How long until it could be suspect at the earliest; `None` when it is.
    pub fn suspect_in(&self, now: Instant) -> Option<Duration> {
        if self.is_suspect(now) {
            return None;
        }
        let bound = SILENCE + self.rtt() + Duration::from_millis(1);
        let owed = self.since(self.owed.load(Ordering::Relaxed), now).unwrap_or_default();
        let heard = self.heard_ago(now).unwrap_or(bound);
        Some(bound.saturating_sub(owed.min(heard)).max(Duration::from_millis(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_silent_peer_that_owes_an_answer_is_suspect() {
        let (rtt, long) = (Duration::from_millis(80), Duration::from_secs(2));
        assert!(is_suspect(Some(long), long, rtt));
        assert!(!is_suspect(None, long, rtt), "an idle link says nothing");
        assert!(!is_suspect(Some(long), Duration::from_millis(10), rtt), "it was just heard");
        assert!(!is_suspect(Some(SILENCE + rtt), SILENCE + rtt, rtt), "the bound itself is allowed");
    }

    const MS: Duration = Duration::from_millis(1);

    #[expect(clippy::disallowed_methods, reason = "an origin of time; only distances from it count")]
    fn signs() -> (Signs, Instant) {
        let start = Instant::now();
        (Signs::new(start, 20 * MS), start)
    }

    #[test]
    fn a_peer_that_leaves_something_unanswered_becomes_suspect_and_is_cleared_when_heard() {
        let (signs, start) = signs();
        assert!(!signs.is_suspect(start + 5_000 * MS), "an idle link says nothing");
        signs.owes(start + 1_000 * MS);
        signs.owes(start + 1_500 * MS);
        assert!(!signs.is_suspect(start + 1_770 * MS));
        assert_eq!(signs.suspect_in(start + 1_770 * MS), Some(MS));
        assert!(signs.is_suspect(start + 1_771 * MS), "750 ms and a round trip after the oldest");
        assert_eq!(signs.suspect_in(start + 1_771 * MS), None);
        signs.heard(start + 1_800 * MS);
        assert!(!signs.is_suspect(start + 9_000 * MS));
    }

    #[test]
    fn a_measured_round_trip_replaces_the_guess_and_one_slow_sample_does_not_count() {
        let (signs, _) = signs();
        assert_eq!(signs.rtt(), 20 * MS);
        signs.measured(80 * MS);
        signs.measured(300 * MS);
        assert_eq!(signs.rtt(), 80 * MS);
        for _ in 0..SAMPLES {
            signs.measured(120 * MS);
        }
        assert_eq!(signs.rtt(), 120 * MS, "a change of the path shows after {SAMPLES} samples");
    }
}
