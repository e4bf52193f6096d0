//! S9: one trace per request, from the edge through backhaul to the worker, the Machine and the
//! replay, with the right parents: in Skein's own collector, and in `rotel`, which is not ours.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::install::python_package;
use crate::support::cluster::{Home, own_address, text};
use crate::support::process::{Owned, run};
use crate::support::{Cluster, Reply, Request, SOON, eventually, skipped};

const TRACE: &str = "5b8efff798038103d269b633813fc60c";
const CALLER: &str = "eee19b7ec3c1b174";

/// A span, whoever collected it.
#[derive(Debug, Clone)]
struct Span {
    id: String,
    parent: Option<String>,
    kind: String,
    node: String,
    machine: Option<String>,
}

/// A write at `edge` that is replayed to the primary region, within a trace of the client's.
fn replayed(edge: SocketAddr) -> Reply {
    let caller = format!("00-{TRACE}-{CALLER}-01");
    let reply = Request::post(edge, "/", "traced").header("traceparent", &caller).ok();
    assert_eq!(reply.field("region"), "iad");
    reply
}

/// From the edge in Tokyo to its own Machine, and, replayed, to the primary region's.
#[track_caller]
fn tells_the_whole_story(spans: &[Span], reply: &Reply, edge: &str, worker: &str, replica: &str) {
    let by_id: BTreeMap<&str, &Span> = spans.iter().map(|span| (span.id.as_str(), span)).collect();
    let path = |span: &Span| {
        let mut path = vec![span.clone()];
        while let Some(parent) = path.last().and_then(|s| by_id.get(s.parent.as_deref()?)) {
            assert!(path.len() <= spans.len(), "a circle: {path:?}");
            path.push((*parent).clone());
        }
        path
    };
    let roots: Vec<&Span> = spans
        .iter()
        .filter(|span| !span.parent.as_deref().is_some_and(|parent| by_id.contains_key(parent)))
        .collect();
    assert_eq!(roots.len(), 1, "one root, so one trace: {spans:#?}");
    let root = roots[0];
    assert_eq!((root.node.as_str(), root.kind.as_str()), (edge, "server"));
    assert_eq!(root.parent.as_deref(), Some(CALLER), "the client's span is the parent");

    let at_edge = spans.iter().find(|s| s.machine.as_deref() == Some(replica) && s.kind == "client");
    let at_edge = at_edge.unwrap_or_else(|| panic!("the Machine that asked for the replay: {spans:#?}"));
    assert_eq!(at_edge.node, edge);

    // What the app was told is its parent: the span towards the Machine that answered.
    let told = text(&reply.json()["headers"]["traceparent"]);
    let parts: Vec<&str> = told.split('-').collect();
    assert_eq!(parts[1], TRACE, "{told}");
    let last = by_id.get(parts[2]).unwrap_or_else(|| panic!("{told} is not among {spans:#?}"));
    assert_eq!((last.node.as_str(), last.kind.as_str()), (worker, "client"));
    assert_eq!(last.machine.as_deref(), Some(reply.field("machine").as_str()));

    let kinds: Vec<(String, String)> = path(last).into_iter().map(|span| (span.node, span.kind)).collect();
    let server = kinds.iter().position(|step| *step == (worker.into(), "server".into()));
    let client = kinds.iter().position(|step| *step == (edge.into(), "client".into()));
    assert!(
        server.is_some() && client > server,
        "worker's server span below the edge's client span: {kinds:?}"
    );
}

#[test]
fn s9_skeins_own_collector_has_one_trace_with_the_right_parents() {
    let cluster = Cluster::up(&["--regions", "iad,nrt", "--trace-sample", "1"]);
    let replica = cluster.machines_in("hello", "nrt")[0].clone();
    let reply = replayed(cluster.endpoint("hello", "nrt-1"));
    let by_request = reply.header("fly-request-id").unwrap().to_owned();
    let spans = eventually("the spans arrive", SOON, || {
        let ran = cluster.skein(&["trace", &by_request, "--json"]);
        let trace: Value = serde_json::from_str(&ran.stdout).map_err(|_| ran.stderr)?;
        assert_eq!(trace["trace_id"], TRACE);
        let spans: Vec<Span> = trace["spans"].as_array().unwrap().iter().map(own).collect();
        let told = text(&reply.json()["headers"]["traceparent"]);
        if spans.iter().any(|span| told.contains(&span.id)) { Ok(spans) } else { Err(trace.to_string()) }
    });
    tells_the_whole_story(&spans, &reply, "nrt-1", "iad-1", &replica);

    let drawn = cluster.skein(&["trace", TRACE]).ok();
    for word in ["nrt-1", "iad-1", "ms"] {
        assert!(drawn.contains(word), "{drawn}");
    }
    cluster.skein(&["trace", "00000000000000000000000000000001"]).refused();
}

fn own(span: &Value) -> Span {
    let optional = |value: &Value| value.as_str().map(str::to_owned);
    Span {
        id: text(&span["span_id"]),
        parent: optional(&span["parent_span_id"]),
        kind: text(&span["kind"]),
        node: optional(&span["instance"]).unwrap_or_default(),
        machine: optional(&span["attributes"]["skein.machine.id"]),
    }
}

#[test]
fn s9_any_collector_gets_the_same_trace() {
    let home = Home::new();
    let module = match python_package("rotel==0.0.1a15", "rotel", &home.path().join("venv")) {
        Ok(module) => module,
        Err(reason) => return skipped("S9 rotel", &reason),
    };
    let [grpc, http] = free_ports();
    let log = home.path().join("rotel.txt");
    let mut rotel = Command::new(module.join("rotel-agent"));
    rotel.args([
        "start",
        "--exporter",
        "blackhole",
        "--debug-log",
        "traces",
        "--debug-log-verbosity",
        "detailed",
    ]);
    rotel.args(["--otlp-grpc-endpoint", &format!("127.0.0.1:{grpc}")]);
    rotel.args(["--otlp-http-endpoint", &format!("127.0.0.1:{http}")]);
    rotel.arg("--pid-file").arg(home.path().join("rotel.pid"));
    rotel.arg("--log-file").arg(home.path().join("rotel.log"));
    let out = File::create(&log).unwrap();
    let _rotel = Owned::start(rotel.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out));

    let nodes = Nodes::start(&home, grpc);
    let replica = nodes.machine_in("nrt");
    let reply = replayed(nodes.endpoint("nrt-1"));
    let told = text(&reply.json()["headers"]["traceparent"]);
    let last = told.split('-').nth(2).unwrap().to_owned();
    let spans = eventually("the spans arrive", SOON, || {
        let spans = foreign(&fs::read_to_string(&log).unwrap());
        let whole = spans.iter().any(|span| span.id == last)
            && spans.iter().any(|s| s.parent.as_deref() == Some(CALLER));
        if whole { Ok(spans) } else { Err(spans) }
    });
    tells_the_whole_story(&spans, &reply, "nrt-1", "iad-1", &replica);
}

fn free_ports() -> [u16; 2] {
    let sockets = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    sockets.map(|socket| socket.local_addr().unwrap().port())
}

/// Reads rotel's own print of what it received.
fn foreign(log: &str) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    let (mut node, mut trace) = (String::new(), String::new());
    for line in log.lines() {
        let value = |key: &str| {
            let rest = line.trim().strip_prefix(key)?.trim().strip_prefix(':')?;
            Some(rest.trim().to_owned())
        };
        let attribute = |key: &str| {
            let rest = line.trim().strip_prefix("-> ")?.strip_prefix(key)?.strip_prefix(": Str(")?;
            Some(rest.trim_end_matches(')').to_owned())
        };
        if let Some(name) = attribute("service.instance.id") {
            node = name;
        } else if let Some(id) = value("Trace ID") {
            trace = id;
        } else if let Some(parent) = value("Parent ID") {
            let parent = Some(parent).filter(|parent| !parent.is_empty());
            let (id, kind) = (String::new(), String::new());
            spans.push(Span { id, parent, kind, node: node.clone(), machine: None });
        } else if let Some(span) = spans.last_mut() {
            if let Some(id) = value("ID") {
                span.id = if trace == TRACE { id } else { String::new() };
            } else if let Some(kind) = value("Kind") {
                span.kind = kind.trim_start_matches("SPAN_KIND_").to_lowercase();
            } else if let Some(machine) = attribute("skein.machine.id") {
                span.machine = Some(machine);
            }
        }
    }
    spans.retain(|span| !span.id.is_empty());
    spans
}

/// Two nodes that no testbed started, as on two servers.
struct Nodes<'a> {
    home: &'a Home,
    url: String,
    token: String,
    _processes: Vec<Owned>,
}

impl<'a> Nodes<'a> {
    fn start(home: &'a Home, otlp: u16) -> Self {
        let common = format!("otlp = \"http://127.0.0.1:{otlp}\"\ntrace_sample = 1.0\nadopt_grace_ms = 0\n");
        let first = home.path().join("iad-1");
        let process = node(home, &first, "iad-1", "iad", &format!("{common}bootstrap = true\n"));
        let url = bound(&first);
        let token = fs::read_to_string(first.join("operator.token")).unwrap().trim().to_owned();
        let mut nodes = Self { home, url, token, _processes: vec![process] };
        let join = nodes.skein(&["node", "token"]);
        let second = home.path().join("nrt-1");
        let process = node(home, &second, "nrt-1", "nrt", &format!("{common}join = \"{}\"\n", join.trim()));
        nodes._processes.push(process);
        bound(&second);
        // It serves once it has joined; the first node hears of it by gossip.
        eventually("the first node knows of the second", SOON, || {
            let list = nodes.skein(&["node", "list", "--json"]);
            let known: Vec<Value> = serde_json::from_str(&list).unwrap();
            if known.iter().any(|node| node["name"] == "nrt-1" && node["alive"] == true) {
                Ok(())
            } else {
                Err(list)
            }
        });
        let config = home.path().join("fly.toml");
        let toml =
            "app = \"hello\"\nprimary_region = \"iad\"\n[build]\nimage = \"skein/hello\"\n[http_service]\n";
        fs::write(&config, toml).unwrap();
        nodes.skein(&["deploy", "-c", config.to_str().unwrap(), "--regions", "iad,nrt"]);
        nodes
    }

    #[track_caller]
    fn skein(&self, args: &[&str]) -> String {
        let mut command = self.home.skein();
        command.args(args).env("SKEIN_API_URL", &self.url).env("SKEIN_API_TOKEN", &self.token);
        run(&mut command, crate::support::cluster::UP).ok()
    }

    fn machine_in(&self, region: &str) -> String {
        let list: Value =
            serde_json::from_str(&self.skein(&["machines", "list", "-a", "hello", "--json"])).unwrap();
        let found = list.as_array().unwrap().iter().find(|machine| machine["region"] == region);
        text(&found.unwrap_or_else(|| panic!("{list}"))["id"])
    }

    fn endpoint(&self, node: &str) -> SocketAddr {
        let out = self.skein(&["endpoint", "hello", "--node", node, "--json"]);
        own_address(&serde_json::from_str(&out).unwrap())
    }
}

/// `skein node run` with a file; it ends with the test.
fn node(home: &Home, folder: &Path, name: &str, region: &str, rest: &str) -> Owned {
    fs::create_dir(folder).unwrap();
    let file = folder.join("node.toml");
    let toml =
        format!("name = \"{name}\"\nregion = \"{region}\"\ndata_dir = \"{}\"\n{rest}", folder.display());
    fs::write(&file, toml).unwrap();
    let log = File::create(folder.join("log.txt")).unwrap();
    let mut command = home.skein();
    command.args(["node", "run", "--config"]).arg(file).current_dir("/");
    Owned::start(command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log))
}

/// Where its API listens, as soon as it does.
fn bound(folder: &Path) -> String {
    eventually("the node serves its API", SOON, || {
        let bound = fs::read_to_string(folder.join("bound.json"));
        let log = || fs::read_to_string(folder.join("log.txt")).unwrap_or_default();
        let bound: Value = serde_json::from_str(&bound.map_err(|_| log())?).map_err(|_| log())?;
        Ok::<_, String>(text(&bound["api"]))
    })
}
