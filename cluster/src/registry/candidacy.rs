//! When a voter may stand for election.
//!
//! openraft asks nobody before it raises the term: a voter that was cut off, or stood still, would
//! raise it, and with its first word afterwards take the lead from whoever has it. So its own timer
//! decides only while [`Candidacy`] lets it.

use std::time::Duration;

/// How often a voter looks whether it may stand.
pub const LOOK: Duration = Duration::from_millis(250);

/// What a voter has seen of leaders, look by look: a process that stood still made no looks, so the
/// time it missed does not count as a leader's silence.
#[derive(Debug, Clone)]
pub struct Candidacy {
    /// Looks without word of a leader after which it may stand.
    patience: u32,
    words: u64,
    silent: u32,
}

impl Candidacy {
    /// Of a voter that has just started. `lease` is how long it stays loyal after word of a leader.
    pub fn new(lease: Duration) -> Self {
        let patience = lease.as_millis().div_ceil(LOOK.as_millis());
        Self { patience: u32::try_from(patience).unwrap_or(u32::MAX), words: 0, silent: 0 }
    }

    /// A look, one each [`LOOK`]: `words` messages of leaders have been taken since the start, and so
    /// many voters are `reached`, itself included, of how many. Whether it may stand until the next.
    pub fn look(&mut self, words: u64, reached: Option<(usize, usize)>) -> bool {
        self.silent = if words == self.words { self.silent.saturating_add(1) } else { 0 };
        self.words = words;
        match reached {
            // Alone it has nobody to disturb and nobody to wait for.
            None | Some((_, 1)) => true,
            Some((reached, voters)) => reached * 2 > voters && self.silent >= self.patience,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stands_after_a_lease_of_silence_and_only_while_it_reaches_a_majority() {
        let mut voter = Candidacy::new(Duration::from_millis(1_200));
        let all = Some((3, 3));
        assert_eq!([(); 5].map(|()| voter.look(0, all)), [false, false, false, false, true]);
        assert!(!voter.look(0, Some((1, 3))), "alone it would only raise the term");
        assert!(voter.look(0, Some((2, 3))));
        assert!(!voter.look(1, all), "a leader spoke");
        assert_eq!([(); 5].map(|()| voter.look(1, all)), [false, false, false, false, true]);
    }

    #[test]
    fn the_only_voter_waits_for_nobody() {
        let mut voter = Candidacy::new(Duration::from_millis(1_200));
        assert!(voter.look(0, Some((1, 1))) && voter.look(0, None));
    }
}
