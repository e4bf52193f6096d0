//! The programs that are measured: how each is started, on one core, in front of the app.

mod haproxy;
mod nginx;
mod pingora;
pub(crate) mod skein;

use std::any::Any;
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::Instant;

use crate::figure::Figure;
use crate::load::Load;
use crate::process::{self, Memory};
use crate::{Args, rounds};

/// How long a program may take to answer for the first time.
const START: Duration = Duration::from_secs(20);

/// A program that can be measured.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    /// Starts it in front of the app at that address, or says why it is missing.
    start: fn(&Args, SocketAddr) -> anyhow::Result<Start>,
}

/// What became of starting a peer.
pub(crate) enum Start {
    Running(Running),
    /// It is not there; the text says how to get it.
    Skipped(String),
}

/// A program that runs; ended when dropped.
pub(crate) struct Running {
    pub(crate) who: String,
    pub(crate) version: String,
    pub(crate) command: String,
    pub(crate) address: SocketAddr,
    /// Its processes that carry requests.
    pub(crate) pids: Vec<u32>,
    _guard: Box<dyn Any>,
}

impl Running {
    /// Processor time that it has used.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        rounds::cpu(&self.pids)
    }

    /// Memory that it takes.
    pub(crate) fn memory(&self) -> anyhow::Result<Memory> {
        let mut each = self.pids.iter().map(|pid| process::memory(*pid));
        each.try_fold(Memory::default(), |sum, memory| Ok(sum + memory?))
    }

    pub(crate) fn figure(&self, values: Vec<f64>) -> Figure {
        Figure::new(&self.who, &self.version, &self.command, values)
    }

    /// Waits until it gives right answers.
    pub(crate) async fn ready(&self, path: &'static str) -> anyhow::Result<()> {
        let load = Load { address: self.address, path, connections: 1 };
        let end = Instant::now() + START;
        loop {
            match load.connect().await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > end => {
                    return Err(error.context(format!("{} does not answer as it should", self.who)));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

/// Proxies of one hop, Skein first.
pub(crate) const ONE_HOP: &[Peer] =
    &[skein::ONE_HOP, skein::BESIDE, nginx::PROXY, haproxy::PROXY, pingora::PROXY];
/// Proxies of two hops.
pub(crate) const TWO_HOPS: &[Peer] = &[skein::TWO_HOPS, skein::BESIDE_TWO_HOPS, skein::ONE_HOP, nginx::TWICE];
/// Replays: what nobody else does beside what it is made of.
pub(crate) const REPLAYS: &[Peer] = &[skein::REPLAY, skein::BESIDE_REPLAY, skein::TWO_HOPS, skein::ONE_HOP];

/// Starts those that are there and asked for; answers also who is missing, and why.
pub(crate) async fn start(
    peers: &[Peer],
    args: &Args,
    app: SocketAddr,
) -> anyhow::Result<(Vec<Running>, Vec<(String, String)>)> {
    let (mut running, mut skipped) = (Vec::new(), Vec::new());
    for peer in peers {
        let wanted = args.peers.as_ref().is_none_or(|names| names.iter().any(|name| name == peer.name));
        if !wanted && !peer.name.starts_with("skein") {
            continue;
        }
        match (peer.start)(args, app).with_context(|| format!("start {}", peer.name))? {
            Start::Running(program) => running.push(program),
            // What nobody asked for is not missing.
            Start::Skipped(why) if why.is_empty() => {}
            Start::Skipped(why) => skipped.push((peer.name.to_owned(), why)),
        }
    }
    Ok((running, skipped))
}

/// What a program says of its version: the first line that it prints.
fn version(program: &str, flag: &str) -> Option<String> {
    let output = Command::new(program).arg(flag).output().ok()?;
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    String::from_utf8_lossy(&text).lines().next().map(|line| line.trim().to_owned())
}

fn missing(package: &str) -> Start {
    Start::Skipped(format!("it is not installed (Debian package {package})"))
}

/// A port that nobody listens on; the program that gets it binds it next.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}
