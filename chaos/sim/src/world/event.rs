//! What happens to nodes and what travels between them, as data.

use std::sync::Arc;

use skein_core::autostop::Rest;
use skein_core::autostop::start::Demand;
use skein_core::code::ErrorCode;
use skein_core::machine::MachineConfig;
use skein_core::wire::RefuseReason;
use skein_core::{AppId, ConfigHash, MachineId, NodeNumber, RegionCode};

use crate::agenda::Micros;
use crate::demand::Key;
use crate::request::Turn;
use crate::{cluster, registry};

/// What travels between nodes beside gossip and the registry.
#[derive(Debug, Clone)]
pub(super) enum Packet {
    Ping(Micros),
    Pong(Micros),
    Open(Open),
    Admitted {
        request: u64,
        attempt: u32,
        load: u32,
    },
    Refused {
        request: u64,
        attempt: u32,
        reason: RefuseReason,
        load: u32,
    },
    Head {
        request: u64,
        attempt: u32,
        load: u32,
        instruction: Option<String>,
    },
    Reset {
        request: u64,
        attempt: u32,
        code: ErrorCode,
        reached_app: bool,
    },
    WantConfig(ConfigHash),
    Config(ConfigHash, Arc<MachineConfig>),
    /// A Machine has room, an edge is told; its answer is whether somebody waits there.
    Room {
        told: u64,
        app: AppId,
        machine: MachineId,
        load: u32,
    },
    Waits {
        told: u64,
        waits: bool,
    },
    /// What an edge needs in a region.
    Demand(AppId, RegionCode, Demand),
    /// Traffic needs a Machine; whether its start began.
    Start(MachineId),
    Begun {
        machine: MachineId,
        begun: bool,
    },
    /// A Machine seems to be one too many; whether it came to rest.
    Rest {
        carry: u64,
        asked: u32,
        machine: MachineId,
        rest: Rest,
    },
    Rested {
        carry: u64,
        asked: u32,
        rested: bool,
    },
}

/// A request on its way to a worker.
#[derive(Debug, Clone)]
pub(crate) struct Open {
    pub(super) request: u64,
    pub(super) attempt: u32,
    /// Who holds the client.
    pub(super) edge: NodeNumber,
    /// Where it is to be passed on to.
    pub(super) relay: Option<NodeNumber>,
    /// Nodes that passed it on.
    pub(super) hops: u8,
    pub(super) hop: u32,
    pub(super) app: AppId,
    pub(super) machine: MachineId,
    pub(super) post: bool,
    pub(super) takes: Micros,
    pub(super) instruction: Option<String>,
}

/// What happens.
#[derive(Debug, Clone)]
pub(super) enum Event {
    Transition(usize),
    /// A request of a load comes to its edge.
    Come {
        edge: NodeNumber,
        app: u8,
        post: bool,
        takes: Micros,
    },
    Gossip(cluster::Event),
    Registry(registry::Event),
    Packet {
        from: NodeNumber,
        to: NodeNumber,
        packet: Packet,
    },
    /// A stream that a cut link holds back is tried again, until its connection is lost.
    Again {
        from: NodeNumber,
        to: NodeNumber,
        packet: Packet,
        not_before: Micros,
        since: Micros,
    },
    Fold(NodeNumber, u64),
    Probe(NodeNumber, u64),
    /// A Machine has finished with a work.
    Served(NodeNumber, u64, u64),
    /// A Machine's process is ready, or has ended.
    Turned(NodeNumber, MachineId, u64),
    /// A peer may be suspect to a request that waits for it.
    Silent(NodeNumber, u64, u64, u32),
    /// An edge tells what it wants started: for the first time, or again.
    Say(NodeNumber, u64, Key, bool),
    /// A node looks for idle Machines.
    Look(NodeNumber, u64),
    /// An owner may not have answered.
    Unrested(NodeNumber, u64, u64, u32),
    /// A connection for what is passed on may not have come up.
    Undialled(NodeNumber, u64, (u64, u32)),
    /// An edge that was told of room may not have answered.
    Untold(NodeNumber, u64, u64),
    /// A request's turn has come, if it still waits as it did then; one that was woken does in any case.
    Turn(NodeNumber, u64, u64, Option<u32>, Turn),
    /// A request's patience is at its end.
    Late(NodeNumber, u64, u64),
    /// All is healed.
    Mend,
    /// Views of gossip are equal.
    SeeEqual,
    /// Whether the registry has a leader.
    SeeLeader,
}

impl Packet {
    /// The request and the attempt that it answers.
    pub(super) fn answers(&self) -> Option<(u64, u32)> {
        match self {
            Self::Admitted { request, attempt, .. }
            | Self::Refused { request, attempt, .. }
            | Self::Head { request, attempt, .. }
            | Self::Reset { request, attempt, .. } => Some((*request, *attempt)),
            Self::Ping(_)
            | Self::Pong(_)
            | Self::Open(_)
            | Self::WantConfig(_)
            | Self::Config(..)
            | Self::Room { .. }
            | Self::Waits { .. }
            | Self::Demand(..)
            | Self::Start(_)
            | Self::Begun { .. }
            | Self::Rest { .. }
            | Self::Rested { .. } => None,
        }
    }
}

impl Event {
    /// The node that must be awake for it.
    pub(super) fn node(&self) -> Option<NodeNumber> {
        match self {
            Self::Transition(_) | Self::Mend | Self::SeeEqual | Self::SeeLeader => None,
            Self::Gossip(event) => Some(event.node()),
            Self::Registry(event) => Some(event.node()),
            Self::Come { edge, .. } => Some(*edge),
            Self::Packet { to, .. } => Some(*to),
            Self::Again { from, .. } => Some(*from),
            Self::Fold(node, _)
            | Self::Probe(node, _)
            | Self::Served(node, ..)
            | Self::Turned(node, ..)
            | Self::Silent(node, ..)
            | Self::Untold(node, ..)
            | Self::Undialled(node, ..)
            | Self::Say(node, ..)
            | Self::Look(node, ..)
            | Self::Unrested(node, ..)
            | Self::Turn(node, ..)
            | Self::Late(node, ..) => Some(*node),
        }
    }
}
