//! The model alone: changes spread, deaths are noticed, partitions heal. How near it is to the real
//! one is what `skein-sim fit` measures.

use super::*;
use crate::agenda::SECOND;
use crate::bare::{Bare, node_record, record};
use skein_cluster::gossip::{MAX_VALUE, Membership as _, ValueTooLong};
use skein_core::MachineId;
use skein_core::fault::LinkRule;
use skein_core::key::NodeRecord;

const ALL: u32 = 30;

fn has(members: &Members, node: u32, id: u64) -> bool {
    members.get(&NodeNumber(node)).is_some_and(|f| f.machines.contains_key(&MachineId::from_bits(id)))
}

fn alive(members: &Members, node: u32) -> bool {
    members.get(&NodeNumber(node)).is_some_and(|facts| facts.alive)
}

#[test]
fn a_change_reaches_all_disappears_from_all_and_does_so_without_waiting_for_a_tick() {
    let mut bare = Bare::new(ALL, Params::default(), &Seed::new(1));
    assert!(bare.until(10 * SECOND, |members| (1..=ALL).all(|n| alive(members, n))));
    let start = bare.now();
    bare.say(NodeNumber(7), [record(5)]);
    assert!(bare.until(5 * SECOND, |members| has(members, 7, 5)));
    assert!(bare.now() - start < 500 * MS, "{}", bare.now() - start);
    bare.say(NodeNumber(7), []);
    assert!(bare.until(5 * SECOND, |members| !has(members, 7, 5)));
}

#[test]
fn a_dead_node_is_noticed_and_its_next_life_replaces_it() {
    let mut bare = Bare::new(10, Params::default(), &Seed::new(2));
    assert!(bare.until(10 * SECOND, |members| (1..=10).all(|n| alive(members, n))));
    bare.say(NodeNumber(3), [record(5)]);
    assert!(bare.until(5 * SECOND, |members| has(members, 3, 5)));
    bare.kill(NodeNumber(3));
    let killed = bare.now();
    assert!(bare.until(20 * SECOND, |members| !alive(members, 3) && has(members, 3, 5)));
    assert!(bare.now() - killed >= Params::default().alive_floor);
    bare.restart(NodeNumber(3));
    assert!(bare.until(20 * SECOND, |members| alive(members, 3) && !has(members, 3, 5)));
}

#[test]
fn a_node_whose_clock_went_back_takes_a_greater_generation_and_is_believed_again() {
    let mut bare = Bare::new(10, Params::default(), &Seed::new(4));
    assert!(bare.until(10 * SECOND, |members| (1..=10).all(|n| alive(members, n))));
    bare.say(NodeNumber(3), [record(5)]);
    assert!(bare.until(5 * SECOND, |members| has(members, 3, 5)));
    bare.kill(NodeNumber(3));
    bare.restart_as(NodeNumber(3), 0);
    bare.say(NodeNumber(3), [record(6)]);
    assert!(bare.until(3 * SECOND, |members| has(members, 3, 6) && !has(members, 3, 5)));
    assert_eq!(bare.cluster().gossiper(NodeNumber(3)).unwrap().counts().outlived, 1);
}

#[test]
fn a_partition_that_outlasted_every_belief_heals() {
    let mut bare = Bare::new(8, Params::default(), &Seed::new(3));
    assert!(bare.until(10 * SECOND, |members| members.len() == 8));
    let sides = |a: u32, b: u32| (a <= 4) != (b <= 4);
    bare.rules(|a, b| LinkRule { cut: sides(a, b), ..LinkRule::default() });
    bare.run(20 * SECOND);
    for number in 1..=8 {
        let members = bare.members(NodeNumber(number)).unwrap();
        assert!((1..=8).all(|other| alive(members, other) != sides(number, other)), "{number}");
    }
    bare.say(NodeNumber(2), [record(5)]);
    bare.rules(|_, _| LinkRule::default());
    let healed = bare.now();
    let equal = |members: &Members| has(members, 2, 5) && (1..=8).all(|n| alive(members, n));
    assert!(bare.until(3 * SECOND, equal), "views are equal within 3 s");
    assert!(bare.now() - healed > 0);
}

#[test]
fn a_value_that_the_real_one_refuses_is_refused_and_the_last_one_stands() {
    let member = Member::new(NodeNumber(1), Bell::default());
    let short = node_record(NodeNumber(1), "iad".parse().unwrap());
    member.set_node(&short).unwrap();
    let long = NodeRecord { build: "x".repeat(MAX_VALUE), ..short.clone() };
    assert!(matches!(member.set_node(&long), Err(ValueTooLong(length)) if length > MAX_VALUE));
    assert_eq!(lock(&member.wanted).node, Some(short));
}
