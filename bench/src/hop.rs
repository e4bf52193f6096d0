//! One hop: client, proxy, server, with the proxy alone on one core.
//!
//! nginx is the peer and, in a second process on the other core, the server behind both. Rounds
//! alternate, so that what else the machine does falls on both.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::{Args, Report, quantile};

const PROXY_CORE: &str = "0";
const LOAD_CORE: &str = "1";

pub(crate) async fn run(args: &Args) -> anyhow::Result<Report> {
    for tool in ["nginx", "wrk", "taskset"] {
        if Command::new("which").arg(tool).stdout(Stdio::null()).status().is_ok_and(|s| !s.success()) {
            let result = format!("SKIPPED: {tool} is not installed (Debian package {})", package(tool));
            return Ok(Report { row: "one hop", result, details: Vec::new() });
        }
    }
    let dir = Scratch::new()?;
    let (server_port, proxy_port) = (free_port()?, free_port()?);
    let location = "location / { default_type text/plain; return 200 \
        \"0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789\"; }";
    let _server = Nginx::start(
        &dir.0,
        "server",
        LOAD_CORE,
        &format!(
            "server {{ listen 127.0.0.1:{server_port} backlog=1024; keepalive_requests 100000000; {location} }}"
        ),
    )?;
    let upstream = format!(
        "upstream u {{ server 127.0.0.1:{server_port}; keepalive 128; keepalive_requests 100000000; }} \
         server {{ listen 127.0.0.1:{proxy_port} backlog=1024; keepalive_requests 100000000; \
         location / {{ proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Connection \"\"; \
         proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr; }} }}"
    );
    let _peer = Nginx::start(&dir.0, "peer", PROXY_CORE, &upstream)?;

    let cluster = Cluster::up(
        &args.skein,
        "hop",
        &["--nodes", "1", "--latency", "none", "--no-demo", "--trace-sample", "0.01"],
    )?;
    let toml = dir.0.join("fly.toml");
    std::fs::write(
        &toml,
        "app = \"bench\"\n[http_service]\ninternal_port = 8080\nauto_start_machines = false\n\
         [http_service.concurrency]\ntype = \"requests\"\nsoft_limit = 1000\n",
    )?;
    let target = format!("127.0.0.1:{server_port}");
    cluster.skein(&["deploy", "-c", &toml.to_string_lossy(), "--external", &target])?;
    for pid in cluster.pids() {
        let status = Command::new("taskset")
            .args(["-a", "-c", "-p", PROXY_CORE, &pid.to_string()])
            .stdout(Stdio::null())
            .status()?;
        anyhow::ensure!(status.success(), "taskset failed for the node");
    }
    let endpoints: Value = serde_json::from_str(&cluster.skein(&["endpoint", "bench", "--json"])?)?;
    let skein = endpoints[0]["connect"].as_str().context("no endpoint")?.to_owned();
    let nginx = format!("127.0.0.1:{proxy_port}");

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    load(&skein, 1)?;
    load(&nginx, 1)?;
    for _ in 0..args.rounds {
        ours.push(load(&skein, args.seconds)?);
        theirs.push(load(&nginx, args.seconds)?);
    }
    ours.sort_by(f64::total_cmp);
    theirs.sort_by(f64::total_cmp);
    let (skein, nginx) = (quantile(&ours, 0.5), quantile(&theirs, 0.5));
    Ok(Report {
        row: "one hop",
        result: format!("{:.2} of nginx ({skein:.0} to {nginx:.0} requests/s)", skein / nginx),
        details: vec![
            format!(
                "medians of {} alternating rounds of {} s, 64 keep-alive connections, 100-byte bodies",
                args.rounds, args.seconds
            ),
            format!("skein {ours:.0?}, nginx {theirs:.0?}; 1 % of requests traced"),
        ],
    })
}

fn package(tool: &str) -> &str {
    if tool == "taskset" { "util-linux" } else { tool }
}

/// Requests per second that `wrk` gets; every answer must be a 200.
fn load(address: &str, seconds: u64) -> anyhow::Result<f64> {
    let output = Command::new("taskset")
        .args(["-c", LOAD_CORE, "wrk", "-t1", "-c64", &format!("-d{seconds}s")])
        .args(["-H", "Host: bench.localhost", &format!("http://{address}/")])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    anyhow::ensure!(!text.contains("Non-2xx"), "wrong answers from {address}:\n{text}");
    let line = text.lines().find_map(|line| line.strip_prefix("Requests/sec:"));
    line.and_then(|figure| figure.trim().parse().ok()).with_context(|| format!("no figure from wrk:\n{text}"))
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A directory that goes away.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("skein-bench-{}-hop-files", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("remove {}: {error}", self.0.display());
        }
    }
}

/// One nginx worker on one core; ended when dropped.
struct Nginx(Child);

impl Nginx {
    fn start(dir: &Path, name: &str, core: &str, server: &str) -> anyhow::Result<Self> {
        let config = dir.join(format!("{name}.conf"));
        let root = dir.display();
        std::fs::write(
            &config,
            format!(
                "daemon off; master_process off; worker_processes 1; pid {root}/{name}.pid; error_log {root}/{name}.log;\n\
                 events {{ worker_connections 4096; }}\n\
                 http {{ access_log off; client_body_temp_path {root}/{name}-b; proxy_temp_path {root}/{name}-p; \
                 fastcgi_temp_path {root}/{name}-f; uwsgi_temp_path {root}/{name}-u; scgi_temp_path {root}/{name}-s; {server} }}\n"
            ),
        )?;
        let child = Command::new("taskset")
            .args(["-c", core, "nginx", "-c"])
            .arg(&config)
            .stderr(Stdio::null())
            .spawn()
            .context("start nginx")?;
        Ok(Self(child))
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("end nginx: {error}");
        }
    }
}
