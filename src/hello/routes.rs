//! What the sample app answers (DESIGN section 8).

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT,
    UPGRADE,
};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;

use super::Hello;
use super::body::HelloBody;
use super::websocket;

const FLY_REPLAY: HeaderName = HeaderName::from_static("fly-replay");
const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The longest `/slow`, in milliseconds.
const MAX_SLOW_MS: u64 = 600_000;
/// The largest `/bytes`.
const MAX_BYTES: u64 = 1 << 40;

/// What becomes of a request.
pub(super) enum Answer {
    Response(Response<HelloBody>),
    /// The connection is a WebSocket after this response.
    WebSocket(Response<HelloBody>, OnUpgrade),
    /// The process ends before it answers.
    Crash,
}

/// What `GET /` says.
#[derive(Serialize)]
struct Here<'a> {
    app: Option<&'a str>,
    machine: Option<&'a str>,
    region: Option<&'a str>,
    edge_region: Option<String>,
    request_id: Option<String>,
    headers: BTreeMap<&'a str, String>,
}

pub(super) async fn answer(hello: &Hello, mut request: Request<Incoming>) -> Answer {
    let on = hyper::upgrade::on(&mut request);
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    if path == "/crash" {
        return Answer::Crash;
    }
    if path == "/echo" {
        return Answer::Response(echo(&parts, body));
    }
    if path == "/ws" {
        return web_socket(&parts, on);
    }
    if drain(body).await.is_err() {
        return Answer::Response(text(StatusCode::BAD_REQUEST, "the body broke off\n"));
    }
    Answer::Response(match path.split('/').skip(1).collect::<Vec<_>>().as_slice() {
        [""] => root(hello, &parts),
        ["replay"] => replay(hello, &parts),
        ["status", code] => status(code),
        ["bytes", count] => bytes(count),
        ["slow"] => slow(hello, &parts).await,
        ["sse"] => sse(&parts),
        ["health"] => health(hello, &parts),
        _ => text(StatusCode::NOT_FOUND, "there is nothing here; try / or /health\n"),
    })
}

/// Reads a body to its end: a server that answers before it has read everything must close the
/// connection, and the client may lose the answer.
async fn drain(mut body: Incoming) -> Result<(), hyper::Error> {
    while let Some(frame) = body.frame().await {
        frame?;
    }
    Ok(())
}

fn root(hello: &Hello, parts: &Parts) -> Response<HelloBody> {
    let reads = parts.method == Method::GET || parts.method == Method::HEAD;
    let elsewhere =
        hello.primary_region.as_deref().filter(|primary| hello.region.as_deref() != Some(primary));
    match elsewhere {
        Some(primary) if !reads => instruct(&format!("region={primary}")),
        Some(_) | None => here(hello, &parts.headers),
    }
}

fn here(hello: &Hello, headers: &HeaderMap) -> Response<HelloBody> {
    let value = |name: &str| {
        let values: Vec<_> =
            headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
        (!values.is_empty()).then(|| values.join(", "))
    };
    let here = Here {
        app: hello.app.as_deref(),
        machine: hello.machine.as_deref(),
        region: hello.region.as_deref(),
        edge_region: value("fly-region"),
        request_id: value("fly-request-id"),
        headers: headers
            .keys()
            .map(|name| (name.as_str(), value(name.as_str()).unwrap_or_default()))
            .collect(),
    };
    let mut body = serde_json::to_vec(&here).expect("invariant: maps of strings are JSON");
    body.push(b'\n');
    respond(StatusCode::OK, JSON, HelloBody::Whole(body.into()))
}

fn echo(parts: &Parts, body: Incoming) -> Response<HelloBody> {
    if parts.method != Method::POST {
        return only(&[Method::POST]);
    }
    let kind = parts.headers.get(CONTENT_TYPE).cloned();
    let kind = kind.unwrap_or(HeaderValue::from_static("application/octet-stream"));
    respond(StatusCode::OK, kind, HelloBody::Echo(body))
}

/// An instruction that has been followed is not given again.
fn replay(hello: &Hello, parts: &Parts) -> Response<HelloBody> {
    let followed = ["fly-replay-src", "fly-replay-failed"];
    if followed.iter().any(|name| parts.headers.contains_key(*name)) {
        return here(hello, &parts.headers);
    }
    match query(parts, "to") {
        Some(to) if !to.is_empty() => instruct(&to),
        Some(_) | None => {
            text(StatusCode::BAD_REQUEST, "say where to, for example /replay?to=region%3Dlhr\n")
        }
    }
}

fn instruct(to: &str) -> Response<HelloBody> {
    let Ok(value) = HeaderValue::from_bytes(to.as_bytes()) else {
        return text(StatusCode::BAD_REQUEST, "that is not the value of a header\n");
    };
    let mut response = text(StatusCode::CONFLICT, "this request is to be answered elsewhere\n");
    response.headers_mut().insert(FLY_REPLAY, value);
    response
}

fn status(code: &str) -> Response<HelloBody> {
    let code = code.parse().ok().filter(|code| (200..=599).contains(code));
    let Some(code) = code.and_then(|code| StatusCode::from_u16(code).ok()) else {
        return text(StatusCode::BAD_REQUEST, "a status from 200 to 599 is needed\n");
    };
    if code == StatusCode::NO_CONTENT || code == StatusCode::NOT_MODIFIED {
        return respond(code, PLAIN, HelloBody::Whole(Default::default()));
    }
    text(code, &format!("{code}\n"))
}

fn bytes(count: &str) -> Response<HelloBody> {
    match count.parse::<u64>() {
        Ok(left) if left <= MAX_BYTES => respond(StatusCode::OK, PLAIN, HelloBody::Text { left }),
        Ok(_) | Err(_) => text(StatusCode::BAD_REQUEST, "a number of bytes up to 1 TiB is needed\n"),
    }
}

async fn slow(hello: &Hello, parts: &Parts) -> Response<HelloBody> {
    let wanted = query(parts, "ms").and_then(|ms| ms.parse().ok()).filter(|ms| *ms <= MAX_SLOW_MS);
    let Some(ms) = wanted else {
        return text(StatusCode::BAD_REQUEST, "say how slow, for example /slow?ms=500, at most 600000\n");
    };
    tokio::time::sleep(Duration::from_millis(ms)).await;
    here(hello, &parts.headers)
}

/// Events without end, or `count` of them, `ms` apart (500 when not given).
fn sse(parts: &Parts) -> Response<HelloBody> {
    let number = |name| query(parts, name).and_then(|value| value.parse::<u64>().ok());
    let every = Duration::from_millis(number("ms").unwrap_or(500).clamp(1, MAX_SLOW_MS));
    let kind = HeaderValue::from_static("text/event-stream");
    let mut response = respond(StatusCode::OK, kind, HelloBody::events(number("count"), every));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

fn web_socket(parts: &Parts, on: OnUpgrade) -> Answer {
    let accept = websocket::accept(parts);
    let mut response = match accept.is_some() {
        true => respond(StatusCode::SWITCHING_PROTOCOLS, PLAIN, HelloBody::Whole(Default::default())),
        false => text(StatusCode::UPGRADE_REQUIRED, "this is a WebSocket of version 13\n"),
    };
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    match accept.and_then(|accept| HeaderValue::from_str(&accept).ok()) {
        Some(accept) => {
            headers.remove(CONTENT_TYPE);
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
            Answer::WebSocket(response, on)
        }
        None => Answer::Response(response),
    }
}

fn health(hello: &Hello, parts: &Parts) -> Response<HelloBody> {
    if parts.method == Method::POST {
        match query(parts, "fail").as_deref() {
            Some("true") => hello.failing.store(true, Ordering::Relaxed),
            Some("false") => hello.failing.store(false, Ordering::Relaxed),
            Some(_) | None => return text(StatusCode::BAD_REQUEST, "say /health?fail=true or fail=false\n"),
        }
        return text(StatusCode::OK, "done\n");
    }
    if hello.failing.load(Ordering::Relaxed) {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "failing, as it was told to\n");
    }
    text(StatusCode::OK, "ok\n")
}

fn only(methods: &[Method]) -> Response<HelloBody> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "this method is not for this path\n");
    let list = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
    if let Ok(list) = HeaderValue::from_str(&list) {
        response.headers_mut().insert(ALLOW, list);
    }
    response
}

fn text(status: StatusCode, text: &str) -> Response<HelloBody> {
    respond(status, PLAIN, HelloBody::Whole(text.to_owned().into()))
}

fn respond(status: StatusCode, kind: HeaderValue, body: HelloBody) -> Response<HelloBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// A parameter of the query, its percent-encoding and plus signs undone.
fn query(parts: &Parts, name: &str) -> Option<String> {
    let query = parts.uri.query()?;
    let value = query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })?;
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (*first, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = tail;
            }
            (other, _) => {
                bytes.push(other);
                rest = tail;
            }
        }
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
