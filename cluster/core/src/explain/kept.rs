//! The newest stories of an edge: two rings that no request waits for.
//!
//! Each slot is a mutex, which a request only ever tries: when a question reads it just now, the next
//! slot is taken. The ring for what failed or was tried again is apart, so that what goes well, which is
//! most, does not push it out.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, TryLockError};

use super::{Story, Wanted};

/// Of so many stories kept, one more is kept of what failed or was tried again.
const SHARE: usize = 4;
/// Slots that are tried before a story is given up: readers hold one at a time.
const TRIES: usize = 8;

/// The newest stories.
#[derive(Debug)]
pub struct Kept {
    plain: Ring,
    notable: Ring,
}

impl Kept {
    /// The newest `requests` are kept, and a quarter as many, at least one, of those that are
    /// [notable](Story::is_notable). 16 bytes each, until there is a story.
    pub fn new(requests: usize) -> Self {
        Self { plain: Ring::new(requests), notable: Ring::new(requests / SHARE) }
    }

    /// How many are kept, and how many of those that are notable.
    pub fn limits(&self) -> (usize, usize) {
        (self.plain.slots.len(), self.notable.slots.len())
    }

    /// Keeps a story in place of the oldest. Waits for nobody.
    pub fn keep(&self, story: Box<Story>) {
        let ring = if story.is_notable() { &self.notable } else { &self.plain };
        ring.keep(story);
    }

    /// A copy of the newest story that is wanted.
    pub fn find(&self, wanted: Wanted) -> Option<Story> {
        let found = self.plain.find(wanted).into_iter().chain(self.notable.find(wanted));
        found.max_by_key(|story| story.request_id)
    }
}

#[derive(Debug)]
struct Ring {
    slots: Box<[Mutex<Option<Box<Story>>>]>,
    next: AtomicUsize,
}

impl Ring {
    fn new(slots: usize) -> Self {
        Self { slots: (0..slots.max(1)).map(|_| Mutex::default()).collect(), next: AtomicUsize::new(0) }
    }

    fn keep(&self, story: Box<Story>) {
        for _ in 0..TRIES {
            let next = self.next.fetch_add(1, Ordering::Relaxed) % self.slots.len();
            let before = match self.slots[next].try_lock() {
                Ok(mut slot) => slot.replace(story),
                Err(TryLockError::Poisoned(slot)) => slot.into_inner().replace(story),
                Err(TryLockError::WouldBlock) => continue,
            };
            drop(before);
            return;
        }
    }

    fn find(&self, wanted: Wanted) -> Option<Story> {
        let look = |slot: &Mutex<Option<Box<Story>>>| {
            let slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
            slot.as_deref().filter(|story| wanted.is(story)).cloned()
        };
        self.slots.iter().filter_map(look).max_by_key(|story| story.request_id)
    }
}
