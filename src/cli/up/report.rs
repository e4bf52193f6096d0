//! What `up` says: progress, then what can be tried.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use skein_core::AppName;
use skein_core::api::{ClusterJson, EndpointJson, EndpointRequest};
use tokio::sync::Notify;

use super::client;
use crate::cli::out::{self, Table};
use crate::cli::{endpoint, out::note};

/// What a daemon tells the process that waits for it: one JSON value a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message {
    /// A line of progress.
    Line(String),
    /// The cluster is ready, with this app.
    Ready(Box<ClusterJson>, Option<AppName>),
    /// It is not, and why.
    Failed(String),
}

/// Where progress goes.
#[derive(Debug, Clone)]
pub(super) enum Reporter {
    /// To people.
    Terminal { json: bool },
    /// To the process that waits, over standard output.
    Parent { waits: Arc<Waiting> },
}

/// Whether somebody waits for this daemon.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// It was told all: what is said later is for the log.
    told: AtomicBool,
    /// It can't be told any more.
    gone: Notify,
}

impl Reporter {
    pub(super) fn terminal(json: bool) -> Self {
        Self::Terminal { json }
    }

    /// Says one line of progress.
    pub(super) fn line(&self, line: &str) {
        match self {
            Self::Terminal { .. } => note(line),
            Self::Parent { .. } => {
                note(line);
                self.send(&Message::Line(line.to_owned()));
            }
        }
    }

    /// Says why it did not work, to a parent; a terminal is told by the caller.
    pub(super) fn failed(&self, error: &anyhow::Error) {
        if let Self::Parent { .. } = self {
            self.send(&Message::Failed(format!("{error:#}")));
        }
    }

    pub(super) fn send(&self, message: &Message) {
        let Self::Parent { waits } = self else { return };
        if waits.told.load(Ordering::Relaxed) {
            return;
        }
        let written = serde_json::to_string(message)
            .map_err(std::io::Error::from)
            .and_then(|text| writeln!(std::io::stdout().lock(), "{text}"));
        if written.is_err() {
            waits.gone.notify_one();
        }
    }

    /// Returns when nobody waits any more for a daemon that is not ready.
    pub(super) async fn broken(&self) {
        match self {
            Self::Terminal { .. } => std::future::pending().await,
            Self::Parent { waits } => waits.gone.notified().await,
        }
    }
}

/// Tells that the cluster is ready.
pub(super) async fn ready(
    reporter: &Reporter,
    cluster: &ClusterJson,
    app: Option<&AppName>,
) -> anyhow::Result<()> {
    match reporter {
        Reporter::Terminal { json } => {
            print(cluster, app, *json).await?;
            note("\nCtrl-C ends the cluster");
            Ok(())
        }
        Reporter::Parent { waits } => {
            reporter.send(&Message::Ready(Box::new(cluster.clone()), app.cloned()));
            waits.told.store(true, Ordering::Relaxed);
            super::daemon::let_go()
        }
    }
}

/// The cluster as JSON, or as tables with commands that can be pasted.
pub(super) async fn print(cluster: &ClusterJson, app: Option<&AppName>, json: bool) -> anyhow::Result<()> {
    if json {
        return out::json(cluster);
    }
    let mut endpoints = Vec::new();
    if let Some(app) = app {
        let request = EndpointRequest { app: app.clone(), port: 80, node: None, from: None, protocol: None };
        // An app without a service on port 80 has nothing to show here.
        endpoints = endpoint::endpoints(&client(cluster)?, &request).await.unwrap_or_default();
    }
    let host = app.map(|app| format!("{app}.localhost"));
    lines(cluster, host.as_deref(), &endpoints, &program()).iter().try_for_each(|line| out::data(line))
}

/// What to type for this program: its name where a shell finds it by that, else its path.
fn program() -> String {
    const NAME: &str = "skein";
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|dir| dir.join(NAME).is_file()) {
        return NAME.to_owned();
    }
    let here = std::env::current_dir().unwrap_or_default();
    let path = |exe: PathBuf| match exe.strip_prefix(&here) {
        Ok(within) => format!("./{}", within.display()),
        Err(_) => exe.display().to_string(),
    };
    std::env::current_exe().map_or_else(|_| NAME.to_owned(), path)
}

pub(super) fn lines(
    cluster: &ClusterJson,
    host: Option<&str>,
    endpoints: &[EndpointJson],
    program: &str,
) -> Vec<String> {
    let mut nodes = Table::new(&["NODE", "REGION", "PROCESS", "API", "HTTP"]);
    // Any public address of the app will do; the IPv4 one comes first.
    let at = |name: &str| endpoints.iter().find(|endpoint| endpoint.node.as_str() == name);
    for node in &cluster.nodes {
        let connect = at(node.name.as_str()).map(|endpoint| format!("http://{}", endpoint.connect));
        nodes.row([
            node.name.to_string(),
            node.region.to_string(),
            node.pid.to_string(),
            node.api.clone(),
            connect.unwrap_or_default(),
        ]);
    }
    let mut lines = vec![String::new(), format!("cluster {} is ready", cluster.name), String::new()];
    lines.extend(nodes.lines());
    let named =
        if cluster.name == "default" { String::new() } else { format!(" --cluster {}", cluster.name) };
    lines.extend([String::new(), "Try:".to_owned()]);
    let first = cluster.nodes.first().and_then(|node| at(node.name.as_str()));
    let last = cluster.nodes.last().and_then(|node| at(node.name.as_str()));
    if let (Some(host), Some(first), Some(last)) = (host, first, last) {
        lines.push(format!("  curl -H 'Host: {host}' http://{}/", first.connect));
        if last.node != first.node {
            lines.push(format!("  curl -X POST -H 'Host: {host}' http://{}/", last.connect));
        }
    }
    lines.push(format!("  {program}{named} status"));
    if cluster.nodes.len() > 1
        && let Some(node) = cluster.nodes.last()
    {
        lines.push(format!("  {program}{named} chaos inject kill {}", node.name));
    }
    lines.push(format!("  {program} down --name {}", cluster.name));
    lines
}
