//! JSON of `/skein/v1`: what Skein has beyond the Machines API (SPEC API-1, DESIGN section 8).

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::fault::LinkRule;
use crate::id::{AppName, MachineId, NodeName, NodeNumber, OrgSlug};
use crate::machine::MachineState;
use crate::region::RegionCode;

/// `cluster.json`, and what `skein up --detach --json` prints (DESIGN section 8).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterJson {
    /// The testbed's name.
    pub name: String,
    /// Valid while any node lives.
    pub api: ApiJson,
    /// The page, with its token; `null` until there is one.
    pub dashboard: Option<String>,
    /// Where traces are collected.
    pub otlp: OtlpJson,
    /// The development authority's certificate; `null` until TLS is served.
    pub ca: Option<PathBuf>,
    /// `netns` or `portable`.
    pub isolation: String,
    /// The nodes.
    pub nodes: Vec<BoundJson>,
}

/// Where the API is and what opens it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiJson {
    /// `http://127.0.0.1:…`.
    pub url: String,
    /// The operator's token.
    pub token: String,
}

/// OTLP receivers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtlpJson {
    /// `http://127.0.0.1:…` for gRPC.
    pub grpc: String,
    /// `http://127.0.0.1:…` for HTTP; `/v1/traces` below it.
    pub http: String,
}

/// What a node bound: its `bound.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundJson {
    /// The node's name.
    pub name: NodeName,
    /// Its region.
    pub region: RegionCode,
    /// Its process.
    pub pid: u32,
    /// Its API.
    pub api: String,
    /// Its metrics.
    pub metrics: String,
    /// Its DNS; `null` until it serves one.
    pub dns: Option<String>,
    /// Its WireGuard gateway; `null` until it serves one.
    pub wireguard: Option<String>,
    /// Where its files are.
    pub data_dir: PathBuf,
}

/// A node, as another node sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeJson {
    /// Its number.
    pub number: NodeNumber,
    /// Its name.
    pub name: NodeName,
    /// Its region.
    pub region: RegionCode,
    /// Whether gossip counts it as alive.
    pub alive: bool,
    /// Whether it is draining.
    pub draining: bool,
    /// Whether transport holds it suspect.
    pub suspect: bool,
    /// `leader`, `voter` or `learner` of the registry.
    pub registry: String,
    /// Machines on it.
    pub machines: usize,
    /// Round trip in milliseconds, as measured by the answering node.
    pub rtt_ms: f64,
    /// Its API.
    pub api: SocketAddr,
}

/// The answering node's own status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusJson {
    /// The node.
    pub node: NodeName,
    /// Its region.
    pub region: RegionCode,
    /// The cluster's id.
    pub cluster: String,
    /// `netns` or `portable`.
    pub isolation: String,
    /// The program's version.
    pub version: String,
    /// The snapshot's version.
    pub snapshot: u64,
    /// The registry entry that was applied.
    pub applied: u64,
    /// The registry's leader.
    pub leader: Option<NodeNumber>,
    /// The registry's voters.
    pub voters: Vec<NodeNumber>,
}

/// A Machine in the answering node's snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenMachineJson {
    /// Its id.
    pub id: MachineId,
    /// Its app.
    pub app: Option<AppName>,
    /// Its node.
    pub node: NodeNumber,
    /// Its region.
    pub region: RegionCode,
    /// Its state.
    pub state: MachineState,
    /// Whether its checks pass.
    pub healthy: bool,
    /// Whether it is cordoned.
    pub cordoned: bool,
    /// When its state last changed: milliseconds since 1970 on its node's clock.
    pub changed_ms: u64,
    /// When the answering node learned of it: milliseconds since 1970 on its own clock.
    pub seen_ms: u64,
    /// Whether its configuration is known here: without it nothing is routed to it.
    pub configured: bool,
}

/// Asks where to connect (`skein endpoint`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRequest {
    /// The app.
    pub app: AppName,
    /// The public port; 80 by default.
    #[serde(default = "port_80")]
    pub port: u16,
    /// Only at this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// Only at the node that the anycast front would choose for a client there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// `tcp` (default) or `udp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
}

fn port_80() -> u16 {
    80
}

/// Where to connect on this machine to reach a public address and port at a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointJson {
    /// The node.
    pub node: NodeName,
    /// Its region.
    pub region: RegionCode,
    /// The public address.
    pub public: IpAddr,
    /// The public port.
    pub port: u16,
    /// `ip:port` on this machine.
    pub connect: SocketAddr,
}

/// An organization.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrgJson {
    /// Its slug.
    pub slug: OrgSlug,
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
}

/// An API token; `token` only in the answer that creates it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenJson {
    /// Its public id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its organization; `null` is the whole cluster.
    pub org: Option<OrgSlug>,
    /// Whether it may only read.
    pub read_only: bool,
    /// RFC 3339.
    pub created_at: String,
    /// The secret, once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// Makes an organization.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateOrg {
    /// Its slug.
    pub slug: OrgSlug,
    /// Its name; the slug when empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
}

/// Makes an API token.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CreateToken {
    /// Its organization; the whole cluster when absent, which only the operator may ask for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub org: Option<OrgSlug>,
    /// Whether it may only read.
    pub read_only: bool,
    /// Its name for people.
    pub name: String,
}

/// Makes a join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CreateJoinToken {
    /// How many nodes may join with it; at least 1.
    pub uses: u32,
    /// How long it is valid, in seconds; at least 1.
    pub ttl_seconds: u64,
}

impl Default for CreateJoinToken {
    fn default() -> Self {
        Self { uses: 1, ttl_seconds: 3600 }
    }
}

/// A join token, shown once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTokenJson {
    /// What `skein node run --join` takes.
    pub token: String,
}

/// Rules of a node's links.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LinksJson {
    /// What chaos adds, per peer; peers without a rule are as distance makes them.
    pub rules: Vec<LinkJson>,
}

/// The rule towards one peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinkJson {
    /// The peer.
    pub peer: NodeName,
    /// The rule.
    #[serde(flatten)]
    pub rule: LinkRule,
}
