//! Servers that stand for a Machine's process, and a client.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

pub type Body = BoxBody<Bytes, std::io::Error>;
type BoxFuture<T> = std::pin::Pin<Box<dyn Future<Output = T> + Send>>;

/// A request that reached a server.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: Method,
    pub target: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// An HTTP server; it ends with this value.
pub struct Server {
    pub address: SocketAddr,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    pub connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Server {
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Answers every request with `answer`, after reading its body.
    pub async fn answering(answer: impl Fn(&Seen) -> Response<Body> + Send + Sync + 'static) -> Self {
        let answer = Arc::new(answer);
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let all = Arc::clone(&seen);
        let mut server = Self::raw(move |request| {
            let (answer, all) = (Arc::clone(&answer), Arc::clone(&all));
            Box::pin(async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                let seen = Seen {
                    method: parts.method,
                    target: parts.uri.to_string(),
                    headers: parts.headers,
                    body,
                };
                all.lock().unwrap().push(seen.clone());
                answer(&seen)
            })
        })
        .await;
        server.seen = seen;
        server
    }

    /// Serves requests with `serve`, which reads their bodies itself.
    pub async fn raw(
        serve: impl Fn(Request<Incoming>) -> BoxFuture<Response<Body>> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections: Arc<AtomicUsize> = Arc::default();
        let (count, serve) = (Arc::clone(&connections), Arc::new(serve));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let serve = Arc::clone(&serve);
                open.spawn(async move {
                    let service = service_fn(move |request| {
                        let answer = serve(request);
                        async move { Ok::<_, Infallible>(answer.await) }
                    });
                    let served = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service);
                    // The proxy closes connections as it likes.
                    let _closed = served.await;
                });
            }
        });
        Self { address, seen: Arc::default(), connections, _tasks: tasks }
    }

    /// Sends back each byte as it comes.
    pub async fn echoing() -> Self {
        Self::bytes(|mut stream, _| {
            Box::pin(async move {
                while let Ok(byte) = stream.read_u8().await {
                    stream.write_u8(byte).await.unwrap_or(());
                }
            })
        })
        .await
    }

    /// Speaks for itself on each connection.
    pub async fn bytes(speak: impl Fn(TcpStream, usize) -> BoxFuture<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections: Arc<AtomicUsize> = Arc::default();
        let count = Arc::clone(&connections);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                open.spawn(speak(stream, count.fetch_add(1, Ordering::SeqCst)));
            }
        });
        Self { address, seen: Arc::default(), connections, _tasks: tasks }
    }
}

/// An address that refuses connections.
pub async fn nowhere() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

pub fn text(status: u16, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

/// An answer that carries a fly-replay instruction.
pub fn replay(instruction: &str) -> Response<Body> {
    let mut response = text(409, "elsewhere please");
    response.headers_mut().insert("fly-replay", instruction.parse().unwrap());
    response
}

/// What a client got.
#[derive(Debug, Clone)]
pub struct Got {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Got {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// Sends one request on a connection of its own.
pub async fn send(at: SocketAddr, request: Request<Body>) -> Got {
    tokio::time::timeout(Duration::from_secs(60), try_send(at, request)).await.unwrap().unwrap()
}

pub async fn try_send(at: SocketAddr, request: Request<Body>) -> Result<Got, hyper::Error> {
    let stream = TcpStream::connect(at).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { drop(connection.await) });
    let response = sender.send_request(request).await?;
    let (head, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(Got { status: head.status.as_u16(), headers: head.headers, body })
}

pub fn request(method: &str, target: &str, body: impl Into<Bytes>) -> Request<Body> {
    let request = Request::builder().method(method).uri(target).header("host", "hello.localhost");
    let body: Bytes = body.into();
    request.body(full(body)).unwrap()
}

pub async fn get(at: SocketAddr, target: &str) -> Got {
    send(at, request("GET", target, "")).await
}

/// Sends bytes as they are and reads until the proxy closes the connection.
pub async fn talk(at: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A reset after the answer is an end like any other.
    let ended = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(ended.is_ok(), "the connection stays open after {answer:?}");
    answer
}

/// Reads a request's head off a raw connection.
pub async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}
