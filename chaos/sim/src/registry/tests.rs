//! The model alone: what Raft promises. How near it is to the real one is what `skein-sim fit`
//! measures.

use super::*;
use crate::agenda::{Agenda, SECOND};
use crate::bare::region_of;
use crate::facts;
use skein_core::fault::LinkRule;

struct World {
    agenda: Agenda<Event>,
    network: Network,
    registry: Registry,
    answers: Vec<(NodeNumber, Ulid, Answer)>,
    requests: u128,
}

fn node(number: u32) -> NodeNumber {
    NodeNumber(number)
}

impl World {
    fn new(count: u32, seed: u64) -> Self {
        let seed = Seed::new(seed);
        let regions = Arc::default();
        let nodes: Vec<_> = (1..=count).map(|n| (node(n), region_of(&regions, node(n)))).collect();
        let mut network = Network::new(regions, seed.child("network"));
        network.add(nodes.clone());
        let numbers = nodes.iter().map(|(number, _)| *number);
        let beginning = facts::beginning(&nodes);
        let registry = Registry::new(numbers, 3, beginning, Params::default(), seed.child("raft"));
        let mut world =
            Self { agenda: Agenda::default(), network, registry, answers: Vec::new(), requests: 1_000 };
        for n in 1..=count {
            world.with(|registry, now, _, effects| registry.start(now, node(n), effects));
        }
        world.run(10 * SECOND);
        world
    }

    fn with(&mut self, action: impl FnOnce(&mut Registry, Micros, &mut Network, &mut Effects)) {
        let mut effects = Effects::default();
        action(&mut self.registry, self.agenda.now(), &mut self.network, &mut effects);
        for (at, event) in effects.later {
            self.agenda.at(at, event);
        }
        self.answers.extend(effects.answers);
    }

    fn run(&mut self, time: Micros) {
        let end = self.agenda.now() + time;
        while let Some(event) = self.agenda.next(end) {
            self.with(|registry, now, network, effects| registry.handle(now, event, network, effects));
        }
    }

    /// Makes an app through a node; the answer, and how long it took.
    fn write(&mut self, through: u32, name: &str) -> (Answer, Micros) {
        self.requests += 1;
        let (request, start) = (Ulid(self.requests), self.agenda.now());
        let command = facts::create_app(self.requests, name);
        self.with(|registry, now, network, effects| {
            registry.propose(now, node(through), request, command, network, effects);
        });
        while self.agenda.now() < start + 20 * SECOND {
            if let Some(found) =
                self.answers.iter().position(|(at, id, _)| (*at, *id) == (node(through), request))
            {
                return (self.answers.remove(found).2, self.agenda.now() - start);
            }
            self.run(MS);
        }
        panic!("a write ends within its time limit");
    }

    fn has(&self, number: u32, name: &str) -> bool {
        self.registry.state(node(number)).unwrap().1.app_by_name(name).is_some()
    }

    fn isolate(&mut self, number: u32, count: u32) {
        let cut = LinkRule { cut: true, ..LinkRule::default() };
        for other in (1..=count).filter(|other| *other != number) {
            for (from, to) in [(number, other), (other, number)] {
                let table = self.network.table(node(from)).unwrap();
                let mut faults = table.faults();
                faults.insert(node(to), cut);
                table.set_faults(faults);
            }
        }
    }
}

#[test]
fn a_write_through_any_node_is_read_there_at_once_and_everywhere_soon() {
    let mut world = World::new(6, 1);
    assert!(world.registry.leader().is_some());
    for through in 1..=6 {
        let name = format!("app-{through}");
        let (answer, _) = world.write(through, &name);
        assert!(matches!(answer, Answer::Done(Outcome::App(_))), "{answer:?}");
        assert!(world.has(through, &name));
    }
    world.run(2 * SECOND);
    for number in 2..=6 {
        assert_eq!(world.registry.state(node(number)), world.registry.state(node(1)));
    }
    let (taken, _) = world.write(4, "app-1");
    assert_eq!(taken, Answer::Refused(Refusal::NameTaken("app-1".into())));
}

#[test]
fn when_the_leader_dies_another_takes_writes_and_the_dead_one_catches_up() {
    let mut world = World::new(5, 2);
    let leader = world.registry.leader().unwrap();
    world.registry.kill(leader);
    let through = if leader == node(5) { 4 } else { 5 };
    let (answer, took) = world.write(through, "after");
    assert!(matches!(answer, Answer::Done(_)), "{answer:?}");
    assert!(took > SECOND, "an election takes the lease at least: {took}");
    world.with(|registry, now, _, effects| registry.start(now, leader, effects));
    world.run(5 * SECOND);
    assert!(world.has(leader.0, "after"));
}

#[test]
fn without_a_majority_a_write_ends_without_being_done_and_reads_go_on() {
    let mut world = World::new(5, 3);
    let leader = world.registry.leader().unwrap();
    world.isolate(leader.0, 5);
    world.run(3 * SECOND);
    assert_eq!(world.write(leader.0, "alone").0, Answer::NoMajority);
    for voter in world.registry.voters().clone() {
        world.registry.kill(voter);
    }
    assert_eq!(world.write(5, "nobody").0, Answer::Timeout);
    assert!(!world.has(5, "nobody"));
}
