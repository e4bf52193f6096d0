//! `skein up`: launches a cluster on this computer (SPEC TB-1 to TB-4, DESIGN section 8).
//!
//! In the foreground this process is the testbed's daemon and ends it at Ctrl-C; with `--detach` it
//! starts one in the background and waits until that is ready.

mod daemon;
mod demo;
mod descriptors;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use skein_core::AppName;
use skein_core::api::ClusterJson;
use skein_core::region::{RegionCode, Regions};
use skein_testbed::{ClusterName, Front, Home, LaunchOptions, NodeSpec, Progress, Testbed};
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::report::Reporter;
use super::client::{Client, Target};
use super::config;
use super::ctx::Ctx;
use crate::telemetry::collector_url;

/// What to launch.
#[derive(Debug, Clone, PartialEq, Args)]
pub(crate) struct UpArgs {
    /// The cluster's name
    #[arg(long, default_value = "default")]
    name: ClusterName,
    /// Nodes by region, for example iad:2,lhr,nrt
    #[arg(long, value_name = "LIST", default_value = skein_testbed::DEFAULT_REGIONS, conflicts_with = "nodes")]
    regions: String,
    /// So many nodes, spread over the regions
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,
    /// How Machines are kept apart
    #[arg(long, value_enum, default_value_t = Isolation::Auto)]
    isolation: Isolation,
    /// Whether distances between regions are simulated
    #[arg(long, value_enum, default_value_t = Latency::Real)]
    latency: Latency,
    /// Share of requests that are traced, 0 to 1 [default: all up to 50 a second and node, 1 % of the rest]
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    trace_sample: Option<f64>,
    /// Sends spans there too: OTLP over gRPC, as to http://127.0.0.1:4317, or over HTTP where the URL ends in /v1/traces, as http://127.0.0.1:4318/v1/traces; may be repeated
    #[arg(long, value_name = "URL", value_parser = collector_url)]
    otlp: Vec<String>,
    /// Without the sample app
    #[arg(long)]
    no_demo: bool,
    /// Deploys this app instead of the sample app, one Machine per node
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// In the background; returns when the cluster is ready
    #[arg(long)]
    detach: bool,
    /// Is the background process of --detach
    #[arg(long, hide = true, conflicts_with = "detach")]
    daemon: bool,
    /// The process of the app's Machines
    #[arg(last = true, requires = "config")]
    command: Vec<String>,
}

/// How Machines are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Isolation {
    /// The best that this computer and build offer
    Auto,
    /// Network namespaces
    Netns,
    /// Plain processes
    Portable,
}

/// Whether distances between regions are simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Latency {
    /// RTT = 4 ms + km/75
    Real,
    /// No delay is added
    None,
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| "a share from 0 to 1 is needed".into())
}

/// What runs on the cluster when it is ready.
#[derive(Debug, Clone, PartialEq)]
enum App {
    /// Nothing.
    None,
    /// The sample app.
    Hello,
    /// The user's.
    Own { config: PathBuf, command: Vec<String>, primary: Option<RegionCode> },
}

impl App {
    /// What is no mistake and may still surprise.
    fn warning(&self, nodes: &[NodeSpec]) -> Option<String> {
        let Self::Own { config, primary: Some(primary), .. } = self else { return None };
        if nodes.iter().any(|node| node.region == *primary) {
            return None;
        }
        let file = config.display();
        Some(format!("warning: {file}: primary_region is {primary}, where this cluster has no node"))
    }
}

/// How a run ended.
enum End {
    /// `skein down`, or a parent that is gone.
    Asked,
    /// A signal of that number.
    Signal(u8),
}

impl From<End> for ExitCode {
    fn from(end: End) -> Self {
        match end {
            End::Asked => Self::SUCCESS,
            End::Signal(number) => Self::from(128 + number),
        }
    }
}

impl UpArgs {
    /// What is wrong with the arguments is found before anything starts.
    fn check(&self) -> anyhow::Result<(Vec<NodeSpec>, App)> {
        let regions = Regions::default();
        let nodes = match self.nodes {
            Some(count) => skein_testbed::by_count(count, &regions)?,
            None => skein_testbed::by_regions(&self.regions, &regions)?,
        };
        if self.isolation == Isolation::Netns {
            bail!(
                "--isolation netns is not available in this build: Machines are plain processes; \
                 use --isolation portable, or leave it out"
            );
        }
        let app = match &self.config {
            Some(path) => {
                let file = config::valid(path)?;
                if file.app.is_none() {
                    bail!("{} names no app; write app = \"…\" at its top", path.display());
                }
                let (config, command) = (path.clone(), self.command.clone());
                App::Own { config, command, primary: file.primary_region }
            }
            None if self.no_demo => App::None,
            None => App::Hello,
        };
        Ok((nodes, app))
    }
}

/// Runs it.
pub(crate) async fn run(args: UpArgs, ctx: &Ctx) -> anyhow::Result<ExitCode> {
    let home = Home::new(ctx.state_root()?);
    let (nodes, app) = args.check()?;
    if args.detach {
        return daemon::start(&args, &home, ctx).await;
    }
    let reporter = if args.daemon { daemon::reporter()? } else { Reporter::terminal(ctx.json) };
    descriptors::seal().context("keep the descriptors of whoever started this from nodes")?;
    skein_testbed::adopt_orphans().context("become the parent of what dead nodes leave")?;
    let up = Up { args, home, nodes, app, reporter };
    let result = up.run().await;
    if let Err(error) = &result {
        up.reporter.failed(error);
    }
    match result {
        // A terminal is told by whoever called this; a waiting parent has been.
        Err(_) if up.args.daemon => Ok(ExitCode::FAILURE),
        other => other.map(ExitCode::from),
    }
}

struct Up {
    args: UpArgs,
    home: Home,
    nodes: Vec<NodeSpec>,
    app: App,
    reporter: Reporter,
}

impl Up {
    async fn run(&self) -> anyhow::Result<End> {
        let mut signals = Signals::new()?;
        if self.args.isolation == Isolation::Auto {
            self.reporter.line("isolation: portable (this build has no network namespaces)");
        }
        if let Some(warning) = self.app.warning(&self.nodes) {
            self.reporter.line(&warning);
        }
        let launched = tokio::select! {
            launched = self.launch() => launched?,
            end = signals.next() => {
                // Giving the launch up killed its nodes.
                self.clean().await?;
                return Ok(end);
            }
            () = self.reporter.broken() => {
                self.clean().await?;
                return Ok(End::Asked);
            }
        };
        let ended = self.serve(&launched, &mut signals).await;
        self.reporter.line("ending the cluster");
        tokio::select! {
            down = launched.down() => down?,
            // A second signal: what is left is killed when the testbed is dropped.
            _ = signals.next() => {}
        }
        ended
    }

    async fn launch(&self) -> anyhow::Result<Testbed> {
        let options = LaunchOptions {
            name: self.args.name.clone(),
            nodes: self.nodes.clone(),
            exe: std::env::current_exe().context("find this program")?,
            latency: match self.args.latency {
                Latency::Real => skein_testbed::Latency::Real,
                Latency::None => skein_testbed::Latency::None,
            },
            trace_sample: self.args.trace_sample,
            otlp: self.args.otlp.clone(),
            log: None,
        };
        let reporter = self.reporter.clone();
        let progress = Progress::new(move |line| reporter.line(line));
        Ok(Testbed::launch(&self.home, options, progress).await?)
    }

    /// Removes the directory of a launch that was given up.
    async fn clean(&self) -> anyhow::Result<()> {
        skein_testbed::end(&self.home.cluster(&self.args.name)).await?;
        Ok(())
    }

    async fn serve(&self, testbed: &Testbed, signals: &mut Signals) -> anyhow::Result<End> {
        let faults = skein_chaos::Faults::new(testbed.clone());
        let _front = Front::serve(testbed, skein_chaos::router(faults))?;
        let ready = async {
            let app = self.deploy(testbed).await?;
            let cluster = testbed.describe();
            report::ready(&self.reporter, &cluster, app.as_ref()).await
        };
        tokio::select! {
            ready = ready => ready?,
            end = signals.next() => return Ok(end),
            () = testbed.down_asked() => return Ok(End::Asked),
            () = self.reporter.broken() => return Ok(End::Asked),
        }
        tokio::select! {
            end = signals.next() => Ok(end),
            () = testbed.down_asked() => Ok(End::Asked),
        }
    }

    async fn deploy(&self, testbed: &Testbed) -> anyhow::Result<Option<AppName>> {
        let client = client(&testbed.describe())?;
        let (config, command) = match &self.app {
            App::None => return Ok(None),
            App::Hello => (demo::write(testbed, &self.nodes)?, Vec::new()),
            App::Own { config, command, .. } => (config.clone(), command.clone()),
        };
        demo::deploy(testbed, &client, config, command).await.map(Some)
    }
}

fn client(cluster: &ClusterJson) -> anyhow::Result<Client> {
    Client::new(Target::new(&cluster.api.url, &cluster.api.token))
}

/// The signals that end a testbed.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let signal = |kind| signal(kind).context("listen for signals");
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> End {
        tokio::select! {
            _ = self.interrupt.recv() => End::Signal(2),
            _ = self.terminate.recv() => End::Signal(15),
            _ = self.hangup.recv() => End::Signal(1),
        }
    }
}

#[cfg(test)]
mod tests;
