//! Skein: a testbed of the program under measurement, driven by its command line and API only.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;
use serde_json::Value;

use super::{Peer, Running, Start, version};
use crate::app::REPLAY_REGION;
use crate::{Args, LOAD_CORE, PROXY_CORE, process};

/// One node; the app behind it.
pub(crate) const ONE_HOP: Peer = Peer { name: "skein", start: |args, app| own(args, app, &HERE) };
/// Two nodes; clients at one, the app behind the other one.
pub(crate) const TWO_HOPS: Peer = Peer { name: "skein", start: |args, app| own(args, app, &THERE) };
/// Two nodes, the app behind both; it asks for a replay in the other region.
pub(crate) const REPLAY: Peer = Peer { name: "skein", start: |args, app| own(args, app, &BOTH) };

/// The same with another build of the program.
pub(crate) const BESIDE: Peer = Peer { name: "skein beside", start: |args, app| beside(args, app, &HERE) };
pub(crate) const BESIDE_TWO_HOPS: Peer =
    Peer { name: "skein beside", start: |args, app| beside(args, app, &THERE) };
pub(crate) const BESIDE_REPLAY: Peer =
    Peer { name: "skein beside", start: |args, app| beside(args, app, &BOTH) };

/// Where nodes and Machines are; clients come to the first node.
struct Shape {
    what: &'static str,
    regions: &'static str,
    machines: &'static str,
}

const HERE: Shape = Shape { what: "one hop", regions: "iad", machines: "iad" };
const THERE: Shape = Shape { what: "two hops", regions: "iad,lhr", machines: REPLAY_REGION };
const BOTH: Shape = Shape { what: "replay", regions: "iad,lhr", machines: "iad,lhr" };

fn own(args: &Args, app: SocketAddr, shape: &Shape) -> anyhow::Result<Start> {
    proxy(&args.skein, &format!("skein, {}", shape.what), app, shape)
}

fn beside(args: &Args, app: SocketAddr, shape: &Shape) -> anyhow::Result<Start> {
    match &args.beside {
        Some(program) => proxy(program, &format!("beside, {}", shape.what), app, shape),
        None => Ok(Start::Skipped(String::new())),
    }
}

fn proxy(program: &Path, who: &str, app: SocketAddr, shape: &Shape) -> anyhow::Result<Start> {
    let flags = ["--regions", shape.regions, "--latency", "none", "--no-demo", "--trace-sample", "0.01"];
    let cluster = Cluster::up(program, Cores::Proxy, &flags)?;
    let toml = cluster.home.path().join("fly.toml");
    std::fs::write(
        &toml,
        "app = \"bench\"\n[http_service]\ninternal_port = 8080\nauto_start_machines = false\n\
         [http_service.concurrency]\ntype = \"requests\"\nsoft_limit = 1000\n",
    )?;
    let (toml, app) = (toml.to_string_lossy(), app.to_string());
    cluster.skein(&["deploy", "-c", &toml, "--regions", shape.machines, "--external", &app])?;
    let node = cluster.json["nodes"][0]["name"].as_str().context("no node")?;
    let endpoints = cluster.skein(&["endpoint", "bench", "--json", "--node", node])?;
    let endpoints: Value = serde_json::from_str(&endpoints)?;
    let address = endpoints[0]["connect"].as_str().context("no endpoint")?.parse()?;
    Ok(Start::Running(Running {
        who: who.to_owned(),
        version: cluster.version.clone(),
        command: cluster.command.clone(),
        address,
        pids: cluster.pids()?,
        _guard: Box::new(cluster),
    }))
}

/// Where a testbed runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cores {
    /// Its nodes on the proxy's core, its launcher with the trace collector on the other one.
    Proxy,
    /// Anywhere, as users have it.
    All,
}

/// A running testbed; ended when dropped.
pub(crate) struct Cluster {
    skein: PathBuf,
    home: tempfile::TempDir,
    /// What `skein up --detach --json` printed.
    pub(crate) json: Value,
    pub(crate) version: String,
    pub(crate) command: String,
}

impl Cluster {
    /// Starts a testbed with those flags of `skein up`.
    pub(crate) fn up(skein: &Path, cores: Cores, flags: &[&str]) -> anyhow::Result<Self> {
        let skein = skein.canonicalize().with_context(|| {
            format!("{} does not exist; build it with `cargo build --release`", skein.display())
        })?;
        let version = version(&skein.to_string_lossy(), "--version").context("ask for its version")?;
        let home = tempfile::tempdir()?;
        let mut cluster = Self { skein, home, json: Value::Null, version, command: String::new() };
        let mut up = match cores {
            Cores::Proxy => process::on_core(&[PROXY_CORE], &cluster.skein.to_string_lossy()),
            Cores::All => process::on_core(&[PROXY_CORE, LOAD_CORE], &cluster.skein.to_string_lossy()),
        };
        up.args(["up", "--detach", "--json"]).args(flags);
        cluster.command = process::typed(&up);
        let output = cluster.output(&mut up)?;
        cluster.json = serde_json::from_str(&output).context("read what `skein up` printed")?;
        if cores == Cores::Proxy {
            let first = cluster.pids()?.first().copied().context("no node")?;
            process::pin(process::parent(first)?, LOAD_CORE)?;
        }
        Ok(cluster)
    }

    /// Runs one command of the program against this testbed and gives its standard output.
    pub(crate) fn skein(&self, args: &[&str]) -> anyhow::Result<String> {
        self.output(Command::new(&self.skein).args(args))
    }

    fn output(&self, command: &mut Command) -> anyhow::Result<String> {
        let output = command.env("SKEIN_HOME", self.home.path()).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("run {}", process::typed(command)))?;
        anyhow::ensure!(
            output.status.success(),
            "`{}` failed: {}",
            process::typed(command),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// A folder that is removed with it.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// The process ids of the nodes.
    pub(crate) fn pids(&self) -> anyhow::Result<Vec<u32>> {
        let pids = self.nodes().map(|node| node["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()));
        pids.map(|pid| pid.context("a node without process id")).collect()
    }

    /// The nodes, as `skein up` named them.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Value> {
        self.json["nodes"].as_array().into_iter().flatten()
    }

    /// The operator's token.
    pub(crate) fn token(&self) -> &str {
        self.json["api"]["token"].as_str().unwrap_or_default()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.skein(&["down"]) {
            eprintln!("{error:#}");
        }
    }
}
