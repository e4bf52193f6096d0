//! Outlier ejection: a Machine that can't be connected to, or answers nobody, is avoided for a while
//! (SPEC LB-7).
//!
//! Each edge has its own belief per Machine, in atomics: no lock, no message. It only orders: a Machine
//! that is out is used when no other can take the request, so never are all of them out.
//!
//! *Connect*: one failure takes it out for a second, each further one for twice as long, up to
//! [`LONGEST`]. *Stall*: at least two requests wait for it, and for [`STALL`] and ten times its usual
//! answer it answered none; a Machine whose requests take long by nature has a long usual time. One that
//! answered fewer than [`KNOWN`] so far has none yet: it is only *silent*, and others of its region are
//! preferred; held requests alone send nobody out of a region (SPEC LB-3). An answer, or its next start,
//! brings it back.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// How long the first failure to connect takes a Machine out.
pub const FIRST: Duration = Duration::from_secs(1);
/// The longest that failures to connect take a Machine out.
pub const LONGEST: Duration = Duration::from_secs(30);
/// A Machine that answers nobody for so long, at the least, stalls.
pub const STALL: Duration = Duration::from_millis(750);
/// How long a stalled Machine is left alone before somebody tries it again.
pub const REST: Duration = Duration::from_secs(5);
/// Requests that must wait for a Machine before its silence says something.
pub const WAITING: u32 = 2;
/// Answers of a Machine before its usual time is known.
pub const KNOWN: u32 = 16;
/// How many times its usual answer a Machine may take.
const PATIENCE: u64 = 10;

/// What one edge has seen of one Machine. Times are milliseconds of the edge's monotonic clock; 0 is never.
#[derive(Debug, Default)]
pub struct Outlier {
    /// Requests that wait for an answer.
    waiting: AtomicU32,
    /// Since when it owes one: its last answer, or the first request since nobody waited.
    since_ms: AtomicU64,
    /// Its usual time to answer, in milliseconds: a mean in which the last answers weigh most.
    usual_ms: AtomicU64,
    /// Answers that it is made of, up to [`KNOWN`].
    answers: AtomicU32,
    out_until_ms: AtomicU64,
    /// Failures to connect in a row.
    failures: AtomicU32,
}

impl Outlier {
    /// A request goes to it.
    pub fn asked(&self, now_ms: u64) {
        if self.waiting.fetch_add(1, Ordering::AcqRel) == 0 {
            self.since_ms.store(now_ms, Ordering::Relaxed);
        }
    }

    /// It answered a request after `took_ms`.
    pub fn answered(&self, now_ms: u64, took_ms: u64) {
        self.gone();
        self.since_ms.store(now_ms, Ordering::Relaxed);
        let usual = self.usual_ms.load(Ordering::Relaxed);
        // An eighth of the difference; two answers at once may lose one of them.
        let next = (usual * 7 + took_ms).div_ceil(8);
        if next != usual {
            self.usual_ms.store(next, Ordering::Relaxed);
        }
        let answers = self.answers.load(Ordering::Relaxed);
        if answers < KNOWN {
            self.answers.store(answers + 1, Ordering::Relaxed);
        }
        if self.out_until_ms.load(Ordering::Relaxed) != 0 {
            self.pardon();
        }
    }

    /// A request that it did not answer is over.
    pub fn gone(&self) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
    }

    /// No connection to it could be made.
    pub fn unconnected(&self, now_ms: u64) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed);
        let out = FIRST.saturating_mul(1u32.checked_shl(failures).unwrap_or(u32::MAX)).min(LONGEST);
        self.out_until_ms.fetch_max(now_ms + out.as_millis() as u64, Ordering::Relaxed);
    }

    /// It starts anew: nothing speaks against it.
    pub fn pardon(&self) {
        self.failures.store(0, Ordering::Relaxed);
        self.out_until_ms.store(0, Ordering::Relaxed);
    }

    /// Whether it is avoided now.
    pub fn is_out(&self, now_ms: u64) -> bool {
        if self.out_until_ms.load(Ordering::Relaxed) > now_ms {
            return true;
        }
        let stalls = self.answers.load(Ordering::Relaxed) >= KNOWN && self.is_silent(now_ms);
        if stalls {
            // Also once those who wait have given up: somebody has to be the next to try.
            self.out_until_ms.fetch_max(now_ms + REST.as_millis() as u64, Ordering::Relaxed);
        }
        stalls
    }

    /// Whether it owes answers for longer than is usual, as far as that is known.
    pub fn is_silent(&self, now_ms: u64) -> bool {
        if self.waiting.load(Ordering::Relaxed) < WAITING {
            return false;
        }
        let silent = now_ms.saturating_sub(self.since_ms.load(Ordering::Relaxed));
        let usual = self.usual_ms.load(Ordering::Relaxed);
        silent > (STALL.as_millis() as u64).max(usual * PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lb_7_a_machine_that_takes_no_connection_is_out_for_ever_longer_until_it_answers() {
        let machine = Outlier::default();
        assert!(!machine.is_out(1));
        machine.unconnected(1_000);
        assert!(machine.is_out(1_999) && !machine.is_out(2_000));
        machine.unconnected(2_000);
        assert!(machine.is_out(3_999) && !machine.is_out(4_000));
        for _ in 0..40 {
            machine.unconnected(5_000);
        }
        assert!(machine.is_out(34_999) && !machine.is_out(35_000), "never longer than {LONGEST:?}");
        machine.asked(35_000);
        machine.answered(35_001, 1);
        machine.unconnected(36_000);
        assert!(machine.is_out(36_999) && !machine.is_out(37_000), "it began anew");
        machine.pardon();
        assert!(!machine.is_out(36_500));
    }

    #[test]
    fn lb_7_a_machine_that_answers_nobody_is_out_within_a_second_and_tried_again_later() {
        let machine = Outlier::default();
        for now in 0..u64::from(KNOWN) {
            machine.asked(now);
            machine.answered(now, 1);
        }
        machine.asked(1_000);
        assert!(!machine.is_out(9_000), "one that waits may wait for something long");
        machine.asked(1_100);
        assert!(!machine.is_out(1_750) && machine.is_out(1_751));
        machine.gone();
        machine.gone();
        assert!(machine.is_out(6_000) && !machine.is_out(6_751), "they gave up; later one tries it");
        machine.asked(7_000);
        machine.asked(7_000);
        machine.answered(7_010, 10);
        assert!(!machine.is_out(7_700) && !machine.is_out(20_000), "one waits");
    }

    #[test]
    fn lb_3_held_requests_alone_send_nobody_away_from_a_machine_whose_usual_time_is_not_known() {
        let machine = Outlier::default();
        for now in 1..u64::from(KNOWN) {
            machine.asked(now);
            machine.answered(now, 1);
        }
        machine.asked(1_000);
        machine.asked(1_000);
        machine.asked(1_000);
        assert!(!machine.is_out(60_000) && machine.is_silent(60_000), "it may be one that takes long");
        machine.answered(60_000, 59_000);
        assert!(!machine.is_out(60_100) && !machine.is_silent(60_100));
    }

    #[test]
    fn a_machine_whose_answers_take_long_by_nature_is_not_out() {
        let machine = Outlier::default();
        for now in (0..20).map(|n| n * 10_000) {
            machine.asked(now);
            machine.answered(now + 5_000, 5_000);
        }
        machine.asked(300_000);
        machine.asked(300_000);
        assert!(!machine.is_out(330_000), "its usual answer takes 5 s");
        assert!(machine.is_out(360_000));
    }
}
