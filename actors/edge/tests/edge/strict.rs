//! What a client may send, byte by byte, and what the Machine sees of it (SPEC HTTP-8).
//!
//! The Machine never sees a request that the client did not send, and another client's request right
//! after is unharmed.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::backend::{Server, get};
use crate::world::{HTTP, World, eventually};

const VECTORS: &str = include_str!("strict/requests.txt");

#[derive(Debug, Default)]
struct Vector {
    name: String,
    bytes: Vec<u8>,
    statuses: Vec<u16>,
    after: String,
    sees: Vec<String>,
    begins: bool,
}

fn vectors() -> Vec<Vector> {
    let mut vectors: Vec<Vector> = Vec::new();
    let body = VECTORS.split_once("\n\n").unwrap().1;
    for line in body.lines().filter(|line| !line.is_empty()) {
        if let Some(name) = line.strip_prefix("# ") {
            vectors.push(Vector { name: name.to_owned(), ..Vector::default() });
            continue;
        }
        let vector = vectors.last_mut().unwrap();
        match line.split_at_checked(2).unwrap_or((line, "")) {
            ("> ", bytes) => vector.bytes.extend(unescape(bytes)),
            ("< ", answers) => {
                for word in answers.split(' ') {
                    match word.parse() {
                        Ok(status) => vector.statuses.push(status),
                        Err(_) => vector.after = word.to_owned(),
                    }
                }
            }
            ("= ", seen) => vector.sees.push(String::from_utf8(unescape(seen)).unwrap()),
            ("~", _) => vector.begins = true,
            _ => panic!("{line}"),
        }
    }
    vectors
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        rest = &rest[letter.len_utf8()..];
        match letter {
            '\\' => {
                let kind = rest.chars().next().unwrap();
                rest = &rest[1..];
                out.push(match kind {
                    'r' => b'\r',
                    'n' => b'\n',
                    't' => b'\t',
                    '0' => 0,
                    '\\' => b'\\',
                    'x' => {
                        let byte = u8::from_str_radix(&rest[..2], 16).unwrap();
                        rest = &rest[2..];
                        byte
                    }
                    _ => panic!("\\{kind}"),
                });
            }
            '{' => match rest.split_once('}') {
                Some((inside, after)) if inside.contains('*') => {
                    let (what, times) = inside.rsplit_once('*').unwrap();
                    out.extend(unescape(what).repeat(times.parse().unwrap()));
                    rest = after;
                }
                Some((inside, after)) if inside.starts_with("GET ") || inside.starts_with("POST ") => {
                    out.extend(format!("{inside} HTTP/1.1\r\nHost: hello.localhost\r\n").bytes());
                    rest = after;
                }
                _ => out.push(b'{'),
            },
            _ => out.extend(letter.to_string().bytes()),
        }
    }
    out
}

/// What a Machine saw.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Sight {
    /// A request, whole: method, target, body.
    Whole(String),
    /// The beginning of one.
    Begun,
    /// Bytes that no proxy may send.
    Wrong(String),
}

type Sights = Arc<Mutex<Vec<Sight>>>;

/// A Machine that takes nothing but what RFC 9112 calls right, and notes every byte.
async fn machine() -> (Server, Sights) {
    let sights = Sights::default();
    let noted = Arc::clone(&sights);
    let server = Server::bytes(move |mut stream, _| {
        let sights = Arc::clone(&noted);
        Box::pin(async move {
            let mut bytes = Vec::new();
            loop {
                let (sight, length) = loop {
                    match whole(&bytes) {
                        Ok(Some((request, length))) => break (Sight::Whole(request), length),
                        Ok(None) => {}
                        Err(wrong) => break (Sight::Wrong(wrong), bytes.len()),
                    }
                    // A reset is an end like any other.
                    if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                        if !bytes.is_empty() {
                            sights.lock().unwrap().push(Sight::Begun);
                        }
                        return;
                    }
                };
                bytes.drain(..length);
                sights.lock().unwrap().push(sight);
                // The proxy may have closed.
                let _sent = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
        })
    })
    .await;
    (server, sights)
}

/// The first request of those bytes, and its length; `None` when it is not there to its end.
fn whole(bytes: &[u8]) -> Result<Option<(String, usize)>, String> {
    let Some(end) = bytes.windows(4).position(|end| end == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end])
        .map_or_else(|_| String::from_utf8_lossy(&bytes[..end]).into_owned(), str::to_owned);
    let wrong = |why: &str| Err(format!("{why}: {head:?}"));
    let mut lines = head.split("\r\n");
    let line: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    let [method, target, "HTTP/1.1"] = line[..] else { return wrong("request line") };
    if head.chars().any(|letter| letter.is_control() && !"\r\n\t".contains(letter)) {
        return wrong("control letters");
    }
    if head.replace("\r\n", "").contains(['\r', '\n']) {
        return wrong("line ends");
    }
    let (mut lengths, mut codings, mut hosts) = (Vec::new(), Vec::new(), 0);
    for field in lines {
        let Some((name, value)) = field.split_once(':') else { return wrong("field") };
        if name.is_empty() || name.contains([' ', '\t']) {
            return wrong("name");
        }
        match &*name.to_ascii_lowercase() {
            "content-length" => lengths.push(value.trim().to_owned()),
            "transfer-encoding" => codings.push(value.trim().to_owned()),
            "host" => hosts += 1,
            _ => {}
        }
    }
    if hosts != 1 {
        return wrong("hosts");
    }
    let rest = &bytes[end + 4..];
    let said =
        |body: &[u8]| format!("{method} {target} {}", String::from_utf8_lossy(body)).trim_end().to_owned();
    match (&lengths[..], &codings[..]) {
        ([], []) => Ok(Some((said(b""), end + 4))),
        ([length], []) => {
            let Ok(length) = length.parse::<usize>() else { return wrong("length") };
            Ok(rest.get(..length).map(|body| (said(body), end + 4 + length)))
        }
        ([], [coding]) if coding == "chunked" => match chunks(rest) {
            Ok(None) => Ok(None),
            Ok(Some((body, length))) => Ok(Some((said(&body), end + 4 + length))),
            Err(()) => wrong("chunks"),
        },
        _ => wrong("framing"),
    }
}

fn chunks(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, ()> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let Some(end) = bytes[at..].windows(2).position(|end| end == b"\r\n") else { return Ok(None) };
        let size = std::str::from_utf8(&bytes[at..at + end]).map_err(|_| ())?;
        let size = usize::from_str_radix(size, 16).map_err(|_| ())?;
        at += end + 2;
        if size == 0 {
            // Trailers, or none.
            while let Some(end) = bytes[at..].windows(2).position(|end| end == b"\r\n") {
                at += end + 2;
                if end == 0 {
                    return Ok(Some((body, at)));
                }
            }
            return Ok(None);
        }
        let Some(data) = bytes.get(at..at + size + 2) else { return Ok(None) };
        let Some(data) = data.strip_suffix(b"\r\n") else { return Err(()) };
        body.extend(data);
        at += size + 2;
    }
}

/// The statuses of all that the client gets until the proxy closes the connection.
async fn exchange(edge: SocketAddr, vector: &Vector) -> String {
    let mut stream = TcpStream::connect(edge).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut reader, mut writer) = stream.split();
    let mut bytes = vector.bytes.clone();
    if vector.after == "open" {
        bytes.extend(b"GET /still HTTP/1.1\r\nHost: hello.localhost\r\nConnection: close\r\n\r\n");
    }
    let sending = async {
        // What is refused is not read to its end.
        let _refused = writer.write_all(&bytes).await;
        if vector.after == "eof" {
            let _left = writer.shutdown().await;
        }
    };
    let mut answer = Vec::new();
    let reading = async {
        let read = tokio::time::timeout(Duration::from_secs(30), reader.read_to_end(&mut answer)).await;
        // A reset after the answer is an end like any other.
        drop(read.unwrap_or_else(|_| panic!("{}: the connection stays open", vector.name)));
    };
    tokio::join!(sending, reading);
    String::from_utf8_lossy(&answer).into_owned()
}

fn statuses(answer: &str) -> Vec<u16> {
    let starts = answer.match_indices("HTTP/1.").map(|(at, _)| at);
    starts.filter_map(|at| answer.get(at + 9..at + 12)?.parse().ok()).collect()
}

#[tokio::test]
async fn http_8_each_vector_gets_its_answer_and_the_machine_sees_what_was_sent_here_and_elsewhere() {
    for at in [0, 1] {
        let (server, sights) = machine().await;
        let mut world = World::new(&["iad", "lhr"]);
        let app = world.app("hello");
        world.machine(at, app, server.address, HTTP);
        world.publish();
        let edge = world.shared(0, 80).await;
        let mut wrong = Vec::new();
        for vector in vectors() {
            let answer = exchange(edge, &vector).await;
            let mut expected = vector.statuses.clone();
            let mut sees = vector.sees.clone();
            if vector.after == "open" {
                expected.push(200);
                sees.push("GET /still".to_owned());
            }
            let got = statuses(&answer);
            if got != expected && !(vector.after == "eof" && [&[][..], &[400]].contains(&&got[..])) {
                wrong.push(format!("{}: {got:?} instead of {expected:?}", vector.name));
            }
            assert_eq!(get(edge, "/after").await.status, 200, "{}: another client", vector.name);
            let seen = std::mem::take(&mut *sights.lock().unwrap());
            let (begun, seen): (Vec<_>, Vec<_>) = seen.into_iter().partition(|sight| *sight == Sight::Begun);
            sees.push("GET /after".to_owned());
            let sees: Vec<Sight> = sees.into_iter().map(Sight::Whole).collect();
            if seen != sees || (!begun.is_empty() && !vector.begins) {
                wrong
                    .push(format!("{}: the Machine saw {seen:?} {begun:?} instead of {sees:?}", vector.name));
            }
            if vector.begins {
                // What was begun there ends before the next vector.
                eventually("no request is left", || world.nodes[0].edge.counts().open == 0).await;
            }
        }
        assert!(wrong.is_empty(), "node {at}:\n{}", wrong.join("\n"));
    }
}

#[test]
fn http_8_the_vectors_are_read_as_they_are_meant() {
    assert!(vectors().len() > 90);
    for vector in vectors() {
        assert!(["open", "close", "eof"].contains(&&*vector.after), "{vector:?}");
        let ends = vector.after == "eof" || (vector.after == "close" && vector.sees.is_empty());
        assert!(!vector.bytes.is_empty() && (ends || !vector.statuses.is_empty()), "{vector:?}");
    }
    assert_eq!(unescape("\\r\\x41{b*3}\\0{"), b"\rAbbb\0{");
    assert_eq!(whole(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap().unwrap().0, "GET /");
    assert!(whole(b"GET / HTTP/1.1\nhost: a\r\n\r\n").is_err());
    assert!(whole(b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\na").is_err());
}
