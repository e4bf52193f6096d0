//! The proxy: listeners and connection handlers of a node's edge, and its worker side.
//!
//! Actors own listeners and connections; a request never passes through one. It loads one snapshot,
//! decides with `skein-core`, and goes to a Machine of this node or over backhaul to the node that
//! has it; both ways run the same worker code. The modules of the data path know no actors.

mod accept;
mod access;
mod actor;
mod attempt;
mod bell;
mod body;
mod client_body;
mod config;
mod connection;
mod core;
mod counted;
mod demand;
mod edge;
mod encode;
mod frames;
mod gathered;
mod hints;
mod hosts;
mod http2;
mod metrics;
mod pass_on;
mod queue;
mod raw;
mod relay;
mod reply;
mod request;
mod serve;
mod speech;
mod trace;
mod tunnel;
mod upstream;
mod watch;
mod way;
mod worker;

pub use config::{EdgeConfig, Sampling};
pub use demand::{EVERY as DEMAND_EVERY, Starts};
pub use edge::{Edge, EdgeCounts, MapError};
pub use gathered::end_of_turn;
pub use http2::Http2Limits;
