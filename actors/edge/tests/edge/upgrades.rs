//! WebSocket and other upgrades of HTTP/1.1 (SPEC HTTP-4, HTTP-6, HTTP-10, HTTP-11).

use std::net::SocketAddr;
use std::time::Duration;

use skein_core::MachineId;
use skein_core::machine::MachineState;
use skein_core::websocket::{GOING_AWAY, SERVICE_RESTART, close_frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::backend::{Server, get, read_head, replay, text};
use crate::world::{HTTP, World, eventually};

const ASK: &str = "GET /chat HTTP/1.1\r\nhost: hello.localhost\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const ANSWER: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// What a Machine says together with its answer: a whole frame.
const HELLO: &[u8] = b"\x81\x05hello";

/// Speaks an echo after its answer; says "bye" once its client has said all. Others get 200.
async fn echo() -> Server {
    Server::bytes(|mut stream, _| {
        Box::pin(async move {
            while let Some(head) = read_head(&mut stream).await {
                if !head.contains("upgrade: ") {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nplain").await.unwrap();
                    continue;
                }
                assert!(
                    head.contains("connection: upgrade\r\n") && head.contains("upgrade: websocket\r\n"),
                    "{head}"
                );
                assert!(head.contains("fly-request-id: "), "{head}");
                stream.write_all(&[ANSWER.as_bytes(), HELLO].concat()).await.unwrap();
                let (mut reader, mut writer) = stream.split();
                // Whoever is cut off meets that on both sides.
                let _cut_off = tokio::io::copy(&mut reader, &mut writer).await;
                let _gone = writer.write_all(b"bye").await;
                return;
            }
        })
    })
    .await
}

async fn world(
    regions: &[&str],
    at: usize,
    server: SocketAddr,
    services: &str,
) -> (World, SocketAddr, MachineId) {
    let mut world = World::new(regions);
    let app = world.app("hello");
    let machine = world.machine(at, app, server, services);
    world.publish();
    let edge = world.shared(0, 80).await;
    (world, edge, machine)
}

async fn expect(stream: &mut TcpStream, bytes: &[u8]) {
    let mut read = vec![0; bytes.len()];
    let reading = tokio::time::timeout(Duration::from_secs(20), stream.read_exact(&mut read)).await;
    reading.expect("nothing comes").unwrap();
    assert_eq!(String::from_utf8_lossy(&read), String::from_utf8_lossy(bytes));
}

async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    let reading = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await;
    reading.expect("it does not end").unwrap();
    rest
}

/// A connection that is upgraded; what was said with the answer is read.
async fn upgraded(edge: SocketAddr) -> TcpStream {
    let mut client = TcpStream::connect(edge).await.unwrap();
    client.write_all(ASK.as_bytes()).await.unwrap();
    let head = read_head(&mut client).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    expect(&mut client, HELLO).await;
    client
}

#[tokio::test]
async fn http_4_an_upgraded_connection_loses_no_byte_and_is_half_closed_here_and_elsewhere() {
    for at in [0, 1] {
        let server = echo().await;
        let (world, edge, machine) = world(&["iad", "lhr"], at, server.address, HTTP).await;
        let mut client = TcpStream::connect(edge).await.unwrap();
        // The client does not wait for the answer.
        client.write_all(format!("{ASK}early").as_bytes()).await.unwrap();
        let head = read_head(&mut client).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        for header in [
            "connection: upgrade\r\n",
            "upgrade: websocket\r\n",
            "sec-websocket-accept: ",
            "via: 1.1 skein\r\n",
        ] {
            assert!(head.contains(header), "{header} is missing in {head}");
        }
        assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{head}");
        expect(&mut client, &[HELLO, b"early"].concat()).await;
        let large = vec![b'x'; 300_000];
        let (mut reader, mut writer) = client.split();
        let mut back = vec![0; large.len()];
        let (sent, read) = tokio::join!(writer.write_all(&large), reader.read_exact(&mut back));
        sent.unwrap();
        read.unwrap();
        assert!(back == large);
        assert_eq!(world.in_flight(machine), 1, "it holds its slot");
        let open = if at == 0 { 1 } else { 2 };
        let all: usize = world.nodes.iter().map(|node| node.edge.counts().open).sum();
        assert_eq!(all, open, "and is counted as open at each node on its way");
        client.shutdown().await.unwrap();
        assert_eq!(rest(&mut client).await, b"bye");
        eventually("the slot is free", || world.in_flight(machine) == 0).await;
        eventually("nothing is open", || world.nodes.iter().all(|node| node.edge.counts().open == 0)).await;
        let metrics = world.nodes[0].edge.metrics();
        assert!(metrics.contains("skein_edge_cut_off_count{region=\"iad\",host=\"iad-1\"} 0"), "{metrics}");
    }
}

const TWO_LENGTHS: &str =
    "POST / HTTP/1.1\r\nhost: hello.localhost\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\nabc";

/// What a head may not say is nothing to those that speak another protocol.
#[tokio::test]
async fn http_8_an_upgraded_connection_may_repeat_a_length_and_no_other_may() {
    let server = echo().await;
    let (_world, edge, _) = world(&["iad"], 0, server.address, HTTP).await;
    let mut stream = upgraded(edge).await;
    stream.write_all(TWO_LENGTHS.as_bytes()).await.unwrap();
    expect(&mut stream, TWO_LENGTHS.as_bytes()).await;
    // Who does not wait for the answer may speak either: no byte is altered, none is passed on.
    let mut stream = TcpStream::connect(edge).await.unwrap();
    stream.write_all(&[ASK, TWO_LENGTHS].concat().into_bytes()).await.unwrap();
    let answer = String::from_utf8(rest(&mut stream).await).unwrap();
    assert!(!answer.contains("content-length") && !answer.contains(" 400 "), "{answer}");
    // Who asked, and got an answer of HTTP, goes on with HTTP.
    let mut stream = TcpStream::connect(edge).await.unwrap();
    let ask = "GET / HTTP/1.1\r\nhost: hello.localhost\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n";
    stream.write_all(ask.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    expect(&mut stream, b"plain").await;
    stream.write_all(TWO_LENGTHS.as_bytes()).await.unwrap();
    let answer = String::from_utf8(rest(&mut stream).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn http_4_an_upgrade_is_replayed_like_any_request() {
    for target in [0, 1] {
        let (first, second) = (Server::answering(|_| replay("instance=00000000000002")).await, echo().await);
        let mut world = World::new(&["iad", "lhr"]);
        let app = world.app("hello");
        world.machine(1 - target, app, first.address, HTTP);
        world.machine(target, app, second.address, HTTP);
        world.publish();
        world.change(MachineId::from_bits(2), |machine| machine.cordoned = false);
        let edge = world.shared(1 - target, 80).await;
        let mut client = upgraded(edge).await;
        client.write_all(b"after a replay").await.unwrap();
        expect(&mut client, b"after a replay").await;
        let seen = first.seen();
        assert_eq!((seen.len(), seen[0].header("upgrade")), (1, Some("websocket")));
    }
}

#[tokio::test]
async fn http_4_who_does_not_upgrade_answers_as_usual_and_http_is_no_protocol_to_change_to() {
    for at in [0, 1] {
        let server = Server::answering(|seen| {
            text(200, if seen.headers.contains_key("upgrade") { "asked" } else { "not asked" })
        })
        .await;
        let (_world, edge, _) = world(&["iad", "lhr"], at, server.address, HTTP).await;
        let mut client = TcpStream::connect(edge).await.unwrap();
        for (ask, said) in [
            (ASK.to_owned(), "asked"),
            (ASK.replace("websocket\r\n", "h2c\r\nhttp2-settings: AAA\r\n"), "not asked"),
            (ASK.replace("Upgrade\r\n", "close-not\r\n"), "not asked"),
        ] {
            client.write_all(ask.as_bytes()).await.unwrap();
            let head = read_head(&mut client).await.unwrap();
            assert!(head.starts_with("HTTP/1.1 200 ") && !head.contains("upgrade"), "{head}");
            expect(&mut client, said.as_bytes()).await;
        }
    }
}

#[tokio::test]
async fn http_4_a_change_that_nobody_asked_for_is_an_error_of_the_machine() {
    for at in [0, 1] {
        let server = Server::bytes(|mut stream, _| {
            Box::pin(async move {
                read_head(&mut stream).await;
                stream.write_all(ANSWER.as_bytes()).await.unwrap();
                read_head(&mut stream).await;
            })
        })
        .await;
        let (_world, edge, _) = world(&["iad", "lhr"], at, server.address, HTTP).await;
        let got = get(edge, "/").await;
        assert_eq!((got.status, got.header("skein-error")), (502, Some("PU01")), "node {at}");
    }
}

/// Says what a WebSocket server saw: the last frame's first bytes.
async fn websocket() -> (Server, tokio::sync::mpsc::Receiver<Vec<u8>>) {
    let (said, heard) = tokio::sync::mpsc::channel(100);
    let server = Server::bytes(move |mut stream, _| {
        let said = said.clone();
        Box::pin(async move {
            if read_head(&mut stream).await.is_none() {
                return;
            }
            // Half a frame of 5 bytes comes with the answer.
            stream.write_all(&[ANSWER.as_bytes(), HELLO, &[0x81, 5, b'f', b'i']].concat()).await.unwrap();
            let mut close = vec![0; 8];
            if stream.read_exact(&mut close).await.is_err() {
                close = Vec::new();
            }
            // The rest of its frame, and one that is too late.
            let _gone = stream
                .write_all(&[&b"rst"[..], &[0x81, 1, b'x'], &close_frame(SERVICE_RESTART, None)].concat())
                .await;
            said.send(close).await.unwrap();
        })
    })
    .await;
    (server, heard)
}

async fn last_word(heard: &mut tokio::sync::mpsc::Receiver<Vec<u8>>) -> Vec<u8> {
    let word = tokio::time::timeout(Duration::from_secs(20), heard.recv()).await;
    word.expect("the Machine hears nothing").unwrap()
}

/// A close frame that is masked, as a server must get it.
fn assert_close(frame: &[u8], code: u16) {
    assert!(frame.len() == 8, "{frame:?}");
    let mask = [frame[2], frame[3], frame[4], frame[5]];
    assert_eq!(frame, close_frame(code, Some(mask)));
}

#[tokio::test]
async fn http_11_websockets_of_a_machine_that_stops_or_is_suspended_are_closed_with_1012() {
    for (at, state) in
        [(0, MachineState::Stopping), (1, MachineState::Stopping), (0, MachineState::Suspending)]
    {
        let (server, mut heard) = websocket().await;
        let (mut world, edge, machine) = world(&["iad", "lhr"], at, server.address, HTTP).await;
        let mut client = upgraded(edge).await;
        expect(&mut client, &[0x81, 5, b'f', b'i']).await;
        world.change(machine, |machine| machine.cordoned = true);
        world.publish_local();
        world.change(machine, |machine| machine.state = state);
        world.publish_local();
        assert_close(&last_word(&mut heard).await, SERVICE_RESTART);
        // The frame that was under way is whole, the late one is gone, the close comes between them.
        expect(&mut client, b"rst").await;
        expect(&mut client, &close_frame(SERVICE_RESTART, None)).await;
        client.write_all(&close_frame(SERVICE_RESTART, Some([1, 2, 3, 4]))).await.unwrap();
        assert_eq!(rest(&mut client).await, b"");
        eventually("the slot is free for the stop", || world.in_flight(machine) == 0).await;
    }
}

#[tokio::test]
async fn http_11_a_cordon_leaves_websockets_alone_and_a_drain_closes_them_with_1012() {
    // The edge that drains, or the node of the Machine.
    for (at, drained) in [(0, 0), (1, 0), (1, 1)] {
        let (server, mut heard) = websocket().await;
        let (mut world, edge, machine) = world(&["iad", "lhr"], at, server.address, HTTP).await;
        let mut client = upgraded(edge).await;
        expect(&mut client, &[0x81, 5, b'f', b'i']).await;
        world.change(machine, |machine| machine.cordoned = true);
        world.publish();
        let edge = world.nodes[drained].edge.clone();
        let mut draining = tokio::task::JoinSet::new();
        draining.spawn(async move { edge.drain(Duration::from_secs(30)).await });
        assert_close(&last_word(&mut heard).await, SERVICE_RESTART);
        expect(&mut client, b"rst").await;
        expect(&mut client, &close_frame(SERVICE_RESTART, None)).await;
        client.write_all(&close_frame(SERVICE_RESTART, Some([1, 2, 3, 4]))).await.unwrap();
        assert_eq!(rest(&mut client).await, b"");
        assert_eq!(draining.join_next().await.unwrap().unwrap(), 0, "nothing was cut off");
    }
}

const IDLE: &str = r#"{"internal_port":8080,"concurrency":{"type":"requests"},
    "ports":[{"port":80,"handlers":["http"],"http_options":{"idle_timeout":1}},
             {"port":7,"http_options":{"idle_timeout":1}}]}"#;

/// SPEC HTTP-6, INCIDENTS C18.
#[tokio::test]
async fn http_6_idle_timeout_ends_upgraded_raw_and_unused_connections() {
    for at in [0, 1] {
        let server = echo().await;
        let mut world = World::new(&["iad", "lhr"]);
        let app = world.app("hello");
        let machine = world.machine(at, app, server.address, IDLE);
        let dedicated = world.dedicated(app);
        world.publish();
        let edge = world.shared(0, 80).await;
        let mut socket = upgraded(edge).await;
        let mut raw = TcpStream::connect(world.map(0, dedicated, 7).await).await.unwrap();
        let mut unused = TcpStream::connect(edge).await.unwrap();
        unused.write_all(b"GET / HTTP/1.1\r\nhost: hello.localhost\r\n\r\n").await.unwrap();
        read_head(&mut unused).await.unwrap();
        expect(&mut unused, b"plain").await;
        assert_eq!(rest(&mut socket).await, close_frame(GOING_AWAY, None));
        assert_eq!(rest(&mut raw).await, b"");
        assert_eq!(rest(&mut unused).await, b"");
        eventually("the slots are free", || world.in_flight(machine) == 0).await;
        let metrics = world.nodes[0].edge.metrics();
        assert!(metrics.contains("skein_edge_idle_count{region=\"iad\",host=\"iad-1\"} 2"), "{metrics}");
    }
}

#[tokio::test]
async fn http_6_without_a_limit_an_upgraded_connection_outlives_those_of_requests() {
    let server = echo().await;
    let mut world = World::with(&["iad"], |config| {
        (config.keep_alive, config.head_timeout) = (Duration::from_millis(100), Duration::from_millis(100));
    });
    let app = world.app("hello");
    world.machine(0, app, server.address, HTTP);
    world.publish();
    let edge = world.shared(0, 80).await;
    let mut socket = upgraded(edge).await;
    for _ in 0..3 {
        // A connection without a request is closed in its time; that is how time is told here.
        assert_eq!(rest(&mut TcpStream::connect(edge).await.unwrap()).await, b"");
    }
    socket.write_all(b"still there").await.unwrap();
    expect(&mut socket, b"still there").await;
}

/// INCIDENTS C20: an answer of HTTP/1.0 must not leave a connection behind that an upgrade then meets.
#[tokio::test]
async fn http_10_upgrades_beside_answers_of_http_1_0_never_fail() {
    let server = Server::bytes(|mut stream, _| {
        Box::pin(async move {
            let mut answered = false;
            while let Some(head) = read_head(&mut stream).await {
                // A server of HTTP/1.0 that keeps its connection does not know how to upgrade on it.
                if answered {
                    stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n").await.unwrap();
                    return;
                }
                if head.contains("upgrade: ") {
                    stream.write_all(&[ANSWER.as_bytes(), HELLO].concat()).await.unwrap();
                    let (mut reader, mut writer) = stream.split();
                    let _cut_off = tokio::io::copy(&mut reader, &mut writer).await;
                    return;
                }
                let answer = b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\nplain";
                stream.write_all(answer).await.unwrap();
                answered = true;
            }
        })
    })
    .await;
    let (_world, edge, _) = world(&["iad"], 0, server.address, HTTP).await;
    for turn in 0..2000 {
        assert_eq!(get(edge, "/").await.text(), "plain", "turn {turn}");
        let mut socket = upgraded(edge).await;
        socket.write_all(b"x").await.unwrap();
        expect(&mut socket, b"x").await;
    }
}
