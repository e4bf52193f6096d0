//! What travels in QUIC datagrams: one byte of kind, then the content.

use bytes::{BufMut, Bytes, BytesMut};

/// Bytes before a gossip message.
pub(super) const HEADER: usize = 1;

/// A datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Datagram {
    /// A gossip message.
    Gossip(Bytes),
    /// Asks for a [`Datagram::Pong`] with the same number.
    Ping(u64),
    Pong(u64),
}

impl Datagram {
    pub(super) fn encode(&self) -> Bytes {
        let (kind, number) = match self {
            Self::Gossip(message) => {
                let mut bytes = BytesMut::with_capacity(HEADER + message.len());
                bytes.put_u8(0);
                bytes.put_slice(message);
                return bytes.freeze();
            }
            Self::Ping(number) => (1, number),
            Self::Pong(number) => (2, number),
        };
        let mut bytes = BytesMut::with_capacity(HEADER + 8);
        bytes.put_u8(kind);
        bytes.put_u64(*number);
        bytes.freeze()
    }

    /// `None` when the bytes are no datagram of this version.
    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        let kind = *bytes.first()?;
        let content = bytes.split_off(HEADER);
        let number = || Some(u64::from_be_bytes(<[u8; 8]>::try_from(&content[..]).ok()?));
        match kind {
            0 => Some(Self::Gossip(content)),
            1 => number().map(Self::Ping),
            2 => number().map(Self::Pong),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_datagram_round_trips() {
        for datagram in
            [Datagram::Gossip(Bytes::from_static(b"hello")), Datagram::Ping(7), Datagram::Pong(u64::MAX)]
        {
            assert_eq!(Datagram::decode(datagram.encode()), Some(datagram));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_datagram_or_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(datagram) = Datagram::decode(Bytes::from(bytes.clone())) {
                prop_assert_eq!(&datagram.encode()[..], &bytes[..]);
            }
        }
    }
}
