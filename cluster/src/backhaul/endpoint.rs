//! The QUIC endpoint's settings: ids and resets that outlive a process, windows, timeouts, tasks.

use std::net::UdpSocket;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use quinn::crypto::HmacKey;
use quinn::{
    AckFrequencyConfig, AsyncTimer, AsyncUdpSocket, EndpointConfig, Runtime, TokioRuntime, TransportConfig,
    VarInt,
};
use quinn_proto::HashedConnectionIdGenerator;
use ring::hmac;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use super::BackhaulConfig;
use crate::clock;
use crate::identity::Identity;

/// The most datagram bytes waiting for one peer; the oldest are dropped.
const DATAGRAM_BUFFER: usize = 256 << 10;
/// Packets after which a peer acknowledges at once; fewer are acknowledged with what it sends next, or
/// 25 ms later. Requests are answered soon, so their packets need no acknowledgement of their own.
const ACK_AFTER: u32 = 10;
/// Streams in one direction carry gossip only.
const GOSSIP_STREAMS: u32 = 64;

/// Ids and resets that the node recognizes over its restarts: packets of connections that died with
/// an earlier process get a stateless reset (RFC 9000 section 10.3), so a peer notices a restart
/// within a round trip instead of its idle timeout.
pub(super) fn identified(identity: &Identity) -> EndpointConfig {
    let reset = identity.key().derive("skein stateless reset");
    let reset: Arc<dyn HmacKey> = Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &reset));
    let ids = identity.key().derive("skein connection id");
    let ids = ids.first_chunk::<8>().copied().map(u64::from_le_bytes);
    let ids = ids.expect("invariant: a derived secret has 32 bytes");
    let mut config = EndpointConfig::new(reset);
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
    config
}

pub(super) fn transport(config: &BackhaulConfig) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(ACK_AFTER.into());
    let idle = config.idle_timeout.try_into().ok();
    transport
        .max_concurrent_bidi_streams(config.streams.into())
        .max_concurrent_uni_streams(GOSSIP_STREAMS.into())
        .max_idle_timeout(idle)
        // A handshake packet that is lost must not cost a second.
        .initial_rtt(Duration::from_millis(150))
        .ack_frequency_config(Some(acks))
        .stream_receive_window(config.stream_window.into())
        .receive_window(VarInt::from_u64(config.connection_window).unwrap_or(VarInt::MAX))
        .send_window(config.connection_window)
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
        .datagram_send_buffer_size(DATAGRAM_BUFFER);
    transport
}

/// Bursts of many streams overrun the kernel's default buffer of some 200 KiB.
pub(super) fn enlarge_buffers(socket: &UdpSocket) {
    const BYTES: usize = 4 << 20;
    let socket = socket2::SockRef::from(socket);
    // The kernel caps both silently; smaller buffers only cost retransmissions.
    let _ = socket.set_recv_buffer_size(BYTES);
    let _ = socket.set_send_buffer_size(BYTES);
}

/// The runtimes that carry packets and requests.
#[derive(Debug, Clone)]
pub(super) struct Cores {
    handles: Arc<[Handle]>,
    turn: Arc<AtomicUsize>,
}

impl Cores {
    /// Those, or `otherwise` when there are none.
    pub(super) fn new(cores: &[Handle], otherwise: &Handle) -> Self {
        let handles = if cores.is_empty() { Arc::from([otherwise.clone()]) } else { Arc::from(cores) };
        Self { handles, turn: Arc::default() }
    }

    /// The one of the socket.
    pub(super) fn first(&self) -> &Handle {
        &self.handles[0]
    }

    /// Each in turn.
    pub(super) fn next(&self) -> &Handle {
        &self.handles[self.turn.fetch_add(1, Ordering::Relaxed) % self.handles.len()]
    }

    /// The one that calls; else the first.
    pub(super) fn here(&self) -> Handle {
        let here = Handle::try_current().ok();
        let here = here.filter(|here| self.handles.iter().any(|core| core.id() == here.id()));
        here.unwrap_or_else(|| self.first().clone())
    }
}

/// Runs quinn's tasks on the core that asks for them: a connection stays where it was made.
#[derive(Debug)]
pub(super) struct On {
    pub(super) cores: Cores,
    pub(super) tasks: TaskTracker,
}

impl Runtime for On {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        let here = self.cores.here();
        let _entered = here.enter();
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.tasks.spawn_on(future, &self.cores.here());
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> std::io::Result<Arc<dyn AsyncUdpSocket>> {
        let _entered = self.cores.first().enter();
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        clock::now()
    }
}
