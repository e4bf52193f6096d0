//! A part of a node as an actor: name, mailbox, and one owned task.
//!
//! The task follows something (a watch, a channel) until it is cancelled. When it ends by itself or
//! panics the actor fails, and the node's supervisor starts it again.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use skein_cluster::BoxFuture;
use skein_cluster::clock;
use skein_supervise::{Child, GiveUp, Intensity, Life, SupervisorMessage};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Makes the task of a part; called again at each restart.
pub(super) type Work = Arc<dyn Fn(CancellationToken) -> BoxFuture<'static, ()> + Send + Sync>;

/// The actor of a part.
struct Part;

/// What the part is told.
enum PartMessage {
    /// Its task ended, though nobody cancelled it.
    Ended(String),
}

struct PartState {
    token: CancellationToken,
    // Held so that the task ends with the actor.
    _tasks: JoinSet<()>,
}

impl Actor for Part {
    type Msg = PartMessage;
    type State = PartState;
    type Arguments = Work;

    async fn pre_start(
        &self,
        myself: ActorRef<PartMessage>,
        work: Work,
    ) -> Result<PartState, ActorProcessingErr> {
        let token = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let task = work(token.clone());
        let cancelled = token.clone();
        tasks.spawn(async move {
            let mut inner = JoinSet::new();
            inner.spawn(task);
            let reason = match inner.join_next().await {
                Some(Err(error)) => error.to_string(),
                Some(Ok(())) | None => "it ended by itself".to_owned(),
            };
            if !cancelled.is_cancelled() && myself.cast(PartMessage::Ended(reason)).is_err() {
                tracing::debug!("a part's actor was gone before its task");
            }
        });
        Ok(PartState { token, _tasks: tasks })
    }

    async fn handle(
        &self,
        _: ActorRef<PartMessage>,
        message: PartMessage,
        _: &mut PartState,
    ) -> Result<(), ActorProcessingErr> {
        let PartMessage::Ended(reason) = message;
        Err(reason.into())
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
    let work: Work = Arc::new(work);
    let child = Child {
        name: name.to_owned(),
        life: Life::Permanent,
        intensity: Intensity::default(),
        give_up: GiveUp::Escalate,
        start: Arc::new(move |parent| {
            let work = Arc::clone(&work);
            Box::pin(async move { Ok(Actor::spawn_linked(None, Part, work, parent).await?.0.get_cell()) })
        }),
    };
    Ok(skein_supervise::add(root, child).await?)
}
