//! Which app, which headers, which answers of the proxy's own (SPEC PUB-4, PUB-5, PUB-7, HTTP-2, 3, 13).

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::backend::{Server, get, read_head, request, send, talk, text};
use crate::world::{HTTP, World};

async fn hello(regions: &[&str], at: usize) -> (World, Server) {
    let server = Server::answering(|_| text(200, "hello")).await;
    let mut world = World::new(regions);
    let app = world.app("hello");
    world.machine(at, app, server.address, HTTP);
    world.publish();
    (world, server)
}

/// SPEC HTTP-2, HTTP-3, PUB-5: through one node and through two alike.
#[tokio::test]
async fn http_2_the_machine_and_the_client_get_what_the_proxy_knows_here_and_elsewhere() {
    for at in [0, 1] {
        let (world, server) = hello(&["iad", "lhr"], at).await;
        let edge = world.shared(0, 80).await;
        let mut asked = request("GET", "/a/b?c=d", "");
        for (name, value) in [
            ("x-mine", "1"),
            ("fly-client-ip", "6.6.6.6"),
            ("fly-replay-src", "instance=forged"),
            ("connection", "x-secret"),
            ("x-secret", "2"),
            ("x-forwarded-for", "192.0.2.7"),
        ] {
            asked.headers_mut().insert(name, value.parse().unwrap());
        }
        let got = send(edge, asked).await;
        assert_eq!((got.status, got.text()), (200, "hello"));
        let seen = &server.seen()[0];
        assert_eq!(seen.target, "/a/b?c=d");
        assert_eq!(seen.header("host"), Some("hello.localhost"));
        assert_eq!(seen.header("fly-client-ip"), Some("127.0.0.1"));
        assert_eq!(seen.header("fly-forwarded-port"), Some("80"));
        assert_eq!(seen.header("fly-region"), Some("iad"));
        assert_eq!(seen.header("x-forwarded-for"), Some("192.0.2.7, 127.0.0.1, 203.0.113.1"));
        assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
        assert_eq!(seen.header("via"), Some("1.1 skein"));
        assert_eq!(seen.header("x-mine"), Some("1"));
        assert!(seen.header("x-request-start").unwrap().starts_with("t="));
        assert!(seen.header("traceparent").unwrap().ends_with("-00"));
        for gone in ["fly-replay-src", "x-secret", "connection", "transfer-encoding"] {
            assert_eq!(seen.header(gone), None, "{gone}");
        }
        let id = got.header("fly-request-id").unwrap();
        assert!(id.ends_with("-iad"));
        assert_eq!(seen.header("fly-request-id"), Some(id));
        assert!(got.header("server").unwrap().starts_with("Skein/"));
        assert_eq!(got.header("via"), Some("1.1 skein"));
    }
}

#[tokio::test]
async fn pub_7_an_unknown_host_is_told_so_on_a_shared_address_and_any_host_passes_on_a_dedicated_one() {
    let (mut world, server) = hello(&["iad"], 0).await;
    let app = world.app("other");
    world.machine(0, app, server.address, HTTP);
    let dedicated = world.dedicated(app);
    world.publish();
    let shared = world.shared(0, 80).await;
    for host in ["nothing.localhost", "hello.example.com", "localhost", "hello.localhost.evil"] {
        let mut asked = request("GET", "/", "");
        asked.headers_mut().insert("host", host.parse().unwrap());
        let got = send(shared, asked).await;
        assert_eq!((got.status, got.header("skein-error")), (404, Some("unknown-host")), "{host}");
        assert!(got.text().contains("skein apps list"), "{}", got.text());
    }
    let mut asked = request("GET", "/", "");
    asked.headers_mut().insert("host", "www.example.com".parse().unwrap());
    let got = send(world.map(0, dedicated, 80).await, asked).await;
    assert_eq!(got.status, 200);
}

/// SPEC PUB-4: the refusal beside what is granted.
#[tokio::test]
async fn pub_4_a_port_without_a_service_is_closed_at_once() {
    let (mut world, server) = hello(&["iad"], 0).await;
    let get = b"GET / HTTP/1.1\r\nhost: hello.localhost\r\nconnection: close\r\n\r\n";
    assert_eq!(talk(world.shared(0, 81).await, get).await, "");
    assert!(talk(world.shared(0, 80).await, get).await.starts_with("HTTP/1.1 200"));
    // An app without an address is not reachable by its name.
    let tls = r#"{"internal_port":1,"ports":[{"port":443,"handlers":["http","tls"]}]}"#;
    let app = world.app("secure");
    world.machine(0, app, server.address, tls);
    world.publish();
    assert_eq!(talk(world.shared(0, 443).await, get).await, "", "TLS is not served by this build");
    assert_eq!(server.seen().len(), 1);
}

/// SPEC HTTP-13.
#[tokio::test]
async fn http_13_no_machine_is_pr01_with_retry_after_and_json_for_those_who_ask() {
    let (mut world, server) = hello(&["iad"], 0).await;
    let edge = world.shared(0, 80).await;
    assert_eq!(get(edge, "/").await.status, 200);
    world.change(skein_core::MachineId::from_bits(1), |machine| {
        machine.state = skein_core::machine::MachineState::Stopped;
    });
    world.publish();
    let got = get(edge, "/").await;
    assert_eq!((got.status, got.header("skein-error")), (503, Some("PR01")));
    assert_eq!(got.header("retry-after"), Some("1"));
    assert!(got.text().contains(got.header("fly-request-id").unwrap()));
    let mut asked = request("GET", "/", "");
    asked.headers_mut().insert("accept", "application/json".parse().unwrap());
    let got = send(edge, asked).await;
    let json: serde_json::Value = serde_json::from_slice(&got.body).unwrap();
    assert_eq!(json["error"], "PR01");
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn http_8_heads_that_lie_about_their_length_are_refused_and_the_connection_closed() {
    let (world, server) = hello(&["iad"], 0).await;
    let edge = world.shared(0, 80).await;
    let head = "POST / HTTP/1.1\r\nhost: hello.localhost\r\n";
    for bad in [
        format!("{head}content-length: 3\r\ncontent-length: 4\r\n\r\nabcd"),
        format!("{head}content-length: +3\r\n\r\nabc"),
        format!("{head}x: a\r\n b\r\n\r\n"),
        format!("{head}x: a\0b\r\n\r\n"),
        format!("{head}x: {}\r\n\r\n", "a".repeat(100_000)),
        "GET / HTTP/1.1\r\nhost: hello.localhost\r\nhost: hello.localhost\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\n\r\n".to_owned(),
        "CONNECT hello.localhost:80 HTTP/1.1\r\nhost: hello.localhost\r\n\r\n".to_owned(),
        "garbage HTTP/1.1\r\n\r\n".to_owned(),
    ] {
        let answer = talk(edge, bad.as_bytes()).await;
        let refused =
            ["HTTP/1.1 400", "HTTP/1.1 405", "HTTP/1.1 431"].iter().any(|status| answer.starts_with(status));
        let start: String = bad.chars().take(120).collect();
        assert!(refused, "{start:?} got {answer:?}");
    }
    assert!(server.seen().is_empty(), "{:?}", server.seen());
    assert_eq!(get(edge, "/").await.status, 200);
}

#[tokio::test]
async fn keep_alive_serves_many_requests_and_http_1_0_gets_one() {
    let (world, server) = hello(&["iad"], 0).await;
    let edge = world.shared(0, 80).await;
    let two = b"GET /1 HTTP/1.1\r\nhost: hello.localhost\r\n\r\nGET /2 HTTP/1.1\r\nhost: hello.localhost\r\nconnection: close\r\n\r\n";
    let answer = talk(edge, two).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
    let answer = talk(edge, b"GET /3 HTTP/1.0\r\nhost: hello.localhost\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("via: 1.0 skein"), "{answer}");
    assert_eq!(server.seen().len(), 3);
}

/// SPEC HTTP-4: the edge answers 100 once the body is wanted, and never when it is not.
#[tokio::test]
async fn http_4_who_expects_100_gets_it_when_a_machine_wants_the_body_and_else_the_answer() {
    for at in [0, 1] {
        let (world, server) = hello(&["iad", "lhr"], at).await;
        let edge = world.shared(0, 80).await;
        let head = |host: &str| {
            format!(
                "POST / HTTP/1.1\r\nhost: {host}\r\nexpect: 100-continue\r\nconnection: close\r\ncontent-length: 5\r\n\r\n"
            )
        };
        let mut client = TcpStream::connect(edge).await.unwrap();
        client.write_all(head("hello.localhost").as_bytes()).await.unwrap();
        assert_eq!(read_head(&mut client).await.unwrap(), "HTTP/1.1 100 Continue\r\n\r\n", "node {at}");
        client.write_all(b"later").await.unwrap();
        assert!(read_head(&mut client).await.unwrap().starts_with("HTTP/1.1 200"));
        let seen = &server.seen()[0];
        assert_eq!((&seen.body[..], seen.header("expect")), (&b"later"[..], None));
        let answer = talk(edge, head("nobody.localhost").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
        assert_eq!(server.seen().len(), 1);
    }
}

/// SPEC HTTP-6.
#[tokio::test]
async fn http_6_force_https_redirects_to_the_same_host_and_path() {
    let server = Server::answering(|_| text(200, "")).await;
    let mut world = World::new(&["iad"]);
    let app = world.app("hello");
    let services = r#"{"internal_port":1,"ports":[{"port":80,"handlers":["http"],"force_https":true}]}"#;
    world.machine(0, app, server.address, services);
    world.publish();
    let got = get(world.shared(0, 80).await, "/x?y=z").await;
    assert_eq!((got.status, got.header("location")), (301, Some("https://hello.localhost/x?y=z")));
    assert!(server.seen().is_empty());
}

/// SPEC HTTP-3: the options of the port that was dialled, here and elsewhere.
#[tokio::test]
async fn http_3_response_options_add_and_remove_and_pristine_leaves_the_apps_headers_alone() {
    const SERVICES: &str = r#"{"internal_port":8080,"concurrency":{"type":"requests"},"ports":[
        {"port":80,"handlers":["http"],"http_options":{"response":{"headers":
            {"x-one":"1","x-list":["2","3"],"x-gone":false,"x-both":"added","server":false}}}},
        {"port":81,"handlers":["http"],"http_options":{"response":{"pristine":true}}}]}"#;
    let server = Server::answering(|_| {
        let mut response = text(200, "hello");
        for (name, value) in [
            ("server", "mine"),
            ("via", "1.1 mine"),
            ("fly-request-id", "mine"),
            ("fly-cache-status", "MISS"),
            ("x-gone", "here"),
            ("x-both", "app"),
            ("fly-replay-cache", "/x"),
        ] {
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        response
    })
    .await;
    for at in [0, 1] {
        let mut world = World::new(&["iad", "lhr"]);
        let app = world.app("hello");
        world.machine(at, app, server.address, SERVICES);
        world.publish();
        let got = get(world.shared(0, 80).await, "/").await;
        let all = |name: &str| {
            let values = got.headers.get_all(name).iter().map(|value| value.to_str().unwrap());
            values.collect::<Vec<_>>().join("|")
        };
        assert_eq!(
            (all("x-one"), all("x-list"), all("x-both")),
            ("1".into(), "2|3".into(), "app|added".into())
        );
        assert_eq!((all("x-gone"), all("server")), (String::new(), String::new()));
        assert_eq!(all("via"), "1.1 mine|1.1 skein");
        assert!(all("fly-request-id").ends_with("-iad"));
        let got = get(world.shared(0, 81).await, "/").await;
        for (name, value) in [
            ("server", "mine"),
            ("via", "1.1 mine"),
            ("fly-request-id", "mine"),
            ("fly-cache-status", "MISS"),
        ] {
            let values: Vec<_> = got.headers.get_all(name).iter().collect();
            assert_eq!(values, [value], "{name} on node {at}");
        }
        assert!(got.header("x-gone").is_some() && got.header("fly-replay-cache").is_none());
    }
}

/// SPEC HTTP-3: an app whose requests come back to it.
#[tokio::test]
async fn http_3_a_request_that_goes_round_in_a_loop_is_508_after_three_passes() {
    let (world, server) = hello(&["iad"], 0).await;
    let edge = world.shared(0, 80).await;
    for (via, status) in [
        ("1.1 skein, 1.1 skein, 2 skein", 200),
        ("1.1 skein, 1.1 skein, 1.1 skein, 1.1 skein", 508),
        ("1.1 skein, 1.1 other, 1.1 other, 1.1 other, 1.1 other", 200),
    ] {
        let mut asked = request("GET", "/", "");
        asked.headers_mut().insert("via", via.parse().unwrap());
        let got = send(edge, asked).await;
        assert_eq!(
            (got.status, got.header("skein-error")),
            (status, (status == 508).then_some("loop")),
            "{via}"
        );
    }
    assert_eq!(server.seen().len(), 2);
}

/// SPEC OBS-2.
#[tokio::test]
async fn obs_2_responses_bytes_and_connects_are_counted_per_app() {
    let (world, _server) = hello(&["iad"], 0).await;
    let edge = world.shared(0, 80).await;
    get(edge, "/").await;
    let metrics = world.nodes[0].edge.metrics();
    let labels = "app=\"hello\",region=\"iad\",host=\"iad-1\"";
    for line in [
        format!("fly_edge_http_responses_count{{{labels},status=\"200\"}} 1"),
        format!("fly_edge_http_response_time_seconds_count{{{labels}}} 1"),
        format!("fly_edge_tcp_connects_count{{{labels}}} 1"),
        format!("fly_app_concurrency{{{labels},instance=\"00000000000001\"}} 0"),
    ] {
        assert!(metrics.contains(&line), "{line} is missing in\n{metrics}");
    }
}
