//! What the data path of an edge shares. Nothing here is an actor, and nothing takes a lock to read.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::HeaderValue;
use skein_cluster::backhaul::{Backhaul, Peers};
use skein_cluster::{LocalReader, Reader, clock};
use skein_core::balance::Candidate;
use skein_core::explain::Kept;
use skein_core::region::Regions;
use skein_core::route::World;
use skein_core::snapshot::Snapshot;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::body::Budget;
use crate::config::EdgeConfig;
use crate::demand::Demands;
use crate::metrics::Metrics;
use crate::queue::Queue;
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
    /// Requests that wait for a Machine.
    pub(crate) queue: Arc<Queue>,
    pub(crate) metrics: Metrics,
    pub(crate) sampler: Sampler,
    /// What was decided for the newest requests.
    pub(crate) stories: Kept,
    /// The `Server` header.
    pub(crate) server: HeaderValue,
    pub(crate) gate: Gate,
    /// Responses that are being compressed.
    pub(crate) compressions: AtomicUsize,
    /// What requests want started; `None` when nobody would hear it.
    pub(crate) demands: Option<Demands>,
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
        let queue = Arc::new(Queue::new(config.queue));
        let worker = Worker::new(&config, local, backhaul.clone(), Arc::clone(&queue), Arc::clone(&regions));
        let demands = config
            .starts
            .clone()
            .map(|starts| Demands::new(starts, reader.clone(), Arc::clone(&peers), worker.tasks().clone()));
        Self {
            worker,
            queue,
            demands,
            budget: Arc::new(Budget::new(config.replay_budget)),
            metrics: Metrics::default(),
            sampler: Sampler::new(config.sampling),
            stories: Kept::new(config.explained),
            server: HeaderValue::from_static(concat!("Skein/", env!("CARGO_PKG_VERSION"))),
            gate: Gate::default(),
            compressions: AtomicUsize::new(0),
            config,
            reader,
            backhaul,
            peers,
            regions,
        }
    }

    /// Whether a request may go to the Machine: while this node drains its own take nothing, which it
    /// knows before it hears it of itself.
    pub(crate) fn sends_to(&self, candidate: &Candidate<'_>) -> bool {
        candidate.machine.node != self.config.node || !self.worker.is_draining()
    }

    /// What a decision reads.
    pub(crate) fn world<'s>(&'s self, snapshot: &'s Snapshot, now: Instant) -> World<'s> {
        World { snapshot, proximity: &*self.peers, regions: &self.regions, now_ms: clock::ms(now) }
    }

    /// Milliseconds on the clock of load estimates and ages; never 0.
    pub(crate) fn now_ms(&self) -> u64 {
        clock::monotonic_ms()
    }
}

/// How long a drain lets quiet connections be. A busy client's next request comes within it and is
/// answered with `Connection: close`; closed at once, the connection would meet it with a reset.
const QUIET: Duration = Duration::from_millis(500);

/// What is open at this node, so that a drain can ask it to end and wait.
#[derive(Debug, Default)]
pub(crate) struct Gate(ArcSwap<Eras>);

#[derive(Debug, Default)]
struct Eras {
    now: Arc<Era>,
    /// Those of which something may be open still.
    before: Vec<Arc<Era>>,
}

/// What came in between a drain's begin or end and the next, and the ends of the drain that
/// concerns it.
#[derive(Debug, Default)]
pub(crate) struct Era {
    /// Each response is the last one of its connection.
    pub(crate) last: CancellationToken,
    /// Connections that wait for a request end.
    pub(crate) quiet: CancellationToken,
    /// Everything ends.
    pub(crate) forced: CancellationToken,
    open: AtomicUsize,
    changed: Notify,
}

/// Counts one connection or served request until it is dropped.
#[derive(Debug)]
pub(crate) struct Passage(Arc<Era>);

impl Eras {
    fn all(&self) -> Vec<Arc<Era>> {
        self.before.iter().chain([&self.now]).cloned().collect()
    }
}

impl Era {
    fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    async fn empty(&self) {
        loop {
            let changed = self.changed.notified();
            if self.open() == 0 {
                return;
            }
            changed.await;
        }
    }
}

impl Gate {
    pub(crate) fn enter(&self) -> Passage {
        loop {
            let era = Arc::clone(&self.0.load().now);
            era.open.fetch_add(1, Ordering::SeqCst);
            let passage = Passage(era);
            // A drain that began meanwhile may have counted without it.
            if Arc::ptr_eq(&passage.0, &self.0.load().now) {
                return passage;
            }
        }
    }

    pub(crate) fn open(&self) -> usize {
        self.0.load().all().iter().map(|era| era.open()).sum()
    }

    /// Asks all that is open now to end, waits, then forces the rest; answers how many were forced.
    /// What comes later is let in, for one response per connection, and not waited for.
    pub(crate) async fn drain(&self, patience: Duration) -> usize {
        let deadline = tokio::time::Instant::now() + patience;
        let eras = self.begin(true);
        eras.iter().for_each(|era| era.last.cancel());
        let empty = async {
            for era in &eras {
                era.empty().await;
            }
        };
        let mut empty = pin!(empty);
        if tokio::time::timeout(QUIET.min(patience / 2), empty.as_mut()).await.is_ok() {
            return 0;
        }
        eras.iter().for_each(|era| era.quiet.cancel());
        if tokio::time::timeout_at(deadline, empty).await.is_ok() {
            return 0;
        }
        let left = eras.iter().map(|era| era.open()).sum();
        eras.iter().for_each(|era| era.forced.cancel());
        left
    }

    /// Lets connections that come from now on stay again, after a drain.
    pub(crate) fn reopen(&self) {
        self.begin(false);
    }

    /// Begins another era; answers those before.
    fn begin(&self, last: bool) -> Vec<Arc<Era>> {
        let before = self.0.rcu(|eras| {
            let now = Era::default();
            if last {
                now.last.cancel();
            }
            let open = eras.before.iter().filter(|era| era.open() > 0);
            Eras { now: Arc::new(now), before: open.chain([&eras.now]).cloned().collect() }
        });
        before.all()
    }
}

impl Passage {
    pub(crate) fn era(&self) -> &Arc<Era> {
        &self.0
    }

    /// Whether a response now is the last one of its connection.
    pub(crate) fn is_last(&self) -> bool {
        self.0.last.is_cancelled()
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_all_that_came_before_it_in_whatever_era_and_for_nothing_later() {
        let gate = Gate::default();
        let first = gate.enter();
        let mut one = pin!(gate.drain(PATIENCE));
        assert!(once(one.as_mut()).await.is_none());
        let second = gate.enter();
        assert!(first.is_last() && second.is_last());
        let mut two = pin!(gate.drain(PATIENCE));
        assert!(once(two.as_mut()).await.is_none());
        gate.reopen();
        let third = gate.enter();
        assert!(!third.is_last() && second.is_last());
        assert_eq!(gate.open(), 3);
        drop(first);
        assert_eq!(one.await, 0);
        assert!(once(two.as_mut()).await.is_none(), "the second one is open still");
        drop(second);
        assert_eq!((two.await, gate.open()), (0, 1));
        assert_eq!(gate.drain(PATIENCE).await, 1);
        assert!(third.era().quiet.is_cancelled() && third.era().forced.is_cancelled());
    }

    /// Polls once.
    async fn once<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        tokio::select! {
            biased;
            done = future => Some(done),
            () = std::future::ready(()) => None,
        }
    }
}
