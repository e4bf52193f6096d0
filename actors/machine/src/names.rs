//! Names for Machines that nobody named.

use skein_core::Random;

const FIRST: [&str; 24] = [
    "quiet", "bright", "cold", "warm", "swift", "still", "young", "old", "wild", "calm", "deep", "high",
    "blue", "green", "red", "grey", "silver", "golden", "misty", "sunny", "snowy", "hidden", "distant",
    "gentle",
];
const SECOND: [&str; 24] = [
    "river", "hill", "meadow", "forest", "lake", "sea", "wind", "cloud", "stone", "leaf", "field", "dawn",
    "dusk", "moon", "star", "rain", "snow", "frost", "brook", "valley", "harbor", "island", "pine", "fern",
];

/// Two words and a number: readable, and rarely the same twice.
pub(crate) fn generate(rng: &mut impl Random) -> String {
    let (first, second) = (FIRST[rng.below(FIRST.len())], SECOND[rng.below(SECOND.len())]);
    format!("{first}-{second}-{}", 1_000 + rng.below(9_000))
}
