//! Skein's vocabulary, wire formats and every decision it takes.
//!
//! What: names and ids, the registry's facts, the gossip record, the snapshot and its fold,
//! balancing, fly-replay, header rules, restart policy, the frames of backhaul.
//!
//! What not: no socket, no clock, no ambient randomness, no task. `now` and a [`Random`] are
//! parameters; results are values or lists of effects, so the same code runs in a node, in a
//! property test and in the simulator.

pub mod age;
pub mod api;
pub mod attr;
pub mod autostop;
pub mod balance;
pub mod budget;
pub mod code;
pub mod codec;
pub mod config;
pub mod encoding;
pub mod explain;
pub mod facts;
pub mod fault;
pub mod headers;
pub mod heads;
pub mod id;
pub mod key;
pub mod load;
pub mod machine;
pub mod near;
pub mod outlier;
pub mod planted;
pub mod queue;
pub mod random;
pub mod record;
pub mod region;
pub mod relay;
pub mod replay;
pub mod restart;
pub mod retry;
pub mod route;
pub mod service;
pub mod sixpn;
pub mod snapshot;
pub mod strict;
pub mod suspicion;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod turns;
pub mod websocket;
pub mod wire;

pub use id::{
    AppId, AppName, ConfigHash, MachineId, NetworkId, NetworkName, NodeName, NodeNumber, OrgId, OrgSlug,
    ProcessGroup, RequestId, TokenId, TraceId, VersionId,
};
pub use random::Random;
pub use region::RegionCode;
