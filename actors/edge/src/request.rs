//! A client's request from head to response: app, headers, its way to a Machine (`way.rs`), the answer.
//!
//! What goes wrong becomes a [`Reply`] in one place.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, Version, request};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use skein_cluster::clock;
use skein_cluster::entropy::Entropy;
use skein_core::explain::Steps;
use skein_core::headers::{self, FLY_REQUEST_ID, Forward};
use skein_core::service::HandlerChain;
use skein_core::snapshot::{AppView, Snapshot};
use skein_core::{Random, RequestId, attr, strict};
use ulid::Ulid;

use crate::access::Access;
use crate::attempt::{Answered, Exchange};
use crate::body::{ClientStream, KeptBody};
use crate::client_body::{Answer, ClientBody, Held};
use crate::connection::{Connection, Ends};
use crate::core::Core;
use crate::encode;
use crate::hosts;
use crate::reply::{Reply, Tried};
use crate::trace::Trace;
use crate::tunnel::Tunnel;
use crate::way::proxy;

/// Bytes of a refused request that are read, so that the client reads the answer before it finds the
/// connection closed.
const LINGER_BYTES: usize = 4 << 20;
/// How long that may take.
const LINGER: Duration = Duration::from_secs(2);

/// Answers a client's request.
pub(crate) async fn handle(connection: &Arc<Connection>, request: Request<Incoming>) -> Response<ClientBody> {
    let (core, ends) = (&connection.core, connection.ends);
    let mut rng = Entropy::default();
    let (started, start_us) = (clock::now(), clock::unix_us());
    let (parts, incoming) = request.into_parts();
    let id = request_id(core, start_us / 1000, &mut rng);
    let request_id: Arc<str> = id.into();
    let trace = begin(core, ends, &parts, &request_id, start_us / 1000, &mut rng);
    connection.watch.begin();
    let mut access = Box::new(Access {
        started,
        connection: Arc::clone(connection),
        method: parts.method.clone(),
        uri: parts.uri.clone(),
        id,
        request_id: Arc::clone(&request_id),
        app: None,
        org: None,
        status: None,
        code: None,
        why: None,
        machine: None,
        attempts: 0,
        last: None,
        replays: 0,
        queued: None,
        waiting: None,
        woke: false,
        sent: 0,
        complete: false,
        trace,
        steps: Steps::default(),
    });
    let version = parts.version;
    let snapshot = core.reader.load();
    let prepared = prepare(core, &snapshot, ends, parts, incoming, &request_id, start_us, &mut access);
    let (mut exchange, app) = match prepared {
        Ok(prepared) => prepared,
        Err((reply, asked)) => return own(core, &reply, &asked, version, access),
    };
    match proxy(core, &snapshot, app, &mut exchange, &mut access, &mut rng).await {
        Ok((answered, served)) => {
            let options = served.options(ends.public.port());
            let Answered { mut head, answer, held, .. } = *answered;
            let none = HeaderValue::from_static("");
            let id = exchange.headers.get(FLY_REQUEST_ID).unwrap_or(&none);
            let changes = options.and_then(|options| options.response.as_ref());
            let answer = match answer {
                Answer::Upgraded(far) => {
                    let spoken = head.headers.get(UPGRADE).cloned();
                    headers::to_client(&mut head.headers, version, &core.server, id, changes);
                    access.status = Some(head.status.as_u16());
                    let begun =
                        Tunnel::begin(exchange.upgrade.take(), far, head, spoken, options, access, held);
                    let (tunnel, response) = begun;
                    connection.upgrade(tunnel);
                    return response;
                }
                answer @ (Answer::Own(_) | Answer::Machine(_) | Answer::Frames(_) | Answer::Encoded(_)) => {
                    answer
                }
            };
            headers::to_client(&mut head.headers, version, &core.server, id, changes);
            head.version = Version::HTTP_11;
            access.status = Some(head.status.as_u16());
            let on = options.and_then(|options| options.compress).unwrap_or(true);
            let (answer, promised) =
                encode::answer(core, &exchange.method, &exchange.headers, &mut head, answer, on);
            say_if_last(connection, version, &mut head.headers);
            Response::from_parts(head, ClientBody::new(answer, promised, access, held))
        }
        Err(_) if exchange.body.as_ref().is_some_and(KeptBody::is_broken) => {
            // Whatever became of the attempt: it could only fail.
            let late = exchange.body.as_ref().is_some_and(KeptBody::is_late);
            let reply = if late { Reply::SlowBody } else { Reply::BadBody };
            own(core, &reply, &exchange.headers, version, access)
        }
        Err(reply) => {
            if let (Some(body), false) = (&exchange.body, exchange.expects) {
                // A client that is still sending meets the answer only once it is done, or given up.
                let _gave_up = Box::pin(tokio::time::timeout(LINGER, body.discard(LINGER_BYTES))).await;
            }
            own(core, &reply, &exchange.headers, version, access)
        }
    }
}

/// While the node drains, a response is the last one of its connection.
fn say_if_last(connection: &Connection, version: Version, headers: &mut HeaderMap) {
    if connection.passage.is_last() {
        match version {
            Version::HTTP_2 => connection.last.notify_one(),
            _ => drop(headers.insert(CONNECTION, HeaderValue::from_static("close"))),
        }
    }
}

fn request_id(core: &Core, now_ms: u64, rng: &mut Entropy) -> RequestId {
    let random = (u128::from(rng.next_u64()) << 64) | u128::from(rng.next_u64());
    RequestId { ulid: Ulid::from_parts(now_ms, random), region: core.config.region }
}

fn begin(
    core: &Core,
    ends: Ends,
    parts: &request::Parts,
    request_id: &Arc<str>,
    now_ms: u64,
    rng: &mut Entropy,
) -> Trace {
    let method = parts.method.as_str();
    let trace = Trace::begin(&parts.headers, method, &core.sampler, now_ms, rng);
    trace.set(attr::METHOD, || method.to_owned());
    trace.set(attr::SCHEME, || "http");
    trace.set(attr::PATH, || parts.uri.path().to_owned());
    trace.set(attr::CLIENT, || ends.client.ip().to_string());
    trace.set(attr::SERVER_ADDRESS, || ends.public.ip().to_string());
    trace.set(attr::SERVER_PORT, || i64::from(ends.public.port()));
    trace.set(attr::PROTOCOL_VERSION, || match parts.version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    });
    trace.set(attr::REQUEST_ID, || request_id.to_string());
    trace.set(attr::NODE, || core.config.node_name.to_string());
    trace.set(attr::REGION, || core.config.region.to_string());
    trace
}

/// Finds the app and makes the request that its Machine will see.
#[expect(clippy::too_many_arguments, reason = "all that is known of a request meets here once")]
#[expect(clippy::result_large_err, reason = "the client's headers go back to whoever answers")]
fn prepare<'s>(
    core: &Core,
    snapshot: &'s Snapshot,
    ends: Ends,
    parts: request::Parts,
    incoming: Incoming,
    request_id: &Arc<str>,
    start_us: u64,
    access: &mut Access,
) -> Result<(Exchange, &'s Arc<AppView>), (Reply, HeaderMap)> {
    let request::Parts { method, uri, version, mut headers, mut extensions, .. } = parts;
    if method == Method::CONNECT {
        return Err((Reply::Connect, headers));
    }
    if let Err(refusal) = strict::check(&method, &uri, &headers, core.config.max_target) {
        return Err((Reply::Strict(refusal), headers));
    }
    let found = hosts::host(&uri, &headers).or_else(|reply| {
        // HTTP/1.0 knows no Host; a dedicated address needs none.
        let dedicated = version == Version::HTTP_10 && !headers.contains_key(HOST);
        if dedicated { Ok(Cow::Borrowed("")) } else { Err(reply) }
    });
    let app = match found.and_then(|host| hosts::app(snapshot, ends.public.ip(), &host)) {
        Ok(app) => app,
        Err(reply) => return Err((reply, headers)),
    };
    let counters = core.metrics.app(app.app.id);
    access.connection.met(&counters);
    counters.budget.request(clock::ms(access.started));
    access.app = Some((app.app.name.clone(), counters));
    access.org = Some(app.app.org);
    access.trace.set(attr::APP, || app.app.name.to_string());
    let port = ends.public.port();
    let Some((HandlerChain::Http, settings)) = hosts::service(app, port) else {
        return Err((Reply::NoService(port), headers));
    };
    let target = uri.path_and_query().map_or(Uri::from_static("/"), |target| Uri::from(target.clone()));
    if settings.force_https {
        let host = hosts::host(&uri, &headers).unwrap_or_default();
        return Err((Reply::Https(format!("https://{host}{target}")), headers));
    }
    if let Some(authority) = uri.authority() {
        // RFC 9112 section 3.2.2, RFC 9113 section 8.3.1: what the target names stands for Host.
        if let Ok(value) = HeaderValue::from_str(authority.as_str()) {
            headers.insert(HOST, value);
        }
    }
    if version == Version::HTTP_2 {
        headers::join_cookies(&mut headers);
    }
    access.connection.watch.limit(settings.http_options.as_ref());
    // hyper adds it to what asks for an upgrade. A body would have to be sent before the change.
    let upgrade = extensions.remove::<OnUpgrade>().filter(|_| incoming.is_end_stream());
    let upgrade = upgrade.and_then(|upgrade| Some((upgrade, headers::upgrade(&headers)?)));
    // The edge answers 100 itself, once the body is wanted.
    let expects = headers.remove(EXPECT).is_some();
    // The id is ASCII.
    let id = HeaderValue::from_str(request_id).unwrap_or(HeaderValue::from_static(""));
    let forward =
        Forward { origin: access.connection.origin(), request_id: &id, tls: false, version, start_us };
    if let Err(headers::Loop(passes)) = headers::to_machine(&mut headers, &forward) {
        return Err((Reply::Loop(passes), headers));
    }
    let body = (!incoming.is_end_stream())
        .then(|| ClientStream::new(incoming, version))
        .map(|body| KeptBody::new(body, core.config.replay_buffer, Arc::clone(&core.budget)));
    if let Some(body) = &body {
        body.hurry(&access.connection, version);
    }
    if body.is_some() && !headers.contains_key(CONTENT_LENGTH) {
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    let upgrade = upgrade.map(|(upgrade, protocol)| {
        headers::set_upgrade(&mut headers, protocol);
        upgrade
    });
    let deadline = access.started + core.config.route_timeout;
    let request_id = Arc::clone(request_id);
    Ok((
        Exchange {
            ends,
            method,
            target,
            headers,
            body,
            upgrade,
            expects,
            request_id,
            resend: 0,
            hop: None,
            relayed: None,
            place: None,
            deadline,
        },
        app,
    ))
}

/// A response that the proxy makes itself.
fn own(
    core: &Core,
    reply: &Reply,
    asked: &HeaderMap,
    version: Version,
    mut access: Box<Access>,
) -> Response<ClientBody> {
    access.status = Some(reply.status().as_u16());
    if let Some(code) = reply.code() {
        access.fail(code, &reply.help());
    }
    let tried = access.last.map(|last| Tried { attempts: access.attempts, last });
    let response = reply.response(asked, version, &core.server, &access.request_id, tried);
    let (mut head, body): (_, Bytes) = response.into_parts();
    say_if_last(&access.connection, version, &mut head.headers);
    let promised = Some(body.len() as u64);
    let answer = Answer::Own(Some(body).filter(|body| !body.is_empty()));
    Response::from_parts(head, ClientBody::new(answer, promised, access, Held::default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<F>(_: impl FnOnce(&'static Arc<Connection>, Request<Incoming>) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn what_a_request_keeps_while_it_waits_is_small() {
        // It is moved when it begins, and every connection has room for it, also while it is idle.
        let size = size(handle);
        assert!(size <= 4_000, "{size} bytes");
    }
}
