//! gRPC with a real client and server (`grpcio`, PyPI): unary calls with trailers and statuses, and
//! streams in all three directions, through two hops (SPEC HTTP-1).

use std::fs;
use std::process::Command;

use crate::install;
use crate::support::process::run;
use crate::support::{Cluster, SOON, skipped};

const SERVICE: &str = r#"
app = "calls"
primary_region = "lhr"
[[services]]
internal_port = 9090
[services.concurrency]
type = "requests"
[[services.ports]]
port = 80
handlers = ["http"]
[services.ports.http_options]
h2_backend = true
"#;

#[test]
fn grpc_calls_and_streams_pass_through_two_hops_with_their_trailers() {
    let cluster = Cluster::up(&["--regions", "iad,lhr", "--no-demo"]);
    let python = match install::python_packages(&["grpcio==1.85.1"], &cluster.home.path().join("venv")) {
        Ok(python) => python,
        Err(why) => return skipped("gRPC", &why),
    };
    let server = install::python_program("grpc_machine.py", cluster.home.path());
    let config = cluster.home.path().join("fly.toml");
    fs::write(&config, SERVICE).unwrap();
    let [config, program, server] = [&config, &python, &server].map(|path| path.to_str().unwrap());
    cluster.skein(&["deploy", "-c", config, "--", program, server]).ok();
    cluster.skein(&["ips", "allocate-v6", "-a", "calls"]).ok();
    let client = install::python_program("grpc_client.py", cluster.home.path());
    for edge in ["lhr-1", "iad-1"] {
        let to = cluster.endpoint("calls", edge).to_string();
        let out = run(Command::new(&python).arg(&client).args([&to, "lhr"]), SOON * 4).ok();
        assert!(out.starts_with("grpc ok"), "{edge}: {out}");
    }
}
