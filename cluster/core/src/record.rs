//! The gossip record of one Machine: at most 256 bytes (DESIGN section 3).

use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError};
use crate::id::{AppId, ConfigHash, MachineId, ProcessGroup, VersionId};
use crate::load::LoadClass;
use crate::machine::MachineState;

/// The longest encoded record, in bytes.
pub const MAX_RECORD: usize = 256;

/// What every node knows of a Machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The Machine.
    pub id: MachineId,
    /// Its app.
    pub app: AppId,
    /// Its process group.
    pub group: ProcessGroup,
    /// Its state.
    pub state: MachineState,
    /// Whether its service checks pass; true when it has none.
    pub healthy: bool,
    /// Nothing new is sent to it.
    pub cordoned: bool,
    /// How loaded it is.
    pub load: LoadClass,
    /// Its configuration, to be asked of its node.
    pub config: ConfigHash,
    /// The version of its configuration.
    pub version: VersionId,
    /// The machine part of its 6PN address, numbered by its node.
    pub number: u32,
    /// When its state last changed: milliseconds since 1970 on its node's clock.
    pub changed_ms: u64,
    /// How long its last start took until it was started and healthy, in milliseconds, and while it is
    /// suspended its last resumption; 0 when it never was.
    pub start_ms: u32,
}

impl Record {
    /// The record as bytes.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// The record that `bytes` hold.
    ///
    /// # Errors
    /// [`CodecError`] when they hold none, or are longer than [`MAX_RECORD`]; a peer caused it.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        if bytes.len() > MAX_RECORD {
            return Err(CodecError::Malformed(format!("{} bytes are more than {MAX_RECORD}", bytes.len())));
        }
        codec::decode(bytes)
    }

    /// Whether the proxy may send it something new.
    pub fn routable(&self) -> bool {
        self.state == MachineState::Started && self.healthy && !self.cordoned
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn record(id: u64, app: u128) -> Record {
        Record { app: AppId(ulid::Ulid(app)), ..crate::testing::record(id) }
    }

    #[test]
    fn the_longest_record_fits() {
        let mut longest = record(u64::MAX, u128::MAX);
        longest.group = "g".repeat(63).parse().unwrap();
        longest.state = MachineState::LaunchFailed;
        longest.changed_ms = u64::MAX;
        longest.start_ms = u32::MAX;
        longest.number = u32::MAX;
        let bytes = longest.encode();
        assert!(bytes.len() <= MAX_RECORD, "{}", bytes.len());
        assert_eq!(Record::decode(&bytes).unwrap(), longest);
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_record_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(record) = Record::decode(&bytes) {
                prop_assert_eq!(Record::decode(&record.encode()).unwrap(), record);
            }
        }
    }
}
