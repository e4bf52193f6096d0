//! Who keeps alive what lives on its own: gossip, the registry's membership, a link to a peer.
//!
//! Each of them is a *life*: it runs until it is cancelled, is over, or fails with a reason. Whether
//! and when a failed one is run again is its keeper's policy: in a node the supervisor of actors,
//! elsewhere [`Tasks`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::BoxFuture;

/// Runs once; called again to run again. It ends soon after the token is cancelled. `Ok` says that
/// it is over for good, an error why it failed.
pub type Life = Arc<dyn Fn(CancellationToken) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Keeps lives.
pub trait Keeper: fmt::Debug + Send + Sync + 'static {
    /// Runs `life` under `name` (for logs, and unique among the living), and again after it failed.
    fn keep(&self, name: String, life: Life);
}

/// The wait before a failed life is run again by [`Tasks`].
const PAUSE: Duration = Duration::from_millis(100);

/// Lives as plain tasks, run again for ever: for tests and tools.
#[derive(Debug, Clone)]
pub struct Tasks {
    tasks: TaskTracker,
    runtime: Handle,
    stop: CancellationToken,
}

impl Tasks {
    /// Tasks on the current runtime, for as long as they live.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn current() -> Self {
        Self::on(Handle::current(), CancellationToken::new())
    }

    /// Tasks on `runtime`, until `stop`.
    pub fn on(runtime: Handle, stop: CancellationToken) -> Self {
        Self { tasks: TaskTracker::new(), runtime, stop }
    }
}

impl Keeper for Tasks {
    fn keep(&self, name: String, life: Life) {
        let stop = self.stop.clone();
        let kept = async move {
            while let Err(reason) = life(stop.child_token()).await {
                tracing::error!(name, reason, "it failed and is run again");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(PAUSE) => {}
                }
            }
        };
        self.tasks.spawn_on(kept, &self.runtime);
    }
}
