//! A node's outside of the model: what `skein_cluster::RaftRegistry` is in a real node.

use std::sync::{Arc, Mutex};

use skein_cluster::BoxFuture;
use skein_cluster::registry::{ProposeError, Registry};
use skein_core::NodeNumber;
use skein_core::facts::{Outcome, Proposal, State};
use tokio::sync::{oneshot, watch};

use super::Answer;
use crate::seam::{Bell, lock};

/// A node's registry in one life of the node. Clones share it; [`Registries`](super::Registries)
/// carries out what is submitted.
#[derive(Debug, Clone)]
pub struct Seat {
    number: NodeNumber,
    published: watch::Sender<(u64, Arc<State>)>,
    submitted: Arc<Mutex<Vec<Submitted>>>,
    bell: Bell,
}

/// A proposal, and who waits for what becomes of it.
pub(super) type Submitted = (Proposal, oneshot::Sender<Answer>);

impl Seat {
    pub(super) fn new(number: NodeNumber, applied: usize, state: &Arc<State>, bell: Bell) -> Self {
        let published = watch::Sender::new((applied as u64, Arc::clone(state)));
        Self { number, published, submitted: Arc::default(), bell }
    }

    pub(super) fn publish(&self, applied: usize, state: &Arc<State>) {
        self.published.send_replace((applied as u64, Arc::clone(state)));
    }

    pub(super) fn submitted(&self) -> Vec<Submitted> {
        std::mem::take(&mut *lock(&self.submitted))
    }
}

impl Registry for Seat {
    fn watch(&self) -> watch::Receiver<(u64, Arc<State>)> {
        self.published.subscribe()
    }

    fn submit(&self, proposal: Proposal) -> BoxFuture<'_, Result<(Outcome, u64), ProposeError>> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            lock(&self.submitted).push((proposal, reply));
            self.bell.ring(self.number);
            answer.await.unwrap_or_else(|_| Err(ProposeError::Stopped("the node was killed".to_owned())))
        })
    }
}
