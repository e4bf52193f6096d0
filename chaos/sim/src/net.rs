//! The virtual network: what becomes of each message between two nodes.
//!
//! Rules are the production's: each sending node has a [`LinkTable`] with the distance of its peers
//! and with faults, and each packet gets [`LinkRule::verdict`]. Messages are datagrams, which are
//! lost with their packet, or streams, which QUIC sends again: then a lost packet costs
//! time, and only a link that is cut for as long as a connection lives loses them.

use std::collections::BTreeMap;
use std::sync::Arc;

use skein_cluster::LinkTable;
use skein_core::fault::{LinkRule, PacketVerdict};
use skein_core::random::Seed;
use skein_core::region::Regions;
use skein_core::{NodeNumber, RegionCode};

use crate::agenda::{MS, Micros, micros};

/// The longest message that fits a datagram of the backhaul, in bytes; longer ones go by a stream.
pub const DATAGRAM: usize = 1_200;
/// One way inside a region: two sockets of one machine.
pub const NEAR: Micros = 50;
/// Jitter of a distance: a fiftieth of it, as in the testbed.
const JITTER_SHARE: u64 = 50;
/// A connection on which nothing comes for so long is lost with all its streams, in microseconds:
/// backhaul's `idle_timeout`.
pub const IDLE: Micros = 4_000 * MS;
/// The least time after which QUIC sends a packet again (RFC 9002 section 6.2: a probe timeout is
/// about three half round trips and the peer's 25 ms).
const LEAST_PROBE: Micros = 30 * MS;

/// How a message travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Lost with its packet.
    Datagram,
    /// A stream of its own: sent again until it is there or the connection is lost.
    Stream,
}

/// What the network has carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Carried {
    /// Messages given to it.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Messages that it lost.
    pub lost: u64,
}

#[derive(Debug)]
struct Node {
    region: RegionCode,
    table: LinkTable,
}

/// All links.
#[derive(Debug)]
pub struct Network {
    regions: Arc<Regions>,
    nodes: BTreeMap<NodeNumber, Node>,
    /// What every packet meets everywhere, beside the nodes' own rules.
    weather: LinkRule,
    /// When the last packet that kept its place arrives, by link: jitter alone does not reorder.
    last: BTreeMap<(NodeNumber, NodeNumber), Micros>,
    rng: Seed,
    carried: Carried,
}

impl Network {
    /// A network without nodes.
    pub fn new(regions: Arc<Regions>, rng: Seed) -> Self {
        Self {
            regions,
            nodes: BTreeMap::new(),
            weather: LinkRule::default(),
            last: BTreeMap::new(),
            rng,
            carried: Carried::default(),
        }
    }

    /// Adds nodes with the distances between all.
    pub fn add(&mut self, nodes: impl IntoIterator<Item = (NodeNumber, RegionCode)>) {
        for (number, region) in nodes {
            self.nodes.insert(number, Node { region, table: LinkTable::default() });
        }
        for (number, node) in &self.nodes {
            let others = self.nodes.iter().filter(|(other, _)| *other != number);
            let rules = others.map(|(other, peer)| (*other, self.distance(node.region, peer.region)));
            node.table.set_distances(rules.collect());
        }
    }

    fn distance(&self, a: RegionCode, b: RegionCode) -> LinkRule {
        let delay_us = micros(self.regions.simulated_rtt(a, b) / 2);
        let jitter_us = delay_us / JITTER_SHARE;
        LinkRule { delay_us: delay_us.max(NEAR), jitter_us, ..LinkRule::default() }
    }

    /// Every packet of every link meets this too.
    pub fn set_weather(&mut self, rule: LinkRule) {
        self.weather = rule;
    }

    /// The rules of what a node sends; `None` for one that does not exist.
    pub fn table(&self, node: NodeNumber) -> Option<&LinkTable> {
        self.nodes.get(&node).map(|node| &node.table)
    }

    /// The rule that a packet meets.
    pub fn rule(&self, from: NodeNumber, to: NodeNumber) -> LinkRule {
        let own = self.nodes.get(&from).map_or_else(LinkRule::default, |node| node.table.effective(to));
        own.plus(&self.weather)
    }

    /// What was carried since the start.
    pub fn carried(&self) -> Carried {
        self.carried
    }

    /// When copies of a message of `bytes` arrive, if any do.
    pub fn send(
        &mut self,
        now: Micros,
        from: NodeNumber,
        to: NodeNumber,
        class: Class,
        bytes: usize,
    ) -> Vec<Micros> {
        let rule = self.rule(from, to);
        self.carried.messages += 1;
        self.carried.bytes += bytes as u64;
        let arrivals = match class {
            Class::Datagram => self.datagram(now, from, to, &rule),
            Class::Stream => self.stream(now, &rule, bytes),
        };
        self.carried.lost += u64::from(arrivals.is_empty());
        arrivals
    }

    fn datagram(&mut self, now: Micros, from: NodeNumber, to: NodeNumber, rule: &LinkRule) -> Vec<Micros> {
        let PacketVerdict::Send { delay, copies } = rule.verdict(&mut self.rng) else { return Vec::new() };
        let mut due = now.saturating_add(micros(delay));
        let jumps_ahead = rule.reorder > 0.0 && delay.is_zero() && rule.delay_us + rule.jitter_us > 0;
        if !jumps_ahead {
            let last = self.last.entry((from, to)).or_default();
            due = due.max(*last);
            *last = due;
        }
        vec![due; copies.into()]
    }

    /// Once; packets are sent again after a probe timeout that doubles.
    fn stream(&mut self, now: Micros, rule: &LinkRule, bytes: usize) -> Vec<Micros> {
        let mut due = now;
        for _ in 0..bytes.div_ceil(DATAGRAM).max(1) {
            let mut wait = (3 * rule.delay_us).max(LEAST_PROBE);
            let mut sent = now;
            loop {
                match rule.verdict(&mut self.rng) {
                    PacketVerdict::Send { delay, .. } => {
                        due = due.max(sent.saturating_add(micros(delay)));
                        break;
                    }
                    PacketVerdict::Drop if sent - now >= IDLE => return Vec::new(),
                    PacketVerdict::Drop => {
                        sent = sent.saturating_add(wait);
                        wait = wait.saturating_mul(2);
                    }
                }
            }
        }
        vec![due]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        let mut network = Network::new(Arc::default(), Seed::new(1));
        let nodes = [(1, "iad"), (2, "nrt"), (3, "iad")];
        network.add(nodes.map(|(number, region)| (NodeNumber(number), region.parse().unwrap())));
        network
    }

    const A: NodeNumber = NodeNumber(1);
    const B: NodeNumber = NodeNumber(2);

    #[test]
    fn a_message_takes_half_the_simulated_round_trip_and_a_little_jitter() {
        let mut network = network();
        let one_way =
            micros(Regions::default().simulated_rtt("iad".parse().unwrap(), "nrt".parse().unwrap())) / 2;
        for class in [Class::Datagram, Class::Stream] {
            let due = network.send(7, A, B, class, 100)[0];
            assert!((one_way..=one_way + one_way / JITTER_SHARE + 7).contains(&due), "{due} {one_way}");
        }
        assert_eq!(network.send(7, A, NodeNumber(3), Class::Datagram, 100), [7 + NEAR]);
    }

    #[test]
    fn a_lost_packet_loses_a_datagram_and_only_delays_a_stream() {
        let mut network = network();
        network.set_weather(LinkRule { loss: 0.5, ..LinkRule::default() });
        let lost = (0..200).filter(|_| network.send(0, A, B, Class::Datagram, 100).is_empty()).count();
        assert!((60..140).contains(&lost), "{lost}");
        network.set_weather(LinkRule { loss: 0.1, ..LinkRule::default() });
        let arrivals: Vec<_> = (0..50).map(|_| network.send(0, A, B, Class::Stream, 100)[0]).collect();
        let (first, last) = (*arrivals.iter().min().unwrap(), *arrivals.iter().max().unwrap());
        assert!(first < 100 * MS && last > 250 * MS, "{arrivals:?}");
    }

    #[test]
    fn a_cut_through_the_production_table_stops_one_direction_and_an_empty_table_heals() {
        let mut network = network();
        let cut = LinkRule { cut: true, ..LinkRule::default() };
        network.table(A).unwrap().set_faults(BTreeMap::from([(B, cut)]));
        for class in [Class::Datagram, Class::Stream] {
            assert!(network.send(0, A, B, class, 100).is_empty());
            assert_eq!(network.send(0, B, A, class, 100).len(), 1);
        }
        network.table(A).unwrap().set_faults(BTreeMap::new());
        assert_eq!(network.send(0, A, B, Class::Datagram, 100).len(), 1);
    }
}
