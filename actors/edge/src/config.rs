//! What an edge is told at its start.

use std::sync::Arc;
use std::time::Duration;

use skein_core::queue::Bounds;
use skein_core::{NodeName, NodeNumber, RegionCode};

use crate::demand::Starts;
use crate::http2::Http2Limits;

/// Settings of an edge and worker. [`EdgeConfig::new`] gives the defaults named at each field.
#[derive(Debug, Clone)]
pub struct EdgeConfig {
    /// This node.
    pub node: NodeNumber,
    /// Its name; label `host` of metrics.
    pub node_name: NodeName,
    /// Its region; told to Machines as `Fly-Region`.
    pub region: RegionCode,
    /// The most bytes of one request's body that are kept for a replay or retry: 1 MiB. A longer
    /// body cannot be replayed (SPEC RPL-5).
    pub replay_buffer: usize,
    /// The most bytes that all kept bodies of this node take together: 256 MiB.
    pub replay_budget: usize,
    /// The longest head of a request or response, in bytes: 64 KiB (SPEC HTTP-8).
    pub max_head: usize,
    /// The most fields of a request's head, and of its trailers: 100 (SPEC HTTP-8).
    pub max_fields: usize,
    /// The longest request target, in bytes: 32 KiB (SPEC HTTP-8).
    pub max_target: usize,
    /// How long a client may keep a connection without a request: 60 s (SPEC HTTP-6). This and the next
    /// three are kept to a tenth of the shortest of them.
    pub keep_alive: Duration,
    /// How long a client may take for a head that it began, or for the first one: 30 s (SPEC HTTP-9).
    pub head_timeout: Duration,
    /// How long nothing may come of a body that is waited for, before its response begins: 60 s
    /// (SPEC HTTP-9).
    pub body_timeout: Duration,
    /// How long a client may read nothing of what is to be sent to it: 300 s (SPEC HTTP-9).
    pub write_timeout: Duration,
    /// How long a request may take until a Machine is found for it, replays included: 60 s. A Machine
    /// that has it may take longer.
    pub route_timeout: Duration,
    /// The most requests that wait until a Machine can take them: 1,000 per service (app and port), 10,000
    /// in all; further ones get 503 at once (SPEC LB-4).
    pub queue: Bounds,
    /// How long a request waits there at most, within [`Self::route_timeout`]: 30 s (SPEC LB-4).
    pub queue_timeout: Duration,
    /// How long a connection to a Machine may take to be made: 3 s.
    pub connect_timeout: Duration,
    /// How long an unused connection to a Machine is kept: 4 s (SPEC HTTP-10).
    pub upstream_idle: Duration,
    /// The most connections of clients per listener; beyond it new ones are closed at once: 10,000.
    pub max_connections: usize,
    /// Limits of clients' HTTP/2 connections.
    pub http2: Http2Limits,
    /// The most responses that are compressed at the same time, each with 0.3 to 1.7 MiB of memory; further
    /// ones go out as they are: 128 (SPEC HTTP-5).
    pub max_compressions: usize,
    /// Of how many requests it is kept what was decided for them, and of a quarter as many more that
    /// failed, were tried again or replayed: 4,096. Each takes some 0.5 KB with an app of three Machines
    /// and [`skein_core::explain::MAX_BYTES`] at the very most (SPEC OBS-5).
    pub explained: usize,
    /// Which requests without a trace context of their own are traced.
    pub sampling: Sampling,
    /// Runtimes that connections are spread over, one per core and each with one thread; empty means
    /// the runtime that [`crate::Edge::map`] is called on.
    pub cores: Vec<tokio::runtime::Handle>,
    /// Who hears what requests want started (SPEC AUTO-2); when `None` nothing is started or waited for.
    pub starts: Option<Arc<dyn Starts>>,
}

/// Which requests are traced that bring no trace context: all up to a rate, then a share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// All of the first so many in a second.
    pub per_second: u32,
    /// This share of the rest, 0.0 to 1.0.
    pub ratio: f64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { per_second: 50, ratio: 0.01 }
    }
}

impl EdgeConfig {
    /// The defaults for a node.
    pub fn new(node: NodeNumber, node_name: NodeName, region: RegionCode) -> Self {
        Self {
            node,
            node_name,
            region,
            replay_buffer: 1 << 20,
            replay_budget: 256 << 20,
            max_head: 64 << 10,
            max_fields: 100,
            max_target: 32 << 10,
            keep_alive: Duration::from_secs(60),
            head_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(300),
            route_timeout: Duration::from_secs(60),
            queue: Bounds::default(),
            queue_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(3),
            upstream_idle: Duration::from_secs(4),
            max_connections: 10_000,
            http2: Http2Limits::default(),
            max_compressions: 128,
            explained: 4_096,
            sampling: Sampling::default(),
            cores: Vec::new(),
            starts: None,
        }
    }
}
