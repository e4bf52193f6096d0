//! Faults as data (SPEC CH-1, CH-2): said in words that read like English, put into a testbed, listed,
//! healed.
//!
//! What: the faults and their words, the rules that they make for each link, the engine that keeps a
//! testbed's nodes in step with them, its routes of the API.
//!
//! What not: no fault lives in a node's code. Processes get signals, links get rules through the API.

mod api;
mod engine;
mod fault;
mod place;
mod rules;
mod words;

pub use api::router;
pub use engine::{ChaosError, Faults};
pub use fault::{ActiveJson, Fault, InjectJson, LinkFault};
pub use place::{Place, UnknownPlace};
pub use rules::rules;
pub use words::{FORMS, WordsError, duration};
