//! Unused connections to Machines, kept a short time for `requests` type services (SPEC HTTP-10).
//!
//! One shard per thread: a thread takes what it gave, and a shard's lock is as good as free. Shards
//! are shared so that an owner's task can sweep them. The lock is held for a push, a pop, or a look at
//! what happened to a connection meanwhile.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use skein_cluster::clock;
use tokio_util::task::TaskTracker;

use crate::upstream::driven::Driven;

/// Unused connections per address and shard; further ones are closed.
const MAX_IDLE: usize = 256;

#[derive(Debug)]
pub(crate) struct Pool {
    shards: Box<[Mutex<Shard>]>,
    idle: Duration,
    /// Owns the sweeping task, which runs only while something is kept.
    tasks: TaskTracker,
    sweeping: AtomicBool,
}

type Shard = BTreeMap<SocketAddr, Vec<(Instant, Driven)>>;

thread_local! {
    static SHARD: Cell<Option<usize>> = const { Cell::new(None) };
}
static THREADS: AtomicUsize = AtomicUsize::new(0);

impl Pool {
    pub(crate) fn new(idle: Duration, tasks: TaskTracker) -> Self {
        let shards = (0..Self::shards()).map(|_| Mutex::default()).collect();
        Self { shards, idle, tasks, sweeping: AtomicBool::new(false) }
    }

    fn with<T>(&self, shard: usize, f: impl FnOnce(&mut Shard) -> T) -> T {
        let shard = &self.shards[shard % self.shards.len()];
        f(&mut shard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Shards that are enough for the threads of this computer.
    pub(super) fn shards() -> usize {
        2 * std::thread::available_parallelism().map_or(4, usize::from)
    }

    /// The number of this thread, from 0.
    pub(super) fn own() -> usize {
        SHARD.with(|own| {
            own.get().unwrap_or_else(|| {
                let index = THREADS.fetch_add(1, Ordering::Relaxed);
                own.set(Some(index));
                index
            })
        })
    }

    /// An open connection to `address` that was used a short time ago; the newest first, so that a
    /// burst's connections grow old together.
    pub(crate) fn take(&self, address: SocketAddr, now: Instant) -> Option<Driven> {
        self.with(Self::own(), |shard| {
            let idle = shard.get_mut(&address)?;
            while let Some((since, mut connection)) = idle.pop() {
                if now.saturating_duration_since(since) < self.idle && connection.is_open() {
                    return Some(connection);
                }
            }
            None
        })
    }

    /// Keeps a connection whose last exchange is complete.
    pub(crate) fn give(self: &Arc<Self>, mut connection: Driven, now: Instant) {
        if !connection.is_open() {
            return;
        }
        self.with(Self::own(), |shard| {
            let idle = shard.entry(connection.address()).or_default();
            if idle.len() < MAX_IDLE {
                idle.push((now, connection));
            }
        });
        if !self.sweeping.load(Ordering::Relaxed) && !self.sweeping.swap(true, Ordering::AcqRel) {
            self.tasks.spawn(Arc::clone(self).sweep_while_used());
        }
    }

    async fn sweep_while_used(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.idle / 4).await;
            self.sweep(clock::now());
            if self.len() == 0 {
                self.sweeping.store(false, Ordering::Release);
                // What came in between found a sweeper that was about to leave.
                if self.len() == 0 || self.sweeping.swap(true, Ordering::AcqRel) {
                    return;
                }
            }
        }
    }

    /// Closes what is too old or was closed by the Machine.
    fn sweep(&self, now: Instant) {
        for index in 0..self.shards.len() {
            self.with(index, |shard| {
                shard.retain(|_, idle| {
                    idle.retain_mut(|(since, connection)| {
                        now.saturating_duration_since(*since) < self.idle && connection.is_open()
                    });
                    !idle.is_empty()
                });
            });
        }
    }

    /// Connections that are kept.
    pub(crate) fn len(&self) -> usize {
        (0..self.shards.len())
            .map(|index| self.with(index, |shard| shard.values().map(Vec::len).sum::<usize>()))
            .sum()
    }
}
