//! What a node knows of the cluster, and how it speaks with the other nodes.
//!
//! Decisions are in `skein-core`; this crate moves bytes, keeps state and publishes one immutable
//! snapshot. Readers never take a lock.

pub mod clock;
pub mod entropy;
pub mod local;
pub mod reader;

pub use local::{LocalMachine, LocalPublisher, LocalReader, Upstream};
pub use reader::{Publisher, Reader};
