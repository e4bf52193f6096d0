//! Nodes in one process, with real sockets on loopback.

use std::time::Duration;

use skein_core::wire::{JoinRefusal, JoinReply, JoinRequest};

use super::super::*;
use crate::BoxFuture;
use crate::identity::{Authority, DataKey};
use tokio::sync::mpsc;

pub(super) const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn number(number: u32) -> NodeNumber {
    NodeNumber(number)
}

/// Waits for a condition; the state at the end stands in the failure.
pub(super) async fn eventually<T: std::fmt::Debug>(mut state: impl FnMut() -> T, holds: impl Fn(&T) -> bool) {
    let deadline = clock::now() + PATIENCE;
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    loop {
        let seen = state();
        if holds(&seen) {
            return;
        }
        assert!(clock::now() < deadline, "in {PATIENCE:?} it never held; at the end: {seen:?}");
        ticks.tick().await;
    }
}

/// What a node's handlers were given.
pub(super) struct Seen {
    pub(super) requests: mpsc::UnboundedReceiver<(NodeNumber, Preamble, FrameStream)>,
    pub(super) gossip: mpsc::UnboundedReceiver<(NodeNumber, Bytes)>,
    /// Names of the threads that were called.
    pub(super) threads: mpsc::UnboundedReceiver<(&'static str, Option<String>)>,
}

struct Handler {
    requests: mpsc::UnboundedSender<(NodeNumber, Preamble, FrameStream)>,
    gossip: mpsc::UnboundedSender<(NodeNumber, Bytes)>,
    threads: mpsc::UnboundedSender<(&'static str, Option<String>)>,
}

impl Handler {
    fn note_thread(&self, what: &'static str) {
        // The test may be over.
        let _ = self.threads.send((what, std::thread::current().name().map(str::to_owned)));
    }
}

impl Inbound for Handler {
    fn request(&self, peer: NodeNumber, preamble: Preamble, stream: FrameStream) -> BoxFuture<'static, ()> {
        self.note_thread("request");
        let _ = self.requests.send((peer, preamble, stream));
        Box::pin(std::future::ready(()))
    }

    fn ask(&self, peer: NodeNumber, ask: Ask) -> BoxFuture<'static, Result<Bytes, String>> {
        self.note_thread("question");
        Box::pin(async move {
            if let Ask::Registry(bytes) = ask {
                return Ok(Bytes::from([&[peer.0 as u8], &bytes[..]].concat()));
            }
            if ask == Ask::Version {
                return std::future::pending().await;
            }
            Err("no such thing".into())
        })
    }

    fn gossip(&self, peer: NodeNumber, message: Bytes) {
        let _ = self.gossip.send((peer, message));
    }
}

struct NoJoins;

impl Joiner for NoJoins {
    fn join(&self, _: JoinRequest, _: SocketAddr) -> BoxFuture<'static, Result<JoinReply, JoinRefusal>> {
        Box::pin(std::future::ready(Err(JoinRefusal::Final("nobody may join".into()))))
    }
}

pub(super) struct Node {
    pub(super) identity: Arc<Identity>,
    pub(super) backhaul: Backhaul,
    pub(super) links: LinkTable,
    pub(super) seen: Seen,
}

/// A cluster's secrets and the addresses of its nodes.
pub(super) struct Cluster {
    pub(super) authority: Authority,
    data_key: DataKey,
    pub(super) peers: OrdMap<NodeNumber, PeerAddress>,
}

impl Cluster {
    pub(super) fn new() -> Self {
        let (authority, data_key) = (Authority::generate().unwrap(), DataKey::generate());
        Self { authority, data_key, peers: OrdMap::new() }
    }

    pub(super) fn identity(&self, node: u32) -> Arc<Identity> {
        let name = format!("iad-{node}").parse().unwrap();
        Arc::new(Identity::issue(&self.authority, &self.data_key, number(node), name).unwrap())
    }

    /// Starts a node that knows nobody yet.
    pub(super) fn start(
        &mut self,
        identity: Arc<Identity>,
        change: impl FnOnce(&mut BackhaulConfig),
    ) -> Node {
        let mut config = BackhaulConfig::new("127.0.0.1:0".parse().unwrap(), "iad".parse().unwrap());
        config.seed = Some(u64::from(identity.number().0));
        change(&mut config);
        let region = config.region;
        let links = LinkTable::default();
        let backhaul = Backhaul::bind(config, Arc::clone(&identity), links.clone(), Arc::default()).unwrap();
        let (requests, seen_requests) = mpsc::unbounded_channel();
        let (gossip, seen_gossip) = mpsc::unbounded_channel();
        let (threads, seen_threads) = mpsc::unbounded_channel();
        backhaul.serve(Arc::new(Handler { requests, gossip, threads }), Arc::new(NoJoins));
        let (addr, name, key) = (backhaul.local_addr(), identity.name().clone(), identity.key_hash());
        self.peers.insert(identity.number(), PeerAddress { addr, name, region, key });
        let seen = Seen { requests: seen_requests, gossip: seen_gossip, threads: seen_threads };
        Node { identity, backhaul, links, seen }
    }

    /// Starts nodes 1 to `N` that know each other.
    pub(super) fn of<const N: usize>() -> (Self, [Node; N]) {
        let mut cluster = Self::new();
        let nodes = std::array::from_fn(|index| {
            let identity = cluster.identity(index as u32 + 1);
            cluster.start(identity, |_| {})
        });
        nodes.iter().for_each(|node: &Node| node.backhaul.set_peers(&cluster.peers));
        (cluster, nodes)
    }
}

impl Node {
    pub(super) fn report(&self, of: u32) -> PeerReport {
        let all = self.backhaul.proximity().report();
        all.into_iter().find(|report| report.node == number(of)).expect("the peer is known")
    }

    pub(super) async fn connected(&self, to: u32) {
        eventually(|| self.report(to), |report| report.connected && !report.suspect).await;
    }

    pub(super) fn conns(&self, to: u32) -> Vec<Arc<conn::Conn>> {
        self.backhaul.0.peers.load().get(&number(to)).map_or_else(Vec::new, |peer| peer.conns())
    }

    pub(super) async fn echo(&self, to: u32, text: &str) -> Result<Bytes, AskError> {
        self.backhaul.ask(number(to), Ask::Registry(text.into()), PATIENCE).await
    }
}

pub(super) fn preamble() -> Preamble {
    Preamble {
        app: skein_core::AppId(ulid::Ulid(9)),
        port: 443,
        protocol: skein_core::wire::Protocol::Http,
        target: skein_core::wire::Target::Any,
        deadline_ms: PATIENCE.as_millis() as u32,
        relay: None,
        hops: 0,
        edge: number(1),
        edge_region: "iad".parse().unwrap(),
        client: "203.0.113.9:5000".parse().unwrap(),
        public: "198.51.100.1:443".parse().unwrap(),
        request_id: "01JNRQ9VVKJ7HZFMJWJB3M3RYN-iad".into(),
        traceparent: None,
    }
}
