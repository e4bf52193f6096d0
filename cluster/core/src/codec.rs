//! The one binary encoding: a version byte, then bincode 2 (standard configuration, little endian,
//! variable-length integers).
//!
//! Every format that crosses a wire or rests on a disk goes through here. A reader refuses a
//! version that it does not know; it never guesses.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The version this build writes.
pub const VERSION: u8 = 1;

/// The most bytes [`decode`] takes unless told otherwise: 16 MiB. Decoding allocates at most a small
/// multiple of its input: bincode checks claimed lengths against this limit.
pub const LIMIT: usize = 16 << 20;

/// Why bytes are not a value; whoever sent or stored them caused it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Nothing there.
    #[error("empty message")]
    Empty,
    /// A version that this build does not read.
    #[error("format version {0} is not known here; this build reads version {VERSION}")]
    Version(u8),
    /// The bytes do not hold such a value.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// Bytes are left over.
    #[error("{0} bytes are left over after the message")]
    TrailingBytes(usize),
}

/// `value` as bytes.
///
/// # Panics
/// Never for the types of this crate: their serialization is total.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_to(value, &mut bytes);
    bytes
}

/// Appends `value` to `bytes`.
///
/// # Panics
/// As [`encode`].
pub fn encode_to<T: Serialize>(value: &T, bytes: &mut Vec<u8>) {
    bytes.push(VERSION);
    bincode::serde::encode_into_std_write(value, bytes, bincode::config::standard())
        .expect("invariant: the vocabulary's types serialize");
}

/// The value that `bytes` hold, all of them.
///
/// # Errors
/// [`CodecError`]; never panics on any input.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let (version, body) = bytes.split_first().ok_or(CodecError::Empty)?;
    if *version != VERSION {
        return Err(CodecError::Version(*version));
    }
    let config = bincode::config::standard().with_limit::<LIMIT>();
    let (value, read) = bincode::serde::decode_from_slice(body, config)
        .map_err(|error| CodecError::Malformed(error.to_string()))?;
    if read != body.len() {
        return Err(CodecError::TrailingBytes(body.len() - read));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_version_from_the_future_is_refused_by_name() {
        let mut bytes = encode(&7u32);
        bytes[0] = 9;
        assert_eq!(decode::<u32>(&bytes), Err(CodecError::Version(9)));
        assert_eq!(decode::<u32>(&[]), Err(CodecError::Empty));
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_value_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(value) = decode::<Vec<(String, u64)>>(&bytes) {
                // Whatever was accepted is a real value: it encodes and decodes to itself.
                prop_assert_eq!(decode::<Vec<(String, u64)>>(&encode(&value)).unwrap(), value);
            }
        }
    }
}
