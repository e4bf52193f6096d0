//! Load: the worker's slots, the edge's estimate, and the class that gossip carries.
//!
//! The counters are atomics in an `Arc` that survives snapshot swaps; a request takes a [`Permit`]
//! and its drop gives the slot back, also when the request's task is cancelled.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::id::NodeNumber;
use crate::outlier::Outlier;
use crate::planted::{self, Bug};
use crate::turns::Turns;

/// Soft and hard limit of a service, with the defaults of SPEC SVC-5 applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Beyond it other Machines are preferred; at least 1.
    pub soft: u32,
    /// Never more in flight; `None` is no limit.
    pub hard: Option<u32>,
}

impl Limits {
    /// The limits of a configuration: soft is min(20, hard) by default, and never above hard.
    pub fn new(soft: Option<u32>, hard: Option<u32>) -> Self {
        let soft = soft.unwrap_or(20).min(hard.unwrap_or(u32::MAX));
        Self { soft, hard }
    }
}

/// How loaded a Machine is, roughly: what gossip carries (DESIGN section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadClass {
    /// Below the soft limit.
    BelowSoft,
    /// At or above the soft limit, below the hard one.
    SoftToHard,
    /// At the hard limit.
    AtHard,
}

impl LoadClass {
    /// The class after the load became `load`; falling back to a lower class needs the load to drop
    /// a tenth of the limit (at least 1) below it, so that a load that sways around a limit does
    /// not gossip at every request.
    pub fn next(self, load: u32, limits: Limits) -> Self {
        let raw = |load: u32| match limits.hard {
            Some(hard) if load >= hard => Self::AtHard,
            _ if load >= limits.soft => Self::SoftToHard,
            _ => Self::BelowSoft,
        };
        let now = raw(load);
        if now >= self {
            return now;
        }
        let limit = match self {
            Self::AtHard => limits.hard.unwrap_or(u32::MAX),
            Self::SoftToHard | Self::BelowSoft => limits.soft,
        };
        let margin = (limit / 10).max(1);
        if load.saturating_add(margin) <= limit { now } else { self }
    }
}

/// The worker's own count of what is in flight at one service of one Machine, and of all that it took.
///
/// While nobody waits for a slot a request takes one by one atomic operation. Once an edge was refused
/// there are [`Turns`], behind a mutex: a service at its limit is not the hot path.
#[derive(Default)]
pub struct Slots {
    /// What is in flight in the low half, all that was ever taken in the high one: one operation counts both.
    counts: AtomicU64,
    /// Whether `turns` holds anybody.
    awaited: AtomicBool,
    turns: Mutex<Turns>,
    on_free: OnceLock<OnFree>,
}

type OnFree = Box<dyn Fn() + Send + Sync>;

impl std::fmt::Debug for Slots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slots").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

/// One more in each half.
const TAKEN: u64 = (1 << 32) + 1;

/// One slot, given back when dropped.
#[derive(Debug)]
pub struct Permit(Arc<Slots>);

impl Slots {
    /// What is in flight now.
    pub fn in_flight(&self) -> u32 {
        self.counts.load(Ordering::Relaxed) as u32
    }

    /// How many it took since it began, modulo 2³²: a number that did not change means that none came.
    pub fn taken(&self) -> u32 {
        (self.counts.load(Ordering::Relaxed) >> 32) as u32
    }

    /// Takes a slot unless `hard` are taken: one compare-and-swap, so two requests never share the
    /// last slot.
    pub fn try_acquire(self: &Arc<Self>, hard: Option<u32>) -> Option<Permit> {
        let hard = hard.unwrap_or(u32::MAX).saturating_add(u32::from(planted::is(Bug::HardLimit)));
        self.counts
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |counts| {
                ((counts as u32) < hard).then(|| counts.wrapping_add(TAKEN))
            })
            .ok()
            .map(|_| Permit(Arc::clone(self)))
    }

    /// Takes a slot for a request of `edge`, if one is free and not kept for another edge. An edge that
    /// gets none is remembered.
    pub fn take(self: &Arc<Self>, hard: Option<u32>, edge: NodeNumber, now: Instant) -> Option<Permit> {
        let Some(limit) = hard else { return self.try_acquire(None) };
        if !self.awaited.load(Ordering::Acquire)
            && let Some(permit) = self.try_acquire(hard)
        {
            return Some(permit);
        }
        let mut turns = self.turns();
        let free = limit.saturating_sub(self.in_flight());
        let permit = if turns.may_take(edge, free, now) { self.try_acquire(hard) } else { None };
        if permit.is_none() {
            turns.refused(edge, now);
        }
        self.awaited.store(!turns.is_idle(), Ordering::Release);
        permit
    }

    /// Whose turn it is now that there may be free slots: these edges are to be told.
    pub fn offer(&self, hard: u32, now: Instant) -> Vec<NodeNumber> {
        let mut turns = self.turns();
        let told = turns.offer(hard.saturating_sub(self.in_flight()), now);
        self.awaited.store(!turns.is_idle(), Ordering::Release);
        told
    }

    /// An edge has nothing that waits.
    pub fn withdraw(&self, edge: NodeNumber) {
        let mut turns = self.turns();
        turns.withdraw(edge);
        self.awaited.store(!turns.is_idle(), Ordering::Release);
    }

    /// What is called whenever a slot is given back while an edge waits; the first one given stays. It
    /// must not block.
    pub fn on_free(&self, call: impl FnOnce() -> OnFree) {
        self.on_free.get_or_init(call);
    }

    fn turns(&self) -> std::sync::MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// What is in flight at the Machine, this one included.
    pub fn in_flight(&self) -> u32 {
        self.0.in_flight()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.counts.fetch_sub(1, Ordering::AcqRel);
        if self.0.awaited.load(Ordering::Acquire)
            && let Some(call) = self.0.on_free.get()
        {
            call();
        }
    }
}

/// What an edge believes of a Machine's load: its own requests in flight, and the worker's count as
/// the last response told it.
#[derive(Debug, Default)]
pub struct Estimate {
    own: AtomicU32,
    told: AtomicU32,
    /// The edge's own count when the worker told its, so that what this edge sent since is added.
    own_when_told: AtomicU32,
    /// Milliseconds on the edge's monotonic clock; 0 is never.
    told_at_ms: AtomicU64,
    outlier: Outlier,
}

/// How long a count told by the worker stands for the other edges' share, in milliseconds.
pub const TOLD_FOR_MS: u64 = 2_000;

/// One request of this edge at a Machine; dropped when it ends.
#[derive(Debug)]
pub struct InFlight {
    estimate: Arc<Estimate>,
    asked_ms: u64,
    answered: bool,
}

impl Estimate {
    /// Counts one request of this edge until the guard is dropped.
    pub fn enter(self: &Arc<Self>, now_ms: u64) -> InFlight {
        self.own.fetch_add(1, Ordering::AcqRel);
        self.outlier.asked(now_ms);
        InFlight { estimate: Arc::clone(self), asked_ms: now_ms, answered: false }
    }

    /// How the Machine behaves towards this edge.
    pub fn outlier(&self) -> &Outlier {
        &self.outlier
    }

    /// Takes the worker's exact count, as a response or refusal carried it.
    pub fn tell(&self, load: u32, now_ms: u64) {
        self.told.store(load, Ordering::Relaxed);
        self.own_when_told.store(self.own.load(Ordering::Relaxed), Ordering::Relaxed);
        self.told_at_ms.store(now_ms.max(1), Ordering::Relaxed);
    }

    /// What this edge itself has in flight there.
    pub fn own(&self) -> u32 {
        self.own.load(Ordering::Relaxed)
    }

    /// Whether the worker told its exact count a short time ago.
    pub fn is_told(&self, now_ms: u64) -> bool {
        let at = self.told_at_ms.load(Ordering::Relaxed);
        at != 0 && now_ms.saturating_sub(at) <= TOLD_FOR_MS
    }

    /// The believed load: the worker's count moved by what this edge sent and finished since, or
    /// this edge's own count when the worker's is old.
    pub fn load(&self, now_ms: u64) -> u32 {
        let own = self.own.load(Ordering::Relaxed);
        if !self.is_told(now_ms) {
            return own;
        }
        let others =
            self.told.load(Ordering::Relaxed).saturating_sub(self.own_when_told.load(Ordering::Relaxed));
        others.saturating_add(own)
    }
}

impl InFlight {
    /// The Machine answered; the request may go on for long.
    pub fn answered(&mut self, now_ms: u64) {
        if !std::mem::replace(&mut self.answered, true) {
            self.estimate.outlier.answered(now_ms, now_ms.saturating_sub(self.asked_ms));
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.estimate.own.fetch_sub(1, Ordering::AcqRel);
        if !self.answered {
            self.estimate.outlier.gone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn soft_defaults_to_twenty_and_never_exceeds_hard() {
        assert_eq!(Limits::new(None, None), Limits { soft: 20, hard: None });
        assert_eq!(Limits::new(None, Some(5)), Limits { soft: 5, hard: Some(5) });
        assert_eq!(Limits::new(Some(30), Some(25)), Limits { soft: 25, hard: Some(25) });
    }

    #[test]
    fn the_last_slot_goes_to_one_request_and_comes_back() {
        let slots = Arc::new(Slots::default());
        let first = slots.try_acquire(Some(1)).unwrap();
        assert!(slots.try_acquire(Some(1)).is_none());
        drop(first);
        assert!(slots.try_acquire(Some(1)).is_some());
        assert!(slots.try_acquire(Some(0)).is_none());
    }

    #[test]
    fn lb_4_a_slot_that_comes_free_is_told_and_kept_for_the_edge_that_waits() {
        const HARD: Option<u32> = Some(1);
        let (near, far, now) = (NodeNumber(1), NodeNumber(2), crate::testing::instant());
        let slots = Arc::new(Slots::default());
        let freed = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&freed);
        slots.on_free(|| {
            Box::new(move || {
                count.fetch_add(1, Ordering::Relaxed);
            })
        });
        let permit = slots.take(HARD, near, now).unwrap();
        drop(permit);
        assert_eq!(freed.load(Ordering::Relaxed), 0, "nobody waits");
        let permit = slots.take(HARD, near, now).unwrap();
        assert!(slots.take(HARD, far, now).is_none());
        drop(permit);
        assert_eq!(freed.load(Ordering::Relaxed), 1);
        assert_eq!(slots.offer(1, now), [far]);
        assert!(slots.take(HARD, near, now).is_none(), "kept for the other");
        let permit = slots.take(HARD, far, now).unwrap();
        drop(permit);
        slots.withdraw(far);
        slots.withdraw(near);
        assert_eq!(slots.offer(1, now), []);
        assert!(slots.take(HARD, near, now).is_some());
    }

    #[test]
    fn what_was_taken_stays_counted_when_it_is_over() {
        let slots = Arc::new(Slots::default());
        let two = [slots.try_acquire(None), slots.try_acquire(None)];
        assert_eq!((slots.in_flight(), slots.taken()), (2, 2));
        drop(two);
        assert_eq!((slots.in_flight(), slots.taken()), (0, 2));
        assert!(slots.try_acquire(Some(0)).is_none());
        assert_eq!(slots.taken(), 2, "a refusal is none");
        slots.counts.store(u64::from(u32::MAX) << 32, Ordering::Relaxed);
        let _one = slots.try_acquire(None);
        assert_eq!((slots.in_flight(), slots.taken()), (1, 0), "it begins again at 0 and harms nobody");
    }

    #[test]
    fn an_edge_adds_its_own_later_requests_to_what_the_worker_told() {
        let estimate = Arc::new(Estimate::default());
        let first = estimate.enter(1);
        estimate.tell(5, 1_000);
        let second = estimate.enter(1);
        assert_eq!(estimate.load(1_001), 6);
        assert_eq!(estimate.load(1_001 + TOLD_FOR_MS), 2, "an old count no longer stands");
        drop((first, second));
        assert_eq!(estimate.load(9_000), 0);
    }

    proptest! {
        #[test]
        fn a_class_rises_at_once_and_never_says_less_than_half_the_truth(
            loads in proptest::collection::vec(0u32..60, 1..50), soft in 1u32..30, extra in 0u32..20,
        ) {
            let limits = Limits::new(Some(soft), Some(soft + extra));
            let mut class = LoadClass::BelowSoft;
            for load in loads {
                class = class.next(load, limits);
                if load >= soft + extra { prop_assert_eq!(class, LoadClass::AtHard); }
                else if load >= soft { prop_assert!(class >= LoadClass::SoftToHard); }
                if load == 0 && soft > 1 { prop_assert_eq!(class, LoadClass::BelowSoft); }
            }
        }
    }
}
