//! One supervisor actor for every parent.
//!
//! A child is a recipe that links a new actor to the supervisor; what others hold of it (its
//! `ActorRef`) is the recipe's business, since it changes with a restart.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ractor::{
    Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SpawnErr, SupervisionEvent,
};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::policy::{Cause, Intensity, Life, Restarts, Verdict};

/// Starts a child linked to the supervisor that is given.
pub type Start =
    Arc<dyn Fn(ActorCell) -> Pin<Box<dyn Future<Output = Result<ActorCell, SpawnErr>> + Send>> + Send + Sync>;

/// What follows when a child failed too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GiveUp {
    /// The supervisor fails too, so its own supervisor decides.
    Escalate,
    /// The child is left out and the others go on.
    Abandon,
}

/// A child to be kept alive.
#[derive(Clone)]
pub struct Child {
    /// Its name in logs, unique under its supervisor; never registered anywhere.
    pub name: String,
    /// How long it is meant to live.
    pub life: Life,
    /// How often it may be restarted.
    pub intensity: Intensity,
    /// What follows when that is exceeded.
    pub give_up: GiveUp,
    /// How it is started, the first time and after.
    pub start: Start,
}

impl fmt::Debug for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Child").field("name", &self.name).field("life", &self.life).finish_non_exhaustive()
    }
}

/// Why a child was not added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// Another child has the name.
    #[error("a child named {0:?} exists")]
    NameTaken(String),
    /// Its first start failed; it is not kept.
    #[error("child {0:?} did not start: {1}")]
    Start(String, String),
    /// The supervisor is closing or gone.
    #[error("the supervisor is closing")]
    Closing,
}

/// What a supervisor is told.
#[derive(Debug)]
pub enum SupervisorMessage {
    /// Start and keep this child; answered once it has started.
    Add(Child, RpcReplyPort<Result<(), AddError>>),
    /// Restart nothing any more; answered with the living children, last added first.
    Close(RpcReplyPort<Vec<ActorCell>>),
    /// A start that was under way ended.
    #[doc(hidden)]
    Started(String, Result<ActorCell, String>),
    /// A wait before a restart is over.
    #[doc(hidden)]
    Due(String),
}

struct Kept {
    child: Child,
    order: u64,
    restarts: Restarts,
    cell: Option<ActorCell>,
    first: Option<RpcReplyPort<Result<(), AddError>>>,
}

/// The supervisor's state.
pub struct SupervisorState {
    children: BTreeMap<String, Kept>,
    next_order: u64,
    /// Children that ended before the message that they had started.
    early: BTreeMap<ActorId, Cause>,
    closing: bool,
    tasks: TaskTracker,
    token: CancellationToken,
    now: fn() -> Instant,
}

/// The supervisor; its argument is the clock.
#[derive(Debug)]
pub struct Supervisor;

/// A running supervisor without children.
///
/// # Errors
/// [`SpawnErr`] only when the runtime is shutting down.
pub async fn spawn(
    now: fn() -> Instant,
    parent: Option<ActorCell>,
) -> Result<ActorRef<SupervisorMessage>, SpawnErr> {
    let (actor, _) = match parent {
        Some(parent) => Actor::spawn_linked(None, Supervisor, now, parent).await?,
        None => Actor::spawn(None, Supervisor, now).await?,
    };
    Ok(actor)
}

/// Adds a child and waits for its first start.
///
/// # Errors
/// [`AddError`].
pub async fn add(supervisor: &ActorRef<SupervisorMessage>, child: Child) -> Result<(), AddError> {
    ractor::call!(supervisor, SupervisorMessage::Add, child).unwrap_or(Err(AddError::Closing))
}

/// Stops the children one after another, last added first, then the supervisor. A child that does
/// not stop within `patience` is killed.
pub async fn shutdown(supervisor: &ActorRef<SupervisorMessage>, patience: Duration) {
    let children = ractor::call!(supervisor, SupervisorMessage::Close).unwrap_or_default();
    for child in children {
        if child.stop_and_wait(None, Some(patience)).await.is_err() {
            child.kill();
        }
    }
    if supervisor.stop_and_wait(None, Some(patience)).await.is_err() {
        supervisor.kill();
    }
}

impl Actor for Supervisor {
    type Msg = SupervisorMessage;
    type State = SupervisorState;
    type Arguments = fn() -> Instant;

    async fn pre_start(
        &self,
        _: ActorRef<Self::Msg>,
        now: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(SupervisorState {
            children: BTreeMap::new(),
            next_order: 0,
            early: BTreeMap::new(),
            closing: false,
            tasks: TaskTracker::new(),
            token: CancellationToken::new(),
            now,
        })
    }

    async fn post_stop(
        &self,
        _: ActorRef<Self::Msg>,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        state.token.cancel();
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMessage::Add(child, reply) => state.add(&myself, child, reply),
            SupervisorMessage::Close(reply) => {
                state.closing = true;
                let mut kept: Vec<_> = state.children.values().collect();
                kept.sort_unstable_by_key(|kept| std::cmp::Reverse(kept.order));
                // A caller that is gone needs no list.
                let _ = reply.send(kept.iter().filter_map(|kept| kept.cell.clone()).collect());
                Ok(())
            }
            SupervisorMessage::Started(name, result) => state.started(&myself, name, result),
            SupervisorMessage::Due(name) => {
                if !state.closing
                    && let Some(kept) = state.children.get(&name)
                {
                    state.start(&myself, kept);
                }
                Ok(())
            }
        }
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorTerminated(cell, _, _) => {
                state.ended(&myself, cell.get_id(), Cause::Finished)
            }
            SupervisionEvent::ActorFailed(cell, error) => {
                tracing::error!(actor = %cell.get_id(), %error, "an actor failed");
                state.ended(&myself, cell.get_id(), Cause::Failed)
            }
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => Ok(()),
        }
    }
}

impl SupervisorState {
    fn add(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        child: Child,
        reply: RpcReplyPort<Result<(), AddError>>,
    ) -> Result<(), ActorProcessingErr> {
        let refusal = if self.closing {
            Some(AddError::Closing)
        } else if self.children.contains_key(&child.name) {
            Some(AddError::NameTaken(child.name.clone()))
        } else {
            None
        };
        if let Some(refusal) = refusal {
            let _ = reply.send(Err(refusal));
            return Ok(());
        }
        self.next_order += 1;
        let restarts = Restarts::new(child.life, child.intensity);
        let kept = Kept { restarts, order: self.next_order, cell: None, first: Some(reply), child };
        self.start(myself, &kept);
        self.children.insert(kept.child.name.clone(), kept);
        Ok(())
    }

    /// Starting waits for the child's `pre_start`, which a handler must not: a task does.
    fn start(&self, myself: &ActorRef<SupervisorMessage>, kept: &Kept) {
        let (name, start, cell) = (kept.child.name.clone(), kept.child.start.clone(), myself.get_cell());
        let myself = myself.clone();
        self.tasks.spawn(async move {
            let result = start(cell).await.map_err(|error| error.to_string());
            if let Err(lost) = myself.cast(SupervisorMessage::Started(name, result)) {
                tracing::debug!(%lost, "the supervisor was gone when its child had started");
            }
        });
    }

    fn started(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        name: String,
        result: Result<ActorCell, String>,
    ) -> Result<(), ActorProcessingErr> {
        let Some(kept) = self.children.get_mut(&name) else { return Ok(()) };
        match result {
            Ok(cell) => {
                let id = cell.get_id();
                kept.cell = Some(cell);
                if let Some(reply) = kept.first.take() {
                    let _ = reply.send(Ok(()));
                }
                match self.early.remove(&id) {
                    Some(cause) => self.ended(myself, id, cause),
                    None => Ok(()),
                }
            }
            Err(error) => match kept.first.take() {
                Some(reply) => {
                    self.children.remove(&name);
                    let _ = reply.send(Err(AddError::Start(name, error)));
                    Ok(())
                }
                None => {
                    tracing::error!(child = name, error, "a restart failed");
                    self.decide(myself, &name, Cause::Failed)
                }
            },
        }
    }

    fn ended(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        id: ActorId,
        cause: Cause,
    ) -> Result<(), ActorProcessingErr> {
        let by_id = |kept: &&mut Kept| kept.cell.as_ref().is_some_and(|cell| cell.get_id() == id);
        match self.children.values_mut().find(by_id) {
            Some(kept) => {
                kept.cell = None;
                let name = kept.child.name.clone();
                self.decide(myself, &name, cause)
            }
            None => {
                self.early.insert(id, cause);
                Ok(())
            }
        }
    }

    fn decide(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        name: &str,
        cause: Cause,
    ) -> Result<(), ActorProcessingErr> {
        if self.closing {
            return Ok(());
        }
        let Some(kept) = self.children.get_mut(name) else { return Ok(()) };
        match kept.restarts.on_exit((self.now)(), cause) {
            Verdict::Ignore => {
                self.children.remove(name);
            }
            Verdict::Restart { after } => {
                let (myself, name, token) = (myself.clone(), name.to_owned(), self.token.clone());
                self.tasks.spawn(async move {
                    tokio::select! {
                        () = token.cancelled() => {}
                        () = tokio::time::sleep(after) => {
                            // A supervisor that is gone restarts nothing.
                            let _ = myself.cast(SupervisorMessage::Due(name));
                        }
                    }
                });
            }
            Verdict::Escalate => {
                tracing::error!(child = name, "an actor failed too often and is not restarted");
                let give_up = kept.child.give_up;
                self.children.remove(name);
                if give_up == GiveUp::Escalate {
                    return Err(format!("child {name:?} failed too often").into());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
