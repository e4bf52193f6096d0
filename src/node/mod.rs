//! A node: its parts put together, its life from start to end.

pub mod config;
pub mod files;
pub mod handle;
pub mod inbound;
pub mod links;
pub mod mappings;

mod autostop;
mod carry;
mod cores;
mod follow;
mod found;
mod join;
mod part;
mod run;

pub use config::NodeConfig;
pub use found::OPERATOR_TOKEN;
pub use handle::NodeHandle;
pub use run::run;
