//! What the models need to stand behind the production's traits: a call through one rings for its
//! node, and whoever owns the clock answers after the event under way; futures are polled then.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use skein_core::NodeNumber;

/// One bell; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Bell(Arc<Mutex<BTreeSet<NodeNumber>>>);

impl Bell {
    /// There is something to do for a node.
    pub fn ring(&self, number: NodeNumber) {
        lock(&self.0).insert(number);
    }

    /// For whom it rang since it was last asked.
    pub fn rung(&self) -> BTreeSet<NodeNumber> {
        std::mem::take(&mut *lock(&self.0))
    }
}

/// A panic while it was held leaves plain data.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a future has come to, if it has: nothing wakes it, it is looked at after each event that could
/// have brought it on.
pub fn poll<F: Future + ?Sized>(future: Pin<&mut F>) -> Option<F::Output> {
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}
