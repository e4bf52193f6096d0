//! Who is a voter and who a learner follows from the facts; the leader sees to it.
//!
//! Every admitted node is a learner first. Below three nodes one voter is right: with two, the loss
//! of either would stop all writes. From three nodes on the first nodes that have caught up are
//! voters. A removed node leaves the membership at once, and first its leadership.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::{ChangeMembers, EmptyNode, ServerState};
use skein_core::NodeNumber;
use skein_core::facts::State;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use super::candidacy::{Candidacy, LOOK};
use super::machine::Published;
use super::network::RaftTransport;
use super::types::{Id, Metrics, Raft};

/// Entries that a node may lack and still be made a voter.
const CAUGHT_UP: u64 = 100;
/// How long a change may take before the leader looks again: without a majority it never ends.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause before a change is tried again, and the longest time without a look.
const PAUSE: Duration = Duration::from_millis(250);

/// What a node knows of Raft at one moment, copied out of openraft's metrics: a borrow of those held
/// across an await would stop the node's Raft.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) me: Id,
    pub(super) leader: Option<Id>,
    pub(super) leads: bool,
    pub(super) term: u64,
    pub(super) voters: BTreeSet<Id>,
    pub(super) learners: BTreeSet<Id>,
    /// The sets of voters whose majorities decide: one, or two while a change is half done.
    pub(super) quorums: Vec<BTreeSet<Id>>,
    pub(super) quorum_ack: Option<Duration>,
    pub(super) last_index: u64,
    /// On the leader: what each node is known to hold.
    pub(super) matched: BTreeMap<Id, u64>,
    /// Why Raft stopped.
    pub(super) stopped: Option<String>,
}

impl View {
    pub(super) fn of(metrics: &watch::Receiver<Metrics>) -> Self {
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        Self {
            me: metrics.id,
            leader: metrics.current_leader,
            leads: metrics.state == ServerState::Leader,
            term: metrics.current_term,
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
            quorums: membership.get_joint_config().clone(),
            quorum_ack: metrics.millis_since_quorum_ack.map(Duration::from_millis),
            last_index: metrics.last_log_index.unwrap_or(0),
            matched: metrics
                .replication
                .iter()
                .flatten()
                .filter_map(|(id, log_id)| log_id.map(|log_id| (*id, log_id.index)))
                .collect(),
            stopped: metrics.running_state.as_ref().err().map(ToString::to_string),
        }
    }

    /// A change of voters is half done.
    pub(super) fn changing(&self) -> bool {
        self.quorums.len() > 1
    }

    /// Voters that can be reached, this node included, of how many: of the set that is worst off.
    /// `None` when there are no voters yet.
    pub(super) fn reached(&self, transport: &dyn RaftTransport) -> Option<(usize, usize)> {
        let near = |id: &&Id| **id == self.me || transport.reachable(NodeNumber(**id));
        let counts = self.quorums.iter().map(|voters| (voters.iter().filter(near).count(), voters.len()));
        counts.filter(|(_, voters)| *voters > 0).min_by_key(|(reached, voters)| reached * 1_000 / voters)
    }
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    AddLearner(Id),
    RemoveLearners(BTreeSet<Id>),
    Voters(BTreeSet<Id>),
    /// This node takes the lead from one that was removed.
    TakeLead,
}

/// The next step of this node, if any: one at a time, the next follows from what it changed.
fn next(view: &View, state: &State, wanted: usize, reachable: impl Fn(Id) -> bool) -> Option<Step> {
    let nodes: BTreeSet<Id> = state.nodes().map(|node| node.number.0).collect();
    if nodes.is_empty() {
        return None;
    }
    let staying: BTreeSet<Id> = view.voters.intersection(&nodes).copied().collect();
    if !view.leads {
        let removed = view.leader.is_some_and(|leader| !nodes.contains(&leader));
        return (removed && staying.first() == Some(&view.me)).then_some(Step::TakeLead);
    }
    if !nodes.contains(&view.me) {
        return None;
    }
    if view.changing() {
        // A leader died in the midst of a change; its successor brings it to an end.
        return Some(Step::Voters(if staying.len() > 1 { staying } else { BTreeSet::from([view.me]) }));
    }
    if let Some(id) = nodes.iter().find(|id| !view.voters.contains(id) && !view.learners.contains(id)) {
        return Some(Step::AddLearner(*id));
    }
    let caught_up = |id: &&Id| {
        reachable(**id) && view.matched.get(id).is_some_and(|matched| matched + CAUGHT_UP >= view.last_index)
    };
    let mut voters = staying.clone();
    if nodes.len() < 3 {
        voters = BTreeSet::from([view.me]);
    } else {
        let room = wanted.saturating_sub(voters.len());
        voters.extend(nodes.difference(&staying).filter(caught_up).take(room));
        if voters.len() == 2 && view.voters.len() == 1 {
            voters = staying;
        }
    }
    if voters != view.voters {
        return Some(Step::Voters(voters));
    }
    let gone: BTreeSet<Id> = view.learners.difference(&nodes).copied().collect();
    (!gone.is_empty()).then_some(Step::RemoveLearners(gone))
}

/// What the leader does about the registry's members.
#[derive(Clone)]
pub(super) struct Members {
    pub(super) raft: Raft,
    pub(super) facts: watch::Receiver<Published>,
    pub(super) transport: Arc<dyn RaftTransport>,
    /// Voters once there are that many nodes.
    pub(super) wanted: usize,
    /// Messages of leaders that were taken.
    pub(super) words: Arc<AtomicU64>,
    pub(super) candidacy: Candidacy,
    pub(super) stop: CancellationToken,
    /// Held while it runs.
    pub(super) living: Arc<Mutex<()>>,
}

impl Members {
    /// Follows facts and metrics until it is cancelled; an error once the registry has stopped.
    pub(super) async fn run(self, cancel: CancellationToken) -> Result<(), String> {
        let Self { raft, facts, transport, wanted, words, candidacy, stop, living } = self;
        let _living = living.lock().await;
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            () = cancel.cancelled() => Ok(()),
            never = stand(raft.clone(), Arc::clone(&transport), words, candidacy) => match never {},
            reason = follow(raft, facts, transport, wanted) => Err(reason),
        }
    }
}

/// Lets openraft's timer begin an election only while [`Candidacy`] says so.
async fn stand(
    raft: Raft,
    transport: Arc<dyn RaftTransport>,
    words: Arc<AtomicU64>,
    mut candidacy: Candidacy,
) -> Infallible {
    loop {
        let reached = View::of(&raft.metrics()).reached(&*transport);
        raft.runtime_config().elect(candidacy.look(words.load(Ordering::Relaxed), reached));
        tokio::time::sleep(LOOK).await;
    }
}

/// Follows facts and metrics: why it can't any more.
async fn follow(
    raft: Raft,
    mut facts: watch::Receiver<Published>,
    transport: Arc<dyn RaftTransport>,
    wanted: usize,
) -> String {
    const GONE: &str = "the registry is gone";
    let mut metrics = raft.metrics();
    loop {
        let state = Arc::clone(&facts.borrow_and_update().1);
        metrics.mark_unchanged();
        let view = View::of(&metrics);
        if let Some(reason) = view.stopped {
            return format!("the registry has stopped: {reason}");
        }
        let step = next(&view, &state, wanted, |id| transport.reachable(NodeNumber(id)));
        if let Some(step) = &step
            && take(&raft, &view, step).await
        {
            continue;
        }
        // Reachability changes without notice, so a look is due now and then even when nothing moved.
        let pause = tokio::time::sleep(PAUSE);
        tokio::select! {
            () = pause => {}
            changed = facts.changed(), if step.is_none() => if changed.is_err() { return GONE.to_owned() },
            changed = metrics.changed(), if step.is_none() => if changed.is_err() { return GONE.to_owned() },
        }
    }
}

/// Whether the step was taken and shows in the metrics, so that the next one can follow at once.
async fn take(raft: &Raft, view: &View, step: &Step) -> bool {
    tracing::debug!(?step, "the registry's members change");
    let change = async {
        let changed = match step {
            Step::AddLearner(id) => raft.add_learner(*id, EmptyNode::new(), false).await,
            Step::RemoveLearners(ids) => {
                raft.change_membership(ChangeMembers::RemoveNodes(ids.clone()), true).await
            }
            // A leader that were kept without being a voter would lead for ever.
            Step::Voters(ids) => raft.change_membership(ids.clone(), ids.contains(&view.me)).await,
            Step::TakeLead => {
                raft.trigger().elect().await.map_err(|error| error.to_string())?;
                return Ok(false);
            }
        };
        let entry = Some(changed.map_err(|error| error.to_string())?.log_id);
        let mut metrics = raft.metrics();
        let shown = metrics.wait_for(|metrics| *metrics.membership_config.log_id() >= entry);
        Ok(shown.await.is_ok())
    };
    match tokio::time::timeout(CHANGE_TIMEOUT, change).await {
        Ok(Ok(done)) => done,
        Ok(Err(error)) => {
            let error: String = error;
            tracing::info!(?step, error, "a change of the registry's members is put off");
            false
        }
        Err(_) => {
            tracing::warn!(?step, "a change of the registry's members takes too long");
            false
        }
    }
}

#[cfg(test)]
mod tests;
