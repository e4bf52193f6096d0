//! The real chitchat over the simulated transport (SPEC CLU-3, CLU-4).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::time::Duration;

use skein_cluster::Members;
use skein_cluster::gossip::Membership;
use skein_core::fault::LinkRule;
use skein_core::random::Seed;
use skein_core::{MachineId, NodeNumber};
use skein_sim::agenda::SECOND;
use skein_sim::bare::record;
use skein_sim::real::Real;

const NODES: u32 = 12;

fn alive(members: &Members, node: u32) -> bool {
    members.get(&NodeNumber(node)).is_some_and(|facts| facts.alive)
}

fn has(members: &Members, node: u32, id: u64) -> bool {
    let facts = members.get(&NodeNumber(node));
    facts.is_some_and(|facts| facts.machines.contains_key(&MachineId::from_bits(id)))
}

#[tokio::test(start_paused = true)]
async fn it_converges_over_distance_loss_and_duplication() {
    let real = Real::new(NODES, &Seed::new(1)).await;
    real.set_weather(LinkRule { loss: 0.1, duplicate: 0.1, ..LinkRule::default() });
    assert!(real.until(30 * SECOND, |members| (1..=NODES).all(|node| alive(members, node))).await);
    for id in 0..20u64 {
        let gossip = real.gossip(NodeNumber(1 + id as u32 % NODES)).unwrap();
        gossip.set_machine(&record(id)).unwrap();
    }
    let all = |members: &Members| (0..20u64).all(|id| has(members, 1 + id as u32 % NODES, id));
    assert!(real.until(5 * SECOND, all).await);
    let carried = real.carried();
    assert!(carried.lost > 0 && carried.messages > 500, "{carried:?}");
}

#[tokio::test(start_paused = true)]
async fn both_sides_of_a_partition_go_on_and_are_one_three_seconds_after_it_healed() {
    let real = Real::new(NODES, &Seed::new(2)).await;
    assert!(real.until(30 * SECOND, |members| (1..=NODES).all(|node| alive(members, node))).await);
    let apart = |a: u32, b: u32| (a <= 5) != (b <= 5);
    real.rules(|a, b| LinkRule { cut: apart(a, b), ..LinkRule::default() });
    real.pass(Duration::from_secs(20)).await;
    let seen = |node: u32| real.gossip(NodeNumber(node)).unwrap().members().borrow().clone();
    for node in [2, 9] {
        assert!((1..=NODES).all(|other| alive(&seen(node), other) != apart(node, other)));
        real.gossip(NodeNumber(node)).unwrap().set_machine(&record(node.into())).unwrap();
    }
    real.pass(Duration::from_secs(2)).await;
    assert!(has(&seen(5), 2, 2) && !has(&seen(6), 2, 2) && has(&seen(6), 9, 9) && !has(&seen(5), 9, 9));
    real.rules(|_, _| LinkRule::default());
    let whole = |members: &Members| {
        has(members, 2, 2) && has(members, 9, 9) && (1..=NODES).all(|node| alive(members, node))
    };
    assert!(real.until(3 * SECOND, whole).await);
}
