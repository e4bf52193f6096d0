//! chitchat's wire: our transport behind its two traits.
//!
//! chitchat knows peers by socket address only, so each node has a synthetic one, made of its
//! number; whence a packet really came does not matter, backhaul has proved the peer's identity.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Deserializable, Serializable};
use skein_core::NodeNumber;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{GossipTransport, Shared, count};

/// The port of every synthetic address; nothing listens there.
const PORT: u16 = 1;

/// The address that chitchat knows a node by: the 32 bits of its number as IPv4.
pub(super) fn address(number: NodeNumber) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from_bits(number.0), PORT))
}

/// The node of a synthetic address.
pub(super) fn number(address: SocketAddr) -> Option<NodeNumber> {
    match address {
        SocketAddr::V4(v4) if v4.port() == PORT => Some(NodeNumber(v4.ip().to_bits())),
        SocketAddr::V4(_) | SocketAddr::V6(_) => None,
    }
}

/// Messages that wait, with the peer that sent each.
pub(super) type Waiting = mpsc::Receiver<(NodeNumber, Bytes)>;

/// Opens the one socket of one life of chitchat.
pub(super) struct Opening {
    socket: Mutex<Option<WireSocket>>,
}

impl Opening {
    pub(super) fn new(shared: Arc<Shared>, transport: Arc<dyn GossipTransport>, waiting: Waiting) -> Self {
        let socket = WireSocket { shared, transport, waiting, state_given: false };
        Self { socket: Mutex::new(Some(socket)) }
    }
}

#[async_trait]
impl Transport for Opening {
    async fn open(&self, _address: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(Box::new(socket.ok_or_else(|| anyhow::anyhow!("the socket is open already"))?))
    }
}

struct WireSocket {
    shared: Arc<Shared>,
    transport: Arc<dyn GossipTransport>,
    waiting: Waiting,
    /// The message given last may have changed the state.
    state_given: bool,
}

#[async_trait]
impl Socket for WireSocket {
    /// An error here would mean "broken for ever" to chitchat, so there is none.
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        if let Some(peer) = number(to) {
            count(&self.shared.counters.sent);
            self.transport.send(peer, message.serialize_to_vec().into());
        }
        Ok(())
    }

    /// Cancel safe, as an arm of chitchat's `select!`: nothing is awaited but the channel.
    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        // chitchat asks for the next message when it has worked the last one in.
        if std::mem::take(&mut self.state_given) {
            self.shared.wake.notify_one();
        }
        while let Some((peer, bytes)) = self.waiting.recv().await {
            let Some(message) = decode(&bytes) else {
                count(&self.shared.counters.bad_messages);
                tracing::debug!(peer = peer.0, "a gossip message that is none");
                continue;
            };
            count(&self.shared.counters.received);
            let first = self.shared.with_heard(|heard| heard.insert(peer, Instant::now()).is_none());
            self.state_given =
                first || matches!(message, ChitchatMessage::SynAck { .. } | ChitchatMessage::Ack { .. });
            return Ok((address(peer), message));
        }
        // The channel is closed only to replace this socket; an error would be reported as a fault.
        std::future::pending().await
    }
}

/// The message that `bytes` hold, all of them.
fn decode(bytes: &[u8]) -> Option<ChitchatMessage> {
    let mut rest = bytes;
    let message = ChitchatMessage::deserialize(&mut rest).ok()?;
    rest.is_empty().then_some(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_number_has_an_address_of_its_own(bits: u32) {
            prop_assert_eq!(number(address(NodeNumber(bits))), Some(NodeNumber(bits)));
        }

        #[test]
        fn any_bytes_are_a_message_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0u8..4) {
            let mut framed = vec![0x53, 0xb0, 0, kind];
            framed.extend_from_slice(&bytes);
            for bytes in [&bytes, &framed] {
                // What decodes is a real message: it encodes.
                if let Some(message) = decode(bytes) { prop_assert!(!message.serialize_to_vec().is_empty()); }
            }
        }
    }
}
