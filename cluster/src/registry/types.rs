//! The types that openraft is told to work with.

use openraft::{EmptyNode, LogId, StorageError, StorageIOError, StoredMembership};
use serde::{Deserialize, Serialize};
use skein_core::facts::{Outcome, Proposal, Refusal, State};

/// A node's number, as openraft's id: [`skein_core::NodeNumber`] without its meaning.
pub(super) type Id = u32;
pub(super) type Raft = openraft::Raft<Types>;
pub(super) type Entry = openraft::Entry<Types>;
pub(super) type Snapshot = openraft::Snapshot<Types>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<Id, EmptyNode>;
pub(super) type Metrics = openraft::RaftMetrics<Id, EmptyNode>;
/// What was applied last, and the membership as of then; stored in one transaction with the facts.
pub(super) type Position = (Option<LogId<Id>>, StoredMembership<Id, EmptyNode>);

openraft::declare_raft_types!(
    /// Nodes carry no address in the membership: where they listen is a fact, which may change
    /// without a change of membership.
    pub(super) Types:
        D = Proposal,
        R = Applied,
        NodeId = Id,
        Node = EmptyNode,
        Entry = openraft::Entry<Types>,
        SnapshotData = Image,
);

/// What came of an entry; `None` for entries that are Raft's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Applied(pub(super) Option<Result<Outcome, Refusal>>);

/// A snapshot: the facts themselves, which are persistent maps, so that a copy costs nothing. They
/// are encoded when they are sent.
#[derive(Debug, Clone)]
pub(super) struct Image(pub(super) State);

/// A failure of the disk as openraft wants it; it stops the node's Raft.
pub(super) fn disk_failed(error: impl std::error::Error + 'static) -> StorageError<Id> {
    StorageError::IO { source: StorageIOError::write(&error) }
}
