//! Machines that speak HTTP/2 by prior knowledge, gRPC among them (SPEC HTTP-1, HTTP-10).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::backend::{Body, Server, full, talk};
use crate::http2::{connect, request};
use crate::trailers::{trailers, with_trailers};
use crate::world::{World, eventually};

const H2C: &str = r#"{"internal_port":8080,"concurrency":{"type":"requests"},
    "ports":[{"port":80,"handlers":["http"],"http_options":{"h2_backend":true}}]}"#;

type BoxFuture<T> = std::pin::Pin<Box<dyn Future<Output = T> + Send>>;

/// An HTTP/2 server that says on how many connections it was met.
struct Machine {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Machine {
    /// Hands each connection and its number to `serve`.
    async fn accepting(serve: impl Fn(TcpStream, usize) -> BoxFuture<()> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections: Arc<AtomicUsize> = Arc::default();
        let count = Arc::clone(&connections);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                open.spawn(serve(stream, count.fetch_add(1, Ordering::SeqCst)));
            }
        });
        Self { address, connections, _tasks: tasks }
    }

    async fn answering(
        answer: impl Fn(Request<Incoming>) -> BoxFuture<Response<Body>> + Send + Sync + 'static,
    ) -> Self {
        let answer = Arc::new(answer);
        Self::accepting(move |stream, _| {
            let answer = Arc::clone(&answer);
            Box::pin(async move {
                let service = service_fn(move |request| {
                    let answered = answer(request);
                    async move { Ok::<_, Infallible>(answered.await) }
                });
                let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service);
                // The proxy closes connections as it likes.
                let _closed = served.await;
            })
        })
        .await
    }

    /// Uses the library itself: `serve` gets each request of each connection, with both numbers.
    async fn by_hand(
        serve: impl Fn(usize, usize, h2::server::SendResponse<Bytes>) -> bool + Send + Sync + 'static,
    ) -> Self {
        let serve = Arc::new(serve);
        Self::accepting(move |stream, connection| {
            let serve = Arc::clone(&serve);
            Box::pin(async move {
                let Ok(mut requests) = h2::server::handshake(stream).await else { return };
                let mut count = 0;
                while let Some(Ok((_, respond))) = requests.accept().await {
                    if serve(connection, count, respond) {
                        requests.graceful_shutdown();
                    }
                    count += 1;
                }
            })
        })
        .await
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Two nodes, the Machine on the node of that index; the client is at the first.
async fn world(at: usize, address: SocketAddr) -> (World, SocketAddr) {
    let mut world = World::new(&["iad", "lhr"]);
    let app = world.app("hello");
    world.machine(at, app, address, H2C);
    world.publish();
    let edge = world.shared(0, 80).await;
    (world, edge)
}

fn grpc(body: Body) -> Request<Body> {
    let mut asked = request("POST", "/hello.Hello/Say", "").map(|_| body);
    asked.headers_mut().insert("content-type", "application/grpc+proto".parse().unwrap());
    asked.headers_mut().insert("te", "trailers".parse().unwrap());
    asked
}

/// A body that is fed by hand.
fn fed() -> (mpsc::Sender<Bytes>, Body) {
    let (sender, mut receiver) = mpsc::channel::<Bytes>(1);
    let stream = Fed(std::future::poll_fn(move |cx| receiver.poll_recv(cx)));
    (sender, stream.boxed())
}

struct Fed<F>(F);

impl<F: Future<Output = Option<Bytes>> + Unpin> http_body::Body for Fed<F> {
    type Data = Bytes;
    type Error = std::io::Error;
    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        std::pin::Pin::new(&mut self.0).poll(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[tokio::test]
async fn http_1_a_unary_call_of_grpc_reaches_a_machine_here_and_elsewhere() {
    for at in [0, 1] {
        let seen: Arc<Mutex<Vec<(Version, String, HeaderMap)>>> = Arc::default();
        let all = Arc::clone(&seen);
        let machine = Machine::answering(move |request| {
            let all = Arc::clone(&all);
            Box::pin(async move {
                let (head, body) = request.into_parts();
                all.lock().unwrap().push((head.version, head.uri.to_string(), head.headers));
                let body = body.collect().await.unwrap().to_bytes();
                assert_eq!(body, "question");
                let status = trailers(&[("grpc-status", "0"), ("grpc-message", "fine")]);
                let mut response = Response::new(with_trailers("answer", status));
                response.headers_mut().insert("content-type", "application/grpc+proto".parse().unwrap());
                response
            })
        })
        .await;
        let (_world, edge) = world(at, machine.address).await;
        let (mut sender, _tasks) = connect(edge).await;
        let response = sender.send_request(grpc(full("question"))).await.unwrap();
        assert_eq!(response.headers()["content-type"], "application/grpc+proto");
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.trailers(), Some(&trailers(&[("grpc-status", "0"), ("grpc-message", "fine")])));
        assert_eq!(body.to_bytes(), "answer");
        let (version, uri, headers) = seen.lock().unwrap()[0].clone();
        assert_eq!((version, &*uri), (Version::HTTP_2, "http://hello.localhost/hello.Hello/Say"));
        assert_eq!(headers["te"], "trailers");
        assert!(!headers.contains_key("connection") && !headers.contains_key("host"), "{headers:?}");
        // Over HTTP/1.1 too, for those who take trailers.
        let asked = "POST / HTTP/1.1\r\nhost: hello.localhost\r\nte: trailers\r\nconnection: te, close\r\ncontent-length: 8\r\n\r\nquestion";
        let answer = talk(edge, asked.as_bytes()).await;
        let status = "6\r\nanswer\r\n0\r\ngrpc-status: 0\r\ngrpc-message: fine\r\n\r\n";
        assert!(answer.ends_with(status), "{answer}");
        assert_eq!(machine.connections(), 1);
    }
}

#[tokio::test]
async fn http_1_streams_of_grpc_flow_both_ways_at_once() {
    for at in [0, 1] {
        let machine = Machine::answering(|request| {
            Box::pin(async move {
                // Each message comes back before the next is sent; the trailers of the request too.
                Response::new(request.into_body().map_err(std::io::Error::other).boxed())
            })
        })
        .await;
        let (_world, edge) = world(at, machine.address).await;
        let (mut sender, _tasks) = connect(edge).await;
        let (feed, body) = fed();
        let response = sender.send_request(grpc(body)).await.unwrap();
        let mut body = response.into_body();
        for word in ["one", "two", "three"] {
            feed.send(Bytes::from_static(word.as_bytes())).await.unwrap();
            let frame = body.frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), word, "node {at}");
        }
        drop(feed);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "");
    }
}

#[tokio::test]
async fn http_10_many_requests_share_a_connection_and_an_unused_one_is_closed() {
    let gate = Arc::new(Semaphore::new(0));
    let opens = Arc::clone(&gate);
    let ended: Arc<AtomicUsize> = Arc::default();
    let (waiting, all) = (Arc::clone(&ended), Arc::clone(&ended));
    let machine = Machine::answering(move |_| {
        let (gate, waiting) = (Arc::clone(&opens), Arc::clone(&waiting));
        Box::pin(async move {
            waiting.fetch_add(1, Ordering::SeqCst);
            gate.acquire().await.unwrap().forget();
            Response::new(full("late"))
        })
    })
    .await;
    let mut world = World::with(&["iad"], |config| {
        config.upstream_idle = std::time::Duration::from_millis(100);
        config.http2.streams = 200;
    });
    let app = world.app("hello");
    world.machine(0, app, machine.address, H2C);
    world.publish();
    let edge = world.shared(0, 80).await;
    let (sender, _tasks) = connect(edge).await;
    let mut calls = JoinSet::new();
    for _ in 0..90 {
        let mut sender = sender.clone();
        calls.spawn(async move { sender.send_request(request("GET", "/", "")).await.unwrap().status() });
    }
    eventually("all are at the Machine at once", || all.load(Ordering::SeqCst) == 90).await;
    assert_eq!(machine.connections(), 1);
    for _ in 0..60 {
        let mut sender = sender.clone();
        calls.spawn(async move { sender.send_request(request("GET", "/", "")).await.unwrap().status() });
    }
    eventually("the rest too", || all.load(Ordering::SeqCst) == 150).await;
    assert_eq!(machine.connections(), 2, "a connection carries a hundred");
    gate.add_permits(150);
    while let Some(status) = calls.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    assert_eq!(world.in_flight(skein_core::MachineId::from_bits(1)), 0);
}

#[tokio::test]
async fn http_10_a_machine_that_goes_away_is_dialled_again_and_no_request_is_lost() {
    for at in [0, 1] {
        // Each connection says GOAWAY after its third request, which it answers.
        let machine = Machine::by_hand(|_, count, mut respond| {
            let mut sending = respond.send_response(Response::new(()), false).unwrap();
            sending.send_data(Bytes::from_static(b"hello"), true).unwrap();
            count == 2
        })
        .await;
        let (_world, edge) = world(at, machine.address).await;
        let (sender, _tasks) = connect(edge).await;
        for turn in 0..20 {
            let mut calls = JoinSet::new();
            for _ in 0..5 {
                let mut sender = sender.clone();
                calls.spawn(async move {
                    let response = sender.send_request(request("POST", "/", "x")).await.unwrap();
                    (response.status().as_u16(), response.into_body().collect().await.unwrap().to_bytes())
                });
            }
            while let Some(call) = calls.join_next().await {
                assert_eq!(call.unwrap(), (200, Bytes::from_static(b"hello")), "turn {turn}, node {at}");
            }
        }
        assert!(machine.connections() > 10, "{}", machine.connections());
    }
}

#[tokio::test]
async fn http_10_a_refused_stream_is_sent_again_whatever_its_method_and_a_reset_one_is_not() {
    for at in [0, 1] {
        let machine = Machine::by_hand(|_, count, mut respond| {
            if count == 0 {
                respond.send_reset(h2::Reason::REFUSED_STREAM);
            } else {
                let mut sending = respond.send_response(Response::new(()), false).unwrap();
                sending.send_data(Bytes::from_static(b"second"), true).unwrap();
            }
            false
        })
        .await;
        let (_world, edge) = world(at, machine.address).await;
        let (mut sender, _tasks) = connect(edge).await;
        let response = sender.send_request(request("POST", "/", "once")).await.unwrap();
        assert_eq!(response.status(), 200, "node {at}");
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "second");

        let seen: Arc<AtomicUsize> = Arc::default();
        let count = Arc::clone(&seen);
        let machine = Machine::by_hand(move |_, _, mut respond| {
            count.fetch_add(1, Ordering::SeqCst);
            respond.send_reset(h2::Reason::INTERNAL_ERROR);
            false
        })
        .await;
        let (_world, edge) = world(at, machine.address).await;
        let (mut sender, _tasks) = connect(edge).await;
        let response = sender.send_request(request("POST", "/", "once")).await.unwrap();
        assert_eq!(
            (response.status().as_u16(), response.headers()["skein-error"].to_str().unwrap()),
            (502, "PU02")
        );
        assert_eq!(seen.load(Ordering::SeqCst), 1, "it may have had an effect");
    }
}

/// INCIDENTS X26; also when the reset says that nothing is wrong.
#[tokio::test]
async fn http_7_a_response_that_a_reset_cuts_short_is_not_whole() {
    for (at, reason) in [(0, h2::Reason::CANCEL), (0, h2::Reason::NO_ERROR), (1, h2::Reason::NO_ERROR)] {
        let machine = Machine::by_hand(move |_, _, mut respond| {
            let mut sending = respond.send_response(Response::new(()), false).unwrap();
            sending.send_data(Bytes::from_static(b"half"), false).unwrap();
            sending.send_reset(reason);
            false
        })
        .await;
        let (_world, edge) = world(at, machine.address).await;
        let (mut sender, _tasks) = connect(edge).await;
        if let Ok(response) = sender.send_request(request("POST", "/", "")).await {
            assert_eq!(
                response.status(),
                if response.headers().contains_key("skein-error") { 502 } else { 200 }
            );
            let whole = response.status() == 200 && response.into_body().collect().await.is_ok();
            assert!(!whole, "{reason:?} on node {at}");
        }
    }
}

#[tokio::test]
async fn http_10_a_machine_that_does_not_speak_http_2_is_a_fault_that_is_named() {
    let server = Server::answering(|_| crate::backend::text(200, "HTTP/1")).await;
    let (_world, edge) = world(0, server.address).await;
    let (mut sender, _tasks) = connect(edge).await;
    let response = sender.send_request(request("GET", "/", "")).await.unwrap();
    assert_eq!(response.status(), 502);
    assert!(response.headers().contains_key("skein-error"));
}
