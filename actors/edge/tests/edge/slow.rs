//! Clients that take their time (SPEC HTTP-6, HTTP-9).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use skein_core::MachineId;
use skein_edge::EdgeConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::backend::{Server, get, request, send, text};
use crate::http2;
use crate::streaming::fed;
use crate::world::{HTTP, World, eventually};

const SOON: Duration = Duration::from_millis(400);
const LATE: Duration = Duration::from_secs(600);

async fn world(server: &Server, configure: impl Fn(&mut EdgeConfig)) -> (World, MachineId, SocketAddr) {
    let mut world = World::with(&["iad"], |config| {
        (config.keep_alive, config.head_timeout) = (LATE, LATE);
        (config.body_timeout, config.write_timeout) = (LATE, LATE);
        configure(config);
    });
    let app = world.app("hello");
    let machine = world.machine(0, app, server.address, HTTP);
    world.publish();
    let edge = world.shared(0, 80).await;
    (world, machine, edge)
}

/// Waits until the proxy closes the connection, with or without a reset.
async fn closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer)).await;
    drop(ended.expect("the connection stays open"));
    answer
}

fn cut_off(world: &World) -> bool {
    world.nodes[0].edge.metrics().contains("skein_edge_slow_count{region=\"iad\",host=\"iad-1\"} 1\n")
}

#[tokio::test]
async fn http_9_a_head_that_drips_is_cut_off_and_a_busy_connection_is_not() {
    let server = Server::answering(|_| text(200, "hello")).await;
    let (world, _, edge) = world(&server, |config| config.head_timeout = SOON).await;
    let mut stream = TcpStream::connect(edge).await.unwrap();
    let began = Instant::now();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: hello.localhost\r\n").await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut tick = tokio::time::interval(SOON / 20);
        // Until the proxy has had enough.
        while writer.write_all(b"x: y\r\n").await.is_ok() {
            tick.tick().await;
        }
    });
    let mut answer = Vec::new();
    // A reset is an end like any other.
    let _reset =
        tokio::time::timeout(Duration::from_secs(30), reader.read_to_end(&mut answer)).await.unwrap();
    assert!(began.elapsed() >= SOON && answer.is_empty(), "{answer:?}");
    assert!(cut_off(&world) && server.seen().is_empty());
    assert_eq!(get(edge, "/").await.status, 200);
}

#[tokio::test]
async fn http_9_a_head_that_does_not_end_is_cut_off_and_nothing_of_it_reaches_a_machine() {
    let server = Server::answering(|_| text(200, "hello")).await;
    let (_world, _, edge) = world(&server, |config| config.head_timeout = SOON).await;
    for begun in ["", "G", "GET / HTTP/1.1\r\nhost: hello.localhost\r\nx: "] {
        let mut stream = TcpStream::connect(edge).await.unwrap();
        stream.write_all(begun.as_bytes()).await.unwrap();
        assert_eq!(closed(&mut stream).await, b"", "{begun:?}");
    }
    assert!(server.seen().is_empty());
    assert_eq!(get(edge, "/").await.status, 200);
}

/// Nothing but the port's own limit would end them: the others for heads are longer than any test. That
/// for bodies only makes the edge look often.
#[tokio::test]
async fn http_9_a_port_may_have_its_own_time_for_heads() {
    const OWN: &str = r#"{"internal_port":8080,
        "ports":[{"port":80,"handlers":["http"],"http_options":{"headers_read_timeout":1}}]}"#;
    let server = Server::answering(|_| text(200, "hello")).await;
    let mut world = World::with(&["iad"], |config| {
        (config.keep_alive, config.head_timeout, config.body_timeout) = (LATE, LATE, SOON);
    });
    let app = world.app("hello");
    let own = world.dedicated(app);
    world.machine(0, app, server.address, OWN);
    world.publish();
    // An address of its own tells the app at once, a shared one with the first request.
    for (edge, before) in [
        (world.map(0, own, 80).await, ""),
        (world.shared(0, 80).await, "GET / HTTP/1.1\r\nhost: hello.localhost\r\n\r\n"),
    ] {
        let mut stream = TcpStream::connect(edge).await.unwrap();
        stream.write_all(before.as_bytes()).await.unwrap();
        if !before.is_empty() {
            let head = crate::backend::read_head(&mut stream).await.unwrap();
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        }
        stream.write_all(b"GET / HTTP/1.1\r\nhost: he").await.unwrap();
        let rest = String::from_utf8(closed(&mut stream).await).unwrap();
        assert!(["", "hello"].contains(&rest.as_str()), "{rest}");
    }
}

/// SPEC HTTP-6: no limit for heads would end it.
#[tokio::test]
async fn http_6_an_unused_connection_is_closed_after_its_last_response() {
    let server = Server::answering(|_| text(200, "hello")).await;
    let (world, _, edge) = world(&server, |config| config.keep_alive = SOON).await;
    let mut stream = TcpStream::connect(edge).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: hello.localhost\r\n\r\n").await.unwrap();
    let began = Instant::now();
    let answer = String::from_utf8(closed(&mut stream).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
    assert!(began.elapsed() >= SOON);
    assert!(!cut_off(&world), "nothing speaks against that client");
}

#[tokio::test]
async fn http_9_a_body_of_which_nothing_comes_is_cut_off_and_frees_the_machine() {
    for framing in ["content-length: 10\r\n\r\nabc", "transfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n5"] {
        let server = Server::answering(|_| text(200, "hello")).await;
        let (world, machine, edge) = world(&server, |config| config.body_timeout = SOON).await;
        let mut stream = TcpStream::connect(edge).await.unwrap();
        let head = format!("POST / HTTP/1.1\r\nhost: hello.localhost\r\n{framing}");
        stream.write_all(head.as_bytes()).await.unwrap();
        eventually("the Machine has it", || world.in_flight(machine) == 1).await;
        assert_eq!(closed(&mut stream).await, b"", "{framing:?}");
        eventually("the slot is free", || world.in_flight(machine) == 0).await;
        assert!(cut_off(&world) && server.seen().iter().all(|seen| seen.body.len() < 10));
        assert_eq!(send(edge, request("POST", "/", "whole")).await.status, 200);
    }
}

/// What takes long is the Machine's business, and a body that it does not read is no fault of the client.
#[tokio::test]
async fn http_9_a_client_whose_machine_is_slow_is_not_blamed() {
    for length in [5, 8 << 20] {
        let (entered, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let (count, gate) = (Arc::clone(&entered), Arc::clone(&go));
        let server = Server::raw(move |request| {
            let (count, gate) = (Arc::clone(&count), Arc::clone(&gate));
            Box::pin(async move {
                count.fetch_add(1, Ordering::SeqCst);
                gate.notified().await;
                let body = request.into_body().collect().await.unwrap().to_bytes();
                text(200, body.len().to_string())
            })
        })
        .await;
        let (_world, _, edge) = world(&server, |config| config.body_timeout = SOON).await;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { send(edge, request("POST", "/", Bytes::from(vec![b'x'; length]))).await });
        eventually("the Machine has it", || entered.load(Ordering::SeqCst) == 1).await;
        let since = Instant::now();
        eventually("the time of a slow client is over", || since.elapsed() > SOON * 3).await;
        go.notify_one();
        let got = tasks.join_next().await.unwrap().unwrap();
        assert_eq!((got.status, got.text()), (200, &*length.to_string()));
    }
}

/// Over HTTP/2 the other requests of the connection go on.
#[tokio::test]
async fn http_9_a_stream_of_whose_body_nothing_comes_is_408_and_no_other_is_harmed() {
    for at in [0, 1] {
        let server = Server::answering(|_| text(200, "hello")).await;
        let mut world = World::with(&["iad", "lhr"], |config| config.body_timeout = SOON);
        let app = world.app("hello");
        let machine = world.machine(at, app, server.address, HTTP);
        world.publish();
        let edge = world.shared(0, 80).await;
        let (mut sender, _tasks) = http2::connect(edge).await;
        let (feed, body) = fed();
        feed.send(Bytes::from_static(b"first")).await.unwrap();
        let response = sender.send_request(http2::request("POST", "/", "").map(|_| body)).await.unwrap();
        let got = http2::got(response).await;
        assert_eq!((got.status, got.header("skein-error")), (408, Some("slow-body")), "node {at}");
        eventually("the slot is free", || world.in_flight(machine) == 0).await;
        assert!(server.seen().iter().all(|seen| seen.body == "first" || seen.body.is_empty()));
        let response = sender.send_request(http2::request("POST", "/", "whole")).await.unwrap();
        assert_eq!(http2::got(response).await.status, 200);
        drop(feed);
    }
}

/// The same as over HTTP/1: a Machine that does not read, and a conversation.
#[tokio::test]
async fn http_9_a_stream_whose_machine_is_slow_is_not_blamed() {
    for length in [5, 8 << 20] {
        let (entered, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let (count, gate) = (Arc::clone(&entered), Arc::clone(&go));
        let server = Server::raw(move |request| {
            let (count, gate) = (Arc::clone(&count), Arc::clone(&gate));
            Box::pin(async move {
                count.fetch_add(1, Ordering::SeqCst);
                gate.notified().await;
                let body = request.into_body().collect().await.unwrap().to_bytes();
                text(200, body.len().to_string())
            })
        })
        .await;
        let (_world, _, edge) = world(&server, |config| config.body_timeout = SOON).await;
        let (mut sender, _tasks) = http2::connect(edge).await;
        let asked = http2::request("POST", "/", Bytes::from(vec![b'x'; length]));
        let late = async {
            eventually("the Machine has it", || entered.load(Ordering::SeqCst) == 1).await;
            let since = Instant::now();
            eventually("the time of a slow client is over", || since.elapsed() > SOON * 3).await;
            go.notify_one();
        };
        let (response, ()) = tokio::join!(sender.send_request(asked), late);
        let got = http2::got(response.unwrap()).await;
        assert_eq!((got.status, got.text()), (200, &*length.to_string()));
    }
}

/// Once the app answers, both may say something when they have something to say.
#[tokio::test]
async fn http_9_a_conversation_may_pause() {
    let server = Server::raw(|request| {
        Box::pin(
            async move { http::Response::new(request.into_body().map_err(std::io::Error::other).boxed()) },
        )
    })
    .await;
    let (_world, _, edge) = world(&server, |config| config.body_timeout = SOON).await;
    let mut stream = TcpStream::connect(edge).await.unwrap();
    let head =
        "POST / HTTP/1.1\r\nhost: hello.localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(format!("{head}5\r\nfirst\r\n").as_bytes()).await.unwrap();
    let mut begun = Vec::new();
    while !begun.ends_with(b"first\r\n") {
        begun.push(stream.read_u8().await.unwrap());
    }
    let since = Instant::now();
    eventually("a pause is over", || since.elapsed() > SOON * 3).await;
    stream.write_all(b"6\r\nsecond\r\n0\r\n\r\n").await.unwrap();
    let rest = String::from_utf8(closed(&mut stream).await).unwrap();
    assert_eq!(rest, "6\r\nsecond\r\n0\r\n\r\n");
}

#[tokio::test]
async fn http_9_a_client_that_reads_nothing_is_cut_off() {
    let server = Server::answering(|_| text(200, vec![b'x'; 32 << 20])).await;
    let (world, machine, edge) = world(&server, |config| config.write_timeout = SOON).await;
    let mut stream = TcpStream::connect(edge).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: hello.localhost\r\n\r\n").await.unwrap();
    eventually("it is cut off", || cut_off(&world)).await;
    eventually("the slot is free", || world.in_flight(machine) == 0).await;
    assert!(closed(&mut stream).await.len() < 32 << 20);
}
