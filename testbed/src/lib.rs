//! A cluster on one computer: launches nodes as processes, answers for them while any lives, and
//! collects their traces (SPEC TB-1 to TB-4, OBS-4).
//!
//! What: the state directory and its lock, node processes and their signals, the API front, an OTLP
//! receiver with a bounded store, trace trees as text.
//!
//! What not: nothing of a node's inside. A node is the same binary run again, and only its API and
//! the files that it reports in are used.

mod client;
mod down;
mod error;
mod front;
mod home;
mod launch;
mod leftover;
mod node;
mod otlp;
mod process;
mod spec;
mod testbed;
pub mod trace;

pub use client::{CallError, NodeClient};
pub use down::{Ended, end};
pub use error::TestbedError;
pub use front::{Front, refusal};
pub use home::{ClusterDir, ClusterName, Home, InvalidName, Lock, LockError};
pub use launch::{Latency, LaunchOptions, Progress};
pub use node::{Life, NodeView};
pub use otlp::{Collector, CollectorError, Store, StoreLimits};
pub use process::adopt_orphans;
pub use spec::{DEFAULT_REGIONS, MAX_NODES, NodeSpec, SpecError, by_count, by_regions};
pub use testbed::Testbed;
