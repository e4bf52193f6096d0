//! Several nodes over a network in memory; time is virtual, so nothing here waits for real.

use std::time::Duration;

use bytes::Bytes;
use chitchat::Serializable;
use skein_core::{MachineId, NodeNumber};

use super::net::{Net, config, holds, node, record, until};
use super::*;

const TICK: Duration = Duration::from_millis(500);
/// No tick comes within a test: what happens, happens by pushes.
const NEVER: Duration = Duration::from_secs(1_000_000);

fn machine(id: u64) -> MachineId {
    MachineId::from_bits(id)
}

fn has(members: &Members, node: u32, id: u64) -> bool {
    members.get(&NodeNumber(node)).is_some_and(|facts| facts.machines.contains_key(&machine(id)))
}

fn alive(members: &Members, node: u32) -> bool {
    members.get(&NodeNumber(node)).is_some_and(|facts| facts.alive)
}

async fn formed(nodes: &[Gossip], count: u32) {
    for gossip in nodes {
        until(gossip, "all alive", |members| (1..=count).all(|number| alive(members, number))).await;
    }
}

/// SPEC CLU-2.
#[tokio::test(start_paused = true)]
async fn a_machine_reaches_all_nodes_changes_on_all_and_disappears_from_all() {
    let net = Net::new();
    let nodes = net.cluster(5, TICK);
    nodes[2].set_machine(&record(5)).unwrap();
    for gossip in &nodes {
        until(gossip, "the Machine", |members| has(members, 3, 5)).await;
    }
    nodes[2].set_machine(&Record { cordoned: true, ..record(5) }).unwrap();
    for gossip in &nodes {
        until(gossip, "the change", |members| members[&NodeNumber(3)].machines[&machine(5)].cordoned).await;
    }
    nodes[2].remove_machine(machine(5));
    for gossip in &nodes {
        let members = until(gossip, "no Machine", |members| !has(members, 3, 5)).await;
        assert_eq!(members.len(), 5);
    }
}

/// On real threads and real time: nothing of chitchat's lock, ours and the tasks' order is virtual.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nodes_on_several_threads_come_to_the_same_members() {
    let net = Net::new();
    let nodes = net.cluster(6, TICK);
    let writers: Vec<_> = nodes
        .iter()
        .cloned()
        .zip(0u64..)
        .map(|(gossip, index)| async move {
            for id in 0..50 {
                gossip.set_machine(&record(index * 100 + id)).unwrap();
                gossip.own_version().await.unwrap();
                if id % 2 == 0 {
                    gossip.remove_machine(machine(index * 100 + id));
                }
            }
        })
        .collect();
    let mut tasks = tokio::task::JoinSet::new();
    for writer in writers {
        tasks.spawn(writer);
    }
    tasks.join_all().await;
    let whole = |facts: &Arc<NodeFacts>| facts.alive && facts.machines.len() == 25;
    let converged = async {
        for gossip in &nodes {
            until(gossip, "all of all", |members| members.len() == 6 && members.values().all(whole)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), converged).await.expect("they come to the same members");
    for gossip in &nodes {
        gossip.shutdown().await;
    }
}

/// SPEC CLU-4.
#[tokio::test(start_paused = true)]
async fn a_change_does_not_wait_for_a_tick() {
    let net = Net::new();
    let nodes = net.cluster(5, NEVER);
    formed(&nodes, 5).await;
    let before = tokio::time::Instant::now();
    nodes[0].set_machine(&record(5)).unwrap();
    for gossip in &nodes {
        until(gossip, "the Machine", |members| has(members, 1, 5)).await;
    }
    assert!(before.elapsed() < TICK, "{:?}", before.elapsed());
    let counters = nodes[0].counters();
    assert!(counters.pushes >= 4 && counters.sent > 0 && counters.received > 0, "{counters:?}");
    assert!(nodes.iter().map(|gossip| gossip.counters().relays).sum::<u64>() > 0);
}

#[tokio::test(start_paused = true)]
async fn changes_of_one_moment_go_together() {
    let net = Net::new();
    let nodes = net.cluster(2, NEVER);
    formed(&nodes, 2).await;
    let before = nodes[0].counters().pushes;
    for id in 0..100 {
        nodes[0].set_machine(&record(id)).unwrap();
    }
    until(&nodes[1], "all Machines", |members| members[&NodeNumber(1)].machines.len() == 100).await;
    assert_eq!(nodes[0].counters().pushes - before, 1);
    nodes[0].set_machines(&OrdMap::from_iter([(machine(7), record(7))])).unwrap();
    until(&nodes[1], "one Machine", |members| members[&NodeNumber(1)].machines.len() == 1).await;
    assert_eq!(nodes[0].counters().pushes - before, 2);
}

#[tokio::test(start_paused = true)]
async fn thirty_nodes_hear_of_a_change_by_fan_out() {
    let net = Net::new();
    let nodes = net.cluster(30, TICK);
    formed(&nodes, 30).await;
    let before = nodes[9].counters().pushes;
    nodes[9].set_machine(&record(5)).unwrap();
    for gossip in &nodes {
        until(gossip, "the Machine", |members| has(members, 10, 5)).await;
    }
    assert!(nodes[9].counters().pushes - before < 10, "not to all 29");
}

#[tokio::test(start_paused = true)]
async fn a_change_reaches_all_although_a_third_of_all_messages_is_lost() {
    let net = Net::new();
    let nodes = net.cluster(8, TICK);
    net.lose(0.3);
    formed(&nodes, 8).await;
    for id in 0..20 {
        nodes[id as usize % 8].set_machine(&record(id)).unwrap();
    }
    for gossip in &nodes {
        let all = |members: &Members| (0..20).all(|id| has(members, id as u32 % 8 + 1, id));
        until(gossip, "all Machines", all).await;
    }
}

/// SPEC CLU-3: liveness is an attribute, never existence.
#[tokio::test(start_paused = true)]
async fn a_dead_nodes_machines_stay_and_it_comes_back_with_a_higher_generation() {
    let net = Net::new();
    let nodes = net.cluster(4, TICK);
    nodes[3].set_machine(&record(5)).unwrap();
    nodes[3].set_machine(&record(6)).unwrap();
    formed(&nodes, 4).await;
    for gossip in &nodes {
        until(gossip, "both Machines", |members| has(members, 4, 5) && has(members, 4, 6)).await;
    }
    let died = tokio::time::Instant::now();
    net.kill(4).await;
    for gossip in &nodes[..3] {
        let members = until(gossip, "node 4 is dead", |members| !alive(members, 4)).await;
        assert!(has(&members, 4, 5) && alive(&members, 1) && alive(&members, 2) && alive(&members, 3));
    }
    assert!(died.elapsed() < Duration::from_secs(8), "{:?}", died.elapsed());

    // Long enough for chitchat to forget it.
    let stays = |members: &Members| !alive(members, 4) && has(members, 4, 5);
    holds(&nodes[0], config(1, 1).dead_grace * 2, "a dead member with its Machines", stays).await;

    let back = net.start(config(4, 2));
    back.set_machine(&record(6)).unwrap();
    back.set_node(&node(4)).unwrap();
    for gossip in &nodes[..3] {
        let returned = |members: &Members| alive(members, 4) && members[&NodeNumber(4)].generation == 2;
        let members = until(gossip, "node 4 is back", returned).await;
        assert!(!has(&members, 4, 5) && has(&members, 4, 6) && members.len() == 4);
    }
    until(&back, "all others", |members| (1..=4).all(|number| alive(members, number))).await;
}

#[tokio::test(start_paused = true)]
async fn a_restarted_node_is_seen_with_all_its_machines_at_once() {
    let net = Net::new();
    let nodes = net.cluster(3, TICK);
    for id in 0..50 {
        nodes[2].set_machine(&record(id)).unwrap();
    }
    until(&nodes[0], "all Machines", |members| (0..50).all(|id| has(members, 3, id))).await;
    net.kill(3).await;
    let mut members = nodes[0].members();
    let back = net.start(config(3, 2));
    back.set_machines(&(0..50).map(|id| (machine(id), record(id))).collect()).unwrap();
    back.set_node(&node(3)).unwrap();
    loop {
        let now = members.borrow_and_update().clone();
        let facts = &now[&NodeNumber(3)];
        assert_eq!(facts.machines.len(), 50);
        if facts.generation == 2 && facts.alive {
            break;
        }
        members.changed().await.unwrap();
    }
}

/// SPEC CLU-4: healing needs no hand.
#[tokio::test(start_paused = true)]
async fn a_partition_heals_however_long_it_lasted() {
    let net = Net::new();
    let nodes = net.cluster(3, TICK);
    formed(&nodes, 3).await;
    net.link(1, 3, false);
    net.link(2, 3, false);
    until(&nodes[0], "node 3 is dead", |members| !alive(members, 3)).await;
    until(&nodes[2], "the others are dead", |members| !alive(members, 1) && !alive(members, 2)).await;
    nodes[2].set_machine(&record(5)).unwrap();
    nodes[0].set_machine(&record(6)).unwrap();
    let apart = |members: &Members| !has(members, 3, 5);
    holds(&nodes[0], config(1, 1).dead_grace * 2, "no news of node 3", apart).await;
    net.link(1, 3, true);
    net.link(2, 3, true);
    formed(&nodes, 3).await;
    for gossip in &nodes {
        until(gossip, "both Machines", |members| has(members, 3, 5) && has(members, 1, 6)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_cut_link_is_bridged_by_the_others_and_nobody_is_called_dead() {
    let net = Net::new();
    let nodes = net.cluster(4, TICK);
    formed(&nodes, 4).await;
    net.link(1, 2, false);
    nodes[0].set_machine(&record(5)).unwrap();
    until(&nodes[1], "the Machine", |members| has(members, 1, 5)).await;
    holds(&nodes[1], Duration::from_secs(60), "node 1 is alive", |members| alive(members, 1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_changes_makes_nobody_look_dead() {
    let net = Net::new();
    let nodes = net.cluster(3, TICK);
    formed(&nodes, 3).await;
    let burst = async {
        for id in 0..2_000 {
            nodes[0].set_machine(&record(id % 10)).unwrap();
            nodes[0].remove_machine(machine((id + 5) % 10));
            nodes[0].own_version().await.unwrap();
        }
    };
    let quiet = holds(&nodes[1], Duration::from_secs(120), "all are alive", |members| {
        (1..=3).all(|number| alive(members, number))
    });
    tokio::join!(burst, quiet);
}

/// SPEC CLU-6: a fact never seen before must not stop a node.
#[tokio::test(start_paused = true)]
async fn a_poisoned_value_is_counted_everywhere_and_harms_only_itself() {
    let net = Net::new();
    let nodes = net.cluster(3, TICK);
    nodes[0].set_machine(&record(5)).unwrap();
    nodes[0].write(|own| own.machines.insert(machine(6), "%poison".to_owned()).is_none());
    nodes[0].set_machine(&record(7)).unwrap();
    for gossip in &nodes {
        let members =
            until(gossip, "both good Machines", |members| has(members, 1, 5) && has(members, 1, 7)).await;
        assert!(!has(&members, 1, 6));
        assert_eq!(gossip.counters().bad_entries, 1);
    }
    nodes[0].set_machine(&record(6)).unwrap();
    for gossip in &nodes {
        until(gossip, "the healed Machine", |members| has(members, 1, 6)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_message_or_too_much_is_dropped_and_counted() {
    let net = Net::new();
    let gossip = net.start(GossipConfig { queue: 2, ..config(1, 1) });
    gossip.inbound(NodeNumber(2), Bytes::from(vec![0; MAX_MESSAGE + 1]));
    for _ in 0..5 {
        gossip.inbound(NodeNumber(2), Bytes::from_static(b"junk"));
    }
    gossip.set_node(&node(1)).unwrap();
    until(&gossip, "itself", |members| alive(members, 1)).await;
    gossip.own_version().await.unwrap();
    let counters = gossip.counters();
    assert_eq!((counters.bad_messages, counters.dropped, counters.received), (3, 3, 0));
}

#[tokio::test(start_paused = true)]
async fn a_node_of_another_cluster_is_not_let_in() {
    let net = Net::new();
    let nodes = net.cluster(2, TICK);
    let other = net.start(GossipConfig { cluster: Ulid(8), ..config(3, 1) });
    other.set_seeds([NodeNumber(1)].into());
    other.set_node(&node(3)).unwrap();
    nodes[0].set_seeds([NodeNumber(2), NodeNumber(3)].into());
    formed(&nodes, 2).await;
    holds(&other, Duration::from_secs(30), "it is alone", |members| members.len() <= 1).await;
    assert!(other.counters().received > 0 && nodes[0].members().borrow().len() == 2);
}

#[tokio::test(start_paused = true)]
async fn the_own_version_covers_what_was_set_before_and_others_reach_it() {
    let net = Net::new();
    let nodes = net.cluster(3, TICK);
    formed(&nodes, 3).await;
    for id in 0..10 {
        nodes[1].set_machine(&record(id)).unwrap();
        let version = nodes[1].own_version().await.unwrap();
        let reached = |members: &Members| {
            let facts = &members[&NodeNumber(2)];
            (facts.generation, facts.version) >= version
        };
        let members = until(&nodes[0], "the version", reached).await;
        assert!(has(&members, 2, id));
    }
    nodes[1].shutdown().await;
    assert_eq!(nodes[1].own_version().await, Err(Stopped));
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_clock_went_back_takes_a_greater_generation() {
    let net = Net::new();
    let nodes = net.cluster(2, TICK);
    nodes[1].set_machine(&record(5)).unwrap();
    formed(&nodes, 2).await;
    until(&nodes[0], "the Machine", |members| has(members, 2, 5)).await;
    net.kill(2).await;
    let back = net.start(config(2, 0));
    back.set_machine(&record(6)).unwrap();
    back.set_node(&node(2)).unwrap();
    back.set_seeds([NodeNumber(1)].into());
    until(&back, "its own number's last life", |members| alive(members, 2) && alive(members, 1)).await;
    assert!(back.own_version().await.is_ok(), "a question outlives a life");
    let members = until(&nodes[0], "the later life", |members| has(members, 2, 6)).await;
    assert!(members[&NodeNumber(2)].generation > 1 && !has(&members, 2, 5));
    assert!(back.counters().restarts > 0);
}

/// chitchat 0.11 asserts that a delta's greatest version comes last: a peer can end its task.
#[tokio::test(start_paused = true)]
async fn a_message_that_ends_chitchat_does_not_end_gossip() {
    let net = Net::new();
    let nodes = net.cluster(3, TICK);
    nodes[0].set_machine(&record(5)).unwrap();
    formed(&nodes, 3).await;
    let id = chitchat::ChitchatId::new("9", 1, socket::address(NodeNumber(9))).serialize_to_vec();
    let text = |text: &str| [&(text.len() as u16).to_le_bytes()[..], text.as_bytes()].concat();
    let numbers =
        |numbers: &[u64]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    let head = |kind: u8| vec![0x53, 0xb0, 0, kind];
    let syn = [head(0), vec![1, 0], id.clone(), numbers(&[1, 0, 0]), text(&Ulid(7).to_string())].concat();
    let node_op = [vec![0], id, numbers(&[0, 0])].concat();
    let entry_op = [vec![1], text("key"), text("value"), numbers(&[5]), vec![0]].concat();
    let ops = [node_op, entry_op, vec![2], numbers(&[3])].concat();
    let ack = [head(2), vec![2], (ops.len() as u16).to_le_bytes().to_vec(), ops, vec![0]].concat();
    nodes[0].inbound(NodeNumber(2), syn.into());
    nodes[0].inbound(NodeNumber(2), ack.into());

    let restarted = |members: &Members| members[&NodeNumber(1)].generation == 2;
    for gossip in &nodes {
        let members = until(gossip, "node 1's next life", restarted).await;
        assert!(has(&members, 1, 5) && members.len() == 3);
    }
    formed(&nodes, 3).await;
    assert_eq!(nodes[0].counters().restarts, 1);
    nodes[1].set_machine(&record(6)).unwrap();
    until(&nodes[0], "news of others", |members| has(members, 2, 6)).await;
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_too_long_is_refused_and_the_last_one_stands() {
    let net = Net::new();
    let gossip = net.start(config(1, 1));
    gossip.set_node(&node(1)).unwrap();
    let long = NodeRecord { build: "x".repeat(MAX_VALUE), ..node(1) };
    assert!(gossip.set_node(&long).is_err());
    let members = until(&gossip, "itself", |members| alive(members, 1)).await;
    assert_eq!(members[&NodeNumber(1)].record, node(1));
}
