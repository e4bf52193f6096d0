//! What is tried again, and what never is (SPEC LB-6). `docs/http.md` has the table.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use skein_core::machine::MachineState;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::backend::{Server, nowhere, read_head, request, send, text};
use crate::world::{HTTP, World};

/// How the Machine fails that is asked first.
#[derive(Debug, Clone, Copy)]
enum Fails {
    /// Nothing of the request reaches it.
    Refuses,
    /// It was stopped, and the edge does not know.
    Stopped,
    /// It takes the request and its effect, and closes.
    Dies,
    /// It takes them, and resets the connection.
    Resets,
    /// It takes them, and begins an answer that no one can read.
    Babbles,
    /// It takes them, and breaks off in the answer's body.
    BreaksOff,
    /// It answered one request and closes the connection that is kept, on the next one.
    DiesOnAKeptOne,
}

use Fails::{Babbles, BreaksOff, Dies, DiesOnAKeptOne, Refuses, Resets, Stopped};

/// A server that notes each request it reads whole, and then fails.
async fn failing(fails: Fails, effects: Arc<AtomicUsize>) -> Server {
    Server::bytes(move |mut stream, _| {
        let effects = Arc::clone(&effects);
        Box::pin(async move {
            for count in 0.. {
                let Some(head) = read_head(&mut stream).await else { return };
                if head.contains("content-length: 4") {
                    let mut body = [0; 4];
                    if stream.read_exact(&mut body).await.is_err() {
                        return;
                    }
                }
                if head.contains("/warm") {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nwarm").await.unwrap();
                    continue;
                }
                assert!(count == 0 || matches!(fails, DiesOnAKeptOne));
                effects.fetch_add(1, Ordering::SeqCst);
                let says: &[u8] = match fails {
                    Refuses | Stopped | Dies | DiesOnAKeptOne => b"",
                    Resets => return reset(stream),
                    Babbles => b"HTTP/1.1 2000 what\r\n\r\n",
                    BreaksOff => b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello",
                };
                // The proxy may have closed already.
                let _sent = stream.write_all(says).await;
                return;
            }
        })
    })
    .await
}

/// Closes with RST.
fn reset(stream: TcpStream) {
    let socket = socket2::Socket::from(stream.into_std().unwrap());
    socket.set_linger(Some(Duration::ZERO)).unwrap();
}

/// SPEC LB-5: a stale view costs a hop, never an error. What was known when a request came may be old by the
/// time that its Machine dies.
#[tokio::test]
async fn lb_5_who_fails_late_is_tried_again_by_what_is_known_then() {
    for (at, refuses) in [(0, false), (1, false), (1, true)] {
        let mut world = World::new(&["iad", "lhr", "nrt"]);
        let (took, end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (taken, ending) = (Arc::clone(&took), Arc::clone(&end));
        let dying = Server::bytes(move |mut stream, _| {
            let (taken, ending) = (Arc::clone(&taken), Arc::clone(&ending));
            Box::pin(async move {
                read_head(&mut stream).await.unwrap();
                taken.notify_one();
                ending.notified().await;
            })
        })
        .await;
        let other = Server::answering(|_| text(200, "other")).await;
        let app = world.app("hello");
        let first = world.machine(at, app, dying.address, HTTP);
        let second = world.machine(2, app, other.address, HTTP);
        world.change(second, |machine| machine.state = MachineState::Stopped);
        world.publish();
        let edge = world.shared(0, 80).await;
        let asking = send(edge, request("GET", "/", ""));
        let meanwhile = async {
            took.notified().await;
            world.change(second, |machine| machine.state = MachineState::Started);
            world.change(first, |machine| machine.cordoned = refuses);
            world.publish();
            end.notify_one();
        };
        let (got, ()) = tokio::join!(asking, meanwhile);
        assert_eq!((got.status, got.text()), (200, "other"), "node {at}");
    }
}

/// SPEC LB-6: a counter of effects stands for the app's database. A request that an app may have seen is
/// repeated only if its method says that this does no harm (RFC 9110 section 9.2.2).
#[tokio::test]
async fn lb_6_no_failure_doubles_a_post_and_a_get_finds_another_machine() {
    const REPEATED: [&str; 5] = ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"];
    for at in [0, 1] {
        let mut world = World::new(&["iad", "lhr", "nrt"]);
        let edge = world.shared(0, 80).await;
        for fails in [Refuses, Stopped, Dies, Resets, Babbles, BreaksOff, DiesOnAKeptOne] {
            for method in REPEATED.into_iter().chain(["POST", "PATCH"]) {
                let (broken, whole) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
                let first = failing(fails, Arc::clone(&broken)).await;
                let count = Arc::clone(&whole);
                let second = Server::answering(move |_| {
                    count.fetch_add(1, Ordering::SeqCst);
                    text(200, "done")
                })
                .await;
                let name = format!("{fails:?}-{method}").to_ascii_lowercase();
                let host: http::HeaderValue = format!("{name}.localhost").parse().unwrap();
                let app = world.app(&name);
                let address = if matches!(fails, Refuses) { nowhere().await } else { first.address };
                let near = world.machine(at, app, address, HTTP);
                world.machine(2, app, second.address, HTTP);
                world.publish();
                let ask = |method: &str, target: &str, body: &'static str| {
                    let mut asked = request(method, target, body);
                    asked.headers_mut().insert("host", host.clone());
                    asked
                };
                match fails {
                    Stopped => {
                        world.change(near, |machine| machine.state = MachineState::Stopped);
                        world.publish_local();
                    }
                    DiesOnAKeptOne => {
                        assert_eq!(send(edge, ask("GET", "/warm", "")).await.text(), "warm")
                    }
                    Refuses | Dies | Resets | Babbles | BreaksOff => {}
                }
                let asked = ask(method, "/", if method == "POST" { "body" } else { "" });
                let got = crate::backend::try_send(edge, asked).await;
                let seen = (broken.load(Ordering::SeqCst), whole.load(Ordering::SeqCst));
                let what = format!("{method} {fails:?} on node {at}: {got:?}");
                match fails {
                    // Nothing reached the app: any method goes elsewhere.
                    Refuses | Stopped => assert_eq!((got.unwrap().status, seen), (200, (0, 1)), "{what}"),
                    // The answer has begun: there is no going back.
                    BreaksOff if method != "HEAD" => {
                        assert!(got.is_err(), "{what}");
                        assert_eq!(seen, (1, 0), "{what}");
                    }
                    BreaksOff => assert_eq!((got.unwrap().status, seen), (200, (1, 0)), "{what}"),
                    Dies | Resets | Babbles | DiesOnAKeptOne if REPEATED.contains(&method) => {
                        let (got, (broken, whole)) = (got.unwrap(), seen);
                        assert_eq!((got.status, whole), (200, 1), "{what}");
                        // A kept connection that closes says nothing against its Machine: it is asked again.
                        let most = if matches!(fails, DiesOnAKeptOne) { 4 } else { 1 };
                        assert!((1..=most).contains(&broken), "{what}: {broken}");
                    }
                    Dies | Resets | Babbles | DiesOnAKeptOne => {
                        let got = got.unwrap();
                        assert_eq!((got.status, seen), (502, (1, 0)), "{what}");
                        assert!(["PU01", "PU02"].contains(&got.header("skein-error").unwrap()), "{what}");
                    }
                }
            }
        }
    }
}

/// A kill, resets and timeouts all at once, and many clients: each POST has its effect at most once, and
/// exactly once where the client was told 200.
#[tokio::test]
async fn lb_6_posts_under_failures_have_their_effect_at_most_once() {
    let effects: Arc<std::sync::Mutex<std::collections::BTreeMap<String, u32>>> = Arc::default();
    let mut servers = Vec::new();
    for turn in 0..4usize {
        let effects = Arc::clone(&effects);
        let server = Server::bytes(move |mut stream, count| {
            let effects = Arc::clone(&effects);
            Box::pin(async move {
                for served in 0.. {
                    let Some(head) = read_head(&mut stream).await else { return };
                    let key = head.split(' ').nth(1).unwrap().to_owned();
                    *effects.lock().unwrap().entry(key).or_default() += 1;
                    match (turn + count + served) % 5 {
                        0 => return reset(stream),
                        1 => return,
                        // The proxy may have closed already.
                        2 => {
                            let _half = stream.write_all(b"HTTP/1.1 200 OK\r\nconte").await;
                            return;
                        }
                        _ => {
                            let _sent =
                                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                        }
                    }
                }
            })
        })
        .await;
        servers.push(server);
    }
    let mut world = World::new(&["iad", "lhr"]);
    let app = world.app("hello");
    for (turn, server) in servers.iter().enumerate() {
        world.machine(turn % 2, app, server.address, HTTP);
    }
    world.machine(0, app, nowhere().await, HTTP);
    world.publish();
    let edge = world.shared(0, 80).await;
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..8 {
        clients.spawn(async move {
            let mut told = Vec::new();
            for turn in 0..25 {
                let key = format!("/{client}-{turn}");
                told.push((key.clone(), send(edge, request("POST", &key, "")).await.status));
            }
            told
        });
    }
    let told: Vec<(String, u16)> = clients.join_all().await.into_iter().flatten().collect();
    let effects = effects.lock().unwrap();
    assert!(told.iter().any(|(_, status)| *status == 200) && told.iter().any(|(_, status)| *status == 502));
    for (key, status) in &told {
        let effects = effects.get(key).copied().unwrap_or(0);
        assert!(effects <= 1, "{key} had its effect {effects} times");
        assert!(*status != 200 || effects == 1, "{key} was told 200");
    }
}
