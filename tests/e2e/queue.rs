//! Requests that wait for room (SPEC LB-4).

use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use serde_json::json;

use crate::support::cluster::text;
use crate::support::{Cluster, Reply, Request, SOON, eventually};

const WAITING: usize = 1000;
const SLOW_MS: u64 = 600_000;

/// Requests that wait at a node's edge.
fn waiting(metrics: SocketAddr) -> usize {
    let page = Request::get(metrics, "/metrics").ok().text();
    let line = page.lines().find(|line| line.starts_with("skein_edge_queue_waiting{"));
    let line = line.unwrap_or_else(|| panic!("no such gauge: {page}"));
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

/// A client that has asked, and waits.
fn ask(edge: SocketAddr, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(edge).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: narrow\r\n\r\n").as_bytes()).unwrap();
    stream
}

#[test]
fn a_thousand_waiting_clients_that_hang_up_leave_the_queue_to_others() {
    let cluster = Cluster::up(&["--regions", "iad", "--no-demo", "--trace-sample", "0"]);
    cluster.skein(&["apps", "create", "narrow"]).ok();
    let services = json!([{
        "protocol": "tcp", "internal_port": 8080, "ports": [{"port": 80, "handlers": ["http"]}],
        "concurrency": {"type": "requests", "soft_limit": 1, "hard_limit": 1},
    }]);
    let body = json!({"region": "iad", "config": {"image": "skein/hello", "services": services}}).to_string();
    let call = cluster.api("POST", "/v1/apps/narrow/machines").header("content-type", "application/json");
    call.body(body).ok();
    cluster.skein(&["ips", "allocate-v6", "-a", "narrow"]).ok();
    let edge = cluster.endpoint("narrow", "iad-1");
    let metrics = text(&cluster.node("iad-1")["metrics"]);
    let metrics = metrics.trim_start_matches("http://").trim_end_matches("/metrics").parse().unwrap();
    let is_waiting = |wanted: usize| {
        eventually(&format!("{wanted} wait"), SOON, || match waiting(metrics) {
            now if now == wanted => Ok(()),
            now => Err(now),
        });
    };
    eventually("it answers", SOON, || match Request::get(edge, "/").send() {
        Ok(reply) if reply.status == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    // The first has the only place, for as long as it likes.
    let first = ask(edge, &format!("/slow?ms={SLOW_MS}"));
    let held = "fly_app_concurrency{app=\"narrow\"";
    eventually("the only place is taken", SOON, || {
        let page = Request::get(metrics, "/metrics").ok().text();
        let line = page.lines().find(|line| line.starts_with(held)).unwrap_or_default().to_owned();
        if line.ends_with(" 1") { Ok(()) } else { Err(line) }
    });
    let impatient: Vec<TcpStream> = (0..WAITING).map(|_| ask(edge, "/")).collect();
    is_waiting(WAITING);
    // There is room for no more, and that is said at once.
    let refused = Request::get(edge, "/").reply();
    assert_eq!((refused.status, refused.header("skein-error")), (503, Some("PR04")), "{refused:?}");

    drop(impatient);
    is_waiting(0);
    let patient: Vec<_> =
        (0..3).map(|_| std::thread::spawn(move || Request::get(edge, "/").patience(SOON).reply())).collect();
    is_waiting(patient.len());
    drop(first);
    let replies: Vec<Reply> = patient.into_iter().map(|client| client.join().unwrap()).collect();
    assert!(replies.iter().all(|reply| reply.status == 200), "{replies:?}");
    is_waiting(0);
}
