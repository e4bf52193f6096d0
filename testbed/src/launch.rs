//! From options to a cluster that is ready.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use skein_core::api::{BoundJson, CreateJoinToken, JoinTokenJson};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::client::NodeClient;
use crate::error::TestbedError;
use crate::home::{ClusterDir, ClusterName, Home};
use crate::node::{Life, Node, NodeToml};
use crate::otlp::{Collector, StoreLimits};
use crate::process::Processes;
use crate::spec::NodeSpec;
use crate::testbed::{Parts, Testbed};

/// How long a node may take from its start until its API listens.
const START: Duration = Duration::from_secs(60);
/// The nodes that are to be the registry's voters; they settle before the crowd comes.
const VOTERS: usize = 3;
/// Between two looks at a condition that nothing announces.
pub(crate) const LOOK: Duration = Duration::from_millis(25);
/// Join tokens of a launch; nodes that start take it at once.
const JOIN_TTL_SECONDS: u64 = 600;
/// A SIGTERM's patience with what is in flight, for nodes of a testbed.
const DRAIN_MS: u64 = 10_000;
/// Time between two looks for idle Machines: nobody at a testbed waits minutes to see one stop.
const AUTOSTOP_INTERVAL_MS: u64 = 10_000;

/// Whether distances between regions are simulated (SPEC TB-4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Latency {
    /// By the regions' coordinates.
    Real,
    /// None is added.
    None,
}

/// What to launch.
#[derive(Debug, Clone)]
pub struct LaunchOptions {
    /// The testbed's name.
    pub name: ClusterName,
    /// Its nodes, at least one; the first makes the cluster.
    pub nodes: Vec<NodeSpec>,
    /// The program that `node run --config FILE` is asked of.
    pub exe: PathBuf,
    /// Whether distances are simulated.
    pub latency: Latency,
    /// Share of requests that are traced; `None`: all up to 50 a second and node, 1 % of the rest.
    pub trace_sample: Option<f64>,
    /// Collectors to which spans go besides the testbed's own.
    pub otlp: Vec<String>,
    /// What nodes log, as in `RUST_LOG`; their own default when absent.
    pub log: Option<String>,
}

/// Where one line per step goes.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn(&str) + Send + Sync>);

impl Progress {
    /// Lines go to `f`.
    pub fn new(f: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(f))
    }

    /// Says one line.
    pub fn say(&self, line: &str) {
        (self.0)(line);
    }
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Progress")
    }
}

impl Testbed {
    /// Launches a cluster; returns when every node sees all nodes.
    ///
    /// # Errors
    /// [`TestbedError`]: the name is taken, a node ended while it started, or the cluster did not come
    /// together in time. Nothing is left running then; the directory stays, with the logs.
    pub async fn launch(
        home: &Home,
        options: LaunchOptions,
        progress: Progress,
    ) -> Result<Self, TestbedError> {
        let begun = Instant::now();
        let dir = home.cluster(&options.name);
        let lock = dir.lock()?;
        crate::leftover::wait(&dir).await;
        dir.clear(&lock).map_err(TestbedError::io(format!("clear {}", dir.path().display())))?;

        let collector = Collector::start(StoreLimits::default()).await?;
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await;
        let listener = listener.map_err(TestbedError::io("listen on loopback for the API"))?;
        let processes = Processes::new().map_err(TestbedError::io("watch child processes"))?;
        let nodes = options.nodes.iter().map(|spec| Arc::new(Node::new(spec.clone(), dir.node(&spec.name))));
        let nodes: Vec<Arc<Node>> = nodes.collect();
        let Some(first) = nodes.first() else {
            return Err(TestbedError::UnknownNode { node: String::new(), known: "none".into() });
        };

        let otlp = collector.grpc_url();
        let starter = Arc::new(Starter { processes, exe: options.exe.clone(), progress: progress.clone() });
        node_toml(&options, first, None, &otlp).and_then(|toml| write_config(first, &toml))?;
        let bound = starter.start(first).await?;
        let token = operator_token(&dir, first).await?;
        let client = NodeClient::new(token.clone())
            .map_err(|source| TestbedError::Call { node: first.spec.name.clone(), source })?;

        if nodes.len() > 1 {
            let uses = nodes.len() as u32 - 1;
            let join = join_token(&client, &bound, uses)
                .await
                .map_err(|source| TestbedError::Call { node: first.spec.name.clone(), source })?;
            for node in &nodes[1..] {
                let toml = node_toml(&options, node, Some(join.clone()), &otlp)?;
                write_config(node, &toml)?;
            }
            start_all(&starter, &nodes[1..]).await?;
        }

        let parts = Parts { dir, lock, nodes, starter, token, client, collector, listener };
        let testbed = Self::assemble(parts)?;
        testbed.everybody_sees_everybody().await?;
        testbed.write_description()?;
        let count = options.nodes.len();
        progress
            .say(&format!("{count} of {count} nodes see all nodes after {} ms", begun.elapsed().as_millis()));
        Ok(testbed)
    }
}

/// Starts nodes side by side. Without tasks: when the launch is given up, so are they, at once.
async fn start_all(starter: &Starter, nodes: &[Arc<Node>]) -> Result<(), TestbedError> {
    // More at once would only compete for the processor, and starve the registry's leader.
    let at_once = std::thread::available_parallelism().map_or(1, usize::from) * 2;
    let (voters, others) = nodes.split_at(nodes.len().min(VOTERS - 1));
    for nodes in std::iter::once(voters).chain(others.chunks(at_once)) {
        let begun: Vec<Begun> = nodes.iter().map(|node| starter.begin(node)).collect::<Result<_, _>>()?;
        for (node, begun) in nodes.iter().zip(begun) {
            starter.finish(node, begun).await?;
        }
    }
    Ok(())
}

async fn join_token(
    client: &NodeClient,
    bound: &BoundJson,
    uses: u32,
) -> Result<String, crate::client::CallError> {
    let request = CreateJoinToken { uses, ttl_seconds: JOIN_TTL_SECONDS };
    let url = format!("{}/skein/v1/join_tokens", bound.api);
    let JoinTokenJson { token } = client.post(&url, &request, Duration::from_secs(15)).await?;
    Ok(token)
}

async fn operator_token(dir: &ClusterDir, first: &Node) -> Result<String, TestbedError> {
    let path = dir.node(&first.spec.name).join("operator.token");
    let text = tokio::fs::read_to_string(&path).await;
    Ok(text.map_err(TestbedError::io(format!("read {}", path.display())))?.trim().to_owned())
}

fn node_toml(
    options: &LaunchOptions,
    node: &Node,
    join: Option<String>,
    otlp: &str,
) -> Result<NodeToml, TestbedError> {
    std::fs::create_dir_all(&node.dir).map_err(TestbedError::io(format!("make {}", node.dir.display())))?;
    Ok(NodeToml {
        name: node.spec.name.to_string(),
        region: node.spec.region.to_string(),
        data_dir: node.dir.clone(),
        bootstrap: join.is_none(),
        join,
        base_domain: "localhost".into(),
        latency: match options.latency {
            Latency::Real => "real",
            Latency::None => "none",
        },
        exit_with_stdin: true,
        otlp: std::iter::once(otlp.to_owned()).chain(options.otlp.iter().cloned()).collect(),
        trace_sample: options.trace_sample,
        adopt_grace_ms: 0,
        drain_ms: DRAIN_MS,
        autostop_interval_ms: AUTOSTOP_INTERVAL_MS,
        log: options.log.clone(),
    })
}

fn write_config(node: &Node, config: &NodeToml) -> Result<(), TestbedError> {
    let path = config_path(node);
    let text = toml::to_string(config).map_err(std::io::Error::other);
    text.and_then(|text| crate::home::replace(&path, text.as_bytes()))
        .map_err(TestbedError::io(format!("write {}", path.display())))
}

fn config_path(node: &Node) -> PathBuf {
    node.dir.join("node.toml")
}

fn bound_path(node: &Node) -> PathBuf {
    node.dir.join("bound.json")
}

/// A node between its start and its first sign of life.
struct Begun {
    at: Instant,
    life: watch::Receiver<Life>,
}

/// Starts nodes.
#[derive(Debug)]
pub(crate) struct Starter {
    processes: Processes,
    exe: PathBuf,
    pub(crate) progress: Progress,
}

impl Starter {
    /// Starts `node`; returns what it bound once its API listens.
    pub(crate) async fn start(&self, node: &Node) -> Result<BoundJson, TestbedError> {
        let begun = self.begin(node)?;
        self.finish(node, begun).await
    }

    fn begin(&self, node: &Node) -> Result<Begun, TestbedError> {
        let at = Instant::now();
        let bound_path = bound_path(node);
        // What an earlier start bound says nothing of this one.
        match std::fs::remove_file(&bound_path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(TestbedError::io(format!("remove {}", bound_path.display()))(error));
            }
            _ => {}
        }
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(node.log());
        let log = log.map_err(TestbedError::io(format!("open {}", node.log().display())))?;
        let errors = log.try_clone().map_err(TestbedError::io("share a log"))?;
        let mut command = Command::new(&self.exe);
        command.args(["node", "run", "--config"]).arg(config_path(node)).stdout(log).stderr(errors);
        let process = self.processes.spawn(&mut command);
        let process = process.map_err(TestbedError::io(format!("run {}", self.exe.display())))?;
        let life = process.life();
        node.with(|state| {
            state.process = Some(process);
            state.bound = None;
            state.ready = false;
            state.incarnation += 1;
        });
        Ok(Begun { at, life })
    }

    async fn finish(&self, node: &Node, begun: Begun) -> Result<BoundJson, TestbedError> {
        let Begun { at, mut life } = begun;
        let bound_path = bound_path(node);
        let bound = loop {
            if let Some(bound) = read_bound(&bound_path).await? {
                break bound;
            }
            if let Life::Gone(how) = &*life.borrow() {
                return Err(self.died(node, how.clone()));
            }
            if at.elapsed() > START {
                let what = format!("node {} does not answer", node.spec.name);
                let status = format!("no {}; its log: {}", bound_path.display(), node.log().display());
                return Err(TestbedError::Slow { what, waited: START, status });
            }
            let _changed_or_not = tokio::time::timeout(LOOK, life.changed()).await;
        };
        node.with(|state| state.bound = Some(bound.clone()));
        let NodeSpec { name, region } = &node.spec;
        let took = at.elapsed().as_millis();
        self.progress.say(&format!("node {name} in {region} started in {took} ms, process {}", bound.pid));
        Ok(bound)
    }

    pub(crate) fn died(&self, node: &Node, how: String) -> TestbedError {
        TestbedError::Died { node: node.spec.name.clone(), how, log: node.log(), tail: tail(&node.log()) }
    }
}

async fn read_bound(path: &PathBuf) -> Result<Option<BoundJson>, TestbedError> {
    let read = || TestbedError::io(format!("read {}", path.display()));
    match tokio::fs::read(path).await {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| read()(error.into())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(read()(error)),
    }
}

/// The last lines of a log.
fn tail(path: &PathBuf) -> String {
    const LINES: usize = 15;
    let text = match std::fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => return format!("  (it can't be read: {error})"),
    };
    let lines: Vec<&str> = text.lines().collect();
    if lines.is_empty() {
        return "  (it is empty)".into();
    }
    let shown = lines[lines.len().saturating_sub(LINES)..].iter();
    shown.map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
