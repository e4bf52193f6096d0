//! The commands that change facts, and what comes of them.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::fact::{Address, AddressKind, App, JoinToken, Settings, Token};
use crate::id::{AppId, AppName, NetworkName, NodeName, NodeNumber, OrgId, OrgSlug, TokenId};
use crate::region::RegionCode;

/// A command with the id that makes it safe to propose twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// The same id is applied once; its outcome is remembered for the last 1,024 proposals.
    pub request: Ulid,
    /// When it was proposed: milliseconds since 1970.
    pub now_ms: u64,
    /// What to do.
    pub command: Command,
}

/// A change of facts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "fields are those of the facts they make")]
pub enum Command {
    /// The first entry of a cluster's life.
    Init {
        settings: Settings,
        org: OrgId,
        slug: OrgSlug,
        token: Token,
    },
    CreateOrg {
        id: OrgId,
        slug: OrgSlug,
        name: String,
    },
    /// `network` is made when the organization has none of that name.
    CreateApp {
        id: AppId,
        name: AppName,
        org: OrgId,
        network: NetworkName,
    },
    DestroyApp {
        id: AppId,
    },
    Allocate {
        app: AppId,
        kind: AddressKind,
    },
    Release {
        app: AppId,
        ip: IpAddr,
    },
    CreateToken {
        token: Token,
    },
    RevokeToken {
        id: TokenId,
    },
    CreateJoinToken {
        token: JoinToken,
    },
    /// Spends one use of the join token and gives the node a number. `name: None` makes one of the
    /// region and a number. A node whose key is known keeps its number and name, and spends nothing:
    /// whoever joined and did not hear the answer may ask again, also when the token has expired or
    /// is used up by then. Its region and address are those of the last request. A fenced key is
    /// fenced no more.
    AddNode {
        token: TokenId,
        secret_hash: [u8; 32],
        name: Option<NodeName>,
        region: RegionCode,
        key: [u8; 32],
        backhaul: SocketAddr,
    },
    /// The first node of a cluster; needs no token.
    AddFirstNode {
        name: NodeName,
        region: RegionCode,
        key: [u8; 32],
        backhaul: SocketAddr,
    },
    MoveNode {
        number: NodeNumber,
        backhaul: SocketAddr,
    },
    /// Its key is fenced until a node is admitted with it again.
    RemoveNode {
        number: NodeNumber,
    },
}

/// What a command made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each holds what was made")]
pub enum Outcome {
    Done,
    Org(OrgId),
    App(App),
    Address(Address),
    Node(NodeNumber, NodeName),
}

/// Why a command changed nothing; the caller caused it unless said otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The name is in use.
    #[error("the name {0:?} is taken")]
    NameTaken(String),
    /// There is no such thing.
    #[error("{0} not found")]
    NotFound(String),
    /// The cluster was initialized before.
    #[error("the cluster is already initialized")]
    AlreadyInitialized,
    /// The cluster was not initialized.
    #[error("the cluster is not initialized")]
    NotInitialized,
    /// The pool is empty.
    #[error("no {0} is left in the pool")]
    PoolEmpty(String),
    /// The join token is not known, or its secret is wrong.
    #[error("the join token is not valid; make a new one with `skein node token`")]
    JoinTokenInvalid,
    /// The join token has expired.
    #[error("the join token has expired; make a new one with `skein node token`")]
    JoinTokenExpired,
    /// The join token was used as often as it may be.
    #[error("the join token has been used up; make a new one with `skein node token --uses N`")]
    JoinTokenUsed,
}
