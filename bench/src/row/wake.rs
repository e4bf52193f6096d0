//! How long the first request takes at a Machine that rests, beside the process started or continued by
//! hand: what is more is Skein's own (SPEC AUTO-2, AUTO-3).

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::time::Instant;

use crate::Args;
use crate::figure::Figure;
use crate::peer::skein::{Cluster, Cores};
use crate::process::Owned;
use crate::report::{Better, Report};

const HOST: &str = "wake.localhost";
/// How long a Machine rests before it is asked: an edge tells what it wants started ten times in a second.
const REST: Duration = Duration::from_millis(300);
/// Until a request is answered, at most.
const PATIENCE: Duration = Duration::from_secs(30);

/// From stopped: a process is started.
pub(super) async fn start(args: &Args) -> anyhow::Result<Report> {
    let by_hand = async || {
        let begin = Instant::now();
        let (_process, address) = hello(args)?;
        answered(address).await?;
        Ok(millis(begin))
    };
    compare(args, "wake a stopped Machine", "stop", "the process by hand", by_hand).await
}

/// From suspended: the process is there and goes on.
pub(super) async fn resume(args: &Args) -> anyhow::Result<Report> {
    let (process, address) = hello(args)?;
    answered(address).await?;
    let pid = Pid::from_raw(i32::try_from(process.pid())?);
    let by_hand = async || {
        kill(pid, Signal::SIGSTOP)?;
        let begin = Instant::now();
        kill(pid, Signal::SIGCONT)?;
        answered(address).await?;
        Ok(millis(begin))
    };
    compare(args, "wake a suspended Machine", "suspend", "SIGCONT by hand", by_hand).await
}

async fn compare(
    args: &Args,
    title: &'static str,
    verb: &str,
    peer: &str,
    by_hand: impl AsyncFn() -> anyhow::Result<f64>,
) -> anyhow::Result<Report> {
    let cluster = Cluster::up(&args.skein, Cores::All, &["--regions", "iad", "--no-demo"])?;
    let toml = cluster.home().join("wake.toml");
    std::fs::write(
        &toml,
        "app = \"wake\"\n[build]\nimage = \"skein/hello\"\n[http_service]\ninternal_port = 8080\n\
         auto_start_machines = true\n",
    )?;
    cluster.skein(&["deploy", "-c", &toml.to_string_lossy(), "--regions", "iad"])?;
    let machines: Value =
        serde_json::from_str(&cluster.skein(&["machines", "list", "-a", "wake", "--json"])?)?;
    let id = machines[0]["id"].as_str().context("no Machine")?;
    let endpoints: Value = serde_json::from_str(&cluster.skein(&["endpoint", "wake", "--json"])?)?;
    let edge: SocketAddr = endpoints[0]["connect"].as_str().context("no endpoint")?.parse()?;
    let (mut woken, mut alone) = (Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        cluster.skein(&["machines", verb, id])?;
        tokio::time::sleep(REST).await;
        let begin = Instant::now();
        answered(edge).await?;
        woken.push(millis(begin));
        alone.push(by_hand().await?);
    }
    let figures = vec![
        Figure::new("skein", &cluster.version, &format!("skein machines {verb}, then a request"), woken),
        Figure::new(peer, &cluster.version, "skein hello", alone),
    ];
    let settings = format!(
        "from a request's first byte to its answer, {} times; the sample app, one node, no other load",
        args.rounds
    );
    Ok(Report::new(title, "ms", Better::Lower, settings).with(figures, vec![]).compared())
}

/// The sample app, as a Machine runs it, on a free port.
fn hello(args: &Args) -> anyhow::Result<(Owned, SocketAddr)> {
    let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let mut command = Command::new(&args.skein);
    command.arg("hello").env("PORT", free.port().to_string());
    Ok((Owned::start(command.stdin(Stdio::null()).stderr(Stdio::null()))?, free))
}

/// Asks until there is a 200; a process that does not listen yet is asked again at once.
async fn answered(address: SocketAddr) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).timeout(PATIENCE).build()?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let asked = client.get(format!("http://{address}/")).header("host", HOST).send().await;
        match asked {
            Ok(response) if response.status().is_success() => return Ok(()),
            Ok(response) => anyhow::bail!("{address} answered {}", response.status()),
            Err(error) if error.is_connect() && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
            Err(error) => return Err(error).context("ask"),
        }
    }
}

fn millis(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1e3
}
