//! Server-sent events: they come as they are sent, and their end is told from a break
//! (SPEC HTTP-7, HTTP-11; INCIDENTS C31, X26).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use skein_core::MachineId;
use skein_core::machine::MachineState;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::backend::{Server, read_head};
use crate::http2::{connect, request};
use crate::world::{HTTP, World};

const HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n8\r\ndata: 1\n\r\n";

/// One event at once and one when the gate lets it, then the end: `/end` says that it is one, `/cut` does not.
async fn world(at: usize) -> (World, SocketAddr, MachineId, Arc<Semaphore>, Server) {
    let gate = Arc::new(Semaphore::new(0));
    let opens = Arc::clone(&gate);
    let server = Server::bytes(move |mut stream, _| {
        let gate = Arc::clone(&opens);
        Box::pin(async move {
            let Some(head) = read_head(&mut stream).await else { return };
            stream.write_all(HEAD).await.unwrap();
            gate.acquire().await.unwrap().forget();
            stream.write_all(b"8\r\ndata: 2\n\r\n").await.unwrap();
            if head.starts_with("GET /end ") {
                stream.write_all(b"0\r\n\r\n").await.unwrap();
            }
        })
    })
    .await;
    let mut world = World::new(&["iad", "lhr"]);
    let app = world.app("hello");
    let machine = world.machine(at, app, server.address, HTTP);
    world.publish();
    let edge = world.shared(0, 80).await;
    (world, edge, machine, gate, server)
}

#[tokio::test]
async fn http_7_events_come_one_by_one_and_only_the_machine_ends_them_over_http_1() {
    for (at, path) in [(0, "/end"), (1, "/end"), (0, "/cut"), (1, "/cut")] {
        let (mut world, edge, machine, gate, _server) = world(at).await;
        let mut client = TcpStream::connect(edge).await.unwrap();
        let asked = format!("GET {path} HTTP/1.1\r\nhost: hello.localhost\r\naccept-encoding: gzip\r\n\r\n");
        client.write_all(asked.as_bytes()).await.unwrap();
        let head = read_head(&mut client).await.unwrap();
        assert!(head.contains("content-type: text/event-stream\r\n"), "{head}");
        let mut first = [0; 13];
        client.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"8\r\ndata: 1\n\r\n");
        // The Machine is asked to stop: what it serves goes on.
        world.change(machine, |machine| machine.state = MachineState::Stopping);
        world.publish();
        gate.add_permits(1);
        if path == "/end" {
            let mut rest = [0; 18];
            client.read_exact(&mut rest).await.unwrap();
            assert_eq!(&rest, b"8\r\ndata: 2\n\r\n0\r\n\r\n", "node {at}");
        } else {
            let mut rest = Vec::new();
            // Closed or reset, perhaps before the last event, but not ended.
            let end = tokio::time::timeout(Duration::from_secs(20), client.read_to_end(&mut rest)).await;
            let _reset = end.expect("it stays open");
            assert!(b"8\r\ndata: 2\n\r\n".starts_with(&rest), "node {at}: {rest:?}");
        }
    }
}

#[tokio::test]
async fn http_7_events_come_one_by_one_and_only_the_machine_ends_them_over_http_2() {
    for (at, path) in [(0, "/end"), (1, "/end"), (0, "/cut"), (1, "/cut")] {
        let (mut world, edge, machine, gate, _server) = world(at).await;
        let (mut sender, _tasks) = connect(edge).await;
        let response = sender.send_request(request("GET", path, "")).await.unwrap();
        let mut body = response.into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "data: 1\n");
        world.change(machine, |machine| machine.state = MachineState::Stopping);
        world.publish();
        gate.add_permits(1);
        if path == "/end" {
            assert_eq!(body.collect().await.unwrap().to_bytes(), "data: 2\n", "node {at}");
        } else {
            let mut seen: Vec<Bytes> = Vec::new();
            let error = loop {
                match tokio::time::timeout(Duration::from_secs(20), body.frame()).await.unwrap() {
                    Some(Ok(frame)) => seen.extend(frame.into_data()),
                    ended => break ended,
                }
            };
            assert!(error.is_some_and(|error| error.is_err()), "it looks whole on node {at}: {seen:?}");
        }
    }
}
