//! What the data path of an edge shares. Nothing here is an actor, and nothing takes a lock to read.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::HeaderValue;
use skein_cluster::backhaul::{Backhaul, Peers};
use skein_cluster::{LocalReader, Reader, clock};
use skein_core::region::Regions;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::body::Budget;
use crate::config::EdgeConfig;
use crate::metrics::Metrics;
use crate::trace::Sampler;
use crate::worker::Worker;

pub(crate) struct Core {
    pub(crate) config: EdgeConfig,
    pub(crate) reader: Reader,
    pub(crate) worker: Worker,
    pub(crate) backhaul: Backhaul,
    pub(crate) peers: Arc<Peers>,
    pub(crate) regions: Arc<Regions>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) metrics: Metrics,
    pub(crate) sampler: Sampler,
    /// The `Server` header.
    pub(crate) server: HeaderValue,
    pub(crate) gate: Arc<Gate>,
    epoch: Instant,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("node", &self.config.node_name).finish_non_exhaustive()
    }
}

impl Core {
    pub(crate) fn new(
        config: EdgeConfig,
        reader: Reader,
        local: LocalReader,
        backhaul: Backhaul,
        peers: Arc<Peers>,
        regions: Arc<Regions>,
    ) -> Self {
        Self {
            worker: Worker::new(&config, local),
            budget: Arc::new(Budget::new(config.replay_budget)),
            metrics: Metrics::default(),
            sampler: Sampler::new(config.sampling),
            server: HeaderValue::from_static(concat!("Skein/", env!("CARGO_PKG_VERSION"))),
            gate: Arc::default(),
            epoch: clock::now(),
            config,
            reader,
            backhaul,
            peers,
            regions,
        }
    }

    /// Milliseconds on the clock of load estimates; never 0.
    pub(crate) fn now_ms(&self) -> u64 {
        clock::now().saturating_duration_since(self.epoch).as_millis() as u64 + 1
    }
}

/// What is open at this node, so that a drain can ask it to end and wait.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    tokens: ArcSwap<Tokens>,
    open: AtomicUsize,
    changed: Notify,
}

/// Ends of one drain: asked first, forced at its deadline.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    pub(crate) asked: CancellationToken,
    pub(crate) forced: CancellationToken,
}

/// Counts one connection or served request until it is dropped.
#[derive(Debug)]
pub(crate) struct Passage(Arc<Gate>);

impl Gate {
    pub(crate) fn tokens(&self) -> Arc<Tokens> {
        self.tokens.load_full()
    }

    pub(crate) fn enter(self: &Arc<Self>) -> Passage {
        self.open.fetch_add(1, Ordering::AcqRel);
        Passage(Arc::clone(self))
    }

    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Asks everything to end, waits, then forces the rest; answers how many were forced.
    pub(crate) async fn drain(&self, patience: Duration) -> usize {
        let tokens = self.tokens();
        tokens.asked.cancel();
        let empty = async {
            loop {
                let changed = self.changed.notified();
                if self.open() == 0 {
                    return;
                }
                changed.await;
            }
        };
        match tokio::time::timeout(patience, empty).await {
            Ok(()) => 0,
            Err(_) => {
                let left = self.open();
                tokens.forced.cancel();
                left
            }
        }
    }

    /// Lets connections in again after a drain.
    pub(crate) fn reopen(&self) {
        self.tokens.store(Arc::default());
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}
