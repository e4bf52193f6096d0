//! Gossip alone: nodes that only gossip, for figures and for the fit.

use std::collections::BTreeMap;
use std::sync::Arc;

use skein_cluster::Members;
use skein_cluster::gossip::Membership as _;
use skein_core::fault::LinkRule;
use skein_core::key::NodeRecord;
use skein_core::random::Seed;
use skein_core::record::Record;
use skein_core::region::Regions;
use skein_core::{AppId, ConfigHash, NodeNumber, Random, RegionCode, VersionId, testing};

use crate::agenda::{Agenda, Micros};
use crate::cluster::{Cluster, Event};
use crate::facts;
use crate::gossip::{Member, Params};
use crate::net::{Carried, Network};

/// The region of a node: they go round through all.
pub fn region_of(regions: &Regions, number: NodeNumber) -> RegionCode {
    let all: Vec<RegionCode> = regions.iter().map(|region| region.code).collect();
    all[(number.0 as usize + all.len() - 1) % all.len()]
}

/// What a node says of itself.
pub fn node_record(number: NodeNumber, region: RegionCode) -> NodeRecord {
    testing::node(number.0, region.as_str())
}

/// A record of a started Machine, as long as real ones are.
pub fn record(id: u64) -> Record {
    let ulid = facts::ulid(id.into());
    Record {
        app: AppId(ulid),
        config: ConfigHash([id as u8; 16]),
        version: VersionId(ulid),
        changed_ms: 1_700_000_000_000,
        ..testing::record(id)
    }
}

/// Nodes that only gossip.
#[derive(Debug)]
pub struct Bare {
    agenda: Agenda<Event>,
    network: Network,
    cluster: Cluster,
    regions: Arc<Regions>,
    count: u32,
    members: BTreeMap<NodeNumber, Member>,
    seed: Seed,
    generation: u64,
}

impl Bare {
    /// Nodes 1 to `count`, started within one tick of each other.
    pub fn new(count: u32, params: Params, seed: &Seed) -> Self {
        let regions: Arc<Regions> = Arc::default();
        let mut network = Network::new(Arc::clone(&regions), seed.child("network"));
        let numbers = (1..=count).map(NodeNumber);
        network.add(numbers.clone().map(|number| (number, region_of(&regions, number))));
        let cluster = Cluster::new(params);
        let mut bare = Self {
            agenda: Agenda::default(),
            network,
            cluster,
            regions,
            count,
            members: BTreeMap::new(),
            seed: seed.child("nodes"),
            generation: 0,
        };
        let mut phase = seed.child("phases");
        let mut starts: Vec<(Micros, NodeNumber)> =
            numbers.map(|number| (phase.below(params.tick as usize) as Micros, number)).collect();
        starts.sort_unstable();
        for (at, number) in starts {
            bare.run(at.saturating_sub(bare.now()));
            bare.restart(number);
        }
        bare
    }

    /// The time.
    pub fn now(&self) -> Micros {
        self.agenda.now()
    }

    /// What the network has carried.
    pub fn carried(&self) -> Carried {
        self.network.carried()
    }

    /// What every packet of every link meets.
    pub fn set_weather(&mut self, rule: LinkRule) {
        self.network.set_weather(rule);
    }

    /// Sets the faults of every link, by the numbers of sender and receiver.
    pub fn rules(&mut self, rule: impl Fn(u32, u32) -> LinkRule) {
        for from in 1..=self.count {
            let rules: BTreeMap<_, _> = (1..=self.count)
                .filter(|to| *to != from)
                .map(|to| (NodeNumber(to), rule(from, to)))
                .filter(|(_, rule)| !rule.is_idle())
                .collect();
            if let Some(table) = self.network.table(NodeNumber(from)) {
                table.set_faults(rules);
            }
        }
    }

    /// The nodes' gossipers.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// What a node believes.
    pub fn members(&self, number: NodeNumber) -> Option<&Members> {
        self.cluster.members(number)
    }

    /// Says exactly this of a node's Machines; nothing when it does not run.
    ///
    /// # Panics
    /// When a record is too long.
    pub fn say(&mut self, number: NodeNumber, machines: impl IntoIterator<Item = Record>) {
        let machines = machines.into_iter().map(|record| (record.id, record)).collect();
        if let Some(member) = self.members.get(&number) {
            member.set_machines(&machines).unwrap_or_else(|error| panic!("{error}"));
        }
        self.settle();
    }

    fn settle(&mut self) {
        let mut later = Vec::new();
        self.cluster.settle(self.now(), &mut later);
        self.put(later);
    }

    /// Ends a node without a word.
    pub fn kill(&mut self, number: NodeNumber) {
        self.cluster.kill(number);
        self.members.remove(&number);
    }

    /// Starts a node that does not run, with a greater generation than any before.
    pub fn restart(&mut self, number: NodeNumber) {
        self.generation += 1;
        self.restart_as(number, self.generation);
    }

    /// Starts a node that does not run, with that generation.
    pub fn restart_as(&mut self, number: NodeNumber, generation: u64) {
        let rng = self.seed.child(&format!("{number}.{generation}"));
        let mut later = Vec::new();
        let member = self.cluster.start(self.now(), number, generation, rng, &mut later);
        self.put(later);
        member.set_seeds((1..=self.count).map(NodeNumber).collect());
        let said = member.set_node(&node_record(number, region_of(&self.regions, number)));
        debug_assert!(said.is_ok(), "a node's record is short");
        self.members.insert(number, member);
        self.settle();
    }

    /// Lets so much time pass.
    pub fn run(&mut self, time: Micros) {
        let end = self.now() + time;
        while self.step(end).is_some() {}
    }

    /// Lets one thing happen, at `end` at the latest: the node whose members changed by it, if any;
    /// `None` when nothing is due.
    pub fn step(&mut self, end: Micros) -> Option<Option<NodeNumber>> {
        let event = self.agenda.next(end)?;
        let mut later = Vec::new();
        let changed = self.cluster.handle(self.now(), event, &mut self.network, &mut later);
        self.put(later);
        Some(changed)
    }

    /// Lets time pass until the members of all running nodes are so; whether they became so within
    /// `limit`.
    pub fn until(&mut self, limit: Micros, wanted: impl Fn(&Members) -> bool) -> bool {
        let end = self.now() + limit;
        let judge = |cluster: &Cluster, number| cluster.members(number).is_some_and(&wanted);
        let mut missing: std::collections::BTreeSet<NodeNumber> =
            self.cluster.running().filter(|number| !judge(&self.cluster, *number)).collect();
        while !missing.is_empty() {
            match self.step(end) {
                None => return false,
                Some(None) => {}
                Some(Some(number)) if judge(&self.cluster, number) => drop(missing.remove(&number)),
                Some(Some(number)) => drop(missing.insert(number)),
            }
        }
        true
    }

    fn put(&mut self, later: Vec<(Micros, Event)>) {
        for (at, event) in later {
            self.agenda.at(at, event);
        }
    }
}
