//! Keys and values of gossip: one type writes and reads them all.
//!
//! A key or version that this build does not know is skipped and counted, never an error: readers
//! learn a field one release before writers use it.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::{MachineId, NodeName, NodeNumber};
use crate::region::RegionCode;

/// A key of a node's gossip state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GossipKey {
    /// `node`: a [`NodeRecord`].
    Node,
    /// `m/<Machine id>`: a [`crate::record::Record`].
    Machine(MachineId),
}

/// A key that this build does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("gossip key {0:?} is not known here")]
pub struct UnknownKey(pub String);

impl fmt::Display for GossipKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.write_str("node"),
            Self::Machine(id) => write!(f, "m/{id}"),
        }
    }
}

impl FromStr for GossipKey {
    type Err = UnknownKey;
    fn from_str(text: &str) -> Result<Self, UnknownKey> {
        let unknown = || UnknownKey(text.chars().take(80).collect());
        match text.split_once('/') {
            None if text == "node" => Ok(Self::Node),
            Some(("m", id)) => id.parse().map(Self::Machine).map_err(|_| unknown()),
            _ => Err(unknown()),
        }
    }
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its number.
    pub number: NodeNumber,
    /// Its name.
    pub name: NodeName,
    /// Its region.
    pub region: RegionCode,
    /// Where its backhaul listens.
    pub backhaul: SocketAddr,
    /// Where its API listens.
    pub api: SocketAddr,
    /// It takes nothing new and finishes what it has.
    pub draining: bool,
    /// The version of the program, for people.
    pub build: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn machine_keys_round_trip(bits: u64) {
            let key = GossipKey::Machine(MachineId::from_bits(bits));
            prop_assert_eq!(key.to_string().parse::<GossipKey>().unwrap(), key);
        }

        #[test]
        fn any_text_is_a_key_or_unknown(text in ".{0,40}") {
            if let Ok(key) = text.parse::<GossipKey>() { prop_assert_eq!(key.to_string(), text); }
        }
    }
}
