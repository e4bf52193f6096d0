//! Which state may follow which (SPEC RUN-1).

use skein_core::machine::MachineState;

use MachineState as S;

/// Whether a Machine may go from one state to another.
pub fn allowed(from: MachineState, to: MachineState) -> bool {
    #[allow(clippy::wildcard_enum_match_arm, reason = "states of parts that do not exist here lead nowhere")]
    match from {
        S::Created => matches!(to, S::Starting | S::Stopped | S::Destroying),
        S::Starting => matches!(
            to,
            S::Started
                | S::Stopping
                | S::Stopped
                | S::Restarting
                | S::Updating
                | S::Failed
                | S::LaunchFailed
                | S::Destroying
        ),
        S::Started => {
            matches!(
                to,
                S::Stopping | S::Stopped | S::Suspending | S::Restarting | S::Updating | S::Destroying
            )
        }
        S::Suspending | S::Suspended => {
            matches!(
                to,
                S::Suspended
                    | S::Starting
                    | S::Stopping
                    | S::Stopped
                    | S::Restarting
                    | S::Updating
                    | S::Destroying
            ) && from != to
        }
        S::Restarting | S::Updating => {
            matches!(to, S::Starting | S::Stopping | S::Stopped | S::Restarting | S::Updating | S::Destroying)
                && from != to
        }
        S::Stopping => matches!(to, S::Stopped | S::Destroying),
        S::Stopped | S::Failed | S::LaunchFailed => {
            matches!(to, S::Starting | S::Stopped | S::Destroying) && from != to
        }
        S::Destroying => to == S::Destroyed,
        _ => false,
    }
}
