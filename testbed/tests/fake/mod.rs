//! A node that only answers: the part of a node's API that a launcher uses, as a process of its own.
//!
//! The program is a script that runs this test binary again, with the test that calls [`serve`].

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::extract::{Path as Segment, State};
use axum::http::HeaderMap;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use skein_testbed::{Home, Latency, LaunchOptions, Progress, Testbed, TestbedError, by_regions};

/// Where a fake node finds its configuration.
const CONFIG: &str = "SKEIN_FAKE_NODE_CONFIG";
/// The operator's token of every fake cluster.
pub(crate) const TOKEN: &str = "skt_fake";

/// A program that understands `node run --config FILE`: this test binary, as its test `entry`.
pub(crate) fn program(dir: &Path, entry: &str) -> PathBuf {
    let me = std::env::current_exe().unwrap();
    script(
        dir,
        &format!("{CONFIG}=\"$4\" exec '{}' --exact {entry} --nocapture --test-threads=1", me.display()),
    )
}

/// A shell script as a program.
pub(crate) fn script(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("program");
    // Written by another process: a file that a test of this one forks with, while it is open for
    // writing, can't be executed.
    let mut shell = std::process::Command::new("/bin/sh");
    shell.args(["-c", "cat > \"$0\" && chmod 700 \"$0\""]).arg(&path);
    let mut shell = shell.stdin(std::process::Stdio::piped()).spawn().unwrap();
    writeln!(shell.stdin.take().unwrap(), "#!/bin/sh\n{text}").unwrap();
    assert!(shell.wait().unwrap().success());
    path
}

/// Launches a testbed of `program` below `dir`.
pub(crate) async fn launch(dir: &Path, program: &Path, regions: &str) -> Result<Testbed, TestbedError> {
    let options = LaunchOptions {
        name: "default".parse().unwrap(),
        nodes: by_regions(regions, &skein_core::region::Regions::default()).unwrap(),
        exe: program.to_owned(),
        latency: Latency::None,
        trace_sample: None,
        otlp: Vec::new(),
        log: None,
    };
    Testbed::launch(&Home::new(dir.join("state")), options, Progress::new(|_| {})).await
}

#[derive(Clone)]
struct Fake {
    dir: PathBuf,
    draining: Arc<Mutex<bool>>,
    links: Arc<Mutex<Value>>,
}

/// In a fake node: serves until standard input ends. In the test run itself: returns at once.
pub(crate) fn serve() {
    let Some(config) = std::env::var_os(CONFIG).map(PathBuf::from) else { return };
    std::thread::spawn(|| {
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(node(&config));
}

async fn node(config: &Path) {
    let dir = config.parent().unwrap().to_owned();
    let text = std::fs::read_to_string(config).unwrap();
    let value = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(&format!("{key} = "))).unwrap();
        line.split('"').nth(1).unwrap().to_owned()
    };
    let fake = Fake { dir: dir.clone(), draining: Arc::default(), links: Arc::new(Mutex::new(Value::Null)) };
    let router = Router::new()
        .route("/skein/v1/nodes", get(nodes))
        .route("/skein/v1/nodes/{name}/{verb}", post(order))
        .route("/skein/v1/join_tokens", post(async || Json(json!({ "token": "skein1.00" }))))
        .route("/skein/v1/barrier", post(async || Json(json!({ "ok": true }))))
        .route("/skein/v1/links", get(links).put(set_links))
        .route("/v1/echo", post(async |body: String| body))
        .with_state(fake);
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let api = format!("http://{}", listener.local_addr().unwrap());
    if text.contains("bootstrap = true") {
        std::fs::write(dir.join("operator.token"), format!("{TOKEN}\n")).unwrap();
    }
    let bound = json!({
        "name": value("name"), "region": value("region"), "pid": std::process::id(), "api": api,
        "metrics": format!("{api}/metrics"), "dns": null, "wireguard": null, "data_dir": dir,
    });
    std::fs::write(dir.join("bound.tmp"), bound.to_string()).unwrap();
    std::fs::rename(dir.join("bound.tmp"), dir.join("bound.json")).unwrap();
    axum::serve(listener, router).await.unwrap();
}

/// Every node that has said what it bound.
async fn nodes(State(fake): State<Fake>, headers: HeaderMap) -> Json<Value> {
    assert_eq!(headers["authorization"], format!("Bearer {TOKEN}"));
    let siblings = std::fs::read_dir(fake.dir.parent().unwrap()).unwrap();
    let bound = siblings.filter_map(|entry| std::fs::read(entry.unwrap().path().join("bound.json")).ok());
    let node = |bytes: Vec<u8>| {
        let bound: Value = serde_json::from_slice(&bytes).unwrap();
        json!({
            "number": 1, "name": bound["name"], "region": bound["region"], "alive": true,
            "draining": *fake.draining.lock().unwrap(), "suspect": false, "registry": "voter",
            "machines": 0, "rtt_ms": 0.0,
            "api": bound["api"].as_str().unwrap().trim_start_matches("http://"),
        })
    };
    Json(bound.map(node).collect())
}

async fn order(State(fake): State<Fake>, Segment((_, verb)): Segment<(String, String)>) -> Json<Value> {
    *fake.draining.lock().unwrap() = verb == "drain";
    Json(json!({ "ok": true }))
}

async fn links(State(fake): State<Fake>) -> Json<Value> {
    Json(fake.links.lock().unwrap().clone())
}

async fn set_links(State(fake): State<Fake>, Json(links): Json<Value>) -> Json<Value> {
    *fake.links.lock().unwrap() = links;
    Json(json!({ "ok": true }))
}
