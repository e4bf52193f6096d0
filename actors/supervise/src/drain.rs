//! Ending tasks: ask, wait until a deadline, force.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Owns tasks that end together.
///
/// A clone is the same owner. Nothing outlives [`Drain::drain`]: a task that does not end by itself
/// is dropped at its next await point.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    tracker: TaskTracker,
    asked: CancellationToken,
    forced: CancellationToken,
}

impl Drain {
    /// An owner of nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `task` until it ends or is forced to. On a drain that is over it ends at once.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        let forced = self.forced.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                biased;
                () = forced.cancelled() => {}
                () = task => {}
            }
        })
    }

    /// Cancelled once draining has begun: a task finishes what it has and takes nothing new.
    pub fn asked(&self) -> &CancellationToken {
        &self.asked
    }

    /// Tasks that run now.
    pub fn running(&self) -> usize {
        self.tracker.len()
    }

    /// Asks all tasks to finish, waits at most `patience`, then forces the rest. Answers how many
    /// had to be forced; all are gone when it returns.
    pub async fn drain(&self, patience: Duration) -> usize {
        self.tracker.close();
        self.asked.cancel();
        let left = match tokio::time::timeout(patience, self.tracker.wait()).await {
            Ok(()) => 0,
            Err(_) => self.tracker.len(),
        };
        self.forced.cancel();
        self.tracker.wait().await;
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tasks_that_heed_the_question_end_by_themselves_and_the_others_are_forced() {
        let drain = Drain::new();
        let asked = drain.asked().clone();
        drain.spawn(async move { asked.cancelled().await });
        drain.spawn(std::future::pending());
        assert_eq!(drain.running(), 2);
        assert_eq!(drain.drain(Duration::from_secs(1)).await, 1);
        assert_eq!(drain.running(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_owner_is_drained_at_once() {
        assert_eq!(Drain::new().drain(Duration::from_secs(3600)).await, 0);
    }
}
