//! Machines that do not speak as they should: their clients get a clear answer, and nobody else notices
//! (SPEC HTTP-8, HTTP-10, HTTP-13).

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::backend::{Server, get, read_head, request, send, try_send};
use crate::world::{HTTP, World, eventually};

/// What the client gets.
#[derive(Debug, Clone, Copy)]
enum Gets {
    /// The proxy's own answer: 502 with this code.
    Code(&'static str),
    /// The Machine's, whole: status and body.
    All(u16, &'static str),
    /// Its beginning, and it can tell that it is no more.
    Part,
}
use Gets::{All, Code, Part};

/// What a Machine does on its first connection once it has read a request; later ones are good.
struct Case {
    name: &'static str,
    says: String,
    /// Whether it stays then, or closes.
    stays: bool,
    gets: Gets,
}

fn case(name: &'static str, says: impl Into<String>, stays: bool, gets: Gets) -> Case {
    Case { name, says: says.into(), stays, gets }
}

/// A head and a body.
fn answer(fields: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{fields}\r\n{body}")
}

fn cases() -> Vec<Case> {
    let ok = |body: &str| answer(&format!("content-length: {}\r\n", body.len()), body);
    vec![
        case(
            "HTTP/1.0 with a length",
            "HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
            true,
            All(200, "hello"),
        ),
        case("HTTP/1.0 without", "HTTP/1.0 200 OK\r\n\r\nhello", false, All(200, "hello")),
        case("HTTP/1.1 until it closes", answer("", "hello"), false, All(200, "hello")),
        case("close", answer("content-length: 5\r\nconnection: close\r\n", "hello"), true, All(200, "hello")),
        case("two responses", ok("hello") + &ok("forged"), true, All(200, "hello")),
        case(
            "a body longer than it says",
            answer("content-length: 5\r\n", "hello, world"),
            true,
            All(200, "hello"),
        ),
        case("a body where none may be", "HTTP/1.1 204 No Content\r\n\r\nhello", true, All(204, "")),
        case(
            "not modified, with a length",
            "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n",
            false,
            All(304, ""),
        ),
        case(
            "the same length twice",
            answer("content-length: 5\r\ncontent-length: 5\r\n", "hello"),
            false,
            All(200, "hello"),
        ),
        case(
            "a length and chunks",
            answer("content-length: 2\r\ntransfer-encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
            false,
            All(200, "hello"),
        ),
        case("line feeds alone", "HTTP/1.1 200 OK\ncontent-length: 5\n\nhello", false, All(200, "hello")),
        case(
            "many words before the answer",
            "HTTP/1.1 100 Continue\r\n\r\n".repeat(10_000) + &ok("hello"),
            false,
            All(200, "hello"),
        ),
        case("nothing at all", "", false, Code("PU02")),
        case("half a status line", "HTTP/1.", false, Code("PU02")),
        case("half a head", "HTTP/1.1 200 OK\r\ncontent-le", false, Code("PU02")),
        case(
            "only words before an answer",
            "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n",
            false,
            Code("PU02"),
        ),
        case("another protocol", "SSH-2.0-OpenSSH_9\r\n\r\n", true, Code("PU01")),
        case("a TLS alert", "\u{15}\u{3}\u{1}\0\u{2}\u{2}(\r\n\r\n", true, Code("PU01")),
        case("a body without a head", "hello, world\r\n\r\n", true, Code("PU01")),
        case("no status", "HTTP/1.1 OK\r\n\r\n", true, Code("PU01")),
        case("a status of two digits", "HTTP/1.1 99 Low\r\n\r\n", true, Code("PU01")),
        case("a status of four digits", "HTTP/1.1 2000 High\r\n\r\n", true, Code("PU01")),
        case("a status of zero", "HTTP/1.1 000 None\r\n\r\n", true, Code("PU01")),
        case("another version", "HTTP/3.0 200 OK\r\n\r\n", true, Code("PU01")),
        case(
            "an upgrade that nobody asked for",
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
            true,
            Code("PU01"),
        ),
        case(
            "different lengths",
            answer("content-length: 5\r\ncontent-length: 6\r\n", "hello"),
            true,
            Code("PU01"),
        ),
        case("a length that is no number", answer("content-length: five\r\n", "hello"), true, Code("PU01")),
        case("a negative length", answer("content-length: -5\r\n", "hello"), true, Code("PU01")),
        case(
            "a coding that it was not asked for",
            answer("transfer-encoding: gzip, chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
            true,
            Code("PU01"),
        ),
        case("a coding without chunks", answer("transfer-encoding: gzip\r\n", "hello"), false, Code("PU01")),
        case(
            "chunks in HTTP/1.0",
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            true,
            Code("PU01"),
        ),
        case("a folded field", answer("x: a\r\n b\r\ncontent-length: 5\r\n", "hello"), true, Code("PU01")),
        case("NUL", answer("x: a\0b\r\ncontent-length: 5\r\n", "hello"), true, Code("PU01")),
        case(
            "a carriage return in a value",
            answer("x: a\rset-cookie: b\r\ncontent-length: 5\r\n", "hello"),
            true,
            Code("PU01"),
        ),
        case("a field without a name", answer(": a\r\ncontent-length: 5\r\n", "hello"), true, Code("PU01")),
        case("a head of 70 kB", answer(&format!("x: {}\r\n", "a".repeat(70_000)), ""), true, Code("PU01")),
        case("a head without an end", answer(&"x: y\r\n".repeat(50_000), ""), true, Code("PU01")),
        case("101 fields", answer(&"x: y\r\n".repeat(101), ""), true, Code("PU01")),
        case("half a body", answer("content-length: 10\r\n", "hello"), false, Part),
        case("half of its chunks", answer("transfer-encoding: chunked\r\n", "5\r\nhello\r\n"), false, Part),
        case(
            "chunks that are none",
            answer("transfer-encoding: chunked\r\n", "5\r\nhello\r\nzz\r\n"),
            true,
            Part,
        ),
        case(
            "a chunk longer than it says",
            answer("transfer-encoding: chunked\r\n", "3\r\nhello\r\n0\r\n\r\n"),
            true,
            Part,
        ),
        case(
            "a size that no number holds",
            answer("transfer-encoding: chunked\r\n", "5\r\nhello\r\n10000000000000000\r\n"),
            true,
            Part,
        ),
    ]
}

#[tokio::test]
async fn http_10_a_machine_that_breaks_the_protocol_harms_its_own_request_and_no_other() {
    for at in [0, 1] {
        let mut world = World::new(&["iad", "lhr"]);
        let edge = world.shared(0, 80).await;
        for (number, Case { name, says, stays, gets }) in cases().into_iter().enumerate() {
            let server = Server::bytes(move |mut stream, count| {
                let says = says.clone();
                Box::pin(async move {
                    while read_head(&mut stream).await.is_some() {
                        let good = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood".to_owned();
                        let says = if count == 0 { &says } else { &good };
                        // The proxy may have closed already.
                        let _sent = stream.write_all(says.as_bytes()).await;
                        if count == 0 && !stays {
                            return;
                        }
                    }
                })
            })
            .await;
            let host = format!("app-{number}.localhost");
            let app = world.app(host.trim_end_matches(".localhost"));
            let machine = world.machine(at, app, server.address, HTTP);
            world.publish();
            let ask = || {
                let mut asked = request("GET", "/", "");
                asked.headers_mut().insert("host", host.parse().unwrap());
                asked
            };
            let got = tokio::time::timeout(Duration::from_secs(30), try_send(edge, ask())).await;
            match (gets, got.unwrap_or_else(|_| panic!("{name} on node {at}: no answer"))) {
                (Code(code), Ok(got)) => {
                    assert_eq!(
                        (got.status, got.header("skein-error")),
                        (502, Some(code)),
                        "{name} on node {at}"
                    );
                    assert!(got.text().contains(got.header("fly-request-id").unwrap()), "{}", got.text());
                }
                (All(status, body), Ok(got)) => {
                    assert_eq!((got.status, got.text()), (status, body), "{name} on node {at}");
                    let lengths = got.headers.get_all("content-length").iter().count();
                    assert!(lengths <= 1 && got.header("skein-error").is_none(), "{name} on node {at}");
                }
                (Part, Err(_)) => {}
                (gets, got) => panic!("{name} on node {at}: {gets:?}, and it got {got:?}"),
            }
            eventually("the slot is free", || world.in_flight(machine) == 0).await;
            let next = send(edge, ask()).await;
            assert_eq!((next.status, next.text()), (200, "good"), "{name} on node {at}: the next request");
            assert_eq!(server.connections(), 2, "{name} on node {at}: the connection is used again");
        }
    }
}

/// A Machine that says nothing holds its own requests, and its slots, and nothing else.
#[tokio::test]
async fn http_10_a_machine_that_stalls_harms_no_other_request() {
    for at in [0, 1] {
        for begins in
            ["", "HTTP/1.1 200 OK\r\ncontent-", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello"]
        {
            let server = Server::bytes(move |mut stream, count| {
                Box::pin(async move {
                    while read_head(&mut stream).await.is_some() {
                        let says = if count == 0 {
                            begins
                        } else {
                            "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood"
                        };
                        // The proxy may have closed already.
                        let _sent = stream.write_all(says.as_bytes()).await;
                    }
                })
            })
            .await;
            let mut world = World::new(&["iad", "lhr"]);
            let app = world.app("hello");
            let machine = world.machine(at, app, server.address, HTTP);
            world.publish();
            let edge = world.shared(0, 80).await;
            let mut waiting = TcpStream::connect(edge).await.unwrap();
            waiting.write_all(b"GET / HTTP/1.1\r\nhost: hello.localhost\r\n\r\n").await.unwrap();
            eventually("it stalls", || world.in_flight(machine) == 1 && server.connections() == 1).await;
            for _ in 0..5 {
                assert_eq!(get(edge, "/").await.text(), "good", "{begins:?} on node {at}");
            }
            drop(waiting);
            eventually("the slot is free", || world.in_flight(machine) == 0).await;
        }
    }
}
