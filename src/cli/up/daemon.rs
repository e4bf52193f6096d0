//! `skein up --detach`: a daemon in the background, waited for until it is ready.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skein_testbed::Home;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use super::report::{Message, Reporter};
use super::{Isolation, Latency, Signals, UpArgs, descriptors, report};
use crate::cli::ctx::Ctx;
use crate::cli::out::note;

/// Starts the daemon; returns when the cluster is ready, with all that it said.
pub(super) async fn start(args: &UpArgs, home: &Home, ctx: &Ctx) -> anyhow::Result<ExitCode> {
    let dir = home.cluster(&args.name);
    if let Some(pid) = dir.holder() {
        return Err(skein_testbed::LockError::Held { name: args.name.clone(), pid }.into());
    }
    dir.create()?;
    let log_path = dir.daemon_log();
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&log_path);
    let log = log.with_context(|| format!("open {}", log_path.display()))?;
    descriptors::seal().context("keep the caller's descriptors from the daemon")?;
    let mut signals = Signals::new()?;
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command.args(arguments(args)?).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let mut daemon = command.spawn().context("start the daemon")?;
    let output = daemon.stdout.take().context("invariant: its output is piped")?;
    tokio::select! {
        ready = follow(&mut daemon, output, &log_path, ctx) => ready,
        end = signals.next() => {
            if let Some(pid) = daemon.id().and_then(|pid| i32::try_from(pid).ok()) {
                // Not waited for yet, so it is still this process.
                let _already_gone = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
            daemon.wait().await.context("wait for the daemon")?;
            Ok(end.into())
        }
    }
}

async fn follow(daemon: &mut Child, output: ChildStdout, log: &Path, ctx: &Ctx) -> anyhow::Result<ExitCode> {
    let mut lines = BufReader::new(output).lines();
    while let Some(line) = lines.next_line().await.context("read from the daemon")? {
        match serde_json::from_str(&line).with_context(|| format!("the daemon said {line:?}"))? {
            Message::Line(line) => note(&line),
            Message::Ready(cluster, app) => {
                report::print(&cluster, app.as_ref(), ctx.json).await?;
                return Ok(ExitCode::SUCCESS);
            }
            Message::Failed(error) => {
                daemon.wait().await.context("wait for the daemon")?;
                bail!("{error}");
            }
        }
    }
    let status = daemon.wait().await.context("wait for the daemon")?;
    bail!("the daemon ended before the cluster was ready ({status}); see {}", log.display())
}

/// The command line of the daemon.
pub(super) fn arguments(args: &UpArgs) -> anyhow::Result<Vec<OsString>> {
    let mut line: Vec<OsString> = vec!["up".into(), "--daemon".into()];
    let mut option = |name: &str, value: OsString| line.extend([name.into(), value]);
    option("--name", args.name.to_string().into());
    match args.nodes {
        Some(count) => option("--nodes", count.to_string().into()),
        None => option("--regions", args.regions.clone().into()),
    }
    let isolation = match args.isolation {
        Isolation::Auto => "auto",
        Isolation::Netns => "netns",
        Isolation::Portable => "portable",
    };
    option("--isolation", isolation.into());
    let latency = match args.latency {
        Latency::Real => "real",
        Latency::None => "none",
    };
    option("--latency", latency.into());
    if let Some(ratio) = args.trace_sample {
        option("--trace-sample", ratio.to_string().into());
    }
    for url in &args.otlp {
        option("--otlp", url.into());
    }
    if let Some(config) = &args.config {
        let config = std::path::absolute(config).context("find the configuration")?;
        option("--config", config.into());
    }
    if args.no_demo {
        line.push("--no-demo".into());
    }
    if !args.command.is_empty() {
        line.push("--".into());
        line.extend(args.command.iter().map(OsString::from));
    }
    Ok(line)
}

/// In the daemon: leaves the caller's session, and reports over standard output.
pub(super) fn reporter() -> anyhow::Result<Reporter> {
    nix::unistd::setsid().context("leave the caller's session")?;
    Ok(Reporter::Parent { waits: Arc::default() })
}

/// In the daemon, once it is ready: nobody reads its output any more, so what would still be written
/// there goes to the log.
pub(super) fn let_go() -> anyhow::Result<()> {
    nix::unistd::dup2_stdout(std::io::stderr()).context("close the pipe to the caller")
}
