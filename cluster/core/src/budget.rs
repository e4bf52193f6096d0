//! The retry budget: retries, and replays whose target failed, are at most a fifth of an app's
//! requests (SPEC LB-9).
//!
//! A second of time is a bucket; the last ten count. Atomics, so that a request takes no lock: at the
//! turn of a second a few may be counted into either.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::planted::{self, Bug};

/// Over how many seconds it is kept.
pub const WINDOW: usize = 10;
/// So many retries are allowed in any window, however few the requests.
pub const ALWAYS: u32 = 10;
/// One retry is allowed for so many requests.
pub const REQUESTS_PER_RETRY: u32 = 5;

/// What one app did in the last seconds at one edge.
#[derive(Debug, Default)]
pub struct RetryBudget([Bucket; WINDOW]);

#[derive(Debug, Default)]
struct Bucket {
    /// The second it counts, plus one; 0 is none.
    second: AtomicU64,
    requests: AtomicU32,
    retries: AtomicU32,
}

impl RetryBudget {
    /// A request came, at that time of the edge's monotonic clock.
    pub fn request(&self, now_ms: u64) {
        self.bucket(now_ms).requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a retry out of the budget; whether there was one left.
    pub fn retry(&self, now_ms: u64) -> bool {
        let current = self.bucket(now_ms);
        let oldest = (now_ms / 1_000 + 2).saturating_sub(WINDOW as u64);
        let (mut requests, mut retries) = (0u32, 0u32);
        for bucket in self.0.iter().filter(|bucket| bucket.second.load(Ordering::Relaxed) >= oldest) {
            requests = requests.saturating_add(bucket.requests.load(Ordering::Relaxed));
            retries = retries.saturating_add(bucket.retries.load(Ordering::Relaxed));
        }
        let allowed = retries < ALWAYS.max(requests / REQUESTS_PER_RETRY);
        let allowed = allowed || planted::is(Bug::Budget);
        if allowed {
            current.retries.fetch_add(1, Ordering::Relaxed);
        }
        allowed
    }

    fn bucket(&self, now_ms: u64) -> &Bucket {
        let second = now_ms / 1_000 + 1;
        let bucket = &self.0[(second % WINDOW as u64) as usize];
        let stands = bucket.second.load(Ordering::Relaxed);
        if stands != second
            && bucket.second.compare_exchange(stands, second, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            bucket.requests.store(0, Ordering::Relaxed);
            bucket.retries.store(0, Ordering::Relaxed);
        }
        bucket
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spend(budget: &RetryBudget, now_ms: u64) -> u32 {
        (0..10_000).take_while(|_| budget.retry(now_ms)).count() as u32
    }

    #[test]
    fn lb_9_ten_are_always_allowed_and_a_fifth_of_many_requests() {
        let quiet = RetryBudget::default();
        assert_eq!(spend(&quiet, 0), ALWAYS);
        assert!(!quiet.retry(9_999), "the window is ten seconds");
        assert_eq!(spend(&quiet, 10_000), ALWAYS);
        let busy = RetryBudget::default();
        for n in 0..1_000 {
            busy.request(n);
        }
        assert_eq!(spend(&busy, 1_500), 200);
        busy.request(1_600);
        assert!(!busy.retry(1_700));
    }

    #[test]
    fn what_is_older_than_the_window_counts_no_more() {
        let budget = RetryBudget::default();
        for _ in 0..1_000 {
            budget.request(500);
        }
        assert_eq!(spend(&budget, 9_500), 200, "still in it");
        let budget = RetryBudget::default();
        for _ in 0..1_000 {
            budget.request(500);
        }
        assert_eq!(spend(&budget, 10_500), ALWAYS);
        assert_eq!(spend(&budget, 3_600_000), ALWAYS, "also after long silence");
    }
}
