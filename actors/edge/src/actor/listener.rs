//! The actor that owns the accepting tasks of one public address.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accept::{Accepting, accept};

/// What a listener needs, also after a restart: the socket stays bound meanwhile.
#[derive(Debug, Clone)]
pub(crate) struct ListenerArguments {
    pub(crate) socket: Arc<std::net::TcpListener>,
    /// One per core.
    pub(crate) accepting: Vec<Accepting>,
}

/// What a listener is told.
#[derive(Debug)]
pub(crate) enum ListenerMessage {
    /// An accepting task ended, which it never does by itself.
    Ended,
}

/// Accepts connections for one public address.
pub(crate) struct Listener;

pub(crate) struct ListenerState {
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Tells the actor when a task ends, also by a panic.
struct Bell {
    actor: ActorRef<ListenerMessage>,
    stop: CancellationToken,
}

impl Drop for Bell {
    fn drop(&mut self) {
        if !self.stop.is_cancelled() {
            // An actor that is gone already needs no telling.
            let _gone = self.actor.cast(ListenerMessage::Ended);
        }
    }
}

impl Actor for Listener {
    type Msg = ListenerMessage;
    type State = ListenerState;
    type Arguments = ListenerArguments;

    async fn pre_start(
        &self,
        actor: ActorRef<ListenerMessage>,
        arguments: ListenerArguments,
    ) -> Result<ListenerState, ActorProcessingErr> {
        let state = ListenerState { stop: CancellationToken::new(), tasks: TaskTracker::new() };
        for accepting in arguments.accepting {
            let socket = arguments.socket.try_clone()?;
            let bell = Bell { actor: actor.clone(), stop: state.stop.clone() };
            let (stop, runtime) = (state.stop.clone(), accepting.runtime.clone());
            let task = async move {
                let bell = bell;
                match TcpListener::from_std(socket) {
                    Ok(socket) => tokio::select! {
                        () = stop.cancelled() => {}
                        () = accept(accepting, socket) => {}
                    },
                    Err(error) => tracing::error!(%error, "a listening socket could not be used"),
                }
                drop(bell);
            };
            state.tasks.spawn_on(task, &runtime);
        }
        Ok(state)
    }

    async fn handle(
        &self,
        _: ActorRef<ListenerMessage>,
        message: ListenerMessage,
        _: &mut ListenerState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ListenerMessage::Ended => Err("an accepting task ended".into()),
        }
    }

    async fn post_stop(
        &self,
        _: ActorRef<ListenerMessage>,
        state: &mut ListenerState,
    ) -> Result<(), ActorProcessingErr> {
        state.stop.cancel();
        state.tasks.close();
        state.tasks.wait().await;
        Ok(())
    }
}
