//! The facts themselves, and the keys they are stored under.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::command::{Outcome, Refusal};
use crate::id::{AppId, AppName, NetworkId, NetworkName, NodeName, NodeNumber, OrgId, OrgSlug, TokenId};
use crate::region::RegionCode;

/// An organization.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Org {
    /// Its id.
    pub id: OrgId,
    /// Its slug.
    pub slug: OrgSlug,
    /// Its name for people.
    pub name: String,
    /// Milliseconds since 1970.
    pub created_ms: u64,
}

/// A network (6PN) of an organization.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its id, never reused.
    pub id: NetworkId,
    /// Its organization.
    pub org: OrgId,
    /// Its name there.
    pub name: NetworkName,
}

/// An app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    /// Its id.
    pub id: AppId,
    /// Its name.
    pub name: AppName,
    /// Its organization.
    pub org: OrgId,
    /// Its network, never changed.
    pub network: NetworkId,
    /// Milliseconds since 1970.
    pub created_ms: u64,
}

/// The kind of a public address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AddressKind {
    /// Dedicated IPv4.
    V4,
    /// Dedicated IPv6.
    V6,
    /// The shared IPv4: routed by host name.
    SharedV4,
}

/// An address of an app. A shared one stands once per app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// The app.
    pub app: AppId,
    /// Its kind.
    pub kind: AddressKind,
    /// Milliseconds since 1970.
    pub created_ms: u64,
}

/// A node that was admitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its number, never reused.
    pub number: NodeNumber,
    /// Its name.
    pub name: NodeName,
    /// Its region.
    pub region: RegionCode,
    /// SHA-256 of its public key: the identity that its certificate proves.
    pub key: [u8; 32],
    /// Where its backhaul listens.
    pub backhaul: SocketAddr,
    /// Milliseconds since 1970.
    pub joined_ms: u64,
}

/// What a token may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Everything: the operator's.
    Cluster,
    /// One organization.
    Org(OrgId),
}

/// An API token; only the hash of its secret is kept (SPEC API-2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Its public id.
    pub id: TokenId,
    /// SHA-256 of the secret.
    pub hash: [u8; 32],
    /// What it may touch.
    pub scope: Scope,
    /// It may only read.
    pub read_only: bool,
    /// Its name for people.
    pub name: String,
    /// Milliseconds since 1970.
    pub created_ms: u64,
}

/// A join token; only the hash of its secret is kept (SPEC CLU-1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// Its public id.
    pub id: TokenId,
    /// SHA-256 of the secret.
    pub hash: [u8; 32],
    /// Milliseconds since 1970.
    pub expires_ms: u64,
    /// Joins left.
    pub uses_left: u32,
}

/// Facts of the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The cluster's id.
    pub cluster: Ulid,
    /// Every app answers at `<app>.<base domain>`.
    pub base_domain: String,
    /// The shared IPv4.
    pub shared_v4: Ipv4Addr,
    /// Dedicated IPv4 addresses are taken from this /24 upwards; the network's first three octets.
    pub v4_pool: [u8; 3],
    /// Dedicated IPv6 addresses are taken from this /64.
    pub v6_pool: Ipv6Addr,
    /// The authority's certificate, DER.
    pub authority: Vec<u8>,
    /// The authority's key, PKCS#8, encrypted under the data key.
    pub authority_key: Vec<u8>,
}

/// Numbers that only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// The last network id given.
    pub network: u32,
    /// The last node number given.
    pub node: u32,
    /// The last dedicated IPv4's host part.
    pub v4: u8,
    /// The last dedicated IPv6's host part.
    pub v6: u64,
}

/// Names a fact; the key it is stored under.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each names the fact of that type")]
pub enum FactKey {
    Settings,
    Counters,
    Org(OrgId),
    Network(NetworkId),
    App(AppId),
    Address(IpAddr, AppId),
    Node(NodeNumber),
    Fenced([u8; 32]),
    Token(TokenId),
    JoinToken(TokenId),
    Answered(Ulid),
}

/// A fact, as it is stored and sent in snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each holds the fact of that type")]
pub enum Fact {
    Settings(Settings),
    Counters(Counters),
    Org(Org),
    Network(Network),
    App(App),
    Address(Address),
    Node(Node),
    /// The key of a node that was removed: shut out although its certificate is good.
    Fenced([u8; 32]),
    Token(Token),
    JoinToken(JoinToken),
    /// The request, its place in the order of all requests, and what came of it.
    Answered(Ulid, u64, Result<Outcome, Refusal>),
}

impl Fact {
    /// The key it is stored under.
    pub fn key(&self) -> FactKey {
        match self {
            Self::Settings(_) => FactKey::Settings,
            Self::Counters(_) => FactKey::Counters,
            Self::Org(org) => FactKey::Org(org.id),
            Self::Network(network) => FactKey::Network(network.id),
            Self::App(app) => FactKey::App(app.id),
            Self::Address(address) => FactKey::Address(address.ip, address.app),
            Self::Node(node) => FactKey::Node(node.number),
            Self::Fenced(key) => FactKey::Fenced(*key),
            Self::Token(token) => FactKey::Token(token.id),
            Self::JoinToken(token) => FactKey::JoinToken(token.id),
            Self::Answered(request, ..) => FactKey::Answered(*request),
        }
    }
}
