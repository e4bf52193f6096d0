//! Raft's messages over the node's [`RaftTransport`], and snapshots in parts.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use openraft::error::{Fatal, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{EmptyNode, Vote};
use skein_core::facts::{Fact, State};
use skein_core::{NodeNumber, Random, codec};
use ulid::Ulid;

use super::message::{Part, Request, Response};
use super::types::{Id, Image, Raft, Snapshot, Types};
use crate::BoxFuture;
use crate::clock;
use crate::entropy::Entropy;

/// Bytes of facts in a part, about.
const PART: usize = 1 << 20;
/// How long one part may take; the last one includes the installation.
const PART_TIMEOUT: Duration = Duration::from_secs(20);

/// How a registry reaches the others; backhaul in a node, function calls in tests.
pub trait RaftTransport: Send + Sync + 'static {
    /// Hands `message` to `to`'s [`RaftRegistry::handle`](super::RaftRegistry::handle); its answer, or why
    /// there is none within `timeout`.
    fn call(
        &self,
        to: NodeNumber,
        message: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, String>>;

    /// Whether `to` was heard of lately. Only a hint: it decides how fast a write is refused and
    /// whether a snapshot is worth encoding.
    fn reachable(&self, to: NodeNumber) -> bool;
}

/// A message came to nothing.
#[derive(Debug, thiserror::Error)]
#[error("node {to}: {reason}")]
pub(super) struct CallError {
    to: Id,
    reason: String,
}

/// Asks a node and reads its answer.
pub(super) async fn call(
    transport: &dyn RaftTransport,
    to: Id,
    request: &Request,
    timeout: Duration,
) -> Result<Response, CallError> {
    let message = Bytes::from(codec::encode(request));
    let answer =
        transport.call(NodeNumber(to), message, timeout).await.map_err(|reason| CallError { to, reason })?;
    codec::decode(&answer).map_err(|error| CallError { to, reason: error.to_string() })
}

/// The file that each node's log was first seen in. A node that comes back with another one has lost
/// its log and its votes; openraft's leader takes that for a broken invariant and panics.
type Files = Arc<Mutex<BTreeMap<Id, Ulid>>>;

pub(super) struct Network {
    transport: Arc<dyn RaftTransport>,
    files: Files,
}

impl Network {
    pub(super) fn new(transport: Arc<dyn RaftTransport>) -> Self {
        Self { transport, files: Files::default() }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: Id, _: &EmptyNode) -> Peer {
        Peer { transport: Arc::clone(&self.transport), files: Arc::clone(&self.files), target }
    }
}

pub(super) struct Peer {
    transport: Arc<dyn RaftTransport>,
    files: Files,
    target: Id,
}

type RpcError = RPCError<Id, EmptyNode, RaftError<Id>>;

impl Peer {
    async fn call(&self, request: &Request, timeout: Duration) -> Result<Response, Unreachable> {
        call(&*self.transport, self.target, request, timeout).await.map_err(|error| Unreachable::new(&error))
    }

    fn unexpected(&self) -> Unreachable {
        Unreachable::new(&CallError { to: self.target, reason: "unexpected answer".into() })
    }

    async fn send_snapshot(&self, vote: Vote<Id>, snapshot: Snapshot) -> Result<Vote<Id>, Unreachable> {
        let image = *snapshot.snapshot;
        let parts = tokio::task::spawn_blocking(move || split(&image.0))
            .await
            .map_err(|error| Unreachable::new(&error))?;
        let random = u128::from(Entropy::default().next_u64());
        let transfer = Ulid::from_parts(clock::unix_ms(), random);
        let count = parts.len();
        for (number, facts) in (0..).zip(parts) {
            let last = number as usize + 1 == count;
            let end = last.then(|| (vote, snapshot.meta.clone()));
            let request = Request::Snapshot(Part { transfer, number, facts, end });
            match self.call(&request, PART_TIMEOUT).await? {
                Response::More if !last => {}
                Response::Installed(vote) => return Ok(vote),
                Response::More | Response::Append(..) | Response::Vote(_) | Response::Propose(_) => break,
            }
        }
        Err(self.unexpected())
    }
}

impl RaftNetwork<Types> for Peer {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Id>, RpcError> {
        match self.call(&Request::Append(rpc), option.hard_ttl()).await? {
            Response::Append(answer, file) => {
                let known = {
                    let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
                    *files.entry(self.target).or_insert(file)
                };
                if known == file {
                    return Ok(answer);
                }
                let reason = "its registry's file is not the one it had; it must join again as a new node";
                tracing::warn!(node = self.target, reason);
                Err(Unreachable::new(&CallError { to: self.target, reason: reason.into() }).into())
            }
            Response::Vote(_) | Response::More | Response::Installed(_) | Response::Propose(_) => {
                Err(self.unexpected().into())
            }
        }
    }

    async fn vote(&mut self, rpc: VoteRequest<Id>, option: RPCOption) -> Result<VoteResponse<Id>, RpcError> {
        match self.call(&Request::Vote(rpc), option.hard_ttl()).await? {
            Response::Vote(answer) => Ok(answer),
            Response::Append(..) | Response::More | Response::Installed(_) | Response::Propose(_) => {
                Err(self.unexpected().into())
            }
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote<Id>,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<Id>, StreamingError<Types, Fatal<Id>>> {
        // openraft comes here again and again for a node that is away and behind the purged log.
        if !self.transport.reachable(NodeNumber(self.target)) {
            let reason = "not reachable; no snapshot is sent".into();
            return Err(Unreachable::new(&CallError { to: self.target, reason }).into());
        }
        let cancel = pin!(cancel);
        tokio::select! {
            closed = cancel => Err(closed.into()),
            sent = self.send_snapshot(vote, snapshot) => Ok(SnapshotResponse::new(sent?)),
        }
    }

    fn backoff(&self) -> Backoff {
        let doubling = std::iter::successors(Some(Duration::from_millis(100)), |last| {
            Some((*last * 2).min(Duration::from_millis(500)))
        });
        Backoff::new(doubling)
    }
}

/// The encoded facts in parts of about [`PART`] bytes; at least one part.
fn split(state: &State) -> Vec<Vec<Vec<u8>>> {
    let mut parts = vec![Vec::new()];
    let mut size = 0;
    for fact in state.facts() {
        let bytes = codec::encode(&fact);
        if size + bytes.len() > PART && size > 0 {
            parts.push(Vec::new());
            size = 0;
        }
        size += bytes.len();
        parts.last_mut().expect("invariant: there is a first part").push(bytes);
    }
    parts
}

/// The receiving end of snapshots: one transfer at a time, the newest.
#[derive(Default)]
pub(super) struct Incoming(Mutex<Option<Transfer>>);

struct Transfer {
    id: Ulid,
    from: Id,
    next: u32,
    facts: Vec<Fact>,
}

impl Incoming {
    /// Keeps a part; the facts when it was the last.
    fn keep(&self, from: Id, part: &Part) -> Result<Option<State>, String> {
        let facts: Result<Vec<Fact>, _> = part.facts.iter().map(|bytes| codec::decode(bytes)).collect();
        let facts = facts.map_err(|error| format!("a fact of the snapshot: {error}"))?;
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if part.number == 0 {
            *slot = Some(Transfer { id: part.transfer, from, next: 0, facts: Vec::new() });
        }
        let transfer = slot
            .as_mut()
            .filter(|t| t.id == part.transfer && t.from == from && t.next == part.number)
            .ok_or("a part of a snapshot is out of order")?;
        transfer.next += 1;
        transfer.facts.extend(facts);
        if part.end.is_none() {
            return Ok(None);
        }
        Ok(slot.take().map(|transfer| State::from_facts(transfer.facts)))
    }

    pub(super) async fn receive(&self, raft: &Raft, from: Id, part: Part) -> Result<Response, String> {
        let state = self.keep(from, &part)?;
        let (Some(state), Some((vote, meta))) = (state, part.end) else { return Ok(Response::More) };
        tracing::info!(
            from,
            index = meta.last_log_id.map(|id| id.index),
            "installing the registry's snapshot"
        );
        let snapshot = Snapshot { meta, snapshot: Box::new(Image(state)) };
        let answer = raft.install_full_snapshot(vote, snapshot).await.map_err(|error| error.to_string())?;
        Ok(Response::Installed(answer.vote))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_core::facts::{Command, Proposal};

    fn state(orgs: u128) -> State {
        let mut state = State::default();
        for n in 0..orgs {
            let command = Command::CreateOrg {
                id: skein_core::OrgId(Ulid(n)),
                slug: format!("org-{n}").parse().unwrap(),
                name: "x".repeat(10_000),
            };
            state.apply(&Proposal { request: Ulid(n), now_ms: 0, command }).0.unwrap();
        }
        state
    }

    fn part(number: u32, facts: Vec<Vec<u8>>, last: bool) -> Part {
        let end = last.then(Default::default);
        Part { transfer: Ulid(1), number, facts, end }
    }

    #[test]
    fn a_snapshot_is_whole_again_after_it_was_sent_in_parts() {
        let state = state(300);
        let parts = split(&state);
        assert!(parts.len() > 2, "{}", parts.len());
        let incoming = Incoming::default();
        let count = parts.len() as u32;
        let mut whole = None;
        for (number, facts) in (0..).zip(parts) {
            let part = part(number, facts, number + 1 == count);
            let bytes = codec::encode(&Request::Snapshot(part));
            assert!(bytes.len() < 2 * PART);
            let Request::Snapshot(part) = codec::decode(&bytes).unwrap() else { panic!() };
            whole = incoming.keep(1, &part).unwrap();
        }
        assert_eq!(whole, Some(state));
        assert_eq!(split(&State::default()).len(), 1, "an empty state is one part");
    }

    #[test]
    fn a_part_that_is_missing_foreign_or_unreadable_ends_the_transfer() {
        let parts = split(&state(300));
        let incoming = Incoming::default();
        assert!(incoming.keep(1, &part(1, Vec::new(), false)).is_err(), "nothing began");
        assert_eq!(incoming.keep(1, &part(0, parts[0].clone(), false)), Ok(None));
        assert!(incoming.keep(1, &part(2, parts[2].clone(), true)).is_err(), "the second is missing");
        assert!(incoming.keep(2, &part(1, parts[1].clone(), true)).is_err(), "another node's");
        assert!(incoming.keep(1, &part(0, vec![vec![9]], false)).is_err(), "a format of the future");
    }
}
