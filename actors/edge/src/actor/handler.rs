//! The actor that owns the connections of one (listener, chain, core).

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};

use crate::accept::Connections;

/// What a handler is asked.
#[derive(Debug)]
pub(crate) enum HandlerMessage {
    /// How many connections are open.
    Open(RpcReplyPort<usize>),
}

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

    async fn handle(
        &self,
        _: ActorRef<HandlerMessage>,
        message: HandlerMessage,
        connections: &mut Arc<Connections>,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            HandlerMessage::Open(reply) => {
                // Whoever asked may have left.
                let _gone = reply.send(connections.open());
            }
        }
        Ok(())
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
