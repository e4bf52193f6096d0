//! The model alone: what Raft promises. How near it is to the real one is what `skein-sim fit`
//! measures.

use super::*;
use crate::agenda::SECOND;
use skein_core::fault::LinkRule;

fn node(number: u32) -> NodeNumber {
    NodeNumber(number)
}

struct World {
    alone: Alone,
}

impl World {
    fn new(count: u32, seed: u64) -> Self {
        let mut alone = Alone::new(count, 3, Params::default(), &Seed::new(seed));
        for n in 1..=count {
            alone.start(node(n));
        }
        alone.run(10 * SECOND);
        Self { alone }
    }

    /// Makes an app through a node; the answer, and how long it took.
    fn write(&mut self, through: u32, name: &str) -> (Answer, Micros) {
        let start = self.alone.now();
        (self.alone.write(node(through), name), self.alone.now() - start)
    }

    fn leader(&self) -> Option<NodeNumber> {
        self.alone.registries().leader()
    }

    fn isolate(&mut self, number: u32, count: u32) {
        let cut = LinkRule { cut: true, ..LinkRule::default() };
        for other in (1..=count).filter(|other| *other != number) {
            for (from, to) in [(number, other), (other, number)] {
                let table = self.alone.network().table(node(from)).unwrap();
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
    assert!(world.leader().is_some());
    for through in 1..=6 {
        let name = format!("app-{through}");
        let (answer, _) = world.write(through, &name);
        assert!(matches!(answer, Ok((Outcome::App(_), _))), "{answer:?}");
        assert!(world.alone.has(node(through), &name));
    }
    world.alone.run(2 * SECOND);
    for number in 2..=6 {
        let registries = world.alone.registries();
        assert_eq!(registries.state(node(number)), registries.state(node(1)));
    }
    let (taken, _) = world.write(4, "app-1");
    assert_eq!(taken, Err(ProposeError::Refused(Refusal::NameTaken("app-1".into()))));
}

#[test]
fn when_the_leader_dies_another_takes_writes_and_the_dead_one_catches_up() {
    let mut world = World::new(5, 2);
    let leader = world.leader().unwrap();
    world.alone.kill(leader);
    let through = if leader == node(5) { 4 } else { 5 };
    let (answer, took) = world.write(through, "after");
    assert!(answer.is_ok(), "{answer:?}");
    assert!(took > SECOND, "an election takes the lease at least: {took}");
    world.alone.start(leader);
    world.alone.run(5 * SECOND);
    assert!(world.alone.has(leader, "after"));
}

#[test]
fn without_a_majority_a_write_ends_without_being_done_and_reads_go_on() {
    let mut world = World::new(5, 3);
    let leader = world.leader().unwrap();
    world.isolate(leader.0, 5);
    world.alone.run(3 * SECOND);
    let alone = world.write(leader.0, "alone").0;
    assert_eq!(alone, Err(ProposeError::NoMajority { reached: 1, voters: 3 }));
    for voter in world.alone.registries().voters().clone() {
        world.alone.kill(voter);
    }
    assert_eq!(world.write(5, "nobody").0, Err(ProposeError::Timeout));
    assert!(!world.alone.has(node(5), "nobody"));
}
