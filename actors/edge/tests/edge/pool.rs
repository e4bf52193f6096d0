//! Connections to Machines: kept when they may be, never when they may not (SPEC HTTP-10).

use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;

use crate::backend::{Server, get, read_head, request, send, text};
use crate::world::{HTTP, World, eventually};

const CONNECTIONS: &str = r#"{"internal_port":8080,"ports":[{"port":80,"handlers":["http"]}]}"#;

async fn world(server: &Server, services: &str) -> (World, std::net::SocketAddr) {
    let mut world = World::new(&["iad"]);
    let app = world.app("hello");
    world.machine(0, app, server.address, services);
    world.publish();
    let edge = world.shared(0, 80).await;
    (world, edge)
}

#[tokio::test]
async fn http_10_requests_share_a_connection_and_connections_get_one_each() {
    for (services, expected) in [(HTTP, 1), (CONNECTIONS, 5)] {
        let server = Server::answering(|_| text(200, "hello")).await;
        let (world, edge) = world(&server, services).await;
        for _ in 0..5 {
            assert_eq!(send(edge, request("POST", "/", "body")).await.status, 200);
        }
        assert_eq!(server.connections(), expected);
        eventually("an unused connection is closed", || world.nodes[0].edge.counts().pooled == 0).await;
    }
}

#[tokio::test]
async fn http_10_a_connection_that_answered_http_1_0_or_close_or_spoke_unasked_is_never_used_again() {
    for answer in [
        "HTTP/1.0 200 OK\r\ncontent-length: 5\r\nconnection: keep-alive\r\n\r\nhello",
        "HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged",
    ] {
        let server = Server::bytes(move |mut stream, _| {
            Box::pin(async move {
                while read_head(&mut stream).await.is_some() {
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            })
        })
        .await;
        let (_world, edge) = world(&server, HTTP).await;
        for count in 1..=3 {
            let got = get(edge, "/").await;
            assert_eq!((got.status, got.text()), (200, "hello"), "{answer:?}");
            assert_eq!(server.connections(), count, "{answer:?}");
        }
    }
}

/// The Machine closes while the connection is unused: no request is lost to it.
#[tokio::test]
async fn http_10_a_kept_connection_that_the_machine_closed_costs_no_request() {
    let server = Server::bytes(|mut stream, _| {
        Box::pin(async move {
            if read_head(&mut stream).await.is_some() {
                // One answer that promises more, then the end.
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
                stream.write_all(answer).await.unwrap();
            }
        })
    })
    .await;
    let (_world, edge) = world(&server, HTTP).await;
    for _ in 0..20 {
        assert_eq!(get(edge, "/").await.status, 200);
    }
    assert_eq!(server.connections(), 20);
}

#[tokio::test]
async fn an_answer_before_the_body_was_sent_does_not_leave_half_a_request_on_a_kept_connection() {
    let early = Server::raw(|request| {
        Box::pin(async move {
            drop(request);
            text(200, "early")
        })
    })
    .await;
    let (_world, edge) = world(&early, HTTP).await;
    for _ in 0..5 {
        let sent = crate::backend::try_send(edge, request("POST", "/", Bytes::from(vec![b'z'; 3 << 20])));
        // The answer arrives, or a connection was closed under the rest of the body; nothing else.
        if let Ok(got) = tokio::time::timeout(Duration::from_secs(30), sent).await.unwrap() {
            assert!(got.text() == "early" || got.status == 502, "{}", got.text());
        }
        assert_eq!(get(edge, "/").await.text(), "early");
    }
}
