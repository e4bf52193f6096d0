//! One node's part in Raft: votes, the log, and what a majority has of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skein_cluster::registry::Candidacy;
use skein_core::NodeNumber;
use skein_core::facts::{Outcome, Proposal, Refusal, State};
use ulid::Ulid;

use super::{Entry, Kind, Later, Place, Registries, Seat};
use crate::agenda::Micros;
use crate::net::Network;

#[derive(Debug, Clone, Default)]
pub(super) struct Replica {
    // On disk.
    pub(super) term: u64,
    voted: Option<NodeNumber>,
    log: Vec<Entry>,
    pub(super) applied: usize,
    pub(super) state: Arc<State>,
    /// Of this term, once a majority's votes are known: openraft writes that down too.
    pub(super) leader: Option<NodeNumber>,
    // In memory.
    pub(super) life: Option<u64>,
    pub(super) seat: Option<Seat>,
    commit: usize,
    role: Role,
    /// Word of a leader, a vote given, or another term met.
    heard: Micros,
    /// Messages of leaders that were taken in this life, and what the production makes of that.
    pub(super) words: u64,
    pub(super) candidacy: Option<Candidacy>,
    /// Whether it stands for election once its timer says so.
    pub(super) may_stand: bool,
    /// Drawn once, when the node started.
    timeout: Micros,
    /// Another voter is known to have more in its log.
    outlogged: bool,
    /// As the leader: who passed a write on that does not count yet.
    pub(super) passed: BTreeMap<Ulid, NodeNumber>,
}

#[derive(Debug, Clone, Default)]
enum Role {
    #[default]
    Follower,
    Candidate(BTreeSet<NodeNumber>),
    Leader(Lead),
}

#[derive(Debug, Clone, Default)]
struct Lead {
    followers: BTreeMap<NodeNumber, Follower>,
    /// When each voter last answered.
    answered: BTreeMap<NodeNumber, Micros>,
    round: u64,
}

/// What the leader knows of another node.
#[derive(Debug, Clone, Default)]
struct Follower {
    next: usize,
    matched: usize,
    /// The commit index it was last told.
    told: usize,
    /// The message whose answer is awaited: one at a time.
    waits: Option<u64>,
}

/// The next term, as `number` begins it: of two that begin one at once the higher number's is the
/// later, as in openraft, so no vote is split for ever.
fn next_term(term: u64, number: NodeNumber) -> u64 {
    ((term >> 32) + 1) << 32 | u64::from(number.0)
}

impl Replica {
    /// Puts an entry in that all have from the start.
    pub(super) fn begin_with(&mut self, proposal: Proposal) {
        let mut state = State::clone(&self.state);
        let (outcome, _) = state.apply(&proposal);
        debug_assert!(outcome.is_ok(), "what all begin with is allowed: {outcome:?}");
        self.state = Arc::new(state);
        self.log.push(Entry { term: 0, proposal: Some(Arc::new(proposal)) });
        self.applied = self.log.len();
    }

    pub(super) fn restart(&mut self, now: Micros, life: u64, timeout: Micros, seat: Seat) {
        (self.life, self.seat) = (Some(life), Some(seat));
        (self.words, self.candidacy, self.may_stand) = (0, None, true);
        self.role = Role::Follower;
        (self.commit, self.heard, self.timeout) = (self.applied, now, timeout);
        self.passed.clear();
        self.outlogged = false;
    }

    /// When there was last word of a leader, or a vote was given.
    pub(super) fn heard(&self) -> Micros {
        self.heard
    }

    pub(super) fn leads(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    /// How long no word may come until this node stands for election.
    fn patience(&self, lease: Micros) -> Micros {
        let loyal = if self.leader.is_some() { lease } else { 0 };
        // One that cannot win lets the others go first: openraft's `smaller_log_timeout`.
        let humble = if self.outlogged { 2 * lease } else { 0 };
        self.timeout + loyal + humble
    }

    fn last(&self) -> Place {
        (self.log.last().map_or(0, |entry| entry.term), self.log.len())
    }

    fn term_at(&self, index: usize) -> u64 {
        index.checked_sub(1).and_then(|index| self.log.get(index)).map_or(0, |entry| entry.term)
    }

    /// Another term is known of: whatever this node was, it follows now.
    fn meet(&mut self, now: Micros, term: u64) {
        if term > self.term {
            (self.term, self.voted, self.role, self.leader) = (term, None, Role::Follower, None);
            self.heard = now;
        }
    }

    /// Appends an entry as the leader.
    pub(super) fn append(&mut self, proposal: Option<Arc<Proposal>>) -> usize {
        self.log.push(Entry { term: self.term, proposal });
        self.log.len()
    }

    /// Voters whose last answer is not older than `grace`, of how many, when they are no majority.
    pub(super) fn minority(
        &self,
        now: Micros,
        voters: &BTreeSet<NodeNumber>,
        grace: Micros,
    ) -> Option<(usize, usize)> {
        let Role::Leader(lead) = &self.role else { return None };
        let recent = |voter: &&NodeNumber| lead.answered.get(voter).is_some_and(|at| now - *at <= grace);
        let reached = 1 + voters.iter().filter(recent).count();
        (reached * 2 <= voters.len()).then_some((reached, voters.len()))
    }

    /// Applies what counts: the requests it holds, with their outcomes.
    fn apply(&mut self) -> Vec<(Ulid, Result<Outcome, Refusal>, usize)> {
        let (mut done, before) = (Vec::new(), self.applied);
        while self.applied < self.commit {
            let entry = self.log.get(self.applied).cloned();
            self.applied += 1;
            if let Some(proposal) = entry.and_then(|entry| entry.proposal) {
                let mut state = State::clone(&self.state);
                let (outcome, _) = state.apply(&proposal);
                self.state = Arc::new(state);
                done.push((proposal.request, outcome, self.applied));
            }
        }
        if let Some(seat) = self.seat.as_ref().filter(|_| self.applied > before) {
            seat.publish(self.applied, &self.state);
        }
        done
    }
}

impl Registries {
    pub(super) fn tick(&mut self, now: Micros, number: NodeNumber, network: &mut Network, later: &mut Later) {
        let Some(replica) = self.replicas.get_mut(&number) else { return };
        if let Role::Leader(lead) = &mut replica.role {
            // Whatever was not answered by now is given up.
            for follower in lead.followers.values_mut() {
                (follower.waits, follower.told) = (None, usize::MAX);
            }
            self.replicate(now, number, network, later);
        } else if replica.may_stand && now - replica.heard > replica.patience(self.params.lease) {
            replica.term = next_term(replica.term, number);
            (replica.voted, replica.leader, replica.heard) = (Some(number), None, now);
            replica.role = Role::Candidate(BTreeSet::from([number]));
            let (term, last) = (replica.term, replica.last());
            for voter in self.voters.iter().filter(|voter| **voter != number) {
                let sent = now + self.params.disk;
                Self::send(sent, number, *voter, Kind::Vote { term, last }, network, later);
            }
            self.count_votes(now, number, network, later);
        }
    }

    fn count_votes(&mut self, now: Micros, number: NodeNumber, network: &mut Network, later: &mut Later) {
        let Some(replica) = self.replicas.get_mut(&number) else { return };
        match &replica.role {
            Role::Candidate(votes) if votes.len() * 2 > self.voters.len() => {}
            Role::Candidate(_) | Role::Follower | Role::Leader(_) => return,
        }
        (replica.leader, replica.heard) = (Some(number), now);
        self.lead(now, number);
        if let Some(replica) = self.replicas.get_mut(&number) {
            replica.append(None);
        }
        self.advance(now, number, network, later);
    }

    fn lead(&mut self, now: Micros, number: NodeNumber) {
        let Some(replica) = self.replicas.get_mut(&number) else { return };
        let next = replica.log.len() + 1;
        let others = self.all.iter().filter(|other| **other != number);
        let followers = others.map(|other| (*other, Follower { next, ..Follower::default() })).collect();
        let answered = self.voters.iter().map(|voter| (*voter, now)).collect();
        replica.role = Role::Leader(Lead { followers, answered, round: 0 });
    }

    /// One that led when it was killed takes itself for the leader until it hears otherwise.
    pub(super) fn resume(
        &mut self,
        now: Micros,
        number: NodeNumber,
        network: &mut Network,
        later: &mut Later,
    ) {
        if self.replicas.get(&number).is_some_and(|replica| replica.leader == Some(number)) {
            self.lead(now, number);
            self.replicate(now, number, network, later);
        }
    }

    /// Sends each node what it lacks, one message at a time.
    pub(super) fn replicate(
        &mut self,
        now: Micros,
        number: NodeNumber,
        network: &mut Network,
        later: &mut Later,
    ) {
        let Some(replica) = self.replicas.get_mut(&number) else { return };
        let (term, commit, length) = (replica.term, replica.commit, replica.log.len());
        let Role::Leader(lead) = &mut replica.role else { return };
        let mut messages = Vec::new();
        for (other, follower) in &mut lead.followers {
            let news = follower.next <= length || follower.told != commit;
            if follower.waits.is_some() || !news {
                continue;
            }
            lead.round += 1;
            (follower.waits, follower.told) = (Some(lead.round), commit);
            messages.push((*other, follower.next, lead.round));
        }
        for (other, next, round) in messages {
            let entries: Vec<Entry> = replica.log.iter().skip(next - 1).take(64).cloned().collect();
            let prev = (replica.term_at(next - 1), next - 1);
            let kind = Kind::Append { term, prev, entries, commit, round };
            Self::send(now, number, other, kind, network, later);
        }
    }

    /// Finds what a majority has by now, applies it, and tells.
    pub(super) fn advance(
        &mut self,
        now: Micros,
        number: NodeNumber,
        network: &mut Network,
        later: &mut Later,
    ) {
        let Some(replica) = self.replicas.get_mut(&number) else { return };
        if let Role::Leader(lead) = &replica.role {
            let own = replica.log.len();
            let held = |voter: &NodeNumber| match lead.followers.get(voter) {
                Some(follower) => follower.matched,
                None => own,
            };
            let mut held: Vec<usize> = self.voters.iter().map(held).collect();
            held.sort_unstable();
            let majority = held.get((held.len() - 1) / 2).copied().unwrap_or(0);
            // An entry of an earlier term counts only with one of this term.
            if majority > replica.commit && replica.term_at(majority) == replica.term {
                replica.commit = majority;
            }
        }
        self.applied(now, number, network, later);
        self.replicate(now, number, network, later);
    }

    fn applied(&mut self, now: Micros, number: NodeNumber, network: &mut Network, later: &mut Later) {
        let Some(replica) = self.replicas.get_mut(&number) else { return };
        let done = replica.apply();
        let (leads, applied) = (replica.leads(), replica.applied);
        if leads {
            for (request, outcome, index) in done {
                self.accepted(now, number, request, outcome, index, network, later);
            }
        }
        self.caught_up(number, applied);
    }

    pub(super) fn take(
        &mut self,
        now: Micros,
        number: NodeNumber,
        from: NodeNumber,
        kind: Kind,
        network: &mut Network,
        later: &mut Later,
    ) {
        let disk = self.params.disk;
        let Some(replica) = self.replicas.get_mut(&number) else { return };
        match kind {
            Kind::Vote { term, last } => {
                let loyal = replica.leader.is_some() && now - replica.heard < self.params.lease;
                let able = !loyal && last >= replica.last();
                if able {
                    replica.meet(now, term);
                }
                let free = replica.voted.is_none_or(|voted| voted == from);
                let granted = able && term == replica.term && free;
                if granted {
                    (replica.voted, replica.heard) = (Some(from), now);
                }
                let kind = Kind::Voted { term: replica.term, granted, last: replica.last() };
                Self::send(now + disk, number, from, kind, network, later);
            }
            Kind::Voted { term, granted, last } => {
                replica.meet(now, term);
                replica.outlogged |= last > replica.last();
                if let Role::Candidate(votes) = &mut replica.role
                    && granted
                    && term == replica.term
                {
                    votes.insert(from);
                    self.count_votes(now, number, network, later);
                }
            }
            Kind::Append { term, prev, entries, commit, round } => {
                replica.meet(now, term);
                if term < replica.term {
                    let kind = Kind::Appended { term: replica.term, matched: None, round };
                    Self::send(now, number, from, kind, network, later);
                    return;
                }
                (replica.role, replica.leader) = (Role::Follower, Some(from));
                (replica.heard, replica.outlogged) = (now, false);
                replica.words += 1;
                let fits = prev.1 <= replica.log.len() && replica.term_at(prev.1) == prev.0;
                let written = fits && !entries.is_empty();
                let matched = fits.then(|| {
                    let end = prev.1 + entries.len();
                    for (index, entry) in (prev.1..).zip(entries) {
                        if replica.log.get(index).is_some_and(|known| known.term != entry.term) {
                            replica.log.truncate(index);
                        }
                        if replica.log.len() == index {
                            replica.log.push(entry);
                        }
                    }
                    replica.commit = replica.commit.max(commit.min(end));
                    end
                });
                let kind = Kind::Appended { term, matched, round };
                let sent = if written { now + disk } else { now };
                Self::send(sent, number, from, kind, network, later);
                self.applied(now, number, network, later);
                self.leader_changed(now, number, network, later);
            }
            Kind::Appended { term, matched, round } => {
                replica.meet(now, term);
                let current = term == replica.term;
                let Role::Leader(lead) = &mut replica.role else { return };
                if let Some(answered) = lead.answered.get_mut(&from) {
                    *answered = now;
                }
                let Some(follower) = lead.followers.get_mut(&from).filter(|_| current) else { return };
                if follower.waits == Some(round) {
                    follower.waits = None;
                }
                match matched {
                    Some(matched) => {
                        follower.matched = follower.matched.max(matched);
                        follower.next = follower.matched + 1;
                    }
                    None => follower.next = (follower.next - 1).max(1),
                }
                self.advance(now, number, network, later);
            }
            Kind::Propose(proposal) => self.proposed(now, number, from, &proposal, network, later),
            Kind::Accepted { request, outcome, index } => {
                self.was_accepted(number, request, outcome, index);
            }
            Kind::NotTaken { request, no_majority } => {
                self.was_not_taken(now, number, request, no_majority);
            }
        }
    }
}
