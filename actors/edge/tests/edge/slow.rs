//! Clients that take their time.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::backend::{Server, get, read_head, text};
use crate::world::{HTTP, World};

/// An hour: longer than any test.
const NEVER: Duration = Duration::from_secs(3600);

async fn world(idle: Duration, head: Duration) -> (World, SocketAddr, Server) {
    let server = Server::answering(|_| text(200, "hello")).await;
    let mut world = World::with(&["iad"], |config| (config.keep_alive, config.head_timeout) = (idle, head));
    let app = world.app("hello");
    world.machine(0, app, server.address, HTTP);
    world.publish();
    let edge = world.shared(0, 80).await;
    (world, edge, server)
}

/// Everything until the edge closes.
async fn until_closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut rest)).await;
    read.expect("the edge should close it").unwrap();
    rest
}

/// SPEC HTTP-9: no limit for idle connections would end it.
#[tokio::test]
async fn http_9_a_head_that_does_not_end_is_cut_off_and_nothing_of_it_reaches_a_machine() {
    let (_world, edge, server) = world(NEVER, Duration::from_millis(300)).await;
    for begun in ["", "G", "GET / HTTP/1.1\r\nhost: hello.localhost\r\nx: "] {
        let mut stream = TcpStream::connect(edge).await.unwrap();
        stream.write_all(begun.as_bytes()).await.unwrap();
        assert_eq!(until_closed(&mut stream).await, b"", "{begun:?}");
    }
    assert!(server.seen().is_empty());
    assert_eq!(get(edge, "/").await.status, 200);
}

/// SPEC HTTP-6: no limit for heads would end it.
#[tokio::test]
async fn http_6_an_unused_connection_is_closed_after_its_last_response() {
    let (_world, edge, server) = world(Duration::from_millis(300), NEVER).await;
    let mut stream = TcpStream::connect(edge).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: hello.localhost\r\n\r\n").await.unwrap();
    let head = read_head(&mut stream).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    until_closed(&mut stream).await;
    assert_eq!(server.seen().len(), 1);
}
