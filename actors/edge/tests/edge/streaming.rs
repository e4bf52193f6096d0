//! Bodies flow both ways as they come, slow readers slow writers, and memory stays bounded
//! (SPEC HTTP-7).

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::Frame;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::backend::{Body, Server, request};
use crate::world::{HTTP, World, eventually};

/// A body that is fed by hand.
pub fn fed() -> (mpsc::Sender<Bytes>, Body) {
    let (sender, mut receiver) = mpsc::channel::<Bytes>(1);
    (sender, Feed(std::future::poll_fn(move |cx| receiver.poll_recv(cx))).boxed())
}

struct Feed<F>(F);

impl<F> http_body::Body for Feed<F>
where
    F: Future<Output = Option<Bytes>> + Unpin,
{
    type Data = Bytes;
    type Error = std::io::Error;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        Pin::new(&mut self.0).poll(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// Echoes the request's body as it comes.
async fn echo() -> Server {
    Server::raw(|request| {
        Box::pin(async move { Response::new(request.into_body().map_err(std::io::Error::other).boxed()) })
    })
    .await
}

#[tokio::test]
async fn http_7_each_chunk_arrives_before_the_next_is_sent_here_and_elsewhere() {
    for at in [0, 1] {
        let server = echo().await;
        let mut world = World::new(&["iad", "lhr"]);
        let app = world.app("hello");
        world.machine(at, app, server.address, HTTP);
        world.publish();
        let edge = world.shared(0, 80).await;
        let stream = TcpStream::connect(edge).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { drop(connection.await) });
        let (feed, body) = fed();
        let asked = request("POST", "/", "").map(|_| body);
        feed.send(Bytes::from_static(b"first")).await.unwrap();
        let response = sender.send_request(asked).await.unwrap();
        assert_eq!(response.status(), 200);
        let mut body = response.into_body();
        let mut next = async || body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(next().await, "first");
        for word in ["second", "third"] {
            feed.send(Bytes::from_static(word.as_bytes())).await.unwrap();
            assert_eq!(next().await, word, "node {at}");
        }
        drop(feed);
        assert!(body.frame().await.is_none());
    }
}

/// More than all windows and buffers of the way together hold.
const LARGE: u64 = 64 << 20;

#[tokio::test]
async fn http_7_a_client_that_does_not_read_stops_the_machine_from_sending() {
    for at in [0, 1] {
        let made = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&made);
        let server = Server::raw(move |_| {
            let count = Arc::clone(&count);
            Box::pin(async move {
                let chunk = Bytes::from(vec![b'q'; 64 << 10]);
                let stream = Feed(std::future::poll_fn(move |_| {
                    let before = count.fetch_add(chunk.len() as u64, Ordering::SeqCst);
                    Poll::Ready((before < LARGE).then(|| chunk.clone()))
                }));
                Response::new(stream.boxed())
            })
        })
        .await;
        let mut world = World::new(&["iad", "lhr"]);
        let app = world.app("hello");
        world.machine(at, app, server.address, HTTP);
        world.publish();
        let mut client = TcpStream::connect(world.shared(0, 80).await).await.unwrap();
        client
            .write_all(b"GET / HTTP/1.1\r\nhost: hello.localhost\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        // It has come to rest when ten looks see no more made.
        let (mut last, mut still) = (0, 0);
        eventually("the Machine stops sending", || {
            let now = made.load(Ordering::SeqCst);
            still = if now == last && now > 0 { still + 1 } else { 0 };
            last = now;
            still > 100
        })
        .await;
        assert!(last < LARGE / 2, "node {at}: {last} bytes were made for a client that reads nothing");
        let mut read = 0;
        let mut buffer = vec![0; 64 << 10];
        loop {
            match client.read(&mut buffer).await.unwrap() {
                0 => break,
                bytes => read += bytes as u64,
            }
        }
        assert!(read > LARGE, "node {at}: {read}");
    }
}

#[tokio::test]
async fn http_7_a_machine_that_does_not_read_stops_the_client_from_sending() {
    for at in [0, 1] {
        let server = Server::raw(|request| {
            Box::pin(async move {
                let _unread = request;
                std::future::pending().await
            })
        })
        .await;
        let mut world = World::new(&["iad", "lhr"]);
        let app = world.app("hello");
        world.machine(at, app, server.address, HTTP);
        world.publish();
        let client = TcpStream::connect(world.shared(0, 80).await).await.unwrap();
        let sent = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&sent);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut client = client;
            let head = format!("POST / HTTP/1.1\r\nhost: hello.localhost\r\ncontent-length: {LARGE}\r\n\r\n");
            client.write_all(head.as_bytes()).await.unwrap();
            let chunk = vec![b'q'; 64 << 10];
            while count.load(Ordering::SeqCst) < LARGE {
                client.write_all(&chunk).await.unwrap();
                count.fetch_add(chunk.len() as u64, Ordering::SeqCst);
            }
        });
        let (mut last, mut still) = (0, 0);
        eventually("the client stops sending", || {
            let now = sent.load(Ordering::SeqCst);
            still = if now == last && now > 0 { still + 1 } else { 0 };
            last = now;
            still > 100
        })
        .await;
        assert!(last < LARGE / 2, "node {at}: {last} bytes were taken for a Machine that reads nothing");
    }
}

#[tokio::test]
async fn http_7_a_large_body_goes_through_whole_both_ways() {
    for at in [0, 1] {
        let server = echo().await;
        let mut world = World::new(&["iad", "lhr"]);
        let app = world.app("hello");
        world.machine(at, app, server.address, HTTP);
        world.publish();
        let edge = world.shared(0, 80).await;
        let body: Bytes = (0..8u32 << 20).map(|index| (index / 7) as u8).collect::<Vec<_>>().into();
        let got = crate::backend::send(edge, request("POST", "/", body.clone())).await;
        assert_eq!(got.status, 200);
        assert!(got.body == body, "node {at}");
    }
}
