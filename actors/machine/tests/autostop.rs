//! Autostop and autostart of a node's own Machines (SPEC AUTO-1, AUTO-2, AUTO-4).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Node, eventually, with};
use serde_json::{Value, json};
use skein_cluster::{BoxFuture, Reader, reader};
use skein_core::autostop::Rest;
use skein_core::autostop::decider::decides;
use skein_core::autostop::start::Demand;
use skein_core::load::Permit;
use skein_core::machine::MachineState::{self, Started, Stopped, Suspended};
use skein_core::record::Record;
use skein_core::snapshot::{Changes, Snapshot, fold};
use skein_core::{AppId, MachineId, NodeNumber, testing};
use skein_machine::autostop::{AutostopConfig, Demands, Owner, Owners, demands, run};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const OWN: NodeNumber = NodeNumber(1);
const INTERVAL: Duration = Duration::from_millis(50);

/// Other nodes, which bring to rest and start whatever they are asked for.
#[derive(Debug, Default)]
struct Others(Mutex<Vec<String>>);

impl Owners for Others {
    fn start(&self, node: NodeNumber, machine: MachineId) -> BoxFuture<'static, Result<(), String>> {
        self.0.lock().unwrap().push(format!("start {machine} at {node}"));
        Box::pin(async { Ok(()) })
    }
    fn rest(
        &self,
        node: NodeNumber,
        machine: MachineId,
        rest: Rest,
    ) -> BoxFuture<'static, Result<(), String>> {
        self.0.lock().unwrap().push(format!("{rest:?} {machine} at {node}"));
        Box::pin(async { Ok(()) })
    }
}

/// A node whose snapshot follows its Machines, and what decides at it.
struct World {
    node: Node,
    demands: Demands,
    others: Arc<Others>,
    _tasks: JoinSet<()>,
}

impl World {
    /// With Machines of other nodes of its region beside its own.
    async fn new(foreign: Vec<(u32, Record)>) -> Self {
        Self::at(Node::new().await, foreign).await
    }

    async fn at(node: Node, foreign: Vec<(u32, Record)>) -> Self {
        let (publisher, reader) = reader::channel(Snapshot::default());
        let mut records = node.machines.records();
        let machines = node.machines.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (mut snapshot, mut version) = (Snapshot::default(), 0);
            let registry = Arc::new(testing::apps(&[7]));
            loop {
                version += 1;
                let own: Vec<Record> = records.borrow_and_update().values().cloned().collect();
                let configs = own.iter().map(|record| {
                    let json = machines.config_json(record.config).unwrap();
                    (record.config, Arc::new(serde_json::from_slice(&json).unwrap()))
                });
                let configs = configs.collect();
                let others = foreign.iter().map(|(node, record)| {
                    testing::facts(testing::node(*node, "iad"), version, [record.clone()])
                });
                let nodes = [testing::facts(testing::node(1, "iad"), version, own)];
                let nodes = nodes.into_iter().chain(others).collect();
                let registry = Some((1, Arc::clone(&registry)));
                snapshot = fold(&snapshot, Changes { now_ms: version, registry, nodes, configs });
                publisher.publish(snapshot.clone());
                if records.changed().await.is_err() {
                    return;
                }
            }
        });
        let (demands, arrivals) = demands();
        let others = Arc::new(Others::default());
        let owner = Owner::new(node.machines.clone(), reader.clone(), INTERVAL);
        let config =
            AutostopConfig { node: OWN, region: "iad".parse().unwrap(), interval: INTERVAL, batch: 1 };
        let (asked, reader): (_, Reader) = (Arc::clone(&others), reader);
        tasks.spawn(run(config, owner, asked, reader, arrivals, CancellationToken::new()));
        Self { node, demands, others, _tasks: tasks }
    }

    /// A server that runs elsewhere, as a Machine: it has no process, so it is up at once.
    async fn machine(&self, settings: Value) -> MachineId {
        let service = json!({"internal_port": 8080, "ports": [{"port": 80, "handlers": ["http"]}]});
        let config = json!({
            "image": "skein/external", "metadata": {"skein_external": "127.0.0.1:9"},
            "services": [with(service, settings)],
        });
        let id = self.node.create(config).await.id;
        self.node.reach(id, Started).await;
        id
    }

    fn state(&self, id: MachineId) -> MachineState {
        self.node.machines.get(id).unwrap().state
    }

    /// A request that the Machine has.
    fn request(&self, id: MachineId) -> Permit {
        self.node.locals.load()[&id].slots[0].try_acquire(None).unwrap()
    }

    fn demand(&self, waiting: u32) {
        let place = (AppId(ulid::Ulid(7)), 80, "iad".parse().unwrap());
        self.demands.tell(NodeNumber(2), place, Demand { waiting, in_flight: 0 });
    }
}

/// SPEC AUTO-1.
#[tokio::test]
async fn idle_machines_stop_one_after_another_and_busy_ones_when_they_are_idle() {
    let world = World::new(Vec::new()).await;
    let stop = json!({"autostop": "stop"});
    let (busy, idle) = (world.machine(stop.clone()).await, world.machine(stop).await);
    let request = world.request(busy);
    world.node.reach(idle, Stopped).await;
    assert_eq!(world.state(busy), Started, "it has a request");
    drop(request);
    world.node.reach(busy, Stopped).await;
    let since: Vec<_> = [idle, busy].map(|id| world.node.machines.records().borrow()[&id].changed_ms).into();
    assert!(since[0] <= since[1]);
}

/// SPEC AUTO-1: one that says nothing, and the least number in the primary region.
#[tokio::test]
async fn what_must_stay_up_stays_up() {
    let world = World::new(Vec::new()).await;
    let least = json!({"autostop": "stop", "min_machines_running": 2});
    let mut three = Vec::new();
    for _ in 0..3 {
        three.push(world.machine(least.clone()).await);
    }
    eventually(|| {
        let stopped = three.iter().filter(|id| world.state(**id) == Stopped).count();
        if stopped == 1 { Ok(()) } else { Err(format!("{stopped} are stopped")) }
    })
    .await;
    // That looks go on is seen from a Machine that stops later than any of these could have.
    let other = world.machine(json!({"autostop": "stop", "min_machines_running": 2})).await;
    let stopped = || three.iter().chain([&other]).filter(|id| world.state(**id) == Stopped).count();
    eventually(|| if stopped() == 2 { Ok(()) } else { Err(format!("{} are stopped", stopped())) }).await;
    let up = three.iter().chain([&other]).filter(|id| world.state(**id) == Started).count();
    assert_eq!(up, 2);
}

/// SPEC AUTO-2.
#[tokio::test]
async fn demand_starts_as_many_as_it_needs_each_once() {
    let world = World::new(Vec::new()).await;
    let mut all = Vec::new();
    for _ in 0..4 {
        let id = world.machine(json!({"concurrency": {"soft_limit": 10, "type": "requests"}})).await;
        world.node.machines.stop(id, None, None).await.unwrap();
        world.node.reach(id, Stopped).await;
        all.push(id);
    }
    let started = || all.iter().filter(|id| world.state(**id) == Started).count();
    let starts = |id: &MachineId| {
        let machine = world.node.machines.get(*id).unwrap();
        machine.events.iter().filter(|event| event.kind == "start" && event.source == "user").count()
    };
    eventually(|| {
        world.demand(15);
        if started() == 2 { Ok(()) } else { Err(format!("{} are started", started())) }
    })
    .await;
    for _ in 0..100 {
        world.demand(15);
    }
    // Those were heard before this one is.
    eventually(|| {
        world.demand(25);
        if started() == 3 { Ok(()) } else { Err(format!("{} are started", started())) }
    })
    .await;
    assert_eq!(all.iter().map(starts).sum::<usize>(), 3, "each once");
}

/// SPEC AUTO-3.
#[tokio::test]
async fn what_traffic_may_not_start_is_not_started() {
    let world = World::new(Vec::new()).await;
    let (off, on) = (world.machine(json!({"autostart": false})).await, world.machine(json!({})).await);
    for id in [off, on] {
        world.node.machines.stop(id, None, None).await.unwrap();
        world.node.reach(id, Stopped).await;
    }
    eventually(|| {
        world.demand(100);
        if world.state(on) == Started { Ok(()) } else { Err("it stays down".to_owned()) }
    })
    .await;
    assert_eq!(world.state(off), Stopped);
}

/// SPEC AUTO-4.
#[tokio::test]
async fn auto_4_a_machine_that_exits_0_by_itself_stays_stopped_until_traffic_wakes_it() {
    let world = World::new(Vec::new()).await;
    let script = r#"[ -e once ] && exec tail -f /dev/null; touch once; exit 0"#;
    let dir = world.node.dir.path().to_str().unwrap().to_owned();
    let service = json!({"internal_port": 8080, "ports": [{"port": 80}]});
    let made = world.node.script(&format!("cd {dir}; {script}"), json!({"services": [service]})).await;
    world.node.reach(made.id, Stopped).await;
    eventually(|| {
        world.demand(1);
        if world.state(made.id) == Started { Ok(()) } else { Err("it stays down".to_owned()) }
    })
    .await;
}

/// A Machine of another node is stopped by that node.
#[tokio::test]
async fn machines_of_other_nodes_are_asked_for() {
    let world = World::new(Vec::new()).await;
    let like = world.machine(json!({"autostop": "stop"})).await;
    let like = world.node.machines.records().borrow()[&like].clone();
    drop(world);
    // Lower than any that is given, so it is the first of equals.
    let foreign = Record { id: MachineId::from_bits(0), ..like.clone() };
    let decides_with = |other: &u32| {
        let nodes = vec![
            testing::facts(testing::node(1, "iad"), 1, [like.clone()]),
            testing::facts(testing::node(*other, "iad"), 1, [foreign.clone()]),
        ];
        let registry = Some((1, Arc::new(testing::apps(&[7]))));
        let snapshot = fold(&Snapshot::default(), Changes { registry, nodes, ..Changes::default() });
        decides(OWN, &snapshot.apps[&like.app], "iad".parse().unwrap(), &snapshot)
    };
    let other = (2..100).find(decides_with).unwrap();
    let world = World::new(vec![(other, foreign.clone())]).await;
    let own = world.machine(json!({"autostop": "stop"})).await;
    let wanted = format!("Stop {} at {other}", foreign.id);
    eventually(|| {
        let asked = world.others.0.lock().unwrap().clone();
        if asked.contains(&wanted) { Ok(()) } else { Err(format!("asked: {asked:?}")) }
    })
    .await;
    assert_eq!(world.state(own), Started, "one of two");
}

/// SPEC AUTO-3: what can be suspended is; a server that runs elsewhere has no process to keep.
#[tokio::test]
async fn a_machine_that_can_be_suspended_is_and_another_stops() {
    // Its process listens nowhere, which this node does not wait for.
    let world = World::at(Node::impatient().await, Vec::new()).await;
    let service = json!({"internal_port": 8080, "ports": [{"port": 80}], "autostop": "suspend"});
    let made = world.node.script("exec tail -f /dev/null", json!({"services": [service]})).await;
    world.node.reach(made.id, Suspended).await;
    let elsewhere = world.machine(json!({"autostop": "suspend"})).await;
    eventually(|| {
        let state = world.state(elsewhere);
        if matches!(state, Stopped | Suspended) { Ok(()) } else { Err(state.to_string()) }
    })
    .await;
    eventually(|| {
        world.demand(100);
        if world.state(made.id) == Started { Ok(()) } else { Err("it stays suspended".to_owned()) }
    })
    .await;
}
