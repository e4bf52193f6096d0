//! Writes: to the leader, wherever it is, until their time is up.

use std::sync::Arc;

use skein_cluster::registry::ProposeError;
use skein_core::NodeNumber;
use skein_core::facts::{Outcome, Proposal, Refusal};
use tokio::sync::oneshot;
use ulid::Ulid;

use super::{Answer, Event, Kind, Later, Registries};
use crate::agenda::Micros;
use crate::net::Network;

/// A write that has not ended, at the node it was made through.
#[derive(Debug)]
pub(super) struct Write {
    proposal: Arc<Proposal>,
    reply: oneshot::Sender<Answer>,
    deadline: Micros,
    /// Whom it was sent to last, and when.
    asked: Option<(NodeNumber, Micros)>,
    /// It counts from this index on, with this outcome.
    accepted: Option<(usize, Result<Outcome, Refusal>)>,
}

impl Registries {
    /// Begins a write through a node; it gets no answer when the node dies.
    pub(super) fn propose(
        &mut self,
        now: Micros,
        node: NodeNumber,
        proposal: Proposal,
        reply: oneshot::Sender<Answer>,
        network: &mut Network,
        later: &mut Later,
    ) {
        let request = proposal.request;
        let deadline = now + self.params.write_timeout;
        let write = Write { proposal: Arc::new(proposal), reply, deadline, asked: None, accepted: None };
        self.writes.insert((node, request), write);
        self.retry(now, node, request, network, later);
    }

    /// Tries a write, now and after each pause until it ends.
    pub(super) fn retry(
        &mut self,
        now: Micros,
        node: NodeNumber,
        request: Ulid,
        network: &mut Network,
        later: &mut Later,
    ) {
        let life = self.replicas.get(&node).and_then(|replica| replica.life);
        if let Some(life) = life.filter(|_| self.writes.contains_key(&(node, request))) {
            later.push((now + self.params.pause, Event::Retry(node, life, request)));
            self.attempt(now, node, request, network, later);
        }
    }

    fn attempt(
        &mut self,
        now: Micros,
        node: NodeNumber,
        request: Ulid,
        network: &mut Network,
        later: &mut Later,
    ) {
        let params = self.params;
        let Some(replica) = self.replicas.get_mut(&node) else { return };
        let Some(write) = self.writes.get_mut(&(node, request)) else { return };
        if now >= write.deadline {
            let answer = match write.accepted.take() {
                // It counts, though this node was cut off meanwhile.
                Some((index, outcome)) => answer(index, outcome),
                None => Err(ProposeError::Timeout),
            };
            self.end(node, request, answer);
            return;
        }
        let minority = replica.minority(now, &self.voters, params.majority_grace);
        let waits =
            write.asked.is_some_and(|(whom, at)| Some(whom) == replica.leader && now - at < params.call);
        if write.accepted.is_some() || (waits && minority.is_none()) {
            return;
        }
        let Some(leader) = replica.leader else { return };
        write.asked = Some((leader, now));
        let proposal = Arc::clone(&write.proposal);
        if leader != node {
            Self::send(now, node, leader, Kind::Propose(proposal), network, later);
        } else if let Some((reached, voters)) = minority {
            self.end(node, request, Err(ProposeError::NoMajority { reached, voters }));
        } else {
            replica.append(Some(proposal));
            self.advance(now + params.disk, node, network, later);
        }
    }

    /// A node passed a write on to this one.
    pub(super) fn proposed(
        &mut self,
        now: Micros,
        number: NodeNumber,
        from: NodeNumber,
        proposal: &Arc<Proposal>,
        network: &mut Network,
        later: &mut Later,
    ) {
        let (params, request) = (self.params, proposal.request);
        let Some(replica) = self.replicas.get_mut(&number) else { return };
        let no_majority = replica.minority(now, &self.voters, params.majority_grace);
        if !replica.leads() || no_majority.is_some() {
            let kind = Kind::NotTaken { request, no_majority };
            Self::send(now, number, from, kind, network, later);
            return;
        }
        replica.append(Some(Arc::clone(proposal)));
        replica.passed.insert(request, from);
        self.advance(now + params.disk, number, network, later);
    }

    /// The leader has applied a write.
    #[expect(clippy::too_many_arguments, reason = "a moment, a write, and where later go")]
    pub(super) fn accepted(
        &mut self,
        now: Micros,
        leader: NodeNumber,
        request: Ulid,
        outcome: Result<Outcome, Refusal>,
        index: usize,
        network: &mut Network,
        later: &mut Later,
    ) {
        let passed = self.replicas.get_mut(&leader).and_then(|replica| replica.passed.remove(&request));
        if let Some(from) = passed {
            let kind = Kind::Accepted { request, outcome, index };
            Self::send(now, leader, from, kind, network, later);
        } else {
            self.was_accepted(leader, request, outcome, index);
        }
    }

    /// The node that a write was made through hears that it counts.
    pub(super) fn was_accepted(
        &mut self,
        node: NodeNumber,
        request: Ulid,
        outcome: Result<Outcome, Refusal>,
        index: usize,
    ) {
        if let Some(write) = self.writes.get_mut(&(node, request)) {
            write.accepted.get_or_insert((index, outcome));
        }
        let applied = self.replicas.get(&node).map_or(0, |replica| replica.applied);
        self.caught_up(node, applied);
    }

    pub(super) fn was_not_taken(
        &mut self,
        now: Micros,
        node: NodeNumber,
        request: Ulid,
        no_majority: Option<(usize, usize)>,
    ) {
        let Some(write) = self.writes.get_mut(&(node, request)).filter(|write| write.accepted.is_none())
        else {
            return;
        };
        if let Some((reached, voters)) = no_majority {
            self.end(node, request, Err(ProposeError::NoMajority { reached, voters }));
        } else {
            // The next attempt asks whoever leads by then.
            write.asked = write.asked.filter(|(_, at)| now - *at < self.params.pause);
        }
    }

    /// Ends the writes of a node whose entries it has applied.
    pub(super) fn caught_up(&mut self, node: NodeNumber, applied: usize) {
        let mine = self.writes.range((node, Ulid(0))..=(node, Ulid(u128::MAX)));
        let done =
            mine.filter(|(_, write)| write.accepted.as_ref().is_some_and(|(index, _)| *index <= applied));
        let done: Vec<Ulid> = done.map(|((_, request), _)| *request).collect();
        for request in done {
            let accepted = self.writes.get_mut(&(node, request)).and_then(|write| write.accepted.take());
            if let Some((index, outcome)) = accepted {
                self.end(node, request, answer(index, outcome));
            }
        }
    }

    fn end(&mut self, node: NodeNumber, request: Ulid, answer: Answer) {
        if let Some(write) = self.writes.remove(&(node, request)) {
            // Whoever does not wait for the answer any more has no use for it.
            let _nobody_waits = write.reply.send(answer);
        }
    }

    /// Word of a leader came: writes that wait for none are tried at once.
    pub(super) fn leader_changed(
        &mut self,
        now: Micros,
        node: NodeNumber,
        network: &mut Network,
        later: &mut Later,
    ) {
        let leader = self.replicas.get(&node).and_then(|replica| replica.leader);
        let mine = self.writes.range((node, Ulid(0))..=(node, Ulid(u128::MAX)));
        let idle = mine.filter(|(_, write)| {
            write.accepted.is_none() && write.asked.is_none_or(|(whom, _)| Some(whom) != leader)
        });
        let idle: Vec<Ulid> = idle.map(|((_, request), _)| *request).collect();
        for request in idle {
            self.attempt(now, node, request, network, later);
        }
    }
}

fn answer(index: usize, outcome: Result<Outcome, Refusal>) -> Answer {
    Ok((outcome?, index as u64))
}
