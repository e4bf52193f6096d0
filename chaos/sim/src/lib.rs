//! A simulator: the production logic of `skein-core` and of `skein-cluster` above its traits, for
//! many nodes, on a virtual clock and a virtual network.
//!
//! One seed makes one run ([`run::Plan`]): what happens is data ([`transition`]), everything random
//! is a child of the seed, everything iterated is ordered. A reference model ([`reference`](mod@reference)) is told
//! everything at once, and [`invariants`] judge what is observed after every event. chitchat and
//! openraft are replaced by models of them ([`gossip`], [`registry`]), which [`fit`] compares with the
//! real ones.

pub mod agenda;
pub mod bare;
pub mod cluster;
pub mod demand;
pub mod detector;
pub mod facts;
pub mod figures;
pub mod fit;
pub mod gossip;
pub mod invariants;
pub mod net;
mod node;
pub mod peers;
pub mod queue;
pub mod real;
pub mod reference;
pub mod registry;
pub mod request;
pub mod run;
pub mod seam;
pub mod transition;
pub mod world;

pub use run::fuzz;
