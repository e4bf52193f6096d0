//! Trailers cross both ways, whatever the client speaks, here and through backhaul.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::backend::{Body, Server, read_head, talk};
use crate::http2::{connect, request};
use crate::world::{HTTP, World};

pub fn trailers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

/// A body of unknown length that ends with trailers.
pub fn with_trailers(text: &'static str, trailers: HeaderMap) -> Body {
    Late(vec![Frame::trailers(trailers), Frame::data(Bytes::from_static(text.as_bytes()))]).boxed()
}

/// Frames, the last one first.
struct Late(Vec<Frame<Bytes>>);

impl http_body::Body for Late {
    type Data = Bytes;
    type Error = std::io::Error;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        Poll::Ready(self.0.pop().map(Ok))
    }
}

/// Answers with trailers; keeps those that it gets.
async fn server() -> (Server, Arc<Mutex<Vec<(HeaderMap, Option<HeaderMap>)>>>) {
    let seen: Arc<Mutex<Vec<_>>> = Arc::default();
    let all = Arc::clone(&seen);
    let server = Server::raw(move |request| {
        let all = Arc::clone(&all);
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let collected = body.collect().await.unwrap();
            all.lock().unwrap().push((head.headers, collected.trailers().cloned()));
            let late = trailers(&[("x-answer", "42"), ("x-other", "7"), ("fly-replay", "region=lhr")]);
            let mut response = Response::new(with_trailers("body", late));
            response.headers_mut().insert("trailer", "x-answer, x-other, fly-replay".parse().unwrap());
            response
        })
    })
    .await;
    (server, seen)
}

async fn world(at: usize) -> (World, Server, Arc<Mutex<Vec<(HeaderMap, Option<HeaderMap>)>>>) {
    let (server, seen) = server().await;
    let mut world = World::new(&["iad", "lhr"]);
    let app = world.app("hello");
    world.machine(at, app, server.address, HTTP);
    world.publish();
    (world, server, seen)
}

const POST: &str = "POST / HTTP/1.1\r\nhost: hello.localhost\r\n";
const CHUNKED: &str = "trailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n4\r\nwiki\r\n0\r\nx-sum: 9\r\nfly-client-ip: 6.6.6.6\r\n\r\n";

#[tokio::test]
async fn http_1_trailers_cross_both_ways_over_http_1() {
    for at in [0, 1] {
        let (world, server, seen) = world(at).await;
        let edge = world.shared(0, 80).await;
        let asked = format!("{POST}te: trailers\r\nconnection: te, close\r\n{CHUNKED}");
        let answer = talk(edge, asked.as_bytes()).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("trailer: x-answer, x-other, fly-replay"), "{head}");
        assert_eq!(body, "4\r\nbody\r\n0\r\nx-answer: 42\r\nx-other: 7\r\n\r\n");
        // Who does not take trailers gets none.
        let asked = format!("{POST}connection: close\r\n{CHUNKED}");
        let answer = talk(edge, asked.as_bytes()).await;
        assert!(answer.ends_with("4\r\nbody\r\n0\r\n\r\n"), "{answer}");
        for (headers, late) in seen.lock().unwrap().iter() {
            assert_eq!(headers["trailer"], "x-sum");
            assert_eq!(late, &Some(trailers(&[("x-sum", "9")])));
        }
        // The connection that carried trailers is used again.
        assert_eq!(server.connections(), 1, "node {at}");
        let metrics = world.nodes[0].edge.metrics();
        assert!(metrics.contains("skein_edge_cut_off_count{region=\"iad\",host=\"iad-1\"} 0"), "{metrics}");
    }
}

#[tokio::test]
async fn http_1_trailers_cross_both_ways_between_http_2_and_http_1() {
    for at in [0, 1] {
        let (world, _server, seen) = world(at).await;
        let (mut sender, _tasks) = connect(world.shared(0, 80).await).await;
        let late = trailers(&[("x-sum", "9"), ("host", "other.localhost")]);
        let mut asked = request("POST", "/", "").map(|_| with_trailers("wiki", late));
        asked.headers_mut().insert("te", "trailers".parse().unwrap());
        asked.headers_mut().insert("trailer", "x-sum".parse().unwrap());
        let response = sender.send_request(asked).await.unwrap();
        let collected = response.into_body().collect().await.unwrap();
        assert_eq!(collected.trailers(), Some(&trailers(&[("x-answer", "42"), ("x-other", "7")])));
        assert_eq!(collected.to_bytes(), "body");
        let seen = seen.lock().unwrap().clone();
        assert_eq!(seen[0].0["te"], "trailers");
        assert_eq!(seen[0].1, Some(trailers(&[("x-sum", "9")])));
    }
}

#[tokio::test]
async fn http_1_a_body_that_breaks_off_before_its_trailers_is_not_whole() {
    for at in [0, 1] {
        let server = Server::bytes(|mut stream, _| {
            Box::pin(async move {
                read_head(&mut stream).await;
                let half = b"HTTP/1.1 200 OK\r\ntrailer: x-answer\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nx-ans";
                stream.write_all(half).await.unwrap();
            })
        })
        .await;
        let mut world = World::new(&["iad", "lhr"]);
        let app = world.app("hello");
        world.machine(at, app, server.address, HTTP);
        world.publish();
        let edge = world.shared(0, 80).await;
        let (mut sender, _tasks) = connect(edge).await;
        // A reset that comes at once hides the head from the library.
        if let Ok(response) = sender.send_request(request("GET", "/", "")).await {
            assert!(response.into_body().collect().await.is_err(), "over HTTP/2");
        }
        let mut stream = TcpStream::connect(edge).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: hello.localhost\r\nte: trailers\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        // The end may be a reset.
        let _reset = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        assert!(!answer.ends_with("0\r\n\r\n"), "{answer}");
    }
}
