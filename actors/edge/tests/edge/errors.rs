//! Every error that a client of HTTP can meet, caused for real (SPEC HTTP-13, OBS-3). `docs/http.md` lists
//! them.

use std::net::SocketAddr;
use std::time::Duration;

use http::Request;
use skein_core::code::ErrorCode;
use skein_core::machine::MachineState;
use skein_core::{AppId, MachineId};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::backend::{Body, Server, nowhere, read_head, replay, request, send, talk, text};
use crate::explain::story;
use crate::world::{HTTP, World, eventually};

/// What clients can meet of the reference's codes, and the proxy's own.
const MET: [(&str, u16); 26] = [
    ("PA01", 413),
    ("PA02", 502),
    ("PA03", 502),
    ("PA04", 502),
    ("PA05", 502),
    ("PC01", 502),
    ("PC05", 504),
    ("PC06", 502),
    ("PM02", 503),
    ("PR01", 503),
    ("PR02", 502),
    ("PR03", 503),
    ("PR04", 503),
    ("PU01", 502),
    ("PU02", 502),
    ("unknown-host", 404),
    ("no-service", 404),
    ("bad-host", 400),
    ("bad-target", 400),
    ("bad-transfer-encoding", 400),
    ("bad-body", 400),
    ("target-too-long", 414),
    ("connect-refused", 405),
    ("loop", 508),
    ("PR01 here", 503),
    ("PR01 elsewhere", 503),
];

/// A world in which a request meets an error, and what has to live meanwhile.
struct Scene {
    world: World,
    _servers: Vec<Server>,
    _tasks: JoinSet<()>,
    _held: Vec<TcpStream>,
    edge: SocketAddr,
    asks: Asks,
}

enum Asks {
    Get,
    Post(&'static str),
    With(&'static str, &'static str),
    /// Bytes that no HTTP library would send.
    Bytes(String),
}

impl Asks {
    fn request(&self) -> Request<Body> {
        match self {
            Self::Get => request("GET", "/", ""),
            Self::Post(body) => request("POST", "/", *body),
            Self::With(name, value) => {
                let mut asked = request("GET", "/", "");
                asked.headers_mut().insert(*name, value.parse().unwrap());
                asked
            }
            Self::Bytes(_) => panic!("these are bytes"),
        }
    }
}

/// A server that says `bytes` to each request, and closes.
async fn says(bytes: &'static str) -> Server {
    Server::bytes(move |mut stream, _| {
        Box::pin(async move {
            if read_head(&mut stream).await.is_some() {
                // The proxy may have closed already.
                let _sent = tokio::io::AsyncWriteExt::write_all(&mut stream, bytes.as_bytes()).await;
            }
        })
    })
    .await
}

/// An address that answers no handshake, and what keeps it so.
async fn full_backlog() -> (SocketAddr, Vec<TcpStream>, socket2::Socket) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut held = Vec::new();
    while let Ok(connected) =
        tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await
    {
        held.push(connected.unwrap());
    }
    (address, held, socket)
}

async fn scene(code: &str, at: usize) -> Scene {
    let (mut servers, mut tasks, mut held) = (Vec::new(), JoinSet::new(), Vec::new());
    let mut world = World::with(&["iad", "lhr"], |config| {
        config.queue_timeout = std::time::Duration::from_millis(50);
        config.replay_budget = 10;
        config.connect_timeout = Duration::from_millis(300);
    });
    let app = world.app("hello");
    let long = format!("GET /{} HTTP/1.1\r\nhost: hello.localhost\r\n\r\n", "a".repeat(32_768));
    let head = "POST / HTTP/1.1\r\nhost: hello.localhost\r\ntransfer-encoding: ";
    let asks = match code {
        "PA01" => Asks::Post("eleven byte"),
        "unknown-host" => Asks::With("host", "nobody.localhost"),
        "bad-host" => Asks::With("host", "user@hello.localhost"),
        "bad-target" => Asks::Bytes("GET a HTTP/1.1\r\nhost: hello.localhost\r\n\r\n".into()),
        "bad-transfer-encoding" => Asks::Bytes(format!("{head}gzip, chunked\r\n\r\n0\r\n\r\n")),
        "bad-body" => Asks::Bytes(format!("{head}chunked\r\n\r\nzz\r\n")),
        "target-too-long" => Asks::Bytes(long),
        "connect-refused" => Asks::Bytes("CONNECT a:80 HTTP/1.1\r\nhost: hello.localhost\r\n\r\n".into()),
        "loop" => Asks::With("via", "1.1 skein, 1.1 skein, 1.1 skein, 1.1 skein"),
        _ => Asks::Get,
    };
    let instruction = match code {
        "PA01" | "PA02" => Some("region=any"),
        "PA03" => Some("region=nonsense"),
        "PA04" => Some("app=apart"),
        "PA05" => Some("app=stranger"),
        "PR02" => Some("instance=no-such-machine"),
        _ => None,
    };
    let server = match (instruction, code) {
        (Some(instruction), _) => Server::answering(move |_| replay(instruction)).await,
        (None, "PU01") => says("SSH-2.0-OpenSSH_9\r\n\r\n").await,
        (None, "PU02") => says("HTTP/1.1 200 OK\r\ncontent-le").await,
        (None, "PR04") => Server::raw(|_| Box::pin(std::future::pending())).await,
        (None, _) => Server::answering(|_| text(200, "hello")).await,
    };
    let (mut address, mut services) = (server.address, HTTP);
    servers.push(server);
    match code {
        "PC01" | "PR03" => address = nowhere().await,
        // No packet leaves for there.
        "PC06" => address = "255.255.255.255:9".parse().unwrap(),
        "PC05" => {
            let (silent, connections, socket) = full_backlog().await;
            address = silent;
            held = connections;
            tasks.spawn(async move {
                let _listening = socket;
                std::future::pending().await
            });
        }
        "PR04" => {
            services = r#"{"internal_port":8080,"concurrency":{"type":"requests","hard_limit":1},
                "ports":[{"port":80,"handlers":["http"]}]}"#;
        }
        "no-service" => {
            services = r#"{"internal_port":8080,"ports":[{"port":443,"handlers":["tls"]}]}"#;
            let other = world.app("other");
            world.machine(0, other, address, HTTP);
        }
        _ => {}
    }
    for _ in 0..if code == "PR03" { 33 } else { 1 } {
        world.machine(at, app, address, services);
    }
    for (name, org, network) in [("stranger", 2, "default"), ("apart", 1, "another")] {
        let app: AppId = world.app_of(name, org, network);
        world.machine(0, app, address, HTTP);
    }
    let first = MachineId::from_bits(if code == "no-service" { 2 } else { 1 });
    if code.starts_with("PR01") {
        world.change(first, |machine| machine.state = MachineState::Stopped);
    }
    if code == "PR01 here" || code == "PR01 elsewhere" {
        // The edge does not know yet.
        world.change(first, |machine| machine.state = MachineState::Started);
        world.publish();
        world.change(first, |machine| machine.state = MachineState::Stopped);
        world.publish_local();
    } else {
        world.publish();
    }
    let edge = world.shared(0, 80).await;
    if code == "PR04" {
        tasks.spawn(async move { drop(send(edge, request("GET", "/", "")).await) });
        eventually("the first is in flight", || world.in_flight(first) == 1).await;
    }
    if code == "PM02" {
        let cut = skein_core::fault::LinkRule { cut: true, ..Default::default() };
        world.nodes[0].links.set_faults([(world.nodes[1].number, cut)].into());
        world.nodes[1].links.set_faults([(world.nodes[0].number, cut)].into());
    }
    Scene { world, _servers: servers, _tasks: tasks, _held: held, edge, asks }
}

/// Status, `skein-error`, all fields, and body of the proxy's answer.
async fn answer(scene: &Scene, json: bool) -> (u16, http::HeaderMap, String) {
    if let Asks::Bytes(bytes) = &scene.asks {
        let accept = if json { "\r\naccept: application/json\r\n" } else { "\r\n" };
        let (line, rest) = bytes.split_once("\r\n").unwrap();
        let answer = talk(scene.edge, format!("{line}{accept}{rest}").as_bytes()).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let mut fields = http::HeaderMap::new();
        for line in head.lines().skip(1) {
            let (name, value) = line.split_once(": ").unwrap();
            fields.append(name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap());
        }
        return (head[9..12].parse().unwrap(), fields, body.to_owned());
    }
    let mut asked = scene.asks.request();
    if json {
        asked.headers_mut().insert("accept", "text/html, application/json;q=0.9".parse().unwrap());
    }
    let got = send(scene.edge, asked).await;
    (got.status, got.headers.clone(), got.text().to_owned())
}

#[tokio::test]
async fn obs_3_each_code_is_told_by_status_field_and_help_when_what_it_names_happens() {
    for at in [0, 1] {
        for (name, status) in MET {
            if (at == 0 && ["PM02", "PR01 elsewhere"].contains(&name)) || (at == 1 && name == "PR01 here") {
                continue;
            }
            let code = name.split(' ').next().unwrap();
            let scene = scene(name, at).await;
            for json in [false, true] {
                let (got, fields, body) = answer(&scene, json).await;
                let field = |name: &str| fields.get(name).map(|value| value.to_str().unwrap());
                assert_eq!((got, field("skein-error")), (status, Some(code)), "{name} on node {at}: {body}");
                let id = field("fly-request-id").unwrap();
                assert_eq!(body.lines().count(), 1, "{body:?}");
                assert_eq!(field("cache-control"), Some("no-store"));
                let told = story(&scene.world.nodes[0].edge, id).await;
                assert_eq!((told.ended.status, told.ended.code.as_deref()), (Some(status), Some(code)));
                assert!(told.ended.why.is_some_and(|why| body.contains(&*why) || json), "{body}");
                let again = ["PR01", "PR03", "PR04"].contains(&code);
                assert_eq!(field("retry-after"), again.then_some("1"), "{name}");
                if json {
                    let json: serde_json::Value = serde_json::from_str(&body).unwrap();
                    assert_eq!(
                        (json["error"].as_str(), json["status"].as_u64()),
                        (Some(code), Some(status.into()))
                    );
                    assert_eq!(json["request_id"].as_str(), Some(id));
                    if code == "PR03" {
                        assert_eq!((json["last"].as_str(), json["tried"].as_u64()), (Some("PC01"), Some(1)));
                    }
                } else {
                    assert!(body.starts_with(&format!("{code}: ")) && body.contains(id), "{body}");
                }
            }
        }
    }
}

/// Those that it does not name are for what this build does not do, or for the log only.
#[test]
fn obs_3_the_table_leaves_no_code_out_that_a_client_can_meet() {
    let met: Vec<&str> = MET.iter().map(|(name, _)| *name).collect();
    let elsewhere: Vec<&str> =
        ErrorCode::ALL.iter().map(|code| code.as_str()).filter(|code| !met.contains(code)).collect();
    assert_eq!(
        elsewhere.join(" "),
        "PP01 PU03 PU04 PC02 PC03 PC04 PC07 PC08 PE01 PE02 PL01 PL02 PM01 PM03 PM04 PM05 PM06 PM07 PM08 PM09 \
         PM10 PM11 PT01 PT02 PT03 PT04 PT05 PT06 PT07 PT08 PT09"
    );
}
