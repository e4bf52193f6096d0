//! What a node knows of the cluster, and how it speaks with the other nodes.
//!
//! Decisions are in `skein-core`; this crate moves bytes, keeps state and publishes one immutable
//! snapshot. Readers never take a lock.

pub mod admission;
pub mod backhaul;
pub mod barrier;
pub mod clock;
pub mod configs;
pub mod entropy;
pub mod gossip;
pub mod identity;
pub mod join;
pub mod keeper;
pub mod link;
pub mod local;
pub mod publish;
pub mod reader;
pub mod registry;
pub mod store;
pub mod token;

pub use backhaul::{Backhaul, BackhaulConfig, FrameStream, Inbound, Joiner, PeerAddress, Peers};
pub use gossip::{Gossip, GossipConfig, GossipTransport, Members};
pub use identity::{Authority, Identity};
pub use keeper::{Keeper, Tasks};
pub use link::LinkTable;
pub use local::{LocalMachine, LocalPublisher, LocalReader, Upstream};
pub use reader::{Publisher, Reader};

/// A future that may move between threads.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
