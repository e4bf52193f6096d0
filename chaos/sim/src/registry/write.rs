//! Writes: to the leader, wherever it is, until their time is up.

use std::sync::Arc;

use skein_core::NodeNumber;
use skein_core::facts::{Command, Outcome, Proposal, Refusal};
use ulid::Ulid;

use super::{Answer, Effects, Event, Kind, Registry};
use crate::agenda::{MS, Micros};
use crate::net::Network;

/// A write that has not ended, at the node it was made through.
#[derive(Debug, Clone)]
pub(super) struct Write {
    proposal: Arc<Proposal>,
    deadline: Micros,
    /// Whom it was sent to last, and when.
    asked: Option<(NodeNumber, Micros)>,
    /// It counts from this index on, with this outcome.
    accepted: Option<(usize, Result<Outcome, Refusal>)>,
}

impl Registry {
    /// Begins a write through a node; its answer comes in [`Effects::answers`], unless the node dies.
    pub fn propose(
        &mut self,
        now: Micros,
        node: NodeNumber,
        request: Ulid,
        command: Command,
        network: &mut Network,
        effects: &mut Effects,
    ) {
        let proposal = Arc::new(Proposal { request, now_ms: now / MS, command });
        let deadline = now + self.params.write_timeout;
        self.writes.insert((node, request), Write { proposal, deadline, asked: None, accepted: None });
        self.retry(now, node, request, network, effects);
    }

    /// Tries a write, now and after each pause until it ends.
    pub(super) fn retry(
        &mut self,
        now: Micros,
        node: NodeNumber,
        request: Ulid,
        network: &mut Network,
        effects: &mut Effects,
    ) {
        let life = self.replicas.get(&node).and_then(|replica| replica.life);
        if let Some(life) = life.filter(|_| self.writes.contains_key(&(node, request))) {
            effects.later.push((now + self.params.pause, Event::Retry(node, life, request)));
            self.attempt(now, node, request, network, effects);
        }
    }

    fn attempt(
        &mut self,
        now: Micros,
        node: NodeNumber,
        request: Ulid,
        network: &mut Network,
        effects: &mut Effects,
    ) {
        let params = self.params;
        let Some(replica) = self.replicas.get_mut(&node) else { return };
        let Some(write) = self.writes.get_mut(&(node, request)) else { return };
        if now >= write.deadline {
            let answer = match write.accepted.take() {
                // It counts, though this node was cut off meanwhile.
                Some((_, outcome)) => answer(outcome),
                None => Answer::Timeout,
            };
            self.writes.remove(&(node, request));
            effects.answers.push((node, request, answer));
            return;
        }
        let silent = replica.majority_is_silent(now, &self.voters, params.majority_grace);
        let waits =
            write.asked.is_some_and(|(whom, at)| Some(whom) == replica.leader && now - at < params.call);
        if write.accepted.is_some() || (waits && !silent) {
            return;
        }
        let Some(leader) = replica.leader else { return };
        write.asked = Some((leader, now));
        let proposal = Arc::clone(&write.proposal);
        if leader != node {
            Self::send(now, node, leader, Kind::Propose(proposal), network, effects);
        } else if silent {
            self.writes.remove(&(node, request));
            effects.answers.push((node, request, Answer::NoMajority));
        } else {
            replica.append(Some(proposal));
            self.advance(now + params.disk, node, network, effects);
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
        effects: &mut Effects,
    ) {
        let (params, request) = (self.params, proposal.request);
        let Some(replica) = self.replicas.get_mut(&number) else { return };
        let no_majority = replica.majority_is_silent(now, &self.voters, params.majority_grace);
        if !replica.leads() || no_majority {
            let kind = Kind::NotTaken { request, no_majority };
            Self::send(now, number, from, kind, network, effects);
            return;
        }
        replica.append(Some(Arc::clone(proposal)));
        replica.passed.insert(request, from);
        self.advance(now + params.disk, number, network, effects);
    }

    /// The leader has applied a write.
    #[expect(clippy::too_many_arguments, reason = "a moment, a write, and where effects go")]
    pub(super) fn accepted(
        &mut self,
        now: Micros,
        leader: NodeNumber,
        request: Ulid,
        outcome: Result<Outcome, Refusal>,
        index: usize,
        network: &mut Network,
        effects: &mut Effects,
    ) {
        let passed = self.replicas.get_mut(&leader).and_then(|replica| replica.passed.remove(&request));
        if let Some(from) = passed {
            let kind = Kind::Accepted { request, outcome, index };
            Self::send(now, leader, from, kind, network, effects);
        } else {
            self.was_accepted(leader, request, outcome, index, effects);
        }
    }

    /// The node that a write was made through hears that it counts.
    pub(super) fn was_accepted(
        &mut self,
        node: NodeNumber,
        request: Ulid,
        outcome: Result<Outcome, Refusal>,
        index: usize,
        effects: &mut Effects,
    ) {
        if let Some(write) = self.writes.get_mut(&(node, request)) {
            write.accepted.get_or_insert((index, outcome));
        }
        let applied = self.replicas.get(&node).map_or(0, |replica| replica.applied);
        self.caught_up(node, applied, effects);
    }

    pub(super) fn was_not_taken(
        &mut self,
        now: Micros,
        node: NodeNumber,
        request: Ulid,
        no_majority: bool,
        effects: &mut Effects,
    ) {
        let Some(write) = self.writes.get_mut(&(node, request)).filter(|write| write.accepted.is_none())
        else {
            return;
        };
        if no_majority {
            self.writes.remove(&(node, request));
            effects.answers.push((node, request, Answer::NoMajority));
        } else {
            // The next attempt asks whoever leads by then.
            write.asked = write.asked.filter(|(_, at)| now - *at < self.params.pause);
        }
    }

    /// Ends the writes of a node whose entries it has applied.
    pub(super) fn caught_up(&mut self, node: NodeNumber, applied: usize, effects: &mut Effects) {
        let mine = self.writes.range((node, Ulid(0))..=(node, Ulid(u128::MAX)));
        let done =
            mine.filter(|(_, write)| write.accepted.as_ref().is_some_and(|(index, _)| *index <= applied));
        let done: Vec<Ulid> = done.map(|((_, request), _)| *request).collect();
        for request in done {
            if let Some(Write { accepted: Some((_, outcome)), .. }) = self.writes.remove(&(node, request)) {
                effects.answers.push((node, request, answer(outcome)));
            }
        }
    }

    /// Word of a leader came: writes that wait for none are tried at once.
    pub(super) fn leader_changed(
        &mut self,
        now: Micros,
        node: NodeNumber,
        network: &mut Network,
        effects: &mut Effects,
    ) {
        let leader = self.replicas.get(&node).and_then(|replica| replica.leader);
        let mine = self.writes.range((node, Ulid(0))..=(node, Ulid(u128::MAX)));
        let idle = mine.filter(|(_, write)| {
            write.accepted.is_none() && write.asked.is_none_or(|(whom, _)| Some(whom) != leader)
        });
        let idle: Vec<Ulid> = idle.map(|((_, request), _)| *request).collect();
        for request in idle {
            self.attempt(now, node, request, network, effects);
        }
    }
}

fn answer(outcome: Result<Outcome, Refusal>) -> Answer {
    match outcome {
        Ok(outcome) => Answer::Done(outcome),
        Err(refusal) => Answer::Refused(refusal),
    }
}
