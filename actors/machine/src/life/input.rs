//! What happens to a Machine, and what it is meant to be.

use std::time::Duration;

use skein_core::restart::Exit;

use super::Settings;

/// What a Machine is meant to be, durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Desired {
    /// Its process runs.
    Started,
    /// Its process is there and waits; without one it is stopped.
    Suspended,
    /// It exists without a process.
    Stopped,
    /// It is to disappear.
    Destroyed,
}

/// How a stop is to go; what is `None` comes from the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StopHow {
    /// The first signal's number.
    pub signal: Option<i32>,
    /// Time between the first signal and SIGTERM.
    pub timeout: Option<Duration>,
    /// Time for what is in flight to end before the first signal.
    pub drain: Option<Duration>,
    /// SIGKILL at once.
    pub force: bool,
}

/// What happens to a Machine.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// It is to run: by a call, after its creation, or after its node came back.
    Start(Source),
    /// It is to stop.
    Stop(StopHow),
    /// It is to stop and run again.
    Restart(StopHow),
    /// Its process is to wait, with all that it has in memory.
    Suspend(Source),
    /// A former life of the node left it suspended, and its process may be there still.
    Reclaim,
    /// It has another configuration; `launch` says whether it is to run with it.
    Update {
        /// The configuration's settings.
        settings: Settings,
        /// Whether it is to run.
        launch: bool,
    },
    /// It is to disappear; while it runs only with `force`.
    Destroy {
        /// Ends its process.
        force: bool,
    },
    /// Its process is to get a signal.
    Signal(i32),
    /// Its process runs, or goes on.
    Up(u64),
    /// It accepts connections, or, with the reason, does not after its time for that.
    Listens(u64, Result<(), String>),
    /// Its process waits.
    Suspended(u64),
    /// Its process could not be made to wait, and runs.
    NotSuspended(u64),
    /// Its process could not be started, and trying again would not help.
    Refused(u64, String),
    /// Its process ended; all its descendants are gone. With what it wrote last, if anything.
    Ended(u64, Exit, String),
    /// Its init ended without a word.
    Lost(u64),
    /// Nothing is in flight at it.
    Idle(u64),
    /// The node shuts down: as a stop, but it is meant to run again with the node.
    Close,
    /// Time passed.
    Tick,
}

/// Who caused a change, in the words of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A call.
    User,
    /// The node itself.
    Node,
}
