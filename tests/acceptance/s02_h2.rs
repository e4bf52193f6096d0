//! S2: `h2load` and `nghttp` (Debian's `nghttp2-client`).

use std::process::Command;
use std::time::Duration;

use crate::support::process::{program, run};
use crate::support::{Cluster, SOON, scale, skipped};

/// Requests at scale 1; S2's 100,000 are scale 10.
const REQUESTS: u64 = 10_000;
/// How long they may take for each step of the scale, on a busy machine and without optimization.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn s2_no_request_of_many_over_ten_http_2_connections_fails() {
    let (Some(h2load), Some(nghttp)) = (program("h2load"), program("nghttp")) else {
        return skipped("S2", "h2load and nghttp are not installed");
    };
    let cluster = Cluster::up(&["--regions", "iad,lhr", "--trace-sample", "0"]);
    let url = format!("http://{}/", cluster.endpoint("hello", "lhr-1"));

    let out = run(Command::new(nghttp).args(["--no-dep", "--stat", &url]), SOON).ok();
    assert!(out.contains("\"region\":\"lhr\"") && out.contains(" 200 "), "{out}");

    let requests = (REQUESTS as f64 * scale()) as u64;
    let mut load = Command::new(h2load);
    load.args(["-n", &requests.to_string(), "-c", "10", "-m", "10", &url]);
    let out = run(&mut load, PATIENCE.mul_f64(scale().max(1.0))).ok();
    eprintln!("{}", out.lines().filter(|line| line.contains("req")).collect::<Vec<_>>().join("\n"));
    let all = format!(
        "requests: {requests} total, {requests} started, {requests} done, {requests} succeeded, 0 failed, 0 errored, 0 timeout"
    );
    assert!(out.contains(&all), "{out}");
    assert!(out.contains(&format!("status codes: {requests} 2xx, 0 3xx, 0 4xx, 0 5xx")), "{out}");
}
