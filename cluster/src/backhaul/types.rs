//! What backhaul takes and gives: handlers, addresses, configuration, errors, counts.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use skein_core::wire::{Ask, JoinRefusal, JoinReply, JoinRequest, Preamble};
use skein_core::{NodeName, NodeNumber, RegionCode};

use super::stream::{FrameStream, StreamError};
use super::tls::TlsError;
use crate::BoxFuture;

/// What the node does with what its peers send. Nothing here may block.
pub trait Inbound: Send + Sync + 'static {
    /// A request or connection for a Machine; the future owns the stream.
    fn request(&self, peer: NodeNumber, preamble: Preamble, stream: FrameStream) -> BoxFuture<'static, ()>;
    /// A question; the error's text reaches the asker.
    fn ask(&self, peer: NodeNumber, ask: Ask) -> BoxFuture<'static, Result<Bytes, String>>;
    /// A gossip message: dropped and counted when there is no room.
    fn gossip(&self, peer: NodeNumber, message: Bytes);
}

/// Decides on nodes that want to join; the refusal reaches who asks.
pub trait Joiner: Send + Sync + 'static {
    /// Admits a node or says why not.
    fn join(
        &self,
        request: JoinRequest,
        from: SocketAddr,
    ) -> BoxFuture<'static, Result<JoinReply, JoinRefusal>>;
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
#[derive(Debug, Clone)]
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
    /// Runtimes that carry packets and requests, one per core and each with one thread; empty means
    /// the current one. On the edge's own, a request meets no other thread on its way to a peer.
    pub cores: Vec<tokio::runtime::Handle>,
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
            cores: Vec::new(),
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
    /// Connections that were lost or closed while they were sent on.
    pub lost: u64,
    /// Gossip messages dropped before they were sent.
    pub gossip_dropped: u64,
    /// Joins answered with a certificate.
    pub joined: u64,
    /// Joins refused.
    pub joins_refused: u64,
}
