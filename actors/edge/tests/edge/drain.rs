//! Draining a node (SPEC HTTP-11): its edge goes on serving, its Machines do not.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use skein_core::MachineId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::backend::{Got, Server, get, read_head, request, text, try_send};
use crate::world::{HTTP, World, eventually};

const PATIENCE: Duration = Duration::from_secs(30);
const RAW: &str = r#"{"internal_port":7,"ports":[{"port":7}]}"#;

/// A Machine per node; each answers with its number, `/slow` only when the semaphore lets it.
async fn world(regions: &[&str]) -> (World, Vec<Server>, Arc<Semaphore>) {
    let mut world = World::new(regions);
    let app = world.app("hello");
    let gate = Arc::new(Semaphore::new(0));
    let mut servers = Vec::new();
    for node in 0..regions.len() {
        let gate = Arc::clone(&gate);
        let server = Server::raw(move |request| {
            let gate = Arc::clone(&gate);
            Box::pin(async move {
                if request.uri() == "/slow" {
                    gate.acquire().await.unwrap().forget();
                }
                text(200, node.to_string())
            })
        })
        .await;
        world.machine(node, app, server.address, HTTP);
        servers.push(server);
    }
    world.publish();
    (world, servers, gate)
}

fn is_last(got: &Got) -> bool {
    got.header("connection") == Some("close")
}

/// Polls a drain once: it has begun afterwards.
async fn begin(drain: &mut (impl Future<Output = usize> + Unpin)) {
    tokio::select! {
        biased;
        left = drain => panic!("it ended at once, {left} left"),
        () = std::future::ready(()) => {}
    }
}

/// A request that the first node's Machine has and does not answer.
async fn slow(world: &World, at: SocketAddr) -> JoinSet<Result<Got, hyper::Error>> {
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { try_send(at, request("GET", "/slow", "")).await });
    eventually("it is at the Machine", || world.in_flight(MachineId::from_bits(1)) == 1).await;
    tasks
}

#[tokio::test]
async fn http_11_a_draining_edge_answers_all_by_other_nodes_and_closes_after_each_response() {
    let (world, _servers, gate) = world(&["iad", "lhr"]).await;
    let at = world.shared(0, 80).await;
    let edge = &world.nodes[0].edge;
    let got = get(at, "/").await;
    assert_eq!((got.text(), is_last(&got)), ("0", false), "the nearest one");
    let mut waiting = slow(&world, at).await;

    let mut drain = pin!(edge.drain(PATIENCE));
    begin(&mut drain).await;
    let got = get(at, "/").await;
    assert_eq!((got.status, got.text(), is_last(&got)), (200, "1", true), "a new client while it drains");
    gate.add_permits(1);
    let got = waiting.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!((got.status, got.text(), is_last(&got)), (200, "0", true), "what was in flight");
    assert_eq!(drain.await, 0);
    let got = get(at, "/").await;
    assert_eq!((got.status, got.text(), is_last(&got)), (200, "1", true), "a new client after the drain");

    edge.undrain();
    let got = get(at, "/").await;
    assert_eq!((got.status, got.text(), is_last(&got)), (200, "0", false), "after the undrain");
}

#[tokio::test]
async fn http_11_a_client_that_keeps_its_connection_is_answered_once_more() {
    let (world, _servers, _gate) = world(&["iad", "lhr"]).await;
    let at = world.shared(0, 80).await;
    let edge = &world.nodes[0].edge;
    let mut client = TcpStream::connect(at).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nhost: hello.localhost\r\n\r\n";
    client.write_all(request).await.unwrap();
    read_head(&mut client).await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'0');

    let mut drain = pin!(edge.drain(PATIENCE));
    begin(&mut drain).await;
    client.write_all(request).await.unwrap();
    let head = read_head(&mut client).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("connection: close\r\n"), "{head}");
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"1");
    assert_eq!(drain.await, 0);
}

#[tokio::test]
async fn http_11_idle_clients_are_let_go_and_an_app_with_no_machine_elsewhere_gets_pr01() {
    let (world, _servers, _gate) = world(&["iad"]).await;
    let at = world.shared(0, 80).await;
    let edge = &world.nodes[0].edge;
    let mut idle = TcpStream::connect(at).await.unwrap();
    eventually("the idle connection is open", || edge.counts().open == 1).await;
    assert_eq!(edge.drain(PATIENCE).await, 0);
    assert_eq!(idle.read(&mut [0; 8]).await.unwrap(), 0);
    let got = get(at, "/").await;
    assert_eq!((got.status, got.header("skein-error"), is_last(&got)), (503, Some("PR01"), true));
    edge.undrain();
    assert_eq!(get(at, "/").await.status, 200);
}

#[tokio::test]
async fn http_11_a_drain_cuts_what_it_found_at_its_deadline_and_waits_for_nothing_later() {
    let (world, _servers, _gate) = world(&["iad", "lhr"]).await;
    let at = world.shared(0, 80).await;
    let edge = &world.nodes[0].edge;
    let found = TcpStream::connect(at).await.unwrap();
    eventually("it is open", || edge.counts().open == 1).await;
    {
        let mut drain = pin!(edge.drain(PATIENCE));
        begin(&mut drain).await;
        let _later = TcpStream::connect(at).await.unwrap();
        eventually("the later one is open", || edge.counts().open == 2).await;
        drop(found);
        assert_eq!(drain.await, 0, "it does not wait for the later one");
    }
    eventually("all are gone", || edge.counts().open == 0).await;
    edge.undrain();
    let mut waiting = JoinSet::new();
    waiting.spawn(
        async move { crate::backend::try_send(at, crate::backend::request("GET", "/slow", "")).await },
    );
    eventually("the slow request is open", || edge.counts().open == 1).await;
    assert_eq!(edge.drain(Duration::from_millis(20)).await, 1);
    waiting.join_next().await.unwrap().unwrap().unwrap_err();
}

#[tokio::test]
async fn http_11_raw_connections_stay_while_a_node_drains_and_new_ones_go_to_other_nodes() {
    let mut world = World::new(&["iad", "lhr"]);
    let app = world.app("hello");
    let mut servers = Vec::new();
    for node in 0..2u8 {
        let server = Server::bytes(move |mut stream, _| {
            Box::pin(async move {
                // Says who it is for each byte that it gets.
                while stream.read_u8().await.is_ok() {
                    stream.write_u8(node).await.unwrap();
                }
            })
        })
        .await;
        world.machine(usize::from(node), app, server.address, RAW);
        servers.push(server);
    }
    let dedicated = world.dedicated(app);
    world.publish();
    let at = world.map(0, dedicated, 7).await;
    let edge = &world.nodes[0].edge;
    let mut before = TcpStream::connect(at).await.unwrap();
    let mut drain = pin!(edge.drain(PATIENCE));
    let ask = async |client: &mut TcpStream| {
        client.write_u8(9).await.unwrap();
        client.read_u8().await.unwrap()
    };
    assert_eq!(ask(&mut before).await, 0);
    begin(&mut drain).await;
    let mut later = TcpStream::connect(at).await.unwrap();
    assert_eq!((ask(&mut later).await, ask(&mut before).await), (1, 0));
    drop(before);
    assert_eq!(drain.await, 0);
    assert_eq!(ask(&mut later).await, 1, "a later one is not cut");
}
