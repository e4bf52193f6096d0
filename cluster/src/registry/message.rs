//! What registries say to each other, in core's encoding, inside `Ask::Registry`.

use openraft::Vote;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};
use serde::{Deserialize, Serialize};
use skein_core::facts::{Outcome, Proposal, Refusal};
use ulid::Ulid;

use super::types::{Id, SnapshotMeta, Types};

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    Append(AppendEntriesRequest<Types>),
    Vote(VoteRequest<Id>),
    Snapshot(Part),
    /// A proposal for the leader. `hops` counts the nodes that passed it on.
    Propose {
        proposal: Proposal,
        hops: u8,
        patience_ms: u32,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Response {
    /// With the id of the file that the follower's log is in.
    Append(AppendEntriesResponse<Id>, Ulid),
    Vote(VoteResponse<Id>),
    /// The part was kept; the next one is awaited.
    More,
    /// The whole snapshot is in, or was not wanted: the receiver's vote tells.
    Installed(Vote<Id>),
    Propose(Result<Accepted, NotAccepted>),
}

/// One message of a snapshot's transfer. They come in order; anything else ends the transfer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Part {
    pub(super) transfer: Ulid,
    pub(super) number: u32,
    /// Each the encoding of one fact.
    pub(super) facts: Vec<Vec<u8>>,
    /// With the last part only.
    pub(super) end: Option<(Vote<Id>, SnapshotMeta)>,
}

/// The log holds the proposal at `index`, for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Accepted {
    pub(super) outcome: Result<Outcome, Refusal>,
    pub(super) index: u64,
}

/// The proposal may or may not be applied later; the same request id may be proposed again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum NotAccepted {
    /// Try again when there is another leader, or the same one can be reached.
    NoLeader(String),
    NoMajority {
        reached: u32,
        voters: u32,
    },
    Timeout,
    Stopped(String),
}
