//! Requests that wait until a Machine has room (SPEC LB-4).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use skein_core::MachineId;
use skein_core::explain::Step;
use skein_core::queue::Bounds;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;

use crate::backend::{Server, get, text};
use crate::explain::story;
use crate::world::{World, eventually};

/// One request at a time.
const ONE: &str = r#"{"internal_port":8080,"concurrency":{"type":"requests","hard_limit":1},
    "ports":[{"port":80,"handlers":["http"]}]}"#;

/// A server whose every request is answered when the test says so, and the paths in the order they came.
#[derive(Clone, Default)]
struct Held {
    paths: Arc<Mutex<Vec<String>>>,
    doors: Arc<Mutex<VecDeque<oneshot::Sender<()>>>>,
    came: Arc<Notify>,
}

impl Held {
    async fn server(&self) -> Server {
        let held = self.clone();
        Server::raw(move |request| {
            let held = held.clone();
            Box::pin(async move {
                let (door, opened) = oneshot::channel();
                held.paths.lock().unwrap().push(request.uri().path().to_owned());
                held.doors.lock().unwrap().push_back(door);
                held.came.notify_one();
                // A test that has ended opens no door.
                let _opened = opened.await;
                text(200, "held")
            })
        })
        .await
    }

    fn paths(&self) -> Vec<String> {
        self.paths.lock().unwrap().clone()
    }

    /// Answers the oldest request that is held, when there is one.
    async fn open(&self) {
        loop {
            let door = self.doors.lock().unwrap().pop_front();
            match door {
                Some(door) => return door.send(()).unwrap(),
                None => self.came.notified().await,
            }
        }
    }
}

fn metric(world: &World, node: usize, name: &str) -> usize {
    let metrics = world.nodes[node].edge.metrics();
    let line = metrics.lines().find(|line| line.starts_with(&format!("{name}{{"))).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Whether a wait ended with the request's turn; `None` for another step of its story.
fn turn(step: &Step) -> Option<bool> {
    match step {
        Step::Queued(queued) => Some(queued.turn),
        Step::Decided(_) | Step::Failed(_) | Step::Relayed(_) | Step::Replayed(_) | Step::NotReplayed(_) => {
            None
        }
    }
}

fn waiting(world: &World, node: usize) -> usize {
    metric(world, node, "skein_edge_queue_waiting")
}

/// Whether its Machine is here or on another node: what waits is served in the order it came, each as
/// soon as the one before it is done.
#[tokio::test]
async fn lb_4_what_waits_is_served_in_the_order_it_came() {
    for at in [0, 1] {
        let held = Held::default();
        let server = held.server().await;
        let mut world = World::new(&["iad", "lhr"]);
        let app = world.app("hello");
        let machine = world.machine(at, app, server.address, ONE);
        world.publish();
        let edge = world.shared(0, 80).await;
        let mut clients = JoinSet::new();
        for n in 0..6 {
            clients.spawn(async move { get(edge, &format!("/{n}")).await });
            match n {
                0 => eventually("the first is in flight", || held.paths().len() == 1).await,
                n => eventually("it waits", || waiting(&world, 0) == n).await,
            }
        }
        for _ in 0..6 {
            held.open().await;
        }
        while let Some(got) = clients.join_next().await {
            let got = got.unwrap();
            assert_eq!(got.status, 200);
            let told = story(&world.nodes[0].edge, got.header("fly-request-id").unwrap()).await;
            let turns: Vec<bool> = told.steps.iter().filter_map(turn).collect();
            assert_eq!(turns.is_empty(), &*told.path == "/0", "{told:#?}");
            assert!(turns.into_iter().all(|turn| turn), "{told:#?}");
            assert!(
                matches!(told.steps.last(), Some(Step::Decided(last)) if last.code.is_none()),
                "{told:#?}"
            );
        }
        assert_eq!(held.paths(), ["/0", "/1", "/2", "/3", "/4", "/5"], "node {at}");
        eventually("all slots are free", || world.in_flight(machine) == 0).await;
        assert_eq!(waiting(&world, 0), 0);
        assert_eq!(metric(&world, 0, "skein_edge_queue_wait_seconds_count"), 5);
        let hints = metric(&world, at, "skein_edge_hints_count");
        assert!((1..=5).contains(&hints), "the worker says when there is room: {hints}");
    }
}

/// The bound and the deadline, and what the client is told.
#[tokio::test]
async fn lb_4_the_queue_is_bounded_by_count_and_by_deadline_then_503() {
    let held = Held::default();
    let server = held.server().await;
    let mut world = World::with(&["iad"], |config| {
        config.queue = Bounds { service: 1, all: 10 };
        config.queue_timeout = Duration::from_secs(2);
    });
    let app = world.app("hello");
    world.machine(0, app, server.address, ONE);
    world.publish();
    let edge = world.shared(0, 80).await;
    let mut clients = JoinSet::new();
    clients.spawn(async move { get(edge, "/held").await });
    eventually("the first is in flight", || held.paths().len() == 1).await;
    let mut waits = JoinSet::new();
    waits.spawn(async move { get(edge, "/waits").await });
    eventually("the second waits", || waiting(&world, 0) == 1).await;
    let crowded = get(edge, "/crowded").await;
    assert!(waits.try_join_next().is_none(), "the third did not wait for anything");
    let late = waits.join_next().await.unwrap().unwrap();
    for (got, why) in [(crowded, "too many requests wait"), (late, "for as long as it may")] {
        assert_eq!(
            (got.status, got.header("skein-error"), got.header("retry-after")),
            (503, Some("PR04"), Some("1"))
        );
        assert!(got.text().contains(why), "{}", got.text());
        let told = story(&world.nodes[0].edge, got.header("fly-request-id").unwrap()).await;
        assert!(told.ended.why.is_some_and(|told| told.contains(why)));
        let queued: Vec<bool> = told.steps.iter().filter_map(turn).collect();
        assert_eq!(queued, if why == "for as long as it may" { vec![false] } else { vec![] });
    }
    assert_eq!(waiting(&world, 0), 0);
    held.open().await;
    assert_eq!(clients.join_next().await.unwrap().unwrap().status, 200);
    assert_eq!(held.paths(), ["/held"], "what was refused reached nobody");
}

/// A thousand that hang up leave nothing behind, and whoever stays is served.
#[tokio::test]
async fn clients_that_hang_up_leave_the_queue() {
    let held = Held::default();
    let server = held.server().await;
    let mut world = World::new(&["iad"]);
    let app = world.app("hello");
    let machine = world.machine(0, app, server.address, ONE);
    world.publish();
    let edge = world.shared(0, 80).await;
    let mut clients = JoinSet::new();
    clients.spawn(async move { get(edge, "/held").await.status });
    eventually("the first is in flight", || held.paths().len() == 1).await;
    let mut fickle = JoinSet::new();
    for _ in 0..300 {
        fickle.spawn(async move { get(edge, "/fickle").await.status });
    }
    eventually("they wait", || waiting(&world, 0) == 300).await;
    clients.spawn(async move { get(edge, "/patient").await.status });
    eventually("it waits", || waiting(&world, 0) == 301).await;
    fickle.shutdown().await;
    eventually("only one waits still", || waiting(&world, 0) == 1).await;
    held.open().await;
    held.open().await;
    while let Some(status) = clients.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    assert_eq!(held.paths(), ["/held", "/patient"]);
    eventually("all slots are free", || world.in_flight(machine) == 0).await;
}

/// Between edges it is fair: the one next door gets no more than the far one.
#[tokio::test]
async fn lb_4_a_far_edge_has_its_turn_beside_the_one_next_door() {
    let held = Held::default();
    let server = held.server().await;
    let mut world = World::new(&["iad", "lhr"]);
    let app = world.app("hello");
    world.machine(0, app, server.address, ONE);
    world.publish();
    let (near, far) = (world.shared(0, 80).await, world.shared(1, 80).await);
    let mut clients = JoinSet::new();
    clients.spawn(async move { get(near, "/first").await.status });
    eventually("the first is in flight", || held.paths().len() == 1).await;
    for _ in 0..10 {
        clients.spawn(async move { get(near, "/near").await.status });
        clients.spawn(async move { get(far, "/far").await.status });
    }
    eventually("all wait", || waiting(&world, 0) == 10 && waiting(&world, 1) == 10).await;
    for _ in 0..11 {
        held.open().await;
    }
    eventually("the next one came", || held.paths().len() == 12).await;
    let far = held.paths().iter().filter(|path| *path == "/far").count();
    assert!((3..=8).contains(&far), "of the first eleven that waited: {:?}", held.paths());
    clients.shutdown().await;
}

/// One full Machine that was asked for by name keeps only those waiting who want it.
#[tokio::test]
async fn what_waits_for_one_machine_holds_up_nobody_else() {
    let held = Held::default();
    let server = held.server().await;
    let front = Server::answering(|request| match request.target.as_str() {
        "/ask" => {
            let mut response = text(200, "");
            let instruction = format!("instance={}", MachineId::from_bits(1));
            response.headers_mut().insert("fly-replay", instruction.parse().unwrap());
            response
        }
        _ => text(200, "front"),
    })
    .await;
    let mut world = World::new(&["iad"]);
    let app = world.app("hello");
    world.machine(0, app, server.address, ONE);
    world.publish();
    let edge = world.shared(0, 80).await;
    let mut clients = JoinSet::new();
    clients.spawn(async move { get(edge, "/held").await.status });
    eventually("it is in flight", || held.paths().len() == 1).await;
    world.machine(0, app, front.address, ONE);
    world.publish();
    clients.spawn(async move { get(edge, "/ask").await.status });
    eventually("it waits for the first", || waiting(&world, 0) == 1).await;
    assert_eq!(get(edge, "/").await.text(), "front");
    assert_eq!(waiting(&world, 0), 1);
    held.open().await;
    held.open().await;
    while let Some(status) = clients.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    assert_eq!(held.paths(), ["/held", "/ask"]);
}
