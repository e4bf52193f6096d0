//! Clients that speak HTTP/2 by prior knowledge (SPEC HTTP-1, HTTP-8, HTTP-9).

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::backend::{Body, Got, Server, full, get, text};
use crate::frames::{
    CONTINUATION, Client, DATA, END_HEADERS, END_STREAM, End, HEADERS, PREFACE, RST_STREAM, block, frame,
};
use crate::world::{HTTP, World, eventually};

/// A connection, and the task that drives it.
pub async fn connect(at: SocketAddr) -> (SendRequest<Body>, JoinSet<hyper::Result<()>>) {
    let stream = TcpStream::connect(at).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    (sender, tasks)
}

pub fn request(method: &str, path: &str, body: impl Into<Bytes>) -> Request<Body> {
    let uri = format!("http://hello.localhost{path}");
    Request::builder().method(method).uri(uri).body(full(body)).unwrap()
}

pub async fn got(response: Response<Incoming>) -> Got {
    let (head, body) = response.into_parts();
    assert_eq!(head.version, Version::HTTP_2);
    let body = body.collect().await.unwrap().to_bytes();
    Got { status: head.status.as_u16(), headers: head.headers, body }
}

/// A Machine on the node of that index that says what it got.
async fn hello(regions: &[&str], at: usize) -> (World, Server) {
    let server = Server::answering(|seen| {
        let body = format!("{} {} {}", seen.method, seen.target, String::from_utf8_lossy(&seen.body));
        text(200, body)
    })
    .await;
    let mut world = World::new(regions);
    let app = world.app("hello");
    world.machine(at, app, server.address, HTTP);
    world.publish();
    (world, server)
}

#[tokio::test]
async fn http_1_requests_over_http_2_reach_machines_here_and_elsewhere_as_http_1() {
    for at in [0, 1] {
        let (world, server) = hello(&["iad", "lhr"], at).await;
        let (mut sender, _tasks) = connect(world.shared(0, 80).await).await;
        let mut asked = request("POST", "/x?y=z", "a body");
        for crumb in ["a=1", "b=2"] {
            asked.headers_mut().append("cookie", crumb.parse().unwrap());
        }
        // Two at once on one connection.
        let (first, second) =
            tokio::join!(sender.clone().send_request(asked), sender.send_request(request("GET", "/", "")));
        let (first, second) = (got(first.unwrap()).await, got(second.unwrap()).await);
        assert_eq!((first.status, first.text()), (200, "POST /x?y=z a body"));
        assert_eq!(first.header("via"), Some("2 skein"));
        assert!(!first.headers.contains_key("connection") && first.headers.contains_key("fly-request-id"));
        assert_eq!((second.status, second.text()), (200, "GET / "));
        let seen = server.seen().into_iter().find(|seen| seen.method == "POST").unwrap();
        assert_eq!(seen.header("host"), Some("hello.localhost"));
        assert_eq!(seen.headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
        assert_eq!(seen.header("via"), Some("2 skein"));
    }
}

#[tokio::test]
async fn http_13_the_proxys_own_answers_are_the_same_over_http_2() {
    let (world, server) = hello(&["iad"], 0).await;
    let at = world.shared(0, 80).await;
    let (mut sender, _tasks) = connect(at).await;
    let mut elsewhere = request("GET", "/", "");
    *elsewhere.uri_mut() = "http://other.localhost/".parse().unwrap();
    let answer = got(sender.send_request(elsewhere).await.unwrap()).await;
    assert_eq!((answer.status, answer.header("skein-error")), (404, Some("unknown-host")));
    let mut user = request("GET", "/", "");
    *user.uri_mut() = "http://u:p@hello.localhost/".parse().unwrap();
    let answer = got(sender.send_request(user).await.unwrap()).await;
    assert_eq!((answer.status, answer.header("skein-error")), (400, Some("bad-host")));
    let mut twice = request("POST", "/", "four");
    for _ in 0..2 {
        twice.headers_mut().append("content-length", "4".parse().unwrap());
    }
    let answer = got(sender.send_request(twice).await.unwrap()).await;
    assert_eq!((answer.status, answer.header("skein-error")), (400, Some("bad-content-length")));
    let mut large = request("GET", "/", "");
    large.headers_mut().insert("x", "x".repeat(100_000).parse().unwrap());
    assert_eq!(got(sender.send_request(large).await.unwrap()).await.status, 431);
    let connecting = Request::connect("hello.localhost:80").body(full("")).unwrap();
    let answer = sender.send_request(connecting).await.unwrap();
    assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert!(server.seen().is_empty());
    // The connection bore all that.
    assert_eq!(got(sender.send_request(request("GET", "/", "")).await.unwrap()).await.status, 200);
}

const PROTOCOL_ERROR: u32 = 1;
const ENHANCE_YOUR_CALM: u32 = 11;

/// SPEC HTTP-8: the Machine never sees a request that the client did not send.
#[tokio::test]
async fn http_8_what_http_2_does_not_allow_never_reaches_the_machine() {
    let (world, server) = hello(&["iad"], 0).await;
    let at = world.shared(0, 80).await;
    let usual = [(":method", "GET"), (":scheme", "http"), (":authority", "hello.localhost"), (":path", "/")];
    let with = |more: &[(&'static str, &'static str)]| [&usual[..], more].concat();
    let but = |name: &str, value: &'static str| {
        usual.map(|(usual, was)| if usual == name { (usual, value) } else { (usual, was) }).to_vec()
    };
    for bad in [
        with(&[("connection", "close")]),
        with(&[("transfer-encoding", "chunked")]),
        with(&[("upgrade", "websocket")]),
        with(&[("keep-alive", "timeout=5")]),
        with(&[("proxy-connection", "keep-alive")]),
        with(&[("te", "gzip")]),
        with(&[("x-a", "b\r\nx-c: d")]),
        with(&[("x-a", "b\nx-c: d")]),
        with(&[("x-a", "b\0")]),
        with(&[("x-a\r\nx-c", "d")]),
        with(&[("x-a: b\r\nx-c", "d")]),
        with(&[("X-Upper", "d")]),
        with(&[("content-length", "5")]),
        with(&[("content-length", "+0")]),
        with(&[(":path", "/other")]),
        with(&[(":unknown", "x")]),
        but(":path", "/ HTTP/1.1\r\nhost: x\r\n\r\nGET /smuggled"),
        but(":path", "/a b"),
        but(":path", "no-slash"),
        but(":path", ""),
        but(":method", "GET / HTTP/1.1\r\nx: y\r\n\r\nGET"),
        but(":method", "GE T"),
        but(":method", ""),
        but(":authority", "hello.localhost\r\nx: y"),
        but(":authority", "hello.localhost x"),
        but(":authority", "u@hello.localhost"),
        but(":scheme", "http://x/?"),
        [&usual[1..], &[("x-a", "b"), (":method", "GET")]].concat(),
        [&usual[..1], &[(":protocol", "websocket")], &usual[1..]].concat(),
        vec![
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "hello.localhost"),
        ],
    ] {
        let mut client = Client::connect(at).await;
        client.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&bad))).await;
        let end = client.end(1).await;
        let refused_by_the_proxy =
            bad.contains(&(":path", "no-slash")) || bad.contains(&(":authority", "u@hello.localhost"));
        let expected = match refused_by_the_proxy {
            true => end == End::Answered || end == End::Reset(PROTOCOL_ERROR),
            false => matches!(end, End::Reset(PROTOCOL_ERROR) | End::GoneAway(PROTOCOL_ERROR)),
        };
        assert!(expected, "{bad:?} ended with {end:?}");
    }
    assert!(server.seen().is_empty(), "{:?}", server.seen());
    // What is left of them as they should be is answered.
    let mut client = Client::connect(at).await;
    client.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&usual))).await;
    assert_eq!(client.end(1).await, End::Answered);
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn http_8_a_body_that_is_not_as_long_as_it_says_is_reset() {
    let (world, server) = hello(&["iad"], 0).await;
    let at = world.shared(0, 80).await;
    for (says, body) in [("3", "four"), ("5", "four")] {
        let head = block(&[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "hello.localhost"),
            (":path", "/"),
            ("content-length", says),
        ]);
        let mut client = Client::connect(at).await;
        client.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
        client.send(&frame(DATA, END_STREAM, 1, body.as_bytes())).await;
        assert_eq!(client.end(1).await, End::Reset(PROTOCOL_ERROR), "{body:?} is not {says}");
    }
    // The Machine may have seen the head, never a whole request.
    assert!(server.seen().iter().all(|seen| seen.body.is_empty()), "{:?}", server.seen());
    assert_eq!(get(at, "/").await.status, 200);
}

#[tokio::test]
async fn http_9_floods_end_their_connection_and_no_other() {
    let (world, _server) = hello(&["iad"], 0).await;
    let at = world.shared(0, 80).await;
    let (mut other, _tasks) = connect(at).await;
    let head =
        block(&[(":method", "GET"), (":scheme", "http"), (":authority", "hello.localhost"), (":path", "/")]);
    // Rapid reset (CVE-2023-44487).
    let mut flood = Vec::new();
    for stream in (1..2000).step_by(2) {
        flood.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &head));
        flood.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
    }
    let mut client = Client::connect(at).await;
    client.send(&flood).await;
    assert_eq!(client.end(u32::MAX).await, End::GoneAway(ENHANCE_YOUR_CALM));
    // A head that never ends.
    let mut client = Client::connect(at).await;
    client.send(&frame(HEADERS, END_STREAM, 1, &head)).await;
    for _ in 0..200 {
        client.send(&frame(CONTINUATION, 0, 1, &[0; 1 << 14])).await;
    }
    let end = client.end(1).await;
    assert!(matches!(end, End::GoneAway(_) | End::Closed), "{end:?}");
    // Streams beyond the limit, which are not announced to be closed.
    let slow =
        block(&[(":method", "POST"), (":scheme", "http"), (":authority", "hello.localhost"), (":path", "/")]);
    let mut client = Client::connect(at).await;
    for stream in (1..=201).step_by(2) {
        client.send(&frame(HEADERS, END_HEADERS, stream, &slow)).await;
    }
    assert_eq!(client.end(201).await, End::Reset(7), "the 101st");
    assert_eq!(got(other.send_request(request("GET", "/", "")).await.unwrap()).await.status, 200);
    let metrics = world.nodes[0].edge.metrics();
    let counted = metrics.lines().find(|line| line.starts_with("skein_edge_malformed_count")).unwrap();
    assert!(!counted.ends_with(" 0"), "{counted}");
}

#[tokio::test]
async fn http_9_who_says_nothing_or_only_half_is_cut_off_and_who_waits_for_an_answer_is_not() {
    let gate = Arc::new(Semaphore::new(0));
    let opens = Arc::clone(&gate);
    let server = Server::raw(move |_| {
        let gate = Arc::clone(&opens);
        Box::pin(async move {
            gate.acquire().await.unwrap().forget();
            text(200, "late")
        })
    })
    .await;
    let mut world = World::with(&["iad"], |config| {
        (config.keep_alive, config.head_timeout) = (Duration::from_millis(300), Duration::from_millis(200));
    });
    let app = world.app("hello");
    let machine = world.machine(0, app, server.address, HTTP);
    world.publish();
    let at = world.shared(0, 80).await;
    let (mut sender, _tasks) = connect(at).await;
    let mut waiting = pin!(sender.send_request(request("GET", "/", "")));
    let mut waiting_too = JoinSet::new();
    waiting_too.spawn(async move { get(at, "/").await });
    tokio::select! {
        biased;
        answer = &mut waiting => panic!("too early: {answer:?}"),
        () = eventually("both are at the Machine", || world.in_flight(machine) == 2) => {}
    }
    let head = b"GET / HTTP/1.1\r\nhost: hello.localhost\r\nx-a:";
    let settings = [PREFACE, &frame(4, 0, 0, &[])].concat();
    for half in [&b""[..], b"P", &PREFACE[..20], PREFACE, &settings, head] {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(half).await.unwrap();
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "{half:?} is not cut off");
    }
    gate.add_permits(2);
    assert_eq!(got(waiting.await.unwrap()).await.text(), "late");
    assert_eq!(waiting_too.join_next().await.unwrap().unwrap().text(), "late");
}

#[tokio::test]
async fn http_11_a_drain_says_goaway_and_finishes_what_is_in_flight() {
    let gate = Arc::new(Semaphore::new(0));
    let opens = Arc::clone(&gate);
    let server = Server::raw(move |_| {
        let gate = Arc::clone(&opens);
        Box::pin(async move {
            gate.acquire().await.unwrap().forget();
            text(200, "late")
        })
    })
    .await;
    let mut world = World::new(&["iad"]);
    let app = world.app("hello");
    let machine = world.machine(0, app, server.address, HTTP);
    world.publish();
    let at = world.shared(0, 80).await;
    let (mut sender, mut tasks) = connect(at).await;
    let mut waiting = JoinSet::new();
    let mut first = sender.clone();
    waiting.spawn(async move { got(first.send_request(request("GET", "/", "")).await.unwrap()).await });
    eventually("it is at the Machine", || world.in_flight(machine) == 1).await;
    let edge = world.nodes[0].edge.clone();
    let mut draining = JoinSet::new();
    draining.spawn(async move { edge.drain(Duration::from_secs(30)).await });
    // Once it was told to go away, a client sends nothing more on this connection.
    let refused = async { while sender.send_request(request("GET", "/", "")).await.is_ok() {} };
    gate.add_permits(1);
    assert_eq!(waiting.join_next().await.unwrap().unwrap().text(), "late");
    refused.await;
    assert_eq!(draining.join_next().await.unwrap().unwrap(), 0);
    tasks.join_next().await.unwrap().unwrap().unwrap();

    // Who comes later gets one answer.
    let (mut sender, mut tasks) = connect(at).await;
    let answer = got(sender.send_request(request("GET", "/", "")).await.unwrap()).await;
    assert_eq!((answer.status, answer.header("skein-error")), (503, Some("PR01")));
    assert!(!answer.headers.contains_key("connection"));
    let ended = tokio::time::timeout(Duration::from_secs(20), tasks.join_next()).await;
    ended.expect("it was not told to go away").unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn http_8_a_request_that_its_client_resets_never_looks_whole_whatever_the_reason() {
    const NO_ERROR: u32 = 0;
    const CANCEL: u32 = 8;
    for (at, reason) in [(0, NO_ERROR), (1, NO_ERROR), (0, CANCEL), (1, CANCEL)] {
        let (ended, mut ends) = tokio::sync::mpsc::channel(1);
        let begun = Arc::new(Semaphore::new(0));
        let begins = Arc::clone(&begun);
        let server = Server::raw(move |request| {
            let (ended, begun) = (ended.clone(), Arc::clone(&begins));
            Box::pin(async move {
                let mut body = request.into_body();
                body.frame().await.unwrap().unwrap();
                begun.add_permits(1);
                ended.send(body.collect().await.is_ok()).await.unwrap();
                text(200, "")
            })
        })
        .await;
        let mut world = World::new(&["iad", "lhr"]);
        let app = world.app("hello");
        world.machine(at, app, server.address, HTTP);
        world.publish();
        let mut client = Client::connect(world.shared(0, 80).await).await;
        let head = block(&[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "hello.localhost"),
            (":path", "/"),
        ]);
        client.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
        client.send(&frame(DATA, 0, 1, b"half")).await;
        begun.acquire().await.unwrap().forget();
        client.send(&frame(RST_STREAM, 0, 1, &reason.to_be_bytes())).await;
        // A service that is dropped with its connection says nothing; one that is told of an end does.
        let whole = tokio::time::timeout(Duration::from_secs(20), ends.recv()).await.expect("it never ends");
        assert_ne!(whole, Some(true), "reason {reason} on node {at}");
    }
}
