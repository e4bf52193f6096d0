//! Writes: to the leader, wherever it is, within a time limit of our own.
//!
//! openraft's writes hang on a leader that lost its majority, and its idea of the leader may be stale
//! for seconds after that died. So every attempt is bounded, watches the majority's last answer, and
//! may be repeated: the request id makes a proposal count once.

use std::sync::PoisonError;
use std::time::Duration;

use openraft::EmptyNode;
use openraft::error::{ClientWriteError, InitializeError, RaftError};
use skein_core::facts::{Command, Outcome, Proposal, Refusal};
use skein_core::{NodeNumber, Random};
use tokio::time::{Instant, timeout_at};
use ulid::Ulid;

use super::RaftRegistry;
use super::members::View;
use super::message::{Accepted, NotAccepted, Request, Response};
use super::network::call;
use super::types::Id;
use crate::clock;

/// Nodes that a proposal may pass through on its way to the leader, the first one included.
const HOPS: u8 = 2;
/// The longest wait for a leader's answer before its place is looked up again.
const CALL: Duration = Duration::from_secs(2);
/// The pause between attempts when nothing is seen to change.
const PAUSE: Duration = Duration::from_millis(100);

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// The facts do not allow it; it changed nothing.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Too few voters can be reached (SPEC API-4). What exists goes on; the command may still be
    /// carried out when they are back.
    #[error("only {reached} of the registry's {voters} voters can be reached; nothing new can be named")]
    NoMajority {
        /// Voters within reach.
        reached: usize,
        /// All voters.
        voters: usize,
    },
    /// No leader took it in time; the command may still be carried out.
    #[error("the registry did not answer in time")]
    Timeout,
    /// The registry of this node or of the leader stopped: shut down, or its disk failed.
    #[error("the registry has stopped: {0}")]
    Stopped(String),
}

/// Why a cluster was not begun.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BootstrapError {
    /// Raft refused.
    #[error("the registry cannot be begun: {0}")]
    Raft(String),
    /// A command was not carried out.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// The first node was given another number than the registry runs under.
    #[error("the first node was given number {given}, but this registry is node {node}'s")]
    Number {
        /// The number given.
        given: NodeNumber,
        /// The registry's node.
        node: NodeNumber,
    },
}

impl RaftRegistry {
    /// Begins a cluster's life with this node as the only voter and carries out `commands` (`Init`,
    /// then `AddFirstNode`). It may be called again after a crash: what is there already is kept.
    ///
    /// # Errors
    /// [`BootstrapError`].
    pub async fn bootstrap(&self, commands: Vec<Command>) -> Result<(), BootstrapError> {
        let node = self.0.config.node;
        let first = std::collections::BTreeMap::from([(node.0, EmptyNode::new())]);
        match self.0.raft.initialize(first).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(error) => return Err(BootstrapError::Raft(error.to_string())),
        }
        for command in commands {
            match self.propose(command).await {
                Ok((Outcome::Node(given, _), _)) if given != node => {
                    return Err(BootstrapError::Number { given, node });
                }
                Ok(_) | Err(ProposeError::Refused(Refusal::AlreadyInitialized)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Carries out a command: what it made, and the index of its entry. When this returns, this
    /// node's state has it, unless this node was cut off meanwhile: then `applied` is still below the
    /// index when the time limit ends.
    ///
    /// # Errors
    /// [`ProposeError`]; only after [`ProposeError::Refused`] it is certain that nothing changed.
    pub async fn propose(&self, command: Command) -> Result<(Outcome, u64), ProposeError> {
        let now_ms = clock::unix_ms();
        let random = {
            let mut entropy = self.0.entropy.lock().unwrap_or_else(PoisonError::into_inner);
            (u128::from(entropy.next_u64()) << 64) | u128::from(entropy.next_u64())
        };
        let request = Ulid::from_parts(now_ms, random);
        self.carry_out(Proposal { request, now_ms, command }).await
    }

    pub(super) async fn carry_out(&self, proposal: Proposal) -> Result<(Outcome, u64), ProposeError> {
        let deadline = Instant::now() + self.0.config.write_timeout;
        let accepted = self.until_accepted(&proposal, deadline).await?;
        let mut published = self.0.published.clone();
        let applied = published.wait_for(|(applied, _)| *applied >= accepted.index);
        match timeout_at(deadline, applied).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => {
                tracing::warn!(index = accepted.index, "accepted, but this node has not applied it yet");
            }
        }
        Ok((accepted.outcome?, accepted.index))
    }

    async fn until_accepted(&self, proposal: &Proposal, deadline: Instant) -> Result<Accepted, ProposeError> {
        let mut metrics = self.0.raft.metrics();
        let mut minority_since = None;
        loop {
            metrics.mark_unchanged();
            let left = deadline.saturating_duration_since(Instant::now());
            let failure = match self.attempt(proposal, 0, left).await {
                Ok(accepted) => return Ok(accepted),
                Err(failure) => failure,
            };
            let too_few = self.too_few();
            match (failure, too_few) {
                (NotAccepted::NoMajority { reached, voters }, _) => {
                    let (reached, voters) = (reached as usize, voters as usize);
                    return Err(ProposeError::NoMajority { reached, voters });
                }
                (NotAccepted::Stopped(reason), _) => return Err(ProposeError::Stopped(reason)),
                (NotAccepted::NoLeader(reason), None) => {
                    tracing::debug!(reason, "no leader took the proposal yet");
                    minority_since = None;
                }
                (NotAccepted::Timeout, None) => minority_since = None,
                (NotAccepted::NoLeader(_) | NotAccepted::Timeout, Some((reached, voters))) => {
                    // A node that has just started has reached nobody yet; that is no verdict.
                    let since: Instant = *minority_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= self.0.config.majority_grace() || Instant::now() >= deadline {
                        return Err(ProposeError::NoMajority { reached, voters });
                    }
                }
            }
            if Instant::now() >= deadline {
                return Err(ProposeError::Timeout);
            }
            let next = deadline.min(Instant::now() + PAUSE);
            match timeout_at(next, metrics.changed()).await {
                Ok(Ok(())) | Err(_) => {}
                Ok(Err(_)) => return Err(ProposeError::Stopped(why_stopped(&self.view()))),
            }
        }
    }

    /// Voters reached and voters, when the reached ones are no majority.
    fn too_few(&self) -> Option<(usize, usize)> {
        let view = self.view();
        view.reached(&*self.0.transport).filter(|(reached, voters)| reached * 2 <= *voters)
    }

    /// One attempt: here if this node leads, else at the leader it knows, if it may pass it on.
    pub(super) async fn attempt(
        &self,
        proposal: &Proposal,
        hops: u8,
        patience: Duration,
    ) -> Result<Accepted, NotAccepted> {
        let view = self.view();
        if let Some(reason) = view.stopped {
            return Err(NotAccepted::Stopped(reason));
        }
        match view.leader {
            Some(leader) if leader == view.me => self.write_here(proposal, patience).await,
            Some(leader) if hops < HOPS => self.pass_on(leader, proposal, hops, patience).await,
            Some(leader) => Err(NotAccepted::NoLeader(format!("node {leader} leads, after {hops} hops"))),
            None => Err(NotAccepted::NoLeader("no leader is known".into())),
        }
    }

    async fn write_here(&self, proposal: &Proposal, patience: Duration) -> Result<Accepted, NotAccepted> {
        if let Some(refusal) = self.majority_lost(&self.view()) {
            return Err(refusal);
        }
        let write = self.0.raft.client_write(proposal.clone());
        let written = tokio::select! {
            written = tokio::time::timeout(patience, write) => written.map_err(|_| NotAccepted::Timeout)?,
            refusal = self.until_majority_lost() => return Err(refusal),
        };
        match written {
            Ok(response) => {
                let outcome = response.data.0.ok_or_else(|| NotAccepted::Stopped("no outcome".into()))?;
                Ok(Accepted { outcome, index: response.log_id.index })
            }
            Err(RaftError::APIError(
                error @ (ClientWriteError::ForwardToLeader(_) | ClientWriteError::ChangeMembershipError(_)),
            )) => Err(NotAccepted::NoLeader(error.to_string())),
            Err(RaftError::Fatal(error)) => Err(NotAccepted::Stopped(error.to_string())),
        }
    }

    fn majority_lost(&self, view: &View) -> Option<NotAccepted> {
        let silent = view.quorum_ack.is_some_and(|ago| ago > self.0.config.majority_grace());
        if !view.leads || view.voters.len() < 2 || !silent {
            return None;
        }
        // The transport may hope for longer than Raft does: a majority is not claimed here.
        let (reached, voters) = view.reached(&*self.0.transport)?;
        let reached = reached.min(voters / 2);
        Some(NotAccepted::NoMajority { reached: reached as u32, voters: voters as u32 })
    }

    async fn until_majority_lost(&self) -> NotAccepted {
        let mut metrics = self.0.raft.metrics();
        loop {
            metrics.mark_unchanged();
            if let Some(refusal) = self.majority_lost(&View::of(&metrics)) {
                return refusal;
            }
            if metrics.changed().await.is_err() {
                return NotAccepted::Stopped(why_stopped(&View::of(&metrics)));
            }
        }
    }

    async fn pass_on(
        &self,
        leader: Id,
        proposal: &Proposal,
        hops: u8,
        patience: Duration,
    ) -> Result<Accepted, NotAccepted> {
        let patience = patience.min(CALL);
        let patience_ms = patience.as_millis() as u32;
        let request = Request::Propose { proposal: proposal.clone(), hops: hops + 1, patience_ms };
        // A dead leader's successor is known before the call to the dead one ends.
        let answer = tokio::select! {
            answer = call(&*self.0.transport, leader, &request, patience) => answer,
            () = self.until_leader_is_not(leader) => {
                return Err(NotAccepted::NoLeader(format!("node {leader} lost the lead")));
            }
        };
        match answer {
            Ok(Response::Propose(answer)) => answer,
            Ok(_) => Err(NotAccepted::NoLeader(format!("node {leader} gave an unexpected answer"))),
            Err(error) => Err(NotAccepted::NoLeader(error.to_string())),
        }
    }

    async fn until_leader_is_not(&self, leader: Id) {
        let mut metrics = self.0.raft.metrics();
        let moved = metrics.wait_for(|metrics| metrics.current_leader.is_some_and(|now| now != leader));
        if moved.await.is_err() {
            tracing::debug!("Raft has stopped; the next attempt says so");
        }
    }
}

fn why_stopped(view: &View) -> String {
    view.stopped.clone().unwrap_or_else(|| "shut down".into())
}
