//! The faults (SPEC CH-1).

use serde::{Deserialize, Serialize};
use skein_core::fault::LinkRule;

use crate::place::Place;

/// Something that goes wrong on purpose.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Fault {
    /// A node's process is killed (SIGKILL); healed by starting it again.
    Kill {
        /// The node.
        node: String,
    },
    /// A node's process stands still (SIGSTOP); healed by letting it run on.
    Pause {
        /// The node.
        node: String,
    },
    /// A node is drained, ended and started again. Nothing is left to heal.
    Restart {
        /// The node.
        node: String,
    },
    /// A node is drained; healed by taking it back into service.
    Drain {
        /// The node.
        node: String,
    },
    /// Something happens to the packets of links.
    Link {
        /// Where they come from.
        from: Place,
        /// Where they go to.
        to: Place,
        /// Whether packets the other way are left alone.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        one_way: bool,
        /// What happens to them.
        #[serde(flatten)]
        what: LinkFault,
    },
}

/// What happens to each packet of a link.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "link", rename_all = "snake_case")]
pub enum LinkFault {
    /// None passes.
    Partition,
    /// It takes longer.
    Latency {
        /// By this, in microseconds, each way that is meant.
        delay_us: u64,
        /// And by up to this more, in microseconds.
        #[serde(default)]
        jitter_us: u64,
    },
    /// It is lost with this probability.
    Loss {
        /// 0 to 1.
        share: f64,
    },
    /// It arrives twice with this probability.
    Duplicate {
        /// 0 to 1.
        share: f64,
    },
    /// It overtakes earlier ones with this probability.
    Reorder {
        /// 0 to 1.
        share: f64,
    },
    /// All together carry at most so much.
    Rate {
        /// Bytes per second, at least 1.
        bytes: u64,
    },
}

impl LinkFault {
    /// The rule of the link's shim.
    pub fn rule(self) -> LinkRule {
        let none = LinkRule::default();
        match self {
            Self::Partition => LinkRule { cut: true, ..none },
            Self::Latency { delay_us, jitter_us } => LinkRule { delay_us, jitter_us, ..none },
            Self::Loss { share } => LinkRule { loss: share, ..none },
            Self::Duplicate { share } => LinkRule { duplicate: share, ..none },
            Self::Reorder { share } => LinkRule { reorder: share, ..none },
            Self::Rate { bytes } => LinkRule { rate: bytes, ..none },
        }
    }

    /// What is out of range, in words; `None` when nothing is. Data of the API and of files pass here.
    pub fn invalid(self) -> Option<&'static str> {
        // An hour: longer ones are a partition, and their sums would not fit.
        const LONGEST_US: u64 = 3_600_000_000;
        match self {
            Self::Partition => None,
            Self::Latency { delay_us, jitter_us } => (delay_us > LONGEST_US || jitter_us > LONGEST_US)
                .then_some("a packet is held back for an hour at most"),
            Self::Loss { share } | Self::Duplicate { share } | Self::Reorder { share } => {
                (!(0.0..=1.0).contains(&share)).then_some("a share of packets is 0% to 100%")
            }
            Self::Rate { bytes } => (bytes == 0).then_some("a rate is at least one byte per second"),
        }
    }
}

/// What a fault is asked for with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InjectJson {
    /// The fault.
    pub fault: Fault,
    /// Healed by itself after so many milliseconds; never when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_ms: Option<u64>,
}

/// A fault that is active.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActiveJson {
    /// What `chaos heal` takes: `f1`, `f2`, …
    pub id: String,
    /// The fault in words.
    pub text: String,
    /// The fault.
    pub fault: Fault,
    /// How long until it heals by itself, in milliseconds; `null` when it does not.
    pub heals_in_ms: Option<u64>,
    /// Whether it holds still; `false` for one that was over at once, like a restart.
    pub active: bool,
}
