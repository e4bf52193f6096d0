//! Randomness from the operating system, behind core's [`Random`].

use ring::rand::{SecureRandom, SystemRandom};
use skein_core::Random;

/// A fast generator seeded by the operating system: for balancing, jitter and ids. Not for secrets.
#[derive(Debug, Clone)]
pub struct Entropy(fastrand::Rng);

impl Default for Entropy {
    fn default() -> Self {
        Self(fastrand::Rng::new())
    }
}

impl Entropy {
    /// A generator with that seed, for tests and repeatable runs.
    pub fn seeded(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }
}

impl Random for Entropy {
    fn next_u64(&mut self) -> u64 {
        self.0.u64(..)
    }
}

/// `N` bytes fit for a secret.
///
/// # Panics
/// When the operating system has no randomness: nothing can be kept secret then.
pub fn secret<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("invariant: the operating system gives randomness");
    bytes
}
