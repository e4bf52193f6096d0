//! chitchat's state as members: what is looked at under its lock, and what follows from it.
//!
//! A node that restarted stands in chitchat's state once per generation; the highest that says who
//! it is counts. A state that is behind what is known of a generation (chitchat refills it from the
//! start when a peer has forgotten deletions) is left alone until it has caught up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chitchat::{Chitchat, ChitchatId, NodeState};
use imbl::OrdMap;
use skein_core::age::Confirmed;
use skein_core::key::{GossipKey, NodeRecord};
use skein_core::record::Record;
use skein_core::snapshot::NodeFacts;
use skein_core::{MachineId, NodeNumber};
use tokio::time::Instant;

use super::entry::{self, Skipped};
use super::push::Peer;
use super::{Counters, Members, count, node_key, socket};

/// What chitchat holds of one node.
#[derive(Debug)]
pub(super) struct Sighting {
    pub(super) number: NodeNumber,
    pub(super) generation: u64,
    /// chitchat's failure detector calls this or a later generation alive.
    pub(super) live: bool,
    /// The newest generation, and its heartbeat.
    pub(super) heartbeat: (u64, u64),
    /// `None` when nothing is new.
    pub(super) news: Option<News>,
}

/// What changed of a node.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) version: u64,
    /// Entries newer than the known version; they replace, `present` removes.
    pub(super) entries: Vec<(String, String)>,
    /// The Machine keys that exist, old ones included.
    pub(super) present: BTreeSet<MachineId>,
}

/// What a look at the members' state brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// The members differ from before.
    pub(super) changed: bool,
    /// Another node's version grew.
    pub(super) learned: bool,
}

#[derive(Debug, Default)]
struct Known {
    generation: u64,
    version: u64,
    /// The last that decoded.
    record: Option<NodeRecord>,
    machines: OrdMap<MachineId, Arc<Record>>,
    alive: bool,
    heartbeat: (u64, u64),
    /// When the heartbeat was last seen to grow.
    advanced: Option<Instant>,
    /// The same for decisions; also when anything changed.
    confirmed: Arc<Confirmed>,
}

/// All nodes that gossip has heard of.
#[derive(Debug)]
pub(super) struct View {
    own: NodeNumber,
    nodes: BTreeMap<NodeNumber, Known>,
    members: Members,
    /// States under ids that name no node of ours; counted once each.
    aliens: BTreeSet<ChitchatId>,
}

impl View {
    pub(super) fn new(own: NodeNumber) -> Self {
        Self { own, nodes: BTreeMap::new(), members: Members::new(), aliens: BTreeSet::new() }
    }

    pub(super) fn members(&self) -> &Members {
        &self.members
    }

    /// The other nodes that a push may reach: those not known to be dead.
    pub(super) fn peers(&self, seeds: &BTreeSet<NodeNumber>) -> Vec<Peer> {
        let unknown = seeds.iter().filter(|number| !self.nodes.contains_key(number));
        let unknown = unknown.map(|number| Peer { number: *number, region: None });
        let known = self.nodes.iter().filter(|(number, known)| **number != self.own && known.alive);
        let known = known.map(|(number, known)| Peer {
            number: *number,
            region: known.record.as_ref().map(|record| record.region),
        });
        known.chain(unknown).collect()
    }

    pub(super) fn alive(&self, number: NodeNumber) -> bool {
        self.nodes.get(&number).is_some_and(|known| known.alive)
    }

    /// Looks at chitchat's state; run under its lock, so texts are only copied.
    pub(super) fn look(&mut self, chitchat: &Chitchat, counters: &Counters) -> Vec<Sighting> {
        self.aliens.retain(|id| chitchat.node_state(id).is_some());
        let mut generations: BTreeMap<NodeNumber, Vec<(&ChitchatId, &NodeState)>> = BTreeMap::new();
        for (id, state) in chitchat.node_states() {
            if let Some(number) = number_of(id) {
                generations.entry(number).or_default().push((id, state));
            } else if self.aliens.insert(id.clone()) {
                count(&counters.bad_entries);
                tracing::warn!(?id, "gossip knows a node whose id is none of ours");
            }
        }
        let live: BTreeSet<&ChitchatId> = chitchat.live_nodes().collect();
        let node_key = node_key();
        let sighting = |(number, states): (NodeNumber, Vec<(&ChitchatId, &NodeState)>)| {
            // The state's own order: the last generation is the newest.
            let (newest, newest_state) = states.last()?;
            let (id, state) = states.iter().rev().find(|(_, state)| state.get(&node_key).is_some())?;
            Some(Sighting {
                number,
                generation: id.generation_id,
                live: states
                    .iter()
                    .any(|(other, _)| other.generation_id >= id.generation_id && live.contains(other)),
                heartbeat: (newest.generation_id, newest_state.heartbeat().into()),
                news: self.news(number, id.generation_id, state, counters),
            })
        };
        generations.into_iter().filter_map(sighting).collect()
    }

    fn news(
        &self,
        number: NodeNumber,
        generation: u64,
        state: &NodeState,
        counters: &Counters,
    ) -> Option<News> {
        let known =
            self.nodes.get(&number).map(|known| (known.generation, known.version)).unwrap_or_default();
        if (generation, state.max_version()) <= known {
            return None;
        }
        let seen_up_to = if generation == known.0 { known.1 } else { 0 };
        let mut news = News { version: state.max_version(), ..News::default() };
        for (key, value) in state.key_values_including_deleted().filter(|(_, value)| !value.is_deleted()) {
            let new = value.version > seen_up_to;
            match key.parse::<GossipKey>() {
                Ok(GossipKey::Machine(id)) => drop(news.present.insert(id)),
                Ok(GossipKey::Node) => {}
                Err(_) if new => {
                    count(&counters.unknown_keys);
                    continue;
                }
                Err(_) => continue,
            }
            if new {
                news.entries.push((key.to_owned(), value.value.clone()));
            }
        }
        Some(news)
    }

    /// Works in what was seen. `heard` is when each peer itself was last heard; `floor` is how long
    /// that, or a growing heartbeat, keeps a node alive; `now_ms` is the clock of decisions.
    pub(super) fn apply(
        &mut self,
        sightings: Vec<Sighting>,
        heard: &BTreeMap<NodeNumber, Instant>,
        (now, now_ms): (Instant, u64),
        floor: Duration,
        counters: &Counters,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        let mut changed = BTreeSet::new();
        let mut live = BTreeSet::new();
        for sighting in sightings {
            let Sighting { number, generation, heartbeat, news, live: is_live } = sighting;
            let known = self.nodes.entry(number).or_default();
            if is_live {
                live.insert(number);
            }
            if heartbeat > known.heartbeat {
                // The first heartbeat may be an old one, told by somebody else.
                known.advanced = (known.heartbeat.1 > 0).then_some(now);
                known.heartbeat = heartbeat;
                if known.advanced.is_some() || is_live {
                    known.confirmed.confirm(now_ms);
                }
            }
            if let Some(news) = news {
                known.take(number, generation, news, counters);
                changed.insert(number);
                outcome.learned |= number != self.own;
            }
        }
        let recent = |at: Option<&Instant>| at.is_some_and(|at| now.duration_since(*at) < floor);
        for (number, known) in &mut self.nodes {
            if *number == self.own {
                known.confirmed.confirm(now_ms);
            }
            let alive = *number == self.own
                || live.contains(number)
                || recent(heard.get(number))
                || (known.alive && recent(known.advanced.as_ref()));
            if known.alive != alive {
                known.alive = alive;
                changed.insert(*number);
            }
        }
        for number in changed {
            let facts = self.nodes.get(&number).and_then(Known::facts);
            if let Some(facts) = facts {
                self.members.insert(number, Arc::new(facts));
                outcome.changed = true;
            }
        }
        outcome
    }
}

/// The node that a chitchat id names; `None` when it is none of ours.
pub(super) fn number_of(id: &ChitchatId) -> Option<NodeNumber> {
    let number: NodeNumber = id.node_id.parse().ok()?;
    // One spelling per node: else one of them could stand twice with one generation.
    let ours = number.to_string() == *id.node_id && socket::number(id.gossip_advertise_addr) == Some(number);
    ours.then_some(number)
}

impl Known {
    fn facts(&self) -> Option<NodeFacts> {
        let (generation, version, alive) = (self.generation, self.version, self.alive);
        let record = self.record.clone()?;
        let confirmed = Arc::clone(&self.confirmed);
        Some(NodeFacts { record, generation, version, alive, confirmed, machines: self.machines.clone() })
    }

    fn take(&mut self, number: NodeNumber, generation: u64, news: News, counters: &Counters) {
        let mut machines = self.machines.clone();
        if generation != self.generation {
            // Only what this generation says; equal records are still shared with the last one.
            machines.clear();
        }
        for (key, text) in news.entries {
            let Ok(key) = key.parse::<GossipKey>() else { continue };
            match key {
                GossipKey::Node => match entry::from_text::<NodeRecord>(&text) {
                    Ok(record) if record.number == number => self.record = Some(record),
                    Ok(_) => skipped(number, key, Skipped::Malformed, counters),
                    Err(reason) => skipped(number, key, reason, counters),
                },
                GossipKey::Machine(id) => {
                    let known = self.machines.get(&id);
                    machines.remove(&id);
                    match entry::from_text::<Record>(&text) {
                        Ok(record) if record.id == id => {
                            let same = known.filter(|known| ***known == record).cloned();
                            machines.insert(id, same.unwrap_or_else(|| Arc::new(record)));
                        }
                        Ok(_) => skipped(number, key, Skipped::Malformed, counters),
                        Err(reason) => skipped(number, key, reason, counters),
                    }
                }
            }
        }
        let gone: Vec<_> = machines.keys().filter(|id| !news.present.contains(*id)).copied().collect();
        for id in gone {
            machines.remove(&id);
        }
        self.machines = machines;
        self.generation = generation;
        self.version = news.version;
    }
}

fn skipped(node: NodeNumber, key: GossipKey, reason: Skipped, counters: &Counters) {
    match reason {
        Skipped::Version => count(&counters.unknown_versions),
        Skipped::Malformed => count(&counters.bad_entries),
    }
    tracing::warn!(node = node.0, %key, ?reason, "a gossip entry was skipped");
}

#[cfg(test)]
mod tests;
