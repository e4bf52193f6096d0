//! Registries of one process over function calls with links that can be cut.

use super::*;
use crate::keeper::Tasks;
use skein_core::facts::{Command, Outcome, Proposal, Refusal};
use skein_core::{AppId, testing};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tempfile::TempDir;
use ulid::Ulid;

mod cluster;
mod file;
mod snapshots;

/// Longer than anything takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Carries messages between the registries of a test.
#[derive(Default)]
struct Hub {
    registries: Mutex<BTreeMap<NodeNumber, RaftRegistry>>,
    /// From, to.
    cut: Mutex<BTreeSet<(NodeNumber, NodeNumber)>>,
    /// How long a message is on its way.
    one_way: Mutex<Duration>,
    /// Parts of snapshots that were sent to each node.
    parts: Mutex<BTreeMap<NodeNumber, usize>>,
}

impl Hub {
    fn up(&self, from: NodeNumber, to: NodeNumber) -> Option<RaftRegistry> {
        if self.cut.lock().unwrap().contains(&(from, to)) {
            return None;
        }
        self.registries.lock().unwrap().get(&to).cloned()
    }
}

struct Wire {
    hub: Arc<Hub>,
    from: NodeNumber,
}

impl RaftTransport for Wire {
    fn call(
        &self,
        to: NodeNumber,
        message: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, String>> {
        let (hub, from) = (Arc::clone(&self.hub), self.from);
        Box::pin(async move {
            if let Ok(Request::Snapshot(_)) = codec::decode(&message) {
                *hub.parts.lock().unwrap().entry(to).or_default() += 1;
            }
            let exchange = async {
                let one_way = *hub.one_way.lock().unwrap();
                tokio::time::sleep(one_way).await;
                let there = hub.up(from, to);
                let answer = match &there {
                    Some(registry) => registry.handle(from, message).await,
                    None => std::future::pending().await,
                };
                tokio::time::sleep(one_way).await;
                // A link that was cut meanwhile loses the answer.
                if hub.up(to, from).is_none() {
                    std::future::pending::<()>().await;
                }
                answer
            };
            tokio::time::timeout(timeout, exchange).await.map_err(|_| "no answer".to_owned())?
        })
    }

    fn reachable(&self, to: NodeNumber) -> bool {
        self.hub.up(self.from, to).is_some() && self.hub.up(to, self.from).is_some()
    }
}

struct Cluster {
    hub: Arc<Hub>,
    dir: TempDir,
    tune: fn(&mut RegistryConfig),
}

fn number(n: u32) -> NodeNumber {
    NodeNumber(n)
}

fn config(dir: &Path, node: u32) -> RegistryConfig {
    RegistryConfig {
        heartbeat: Duration::from_millis(150),
        election: (Duration::from_millis(450), Duration::from_millis(900)),
        write_timeout: DEADLINE,
        ..RegistryConfig::new(number(node), dir.join(format!("node-{node}.redb")))
    }
}

impl Cluster {
    /// A cluster of `nodes` nodes, all added through the first.
    async fn of(nodes: u32) -> (Self, Vec<RaftRegistry>) {
        Self::tuned(nodes, |_| {}).await
    }

    async fn tuned(nodes: u32, tune: fn(&mut RegistryConfig)) -> (Self, Vec<RaftRegistry>) {
        let cluster = Self { hub: Arc::default(), dir: tempfile::tempdir().unwrap(), tune };
        let first = cluster.open(1).await;
        first.bootstrap(beginning()).await.unwrap();
        let mut registries = vec![first];
        for n in 2..=nodes {
            registries.push(cluster.add(&registries[0], n).await);
        }
        let voters = if nodes < 3 { 1 } else { 3 };
        for registry in &registries {
            let settled = |s: &RegistryStatus| {
                !s.changing && s.voters.len() == voters && s.voters.len() + s.learners.len() == nodes as usize
            };
            until(registry, settled).await;
        }
        (cluster, registries)
    }

    async fn open(&self, n: u32) -> RaftRegistry {
        let mut config = config(self.dir.path(), n);
        (self.tune)(&mut config);
        let wire = Arc::new(Wire { hub: Arc::clone(&self.hub), from: number(n) });
        let registry = RaftRegistry::open(config, wire, &Tasks::current()).await.unwrap();
        self.hub.registries.lock().unwrap().insert(number(n), registry.clone());
        registry
    }

    async fn add(&self, through: &RaftRegistry, n: u32) -> RaftRegistry {
        let (outcome, _) = through.propose(add_node(n)).await.unwrap();
        assert!(matches!(outcome, Outcome::Node(given, _) if given == number(n)), "{outcome:?}");
        self.open(n).await
    }

    /// The node is gone for the others at once, and its file is free when this returns.
    async fn stop(&self, n: u32) {
        let registry = self.hub.registries.lock().unwrap().remove(&number(n)).unwrap();
        registry.shutdown().await;
    }

    /// Nothing passes between `n` and the other nodes.
    fn isolate(&self, n: u32) {
        let others: Vec<_> = self.hub.registries.lock().unwrap().keys().copied().collect();
        let mut cut = self.hub.cut.lock().unwrap();
        for other in others {
            cut.extend([(number(n), other), (other, number(n))]);
        }
    }

    fn heal(&self) {
        self.hub.cut.lock().unwrap().clear();
    }
}

fn beginning() -> Vec<Command> {
    vec![
        testing::init(testing::settings()),
        Command::AddFirstNode {
            name: "iad-1".parse().unwrap(),
            region: "iad".parse().unwrap(),
            key: [1; 32],
            backhaul: "127.0.0.1:1".parse().unwrap(),
        },
        Command::CreateJoinToken { token: testing::join_token([7; 32]) },
    ]
}

fn add_node(n: u32) -> Command {
    testing::add_node([7; 32], "iad", [n as u8; 32])
}

fn app(id: u128, name: &str) -> Command {
    testing::create_app(AppId(Ulid(id)), name)
}

/// Waits until the registry's status is as wanted; fails with the last one.
async fn until(registry: &RaftRegistry, wanted: impl Fn(&RegistryStatus) -> bool) -> RegistryStatus {
    let mut metrics = registry.0.raft.metrics();
    let waiting = async {
        loop {
            metrics.mark_unchanged();
            let status = registry.status();
            if wanted(&status) {
                return status;
            }
            metrics.changed().await.unwrap();
        }
    };
    match tokio::time::timeout(DEADLINE, waiting).await {
        Ok(status) => status,
        Err(_) => panic!("{registry:?} stays at {:?}", registry.status()),
    }
}

/// Waits until the registry's facts are as wanted.
async fn until_facts(registry: &RaftRegistry, wanted: impl Fn(&State) -> bool) {
    let mut facts = registry.watch();
    let waiting = facts.wait_for(|(_, state)| wanted(state));
    if tokio::time::timeout(DEADLINE, waiting).await.is_err() {
        panic!("{registry:?} stays at {:?}", registry.status());
    }
}

fn has(name: &'static str) -> impl Fn(&State) -> bool {
    move |state| state.app_by_name(name).is_some()
}
