//! A part of a node as an actor: name, mailbox, and one owned task.
//!
//! The task follows something (a watch, a channel) until it is cancelled. When it ends by itself or
//! panics the actor fails, and the node's supervisor starts it again.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use skein_cluster::keeper::{self, Keeper};
use skein_cluster::{BoxFuture, clock};
use skein_supervise::{AddError, Child, GiveUp, Intensity, Life, SupervisorMessage};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The actor of a part.
struct Part;

/// What the part is told.
enum PartMessage {
    /// Its task ended, though nobody cancelled it: its work is over, or failed.
    Ended(Result<(), String>),
}

struct PartState {
    token: CancellationToken,
    // Held so that the task ends with the actor.
    _tasks: JoinSet<()>,
}

impl Actor for Part {
    type Msg = PartMessage;
    type State = PartState;
    type Arguments = keeper::Life;

    async fn pre_start(
        &self,
        myself: ActorRef<PartMessage>,
        work: keeper::Life,
    ) -> Result<PartState, ActorProcessingErr> {
        let token = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let task = work(token.clone());
        let cancelled = token.clone();
        tasks.spawn(async move {
            let mut inner = JoinSet::new();
            inner.spawn(task);
            let ended = match inner.join_next().await {
                Some(Err(panic)) => Err(panic.to_string()),
                Some(Ok(ended)) => ended,
                None => Ok(()),
            };
            if !cancelled.is_cancelled() && myself.cast(PartMessage::Ended(ended)).is_err() {
                tracing::debug!("a part's actor was gone before its task");
            }
        });
        Ok(PartState { token, _tasks: tasks })
    }

    async fn handle(
        &self,
        myself: ActorRef<PartMessage>,
        message: PartMessage,
        _: &mut PartState,
    ) -> Result<(), ActorProcessingErr> {
        let PartMessage::Ended(ended) = message;
        ended?;
        myself.stop(None);
        Ok(())
    }

    async fn post_stop(
        &self,
        _: ActorRef<PartMessage>,
        state: &mut PartState,
    ) -> Result<(), ActorProcessingErr> {
        state.token.cancel();
        Ok(())
    }
}

/// The node's root: supervises its parts. One that keeps failing ends the node, whose launcher or
/// service manager sees it.
pub(super) async fn root() -> anyhow::Result<ActorRef<SupervisorMessage>> {
    Ok(skein_supervise::spawn(clock::now, None).await?)
}

/// Starts a part under the root.
pub(super) async fn add(
    root: &ActorRef<SupervisorMessage>,
    name: &'static str,
    work: impl Fn(CancellationToken) -> BoxFuture<'static, ()> + Send + Sync + 'static,
) -> anyhow::Result<()> {
    let work: keeper::Life = Arc::new(move |cancel| {
        let work = work(cancel);
        Box::pin(async move {
            work.await;
            Err("it ended by itself".to_owned())
        })
    });
    let child = Child {
        name: name.to_owned(),
        life: Life::Permanent,
        intensity: Intensity::default(),
        give_up: GiveUp::Escalate,
        start: start(work),
    };
    Ok(skein_supervise::add(root, child).await?)
}

fn start(work: keeper::Life) -> skein_supervise::Start {
    Arc::new(move |parent| {
        let work = Arc::clone(&work);
        Box::pin(async move { Ok(Actor::spawn_linked(None, Part, work, parent).await?.0.get_cell()) })
    })
}

/// How often what other nodes can bring down is started again: never given up, since a bad peer must
/// not be able to end this node, and at most every five seconds once it keeps failing.
const UNENDING: Intensity = Intensity {
    restarts: u32::MAX,
    within: Duration::from_secs(60),
    first_wait: Duration::from_millis(100),
    max_wait: Duration::from_secs(5),
};

/// Gossip, the registry's membership and the links to peers as actors under the root.
#[derive(Debug, Clone)]
pub(super) struct Supervised {
    root: ActorRef<SupervisorMessage>,
    tasks: TaskTracker,
}

impl Supervised {
    /// Under that root.
    pub(super) fn under(root: &ActorRef<SupervisorMessage>) -> Self {
        Self { root: root.clone(), tasks: TaskTracker::new() }
    }
}

impl Keeper for Supervised {
    fn keep(&self, name: String, life: keeper::Life) {
        let child = Child {
            name: name.clone(),
            life: Life::Transient,
            intensity: UNENDING,
            give_up: GiveUp::Escalate,
            start: start(life),
        };
        let root = self.root.clone();
        self.tasks.spawn(async move {
            match skein_supervise::add(&root, child).await {
                Ok(()) => {}
                // The node ends.
                Err(AddError::Closing) => tracing::debug!(name, "not started: the node ends"),
                Err(error) => tracing::error!(name, %error, "a part did not start"),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::watch;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_life_that_fails_is_begun_again_without_end_and_one_that_is_over_is_not() {
        let root = root().await.unwrap();
        let keeper = Supervised::under(&root);
        let (runs, mut seen) = watch::channel(0);
        let runs = Arc::new(runs);
        let life = move |_: CancellationToken| -> BoxFuture<'static, Result<(), String>> {
            let runs = Arc::clone(&runs);
            Box::pin(async move {
                runs.send_modify(|runs| *runs += 1);
                let run = *runs.borrow();
                match run {
                    20 => Ok(()),
                    7 => panic!("as a library does that a peer sends nonsense"),
                    _ => Err("it broke".to_owned()),
                }
            })
        };
        keeper.keep("gossip".to_owned(), Arc::new(life));
        // More often than any part may fail that ends the node.
        seen.wait_for(|runs| *runs == 20).await.unwrap();
        // Its name is free again once it is over.
        let over = Arc::new(AtomicU32::new(0));
        let (asked, within) = (Arc::clone(&over), watch::Sender::new(()));
        let mut cancelled = within.subscribe();
        let within = Arc::new(within);
        let next = move |cancel: CancellationToken| -> BoxFuture<'static, Result<(), String>> {
            let (asked, within) = (Arc::clone(&asked), Arc::clone(&within));
            Box::pin(async move {
                asked.fetch_add(1, Ordering::SeqCst);
                cancel.cancelled().await;
                within.send_replace(());
                Ok(())
            })
        };
        let next: keeper::Life = Arc::new(next);
        while over.load(Ordering::SeqCst) == 0 {
            keeper.keep("gossip".to_owned(), Arc::clone(&next));
            tokio::task::yield_now().await;
        }
        assert_eq!(*seen.borrow(), 20);
        assert_eq!(over.load(Ordering::SeqCst), 1, "a name is taken while it lives");
        skein_supervise::shutdown(&root, Duration::from_secs(5)).await;
        cancelled.changed().await.expect("the end of the node ends it");
    }
}
