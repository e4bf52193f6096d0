//! Fetches the configurations of other nodes' Machines: gossip carries only a hash (DESIGN
//! section 3), the Machine's node is asked for the rest.
//!
//! Level-triggered: whatever the snapshot misses is asked for until it does not miss it, each hash
//! at most once at a time, at most [`AT_ONCE`] in all, with growing pauses after a failure unless a live
//! owner has not failed. What
//! arrives is believed only if its hash is the one that was asked for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ring::digest::{SHA256, digest};
use skein_core::machine::MachineConfig;
use skein_core::snapshot::Snapshot;
use skein_core::{ConfigHash, NodeNumber, Random};
use tokio::sync::mpsc;
use tokio::task::{self, JoinSet};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use crate::BoxFuture;
use crate::entropy::Entropy;
use crate::reader::Reader;

/// Questions under way at once.
pub const AT_ONCE: usize = 16;
/// The longest configuration, in bytes of its JSON.
pub const MAX_CONFIG: usize = 1 << 20;

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The pause after a first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause, also the time that an arrived configuration may take into a snapshot.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Gets configurations; backhaul's `Ask::Config` implements it.
pub trait ConfigSource: Send + Sync + 'static {
    /// The JSON of that hash from that node; `None` when it does not have it or does not answer.
    fn fetch(&self, node: NodeNumber, hash: ConfigHash) -> BoxFuture<'static, Option<Bytes>>;
}

/// The hash of a configuration's canonical JSON: the first 16 bytes of its SHA-256.
pub fn hash_of(json: &[u8]) -> ConfigHash {
    let mut hash = [0; 16];
    hash.copy_from_slice(&digest(&SHA256, json).as_ref()[..16]);
    ConfigHash(hash)
}

/// Why an answer is not the configuration that was asked for; the node that gave it caused it.
#[derive(Debug, thiserror::Error)]
pub enum BadConfig {
    /// Longer than [`MAX_CONFIG`].
    #[error("a configuration of {0} bytes is more than {MAX_CONFIG}")]
    TooLong(usize),
    /// Another configuration.
    #[error("its hash is {0}")]
    Hash(ConfigHash),
    /// No configuration at all.
    #[error("it is not a Machine's configuration")]
    Json(#[from] serde_json::Error),
}

/// The configuration of that hash in `json`.
///
/// # Errors
/// [`BadConfig`]; never panics on any input.
pub fn verify(hash: ConfigHash, json: &[u8]) -> Result<MachineConfig, BadConfig> {
    if json.len() > MAX_CONFIG {
        return Err(BadConfig::TooLong(json.len()));
    }
    let found = hash_of(json);
    if found == hash { Ok(serde_json::from_slice(json)?) } else { Err(BadConfig::Hash(found)) }
}

/// What happened since the start; each only grows.
#[derive(Debug, Default)]
pub struct ConfigCounters {
    arrived: AtomicU64,
    unanswered: AtomicU64,
    refused: AtomicU64,
}

impl ConfigCounters {
    /// Configurations that arrived and were believed.
    pub fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }

    /// Questions without an answer.
    pub fn unanswered(&self) -> u64 {
        self.unanswered.load(Ordering::Relaxed)
    }

    /// Answers that were not the configuration asked for.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// Who is asked for one configuration, and when without a pause.
#[derive(Debug, Clone, Default)]
pub struct Turns {
    failures: u32,
    /// Live owners that were asked in vain.
    in_vain: BTreeSet<NodeNumber>,
}

impl Turns {
    /// The owner to ask now, of `owners` and whether each is alive; `paused` while the pause after the
    /// last answer lasts. After failures a live owner that has not failed is asked at once: others
    /// that do not answer say nothing of it. Else each in turn, those alive first.
    pub fn next(&mut self, owners: &[(NodeNumber, bool)], paused: bool) -> Option<NodeNumber> {
        self.in_vain.retain(|node| owners.contains(&(*node, true)));
        let fresh = owners.iter().find(|(node, alive)| *alive && !self.in_vain.contains(node));
        if let Some((node, _)) = fresh.filter(|_| self.failures > 0) {
            return Some(*node);
        }
        let alive_first =
            || owners.iter().filter(|(_, alive)| *alive).chain(owners.iter().filter(|(_, alive)| !*alive));
        let turn = self.failures as usize % owners.len().max(1);
        alive_first().nth(turn).filter(|_| !paused).map(|(node, _)| *node)
    }

    /// That owner did not have it, or did not answer: how many failures there are in a row.
    pub fn failed(&mut self, node: NodeNumber) -> u32 {
        self.in_vain.insert(node);
        self.failures = self.failures.saturating_add(1);
        self.failures
    }

    /// It has arrived.
    pub fn arrived(&mut self) {
        *self = Self::default();
    }
}

/// One missing configuration.
#[derive(Debug)]
struct Wanted {
    turns: Turns,
    asking: bool,
    not_before: Instant,
}

/// Asks for whatever the snapshot misses until cancelled; what arrives goes to `arrived`.
pub async fn run(
    reader: Reader,
    source: Arc<dyn ConfigSource>,
    arrived: mpsc::Sender<(ConfigHash, Arc<MachineConfig>)>,
    counters: Arc<ConfigCounters>,
    cancel: CancellationToken,
) {
    let mut rng = Entropy::default();
    let mut versions = reader.watch();
    let mut wanted: BTreeMap<ConfigHash, Wanted> = BTreeMap::new();
    let mut asking: JoinSet<(NodeNumber, Option<Bytes>)> = JoinSet::new();
    let mut asked: HashMap<task::Id, (ConfigHash, NodeNumber)> = HashMap::new();
    loop {
        let now = Instant::now();
        let missing = by_hash(&reader.load());
        wanted.retain(|hash, wanted| wanted.asking || missing.contains_key(hash));
        for (hash, owners) in &missing {
            let new = || Wanted { turns: Turns::default(), asking: false, not_before: now };
            let state = wanted.entry(*hash).or_insert_with(new);
            if state.asking || asking.len() >= AT_ONCE {
                continue;
            }
            let Some(node) = state.turns.next(owners, state.not_before > now) else { continue };
            state.asking = true;
            let hash = *hash;
            let source = Arc::clone(&source);
            let question =
                async move { (node, time::timeout(PATIENCE, source.fetch(node, hash)).await.ok().flatten()) };
            asked.insert(asking.spawn(question).id(), (hash, node));
        }
        let next = wanted.values().filter(|state| !state.asking && state.not_before > now);
        let next = next.map(|state| state.not_before).min();
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = versions.changed() => if changed.is_err() { return },
            () = time::sleep_until(next.unwrap_or(now)), if next.is_some() => {}
            Some(answered) = asking.join_next_with_id() => {
                let (id, answer) = match answered {
                    Ok((id, answer)) => (id, Some(answer)),
                    // A panic in the source: reported there, here it is no answer.
                    Err(error) => (error.id(), None),
                };
                let Some((hash, node)) = asked.remove(&id) else { continue };
                let config = judge(hash, answer, &counters);
                if let Some(state) = wanted.get_mut(&hash) {
                    state.asking = false;
                    let failures = if config.is_some() {
                        state.turns.arrived();
                        0
                    } else {
                        state.turns.failed(node)
                    };
                    state.not_before = Instant::now() + pause(failures, &mut rng);
                }
                if let Some(config) = config {
                    tokio::select! {
                        () = cancel.cancelled() => return,
                        sent = arrived.send((hash, Arc::new(config))) => if sent.is_err() { return },
                    }
                }
            }
        }
    }
}

/// What is missing, with its owners and whether each is alive.
pub fn by_hash(snapshot: &Snapshot) -> BTreeMap<ConfigHash, Vec<(NodeNumber, bool)>> {
    let mut missing: BTreeMap<ConfigHash, Vec<(NodeNumber, bool)>> = BTreeMap::new();
    for (hash, node) in snapshot.missing_configs() {
        let alive = snapshot.nodes.get(&node).is_some_and(|view| view.alive);
        missing.entry(hash).or_default().push((node, alive));
    }
    missing
}

fn judge(
    hash: ConfigHash,
    answer: Option<(NodeNumber, Option<Bytes>)>,
    counters: &ConfigCounters,
) -> Option<MachineConfig> {
    let Some((node, Some(json))) =
        answer.filter(|(_, json)| json.as_ref().is_some_and(|json| !json.is_empty()))
    else {
        counters.unanswered.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(%hash, "a configuration was asked for in vain");
        return None;
    };
    match verify(hash, &json) {
        Ok(config) => {
            counters.arrived.fetch_add(1, Ordering::Relaxed);
            Some(config)
        }
        Err(error) => {
            counters.refused.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%hash, node = node.0, %error, "a configuration was refused");
            None
        }
    }
}

/// The pause after so many failures in a row, the last tenth of it at random; after a success the
/// longest, until which the snapshot has it.
fn pause(failures: u32, rng: &mut impl Random) -> Duration {
    let doubled = match failures {
        0 => LONGEST_PAUSE,
        failures => FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(16)).min(LONGEST_PAUSE),
    };
    doubled.mul_f64(0.9 + 0.1 * rng.fraction())
}

#[cfg(test)]
mod tests;
