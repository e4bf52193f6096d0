//! What the core asks of its actor.

use serde_json::Value;
use skein_core::machine::MachineState;

use super::Source;

/// Something to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// The state changed, or something happened in it: note the event, publish, persist.
    Changed(Happening),
    /// Start the process as run `run`.
    Launch {
        /// Numbers from 1 within the actor's life.
        run: u64,
    },
    /// Take over what a former life of the node left as run `run`, or lose it; its process is to wait.
    Reclaim {
        /// As for a launch.
        run: u64,
    },
    /// Make the process and everything that came from it wait.
    Suspend {
        /// The run.
        run: u64,
    },
    /// Let them go on.
    Resume {
        /// The run.
        run: u64,
    },
    /// Say [`super::Input::Idle`] once nothing is in flight.
    AwaitIdle {
        /// The run.
        run: u64,
    },
    /// Send the process a signal.
    Signal {
        /// The run.
        run: u64,
        /// The signal's number.
        signal: i32,
    },
    /// SIGKILL the process and everything that came from it.
    Kill {
        /// The run.
        run: u64,
    },
    /// It is destroyed: nothing of it is kept.
    Forget,
}

impl Effect {
    pub(super) fn is_change(&self) -> bool {
        matches!(self, Self::Changed(_))
    }
}

/// A change of state, as an event tells it.
#[derive(Debug, Clone, PartialEq)]
pub struct Happening {
    /// `launch`, `start`, `stop`, `exit`, `restart`, `suspend`, `update`,
    /// `destroy`, `unreachable`.
    pub kind: &'static str,
    /// The new state.
    pub state: MachineState,
    /// Who caused it.
    pub source: Source,
    /// What caused it.
    pub request: Option<Value>,
}

/// A call that the state does not allow, in the API's words; the caller caused it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failed_precondition: {0}")]
pub struct Refusal(pub String);
