//! A simulator: the production logic of `skein-core` and of `skein-cluster` above its traits, for
//! many nodes, on a virtual clock and a virtual network.

pub mod agenda;
pub mod bare;
pub mod cluster;
pub mod detector;
pub mod facts;
pub mod fit;
pub mod gossip;
pub mod invariants;
pub mod net;
mod node;
pub mod peers;
pub mod real;
pub mod reference;
pub mod registry;
pub mod request;
pub mod run;
pub mod transition;
pub mod world;

pub use run::fuzz;
