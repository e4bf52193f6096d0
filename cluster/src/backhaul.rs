//! Backhaul: QUIC between nodes, with mutual TLS (DESIGN section 4, SPEC CLU-1, CLU-4).
//!
//! One UDP socket per node dials and accepts. A pair of nodes shares one connection; a request, a
//! TCP connection or a question is one bidirectional stream of it; gossip and probes are datagrams.
//! Peers are known by the number and key that their certificate proves, never by their address.

mod cid;
mod conn;
mod datagram;
mod peer;
mod peers;
mod serve;
mod stream;
pub(crate) mod tls;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use imbl::OrdMap;
use quinn::{AsyncTimer, AsyncUdpSocket, Endpoint, Runtime, TokioRuntime, TransportConfig, VarInt};
use skein_core::region::Regions;
use skein_core::wire::{Ask, Frame, JoinReply, JoinRequest, Open, Preamble};
use skein_core::{NodeName, NodeNumber, RegionCode};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::entropy::Entropy;
use crate::identity::Identity;
use crate::link::{self, LinkTable};
use crate::{BoxFuture, clock};

use peer::Peer;
pub use peers::{PeerReport, Peers};
pub use stream::{FrameReceiver, FrameSender, FrameStream, StreamError};
pub use tls::TlsError;

/// The most datagram bytes waiting for one peer; the oldest are dropped.
const DATAGRAM_BUFFER: usize = 256 << 10;
/// The least a connection may be given of [`BackhaulConfig::node_window`].
const LEAST_WINDOW: u64 = 4 << 20;
/// Streams in one direction carry gossip only.
const GOSSIP_STREAMS: u32 = 64;

/// The node is going away.
const SHUTDOWN: VarInt = VarInt::from_u32(0);
/// A newer connection with the same node took this one's place.
const REPLACED: VarInt = VarInt::from_u32(1);
/// The other end is no member, or not the one it should be.
const STRANGER: VarInt = VarInt::from_u32(2);
/// The node was removed from the cluster.
const REMOVED: VarInt = VarInt::from_u32(3);
/// A join was answered.
pub(crate) const JOINED: VarInt = VarInt::from_u32(4);

/// What the node does with what its peers send. Nothing here may block.
pub trait Inbound: Send + Sync + 'static {
    /// A request or connection for a Machine; the future owns the stream.
    fn request(&self, peer: NodeNumber, preamble: Preamble, stream: FrameStream) -> BoxFuture<'static, ()>;
    /// A question; the error's text reaches the asker.
    fn ask(&self, peer: NodeNumber, ask: Ask) -> BoxFuture<'static, Result<Bytes, String>>;
    /// A gossip message: dropped and counted when there is no room.
    fn gossip(&self, peer: NodeNumber, message: Bytes);
}

/// Decides on nodes that want to join; the error's text reaches who asks.
pub trait Joiner: Send + Sync + 'static {
    /// Admits a node or says why not.
    fn join(&self, request: JoinRequest, from: SocketAddr) -> BoxFuture<'static, Result<JoinReply, String>>;
}

/// A member, as the registry knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAddress {
    /// Where its backhaul listens.
    pub addr: SocketAddr,
    /// Its name.
    pub name: NodeName,
    /// Its region.
    pub region: RegionCode,
    /// SHA-256 of its public key; a certificate with another key is refused.
    pub key: [u8; 32],
}

/// How backhaul behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackhaulConfig {
    /// Where to listen.
    pub bind: SocketAddr,
    /// The node's region: peers not yet measured are as far as the regions are.
    pub region: RegionCode,
    /// How long a dial may take. 3 s.
    pub dial_timeout: Duration,
    /// A connection on which nothing comes for so long is lost, with its streams. 4 s.
    pub idle_timeout: Duration,
    /// Between probes of a peer in use, or of one that owes an answer. 250 ms.
    pub probe_busy: Duration,
    /// The most between probes of other peers; fewer peers are probed more often. 1 s.
    pub probe_idle: Duration,
    /// Streams that a peer may have open at once. 8,192.
    pub streams: u32,
    /// Bytes of one stream that may wait here unread. 1 MiB.
    pub stream_window: u32,
    /// Bytes of one connection that may wait here unread. 256 MiB.
    pub connection_window: u64,
    /// Bytes of all connections together that may wait here unread. 1 GiB.
    pub node_window: u64,
    /// Seeds the shim's randomness; the operating system's when `None`.
    pub seed: Option<u64>,
}

impl BackhaulConfig {
    /// The usual configuration.
    pub fn new(bind: SocketAddr, region: RegionCode) -> Self {
        Self {
            bind,
            region,
            dial_timeout: Duration::from_secs(3),
            idle_timeout: Duration::from_secs(4),
            probe_busy: Duration::from_millis(250),
            probe_idle: Duration::from_secs(1),
            streams: 8_192,
            stream_window: 1 << 20,
            connection_window: 256 << 20,
            node_window: 1 << 30,
            seed: None,
        }
    }
}

/// Why backhaul did not start; the operator or the identity caused it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackhaulError {
    /// The UDP socket could not be had.
    #[error("backhaul cannot listen on {bind} (UDP): {reason}")]
    Bind {
        /// The address.
        bind: SocketAddr,
        /// What the operating system said.
        reason: String,
    },
    /// The identity does not work.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Called outside a runtime.
    #[error("backhaul needs a Tokio runtime")]
    NoRuntime,
}

/// Why no stream to a peer was opened; nothing of it reached the peer's Machines.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// No such member is known here.
    #[error("node {0} is not known here")]
    Unknown(NodeNumber),
    /// It could not be dialled.
    #[error("node {node} is not reachable: {reason}")]
    Unreachable {
        /// The node.
        node: NodeNumber,
        /// The transport's reason.
        reason: String,
    },
    /// No connection or no free stream in time.
    #[error("no stream to node {0} in time")]
    Timeout(NodeNumber),
    /// The stream broke before anything of it was delivered.
    #[error(transparent)]
    Broken(#[from] StreamError),
}

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// It was not asked.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It was asked; whether it had an effect is not known.
    #[error(transparent)]
    Broken(#[from] StreamError),
    /// It was asked, and no answer came in time; whether it had an effect is not known.
    #[error("node {0} did not answer in time")]
    Timeout(NodeNumber),
    /// The peer answered that it cannot.
    #[error("node {node} answered: {reason}")]
    Refused {
        /// The node.
        node: NodeNumber,
        /// Its words.
        reason: String,
    },
}

/// What backhaul has counted since the node started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BackhaulCounts {
    /// Connections refused: no certificate, another authority's, another key for a number, fenced.
    pub strangers: u64,
    /// Streams and datagrams that were no valid frames.
    pub garbage: u64,
    /// Dials that failed.
    pub failed_dials: u64,
    /// Connections that were lost or closed.
    pub lost: u64,
    /// Gossip messages dropped before they were sent.
    pub gossip_dropped: u64,
    /// Joins answered with a certificate.
    pub joined: u64,
    /// Joins refused.
    pub joins_refused: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    strangers: AtomicU64,
    garbage: AtomicU64,
    failed_dials: AtomicU64,
    lost: AtomicU64,
    gossip_dropped: AtomicU64,
    pub(crate) joined: AtomicU64,
    pub(crate) joins_refused: AtomicU64,
    /// The second (since 1970) in which a refusal was last logged.
    refusal_logged: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The node's connections with its peers. Clones share them.
#[derive(Clone)]
pub struct Backhaul(Arc<Shared>);

#[derive(Clone)]
struct Handlers {
    inbound: Arc<dyn Inbound>,
    joiner: Arc<dyn Joiner>,
}

struct Shared {
    config: BackhaulConfig,
    identity: Arc<Identity>,
    endpoint: Endpoint,
    client: quinn::ClientConfig,
    links: LinkTable,
    proximity: Arc<Peers>,
    peers: ArcSwap<OrdMap<NodeNumber, Arc<Peer>>>,
    /// Held while the set of peers changes.
    roster: Mutex<()>,
    fenced: ArcSwap<BTreeSet<[u8; 32]>>,
    handlers: watch::Sender<Option<Handlers>>,
    counters: Counters,
    runtime: Handle,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl std::fmt::Debug for Backhaul {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backhaul").field("node", &self.0.identity.number()).finish_non_exhaustive()
    }
}

impl Backhaul {
    /// Listens on `config.bind`. Tasks run on the current Tokio runtime. Incoming connections wait
    /// until [`Self::serve`].
    ///
    /// # Errors
    /// [`BackhaulError`].
    pub fn bind(
        config: BackhaulConfig,
        identity: Arc<Identity>,
        links: LinkTable,
        regions: Arc<Regions>,
    ) -> Result<Self, BackhaulError> {
        let refused =
            |error: std::io::Error| BackhaulError::Bind { bind: config.bind, reason: error.to_string() };
        let socket = UdpSocket::bind(config.bind).map_err(refused)?;
        Self::with_socket(socket, config, identity, links, regions)
    }

    /// Listens on a socket that is bound already: a node that joins must say where it listens before
    /// it has an identity.
    ///
    /// # Errors
    /// [`BackhaulError`].
    pub fn with_socket(
        socket: UdpSocket,
        config: BackhaulConfig,
        identity: Arc<Identity>,
        links: LinkTable,
        regions: Arc<Regions>,
    ) -> Result<Self, BackhaulError> {
        let bind = config.bind;
        let refused = |error: std::io::Error| BackhaulError::Bind { bind, reason: error.to_string() };
        let runtime = Handle::try_current().map_err(|_| BackhaulError::NoRuntime)?;
        let tasks = TaskTracker::new();
        let stop = CancellationToken::new();
        enlarge_buffers(&socket);
        let inner = TokioRuntime.wrap_udp_socket(socket).map_err(refused)?;
        let entropy = config.seed.map_or_else(Entropy::default, Entropy::seeded);
        let (socket, deliver) = link::shape(inner, links.clone(), entropy);
        tasks.spawn_on(stop.clone().run_until_cancelled_owned(deliver), &runtime);

        let transport = Arc::new(transport(&config));
        let mut server = quinn::ServerConfig::with_crypto(tls::server(&identity)?);
        server.transport_config(Arc::clone(&transport)).migration(false);
        let mut client = quinn::ClientConfig::new(tls::client(&identity)?);
        client.transport_config(transport);
        let on = Arc::new(On { runtime: runtime.clone(), tasks: tasks.clone() });
        let endpoint = Endpoint::new_with_abstract_socket(cid::endpoint(&identity), Some(server), socket, on)
            .map_err(refused)?;
        let proximity = Arc::new(Peers::new(identity.number(), config.region, regions));
        let shared = Shared {
            config,
            identity,
            endpoint,
            client,
            links,
            proximity,
            peers: ArcSwap::default(),
            roster: Mutex::new(()),
            fenced: ArcSwap::default(),
            handlers: watch::channel(None).0,
            counters: Counters::default(),
            runtime,
            tasks,
            stop,
        };
        Ok(Self(Arc::new(shared)))
    }

    /// Where backhaul listens.
    ///
    /// # Panics
    /// Never: the socket is bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.0.endpoint.local_addr().expect("invariant: the socket is bound")
    }

    /// Begins to take connections, and hands over what comes on all connections. Called once.
    pub fn serve(&self, inbound: Arc<dyn Inbound>, joiner: Arc<dyn Joiner>) {
        let first = self.0.handlers.send_replace(Some(Handlers { inbound, joiner })).is_none();
        if first {
            self.0.spawn(serve::accept(Arc::clone(&self.0)));
        }
    }

    /// Replaces the set of members: new ones are dialled, removed ones cut off. The node itself may
    /// stand in it.
    pub fn set_peers(&self, peers: &OrdMap<NodeNumber, PeerAddress>) {
        let shared = &self.0;
        let _changing = shared.roster.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = OrdMap::clone(&shared.peers.load_full());
        for (number, peer) in table.clone() {
            // One that was met before the registry told of it stays.
            if peer.is_registered() && !peers.contains_key(&number) {
                table.remove(&number);
                peer.remove();
                shared.proximity.forget(number);
            }
        }
        for (number, address) in peers.iter().filter(|(number, _)| **number != shared.identity.number()) {
            let peer = table.entry(*number).or_insert_with(|| {
                Arc::new(Peer::new(*number, shared.proximity.enter(*number, None), &shared.stop))
            });
            shared.proximity.enter(*number, Some(address.region));
            if peer.register(address.clone()) {
                shared.spawn(Arc::clone(peer).keep(Arc::clone(shared)));
            }
        }
        shared.peers.store(Arc::new(table));
        let addresses: BTreeMap<_, _> = peers.iter().map(|(number, peer)| (*number, peer.addr)).collect();
        shared.links.set_addresses(addresses);
    }

    /// Replaces the keys that are shut out although the authority signed them: those of removed nodes.
    pub fn set_fenced(&self, keys: BTreeSet<[u8; 32]>) {
        for peer in self.0.peers.load_full().values() {
            peer.close_where(STRANGER, |conn| keys.contains(&conn.key));
        }
        self.0.fenced.store(Arc::new(keys));
    }

    /// Opens a stream for a request, dialling first if need be; its first frame is sent.
    ///
    /// # Errors
    /// [`OpenError`], after the preamble's deadline at the latest.
    pub async fn open(&self, to: NodeNumber, preamble: Preamble) -> Result<FrameStream, OpenError> {
        self.open_with(to, preamble, []).await
    }

    /// As [`Self::open`], with further frames in the same write.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_with(
        &self,
        to: NodeNumber,
        preamble: Preamble,
        frames: impl IntoIterator<Item = Frame>,
    ) -> Result<FrameStream, OpenError> {
        let within = Duration::from_millis(u64::from(preamble.deadline_ms));
        let open = std::iter::once(Frame::Open(Open::Request(Box::new(preamble))));
        self.stream(to, within, 0, open.chain(frames)).await
    }

    /// Asks a peer and waits for its answer, `timeout` in all.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask(&self, to: NodeNumber, ask: Ask, timeout: Duration) -> Result<Bytes, AskError> {
        let deadline = clock::now() + timeout;
        let priority = priority(&ask);
        let mut stream = self.stream(to, timeout, priority, [Frame::Open(Open::Ask(ask))]).await?;
        // The question is whole; an error here shows in the answer.
        let _ = stream.send.finish();
        let answer = tokio::time::timeout_at(deadline.into(), stream.recv.next());
        match answer.await.map_err(|_| AskError::Timeout(to))?? {
            Some(Frame::Answer(Ok(bytes))) => Ok(bytes),
            Some(Frame::Answer(Err(reason))) => Err(AskError::Refused { node: to, reason }),
            Some(_) | None => {
                count(&self.0.counters.garbage);
                stream.recv.stop(stream::GARBAGE);
                Err(StreamError::Truncated.into())
            }
        }
    }

    /// Sends a gossip message: as a datagram if it fits, else on a stream of high priority. Never
    /// waits; without a connection the last two messages are kept while the peer is dialled.
    pub fn send_gossip(&self, to: NodeNumber, message: Bytes) {
        match self.0.peers.load().get(&to) {
            Some(peer) => peer.send_gossip(&self.0, message),
            None => count(&self.0.counters.gossip_dropped),
        }
    }

    /// Distances and suspicion.
    pub fn proximity(&self) -> Arc<Peers> {
        Arc::clone(&self.0.proximity)
    }

    /// What was counted.
    pub fn counts(&self) -> BackhaulCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.0.counters;
        BackhaulCounts {
            strangers: read(&counters.strangers),
            garbage: read(&counters.garbage),
            failed_dials: read(&counters.failed_dials),
            lost: read(&counters.lost),
            gossip_dropped: read(&counters.gossip_dropped),
            joined: read(&counters.joined),
            joins_refused: read(&counters.joins_refused),
        }
    }

    /// Closes all connections, tells the peers, and waits for the node's tasks here, `patience` at
    /// most. Nothing can be opened any more.
    pub async fn close(&self, patience: Duration) {
        let shared = &self.0;
        shared.stop.cancel();
        shared.endpoint.close(SHUTDOWN, b"going away");
        shared.tasks.close();
        let end = async {
            shared.endpoint.wait_idle().await;
            // The endpoint's own driver ends with its last handle, so it is not waited for here.
        };
        // Peers that do not acknowledge find out by themselves.
        let _ = tokio::time::timeout(patience, end).await;
    }

    async fn stream(
        &self,
        to: NodeNumber,
        within: Duration,
        priority: i32,
        frames: impl IntoIterator<Item = Frame>,
    ) -> Result<FrameStream, OpenError> {
        let peer = self.0.peers.load().get(&to).cloned().ok_or(OpenError::Unknown(to))?;
        let opening = async {
            let mut stream = peer.open(&self.0).await?;
            stream.send.prioritize(priority);
            stream.send.send_all(frames).await?;
            Ok(stream)
        };
        tokio::time::timeout(within, opening).await.map_err(|_| OpenError::Timeout(to))?
    }
}

/// Small questions pass in front of bodies; big ones do not.
fn priority(ask: &Ask) -> i32 {
    const SMALL: usize = 64 << 10;
    match ask {
        Ask::Registry(message) if message.len() > SMALL => -1,
        Ask::Registry(_) | Ask::Ping | Ask::Version | Ask::Barrier(_) => 1,
        Ask::Api(_) | Ask::Config(_) => 0,
    }
}

impl Shared {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(self.stop.clone().run_until_cancelled_owned(task), &self.runtime);
    }

    /// The peer of that number; made when only its certificate tells of it.
    fn meet(&self, number: NodeNumber) -> Arc<Peer> {
        let _changing = self.roster.lock().unwrap_or_else(PoisonError::into_inner);
        let table = self.peers.load_full();
        if let Some(peer) = table.get(&number) {
            return Arc::clone(peer);
        }
        let peer = Arc::new(Peer::new(number, self.proximity.enter(number, None), &self.stop));
        self.peers.store(Arc::new(table.update(number, Arc::clone(&peer))));
        peer
    }

    /// The handlers, once [`Backhaul::serve`] gave them.
    async fn handlers(&self) -> Option<Handlers> {
        let mut handlers = self.handlers.subscribe();
        let given = handlers.wait_for(Option::is_some).await.ok()?;
        given.clone()
    }

    /// Splits the node's window among the connections there are.
    fn share_windows(&self) {
        let conns: Vec<_> = self.peers.load_full().values().flat_map(|peer| peer.conns()).collect();
        let share = self.config.node_window / (conns.len() as u64).max(1);
        let window = share.max(LEAST_WINDOW).min(self.config.connection_window);
        for conn in conns {
            conn.connection.set_receive_window(VarInt::from_u64(window).unwrap_or(VarInt::MAX));
        }
    }

    /// How long to wait between probes of a peer that is not in use: a node sends at most some 20
    /// probes a second to idle peers.
    fn probe_idle(&self) -> Duration {
        let peers = self.peers.load().len() as u32;
        (Duration::from_millis(50) * peers).clamp(self.config.probe_busy, self.config.probe_idle)
    }
}

fn transport(config: &BackhaulConfig) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let idle = config.idle_timeout.try_into().ok();
    transport
        .max_concurrent_bidi_streams(config.streams.into())
        .max_concurrent_uni_streams(GOSSIP_STREAMS.into())
        .max_idle_timeout(idle)
        // A handshake packet that is lost must not cost a second.
        .initial_rtt(Duration::from_millis(150))
        .stream_receive_window(config.stream_window.into())
        .receive_window(VarInt::from_u64(config.connection_window).unwrap_or(VarInt::MAX))
        .send_window(config.connection_window)
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
        .datagram_send_buffer_size(DATAGRAM_BUFFER);
    transport
}

/// Bursts of many streams overrun the kernel's default buffer of some 200 KiB.
fn enlarge_buffers(socket: &UdpSocket) {
    const BYTES: usize = 4 << 20;
    let socket = socket2::SockRef::from(socket);
    // The kernel caps both silently; smaller buffers only cost retransmissions.
    let _ = socket.set_recv_buffer_size(BYTES);
    let _ = socket.set_send_buffer_size(BYTES);
}

/// Runs quinn's tasks on one runtime, whoever calls.
#[derive(Debug)]
struct On {
    runtime: Handle,
    tasks: TaskTracker,
}

impl Runtime for On {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        let _entered = self.runtime.enter();
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.tasks.spawn_on(future, &self.runtime);
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> std::io::Result<Arc<dyn AsyncUdpSocket>> {
        let _entered = self.runtime.enter();
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        clock::now()
    }
}

#[cfg(test)]
mod tests;
