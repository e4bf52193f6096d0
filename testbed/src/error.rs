//! What can go wrong with a testbed.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use skein_core::NodeName;

use crate::client::CallError;
use crate::home::LockError;
use crate::otlp::CollectorError;

/// Why a testbed does not start, or a node of it does not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum TestbedError {
    /// The state directory can't be had.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The collector can't be started.
    #[error(transparent)]
    Collector(#[from] CollectorError),
    /// A file, pipe or process can't be made.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A node ended while it was starting.
    #[error("node {node} {how} while it was starting; the end of {}:\n{tail}", log.display())]
    Died {
        /// The node.
        node: NodeName,
        /// `exited with status 1` or `was killed by SIGKILL`.
        how: String,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// A node or the cluster did not become ready in time.
    #[error("{what} after {} s: {status}", waited.as_secs())]
    Slow {
        /// What was waited for, as `node iad-1 does not see all nodes`.
        what: String,
        /// How long.
        waited: Duration,
        /// The last thing seen.
        status: String,
    },
    /// A node's API refused.
    #[error("node {node}")]
    Call {
        /// The node.
        node: NodeName,
        /// Its answer.
        #[source]
        source: CallError,
    },
    /// No node has that name.
    #[error("there is no node {node:?}; the nodes are {known}")]
    UnknownNode {
        /// What was asked for.
        node: String,
        /// All names.
        known: String,
    },
    /// A dead node was to be killed, paused or drained.
    #[error("node {node} is not running; start it with `skein node restart {node}`")]
    NotRunning {
        /// The node.
        node: NodeName,
    },
    /// The testbed is ending.
    #[error("the testbed is ending")]
    Ending,
}

impl TestbedError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// The HTTP status that the testbed's API answers.
    pub fn status(&self) -> u16 {
        match self {
            Self::UnknownNode { .. } => 404,
            Self::NotRunning { .. } | Self::Lock(_) => 409,
            Self::Ending => 503,
            Self::Slow { .. } => 504,
            Self::Collector(_) | Self::Io { .. } | Self::Died { .. } | Self::Call { .. } => 500,
        }
    }
}
