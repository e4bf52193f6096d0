//! How far a peer is and whether it is suspect: what transport knows, as decisions see it.

use std::time::Duration;

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
}
