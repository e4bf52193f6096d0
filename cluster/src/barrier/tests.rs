use super::*;
use crate::gossip::net::{Net, config as gossip_config, node, record, until};
use crate::gossip::{Gossip, Members, Membership as _};
use crate::publish::{self, Inputs};
use crate::reader::{self, Publisher};
use skein_core::facts::State;
use skein_core::snapshot::{Changes, NodeFacts, fold};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

fn at(node: u32, version: u64, applied: u64) -> Seen {
    Seen { node: NodeNumber(node), generation: 1, version, applied }
}

/// A snapshot that has come so far.
fn snapshot(applied: u64, nodes: &[(u32, u64, bool)]) -> Snapshot {
    let facts = |(number, version, alive): &(u32, u64, bool)| NodeFacts {
        record: node(*number),
        generation: 1,
        version: *version,
        alive: *alive,
        confirmed: Arc::default(),
        machines: imbl::OrdMap::new(),
    };
    let changes = Changes {
        nodes: nodes.iter().map(facts).collect(),
        registry: Some((applied, Arc::new(State::default()))),
        ..Changes::default()
    };
    fold(&Snapshot::default(), changes)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

/// Other nodes as their readers; those without one cannot be asked.
#[derive(Default)]
struct Peers {
    nodes: BTreeMap<NodeNumber, (Seen, Reader)>,
    /// Questions that fail first.
    failures: Mutex<u32>,
}

impl BarrierPeers for Peers {
    fn version(&self, node: NodeNumber, _: Instant) -> BoxFuture<'static, Result<Seen, String>> {
        let mut failures = self.failures.lock().unwrap();
        let failing = *failures > 0;
        *failures = failures.saturating_sub(1);
        let answer = self.nodes.get(&node).filter(|_| !failing).map(|(seen, _)| *seen);
        Box::pin(async move { answer.ok_or_else(|| "is not reachable".to_owned()) })
    }

    fn barrier(
        &self,
        node: NodeNumber,
        wanted: Vec<Seen>,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<(), String>> {
        let reader = self.nodes.get(&node).map(|(_, reader)| reader.clone());
        Box::pin(async move {
            let reader = reader.ok_or_else(|| "is not reachable".to_owned())?;
            wait_until_seen(&reader, &wanted, deadline).await.map_err(|lacks| lacks.to_string())
        })
    }
}

#[test]
fn a_removed_node_holds_nobody_up() {
    let counters = skein_core::facts::Counters { node: 3, ..Default::default() };
    let removed = State::from_facts([skein_core::facts::Fact::Counters(counters)]);
    let changes = Changes { registry: Some((4, Arc::new(removed))), ..Changes::default() };
    let snapshot = fold(&snapshot(3, &[(3, 1, true)]), changes);
    assert_eq!(seen(&snapshot, &[at(3, 9, 4)]), Ok(()));
    assert_eq!(seen(&snapshot, &[at(4, 1, 4)]).unwrap_err().nodes, [NodeNumber(4)], "not admitted yet");
}

#[test]
fn a_snapshot_lacks_nodes_that_are_behind_unknown_or_of_an_older_life_and_the_registry() {
    let snapshot = snapshot(4, &[(1, 5, true), (2, 5, true)]);
    assert_eq!(seen(&snapshot, &[at(1, 5, 4), at(2, 4, 0)]), Ok(()));
    let lacks =
        seen(&snapshot, &[at(1, 6, 9), Seen { generation: 2, ..at(2, 1, 0) }, at(3, 1, 0)]).unwrap_err();
    assert_eq!(lacks.nodes, [NodeNumber(1), NodeNumber(2), NodeNumber(3)]);
    assert_eq!(
        lacks.to_string(),
        "has not seen node 1's latest state, node 2's latest state, node 3's latest state nor registry entry 9 (it is at 4)"
    );
    assert_eq!(
        seen(&snapshot, &[at(1, 1, 5)]).unwrap_err().to_string(),
        "has not seen registry entry 5 (it is at 4)"
    );
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_with_the_snapshot_that_has_it_all_and_not_before() {
    let (publisher, reader) = reader::channel(snapshot(0, &[]));
    let deadline = soon();
    let wanted = [at(1, 3, 2)];
    let wait = wait_until_seen(&reader, &wanted, deadline);
    tokio::pin!(wait);
    let mut pending = async |publisher: &Publisher, next: Snapshot| {
        publisher.publish(next);
        time::timeout(Duration::from_millis(1), &mut wait).await
    };
    assert!(pending(&publisher, snapshot(2, &[(1, 2, true)])).await.is_err());
    assert!(pending(&publisher, snapshot(1, &[(1, 3, true)])).await.is_err());
    assert_eq!(pending(&publisher, snapshot(2, &[(1, 4, true)])).await, Ok(Ok(())));

    let lacks = wait_until_seen(&reader, &[at(1, 9, 0)], soon()).await.unwrap_err();
    assert_eq!(lacks.nodes, [NodeNumber(1)]);
}

#[tokio::test(start_paused = true)]
async fn it_waits_for_every_live_node_and_leaves_the_dead_out() {
    let all = |version| snapshot(3, &[(1, 5, true), (2, version, true), (3, 9, false)]);
    let (here, reader) = reader::channel(all(1));
    let (there, remote) = reader::channel(snapshot(2, &[(1, 4, true), (2, 7, true)]));
    let peers =
        Peers { nodes: BTreeMap::from([(NodeNumber(2), (at(2, 7, 2), remote))]), failures: Mutex::new(3) };
    let deadline = soon();
    let run = run(&reader, at(1, 5, 3), &peers, deadline);
    tokio::pin!(run);
    assert!(time::timeout(Duration::from_secs(1), &mut run).await.is_err(), "nobody has it all");
    here.publish(all(7));
    assert!(time::timeout(Duration::from_secs(1), &mut run).await.is_err(), "node 2 lacks node 1's");
    there.publish(snapshot(3, &[(1, 5, true), (2, 7, true)]));
    assert_eq!(run.await, Ok(vec![at(1, 5, 3), at(2, 7, 2)]));
}

#[tokio::test(start_paused = true)]
async fn it_names_who_is_behind_at_the_deadline() {
    let (_here, reader) = reader::channel(snapshot(3, &[(1, 5, true), (2, 7, true), (3, 1, true)]));
    let (_there, remote) = reader::channel(snapshot(3, &[(2, 7, true), (3, 1, true)]));
    let far = |node, version| (NodeNumber(node), (at(node, version, 2), reader.clone()));
    let nodes = BTreeMap::from([far(3, 1), (NodeNumber(2), (at(2, 7, 2), remote))]);
    let peers = Peers { nodes, ..Peers::default() };
    let (start, deadline) = (Instant::now(), soon());
    let error = run(&reader, at(1, 5, 3), &peers, deadline).await.unwrap_err();
    assert!(start.elapsed() >= Duration::from_secs(5));
    assert_eq!(error.behind.iter().map(|behind| behind.node).collect::<Vec<_>>(), [NodeNumber(2)]);
    assert!(error.to_string().starts_with("not every node has seen everything: node 2 "), "{error}");

    let error = run(&reader, at(1, 5, 3), &Peers::default(), soon()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "not every node has seen everything: node 2 is not reachable; node 3 is not reachable"
    );
}

#[tokio::test(start_paused = true)]
async fn a_node_that_dies_meanwhile_is_waited_for_no_longer() {
    let (here, reader) = reader::channel(snapshot(3, &[(1, 5, true), (2, 7, true)]));
    let (peers, deadline) = (Peers::default(), soon());
    let run = run(&reader, at(1, 5, 3), &peers, deadline);
    tokio::pin!(run);
    assert!(time::timeout(Duration::from_secs(1), &mut run).await.is_err());
    here.publish(snapshot(3, &[(1, 5, true), (2, 7, false)]));
    assert_eq!(run.await, Ok(vec![at(1, 5, 3)]));
}

/// One node: gossip, and the publisher behind it.
struct Whole {
    gossip: Gossip,
    reader: Reader,
    registry: watch::Sender<(u64, Arc<State>)>,
}

/// Asks nodes of this process.
struct Direct(Arc<Vec<Whole>>);

impl BarrierPeers for Direct {
    fn version(&self, node: NodeNumber, _: Instant) -> BoxFuture<'static, Result<Seen, String>> {
        let nodes = Arc::clone(&self.0);
        Box::pin(async move { Ok(nodes[node.0 as usize - 1].seen(node).await) })
    }

    fn barrier(
        &self,
        node: NodeNumber,
        wanted: Vec<Seen>,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<(), String>> {
        let reader = self.0[node.0 as usize - 1].reader.clone();
        Box::pin(async move {
            wait_until_seen(&reader, &wanted, deadline).await.map_err(|lacks| lacks.to_string())
        })
    }
}

impl Whole {
    async fn seen(&self, node: NodeNumber) -> Seen {
        let (generation, version) = self.gossip.own_version().await.unwrap();
        let applied = self.registry.borrow().0;
        Seen { node, generation, version, applied }
    }
}

/// SPEC CLU-4, CLU-6: over real gossip and real snapshots.
#[tokio::test(start_paused = true)]
async fn after_a_barrier_every_node_has_it_and_a_node_cut_off_fails_it() {
    let net = Net::new();
    let mut tasks = JoinSet::new();
    let whole = |gossip: Gossip| {
        let registry = watch::Sender::new((1, Arc::new(State::default())));
        let (out, reader) = reader::channel(Snapshot::default());
        let configs = mpsc::channel(1).1;
        let inputs = Inputs { members: gossip.members(), registry: registry.subscribe(), configs };
        tasks.spawn(publish::run(inputs, out, Arc::default(), CancellationToken::new()));
        Whole { gossip, reader, registry }
    };
    let tick = gossip_config(1, 1).tick;
    let nodes: Arc<Vec<Whole>> = Arc::new(net.cluster(4, tick).into_iter().map(whole).collect());
    let formed = |members: &Members| {
        (1..=4).all(|node| members.get(&NodeNumber(node)).is_some_and(|facts| facts.alive))
    };
    for node in nodes.iter() {
        until(&node.gossip, "all alive", formed).await;
        let mut versions = node.reader.watch();
        while node.reader.load().nodes.values().filter(|node| node.alive).count() < 4 {
            versions.changed().await.unwrap();
        }
    }
    let peers = Direct(Arc::clone(&nodes));
    for id in 0..20u64 {
        let node = &nodes[id as usize % 4];
        node.gossip.set_machine(&record(id)).unwrap();
        node.registry.send_modify(|(applied, _)| *applied += 1);
        for node in nodes.iter() {
            let applied = nodes.iter().map(|node| node.registry.borrow().0).max().unwrap();
            node.registry.send_modify(|(mine, _)| *mine = applied);
        }
        let own = nodes[0].seen(NodeNumber(1)).await;
        run(&nodes[0].reader, own, &peers, soon()).await.unwrap();
        for node in nodes.iter() {
            assert!(node.reader.load().machine(record(id).id).is_some(), "Machine {id}");
        }
    }

    for other in 2..=4 {
        net.link(1, other, false);
    }
    nodes[0].gossip.set_machine(&record(99)).unwrap();
    let own = nodes[0].seen(NodeNumber(1)).await;
    let error =
        run(&nodes[0].reader, own, &peers, Instant::now() + Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(error.behind.iter().map(|behind| behind.node.0).collect::<Vec<_>>(), [2, 3, 4]);
    assert!(error.to_string().contains("node 2 has not seen node 1's latest state"), "{error}");
    for other in 2..=4 {
        net.link(1, other, true);
    }
    run(&nodes[0].reader, own, &peers, soon()).await.unwrap();
}
