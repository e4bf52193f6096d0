//! Turns at a full Machine: which edges wait for a slot, and whose turn a free one is (SPEC LB-4).
//!
//! The worker has it, one per service of a Machine. An edge that was refused is remembered; when a
//! slot is free the edge that waits longest is told, and for a moment the slot is kept for it, so an
//! edge next door does not take what a far one was promised. Between edges that is fair, not FIFO: each
//! has one place, however many requests it has waiting.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::id::NodeNumber;
use crate::planted::{self, Bug};

/// How long a free slot is kept for the edge that was told: a round trip to the other side of the
/// world, and time to act.
pub const OFFER: Duration = Duration::from_millis(400);
/// An edge that did not ask again for so long waits no more: it asks every
/// [`POLL`](crate::queue::POLL).
pub const ASKED: Duration = Duration::from_millis(1_000);

/// Who waits for a slot.
#[derive(Debug, Default)]
pub struct Turns {
    /// Edges in turn, with when each last asked.
    waiting: VecDeque<(NodeNumber, Instant)>,
    /// Slots that are kept, with the time until when.
    offers: Vec<(NodeNumber, Instant)>,
}

impl Turns {
    /// Whether nobody waits and nothing is kept.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.offers.is_empty()
    }

    /// Whether an edge may take one of `free` slots. What is kept for it is then used up.
    pub fn may_take(&mut self, edge: NodeNumber, free: u32, now: Instant) -> bool {
        self.expire(now);
        if let Some(own) = self.offers.iter().position(|(to, _)| *to == edge) {
            if free > 0 {
                // Of several the one that ends first.
                self.offers.remove(own);
            }
            return free > 0;
        }
        free as usize > self.offers.len() || (free > 0 && planted::is(Bug::Turns))
    }

    /// An edge was refused: it is told when its turn comes.
    pub fn refused(&mut self, edge: NodeNumber, now: Instant) {
        match self.waiting.iter_mut().find(|(waiting, _)| *waiting == edge) {
            Some((_, asked)) => *asked = now,
            None => self.waiting.push_back((edge, now)),
        }
    }

    /// Offers what is free of `free` slots to those who wait, in turn; who is to be told. An edge that
    /// was told goes to the end: it may have more that wait.
    pub fn offer(&mut self, free: u32, now: Instant) -> Vec<NodeNumber> {
        self.expire(now);
        let mut told = Vec::new();
        let rounds = self.waiting.len();
        for _ in 0..rounds {
            if free as usize <= self.offers.len() {
                break;
            }
            let Some((edge, asked)) = self.waiting.pop_front() else { break };
            self.waiting.push_back((edge, asked));
            self.offers.push((edge, now + OFFER));
            told.push(edge);
        }
        told
    }

    /// An edge has nothing that waits: its place and what was kept for it are free.
    pub fn withdraw(&mut self, edge: NodeNumber) {
        self.waiting.retain(|(waiting, _)| *waiting != edge);
        self.offers.retain(|(to, _)| *to != edge);
    }

    fn expire(&mut self, now: Instant) {
        self.waiting.retain(|(_, asked)| now.saturating_duration_since(*asked) <= ASKED);
        self.offers.retain(|(_, until)| *until > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEAR: NodeNumber = NodeNumber(1);
    const FAR: NodeNumber = NodeNumber(2);
    const NEW: NodeNumber = NodeNumber(3);

    /// Milliseconds after some moment.
    fn clock() -> impl Fn(u64) -> Instant {
        let epoch = crate::testing::instant();
        move |ms| epoch + Duration::from_millis(ms)
    }

    #[test]
    fn lb_4_a_free_slot_is_kept_for_the_edge_whose_turn_it_is() {
        let (mut turns, at) = (Turns::default(), clock());
        assert!(turns.may_take(NEAR, 1, at(0)) && turns.is_idle());
        turns.refused(FAR, at(0));
        turns.refused(NEAR, at(10));
        assert_eq!(turns.offer(0, at(20)), [], "nothing is free");
        assert_eq!(turns.offer(1, at(20)), [FAR]);
        assert!(!turns.may_take(NEAR, 1, at(30)), "it is next door, and not its turn");
        assert!(!turns.may_take(NEW, 1, at(30)));
        assert!(turns.may_take(NEW, 2, at(30)), "a second one is free");
        assert!(turns.may_take(FAR, 1, at(40)));
        assert_eq!(turns.offer(1, at(50)), [NEAR], "in turn");
        assert!(turns.may_take(NEAR, 1, at(60)));
        assert_eq!(turns.offer(1, at(70)), [FAR], "each keeps its place while it asks");
    }

    #[test]
    fn an_offer_that_nobody_takes_and_an_edge_that_asks_no_more_hold_nothing() {
        let (mut turns, at) = (Turns::default(), clock());
        turns.refused(FAR, at(0));
        assert_eq!(turns.offer(1, at(0)), [FAR]);
        assert!(!turns.may_take(NEAR, 1, at(0) + OFFER - Duration::from_millis(1)));
        assert!(turns.may_take(NEAR, 1, at(0) + OFFER));
        assert_eq!(turns.offer(1, at(1) + ASKED), [], "it did not ask again");
        assert!(turns.is_idle());
        turns.refused(FAR, at(5_000));
        assert_eq!(turns.offer(1, at(5_000)), [FAR]);
        turns.withdraw(FAR);
        assert!(turns.is_idle() && turns.may_take(NEAR, 1, at(5_000)));
    }

    #[test]
    fn of_two_slots_that_are_kept_for_an_edge_it_takes_the_one_that_was_kept_first() {
        let (mut turns, at) = (Turns::default(), clock());
        turns.refused(NEAR, at(0));
        turns.refused(FAR, at(0));
        assert_eq!(turns.offer(2, at(0)), [NEAR, FAR]);
        assert_eq!(turns.offer(3, at(300)), [NEAR]);
        assert_eq!(turns.offer(4, at(300)), [FAR]);
        assert!(turns.may_take(NEAR, 4, at(310)) && turns.may_take(FAR, 3, at(310)));
        assert!(!turns.may_take(NEW, 2, at(0) + OFFER), "two are kept still, for each of them one");
    }

    #[test]
    fn between_edges_that_all_wait_the_slots_are_shared_evenly() {
        let (mut turns, at) = (Turns::default(), clock());
        let mut got = [0; 3];
        for now in (0..300).map(at) {
            for edge in 1..=3 {
                turns.refused(NodeNumber(edge), now);
            }
            for edge in turns.offer(1, now) {
                assert!(turns.may_take(edge, 1, now));
                got[edge.0 as usize - 1] += 1;
            }
        }
        assert_eq!(got, [100, 100, 100]);
    }
}
