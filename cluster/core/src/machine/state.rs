//! The states of a Machine.
//!
//! Source: `machines/machine-states` of `superfly/docs`.

use serde::{Deserialize, Serialize};

/// The state of a Machine (SPEC RUN-1).
///
/// ```text
///  created ─▶ starting ─▶ started ─▶ stopping ─▶ stopped ─▶ destroying ─▶ destroyed
///                ▲           │  ▲                   │
///                │           ▼  └─ starting ◀───────┘
///                │        restarting
///                └── failed / launch_failed
///
///  started ─▶ suspending ─▶ suspended ─▶ starting ─▶ started; a stop, a restart, an update or a
///  destruction leads out of both as out of started
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names are the documented states and say what they mean")]
pub enum MachineState {
    Created,
    Creating,
    Starting,
    Started,
    Stopping,
    Stopped,
    Suspending,
    Suspended,
    Restarting,
    Updating,
    Replacing,
    Replaced,
    Failed,
    LaunchFailed,
    Destroying,
    Destroyed,
    Migrated,
}

impl MachineState {
    /// Every state, in the order of the type.
    pub const ALL: [Self; 17] = [
        Self::Created,
        Self::Creating,
        Self::Starting,
        Self::Started,
        Self::Stopping,
        Self::Stopped,
        Self::Suspending,
        Self::Suspended,
        Self::Restarting,
        Self::Updating,
        Self::Replacing,
        Self::Replaced,
        Self::Failed,
        Self::LaunchFailed,
        Self::Destroying,
        Self::Destroyed,
        Self::Migrated,
    ];

    /// The name that the API and gossip use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Creating => "creating",
            Self::Starting => "starting",
            Self::Started => "started",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Suspending => "suspending",
            Self::Suspended => "suspended",
            Self::Restarting => "restarting",
            Self::Updating => "updating",
            Self::Replacing => "replacing",
            Self::Replaced => "replaced",
            Self::Failed => "failed",
            Self::LaunchFailed => "launch_failed",
            Self::Destroying => "destroying",
            Self::Destroyed => "destroyed",
            Self::Migrated => "migrated",
        }
    }

    /// Whether a Machine in this state never leaves it.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Destroyed | Self::Replaced | Self::Migrated)
    }
}

impl std::fmt::Display for MachineState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no Machine state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a Machine state; one of created, started, stopped, suspended, destroyed, … is needed")]
pub struct UnknownState(pub String);

impl std::str::FromStr for MachineState {
    type Err = UnknownState;
    fn from_str(value: &str) -> Result<Self, UnknownState> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == value)
            .ok_or_else(|| UnknownState(value.chars().take(40).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn states_print_and_parse(index in 0usize..17) {
            let state = MachineState::ALL[index];
            prop_assert_eq!(state.to_string().parse::<MachineState>().unwrap(), state);
        }
    }
}
