//! The virtual clock: what happens next, in the order of (time, number of the entry).
//!
//! Times are microseconds since the run began. Entries of one moment come in the order in which
//! they were put in, so a run is a function of its seed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// Microseconds since the run began.
pub type Micros = u64;

/// One millisecond.
pub const MS: Micros = 1_000;
/// One second.
pub const SECOND: Micros = 1_000_000;

/// A duration in the clock's unit; longer ones than the clock can hold are its end.
pub fn micros(duration: Duration) -> Micros {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// What is to happen, and the time it is.
#[derive(Debug)]
pub struct Agenda<E> {
    now: Micros,
    next: u64,
    entries: BinaryHeap<Reverse<Entry<E>>>,
}

#[derive(Debug)]
struct Entry<E> {
    at: Micros,
    number: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}
impl<E> Eq for Entry<E> {}
impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl<E> Default for Agenda<E> {
    fn default() -> Self {
        Self { now: 0, next: 0, entries: BinaryHeap::new() }
    }
}

impl<E> Agenda<E> {
    /// The time.
    pub fn now(&self) -> Micros {
        self.now
    }

    /// Puts an event in; one that should have been before now is next.
    pub fn at(&mut self, at: Micros, event: E) {
        self.next += 1;
        self.entries.push(Reverse(Entry { at: at.max(self.now), number: self.next, event }));
    }

    /// Puts an event in, `wait` from now.
    pub fn after(&mut self, wait: Micros, event: E) {
        self.at(self.now.saturating_add(wait), event);
    }

    /// When the next event is due.
    pub fn due(&self) -> Option<Micros> {
        self.entries.peek().map(|Reverse(entry)| entry.at)
    }

    /// Takes the next event that is due at `until` at the latest, and makes it be its time; when
    /// there is none, it is `until` then.
    pub fn next(&mut self, until: Micros) -> Option<E> {
        match self.entries.peek() {
            Some(Reverse(entry)) if entry.at <= until => {}
            _ => {
                self.now = self.now.max(until);
                return None;
            }
        }
        let Reverse(entry) = self.entries.pop()?;
        self.now = entry.at;
        Some(entry.event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_those_of_one_moment_in_their_order() {
        let mut agenda = Agenda::default();
        for (at, name) in [(5, "b"), (3, "a"), (5, "c"), (9, "d")] {
            agenda.at(at, name);
        }
        let mut seen = Vec::new();
        while let Some(name) = agenda.next(5) {
            seen.push((agenda.now(), name));
        }
        assert_eq!(seen, [(3, "a"), (5, "b"), (5, "c")]);
        agenda.at(1, "late");
        assert_eq!((agenda.next(20), agenda.now()), (Some("late"), 5), "the clock never goes back");
        assert_eq!((agenda.next(20), agenda.next(20), agenda.now()), (Some("d"), None, 20));
    }
}
