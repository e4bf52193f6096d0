//! The edge and worker with real sockets: clients, Machines, and backhaul between nodes.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, reason = "tests")]

mod backend;
mod compression;
mod drain;
mod errors;
mod events;
mod explain;
mod failures;
mod frames;
mod grpc;
mod headers;
mod heads;
mod http2;
mod machines;
mod pool;
mod queue;
mod raw;
mod relays;
mod replays;
mod retries;
mod slow;
mod streaming;
mod strict;
mod traces;
mod trailers;
mod upgrades;
mod waking;
mod world;
