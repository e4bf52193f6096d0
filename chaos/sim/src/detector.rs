//! The failure detector of chitchat: a node is dead once nothing was heard of it for
//! [`THRESHOLD`] times the mean time between heartbeats.
//!
//! chitchat keeps the last 1,000 intervals; here only their number and sum are kept, and of a full
//! window each new interval replaces an average one.

use crate::agenda::{Micros, SECOND};

/// chitchat's `phi_threshold`.
pub const THRESHOLD: f64 = 8.0;
/// chitchat's `sampling_window_size`.
const WINDOW: f64 = 1_000.0;
/// Longer intervals do not count: chitchat's `max_interval`.
const LONGEST: Micros = 10 * SECOND;
/// The intervals that the prior is worth.
const PRIOR_WEIGHT: f64 = 5.0;

/// What is known of one node's heartbeats.
#[derive(Debug, Clone, Copy, Default)]
pub struct Heartbeats {
    count: f64,
    /// Microseconds.
    sum: f64,
    last: Option<Micros>,
    live: bool,
}

impl Heartbeats {
    /// A greater heartbeat than before was heard of.
    pub fn report(&mut self, now: Micros) {
        if let Some(last) = self.last.replace(now)
            && now - last <= LONGEST
        {
            if self.count >= WINDOW {
                self.sum -= self.sum / self.count;
                self.count -= 1.0;
            }
            self.sum += (now - last) as f64;
            self.count += 1.0;
        }
    }

    /// Judges the node; `prior` is the mean that is assumed before anything was heard, in
    /// microseconds. The intervals of one that is judged dead are forgotten.
    pub fn judge(&mut self, now: Micros, prior: Micros) -> bool {
        self.live = self.phi(now, prior).is_some_and(|phi| phi <= THRESHOLD);
        if !self.live {
            (self.count, self.sum) = (0.0, 0.0);
        }
        self.live
    }

    /// The last judgement.
    pub fn live(&self) -> bool {
        self.live
    }

    fn phi(&self, now: Micros, prior: Micros) -> Option<f64> {
        let last = self.last.filter(|_| self.count > 0.0)?;
        let mean = (self.sum + PRIOR_WEIGHT * prior as f64) / (self.count + PRIOR_WEIGHT);
        Some((now - last) as f64 / mean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_lives_from_its_second_heartbeat_until_eight_intervals_of_silence() {
        let prior = SECOND / 2;
        let mut beats = Heartbeats::default();
        assert!(!beats.judge(0, prior));
        beats.report(0);
        assert!(!beats.judge(1, prior), "one may be an old one");
        for beat in 1..=100 {
            beats.report(beat * SECOND / 2);
        }
        let last = 50 * SECOND;
        assert!(beats.judge(last + 4 * SECOND, prior));
        assert!(!beats.judge(last + 4 * SECOND + 1, prior));
        assert!(!beats.judge(last + 5 * SECOND, prior), "what it was like before is forgotten");
        beats.report(last + 6 * SECOND);
        assert!(beats.judge(last + 6 * SECOND, prior));
    }
}
