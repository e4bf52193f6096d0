//! Registries alone: nodes that only have one, for tests and for the fit.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;

use skein_cluster::registry::{ProposeError, Registry as _};
use skein_core::NodeNumber;
use skein_core::facts::Proposal;
use skein_core::random::Seed;
use skein_core::region::Regions;
use ulid::Ulid;

use super::{Answer, Event, Later, Params, Registries, Seat};
use crate::agenda::{Agenda, MS, Micros, SECOND};
use crate::bare::region_of;
use crate::facts;
use crate::net::Network;
use crate::seam::poll;

/// Registries of nodes that go round through all regions.
#[derive(Debug)]
pub struct Alone {
    agenda: Agenda<Event>,
    network: Network,
    registries: Registries,
    seats: BTreeMap<NodeNumber, Seat>,
    names: u128,
}

impl Alone {
    /// Nodes 1 to `count`, the first `voters` of which vote; none of them runs yet.
    pub fn new(count: u32, voters: usize, params: Params, seed: &Seed) -> Self {
        let regions: Arc<Regions> = Arc::default();
        let nodes: Vec<_> =
            (1..=count).map(NodeNumber).map(|number| (number, region_of(&regions, number))).collect();
        let mut network = Network::new(regions, seed.child("network"));
        network.add(nodes.iter().copied());
        let (numbers, beginning) = (nodes.iter().map(|(number, _)| *number), facts::beginning(&nodes));
        let registries = Registries::new(numbers, voters, beginning, params, seed.child("raft"));
        Self { agenda: Agenda::default(), network, registries, seats: BTreeMap::new(), names: 1_000 }
    }

    /// The time.
    pub fn now(&self) -> Micros {
        self.agenda.now()
    }

    /// The network.
    pub fn network(&mut self) -> &mut Network {
        &mut self.network
    }

    /// All registries.
    pub fn registries(&self) -> &Registries {
        &self.registries
    }

    /// Starts a node's.
    pub fn start(&mut self, number: NodeNumber) {
        let mut later = Later::new();
        let seat = self.registries.start(self.agenda.now(), number, &mut self.network, &mut later);
        self.seats.extend(seat.map(|seat| (number, seat)));
        self.put(later);
    }

    /// Ends a node's.
    pub fn kill(&mut self, number: NodeNumber) {
        self.registries.kill(number);
        self.seats.remove(&number);
    }

    /// Lets so much time pass.
    pub fn run(&mut self, time: Micros) {
        let end = self.now() + time;
        while self.step(end) {}
    }

    /// Lets time pass until `done` says so; whether it did within `limit`.
    pub fn until(&mut self, limit: Micros, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.now() + limit;
        while !done(self) {
            if !self.step(end) {
                return false;
            }
        }
        true
    }

    /// Makes an app of that name through a node: what came of it.
    pub fn write(&mut self, through: NodeNumber, name: &str) -> Answer {
        let gone = || Err(ProposeError::Stopped("it does not run".to_owned()));
        let Some(seat) = self.seats.get(&through).cloned() else { return gone() };
        self.names += 1;
        let command = facts::create_app(self.names, name);
        let proposal = Proposal { request: Ulid(self.names), now_ms: self.now() / MS, command };
        let mut submitted = pin!(seat.submit(proposal));
        let end = self.now() + 60 * SECOND;
        loop {
            if let Some(answer) = poll(submitted.as_mut()) {
                return answer;
            }
            self.settle();
            if !self.step(end) {
                return gone();
            }
        }
    }

    /// Whether a node's facts have an app of that name.
    pub fn has(&self, number: NodeNumber, name: &str) -> bool {
        let facts = self.registries.state(number);
        facts.is_some_and(|(_, state)| state.app_by_name(name).is_some())
    }

    fn step(&mut self, end: Micros) -> bool {
        let Some(event) = self.agenda.next(end) else { return false };
        let mut later = Later::new();
        self.registries.handle(self.agenda.now(), event, &mut self.network, &mut later);
        self.put(later);
        true
    }

    fn settle(&mut self) {
        let mut later = Later::new();
        self.registries.settle(self.agenda.now(), &mut self.network, &mut later);
        self.put(later);
    }

    fn put(&mut self, later: Later) {
        for (at, event) in later {
            self.agenda.at(at, event);
        }
    }
}
