//! The data plane's runtimes: one thread each, one per core, so that a connection's work stays on
//! its core and a slow call of the API delays no request. Clients' connections are spread over them,
//! and so are the backhaul's.

use std::thread;

use anyhow::Context as _;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// Runtimes that run until they are dropped.
#[derive(Debug)]
pub(super) struct Cores {
    handles: Vec<Handle>,
    end: CancellationToken,
}

impl Cores {
    /// One runtime per core that the process may use.
    pub(super) fn start() -> anyhow::Result<Self> {
        let count = thread::available_parallelism().map_or(1, usize::from);
        let end = CancellationToken::new();
        let mut handles = Vec::with_capacity(count);
        for core in 0..count {
            let runtime = Builder::new_current_thread()
                .enable_all()
                .on_thread_park(skein_edge::end_of_turn)
                .build()
                .context("start a runtime")?;
            handles.push(runtime.handle().clone());
            let end = end.clone();
            thread::Builder::new()
                .name(format!("edge-{core}"))
                .spawn(move || runtime.block_on(end.cancelled()))
                .context("start a thread")?;
        }
        Ok(Self { handles, end })
    }

    /// The runtimes.
    pub(super) fn handles(&self) -> Vec<Handle> {
        self.handles.clone()
    }
}

impl Drop for Cores {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::Cores;

    #[test]
    fn every_core_runs_what_it_is_given() {
        let cores = Cores::start().unwrap();
        let wait = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for (n, core) in cores.handles().iter().enumerate() {
            let task = core.spawn(async move { (n, std::thread::current().name().map(str::to_owned)) });
            assert_eq!(wait.block_on(task).unwrap(), (n, Some(format!("edge-{n}"))));
        }
    }
}
