//! The barrier: returns once every live node has seen everything that any of them knew when it
//! began (DESIGN section 8).
//!
//! Two rounds: each live node tells how far it has come, then each waits until it has seen all of
//! that. A node that dies meanwhile is left out; one that does not answer is asked again until the
//! deadline and named then.

use std::fmt;
use std::time::Duration;

use skein_core::NodeNumber;
use skein_core::snapshot::Snapshot;
use skein_core::wire::Seen;
use tokio::task::JoinSet;
use tokio::time::{self, Instant};

use crate::BoxFuture;
use crate::reader::Reader;

/// How long a node that answers `Ask::Barrier` waits before it says what it lacks; it is asked again
/// then, so the reason is known whatever the asker's deadline.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// The pause before a node that could not be asked is asked again.
const PAUSE: Duration = Duration::from_millis(100);

/// Asks other nodes; backhaul's `Ask::Version` and `Ask::Barrier` implement it. An answer may take
/// until the deadline; later ones are not waited for.
pub trait BarrierPeers: Send + Sync {
    /// How far the node has come; why it could not be asked.
    fn version(&self, node: NodeNumber, deadline: Instant) -> BoxFuture<'static, Result<Seen, String>>;
    /// Returns once the node has seen `wanted`; why it has not, or could not be asked.
    fn barrier(
        &self,
        node: NodeNumber,
        wanted: Vec<Seen>,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<(), String>>;
}

/// What a node has not seen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct NotSeen {
    /// The nodes whose latest state is not in its snapshot.
    pub nodes: Vec<NodeNumber>,
    /// The registry entries that it has applied and that it should have, when they differ.
    pub registry: Option<(u64, u64)>,
}

impl fmt::Display for NotSeen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("has not seen")?;
        for (index, node) in self.nodes.iter().enumerate() {
            write!(f, "{} node {node}'s latest state", if index == 0 { "" } else { "," })?;
        }
        if let Some((applied, wanted)) = self.registry {
            let joint = if self.nodes.is_empty() { "" } else { " nor" };
            write!(f, "{joint} registry entry {wanted} (it is at {applied})")?;
        }
        Ok(())
    }
}

/// A node that held the barrier up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behind {
    /// Which.
    pub node: NodeNumber,
    /// What it said, or why it could not be asked.
    pub reason: String,
}

/// The barrier's time was up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct BarrierError {
    /// Who is behind, by number.
    pub behind: Vec<Behind>,
}

impl fmt::Display for BarrierError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not every node has seen everything:")?;
        for (index, Behind { node, reason }) in self.behind.iter().enumerate() {
            write!(f, "{} node {node} {reason}", if index == 0 { "" } else { ";" })?;
        }
        Ok(())
    }
}

/// Whether a snapshot holds all of `wanted`; of a removed node there is nothing to be seen.
///
/// # Errors
/// [`NotSeen`], what it lacks.
pub fn seen(snapshot: &Snapshot, wanted: &[Seen]) -> Result<(), NotSeen> {
    let reached = |seen: &Seen| {
        let node = snapshot.nodes.get(&seen.node);
        node.is_some_and(|node| (node.generation, node.version) >= (seen.generation, seen.version))
            || snapshot.registry.was_removed(seen.node)
    };
    let nodes: Vec<_> = wanted.iter().filter(|seen| !reached(seen)).map(|seen| seen.node).collect();
    let applied = wanted.iter().map(|seen| seen.applied).max().unwrap_or_default();
    let registry = (snapshot.applied < applied).then_some((snapshot.applied, applied));
    if nodes.is_empty() && registry.is_none() { Ok(()) } else { Err(NotSeen { nodes, registry }) }
}

/// Waits until this node's snapshot holds all of `wanted`: the answer to `Ask::Barrier`.
///
/// # Errors
/// [`NotSeen`], what it still lacks at the deadline, or when snapshots are published no more.
pub async fn wait_until_seen(reader: &Reader, wanted: &[Seen], deadline: Instant) -> Result<(), NotSeen> {
    let mut versions = reader.watch();
    loop {
        let Err(lacks) = seen(&reader.load(), wanted) else { return Ok(()) };
        match time::timeout_at(deadline, versions.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(lacks),
            // The last word is the newest snapshot's.
            Err(_) => return seen(&reader.load(), wanted),
        }
    }
}

/// Runs both rounds from this node, which has come as far as `own`: what every live node has seen
/// when it returns.
///
/// # Errors
/// [`BarrierError`] at the deadline: who is behind.
pub async fn run(
    reader: &Reader,
    own: Seen,
    peers: &dyn BarrierPeers,
    deadline: Instant,
) -> Result<Vec<Seen>, BarrierError> {
    let snapshot = reader.load();
    let others = snapshot.nodes.iter().filter(|(number, node)| **number != own.node && node.alive);
    let others: Vec<NodeNumber> = others.map(|(number, _)| *number).collect();
    drop(snapshot);

    // What they answer when their time is up, who is behind and why, must still get here.
    let theirs = deadline - deadline.saturating_duration_since(Instant::now()) / 8;
    let answers = round(reader, &others, deadline, |node| peers.version(node, theirs)).await?;
    let wanted: Vec<Seen> = std::iter::once(own).chain(answers).collect();

    let here = wait_until_seen(reader, &wanted, deadline);
    let there = round(reader, &others, deadline, |node| peers.barrier(node, wanted.clone(), theirs));
    let (here, there) = tokio::join!(here, there);
    let mut behind = there.err().map(|error| error.behind).unwrap_or_default();
    behind.extend(here.err().map(|lacks| Behind { node: own.node, reason: lacks.to_string() }));
    behind.sort_by_key(|behind| behind.node);
    if behind.is_empty() { Ok(wanted) } else { Err(BarrierError { behind }) }
}

/// Asks all nodes at once, each until it answers, dies, or the deadline: the answers in the order of
/// `nodes`, without those that died.
async fn round<T: Send + 'static>(
    reader: &Reader,
    nodes: &[NodeNumber],
    deadline: Instant,
    ask: impl Fn(NodeNumber) -> BoxFuture<'static, Result<T, String>>,
) -> Result<Vec<T>, BarrierError> {
    let mut waiting: JoinSet<(NodeNumber, Result<T, String>)> = JoinSet::new();
    let start = |waiting: &mut JoinSet<_>, node, pause: Option<Duration>| {
        let answer = ask(node);
        waiting.spawn(async move {
            if let Some(pause) = pause {
                time::sleep(pause).await;
            }
            (node, answer.await)
        });
    };
    let mut left: Vec<Behind> =
        nodes.iter().map(|node| Behind { node: *node, reason: "did not answer".to_owned() }).collect();
    let mut answers = Vec::new();
    let mut versions = reader.watch();
    for node in nodes {
        start(&mut waiting, *node, None);
    }
    loop {
        let snapshot = reader.load();
        left.retain(|behind| snapshot.nodes.get(&behind.node).is_some_and(|node| node.alive));
        if left.is_empty() {
            break;
        }
        tokio::select! {
            () = time::sleep_until(deadline) => return Err(BarrierError { behind: left }),
            changed = versions.changed() => if changed.is_err() {
                return Err(BarrierError { behind: left });
            },
            Some(answered) = waiting.join_next() => match answered {
                Ok((node, Ok(answer))) => {
                    left.retain(|behind| behind.node != node);
                    answers.push((node, answer));
                }
                Ok((node, Err(reason))) => {
                    if let Some(behind) = left.iter_mut().find(|behind| behind.node == node) {
                        behind.reason = reason;
                        start(&mut waiting, node, Some(PAUSE));
                    }
                }
                // A panic in the peers' own code; that node stays behind, and is named.
                Err(_) => {}
            },
        }
    }
    answers.sort_by_key(|(node, _)| *node);
    Ok(answers.into_iter().map(|(_, answer)| answer).collect())
}

#[cfg(test)]
mod tests;
