//! A model of gossip: chitchat and what `skein_cluster::gossip` makes of it, message by message.
//!
//! As in the real one: an exchange is three messages (digest; digest and what the other lacks; what
//! the first lacks), begun with three live nodes, perhaps a dead one and three seeds that are not
//! alive at each tick, and by push after a change: whom, decides the production's
//! [`push`]. A look at the state happens at most every 10 ms. Liveness is
//! [`Heartbeats`] and the floor of `GossipConfig::alive_floor`.
//!
//! Simpler than the real one: a node's state is taken whole instead of key by key (a real delta is
//! cut at 65 KB), only the newest generation of a node is kept, and a dead one is never forgotten.
//!
//! The free parameters are in [`Params`], fitted by `skein-sim fit`.

mod member;
mod said;

use std::collections::BTreeMap;
use std::sync::Arc;

use skein_cluster::Members;
use skein_cluster::gossip::push::{self, Peer};
use skein_core::age::Confirmed;
use skein_core::random::Seed;
use skein_core::snapshot::NodeFacts;
use skein_core::{NodeNumber, Random};

use crate::agenda::{MS, Micros};
use crate::detector::Heartbeats;
use crate::seam::{Bell, lock};
pub use member::Member;
pub use said::Said;

/// Peers that chitchat gossips with at a tick.
const FANOUT: usize = 3;
/// Seeds that are not alive and are tried at a tick.
const COURTED: usize = 3;

/// What is fitted to the real one, beside the structure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Params {
    /// Between ticks; `GossipConfig::tick`.
    pub tick: Micros,
    /// The least time between two looks; `GossipConfig::coalesce`.
    pub coalesce: Micros,
    /// `GossipConfig::alive_floor`.
    pub alive_floor: Micros,
    /// `GossipConfig::push_to_all`.
    pub push_to_all: usize,
    /// Bytes of a node in a digest.
    pub digest_entry: usize,
    /// Bytes of a node in a delta, without its keys.
    pub delta_entry: usize,
    /// Share of a delta's keys and values that is left after compression.
    pub compression: f64,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            tick: 500 * MS,
            coalesce: 10 * MS,
            alive_floor: 2_000 * MS,
            push_to_all: 25,
            digest_entry: 43,
            delta_entry: 36,
            compression: 0.9,
        }
    }
}

/// A node in a digest: how much of it the sender knows.
#[derive(Debug, Clone, Copy)]
struct Digested {
    number: NodeNumber,
    generation: u64,
    heartbeat: u64,
    version: u64,
}

type Digest = Arc<Vec<Digested>>;

/// What one lacked of a node.
#[derive(Debug, Clone)]
pub struct Piece {
    number: NodeNumber,
    generation: u64,
    said: Arc<Said>,
}

/// A message between two nodes.
#[derive(Debug, Clone)]
pub enum Message {
    /// Begins an exchange.
    Syn(DigestMessage),
    /// Answers it.
    SynAck(DigestMessage, Vec<Piece>),
    /// Ends it.
    Ack(Vec<Piece>),
}

/// A digest as it travels.
#[derive(Debug, Clone)]
pub struct DigestMessage(Digest);

/// A message with its receiver and its length.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Who gets it.
    pub to: NodeNumber,
    /// The message.
    pub message: Message,
    /// Its length in bytes.
    pub bytes: usize,
}

/// What a node knows of another, or of itself.
#[derive(Debug, Clone, Default)]
struct Known {
    /// The newest generation heard of, and its heartbeat.
    generation: u64,
    heartbeat: u64,
    beats: Heartbeats,
    /// What the newest generation that said who it is has said.
    said_generation: u64,
    said: Arc<Said>,
    /// As of the last look.
    seen: (u64, u64),
    seen_heartbeat: (u64, u64),
    advanced: Option<Micros>,
    alive: bool,
    confirmed: Arc<Confirmed>,
}

/// How a node's message is to be taken in, and when it looks at what it knows.
#[derive(Debug)]
pub struct Gossiper {
    number: NodeNumber,
    params: Params,
    generation: u64,
    heartbeat: u64,
    /// What is to be said from the next look on, and what others see of what it knows.
    member: Member,
    known: BTreeMap<NodeNumber, Known>,
    heard: BTreeMap<NodeNumber, Micros>,
    pushed: u64,
    members: Members,
    next_look: Micros,
    rng: Seed,
    counts: Counts,
}

/// What happened since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Exchanges begun because of a change of this node.
    pub pushes: u64,
    /// Exchanges begun to pass on what was learned.
    pub relays: u64,
    /// Times that a node was called dead.
    pub deaths: u64,
    /// Times that this node took a greater generation because others knew one.
    pub outlived: u64,
}

impl Known {
    fn report(&mut self, now: Micros, entry: &Digested) {
        if entry.generation > self.generation {
            // Another life of the node: its heartbeats are counted anew.
            (self.generation, self.heartbeat) = (entry.generation, entry.heartbeat);
            self.beats = Heartbeats::default();
        } else if entry.generation == self.generation && entry.heartbeat > self.heartbeat {
            self.heartbeat = entry.heartbeat;
            self.beats.report(now);
        }
    }
}

impl Gossiper {
    /// A node that has heard of nobody.
    pub fn new(number: NodeNumber, generation: u64, params: Params, rng: Seed, bell: Bell) -> Self {
        Self {
            number,
            params,
            generation,
            heartbeat: 0,
            member: Member::new(number, bell),
            known: BTreeMap::from([(number, Known { generation, ..Known::default() })]),
            heard: BTreeMap::new(),
            pushed: 0,
            members: Members::new(),
            next_look: 0,
            rng,
            counts: Counts::default(),
        }
    }

    /// Its outside.
    pub fn member(&self) -> &Member {
        &self.member
    }

    /// All known nodes, as of the last look.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// What happened since the start.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// When the next look may be: for one who has a reason to look.
    pub fn next_look(&self, now: Micros) -> Micros {
        self.next_look.max(now)
    }

    /// A tick: gossips with some, judges all. A look is due then.
    pub fn tick(&mut self, now: Micros) -> Vec<Outgoing> {
        let others = |live: bool| -> Vec<NodeNumber> {
            let others = self.known.iter().filter(|(number, _)| **number != self.number);
            others.filter(|(_, known)| known.beats.live() == live).map(|(number, _)| *number).collect()
        };
        let (mut live, mut dead) = (others(true), others(false));
        let dead_share = dead.len() as f64 / (live.len() + 1) as f64;
        if live.is_empty() {
            live.clone_from(&dead);
        }
        self.heartbeat += 1;
        let mut chosen = push::sample(&mut live, FANOUT, &mut self.rng);
        if dead_share > self.rng.fraction() {
            chosen.extend(push::sample(&mut dead, 1, &mut self.rng));
        }
        let (own, prior) = (self.number, self.params.tick);
        for (_, known) in self.known.iter_mut().filter(|(number, _)| **number != own) {
            known.beats.judge(now, prior);
        }
        lock(&self.member.wanted).changed = true;
        chosen.extend(self.court(COURTED));
        self.begin(chosen)
    }

    /// Takes a message; whether a look is due, and the answer.
    pub fn receive(&mut self, now: Micros, from: NodeNumber, message: Message) -> (bool, Option<Outgoing>) {
        let first = self.heard.insert(from, now).is_none();
        self.heartbeat += 1;
        match message {
            Message::Syn(DigestMessage(digest)) => {
                self.report(now, &digest);
                let pieces = self.lacking(&digest);
                let (own, bytes) = self.digest();
                let bytes = bytes + self.length(&pieces, &digest);
                let message = Message::SynAck(DigestMessage(own), pieces);
                (first, Some(Outgoing { to: from, message, bytes }))
            }
            Message::SynAck(DigestMessage(digest), pieces) => {
                self.report(now, &digest);
                self.take(pieces);
                let pieces = self.lacking(&digest);
                let bytes = HEADER + self.length(&pieces, &digest);
                (true, Some(Outgoing { to: from, message: Message::Ack(pieces), bytes }))
            }
            Message::Ack(pieces) => {
                self.take(pieces);
                (true, None)
            }
        }
    }

    /// Says what is to be said, sees what is new, and passes on; whether the members changed.
    pub fn look(&mut self, now: Micros) -> (bool, Vec<Outgoing>) {
        self.next_look = now + self.params.coalesce;
        self.say();
        let floor = self.params.alive_floor;
        self.heard.retain(|_, at| now - *at < floor);
        let (changed, learned) = self.see(now, floor);
        let version = self.known.get(&self.number).map_or(0, |own| own.said.version());
        let changed_self = version > self.pushed;
        self.pushed = version;
        let mut chosen = Vec::new();
        if changed_self || learned {
            let peers = self.peers();
            let region = self.members.get(&self.number).map(|facts| facts.record.region);
            let to_all = self.params.push_to_all;
            chosen = if changed_self {
                push::by_origin(&peers, region, to_all, &mut self.rng)
            } else {
                push::by_learner(&peers, region, to_all, &mut self.rng)
            };
            let count = if changed_self { &mut self.counts.pushes } else { &mut self.counts.relays };
            *count += chosen.len() as u64;
        }
        let new_seeds = std::mem::take(&mut lock(&self.member.wanted).new_seeds);
        if new_seeds {
            chosen.extend(self.court(self.params.push_to_all));
        }
        if changed {
            self.member.members.send_replace(self.members.clone());
        }
        (changed, self.begin(chosen))
    }

    fn say(&mut self) {
        let mut wanted = lock(&self.member.wanted);
        let Some(node) = wanted.node.clone() else { return };
        if !std::mem::take(&mut wanted.changed) {
            return;
        }
        let own = self.known.entry(self.number).or_default();
        own.said_generation = self.generation;
        own.said = own.said.next(&node, &wanted.machines);
    }

    fn see(&mut self, now: Micros, floor: Micros) -> (bool, bool) {
        let recent = |at: Option<Micros>| at.is_some_and(|at| now - at < floor);
        let (mut changed, mut learned) = (false, false);
        for (number, known) in &mut self.known {
            let heartbeat = (known.generation, known.heartbeat);
            if heartbeat > known.seen_heartbeat {
                // The first heartbeat may be an old one, told by somebody else.
                known.advanced = (known.seen_heartbeat.1 > 0).then_some(now);
                known.seen_heartbeat = heartbeat;
                if known.advanced.is_some() || known.beats.live() {
                    known.confirmed.confirm(now / MS + 1);
                }
            }
            if *number == self.number {
                known.confirmed.confirm(now / MS + 1);
            }
            let Some(record) = known.said.node() else { continue };
            let place = (known.said_generation, known.said.version());
            let news = place > known.seen;
            learned |= news && *number != self.number;
            let alive = *number == self.number
                || known.beats.live()
                || recent(self.heard.get(number).copied())
                || (known.alive && recent(known.advanced));
            self.counts.deaths += u64::from(known.alive && !alive);
            if news || alive != known.alive {
                (known.seen, known.alive) = (place, alive);
                let facts = NodeFacts {
                    record: record.clone(),
                    generation: place.0,
                    version: place.1,
                    alive,
                    confirmed: Arc::clone(&known.confirmed),
                    machines: known.said.machines().clone(),
                };
                self.members.insert(*number, Arc::new(facts));
                changed = true;
            }
        }
        (changed, learned)
    }

    fn peers(&self) -> Vec<Peer> {
        let listed = |number: &NodeNumber| self.known.get(number).is_some_and(|known| known.seen.1 > 0);
        let seeds = lock(&self.member.wanted).seeds.clone();
        let unknown = seeds.into_iter().filter(|seed| !listed(seed));
        let unknown = unknown.map(|number| Peer { number, region: None });
        let known = self.known.iter().filter(|(number, known)| **number != self.number && known.alive);
        let known = known.map(|(number, known)| Peer {
            number: *number,
            region: known.said.node().map(|record| record.region),
        });
        known.chain(unknown).collect()
    }

    fn court(&mut self, at_most: usize) -> Vec<NodeNumber> {
        let away = |seed: &&NodeNumber| self.known.get(seed).is_none_or(|known| !known.alive);
        let mut away: Vec<NodeNumber> =
            lock(&self.member.wanted).seeds.iter().filter(away).copied().collect();
        push::sample(&mut away, at_most, &mut self.rng)
    }

    fn begin(&self, chosen: Vec<NodeNumber>) -> Vec<Outgoing> {
        if chosen.is_empty() {
            return Vec::new();
        }
        let (digest, bytes) = self.digest();
        let bytes = bytes + CLUSTER_ID;
        let syn = |to| Outgoing { to, message: Message::Syn(DigestMessage(Arc::clone(&digest))), bytes };
        chosen.into_iter().map(syn).collect()
    }

    fn digest(&self) -> (Digest, usize) {
        let digested = |(number, known): (&NodeNumber, &Known)| {
            let own = *number == self.number;
            let (generation, heartbeat) =
                if own { (self.generation, self.heartbeat) } else { (known.generation, known.heartbeat) };
            let version = if known.said_generation == generation { known.said.version() } else { 0 };
            Digested { number: *number, generation, heartbeat, version }
        };
        let digest: Vec<_> = self.known.iter().map(digested).collect();
        let bytes = HEADER + digest.len() * self.params.digest_entry;
        (Arc::new(digest), bytes)
    }

    fn report(&mut self, now: Micros, digest: &Digest) {
        // Both are in the order of numbers.
        let mut theirs = digest.iter().peekable();
        let (mut strangers, mut outlived) = (Vec::new(), None);
        for (number, known) in &mut self.known {
            while let Some(stranger) = theirs.next_if(|entry| entry.number < *number) {
                strangers.push(*stranger);
            }
            match theirs.next_if(|entry| entry.number == *number) {
                Some(entry) if *number != self.number => known.report(now, entry),
                Some(entry) => outlived = Some(entry.generation).filter(|other| *other > self.generation),
                None => {}
            }
        }
        if let Some(generation) = outlived {
            self.outlive(generation);
        }
        strangers.extend(theirs.copied());
        for stranger in strangers {
            self.known.entry(stranger.number).or_default().report(now, &stranger);
        }
    }

    /// Others know a later life of this node: its clock went back. It takes a greater generation, and
    /// says all anew.
    fn outlive(&mut self, generation: u64) {
        self.generation = generation + 1;
        (self.heartbeat, self.pushed) = (1, 0);
        self.known.entry(self.number).or_default().generation = self.generation;
        lock(&self.member.wanted).changed = true;
        self.counts.outlived += 1;
    }

    /// What the sender of a digest lacks.
    fn lacking(&self, digest: &Digest) -> Vec<Piece> {
        let mut theirs = digest.iter().peekable();
        let mut pieces = Vec::new();
        for (number, known) in &self.known {
            while theirs.next_if(|entry| entry.number < *number).is_some() {}
            let has = theirs.next_if(|entry| entry.number == *number);
            let has = has.map_or((0, 0), |entry| (entry.generation, entry.version));
            if known.said.version() > 0 && (known.said_generation, known.said.version()) > has {
                let (generation, said) = (known.said_generation, Arc::clone(&known.said));
                pieces.push(Piece { number: *number, generation, said });
            }
        }
        pieces
    }

    fn take(&mut self, pieces: Vec<Piece>) {
        for Piece { number, generation, said } in pieces {
            if number == self.number {
                continue;
            }
            let known = self.known.entry(number).or_default();
            if (generation, said.version()) > (known.said_generation, known.said.version()) {
                (known.said_generation, known.said) = (generation, said);
            }
        }
    }

    fn length(&self, pieces: &[Piece], digest: &Digest) -> usize {
        let keys = |piece: &Piece| {
            let entry = digest.binary_search_by_key(&piece.number, |entry| entry.number);
            let known = entry.ok().and_then(|index| digest.get(index));
            let known = known.filter(|entry| entry.generation == piece.generation);
            piece.said.bytes_after(known.map_or(0, |entry| entry.version))
        };
        let keys: usize = pieces.iter().map(keys).sum();
        pieces.len() * self.params.delta_entry + (keys as f64 * self.params.compression) as usize
    }
}

/// Bytes of a message without digest and delta: magic, version, kind, counts, and in the first one
/// the cluster's id.
const HEADER: usize = 12;
const CLUSTER_ID: usize = 28;

#[cfg(test)]
mod tests;
