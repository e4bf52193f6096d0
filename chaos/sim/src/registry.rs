//! A model of the registry: Raft as openraft 0.9 does it, and the writes of
//! `skein_cluster::registry` on top, over the virtual network. The facts are the production's
//! [`State`].
//!
//! As in the real one: one leader among the voters, every node gets its entries; an entry counts
//! once a majority of voters has it on disk; the others learn that it counts with the next message.
//! Leader and voters act at ticks of one and a half heartbeats; a voter stands for election after
//! the lease and a random time without word of a leader. A write goes to the leader, is tried again
//! when nothing comes of it, and ends within its own time limit.
//!
//! One that led when it was killed leads on until it hears otherwise, and a vote is refused for a
//! shorter log before its term is looked at, as in openraft.
//!
//! Simpler than the real one: voters never change, the log is never cut, and a message is a part of
//! a stream of the backhaul (a real call is given up after a heartbeat and made anew).
//!
//! The free parameters are in [`Params`], fitted by `skein-sim fit`.

mod alone;
mod replica;
mod seat;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use skein_cluster::registry::{Candidacy, ProposeError};
use skein_core::facts::{Command, Outcome, Proposal, Refusal, State};
use skein_core::random::Seed;
use skein_core::{NodeNumber, Random};
use ulid::Ulid;

use crate::agenda::{MS, Micros};
use crate::net::{Class, Network};
use crate::seam::Bell;
pub use alone::Alone;
use replica::Replica;
pub use seat::Seat;
use write::Write;

/// What is fitted to the real one, beside the structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Params {
    /// Between a leader's beats, and between two looks at the election clock: 1.5 times
    /// `RegistryConfig::heartbeat`.
    pub tick: Micros,
    /// A follower is loyal for so long after word of its leader: openraft's lease, the longest
    /// election timeout.
    pub lease: Micros,
    /// Then it waits for so long more, at random between both: `RegistryConfig::election`.
    pub election: (Micros, Micros),
    /// A durable write.
    pub disk: Micros,
    /// `RegistryConfig::write_timeout`.
    pub write_timeout: Micros,
    /// A leader that no majority has answered for so long refuses writes.
    pub majority_grace: Micros,
    /// Between two attempts of a write when nothing is seen to change.
    pub pause: Micros,
    /// A leader's answer is waited for so long before its place is looked up again.
    pub call: Micros,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            tick: 600 * MS,
            lease: 1_200 * MS,
            election: (600 * MS, 1_200 * MS),
            disk: 2 * MS,
            write_timeout: 5_000 * MS,
            majority_grace: 1_600 * MS,
            pause: 100 * MS,
            call: 2_000 * MS,
        }
    }
}

/// The longest way there and back, and some.
const FARTHEST: Micros = 300 * MS;

/// An entry of the log; without a proposal it only marks the begin of a term.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    term: u64,
    proposal: Option<Arc<Proposal>>,
}

/// Term and index of an entry; index 0 is before the first.
type Place = (u64, usize);

/// A message between two registries.
#[derive(Debug, Clone)]
pub struct Message(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Vote {
        term: u64,
        last: Place,
    },
    Voted {
        term: u64,
        granted: bool,
        last: Place,
    },
    Append {
        term: u64,
        prev: Place,
        entries: Vec<Entry>,
        commit: usize,
        round: u64,
    },
    Appended {
        term: u64,
        matched: Option<usize>,
        round: u64,
    },
    Propose(Arc<Proposal>),
    Accepted {
        request: Ulid,
        outcome: Result<Outcome, Refusal>,
        index: usize,
    },
    /// With the voters that the leader reaches and all of them, when it is no majority.
    NotTaken {
        request: Ulid,
        no_majority: Option<(usize, usize)>,
    },
}

impl Message {
    fn bytes(&self) -> usize {
        match &self.0 {
            Kind::Append { entries, .. } => 120 + entries.len() * 220,
            Kind::Propose(_) | Kind::Accepted { .. } => 250,
            Kind::Vote { .. } | Kind::Voted { .. } | Kind::Appended { .. } | Kind::NotTaken { .. } => 80,
        }
    }
}

/// What happens to a node's registry. `life` is that of the node it was meant for.
#[derive(Debug, Clone)]
pub enum Event {
    /// A tick of a voter.
    Tick(NodeNumber, u64),
    /// A write may be tried again.
    Retry(NodeNumber, u64, Ulid),
    /// A message arrives, at whichever life is there.
    Arrive {
        /// Whose it is.
        from: NodeNumber,
        /// Who gets it.
        to: NodeNumber,
        /// The message.
        message: Message,
    },
}

impl Event {
    /// The node it happens to.
    pub fn node(&self) -> NodeNumber {
        match self {
            Self::Tick(node, _) | Self::Retry(node, _, _) => *node,
            Self::Arrive { to, .. } => *to,
        }
    }
}

/// How a write ended.
pub type Answer = Result<(Outcome, u64), ProposeError>;

/// What will happen, and when.
pub type Later = Vec<(Micros, Event)>;

/// The registries of all nodes.
#[derive(Debug)]
pub struct Registries {
    params: Params,
    voters: BTreeSet<NodeNumber>,
    all: BTreeSet<NodeNumber>,
    replicas: BTreeMap<NodeNumber, Replica>,
    writes: BTreeMap<(NodeNumber, Ulid), Write>,
    lives: u64,
    bell: Bell,
    rng: Seed,
}

impl Registries {
    /// Registries of `nodes` that all hold what `beginning` makes; the lowest `voters` of them vote.
    /// None of them runs yet.
    pub fn new(
        nodes: impl IntoIterator<Item = NodeNumber>,
        voters: usize,
        beginning: impl IntoIterator<Item = Command>,
        params: Params,
        rng: Seed,
    ) -> Self {
        let all: BTreeSet<NodeNumber> = nodes.into_iter().collect();
        let mut first = Replica::default();
        for (number, command) in (1u64..).zip(beginning) {
            first.begin_with(Proposal { request: Ulid(number.into()), now_ms: 0, command });
        }
        Self {
            params,
            voters: all.iter().take(voters).copied().collect(),
            replicas: all.iter().map(|number| (*number, first.clone())).collect(),
            all,
            writes: BTreeMap::new(),
            lives: 0,
            bell: Bell::default(),
            rng,
        }
    }

    /// Starts a node's registry on what is on its disk; `None` for a node that does not exist.
    pub fn start(
        &mut self,
        now: Micros,
        number: NodeNumber,
        network: &mut Network,
        later: &mut Later,
    ) -> Option<Seat> {
        self.lives += 1;
        let first = self.rng.below(self.params.tick as usize) as Micros;
        let timeout = self.timeout();
        let replica = self.replicas.get_mut(&number)?;
        let seat = Seat::new(number, replica.applied, &replica.state, self.bell.clone());
        replica.restart(now, self.lives, timeout, seat.clone());
        if self.voters.contains(&number) {
            later.push((now + first, Event::Tick(number, self.lives)));
        }
        self.resume(now, number, network, later);
        Some(seat)
    }

    /// A look of a voter's, every [`LOOK`](skein_cluster::registry::LOOK): so many voters are reached,
    /// itself included. Whether it may stand decides the production's [`Candidacy`]; a voter that never
    /// looks always may.
    pub fn look(&mut self, number: NodeNumber, reached: usize) {
        let (lease, voters) = (Duration::from_micros(self.params.lease), self.voters.len());
        if let Some(replica) = self.replicas.get_mut(&number) {
            let candidacy = replica.candidacy.get_or_insert_with(|| Candidacy::new(lease));
            replica.may_stand = candidacy.look(replica.words, Some((reached, voters)));
        }
    }

    /// Begins what was submitted since the last time; through which nodes.
    pub fn settle(&mut self, now: Micros, network: &mut Network, later: &mut Later) -> BTreeSet<NodeNumber> {
        let rung = self.bell.rung();
        for number in &rung {
            let seat = self.replicas.get(number).and_then(|replica| replica.seat.as_ref());
            for (proposal, reply) in seat.map(Seat::submitted).unwrap_or_default() {
                self.propose(now, *number, proposal, reply, network, later);
            }
        }
        rung
    }

    /// Ends a node's registry; what is on its disk stays. Its writes get no answer.
    pub fn kill(&mut self, number: NodeNumber) {
        if let Some(replica) = self.replicas.get_mut(&number) {
            (replica.life, replica.seat) = (None, None);
        }
        self.writes.retain(|(node, _), _| *node != number);
    }

    /// The facts as a node has them, with the index of the entry that it has applied.
    pub fn state(&self, number: NodeNumber) -> Option<(u64, Arc<State>)> {
        let replica = self.replicas.get(&number)?;
        Some((replica.applied as u64, Arc::clone(&replica.state)))
    }

    /// The nodes that vote.
    pub fn voters(&self) -> &BTreeSet<NodeNumber> {
        &self.voters
    }

    /// The running node that leads in the highest term, if any does.
    pub fn leader(&self) -> Option<NodeNumber> {
        let leaders = self.replicas.iter().filter(|(_, replica)| replica.life.is_some() && replica.leads());
        leaders.max_by_key(|(_, replica)| replica.term).map(|(number, _)| *number)
    }

    /// The leader that a majority of the voters, or all of them, have just heard of, itself included,
    /// and its term.
    pub fn followed(&self, now: Micros, all: bool) -> Option<(NodeNumber, u64)> {
        let leader = self.leader()?;
        let term = self.replicas.get(&leader)?.term;
        let follows = |voter: &&NodeNumber| {
            let replica = self.replicas.get(voter);
            replica.is_some_and(|r| {
                let follows = r.life.is_some() && r.term == term && r.leader == Some(leader);
                follows && (*voter == &leader || now - r.heard() <= self.params.tick + FARTHEST)
            })
        };
        let (voters, following) = (self.voters.len(), self.voters.iter().filter(follows).count());
        let enough = if all { following == voters } else { following * 2 > voters };
        enough.then_some((leader, term))
    }

    /// Lets `event` happen.
    pub fn handle(&mut self, now: Micros, event: Event, network: &mut Network, later: &mut Later) {
        let number = event.node();
        let Some(life) = self.replicas.get(&number).and_then(|replica| replica.life) else { return };
        match event {
            Event::Tick(_, of) if of == life => {
                self.tick(now, number, network, later);
                later.push((now + self.params.tick, Event::Tick(number, life)));
            }
            Event::Retry(_, of, request) if of == life => {
                self.retry(now, number, request, network, later);
            }
            Event::Tick(..) | Event::Retry(..) => {}
            Event::Arrive { from, message, .. } => self.take(now, number, from, message.0, network, later),
        }
    }

    fn timeout(&mut self) -> Micros {
        let (least, most) = self.params.election;
        least + self.rng.below((most - least) as usize) as Micros
    }

    fn send(
        now: Micros,
        from: NodeNumber,
        to: NodeNumber,
        kind: Kind,
        network: &mut Network,
        later: &mut Later,
    ) {
        let message = Message(kind);
        for at in network.send(now, from, to, Class::Stream, message.bytes()) {
            later.push((at, Event::Arrive { from, to, message: message.clone() }));
        }
    }
}

#[cfg(test)]
mod tests;
