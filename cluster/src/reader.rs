//! The published snapshot: one writer swaps it, any number of readers load it without a lock.

use std::sync::Arc;

use arc_swap::ArcSwap;
use skein_core::snapshot::Snapshot;
use tokio::sync::watch;

/// Loads the current snapshot.
#[derive(Debug, Clone)]
pub struct Reader {
    current: Arc<ArcSwap<Snapshot>>,
    version: watch::Receiver<u64>,
}

/// Publishes snapshots; there is one per node.
#[derive(Debug)]
pub struct Publisher {
    current: Arc<ArcSwap<Snapshot>>,
    version: watch::Sender<u64>,
}

/// A publisher of `initial` and its reader.
pub fn channel(initial: Snapshot) -> (Publisher, Reader) {
    let (sender, version) = watch::channel(initial.version);
    let current = Arc::new(ArcSwap::from_pointee(initial));
    (Publisher { current: Arc::clone(&current), version: sender }, Reader { current, version })
}

impl Publisher {
    /// Replaces the snapshot for all later loads.
    pub fn publish(&self, next: Snapshot) {
        let version = next.version;
        self.current.store(Arc::new(next));
        self.version.send_replace(version);
    }
}

impl Reader {
    /// The current snapshot: load it once per request.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Follows the snapshot's version: for those who wait for a change, never per request.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.version.clone()
    }
}
