//! What all actors share: the supervisor, its restart policy, and draining.
//!
//! ractor stops a supervisor when a child exits and knows no restarting; the policy here is pure and
//! limited in intensity, so a child that keeps failing ends in one clear decision, never in a storm.

pub mod drain;
pub mod policy;
pub mod supervisor;

pub use drain::Drain;
pub use policy::{Cause, Intensity, Life, Restarts, Verdict};
pub use supervisor::{AddError, Child, GiveUp, Start, Supervisor, SupervisorMessage, add, shutdown, spawn};
