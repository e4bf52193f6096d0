//! What fails, and who takes the request instead (SPEC LB-1, LB-5, LB-6).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use skein_cluster::clock;
use skein_core::MachineId;
use skein_core::machine::MachineState;
use skein_core::outlier;
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;

use crate::backend::{Server, get, nowhere, read_head, request, send, text};
use crate::world::{HTTP, World, eventually};

const LIMITED: &str = r#"{"internal_port":8080,"concurrency":{"type":"requests","hard_limit":1},
    "ports":[{"port":80,"handlers":["http"]}]}"#;

/// SPEC LB-5, LB-6: each refusal, here and on another node, costs a hop and never the body.
#[tokio::test]
async fn lb_5_a_worker_that_knows_better_refuses_and_the_body_goes_elsewhere_whole() {
    type Change = fn(&mut crate::world::Machine);
    let changes: [(&str, Change); 4] = [
        ("stopped", |machine| machine.state = MachineState::Stopped),
        ("cordoned", |machine| machine.cordoned = true),
        ("unhealthy", |machine| machine.healthy = false),
        ("unknown", |machine| machine.app = skein_core::AppId(ulid::Ulid(9))),
    ];
    for near in [0, 1] {
        for (name, change) in &changes {
            let (wrong, right) = (
                Server::answering(|_| text(200, "wrong")).await,
                Server::answering(|_| text(200, "right")).await,
            );
            let mut world = World::new(&["iad", "lhr", "nrt"]);
            let app = world.app("hello");
            let first = world.machine(near, app, wrong.address, HTTP);
            world.machine(2, app, right.address, HTTP);
            world.publish();
            let edge = world.shared(0, 80).await;
            world.change(first, change);
            world.publish_local();
            let body = Bytes::from(vec![b'y'; 300_000]);
            let got = send(edge, request("POST", "/", body.clone())).await;
            assert_eq!((got.status, got.text()), (200, "right"), "{name} on node {near}");
            assert_eq!(right.seen()[0].body, body, "{name} on node {near}");
            assert!(wrong.seen().is_empty());
        }
    }
}

/// SPEC LB-1: the worker counts, with one compare-and-swap.
#[tokio::test]
async fn lb_1_a_machine_at_its_hard_limit_gets_nothing_and_a_full_app_is_pr04() {
    for at in [0, 1] {
        let (entered, leave) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let (count, gate) = (Arc::clone(&entered), Arc::clone(&leave));
        let server = Server::raw(move |_| {
            let (count, gate) = (Arc::clone(&count), Arc::clone(&gate));
            Box::pin(async move {
                count.fetch_add(1, Ordering::SeqCst);
                gate.notified().await;
                text(200, "slow")
            })
        })
        .await;
        let mut world =
            World::with(&["iad", "lhr"], |config| config.queue_timeout = Duration::from_millis(50));
        let app = world.app("hello");
        let machine = world.machine(at, app, server.address, LIMITED);
        world.publish();
        let edge = world.shared(0, 80).await;
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move { get(edge, "/").await });
        eventually("the first is in flight", || entered.load(Ordering::SeqCst) == 1).await;
        let got = get(edge, "/").await;
        assert_eq!((got.status, got.header("skein-error")), (503, Some("PR04")));
        assert_eq!(got.header("retry-after"), Some("1"));
        leave.notify_one();
        assert_eq!(tasks.join_next().await.unwrap().unwrap().status, 200);
        eventually("the slot is free", || world.in_flight(machine) == 0).await;
        leave.notify_one();
        assert_eq!(get(edge, "/").await.status, 200);
        assert_eq!(entered.load(Ordering::SeqCst), 2);
    }
}

/// SPEC LB-6: nothing reached the app, so any method may go elsewhere.
#[tokio::test]
async fn lb_6_a_machine_that_refuses_connections_is_passed_over_and_named_when_it_is_the_only_one() {
    for at in [0, 1] {
        let right = Server::answering(|_| text(200, "right")).await;
        let mut world = World::new(&["iad", "lhr", "nrt"]);
        let app = world.app("hello");
        world.machine(at, app, nowhere().await, HTTP);
        let second = world.machine(2, app, right.address, HTTP);
        world.publish();
        let edge = world.shared(0, 80).await;
        let got = send(edge, request("POST", "/", "body")).await;
        assert_eq!((got.status, got.text()), (200, "right"));
        assert_eq!(right.seen()[0].body, "body");
        world.change(second, |machine| machine.state = MachineState::Stopped);
        world.publish();
        let got = get(edge, "/").await;
        assert_eq!((got.status, got.header("skein-error")), (502, Some("PC01")));
        assert!(got.text().contains("internal_port"), "{}", got.text());
    }
}

/// SPEC LB-6: the grant beside its refusal.
#[tokio::test]
async fn lb_6_a_get_that_reached_an_app_which_died_is_repeated_elsewhere_and_a_post_is_not() {
    for at in [0, 1] {
        let dying =
            Server::bytes(|mut stream, _| Box::pin(async move { drop(read_head(&mut stream).await) })).await;
        let right = Server::answering(|_| text(200, "right")).await;
        let mut world = World::new(&["iad", "lhr", "nrt"]);
        let app = world.app("hello");
        world.machine(at, app, dying.address, HTTP);
        world.machine(2, app, right.address, HTTP);
        world.publish();
        let edge = world.shared(0, 80).await;
        let got = get(edge, "/").await;
        assert_eq!((got.status, got.text()), (200, "right"));
        let got = send(edge, request("POST", "/", "once")).await;
        assert_eq!((got.status, got.header("skein-error")), (502, Some("PU02")));
        assert_eq!(right.seen().len(), 1, "the POST reached one app only");
        assert_eq!(dying.connections(), 2);
    }
}

#[tokio::test]
async fn an_app_that_speaks_no_http_is_pu01() {
    for at in [0, 1] {
        let odd = Server::bytes(|mut stream, _| {
            Box::pin(async move {
                if read_head(&mut stream).await.is_some() {
                    // The proxy may have closed already.
                    let _sent = stream.write_all(b"SSH-2.0-OpenSSH_9\r\n\r\n").await;
                }
            })
        })
        .await;
        let mut world = World::new(&["iad", "lhr"]);
        let app = world.app("hello");
        world.machine(at, app, odd.address, HTTP);
        world.publish();
        let got = get(world.shared(0, 80).await, "/").await;
        assert_eq!((got.status, got.header("skein-error")), (502, Some("PU01")), "node {at}");
    }
}

/// SPEC CLU-4: a node that falls silent while it owes an answer.
#[tokio::test]
async fn a_get_in_flight_at_a_node_that_falls_silent_is_repeated_elsewhere() {
    let entered = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&entered);
    let stuck = Server::raw(move |_| {
        let count = Arc::clone(&count);
        Box::pin(async move {
            count.fetch_add(1, Ordering::SeqCst);
            std::future::pending().await
        })
    })
    .await;
    let right = Server::answering(|_| text(200, "right")).await;
    let mut world = World::new(&["iad", "lhr", "nrt"]);
    let app = world.app("hello");
    world.machine(1, app, stuck.address, HTTP);
    world.machine(2, app, right.address, HTTP);
    world.publish();
    let edge = world.shared(0, 80).await;
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move { get(edge, "/").await });
    eventually("the first app has it", || entered.load(Ordering::SeqCst) == 1).await;
    // All packets to the victim are lost from here on.
    let cut = skein_core::fault::LinkRule { cut: true, ..Default::default() };
    world.nodes[0].links.set_faults([(world.nodes[1].number, cut)].into());
    world.nodes[1].links.set_faults([(world.nodes[0].number, cut)].into());
    let got = tasks.join_next().await.unwrap().unwrap();
    assert_eq!((got.status, got.text()), (200, "right"));
}

/// SPEC HTTP-7: a client that leaves takes its request with it.
#[tokio::test]
async fn a_client_that_leaves_frees_the_slot_at_the_worker() {
    for at in [0, 1] {
        let server = Server::raw(|_| Box::pin(std::future::pending())).await;
        let mut world = World::new(&["iad", "lhr"]);
        let app = world.app("hello");
        let machine: MachineId = world.machine(at, app, server.address, HTTP);
        world.publish();
        let edge = world.shared(0, 80).await;
        let mut client = tokio::net::TcpStream::connect(edge).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: hello.localhost\r\n\r\n").await.unwrap();
        eventually("it is in flight", || world.in_flight(machine) == 1).await;
        drop(client);
        eventually("the slot is free", || world.in_flight(machine) == 0).await;
    }
}

#[tokio::test]
async fn a_response_that_is_cut_short_is_cut_short_for_the_client_too() {
    for at in [0, 1] {
        for head in [
            "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        ] {
            let server = Server::bytes(move |mut stream, _| {
                Box::pin(async move {
                    if read_head(&mut stream).await.is_some() {
                        // The proxy may have closed already.
                        let _sent = stream.write_all(head.as_bytes()).await;
                    }
                })
            })
            .await;
            let mut world = World::new(&["iad", "lhr"]);
            let app = world.app("hello");
            world.machine(at, app, server.address, HTTP);
            world.publish();
            let edge = world.shared(0, 80).await;
            let answer = crate::backend::talk(edge, b"GET / HTTP/1.1\r\nhost: hello.localhost\r\n\r\n").await;
            assert!(!answer.ends_with("0\r\n\r\n") && !answer.contains("hellohello"), "node {at}: {answer}");
            let asked = request("GET", "/", "");
            assert!(crate::backend::try_send(edge, asked).await.is_err(), "the truncation is visible");
        }
    }
}

/// The word that a request was admitted travels with its response when that comes soon; it must not
/// wait for one that does not: the edge would take the request for one that no Machine has.
#[tokio::test]
async fn a_machine_elsewhere_may_take_longer_than_it_takes_to_find_one() {
    let answer = Arc::new(Notify::new());
    let gate = Arc::clone(&answer);
    let server = Server::raw(move |_| {
        let gate = Arc::clone(&gate);
        Box::pin(async move {
            gate.notified().await;
            text(200, "late")
        })
    })
    .await;
    let soon = std::time::Duration::from_millis(700);
    let mut world = World::with(&["iad", "lhr"], |config| config.route_timeout = soon);
    let app = world.app("hello");
    let machine = world.machine(1, app, server.address, HTTP);
    world.publish();
    let edge = world.shared(0, 80).await;
    let late = async {
        eventually("the Machine has the request", || world.in_flight(machine) == 1).await;
        let since = tokio::time::Instant::now();
        eventually("no Machine is looked for any more", || since.elapsed() > soon).await;
        answer.notify_one();
    };
    let (got, ()) = tokio::join!(get(edge, "/"), late);
    assert_eq!((got.status, got.text()), (200, "late"));
}

/// SPEC LB-7: after one failure to connect it is left alone, first for a second, then for longer.
#[tokio::test]
async fn lb_7_a_machine_that_refuses_connections_is_not_asked_again_and_again() {
    let right = Server::answering(|_| text(200, "right")).await;
    let mut world = World::new(&["iad", "lhr"]);
    let app = world.app("hello");
    let wrong = world.machine(0, app, nowhere().await, HTTP);
    world.machine(1, app, right.address, HTTP);
    world.publish();
    let edge = world.shared(0, 80).await;
    let begun = clock::now();
    for _ in 0..50 {
        assert_eq!(get(edge, "/").await.status, 200);
    }
    let retries = |world: &World| -> u64 {
        let metrics = world.nodes[0].edge.metrics();
        let line = metrics.lines().find(|line| line.starts_with("skein_edge_retries_count{")).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let after = retries(&world);
    assert!((1..=2 + begun.elapsed().as_secs()).contains(&after), "{after} retries");
    // Its next start clears it.
    world.change(wrong, |machine| {
        (machine.state, machine.address) = (MachineState::Stopped, right.address);
    });
    world.publish();
    world.change(wrong, |machine| machine.state = MachineState::Started);
    world.publish();
    assert_eq!(get(edge, "/").await.status, 200);
    assert_eq!(world.nodes[0].edge.counts().pooled, 1, "the near one was asked");
}

/// SPEC LB-7: one that answers nobody is avoided, although it is nearer and has room.
#[tokio::test]
async fn lb_7_a_machine_that_answers_nobody_is_avoided() {
    let stalls = Server::raw(|request| match request.uri().path() {
        "/" => Box::pin(async { text(200, "near") }),
        _ => Box::pin(std::future::pending()),
    })
    .await;
    let right = Server::answering(|_| text(200, "right")).await;
    let mut world = World::new(&["iad", "lhr"]);
    let app = world.app("hello");
    world.machine(0, app, stalls.address, HTTP);
    world.machine(1, app, right.address, HTTP);
    world.publish();
    let edge = world.shared(0, 80).await;
    for _ in 0..outlier::KNOWN {
        assert_eq!(get(edge, "/").await.text(), "near");
    }
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..3 {
        waiting.spawn(async move { get(edge, "/long").await });
    }
    let deadline = clock::now() + Duration::from_secs(30);
    loop {
        assert!(clock::now() < deadline, "it is asked for ever");
        if let Ok(got) = tokio::time::timeout(Duration::from_millis(400), get(edge, "/long")).await {
            assert_eq!(got.text(), "right");
            break;
        }
    }
    waiting.shutdown().await;
}
