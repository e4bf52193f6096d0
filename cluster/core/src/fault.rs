//! Faults of links as data (SPEC CH-1, DESIGN section 5): what the shim does to each packet.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::random::Random;

/// What happens to packets on their way to one peer. Each direction of a link has its own rule, at
/// the node that sends. The default changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkRule {
    /// Added to each packet, in microseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub delay_us: u64,
    /// Up to this much more, uniformly, in microseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub jitter_us: u64,
    /// Share of packets dropped, 0 to 1.
    #[serde(skip_serializing_if = "is_none")]
    pub loss: f64,
    /// Share of packets sent twice, 0 to 1.
    #[serde(skip_serializing_if = "is_none")]
    pub duplicate: f64,
    /// Share of packets sent before earlier ones (without their delay), 0 to 1.
    #[serde(skip_serializing_if = "is_none")]
    pub reorder: f64,
    /// Bytes per second; 0 is no bound.
    #[serde(skip_serializing_if = "is_zero")]
    pub rate: u64,
    /// Nothing passes.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}
fn is_none(value: &f64) -> bool {
    *value == 0.0
}

/// What the shim does with one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketVerdict {
    /// Nothing is sent.
    Drop,
    /// Sent after `delay`, `copies` times.
    Send {
        /// How long it is held back.
        delay: Duration,
        /// Once or twice.
        copies: u8,
    },
}

impl LinkRule {
    /// Whether it changes nothing.
    pub fn is_idle(&self) -> bool {
        *self == Self::default()
    }

    /// Both rules at once: the simulated distance and what chaos adds.
    pub fn plus(&self, other: &Self) -> Self {
        let either = |a: f64, b: f64| 1.0 - (1.0 - a) * (1.0 - b);
        let rate = match (self.rate, other.rate) {
            (0, rate) | (rate, 0) => rate,
            (a, b) => a.min(b),
        };
        Self {
            delay_us: self.delay_us.saturating_add(other.delay_us),
            jitter_us: self.jitter_us.saturating_add(other.jitter_us),
            loss: either(self.loss, other.loss),
            duplicate: either(self.duplicate, other.duplicate),
            reorder: either(self.reorder, other.reorder),
            rate,
            cut: self.cut || other.cut,
        }
    }

    /// What happens to the next packet; `rate` is the shell's, which keeps the link's backlog.
    pub fn verdict(&self, rng: &mut impl Random) -> PacketVerdict {
        if self.cut || (self.loss > 0.0 && rng.fraction() < self.loss) {
            return PacketVerdict::Drop;
        }
        let copies = 1 + u8::from(self.duplicate > 0.0 && rng.fraction() < self.duplicate);
        if self.reorder > 0.0 && rng.fraction() < self.reorder {
            return PacketVerdict::Send { delay: Duration::ZERO, copies };
        }
        let jitter = if self.jitter_us > 0 { (rng.fraction() * self.jitter_us as f64) as u64 } else { 0 };
        PacketVerdict::Send { delay: Duration::from_micros(self.delay_us.saturating_add(jitter)), copies }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Seed;

    #[test]
    fn an_idle_rule_passes_every_packet_at_once() {
        let mut rng = Seed::new(1);
        for _ in 0..100 {
            let expected = PacketVerdict::Send { delay: Duration::ZERO, copies: 1 };
            assert_eq!(LinkRule::default().verdict(&mut rng), expected);
        }
    }

    #[test]
    fn loss_drops_about_its_share_and_a_cut_drops_all() {
        let mut rng = Seed::new(2);
        let lossy = LinkRule { loss: 0.1, ..LinkRule::default() };
        let dropped = (0..10_000).filter(|_| lossy.verdict(&mut rng) == PacketVerdict::Drop).count();
        assert!((800..1_200).contains(&dropped), "{dropped}");
        let cut = LinkRule { cut: true, ..LinkRule::default() };
        assert_eq!(cut.verdict(&mut rng), PacketVerdict::Drop);
    }

    #[test]
    fn rules_add_up() {
        let distance = LinkRule { delay_us: 40_000, ..LinkRule::default() };
        let chaos = LinkRule { delay_us: 5_000, loss: 0.5, rate: 10, ..LinkRule::default() };
        let both = distance.plus(&chaos);
        assert_eq!((both.delay_us, both.loss, both.rate), (45_000, 0.5, 10));
        assert_eq!(distance.plus(&LinkRule::default()), distance);
    }
}
