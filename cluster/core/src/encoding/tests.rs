use super::*;
use proptest::prelude::*;

fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(*name, HeaderValue::from_static(value));
    }
    map
}

fn chosen(values: &[&str]) -> Option<&'static str> {
    choose(values.iter().map(|value| value.as_bytes())).map(Coding::as_str)
}

/// RFC 9110 section 12.5.3.
#[test]
fn http_5_the_coding_that_the_client_likes_best_and_the_proxys_order_among_equals() {
    for (accept, expected) in [
        (&["gzip, deflate, br, zstd"][..], Some("zstd")),
        (&["gzip, deflate, br"], Some("br")),
        (&["deflate, gzip"], Some("gzip")),
        (&["deflate"], Some("deflate")),
        (&["x-gzip"], Some("gzip")),
        (&["GZIP"], Some("gzip")),
        (&["gzip;q=0.8, br;q=0.7, zstd;q=0.6"], Some("gzip")),
        (&["gzip;q=0.801, br;q=0.8"], Some("gzip")),
        (&["gzip; q=0.5 , br ;q=1.000"], Some("br")),
        (&["gzip", "br"], Some("br")),
        (&["*"], Some("zstd")),
        (&["*, zstd;q=0"], Some("br")),
        (&["gzip;q=0.5, *;q=0.4"], Some("gzip")),
        (&["gzip, identity"], Some("gzip")),
        (&["identity;q=0, gzip;q=0.1"], Some("gzip")),
        (&["gzip;level=9;q=0.5"], Some("gzip")),
        // Nothing asked for, or an unchanged body liked better.
        (&[], None),
        (&[""], None),
        (&["identity"], None),
        (&["identity, gzip;q=0.9"], None),
        (&["gzip;q=0"], None),
        (&["*;q=0"], None),
        // Nothing is acceptable: an unchanged body is better than none.
        (&["identity;q=0"], None),
        (&["compress"], None),
        // Malformed weights count as not said.
        (&["gzip;q=2"], None),
        (&["gzip;q="], None),
        (&["gzip;q=1.001"], None),
        (&["gzip;q=0.1234"], None),
        (&["gzip;q=.5"], None),
        (&["gzip;q=0,5"], None),
        (&["gzip;q=x, br;q=0.3"], Some("br")),
    ] {
        assert_eq!(chosen(accept), expected, "{accept:?}");
    }
}

/// What is asked for a response of `head`, by a client that takes everything.
fn negotiated(method: &Method, status: u16, head: &mut HeaderMap, length: Option<u64>) -> Option<Coding> {
    let asked = map(&[("accept-encoding", "gzip, br, zstd")]);
    negotiate(method, &asked, StatusCode::from_u16(status).unwrap(), head, length, true)
}

#[test]
fn http_5_text_of_some_length_is_compressed_and_marked() {
    for kind in [
        "text/html; charset=utf-8",
        "TEXT/css",
        "application/json",
        "application/ld+json",
        "application/problem+json;charset=utf-8",
        "application/xml",
        "image/svg+xml",
        "application/javascript",
        "text/javascript",
        "application/wasm",
    ] {
        for length in [None, Some(1024), Some(u64::MAX)] {
            let mut head = map(&[("content-type", kind)]);
            assert_eq!(negotiated(&Method::GET, 200, &mut head, length), Some(Coding::Zstd), "{kind}");
            assert_eq!(head["vary"], "Accept-Encoding");
        }
    }
    let mut head = map(&[("content-type", "text/plain")]);
    assert_eq!(negotiated(&Method::POST, 404, &mut head, None), Some(Coding::Zstd), "errors too");
}

#[test]
fn http_5_what_is_left_alone_is_left_alone() {
    let text = ("content-type", "text/plain");
    for (method, status, head, length) in [
        (Method::HEAD, 200, vec![text], None),
        (Method::GET, 200, vec![text], Some(1023)),
        (Method::GET, 204, vec![text], None),
        (Method::GET, 304, vec![text], None),
        (Method::GET, 206, vec![text], None),
        (Method::GET, 200, vec![text, ("content-range", "bytes 0-9/20")], None),
        (Method::GET, 200, vec![text, ("content-encoding", "gzip")], None),
        (Method::GET, 200, vec![text, ("content-encoding", "identity")], None),
        (Method::GET, 200, vec![text, ("cache-control", "private, No-Transform")], None),
        (Method::GET, 200, vec![text, ("content-digest", "sha-256=:AA==:")], None),
        (Method::GET, 200, vec![], None),
        (Method::GET, 200, vec![("content-type", "image/png")], None),
        (Method::GET, 200, vec![("content-type", "application/octet-stream")], None),
        (Method::GET, 200, vec![("content-type", "text")], None),
        (Method::GET, 200, vec![("content-type", "Text/Event-Stream; charset=utf-8")], None),
        (Method::GET, 200, vec![("content-type", "application/grpc")], None),
        (Method::GET, 200, vec![("content-type", "application/grpc+json")], None),
        (Method::GET, 200, vec![("content-type", "application/grpc-web-text")], None),
    ] {
        let mut edited = map(&head);
        assert_eq!(negotiated(&method, status, &mut edited, length), None, "{method} {status} {head:?}");
        assert_eq!(edited, map(&head));
    }
}

#[test]
fn http_5_none_turns_it_off_and_never_reaches_the_client() {
    for none in ["none", "None"] {
        let mut head = map(&[("content-type", "text/html"), ("content-encoding", none)]);
        assert_eq!(negotiated(&Method::GET, 200, &mut head, None), None);
        assert_eq!(head, map(&[("content-type", "text/html")]));
    }
    let mut head = map(&[("content-type", "image/png"), ("content-encoding", "none")]);
    assert_eq!(negotiated(&Method::HEAD, 200, &mut head, Some(3)), None);
    assert!(!head.contains_key("content-encoding"), "whatever it is");
}

#[test]
fn http_5_a_response_that_another_client_would_get_compressed_says_so() {
    let asked = |asked: &[(&'static str, &'static str)], vary: &[(&'static str, &'static str)]| {
        let mut head = map(&[("content-type", "text/html")]);
        head.extend(map(vary));
        let coding = negotiate(&Method::GET, &map(asked), StatusCode::OK, &mut head, None, true);
        let vary = head.get_all(VARY).iter().map(|value| value.to_str().unwrap().to_owned());
        (coding, vary.collect::<Vec<_>>().join("|"))
    };
    assert_eq!(asked(&[], &[]), (None, "Accept-Encoding".into()));
    assert_eq!(asked(&[("accept-encoding", "identity")], &[]), (None, "Accept-Encoding".into()));
    let silent = [("accept-encoding", "gzip"), ("cache-control", "no-transform")];
    assert_eq!(asked(&silent, &[]), (None, "Accept-Encoding".into()), "the client may forbid it too");
    let gzip = [("accept-encoding", "gzip")];
    assert_eq!(asked(&gzip, &[("vary", "Origin")]), (Some(Coding::Gzip), "Origin|Accept-Encoding".into()));
    for told in ["Origin, accept-encoding", "*"] {
        assert_eq!(asked(&gzip, &[("vary", told)]), (Some(Coding::Gzip), told.into()));
    }
    let mut head = map(&[("content-type", "text/html")]);
    assert_eq!(negotiate(&Method::GET, &map(&gzip), StatusCode::OK, &mut head, None, false), None);
    assert!(!head.contains_key("vary"), "the app turned it off");
}

#[test]
fn http_5_the_head_speaks_of_the_compressed_body() {
    for (tag, expected) in [("\"a\"", "W/\"a\""), ("W/\"a\"", "W/\"a\""), ("odd", "odd")] {
        let mut head = map(&[("etag", tag), ("content-length", "2000"), ("accept-ranges", "bytes")]);
        apply(&mut head, Coding::Brotli);
        assert_eq!(head, map(&[("etag", expected), ("content-encoding", "br")]));
    }
}

proptest! {
    #[test]
    fn no_client_gets_what_it_refused(
        items in proptest::collection::vec(
            ("zstd|br|gzip|deflate|identity|\\*|x|", "|;q=0|;q=0.0|;q=0.5|;q=1|; q=0.25|;q=9|;q"), 0..6),
    ) {
        let text = items.iter().map(|(token, weight)| format!("{token}{weight}")).collect::<Vec<_>>().join(",");
        if let Some(coding) = choose(std::iter::once(text.as_bytes())) {
            // The first word that is no nonsense counts.
            let said = items.iter().find(|(token, weight)| token == coding.as_str() && weight != ";q=9");
            if let Some((_, weight)) = said {
                prop_assert!(![";q=0", ";q=0.0"].contains(&&**weight), "{text}");
            } else {
                prop_assert!(items.iter().any(|(token, _)| token == "*"), "{text}");
            }
        }
    }

    #[test]
    fn any_header_is_read(bytes: Vec<u8>) {
        choose(std::iter::once(&bytes[..]));
        is_text(&bytes);
    }
}
