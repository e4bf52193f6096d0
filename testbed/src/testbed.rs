//! A running cluster on this computer, in the hands of its launcher.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use skein_core::NodeName;
use skein_core::api::{ApiJson, BoundJson, ClusterJson, NodeJson, OtlpJson};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::NodeClient;
use crate::error::TestbedError;
use crate::home::{ClusterDir, Lock};
use crate::launch::{LOOK, Starter};
use crate::node::{Life, Node, NodeView};
use crate::otlp::{Collector, Store};

/// One call of a node's API that should be quick.
const CALL: Duration = Duration::from_secs(5);
/// How long a drain may take: the deadline of state changes (DESIGN section 8).
const DRAIN: Duration = Duration::from_secs(60);
/// From SIGTERM to SIGKILL.
const TERM: Duration = Duration::from_secs(20);
/// How long nodes may take to see each other, before what each node adds.
const SEE: Duration = Duration::from_secs(60);

/// A running cluster. Clones are handles of the same; when the last is dropped, all its processes are
/// killed and waited for. [`Testbed::down`] ends them in order.
#[derive(Debug, Clone)]
pub struct Testbed(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: ClusterDir,
    lock: Mutex<Option<Lock>>,
    nodes: Vec<Arc<Node>>,
    starter: Arc<Starter>,
    token: String,
    client: NodeClient,
    collector: Collector,
    front: Mutex<Option<TcpListener>>,
    api_url: String,
    changes: Arc<watch::Sender<u64>>,
    ending: watch::Sender<bool>,
    watchers: Mutex<JoinSet<()>>,
}

/// What a testbed is made of.
pub(crate) struct Parts {
    pub(crate) dir: ClusterDir,
    pub(crate) lock: Lock,
    pub(crate) nodes: Vec<Arc<Node>>,
    pub(crate) starter: Arc<Starter>,
    pub(crate) token: String,
    pub(crate) client: NodeClient,
    pub(crate) collector: Collector,
    pub(crate) listener: TcpListener,
}

impl Testbed {
    pub(crate) fn assemble(parts: Parts) -> Result<Self, TestbedError> {
        let Parts { dir, lock, nodes, starter, token, client, collector, listener } = parts;
        let address = listener.local_addr().map_err(TestbedError::io("read the API's address"))?;
        let testbed = Self(Arc::new(Inner {
            dir,
            lock: Mutex::new(Some(lock)),
            nodes,
            starter,
            token,
            client,
            collector,
            front: Mutex::new(Some(listener)),
            api_url: format!("http://{address}"),
            changes: Arc::new(watch::Sender::new(0)),
            ending: watch::Sender::new(false),
            watchers: Mutex::new(JoinSet::new()),
        }));
        for node in &testbed.0.nodes {
            testbed.watch(node);
        }
        Ok(testbed)
    }

    /// Tells of a node's end, whoever caused it. Nobody starts it again but [`Testbed::restart`].
    fn watch(&self, node: &Node) {
        let Some(mut life) = node.with(|state| state.process.as_ref().map(|process| process.life())) else {
            return;
        };
        let (changes, name) = (self.0.changes.clone(), node.spec.name.clone());
        let (progress, ending) = (self.0.starter.progress.clone(), self.0.ending.subscribe());
        let task = async move {
            while life.changed().await.is_ok() {
                changes.send_modify(|count| *count += 1);
                let how = match &*life.borrow_and_update() {
                    Life::Gone(how) => how.clone(),
                    Life::Running | Life::Paused => continue,
                };
                if !*ending.borrow() {
                    progress.say(&format!("node {name} {how}"));
                }
                return;
            }
        };
        let mut watchers = self.0.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        while watchers.try_join_next().is_some() {}
        watchers.spawn(task);
    }

    /// Its directory.
    pub fn dir(&self) -> &ClusterDir {
        &self.0.dir
    }

    /// The operator's token.
    pub fn token(&self) -> &str {
        &self.0.token
    }

    /// A client with that token.
    pub fn client(&self) -> &NodeClient {
        &self.0.client
    }

    /// Where the API front listens; answered while [`crate::Front`] serves.
    pub fn api_url(&self) -> &str {
        &self.0.api_url
    }

    /// The collected traces.
    pub fn traces(&self) -> &Store {
        self.0.collector.store()
    }

    pub(crate) fn take_listener(&self) -> Option<TcpListener> {
        self.0.front.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// All nodes, in the order of their launch.
    pub fn nodes(&self) -> Vec<NodeView> {
        self.0.nodes.iter().map(|node| node.view()).collect()
    }

    /// Counts starts, ends, pauses and resumptions of nodes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// The testbed as `cluster.json` describes it (DESIGN section 8).
    pub fn describe(&self) -> ClusterJson {
        ClusterJson {
            name: self.0.dir.name().to_string(),
            api: ApiJson { url: self.0.api_url.clone(), token: self.0.token.clone() },
            dashboard: None,
            otlp: OtlpJson { grpc: self.0.collector.grpc_url(), http: self.0.collector.http_url() },
            ca: None,
            isolation: "portable".into(),
            nodes: self.nodes().into_iter().filter_map(|node| node.bound).collect(),
        }
    }

    pub(crate) fn write_description(&self) -> Result<(), TestbedError> {
        let cluster = self.describe();
        let lock = self.0.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let held = lock.as_ref().ok_or(TestbedError::Ending)?;
        self.0.dir.write(&cluster, held).map_err(TestbedError::io("write cluster.json"))
    }

    /// Kills a node (SIGKILL); returns when it is gone.
    ///
    /// # Errors
    /// When there is no such node or it does not run.
    pub async fn kill(&self, name: &str) -> Result<(), TestbedError> {
        let node = self.node(name)?;
        self.signal(node, Signal::SIGKILL)?;
        self.until(node, TERM, |life| matches!(life, Life::Gone(_))).await
    }

    /// Stops a node's process (SIGSTOP); returns when it stands still. Its Machines run on.
    ///
    /// # Errors
    /// When there is no such node or it does not run.
    pub async fn pause(&self, name: &str) -> Result<(), TestbedError> {
        let node = self.node(name)?;
        self.signal(node, Signal::SIGSTOP)?;
        self.until(node, CALL, |life| *life != Life::Running).await
    }

    /// Lets a paused node run on (SIGCONT).
    ///
    /// # Errors
    /// When there is no such node or it ended.
    pub async fn resume(&self, name: &str) -> Result<(), TestbedError> {
        let node = self.node(name)?;
        self.signal(node, Signal::SIGCONT)?;
        self.until(node, CALL, |life| *life != Life::Paused).await
    }

    /// Drains a node through its own API and leaves the process running.
    ///
    /// # Errors
    /// When there is no such node, it does not run, or its API refuses.
    pub async fn drain(&self, name: &str) -> Result<(), TestbedError> {
        self.order(self.node(name)?, "drain", DRAIN).await
    }

    /// Ends a node's drain.
    ///
    /// # Errors
    /// When there is no such node, it does not run, or its API refuses.
    pub async fn undrain(&self, name: &str) -> Result<(), TestbedError> {
        self.order(self.node(name)?, "undrain", DRAIN).await
    }

    /// Drains a live node and ends it, starts it again with the configuration it had, and clears the
    /// drain; a dead one is only started. Returns when every live node sees it.
    ///
    /// # Errors
    /// When there is no such node, it ends while it starts, or the others do not see it in time.
    pub async fn restart(&self, name: &str) -> Result<BoundJson, TestbedError> {
        let node = self.node(name)?;
        let _turn = node.turn.lock().await;
        if node.view().life == Life::Paused {
            self.resume(name).await?;
        }
        if node.view().life == Life::Running {
            node.with(|state| state.ready = false);
            // SIGTERM drains too: a node that can't take the order is ended all the same.
            if let Err(error) = self.drain(name).await {
                tracing::warn!(node = name, error = %Causes(&error), "drain before a restart failed");
            }
            self.end(node).await?;
        }
        if *self.0.ending.borrow() {
            return Err(TestbedError::Ending);
        }
        let bound = self.0.starter.start(node).await?;
        self.watch(node);
        self.0.changes.send_modify(|count| *count += 1);
        self.write_description()?;
        let deadline = Instant::now() + self.patience();
        self.retry(node, deadline, "does not take its work back", || self.order(node, "undrain", CALL))
            .await?;
        self.retry(node, deadline, "was not seen by all", || self.barrier(node)).await?;
        self.all_see(deadline, &is_running).await?;
        node.with(|state| state.ready = true);
        Ok(bound)
    }

    async fn barrier(&self, node: &Node) -> Result<(), TestbedError> {
        let view = node.view();
        let api = view.api().ok_or_else(|| not_running(node))?;
        let url = format!("{api}/skein/v1/barrier");
        let answer = self.0.client.post::<serde_json::Value>(&url, &serde_json::json!({}), DRAIN).await;
        answer.map(drop).map_err(|source| TestbedError::Call { node: node.spec.name.clone(), source })
    }

    async fn order(&self, node: &Node, verb: &str, timeout: Duration) -> Result<(), TestbedError> {
        let view = node.view();
        let api = view.api().ok_or_else(|| not_running(node))?;
        let url = format!("{api}/skein/v1/nodes/{}/{verb}", node.spec.name);
        let answer = self.0.client.post::<serde_json::Value>(&url, &serde_json::json!({}), timeout).await;
        answer.map(drop).map_err(|source| TestbedError::Call { node: node.spec.name.clone(), source })
    }

    /// Repeats `attempt` until it succeeds, the node ends or the deadline passes.
    async fn retry<F: Future<Output = Result<(), TestbedError>>>(
        &self,
        node: &Node,
        deadline: Instant,
        what: &str,
        attempt: impl Fn() -> F,
    ) -> Result<(), TestbedError> {
        loop {
            let Err(error) = attempt().await else { return Ok(()) };
            if let Life::Gone(how) = node.view().life {
                return Err(self.0.starter.died(node, how));
            }
            if Instant::now() >= deadline {
                let what = format!("node {} {what}", node.spec.name);
                let status = Causes(&error).to_string();
                return Err(TestbedError::Slow { what, waited: self.patience(), status });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until every node sees all nodes.
    pub(crate) async fn everybody_sees_everybody(&self) -> Result<(), TestbedError> {
        self.all_see(Instant::now() + self.patience(), &is_any).await?;
        for node in &self.0.nodes {
            node.with(|state| state.ready = true);
        }
        Ok(())
    }

    /// Waits until each running node sees every node that is `wanted` as alive and not draining.
    async fn all_see(
        &self,
        deadline: Instant,
        wanted: &(dyn Fn(&NodeView) -> bool + Sync),
    ) -> Result<(), TestbedError> {
        for node in &self.0.nodes {
            loop {
                let view = node.view();
                if let Life::Gone(how) = view.life
                    && wanted(&node.view())
                {
                    return Err(self.0.starter.died(node, how));
                }
                let Some(api) = node.view().api().map(str::to_owned) else { break };
                let status = match self.0.client.nodes(&api, CALL).await {
                    Ok(seen) => match self.missing(&seen, wanted) {
                        None => break,
                        Some(missing) => missing,
                    },
                    Err(error) => Causes(&error).to_string(),
                };
                if Instant::now() >= deadline {
                    let what = format!("node {} does not see all nodes", node.spec.name);
                    return Err(TestbedError::Slow { what, waited: self.patience(), status });
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    fn missing(&self, seen: &[NodeJson], wanted: &(dyn Fn(&NodeView) -> bool + Sync)) -> Option<String> {
        let present =
            |name: &NodeName| seen.iter().any(|node| node.name == *name && node.alive && !node.draining);
        let nodes = self.nodes();
        let absent: Vec<&str> = nodes
            .iter()
            .filter(|node| wanted(node) && !present(&node.spec.name))
            .map(|node| node.spec.name.as_str())
            .collect();
        (!absent.is_empty()).then(|| format!("it does not see {} alive and in service", absent.join(", ")))
    }

    fn patience(&self) -> Duration {
        SEE + Duration::from_secs(self.0.nodes.len() as u64)
    }

    fn node(&self, name: &str) -> Result<&Arc<Node>, TestbedError> {
        self.0.nodes.iter().find(|node| node.spec.name.as_str() == name).ok_or_else(|| {
            let known: Vec<&str> = self.0.nodes.iter().map(|node| node.spec.name.as_str()).collect();
            let node = name.chars().take(80).collect();
            TestbedError::UnknownNode { node, known: known.join(", ") }
        })
    }

    fn signal(&self, node: &Node, signal: Signal) -> Result<(), TestbedError> {
        let sent = node.with(|state| state.process.as_ref().is_some_and(|process| process.signal(signal)));
        if sent { Ok(()) } else { Err(not_running(node)) }
    }

    async fn until(
        &self,
        node: &Node,
        patience: Duration,
        wanted: impl Fn(&Life) -> bool,
    ) -> Result<(), TestbedError> {
        let life = node.with(|state| state.process.as_ref().map(|process| process.life()));
        let Some(mut life) = life else { return Ok(()) };
        let reached = tokio::time::timeout(patience, life.wait_for(|life| wanted(life))).await.is_ok();
        if reached {
            return Ok(());
        }
        let what = format!("node {} does not react to a signal", node.spec.name);
        let status = format!("its process is {:?}", node.view().life);
        Err(TestbedError::Slow { what, waited: patience, status })
    }

    /// SIGTERM, and SIGKILL for a node that does not end by it.
    async fn end(&self, node: &Node) -> Result<(), TestbedError> {
        let gone = |life: &Life| matches!(life, Life::Gone(_));
        // A paused process takes no SIGTERM. Either may find it gone already.
        let _resumed = self.signal(node, Signal::SIGCONT);
        if self.signal(node, Signal::SIGTERM).is_err() || self.until(node, TERM, gone).await.is_ok() {
            return Ok(());
        }
        tracing::warn!(node = %node.spec.name, "did not end by SIGTERM, is killed");
        let _gone_meanwhile = self.signal(node, Signal::SIGKILL);
        self.until(node, TERM, gone).await
    }

    /// Asks whoever runs the testbed to end it.
    pub fn ask_down(&self) {
        self.0.ending.send_replace(true);
    }

    /// Returns when somebody asked for the end.
    pub async fn down_asked(&self) {
        // The sender lives as long as `self`.
        let mut ending = self.0.ending.subscribe();
        let _asked = ending.wait_for(|ending| *ending).await;
    }

    /// Ends all nodes in order (SIGTERM, then SIGKILL), waits for every process and removes the
    /// directory.
    ///
    /// # Errors
    /// When a process can't be ended or the directory can't be removed.
    pub async fn down(&self) -> Result<(), TestbedError> {
        self.ask_down();
        let mut ends = JoinSet::new();
        for index in 0..self.0.nodes.len() {
            let testbed = self.clone();
            ends.spawn(async move { testbed.end(&testbed.0.nodes[index]).await });
        }
        for ended in ends.join_all().await {
            ended?;
        }
        crate::process::wait_for_orphans(Instant::now() + Duration::from_secs(10)).await;
        self.0.collector.stop().await;
        let lock = self.0.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(lock) = lock else { return Ok(()) };
        let path = self.0.dir.path().display().to_string();
        self.0.dir.remove(lock).map_err(TestbedError::io(format!("remove {path}")))
    }
}

fn is_running(node: &NodeView) -> bool {
    node.life == Life::Running
}

fn is_any(_node: &NodeView) -> bool {
    true
}

fn not_running(node: &Node) -> TestbedError {
    TestbedError::NotRunning { node: node.spec.name.clone() }
}

/// An error with its causes, on one line.
pub(crate) struct Causes<'a>(pub(crate) &'a dyn std::error::Error);

impl std::fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            write!(f, ": {cause}")?;
            next = cause.source();
        }
        Ok(())
    }
}
