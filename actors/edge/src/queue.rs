//! Requests of clients that wait here until a Machine can take them: the shell of
//! [`skein_core::queue`].
//!
//! A lock is taken only by who waits or wakes: while nobody waits a request reads one atomic.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use skein_core::AppId;
use skein_core::queue::{Bounds, Crowded, POLL, Queues, Service, Ticket, Want};
use tokio::sync::Notify;

/// All queues of an edge.
#[derive(Debug)]
pub(crate) struct Queue {
    queues: Mutex<Queues<Arc<Notify>>>,
    waiting: AtomicUsize,
}

/// A place in a queue, given up when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    queue: Arc<Queue>,
    service: Service,
    ticket: Ticket,
    wake: Arc<Notify>,
    /// Since when.
    pub(crate) since: Instant,
}

impl Queue {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { queues: Mutex::new(Queues::new(bounds)), waiting: AtomicUsize::new(0) }
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whether somebody waits for the same, so that a newcomer goes behind them.
    pub(crate) fn is_ahead(&self, service: Service, want: impl FnOnce() -> Want) -> bool {
        self.len() > 0 && self.lock().is_ahead(service, &want())
    }

    /// A place at the end.
    ///
    /// # Errors
    /// [`Crowded`].
    pub(crate) fn join(
        self: &Arc<Self>,
        service: Service,
        want: Want,
        since: Instant,
    ) -> Result<Place, Crowded> {
        let wake = Arc::new(Notify::new());
        let mut queues = self.lock();
        let ticket = queues.join(service, want, Arc::clone(&wake))?;
        self.waiting.store(queues.len(), Ordering::Relaxed);
        drop(queues);
        Ok(Place { queue: Arc::clone(self), service, ticket, wake, since })
    }

    /// There is room: lets the first try that can use it; whether there was one.
    pub(crate) fn room(
        &self,
        app: AppId,
        port: impl Fn(u16) -> bool,
        useful: impl Fn(&Want) -> bool,
    ) -> bool {
        if self.len() == 0 {
            return false;
        }
        let mut queues = self.lock();
        let ports = queues.ports(app);
        let woken = ports.into_iter().filter(|it| port(*it)).find_map(|it| queues.room((app, it), &useful));
        drop(queues);
        woken.inspect(|wake| wake.notify_one()).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Queues<Arc<Notify>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Waits until it may try. `news` ends when something changed that the first should look at.
    pub(crate) async fn turn(&self, news: impl Future<Output = ()>) {
        let first = self.queue.lock().is_first(self.service, self.ticket);
        let looks = async {
            tokio::select! {
                () = tokio::time::sleep(POLL) => {}
                () = news => {}
            }
        };
        tokio::select! {
            // One that is not the first is woken when it becomes that, or when there is room for it.
            () = self.wake.notified() => {}
            () = looks, if first => self.queue.lock().tries(self.service, self.ticket),
        }
    }

    /// It found no room, and waits on.
    pub(crate) fn again(&self) {
        self.queue.lock().again(self.service, self.ticket);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut queues = self.queue.lock();
        let next = queues.leave(self.service, self.ticket);
        self.queue.waiting.store(queues.len(), Ordering::Relaxed);
        drop(queues);
        if let Some(next) = next {
            next.notify_one();
        }
    }
}
