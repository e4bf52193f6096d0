//! Responses that the proxy compresses (SPEC HTTP-5).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_compression::tokio::write::{BrotliDecoder, GzipDecoder, ZlibDecoder, ZstdDecoder};
use bytes::Bytes;
use http::Response;
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::backend::{Body, Got, Server, read_head, request, send, text};
use crate::streaming::fed;
use crate::world::{HTTP, World, eventually};

const CODINGS: [&str; 4] = ["zstd", "br", "gzip", "deflate"];

/// What a browser would make of a compressed body.
async fn decoded(coding: &str, body: &[u8]) -> std::io::Result<Vec<u8>> {
    async fn all<D: AsyncWrite + Unpin>(mut decoder: D, body: &[u8]) -> std::io::Result<D> {
        decoder.write_all(body).await?;
        decoder.shutdown().await?;
        Ok(decoder)
    }
    let out = Vec::new();
    Ok(match coding {
        "zstd" => all(ZstdDecoder::new(out), body).await?.into_inner(),
        "br" => all(BrotliDecoder::new(out), body).await?.into_inner(),
        "gzip" => all(GzipDecoder::new(out), body).await?.into_inner(),
        "deflate" => all(ZlibDecoder::new(out), body).await?.into_inner(),
        _ => panic!("{coding}"),
    })
}

fn asking(method: &str, coding: &str) -> http::Request<Body> {
    let mut asked = request(method, "/", "");
    asked.headers_mut().insert("accept-encoding", coding.parse().unwrap());
    asked
}

fn page(kind: &str, length: usize) -> Response<Body> {
    let words = "the quick brown fox jumps over the lazy dog; ".bytes().cycle().take(length);
    let mut response = text(200, words.collect::<Vec<u8>>());
    response.headers_mut().insert("content-type", kind.parse().unwrap());
    response
}

async fn world(at: usize, server: &Server, services: &str) -> (World, SocketAddr) {
    let mut world = World::new(&["iad", "lhr"]);
    let app = world.app("hello");
    world.machine(at, app, server.address, services);
    world.publish();
    let edge = world.shared(0, 80).await;
    (world, edge)
}

#[tokio::test]
async fn http_5_each_coding_arrives_as_the_app_sent_it_here_and_elsewhere() {
    let server = Server::answering(|_| {
        let mut response = page("text/html", 300_000);
        for (name, value) in [("etag", "\"1\""), ("accept-ranges", "bytes"), ("vary", "origin")] {
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        response
    })
    .await;
    for at in [0, 1] {
        let (_world, edge) = world(at, &server, HTTP).await;
        let plain = send(edge, request("GET", "/", "")).await;
        assert_eq!((plain.body.len(), plain.header("content-length")), (300_000, Some("300000")));
        assert_eq!((plain.header("content-encoding"), plain.header("etag")), (None, Some("\"1\"")));
        assert!(varies(&plain), "another client gets it compressed");
        for coding in CODINGS {
            let got = send(edge, asking("GET", coding)).await;
            assert_eq!((got.status, got.header("content-encoding")), (200, Some(coding)));
            assert!(got.body.len() < 30_000, "{coding}: {}", got.body.len());
            assert_eq!(decoded(coding, &got.body).await.unwrap(), plain.body, "{coding} on node {at}");
            assert_eq!((got.header("content-length"), got.header("accept-ranges")), (None, None));
            assert_eq!(got.header("etag"), Some("W/\"1\""));
            assert!(varies(&got) && got.headers.get_all("vary").iter().count() == 2);
        }
        assert_eq!(server.seen().last().unwrap().header("accept-encoding"), Some("deflate"));
    }
}

fn varies(got: &Got) -> bool {
    got.headers.get_all("vary").iter().any(|name| name == "Accept-Encoding")
}

/// What is left alone is a table in `skein-core`; here that the proxy asks it, and with what.
#[tokio::test]
async fn http_5_what_is_to_be_left_alone_arrives_as_it_is() {
    const OFF: &str = r#"{"internal_port":8080,"concurrency":{"type":"requests"},
        "ports":[{"port":80,"handlers":["http"],"http_options":{"compress":false}}]}"#;
    let server = Server::answering(|seen| {
        let short = seen.target == "/short";
        let mut response = page("text/plain", if short { 1023 } else { 1024 });
        let mut set = |name: &'static str, value: &str| {
            response.headers_mut().insert(name, value.parse().unwrap());
        };
        match &*seen.target {
            "/none" => set("content-encoding", "none"),
            "/own" => set("content-encoding", "own"),
            "/image" => set("content-type", "image/png"),
            "/part" => {
                set("content-range", "bytes 0-1023/2000");
                *response.status_mut() = http::StatusCode::PARTIAL_CONTENT;
            }
            _ => {}
        }
        response
    })
    .await;
    let (_world, edge) = world(0, &server, HTTP).await;
    let ask = async |method: &str, target: &str| {
        let mut asked = asking(method, "gzip");
        *asked.uri_mut() = target.parse().unwrap();
        send(edge, asked).await
    };
    let got = ask("GET", "/").await;
    assert_eq!((got.header("content-encoding"), got.header("content-length")), (Some("gzip"), None));
    for (target, coding) in
        [("/none", None), ("/own", Some("own")), ("/image", None), ("/part", None), ("/short", None)]
    {
        let got = ask("GET", target).await;
        assert_eq!(got.header("content-encoding"), coding, "{target}");
        assert!(got.body.starts_with(b"the quick") && got.body.len() >= 1023, "{target}");
        assert!(got.header("content-length").is_some() && !varies(&got), "{target}");
    }
    let got = ask("HEAD", "/").await;
    assert_eq!((got.header("content-encoding"), got.header("content-length")), (None, Some("1024")));
    let (_world, edge) = world(0, &server, OFF).await;
    let got = send(edge, asking("GET", "gzip")).await;
    assert_eq!((got.header("content-encoding"), got.body.len(), varies(&got)), (None, 1024, false));
}

/// SPEC HTTP-7: what the app sent is there before it sends more.
#[tokio::test]
async fn http_5_a_slow_stream_arrives_as_it_comes() {
    for at in [0, 1] {
        for coding in CODINGS {
            let (feed, body) = fed();
            let body = std::sync::Mutex::new(Some(body));
            let server = Server::answering(move |_| {
                let mut response = Response::new(body.lock().unwrap().take().unwrap());
                response.headers_mut().insert("content-type", "application/json".parse().unwrap());
                response
            })
            .await;
            let (_world, edge) = world(at, &server, HTTP).await;
            let (mut sender, _tasks) = connected(edge).await;
            let mut body = sender.send_request(asking("GET", coding)).await.unwrap().into_body();
            let mut arrived = Vec::new();
            for word in ["[1", ",22", ",333"] {
                feed.send(Bytes::from_static(word.as_bytes())).await.unwrap();
                let expected = decoded_start(coding, &arrived).await + word;
                while decoded_start(coding, &arrived).await != expected {
                    arrived.extend(soon(body.frame()).await.unwrap().unwrap().into_data().unwrap());
                }
            }
            drop(feed);
            arrived.extend(body.collect().await.unwrap().to_bytes());
            assert_eq!(decoded(coding, &arrived).await.unwrap(), b"[1,22,333", "{coding} on node {at}");
        }
    }
}

/// What a browser shows of a body that is not there to its end.
async fn decoded_start(coding: &str, body: &[u8]) -> String {
    async fn start<D: AsyncWrite + Unpin>(mut decoder: D, body: &[u8]) -> D {
        decoder.write_all(body).await.unwrap();
        decoder.flush().await.unwrap();
        decoder
    }
    let out = Vec::new();
    let bytes = match coding {
        "zstd" => start(ZstdDecoder::new(out), body).await.into_inner(),
        "br" => start(BrotliDecoder::new(out), body).await.into_inner(),
        "gzip" => start(GzipDecoder::new(out), body).await.into_inner(),
        "deflate" => start(ZlibDecoder::new(out), body).await.into_inner(),
        _ => panic!("{coding}"),
    };
    String::from_utf8(bytes).unwrap()
}

/// Whoever gets half a body must be able to tell, by the message and by the coding.
#[tokio::test]
async fn http_5_a_body_that_breaks_off_gets_no_proper_end() {
    for at in [0, 1] {
        for (framing, part) in
            [("content-length: 2000", "hello"), ("transfer-encoding: chunked", "5\r\nhello\r\n")]
        {
            let break_off = Arc::new(Notify::new());
            let broken = Arc::clone(&break_off);
            let server = Server::bytes(move |mut stream, _| {
                let broken = Arc::clone(&broken);
                Box::pin(async move {
                    if read_head(&mut stream).await.is_some() {
                        let head =
                            format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n{framing}\r\n\r\n");
                        stream.write_all((head + part).as_bytes()).await.unwrap();
                        broken.notified().await;
                    }
                })
            })
            .await;
            let (_world, edge) = world(at, &server, HTTP).await;
            for coding in CODINGS {
                let (mut sender, _tasks) = connected(edge).await;
                let mut body = sender.send_request(asking("GET", coding)).await.unwrap().into_body();
                let mut arrived = Vec::new();
                while decoded_start(coding, &arrived).await != "hello" {
                    arrived.extend(soon(body.frame()).await.unwrap().unwrap().into_data().unwrap());
                }
                break_off.notify_one();
                let ended = loop {
                    match soon(body.frame()).await {
                        Some(Ok(frame)) => arrived.extend(frame.into_data().unwrap()),
                        ended => break ended,
                    }
                };
                assert!(matches!(ended, Some(Err(_))), "{coding} on node {at}: {ended:?}");
                assert!(decoded(coding, &arrived).await.is_err(), "{coding} on node {at}");
            }
        }
    }
}

async fn soon<T>(awaited: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), awaited).await.expect("nothing comes")
}

/// A connection of a client, and the task that drives it.
async fn connected(edge: SocketAddr) -> (hyper::client::conn::http1::SendRequest<Body>, JoinSet<()>) {
    let stream = TcpStream::connect(edge).await.unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { drop(connection.await) });
    (sender, tasks)
}

#[tokio::test]
async fn http_5_a_client_of_http_1_0_gets_it_until_the_connection_ends() {
    let server = Server::answering(|_| page("text/plain", 2000)).await;
    let (_world, edge) = world(0, &server, HTTP).await;
    let asked =
        b"GET / HTTP/1.0\r\nhost: hello.localhost\r\naccept-encoding: gzip\r\nconnection: keep-alive\r\n\r\n";
    let mut stream = TcpStream::connect(edge).await.unwrap();
    stream.write_all(asked).await.unwrap();
    let mut answer = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer).await.unwrap();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    assert!(head.contains("content-encoding: gzip") && !head.contains("transfer-encoding"), "{head}");
    assert_eq!(decoded("gzip", &answer[end..]).await.unwrap().len(), 2000);
}

#[tokio::test]
async fn http_5_trailers_follow_a_compressed_body() {
    let server = Server::bytes(|mut stream, _| {
        Box::pin(async move {
            while read_head(&mut stream).await.is_some() {
                let answer = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\
                    trailer: x-sum\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 5\r\n\r\n";
                // The proxy may have closed already.
                let _sent = stream.write_all(answer.as_bytes()).await;
            }
        })
    })
    .await;
    for at in [0, 1] {
        let (_world, edge) = world(at, &server, HTTP).await;
        let (mut sender, _tasks) = connected(edge).await;
        let mut asked = asking("GET", "gzip");
        asked.headers_mut().insert("te", "trailers".parse().unwrap());
        let response = sender.send_request(asked).await.unwrap();
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["x-sum"], "5", "node {at}");
        assert_eq!(decoded("gzip", &body.to_bytes()).await.unwrap(), b"hello");
    }
}

/// Memory stays bounded: who comes when all places are taken gets the body as it is.
#[tokio::test]
async fn http_5_there_are_only_so_many_places() {
    let (feed, body) = fed();
    let bodies = std::sync::Mutex::new(vec![page("text/plain", 2000).into_body(), body]);
    let server = Server::answering(move |_| {
        let body = bodies.lock().unwrap().pop().unwrap_or_else(|| page("text/plain", 2000).into_body());
        let length = body.size_hint().exact();
        let mut response = page("text/plain", 0).map(|_| body);
        if length.is_none() {
            response.headers_mut().remove("content-length");
        }
        response
    })
    .await;
    let mut world = World::with(&["iad"], |config| config.max_compressions = 1);
    let app = world.app("hello");
    world.machine(0, app, server.address, HTTP);
    world.publish();
    let edge = world.shared(0, 80).await;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { send(edge, asking("GET", "gzip")).await });
    eventually("the first has begun", || server.seen().len() == 1).await;
    feed.send(Bytes::from_static(b"first")).await.unwrap();
    feed.send(Bytes::from_static(b"second")).await.unwrap();
    feed.send(Bytes::from_static(b"third")).await.unwrap();
    let got = send(edge, asking("GET", "gzip")).await;
    assert_eq!((got.header("content-encoding"), got.header("content-length")), (None, Some("2000")));
    assert!(varies(&got) && got.body.starts_with(b"the quick"));
    drop(feed);
    let first = tasks.join_next().await.unwrap().unwrap();
    assert_eq!(decoded("gzip", &first.body).await.unwrap(), b"firstsecondthird");
    eventually("the place is free", || world.nodes[0].edge.counts().compressions == 0).await;
    let got = send(edge, asking("GET", "gzip")).await;
    assert_eq!(got.header("content-encoding"), Some("gzip"));
}
