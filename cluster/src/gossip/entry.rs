//! One gossip entry: a value of the vocabulary as text, and back.

use data_encoding::BASE64URL_NOPAD;
use serde::Serialize;
use serde::de::DeserializeOwned;
use skein_core::codec::{self, CodecError};

/// The longest value, in bytes of its text.
pub const MAX_VALUE: usize = 8 << 10;

/// A value that gossip does not carry; whoever wanted to say it caused it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a gossip value of {0} bytes is more than {MAX_VALUE}")]
pub struct ValueTooLong(pub usize);

/// Why a value was skipped; a peer caused it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Skipped {
    /// Of a format version that this build does not read.
    Version,
    /// Not such a value at all.
    Malformed,
}

/// A value as text: base 64 of its codec bytes.
pub(super) fn to_text<T: Serialize>(value: &T) -> Result<String, ValueTooLong> {
    let text = BASE64URL_NOPAD.encode(&codec::encode(value));
    if text.len() > MAX_VALUE { Err(ValueTooLong(text.len())) } else { Ok(text) }
}

/// The value that `text` holds.
pub(super) fn from_text<T: DeserializeOwned>(text: &str) -> Result<T, Skipped> {
    if text.len() > MAX_VALUE {
        return Err(Skipped::Malformed);
    }
    let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| Skipped::Malformed)?;
    codec::decode(&bytes).map_err(|error| match error {
        CodecError::Version(_) => Skipped::Version,
        CodecError::Empty | CodecError::Malformed(_) | CodecError::TrailingBytes(_) => Skipped::Malformed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use skein_core::key::NodeRecord;
    use skein_core::record::Record;

    #[test]
    fn a_value_over_the_cap_is_refused_and_one_at_it_is_not() {
        // 8,192 characters are 6,144 bytes: the version, a length of three bytes, and the text.
        let longest = "x".repeat(6_144 - 4);
        let text = to_text(&longest).unwrap();
        assert_eq!((text.len(), from_text::<String>(&text)), (MAX_VALUE, Ok(longest.clone())));
        assert_eq!(to_text(&(longest + "x")), Err(ValueTooLong(MAX_VALUE + 2)));
    }

    #[test]
    fn a_version_from_the_future_is_told_from_garbage() {
        let mut bytes = codec::encode(&7u32);
        bytes[0] = 9;
        assert_eq!(from_text::<u32>(&BASE64URL_NOPAD.encode(&bytes)), Err(Skipped::Version));
        assert_eq!(from_text::<u32>("%%"), Err(Skipped::Malformed));
        assert_eq!(from_text::<u32>(""), Err(Skipped::Malformed));
    }

    proptest! {
        #[test]
        fn any_text_gives_a_value_or_is_skipped(
            text in ".{0,60}", bytes in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            for text in [text, BASE64URL_NOPAD.encode(&bytes)] {
                if let Ok(record) = from_text::<Record>(&text) {
                    prop_assert_eq!(from_text(&to_text(&record).unwrap()), Ok(record));
                }
                if let Ok(record) = from_text::<NodeRecord>(&text) {
                    prop_assert_eq!(from_text(&to_text(&record).unwrap()), Ok(record));
                }
            }
        }
    }
}
