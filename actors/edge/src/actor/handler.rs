//! The actor that owns the connections of one (listener, chain, core).

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use crate::accept::Connections;

/// What a handler is told: nothing yet. Its connections never message it.
#[derive(Debug)]
pub(crate) enum HandlerMessage {}

/// Owns connections; they end when it stops.
pub(crate) struct Handler;

impl Actor for Handler {
    type Msg = HandlerMessage;
    type State = Arc<Connections>;
    type Arguments = Arc<Connections>;

    async fn pre_start(
        &self,
        _: ActorRef<HandlerMessage>,
        connections: Arc<Connections>,
    ) -> Result<Arc<Connections>, ActorProcessingErr> {
        Ok(connections)
    }

    async fn post_stop(
        &self,
        _: ActorRef<HandlerMessage>,
        connections: &mut Arc<Connections>,
    ) -> Result<(), ActorProcessingErr> {
        connections.end();
        Ok(())
    }
}
