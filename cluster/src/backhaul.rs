//! Backhaul: QUIC between nodes, with mutual TLS (DESIGN section 4, SPEC CLU-1, CLU-4).
//!
//! One UDP socket per node dials and accepts. A pair of nodes shares one connection; a request, a
//! TCP connection or a question is one bidirectional stream of it; gossip and probes are datagrams.
//! Peers are known by the number and key that their certificate proves, never by their address.

mod conn;
mod datagram;
mod endpoint;
mod peer;
mod peers;
mod serve;
mod stream;
pub(crate) mod tls;
mod types;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use imbl::OrdMap;
use quinn::{Endpoint, Runtime, TokioRuntime, VarInt};
use skein_core::NodeNumber;
use skein_core::region::Regions;
use skein_core::wire::{Ask, Frame, Open, Preamble};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::BoxFuture;
use crate::clock;
use crate::entropy::Entropy;
use crate::identity::Identity;
use crate::keeper::{Keeper, Tasks};
use crate::link::{self, LinkTable};

use endpoint::Cores;
use peer::Peer;
pub use peers::{PeerReport, Peers};
pub use stream::{FrameReceiver, FrameSender, FrameStream, StreamError};
pub use tls::TlsError;
pub use types::{
    AskError, BackhaulConfig, BackhaulCounts, BackhaulError, Inbound, Joiner, OpenError, PeerAddress,
};

/// The least a connection may be given of [`BackhaulConfig::node_window`].
const LEAST_WINDOW: u64 = 4 << 20;
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
    handlers: OnceLock<Handlers>,
    serving: watch::Sender<bool>,
    counters: Counters,
    /// For what decides and answers questions.
    runtime: Handle,
    /// For what carries packets and requests.
    cores: Cores,
    /// Of the links.
    keeper: Arc<dyn Keeper>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl std::fmt::Debug for Backhaul {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backhaul").field("node", &self.0.identity.number()).finish_non_exhaustive()
    }
}

impl Backhaul {
    /// Listens on `config.bind`. Tasks run on the current Tokio runtime, links are kept by [`Tasks`].
    /// Incoming connections wait until [`Self::serve`].
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
        let runtime = Handle::try_current().map_err(|_| BackhaulError::NoRuntime)?;
        // Links end with the backhaul.
        let keeper = Arc::new(Tasks::on(runtime, CancellationToken::new()));
        Self::with_socket(socket, config, identity, links, regions, keeper)
    }

    /// Listens on a socket that is bound already: a node that joins must say where it listens before
    /// it has an identity. The link to each peer is a life of `keeper`'s.
    ///
    /// # Errors
    /// [`BackhaulError`].
    pub fn with_socket(
        socket: UdpSocket,
        config: BackhaulConfig,
        identity: Arc<Identity>,
        links: LinkTable,
        regions: Arc<Regions>,
        keeper: Arc<dyn Keeper>,
    ) -> Result<Self, BackhaulError> {
        let bind = config.bind;
        let refused = |error: std::io::Error| BackhaulError::Bind { bind, reason: error.to_string() };
        let runtime = Handle::try_current().map_err(|_| BackhaulError::NoRuntime)?;
        let tasks = TaskTracker::new();
        let stop = CancellationToken::new();
        endpoint::enlarge_buffers(&socket);
        let cores = endpoint::Cores::new(&config.cores, &runtime);
        let inner = {
            let _entered = cores.first().enter();
            TokioRuntime.wrap_udp_socket(socket).map_err(refused)?
        };
        let entropy = config.seed.map_or_else(Entropy::default, Entropy::seeded);
        let (socket, deliver) = link::shape(inner, links.clone(), entropy);
        tasks.spawn_on(stop.clone().run_until_cancelled_owned(deliver), cores.first());

        let transport = Arc::new(endpoint::transport(&config));
        let mut server = quinn::ServerConfig::with_crypto(tls::server(&identity)?);
        server.transport_config(Arc::clone(&transport)).migration(false);
        let mut client = quinn::ClientConfig::new(tls::client(&identity)?);
        client.transport_config(transport);
        let on = Arc::new(endpoint::On { cores: cores.clone(), tasks: tasks.clone() });
        let endpoint =
            Endpoint::new_with_abstract_socket(endpoint::identified(&identity), Some(server), socket, on)
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
            handlers: OnceLock::new(),
            serving: watch::channel(false).0,
            counters: Counters::default(),
            runtime,
            cores,
            keeper,
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

    /// Begins to take connections, and hands over what comes on all connections. Called once: later
    /// calls change nothing.
    pub fn serve(&self, inbound: Arc<dyn Inbound>, joiner: Arc<dyn Joiner>) {
        if self.0.handlers.set(Handlers { inbound, joiner }).is_ok() {
            self.0.serving.send_replace(true);
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
                let (peer, within) = (Arc::clone(peer), Arc::clone(shared));
                let life = move |cancel| -> BoxFuture<'static, Result<(), String>> {
                    Box::pin(Arc::clone(&peer).keep(Arc::clone(&within), cancel))
                };
                shared.keeper.keep(format!("link to {number}"), Arc::new(life));
            }
        }
        shared.peers.store(Arc::new(table));
        let addresses: BTreeMap<_, _> = peers.iter().map(|(number, peer)| (*number, peer.addr)).collect();
        shared.links.set_addresses(addresses);
    }

    /// Replaces the keys that are shut out although the authority signed them: those of removed nodes.
    pub fn set_fenced(&self, keys: BTreeSet<[u8; 32]>) {
        let keys = Arc::new(keys);
        // First, so that one that is cut off does not come straight back.
        self.0.fenced.store(Arc::clone(&keys));
        for peer in self.0.peers.load_full().values() {
            peer.close_where(STRANGER, |conn| keys.contains(&conn.key));
        }
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
        Ask::Registry(_)
        | Ask::Ping
        | Ask::Version
        | Ask::Barrier(_)
        | Ask::Room(_)
        | Ask::Demand { .. }
        | Ask::Start(_)
        | Ask::Rest { .. } => 1,
        Ask::Api(_) | Ask::Config(_) | Ask::Explain(_) => 0,
    }
}

impl Shared {
    /// Runs a task until the node closes backhaul.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(self.stop.clone().run_until_cancelled_owned(task), &self.runtime);
    }

    /// As [`Self::spawn`], for what carries packets: on that core.
    fn spawn_on(&self, core: &Handle, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(self.stop.clone().run_until_cancelled_owned(task), core);
    }

    /// Runs a task that ends with its stream, on each core in turn; cheaper than [`Self::spawn`].
    fn spawn_stream(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(task, self.cores.next());
    }

    /// Runs a task that answers a question and ends with its stream.
    fn spawn_answer(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(task, &self.runtime);
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
    async fn handlers(&self) -> Option<&Handlers> {
        if self.handlers.get().is_none() {
            self.serving.subscribe().wait_for(|serving| *serving).await.ok()?;
        }
        self.handlers.get()
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

#[cfg(test)]
mod tests;
