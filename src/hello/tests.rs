//! Every route of the sample app, over a real socket.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

use super::*;

/// A running app and one connection to it.
struct App {
    client: SendRequest<Full<Bytes>>,
    tasks: JoinSet<()>,
    stop: Option<oneshot::Sender<()>>,
}

struct Got {
    status: StatusCode,
    headers: hyper::HeaderMap,
    body: Bytes,
}

impl Got {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

impl App {
    async fn start(region: &str) -> Self {
        let hello = Hello {
            app: Some("hello".into()),
            machine: Some("0123456789abcd".into()),
            region: Some(region.into()),
            primary_region: Some("iad".into()),
            failing: AtomicBool::new(false),
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(Arc::new(hello), listener, async {
            let _dropped = stopped.await;
        }));
        let stream = TcpStream::connect(address).await.unwrap();
        let (client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tasks.spawn(async {
            let _closed = connection.with_upgrades().await;
        });
        Self { client, tasks, stop: Some(stop) }
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> Response<hyper::body::Incoming> {
        self.client.ready().await.unwrap();
        self.client.send_request(request).await.unwrap()
    }

    async fn ask(&mut self, method: Method, path: &str, headers: &[(&str, &str)], body: &'static str) -> Got {
        let mut request = Request::builder().method(method).uri(path).header("host", "hello.test");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.send(request.body(Full::from(body)).unwrap()).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Got { status: parts.status, headers: parts.headers, body }
    }

    /// Section 1.3 of RFC 6455 has this key and what it is answered with.
    async fn web_socket(&mut self) -> TokioIo<hyper::upgrade::Upgraded> {
        let mut request = Request::builder().uri("/ws").header("host", "hello.test");
        for (name, value) in [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ] {
            request = request.header(name, value);
        }
        let response = self.send(request.body(Full::default()).unwrap()).await;
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        TokioIo::new(hyper::upgrade::on(response).await.unwrap())
    }

    async fn get(&mut self, path: &str) -> Got {
        self.ask(Method::GET, path, &[], "").await
    }
}

#[tokio::test]
async fn get_root_says_where_it_runs_and_what_reached_it() {
    let mut app = App::start("lhr").await;
    let sent = [("Fly-Region", "nrt"), ("fly-request-id", "01X-nrt"), ("X-Two", "a"), ("x-two", "b")];
    let got = app.ask(Method::GET, "/?q=1", &sent, "").await;
    assert_eq!(got.status, 200);
    assert_eq!(got.headers["content-type"], "application/json");
    let json = got.json();
    assert_eq!(json["app"], "hello");
    assert_eq!(json["machine"], "0123456789abcd");
    assert_eq!(json["region"], "lhr");
    assert_eq!(json["edge_region"], "nrt");
    assert_eq!(json["request_id"], "01X-nrt");
    assert_eq!(json["headers"]["x-two"], "a, b");
    assert_eq!(json["headers"]["host"], "hello.test");
}

#[tokio::test]
async fn a_write_is_sent_to_the_primary_region_and_answered_there() {
    let mut replica = App::start("lhr").await;
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
        let got = replica.ask(method, "/", &[], "data").await;
        assert_eq!(got.headers["fly-replay"], "region=iad");
    }
    let got = replica.ask(Method::HEAD, "/", &[], "").await;
    assert_eq!((got.status.as_u16(), got.headers.get("fly-replay")), (200, None));
    let got = App::start("iad").await.ask(Method::POST, "/", &[], "data").await;
    assert_eq!((got.status.as_u16(), got.headers.get("fly-replay")), (200, None));
    assert_eq!(got.json()["region"], "iad");
}

#[tokio::test]
async fn echo_returns_the_body_and_is_for_post() {
    let mut app = App::start("iad").await;
    let got = app.ask(Method::POST, "/echo", &[("content-type", "text/x")], "what I said").await;
    assert_eq!(got.body, "what I said");
    assert_eq!(got.headers["content-type"], "text/x");
    let refused = app.get("/echo").await;
    assert_eq!(refused.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(refused.headers["allow"], "POST");
}

#[tokio::test]
async fn replay_gives_the_instruction_once() {
    let mut app = App::start("iad").await;
    let path = "/replay?to=region%3Dlhr%3Bstate%3Da+b";
    let got = app.get(path).await;
    assert_eq!(got.headers["fly-replay"], "region=lhr;state=a b");
    for name in ["fly-replay-src", "fly-replay-failed"] {
        let got = app.ask(Method::GET, path, &[(name, "instance=x")], "").await;
        assert_eq!(got.headers.get("fly-replay"), None);
        assert_eq!(got.json()["headers"][name], "instance=x");
    }
    assert_eq!(app.get("/replay").await.status, StatusCode::BAD_REQUEST);
    assert_eq!(app.get("/replay?to=a%0Ab").await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn status_answers_the_code_that_was_asked_for() {
    let mut app = App::start("iad").await;
    for code in [200u16, 204, 304, 404, 503, 599] {
        assert_eq!(app.get(&format!("/status/{code}")).await.status, code);
    }
    for path in ["/status/100", "/status/600", "/status/x", "/status/"] {
        assert_eq!(app.get(path).await.status, StatusCode::BAD_REQUEST, "{path}");
    }
}

#[tokio::test]
async fn bytes_answers_so_many_bytes_of_text() {
    let mut app = App::start("iad").await;
    for count in [0usize, 1, 65_536, 200_001] {
        let got = app.get(&format!("/bytes/{count}")).await;
        assert_eq!(got.body.len(), count);
        assert_eq!(got.headers["content-type"], "text/plain; charset=utf-8");
        assert_eq!(got.headers["content-length"], count.to_string());
    }
    assert_eq!(app.get("/bytes/-1").await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test(start_paused = true)]
async fn slow_answers_after_the_time_that_was_asked_for() {
    let mut app = App::start("iad").await;
    let before = tokio::time::Instant::now();
    assert_eq!(app.get("/slow?ms=90000").await.json()["app"], "hello");
    assert!(before.elapsed().as_secs() >= 90);
    assert_eq!(app.get("/slow").await.status, StatusCode::BAD_REQUEST);
    assert_eq!(app.get("/slow?ms=600001").await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn sse_sends_numbered_events() {
    let mut app = App::start("iad").await;
    let got = app.get("/sse?count=3&ms=1").await;
    assert_eq!(got.headers["content-type"], "text/event-stream");
    let text = String::from_utf8(got.body.to_vec()).unwrap();
    assert_eq!(text, "id: 1\ndata: {\"n\":1}\n\nid: 2\ndata: {\"n\":2}\n\nid: 3\ndata: {\"n\":3}\n\n");
    let endless = Request::builder().uri("/sse").header("host", "x").body(Full::default()).unwrap();
    let mut body = app.send(endless).await.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "id: 1\ndata: {\"n\":1}\n\n", "the first event does not wait");
}

#[tokio::test]
async fn health_fails_when_told_to_and_recovers() {
    let mut app = App::start("iad").await;
    assert_eq!(app.get("/health").await.status, 200);
    assert_eq!(app.ask(Method::POST, "/health?fail=true", &[], "").await.status, 200);
    assert_eq!(app.get("/health").await.status, 500);
    assert_eq!(app.ask(Method::POST, "/health", &[], "").await.status, 400);
    assert_eq!(app.ask(Method::POST, "/health?fail=false", &[], "").await.status, 200);
    assert_eq!(app.get("/health").await.status, 200);
}

#[tokio::test]
async fn ws_sends_back_every_frame_until_it_is_closed() {
    let mut app = App::start("iad").await;
    let mut stream = app.web_socket().await;
    for length in [0u16, 5, 125, 126, 300] {
        let text: Vec<u8> = (0..length).map(|n| n as u8).collect();
        stream.write_all(&masked(0x82, &text)).await.unwrap();
        let mut head = vec![0x82];
        if length < 126 {
            head.push(length as u8);
        } else {
            head.push(126);
            head.extend(length.to_be_bytes());
        }
        assert_eq!(read(&mut stream, head.len() + text.len()).await, [head, text].concat());
    }
    stream.write_all(&masked(0x89, b"here?")).await.unwrap();
    assert_eq!(read(&mut stream, 7).await, b"\x8a\x05here?");
    stream.write_all(&masked(0x88, &[0x03, 0xe8])).await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, [0x88, 2, 0x03, 0xe8], "closed with the code that it was closed with");
}

#[tokio::test]
async fn ws_refuses_what_a_client_may_not_send_and_goes_away_when_it_is_stopped() {
    let plain = [0x81, 1, b'x'].to_vec();
    let large = [&[0x82, 0xff][..], &(1u64 << 40).to_be_bytes(), &[0; 4]].concat();
    for (sent, code) in [(plain, 1002u16), (large, 1009), (Vec::new(), 1001)] {
        let mut app = App::start("iad").await;
        let mut stream = app.web_socket().await;
        stream.write_all(&sent).await.unwrap();
        if sent.is_empty() {
            drop(app.stop.take());
        }
        assert_eq!(read(&mut stream, 4).await, [&[0x88, 2][..], &code.to_be_bytes()].concat());
    }
    let mut app = App::start("iad").await;
    let got = app.get("/ws").await;
    assert_eq!(
        (got.status, &got.headers["upgrade"]),
        (StatusCode::UPGRADE_REQUIRED, &"websocket".parse().unwrap())
    );
}

fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [7, 11, 13, 17];
    let mut frame = vec![first];
    match u8::try_from(payload.len()) {
        Ok(short @ ..126) => frame.push(0x80 | short),
        _ => {
            frame.push(0x80 | 126);
            frame.extend((payload.len() as u16).to_be_bytes());
        }
    }
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

async fn read(stream: &mut (impl AsyncReadExt + Unpin), length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let mut app = App::start("iad").await;
    for path in ["/nothing", "//", "/status", "/bytes/1/2"] {
        assert_eq!(app.get(path).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn a_stop_lets_the_request_in_flight_finish() {
    let mut app = App::start("iad").await;
    let request = Request::builder().uri("/sse?count=4&ms=20").header("host", "x");
    let response = app.send(request.body(Full::default()).unwrap()).await;
    drop(app.stop.take());
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(body.ends_with(b"{\"n\":4}\n\n"));
    while app.tasks.join_next().await.is_some() {}
}
