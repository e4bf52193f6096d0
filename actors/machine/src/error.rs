//! Why a call on a Machine is refused, with the status that the API answers.

use skein_core::MachineId;
use skein_core::machine::MachineState;

/// A refusal of a call on Machines. Its text is the API's `error`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MachineError {
    /// No such Machine on this node (404); the caller's.
    #[error("machine not found")]
    NotFound(MachineId),
    /// The configuration can't be run (400); the caller's.
    #[error("invalid machine config: {0}")]
    Invalid(String),
    /// Something that this build does not have (501); the caller's.
    #[error("{0}")]
    NotProvided(String),
    /// The Machine's state does not allow it (412); the caller's.
    #[error("failed_precondition: {0}")]
    Precondition(String),
    /// The configuration changed since the caller read it (409).
    #[error("aborted: the machine's current version is {current}, not {asked}; read it again")]
    Version {
        /// The version now.
        current: String,
        /// The version that the caller named.
        asked: String,
    },
    /// The wanted state was not reached in time (408).
    #[error("deadline_exceeded: machine failed to reach desired state, {wanted}, currently {current}")]
    Deadline {
        /// The states that were waited for.
        wanted: String,
        /// The state at the end.
        current: MachineState,
    },
    /// The wanted state will not be reached without another call (412).
    #[error("failed_precondition: machine can't reach state {wanted}, it is {current}: {why}")]
    Unreachable {
        /// The states that were waited for.
        wanted: String,
        /// The state it is in.
        current: MachineState,
        /// The last thing that went wrong.
        why: String,
    },
    /// The node could not write its store, or is shutting down (503).
    #[error("unavailable: {0}")]
    Unavailable(String),
}

impl MachineError {
    /// The HTTP status of the API's answer.
    pub fn status(&self) -> u16 {
        match self {
            Self::NotFound(_) => 404,
            Self::Invalid(_) => 400,
            Self::NotProvided(_) => 501,
            Self::Precondition(_) | Self::Unreachable { .. } => 412,
            Self::Version { .. } => 409,
            Self::Deadline { .. } => 408,
            Self::Unavailable(_) => 503,
        }
    }
}
