//! The registry: facts that all nodes agree on, kept by Raft (DESIGN section 3, SPEC CLU-2).
//!
//! What: openraft with its log and the facts in one redb file, messages over a [`RaftTransport`],
//! writes through whichever node, reads from the local state without a lock. What not: what a command
//! does ([`skein_core::facts`]), sockets, or the snapshot for the proxy.
//!
//! Invariants: a fact that was accepted is on the disks of a majority. The local state only moves
//! forward and is readable before, without and after any leader. A write ends within its own time
//! limit, whatever Raft does.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use openraft::raft::AppendEntriesResponse;
use openraft::{Config, SnapshotPolicy};
use skein_core::facts::{Fact, FactKey, Outcome, Proposal, State};
use skein_core::{NodeNumber, Random, codec};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use ulid::Ulid;

use crate::BoxFuture;
use crate::clock;
use crate::entropy::Entropy;
use crate::keeper::Keeper;

mod candidacy;
mod disk;
mod log;
mod machine;
mod members;
mod message;
mod network;
mod propose;
mod types;

pub use candidacy::{Candidacy, LOOK};
pub use network::RaftTransport;
pub use propose::{BootstrapError, ProposeError};

use disk::{Disk, DiskError};
use log::Log;
use machine::{Machine, Published};
use members::View;
use message::{Request, Response};
use network::{Incoming, Network};
use types::Raft;

/// The facts that all nodes agree on, from one node: the registry's outside. [`RaftRegistry`] is
/// openraft's; the simulator has a model of it.
pub trait Registry: Send + Sync + 'static {
    /// The index of the last entry applied here (0 when none is) and the facts after it.
    fn watch(&self) -> watch::Receiver<(u64, Arc<State>)>;

    /// Carries out a proposal: what it made, and the index of its entry. A request id counts once,
    /// so a caller may try again after a failure without doing it twice.
    ///
    /// # Errors
    /// [`ProposeError`]; only after [`ProposeError::Refused`] it is certain that nothing changed.
    fn submit(&self, proposal: Proposal) -> BoxFuture<'_, Result<(Outcome, u64), ProposeError>>;
}

/// How a registry runs; [`RegistryConfig::new`] has the values for a real cluster.
#[derive(Debug, Clone)]
pub struct RegistryConfig {
    /// This node. A number must never come back with an empty file: the leader would see a log that
    /// went backwards.
    pub node: NodeNumber,
    /// The registry's file.
    pub path: PathBuf,
    /// Whether the file is made when it does not exist: only when the node has just joined or begins
    /// a cluster. A node that lost its file has lost its votes and must join again.
    pub create: bool,
    /// How often a leader is heard, and at the same time the limit that openraft sets for one message
    /// and its answer: it must be above the longest round trip plus the follower's write to its disk.
    pub heartbeat: Duration,
    /// A follower stands for election after the longer of these plus a random time between both
    /// without word from a leader. Both above `heartbeat`.
    pub election: (Duration, Duration),
    /// The most that [`RaftRegistry::propose`] takes.
    pub write_timeout: Duration,
    /// Voters once there are that many nodes: 3 or 5.
    pub voters: usize,
    /// Entries after which a snapshot is made and the log cut.
    pub snapshot_after: u64,
    /// Entries kept in the log behind a snapshot, for those who are only a little late.
    pub keep: u64,
}

impl RegistryConfig {
    /// The usual values for `node` with its file at `path`.
    pub fn new(node: NodeNumber, path: PathBuf) -> Self {
        Self {
            node,
            path,
            create: true,
            // The longest way round between two of the documented regions is 270 ms.
            heartbeat: Duration::from_millis(400),
            election: (Duration::from_millis(600), Duration::from_millis(1_200)),
            write_timeout: Duration::from_secs(5),
            voters: 3,
            snapshot_after: 2_000,
            keep: 500,
        }
    }

    /// A leader that no majority has answered for this long refuses writes: two beats may get lost
    /// (openraft beats every 1.5 intervals).
    fn majority_grace(&self) -> Duration {
        self.election.1.max(self.heartbeat * 4)
    }

    fn raft(&self) -> Config {
        let ms = |duration: Duration| duration.as_millis() as u64;
        Config {
            cluster_name: "skein".into(),
            heartbeat_interval: ms(self.heartbeat),
            election_timeout_min: ms(self.election.0),
            election_timeout_max: ms(self.election.1),
            max_payload_entries: 64,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_after),
            max_in_snapshot_log_to_keep: self.keep,
            // Must be above `snapshot_after`, else a snapshot is sent where entries would do.
            replication_lag_threshold: self.snapshot_after * 2,
            ..Config::default()
        }
    }
}

/// Why a registry did not open.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The file cannot be opened: another process has it, no permission, or it is damaged.
    #[error("cannot open the registry {path}: {reason}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file is gone, and it may not be made anew.
    #[error("the registry {path} of node {node} is gone; remove the node and let it join again")]
    Missing {
        /// The file.
        path: PathBuf,
        /// The node.
        node: NodeNumber,
    },
    /// The file was written by a node of another number.
    #[error("the registry {path} belongs to node {owner}, this is node {node}")]
    OtherNode {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        owner: NodeNumber,
        /// Who asked.
        node: NodeNumber,
    },
    /// The configuration makes no sense; the message names the values.
    #[error("the registry's configuration: {0}")]
    Config(String),
    /// Raft did not start.
    #[error("the registry did not start: {0}")]
    Start(String),
}

/// Where a registry stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryStatus {
    /// The leader as far as this node knows; it may be dead.
    pub leader: Option<NodeNumber>,
    /// Nodes whose majority decides, by number.
    pub voters: Vec<NodeNumber>,
    /// Nodes that follow, by number.
    pub learners: Vec<NodeNumber>,
    /// A change of voters is half done: both the old and the new majority are needed.
    pub changing: bool,
    /// Raft's term.
    pub term: u64,
    /// The index of the last entry applied here; 0 when none is.
    pub applied: u64,
    /// Voters within reach of this node, itself included.
    pub reached: usize,
    /// Why the registry stopped, for example a failed disk; `None` while it runs.
    pub stopped: Option<String>,
}

/// A node's registry. Clones share it.
#[derive(Clone)]
pub struct RaftRegistry(Arc<Inner>);

struct Inner {
    config: RegistryConfig,
    raft: Raft,
    transport: Arc<dyn RaftTransport>,
    published: watch::Receiver<Published>,
    incoming: Incoming,
    disk: Arc<Disk>,
    /// The id of the file.
    file: Ulid,
    /// Messages of leaders that were taken.
    words: Arc<AtomicU64>,
    entropy: Mutex<Entropy>,
    /// Held while the life of its membership runs.
    living: Arc<tokio::sync::Mutex<()>>,
    stop: CancellationToken,
    /// Also without a shutdown the membership ends with the last clone.
    _stop: DropGuard,
}

impl std::fmt::Debug for RaftRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Registry").field(&self.0.config.node).finish()
    }
}

impl RaftRegistry {
    /// Opens the registry's file, or makes it. Facts that were applied before are there at once,
    /// whoever else is alive. A new node waits until a leader adds it; the first one is to be
    /// [bootstrapped](Self::bootstrap). What the leader does about members is a life of `keeper`'s; it
    /// fails, again and again, once the registry has stopped.
    ///
    /// # Errors
    /// [`RegistryError`]; nothing was changed then.
    pub async fn open(
        config: RegistryConfig,
        transport: Arc<dyn RaftTransport>,
        keeper: &dyn Keeper,
    ) -> Result<Self, RegistryError> {
        let raft_config =
            config.raft().validate().map_err(|error| RegistryError::Config(error.to_string()))?;
        let (path, node) = (config.path.clone(), config.node);
        if !config.create && !path.exists() {
            return Err(RegistryError::Missing { path, node });
        }
        let opened = tokio::task::spawn_blocking(move || open_file(path, node)).await;
        let (disk, machine) = opened.map_err(|error| RegistryError::Start(error.to_string()))??;
        let file = own(&disk, &config).await?;
        let published = machine.watch();
        let network = Network::new(Arc::clone(&transport));
        let log = Log(Arc::clone(&disk));
        let raft = Raft::new(config.node.0, Arc::new(raft_config), network, log, machine)
            .await
            .map_err(|error| RegistryError::Start(error.to_string()))?;
        let (stop, words) = (CancellationToken::new(), Arc::<AtomicU64>::default());
        let living = Arc::new(tokio::sync::Mutex::new(()));
        let members = members::Members {
            raft: raft.clone(),
            facts: published.clone(),
            transport: Arc::clone(&transport),
            wanted: config.voters,
            words: Arc::clone(&words),
            candidacy: Candidacy::new(config.election.1),
            stop: stop.clone(),
            living: Arc::clone(&living),
        };
        let life =
            move |cancel| -> BoxFuture<'static, Result<(), String>> { Box::pin(members.clone().run(cancel)) };
        keeper.keep("registry".to_owned(), Arc::new(life));
        Ok(Self(Arc::new(Inner {
            config,
            raft,
            transport,
            published,
            incoming: Incoming::default(),
            disk,
            file,
            words,
            entropy: Mutex::default(),
            living,
            _stop: stop.clone().drop_guard(),
            stop,
        })))
    }

    /// The facts as this node has them.
    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.0.published.borrow().1)
    }

    /// The index of the last entry applied here; 0 when none is.
    pub fn applied(&self) -> u64 {
        self.0.published.borrow().0
    }

    /// Where this registry stands.
    pub fn status(&self) -> RegistryStatus {
        let view = self.view();
        let numbers = |ids: &std::collections::BTreeSet<u32>| ids.iter().map(|id| NodeNumber(*id)).collect();
        RegistryStatus {
            leader: view.leader.map(NodeNumber),
            voters: numbers(&view.voters),
            learners: numbers(&view.learners),
            changing: view.changing(),
            term: view.term,
            applied: self.applied(),
            reached: view.reached(&*self.0.transport).map_or(0, |(reached, _)| reached),
            stopped: view.stopped,
        }
    }

    /// Answers a message that came from `from`'s registry.
    ///
    /// # Errors
    /// Why there is no answer, in words for the sender's log. A node that was removed from the
    /// cluster gets none: Raft does not tell it, and its votes would disturb the others.
    pub async fn handle(&self, from: NodeNumber, message: Bytes) -> Result<Bytes, String> {
        let request = codec::decode(&message).map_err(|error| error.to_string())?;
        if removed(&self.state(), from) {
            return Err(format!("node {from} was removed from the cluster"));
        }
        let raft = &self.0.raft;
        let response = match request {
            Request::Append(request) => {
                let answer = raft.append_entries(request).await.map_err(|error| error.to_string())?;
                if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
                    self.0.words.fetch_add(1, Ordering::Relaxed);
                }
                Response::Append(answer, self.0.file)
            }
            Request::Vote(request) => {
                Response::Vote(raft.vote(request).await.map_err(|error| error.to_string())?)
            }
            Request::Snapshot(part) => self.0.incoming.receive(raft, from.0, part).await?,
            Request::Propose { proposal, hops, patience_ms } => {
                let patience = Duration::from_millis(patience_ms.into()).min(self.0.config.write_timeout);
                Response::Propose(self.attempt(&proposal, hops, patience).await)
            }
        };
        Ok(codec::encode(&response).into())
    }

    /// Stops Raft and closes the file, which may be opened again then. Reads go on; writes fail.
    pub async fn shutdown(&self) {
        self.0.stop.cancel();
        drop(self.0.living.lock().await);
        if let Err(error) = self.0.raft.shutdown().await {
            tracing::warn!(%error, "the registry's Raft ended badly");
        }
        self.0.disk.close().await;
    }

    fn view(&self) -> View {
        View::of(&self.0.raft.metrics())
    }
}

impl Registry for RaftRegistry {
    fn watch(&self) -> watch::Receiver<(u64, Arc<State>)> {
        self.0.published.clone()
    }

    fn submit(&self, proposal: Proposal) -> BoxFuture<'_, Result<(Outcome, u64), ProposeError>> {
        Box::pin(self.carry_out(proposal))
    }
}

/// Whether that node was admitted once and is no member any more. Numbers are never reused, so a
/// number that was given and has no node was removed; a higher one is not known here yet.
fn removed(state: &State, node: NodeNumber) -> bool {
    let given = match state.fact(&FactKey::Counters) {
        Some(Fact::Counters(counters)) => counters.node,
        _ => 0,
    };
    node.0 <= given && state.node(node).is_none()
}

fn open_file(path: PathBuf, node: NodeNumber) -> Result<(Arc<Disk>, Machine), RegistryError> {
    let failed = |reason: String| RegistryError::Open { path: path.clone(), reason };
    let disk = Disk::open(&path).map_err(|error| {
        let taken = matches!(error, redb::Error::DatabaseAlreadyOpen);
        failed(if taken { "another node runs in this data directory".into() } else { error.to_string() })
    });
    let disk = Arc::new(disk?);
    let owner: Option<u32> = disk.meta(OWNER).map_err(|error| failed(error.to_string()))?;
    match owner {
        Some(owner) if owner != node.0 => {
            return Err(RegistryError::OtherNode { path, owner: NodeNumber(owner), node });
        }
        _ => {}
    }
    let machine = Machine::load(Arc::clone(&disk)).map_err(|error| failed(error.to_string()))?;
    Ok((disk, machine))
}

const OWNER: &str = "node";
const FILE: &str = "file";

/// Marks the file as this node's; the file's own id, given once.
async fn own(disk: &Disk, config: &RegistryConfig) -> Result<Ulid, RegistryError> {
    let failed =
        |error: DiskError| RegistryError::Open { path: config.path.clone(), reason: error.to_string() };
    if let Some(file) = disk.meta(FILE).map_err(failed)? {
        return Ok(file);
    }
    let owner = config.node.0;
    let file = Ulid::from_parts(clock::unix_ms(), u128::from(Entropy::default().next_u64()));
    let written = disk.durable(move |transaction| {
        disk::set_meta(transaction, OWNER, &owner)?;
        disk::set_meta(transaction, FILE, &file)
    });
    written.await.map_err(failed)?;
    Ok(file)
}

#[cfg(test)]
mod tests;
