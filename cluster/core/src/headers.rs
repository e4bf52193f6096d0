//! Headers on their way through the proxy (SPEC HTTP-2, HTTP-3, RPL-11).
//!
//! Pure edits of a header map. Hop-by-hop headers never cross (RFC 9110 section 7.6.1).

use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, HOST, HeaderName, SERVER, TE, UPGRADE, VIA};
use http::{HeaderMap, HeaderValue, Version};
use serde_json::Value;

use crate::machine::HttpResponseOptions;
use crate::region::RegionCode;
use crate::replay;

/// Passes through this cluster's own Via beyond which a request is in a loop (508).
pub const MAX_PASSES: usize = 3;

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        $($(#[$doc])* pub const $name: HeaderName = HeaderName::from_static($text);)*
    };
}

names! {
    /// The client's address, as the edge saw it.
    FLY_CLIENT_IP = "fly-client-ip";
    /// The public port that the client dialled.
    FLY_FORWARDED_PORT = "fly-forwarded-port";
    /// The edge's region.
    FLY_REGION = "fly-region";
    /// The request's id.
    FLY_REQUEST_ID = "fly-request-id";
    /// Where a replayed request comes from.
    FLY_REPLAY_SRC = "fly-replay-src";
    /// Regions to try first.
    FLY_PREFER_REGION = "fly-prefer-region";
    /// The chain of clients.
    X_FORWARDED_FOR = "x-forwarded-for";
    /// `http` or `https`.
    X_FORWARDED_PROTO = "x-forwarded-proto";
    /// The public port; the client's word if it gave one.
    X_FORWARDED_PORT = "x-forwarded-port";
    /// `on` or `off`.
    X_FORWARDED_SSL = "x-forwarded-ssl";
    /// When the edge met the request: `t=` microseconds.
    X_REQUEST_START = "x-request-start";
    /// W3C trace context.
    TRACEPARENT = "traceparent";
    /// The code of an error that the proxy made.
    SKEIN_ERROR = "skein-error";
}

/// From clients these are removed: the app may trust them.
fn not_from_clients(name: &str) -> bool {
    matches!(
        name,
        "fly-client-ip"
            | "fly-forwarded-port"
            | "fly-region"
            | "fly-request-id"
            | "fly-replay-src"
            | "fly-replay-failed"
            | "fly-replay-cache-status"
            | "fly-preferred-instance-unavailable"
            | "x-forwarded-ssl"
    )
}

/// These end at each hop. `Trailer` does not: it names fields that cross.
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "te"
            | "transfer-encoding"
            | "upgrade"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
    )
}

/// Headers that [`to_machine`] adds at most.
const ADDED: usize = 10;

/// What a connection's requests have in common: their headers say it in the same words each time.
#[derive(Debug, Clone)]
pub struct Origin {
    client: HeaderValue,
    /// The end of `X-Forwarded-For`: the client and the address that it dialled.
    chain: HeaderValue,
    port: HeaderValue,
    region: HeaderValue,
}

impl Origin {
    /// A client as the edge saw it, the app's public address and the port that it dialled, and the
    /// edge's region.
    pub fn new(client: SocketAddr, public: SocketAddr, region: RegionCode) -> Self {
        let (client, port, public) = (client.ip(), public.port(), public.ip());
        Self {
            client: value(client.to_string()),
            chain: value(format!("{client}, {public}")),
            port: HeaderValue::from(port),
            region: value(region.to_string()),
        }
    }
}

/// Text that is ASCII as a value.
fn value(text: String) -> HeaderValue {
    HeaderValue::from_maybe_shared(Bytes::from(text)).unwrap_or(HeaderValue::from_static(""))
}

/// What the edge knows of a request when it forwards it.
#[derive(Debug, Clone)]
pub struct Forward<'a> {
    /// What it knows of the connection.
    pub origin: &'a Origin,
    /// The request's id.
    pub request_id: &'a HeaderValue,
    /// Whether the client came over TLS.
    pub tls: bool,
    /// The client's HTTP version.
    pub version: Version,
    /// When the edge met it, microseconds since 1970.
    pub start_us: u64,
}

/// A request that went round in a loop; answered 508.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the request passed this cluster {0} times; at most {MAX_PASSES} are allowed")]
pub struct Loop(pub usize);

/// Edits a client's headers into those that the Machine gets, except `traceparent` and
/// `fly-replay-src`, which belong to each attempt.
///
/// # Errors
/// [`Loop`] when the request passed this cluster too often.
pub fn to_machine(headers: &mut HeaderMap, forward: &Forward<'_>) -> Result<(), Loop> {
    let passes = own_passes(headers);
    if passes > MAX_PASSES {
        return Err(Loop(passes));
    }
    let trailers = takes_trailers(headers);
    remove_named(headers);
    remove(headers, |name| is_hop_by_hop(name) || not_from_clients(name));
    headers.reserve(ADDED);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    let Origin { client, chain, port, region } = forward.origin;
    headers.insert(FLY_CLIENT_IP, client.clone());
    headers.insert(FLY_FORWARDED_PORT, port.clone());
    headers.insert(FLY_REGION, region.clone());
    headers.insert(FLY_REQUEST_ID, forward.request_id.clone());
    let chain = match joined(headers, &X_FORWARDED_FOR) {
        Some(before) => value(format!("{before}, {}", chain.to_str().unwrap_or_default())),
        None => chain.clone(),
    };
    headers.insert(X_FORWARDED_FOR, chain);
    let (proto, ssl) = if forward.tls { ("https", "on") } else { ("http", "off") };
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(proto));
    headers.insert(X_FORWARDED_SSL, HeaderValue::from_static(ssl));
    headers.entry(X_FORWARDED_PORT).or_insert_with(|| port.clone());
    append_via(headers, forward.version);
    headers.insert(X_REQUEST_START, value(format!("t={}", forward.start_us)));
    Ok(())
}

/// Edits a Machine's response headers into those that the client gets.
pub fn to_client(
    headers: &mut HeaderMap,
    version: Version,
    server: &HeaderValue,
    request_id: &HeaderValue,
    options: Option<&HttpResponseOptions>,
) {
    remove_named(headers);
    remove(headers, |name| is_hop_by_hop(name) || replay::RESPONSE_HEADERS.contains(&name));
    if !options.is_some_and(|options| options.pristine) {
        headers.insert(SERVER, server.clone());
        append_via(headers, version);
        headers.insert(FLY_REQUEST_ID, request_id.clone());
    }
    let Some(options) = options else { return };
    for (name, change) in &options.headers {
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else { continue };
        if is_hop_by_hop(name.as_str()) || name == CONTENT_LENGTH {
            // Where the body ends is not for an app's settings to say.
            continue;
        }
        match change {
            Value::Bool(false) => drop(headers.remove(&name)),
            Value::String(text) => add(headers, &name, text),
            Value::Array(list) => {
                list.iter().filter_map(Value::as_str).for_each(|text| add(headers, &name, text));
            }
            Value::Null | Value::Bool(true) | Value::Number(_) | Value::Object(_) => {}
        }
    }
}

fn add(headers: &mut HeaderMap, name: &HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.append(name, value);
    }
}

/// The protocol that a request wants to change to, if it is one that may cross: never a version of
/// HTTP, whose requests nobody here would see (RFC 9110 section 7.8).
pub fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut wanted = headers.get_all(UPGRADE).iter();
    let (Some(protocol), None) = (wanted.next(), wanted.next()) else { return None };
    let tokens = |value: &HeaderValue| value.to_str().unwrap_or_default().to_ascii_lowercase();
    let asked = headers
        .get_all(CONNECTION)
        .iter()
        .map(tokens)
        .any(|value| value.split(',').any(|token| token.trim() == "upgrade"));
    let names = tokens(protocol);
    let mut names = names.split(',').map(|name| name.trim());
    let crosses = names.all(|name| !name.is_empty() && !name.starts_with("h2") && !name.starts_with("http"));
    (asked && crosses).then(|| protocol.clone())
}

/// Says what protocol is wanted, or is spoken from here on.
pub fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// Whether the sender of a request takes trailers (RFC 9110 section 10.1.4).
fn takes_trailers(headers: &HeaderMap) -> bool {
    headers.contains_key(TE)
        && headers
            .get_all(TE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

/// Removes from trailers what must not come so late (RFC 9110 section 6.5.1), whoever sent it: fields
/// that frame, route or authorize a message, or say what its content is, and those that belong to the
/// proxy.
pub fn clean_trailers(trailers: &mut HeaderMap) {
    remove(trailers, |name| {
        is_hop_by_hop(name)
            || not_from_clients(name)
            || replay::RESPONSE_HEADERS.contains(&name)
            || matches!(
                name,
                "trailer"
                    | "host"
                    | "content-length"
                    | "content-encoding"
                    | "content-type"
                    | "content-range"
                    | "authorization"
                    | "cookie"
                    | "set-cookie"
                    | "cache-control"
                    | "expect"
                    | "max-forwards"
                    | "range"
            )
            || name.starts_with("x-forwarded-")
    });
}

/// Removes headers that end at each hop, and those that `Connection` names.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    remove_named(headers);
    remove(headers, is_hop_by_hop);
}

/// Removes those that `Connection` names.
fn remove_named(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
            // `Connection: host` or `Connection: fly-client-ip` must not strip what the app relies on.
            .filter(|name| *name != HOST && *name != CONTENT_LENGTH)
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
}

/// Removes what is unwanted. One look at what is there is cheaper than asking for each name that could
/// be: usually there is none.
fn remove(headers: &mut HeaderMap, unwanted: impl Fn(&str) -> bool) {
    while let Some(name) = headers.keys().find(|name| unwanted(name.as_str())).cloned() {
        headers.remove(name);
    }
}

/// Joins the pieces that HTTP/2 allows a cookie header to come in (RFC 9113 section 8.2.3): HTTP/1 knows
/// one header.
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(COOKIE).iter();
    if let (Some(first), Some(_)) = (crumbs.next(), crumbs.next()) {
        let mut joined = first.as_bytes().to_vec();
        for crumb in headers.get_all(COOKIE).iter().skip(1) {
            joined.extend_from_slice(b"; ");
            joined.extend_from_slice(crumb.as_bytes());
        }
        if let Ok(joined) = HeaderValue::from_maybe_shared(Bytes::from(joined)) {
            headers.insert(COOKIE, joined);
        }
    }
}

fn append_via(headers: &mut HeaderMap, version: Version) {
    let own = match version {
        Version::HTTP_09 | Version::HTTP_10 => HeaderValue::from_static("1.0 skein"),
        Version::HTTP_2 => HeaderValue::from_static("2 skein"),
        Version::HTTP_3 => HeaderValue::from_static("3 skein"),
        _ => HeaderValue::from_static("1.1 skein"),
    };
    headers.append(VIA, own);
}

fn own_passes(headers: &HeaderMap) -> usize {
    let entries = headers.get_all(VIA).iter().filter_map(|value| value.to_str().ok());
    entries
        .flat_map(|value| value.split(','))
        .filter(|entry| entry.split_ascii_whitespace().nth(1) == Some("skein"))
        .count()
}

fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let values: Vec<&str> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
    (!values.is_empty()).then(|| values.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: HeaderValue = HeaderValue::from_static("01JNRQ9VVKJ7HZFMJWJB3M3RYN-iad");

    fn forwarded(headers: &mut HeaderMap) -> Result<(), Loop> {
        let client = "198.51.100.7:5000".parse().unwrap();
        let origin = Origin::new(client, "203.0.113.1:80".parse().unwrap(), "iad".parse().unwrap());
        let forward =
            Forward { origin: &origin, request_id: &ID, tls: false, version: Version::HTTP_11, start_us: 7 };
        to_machine(headers, &forward)
    }

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
        headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// SPEC HTTP-2.
    #[test]
    fn http_2_the_machine_gets_what_the_edge_knows() {
        let mut headers =
            map(&[("host", "a.localhost"), ("x-forwarded-for", "192.0.2.1"), ("x-forwarded-port", "8443")]);
        forwarded(&mut headers).unwrap();
        for (name, value) in [
            ("fly-client-ip", "198.51.100.7"),
            ("fly-forwarded-port", "80"),
            ("fly-region", "iad"),
            ("fly-request-id", "01JNRQ9VVKJ7HZFMJWJB3M3RYN-iad"),
            ("x-forwarded-for", "192.0.2.1, 198.51.100.7, 203.0.113.1"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-ssl", "off"),
            ("x-forwarded-port", "8443"),
            ("via", "1.1 skein"),
            ("x-request-start", "t=7"),
            ("host", "a.localhost"),
        ] {
            assert_eq!(text(&headers, name), Some(value), "{name}");
        }
    }

    #[test]
    fn http_2_what_a_client_forges_is_removed_and_what_it_asks_for_passes() {
        let mut headers = map(&[
            ("fly-client-ip", "6.6.6.6"),
            ("fly-replay-src", "instance=x"),
            ("fly-replay-failed", "x"),
            ("fly-replay-cache-status", "hit"),
            ("fly-preferred-instance-unavailable", "x"),
            ("x-forwarded-ssl", "on"),
            ("fly-prefer-region", "nrt"),
            ("fly-force-instance-id", "abc"),
            ("fly-replay-cache-control", "skip"),
        ]);
        forwarded(&mut headers).unwrap();
        assert_eq!(text(&headers, "fly-client-ip"), Some("198.51.100.7"));
        assert_eq!(text(&headers, "x-forwarded-ssl"), Some("off"));
        for gone in [
            "fly-replay-src",
            "fly-replay-failed",
            "fly-replay-cache-status",
            "fly-preferred-instance-unavailable",
        ] {
            assert_eq!(text(&headers, gone), None, "{gone}");
        }
        for passes in ["fly-prefer-region", "fly-force-instance-id", "fly-replay-cache-control"] {
            assert!(headers.contains_key(passes), "{passes}");
        }
    }

    #[test]
    fn http_8_hop_by_hop_headers_do_not_cross_and_connection_strips_nothing_vital() {
        let mut headers = map(&[
            ("connection", "close, x-secret, host, fly-client-ip"),
            ("x-secret", "1"),
            ("host", "a.localhost"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("keep-alive", "timeout=5"),
        ]);
        forwarded(&mut headers).unwrap();
        for gone in ["connection", "x-secret", "te", "transfer-encoding", "keep-alive"] {
            assert_eq!(text(&headers, gone), None, "{gone}");
        }
        assert_eq!(text(&headers, "host"), Some("a.localhost"));
        assert_eq!(text(&headers, "fly-client-ip"), Some("198.51.100.7"));
    }

    #[test]
    fn http_1_the_crumbs_of_a_cookie_are_joined_in_order() {
        let mut headers = map(&[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=\"3\"")]);
        join_cookies(&mut headers);
        assert_eq!(headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2; c=\"3\""]);
        let mut one = map(&[("cookie", "a=1")]);
        join_cookies(&mut one);
        assert_eq!(one, map(&[("cookie", "a=1")]));
    }

    #[test]
    fn http_1_who_takes_trailers_is_said_to_and_late_fields_that_decide_are_removed() {
        let mut headers = map(&[("te", "gzip;q=1, Trailers"), ("connection", "te"), ("trailer", "x-sum")]);
        forwarded(&mut headers).unwrap();
        assert_eq!((text(&headers, "te"), text(&headers, "connection")), (Some("trailers"), Some("te")));
        assert_eq!(text(&headers, "trailer"), Some("x-sum"));
        let mut trailers = map(&[
            ("grpc-status", "0"),
            ("x-sum", "1"),
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
            ("host", "b"),
            ("authorization", "x"),
            ("fly-client-ip", "6.6.6.6"),
            ("fly-replay", "region=iad"),
            ("x-forwarded-for", "6.6.6.6"),
        ]);
        clean_trailers(&mut trailers);
        assert_eq!(trailers, map(&[("grpc-status", "0"), ("x-sum", "1")]));
    }

    #[test]
    fn http_4_an_upgrade_is_wanted_by_two_headers_and_never_to_http() {
        let wanted = |pairs: &[(&'static str, &'static str)]| {
            upgrade(&map(pairs)).map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(wanted(&[("connection", "Upgrade"), ("upgrade", "websocket")]).unwrap(), "websocket");
        let mixed = [("connection", "keep-alive"), ("connection", "x, upgrade"), ("upgrade", "TCP")];
        assert_eq!(wanted(&mixed).unwrap(), "TCP");
        for none in [
            &[("upgrade", "websocket")][..],
            &[("connection", "upgrade")],
            &[("connection", "upgrade"), ("upgrade", "h2c")],
            &[("connection", "upgrade"), ("upgrade", "websocket, h2c")],
            &[("connection", "upgrade"), ("upgrade", "HTTP/2.0")],
            &[("connection", "upgrade"), ("upgrade", "a"), ("upgrade", "b")],
            &[("connection", "upgrade"), ("upgrade", "")],
        ] {
            assert_eq!(wanted(none), None, "{none:?}");
        }
    }

    /// SPEC HTTP-3.
    #[test]
    fn http_3_more_than_three_passes_are_a_loop() {
        let mut headers = HeaderMap::new();
        for _ in 0..=MAX_PASSES {
            forwarded(&mut headers).unwrap();
        }
        assert_eq!(forwarded(&mut headers), Err(Loop(4)));
        let mut foreign = map(&[("via", "1.1 other, 1.1 other, 1.1 other, 1.1 other, 1.1 other")]);
        assert_eq!(forwarded(&mut foreign), Ok(()), "only this cluster's own passes count");
    }

    /// SPEC HTTP-3, RPL-11.
    #[test]
    fn http_3_the_client_gets_the_proxys_headers_and_no_instruction() {
        let server = HeaderValue::from_static("Skein/0.1.0");
        let mut headers =
            map(&[("server", "express"), ("fly-replay", "region=iad"), ("fly-replay-cache", "/x")]);
        to_client(&mut headers, Version::HTTP_11, &server, &ID, None);
        assert_eq!(text(&headers, "server"), Some("Skein/0.1.0"));
        assert_eq!(text(&headers, "via"), Some("1.1 skein"));
        assert_eq!(text(&headers, "fly-request-id"), Some("01JNRQ9VVKJ7HZFMJWJB3M3RYN-iad"));
        assert!(!headers.contains_key("fly-replay") && !headers.contains_key("fly-replay-cache"));
    }

    #[test]
    fn http_8_response_options_do_not_say_where_a_body_ends() {
        let options: HttpResponseOptions = serde_json::from_str(
            r#"{"headers":{"content-length":"1","Transfer-Encoding":"gzip","connection":["close"],"x-a":"1"}}"#,
        )
        .unwrap();
        let mut headers = map(&[("content-length", "5")]);
        to_client(&mut headers, Version::HTTP_11, &HeaderValue::from_static("s"), &ID, Some(&options));
        assert_eq!((text(&headers, "content-length"), text(&headers, "x-a")), (Some("5"), Some("1")));
        assert!(!headers.contains_key("transfer-encoding") && !headers.contains_key("connection"));
        let options: HttpResponseOptions =
            serde_json::from_str(r#"{"headers":{"content-length":false}}"#).unwrap();
        to_client(&mut headers, Version::HTTP_11, &HeaderValue::from_static("s"), &ID, Some(&options));
        assert_eq!(text(&headers, "content-length"), Some("5"));
    }

    #[test]
    fn http_3_response_options_add_and_remove_and_pristine_leaves_all_alone() {
        let options: HttpResponseOptions =
            serde_json::from_str(r#"{"headers":{"x-a":["1","2"],"x-b":"3","server":false}}"#).unwrap();
        let server = HeaderValue::from_static("Skein/0.1.0");
        let mut headers = map(&[("server", "express")]);
        to_client(&mut headers, Version::HTTP_11, &server, &ID, Some(&options));
        assert_eq!(headers.get_all("x-a").iter().count(), 2);
        assert_eq!((text(&headers, "x-b"), text(&headers, "server")), (Some("3"), None));
        let pristine = HttpResponseOptions { pristine: true, ..HttpResponseOptions::default() };
        let mut headers = map(&[("server", "express"), ("fly-replay", "region=iad")]);
        to_client(&mut headers, Version::HTTP_11, &server, &ID, Some(&pristine));
        assert_eq!(text(&headers, "server"), Some("express"));
        assert!(!headers.contains_key("via") && !headers.contains_key("fly-replay"));
    }

    proptest! {
        #[test]
        fn no_header_of_a_client_decides_what_the_app_trusts(
            pairs in proptest::collection::vec(("[a-zA-Z-]{1,30}|connection|fly-client-ip|fly-region", "[ -~]{0,40}"), 0..12),
        ) {
            let mut headers = HeaderMap::new();
            for (name, value) in &pairs {
                if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
                    headers.append(name, value);
                }
            }
            if forwarded(&mut headers).is_ok() {
                prop_assert_eq!(text(&headers, "fly-client-ip"), Some("198.51.100.7"));
                prop_assert_eq!(text(&headers, "fly-region"), Some("iad"));
                prop_assert_eq!(headers.get_all("fly-client-ip").iter().count(), 1);
                prop_assert!(!headers.contains_key("connection") && !headers.contains_key("transfer-encoding"));
            }
        }
    }
}
