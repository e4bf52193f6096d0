//! The part of a configuration that decides over a Machine's life.

use std::time::Duration;

use skein_core::machine::{GoDuration, MachineConfig, RestartPolicy};
use skein_core::restart::DEFAULT_RETRIES;

/// The longest kill timeout (SPEC RUN-5).
pub const MAX_KILL_TIMEOUT: Duration = Duration::from_secs(300);
/// The kill timeout when nothing is said (SPEC RUN-5).
pub const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Restart and stop settings, defaults applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// When an exit is followed by a start.
    pub policy: RestartPolicy,
    /// Restarts within five minutes.
    pub max_retries: u32,
    /// Destroyed instead of left stopped.
    pub auto_destroy: bool,
    /// The first signal of a stop.
    pub kill_signal: i32,
    /// Time between it and SIGTERM.
    pub kill_timeout: Duration,
}

impl Settings {
    /// The settings of a configuration.
    ///
    /// # Errors
    /// The reason, when the signal does not exist or the timeout is too long.
    pub fn of(config: &MachineConfig) -> Result<Self, String> {
        let stop = config.stop_config.as_ref();
        let kill_signal = match stop.and_then(|stop| stop.signal.as_deref()) {
            None | Some("") => libc::SIGINT,
            Some(name) => signal_number(name)?,
        };
        let kill_timeout = match stop.and_then(|stop| stop.timeout) {
            None => KILL_TIMEOUT,
            Some(GoDuration(timeout)) if timeout <= MAX_KILL_TIMEOUT => timeout,
            Some(timeout) => {
                return Err(format!("stop_config.timeout is {timeout}; at most 300s are allowed"));
            }
        };
        Ok(Self {
            // A Machine that destroys itself is not restarted unless it says so.
            policy: config.restart.policy.unwrap_or(if config.auto_destroy {
                RestartPolicy::No
            } else {
                RestartPolicy::OnFailure
            }),
            max_retries: config.restart.max_retries.unwrap_or(DEFAULT_RETRIES),
            auto_destroy: config.auto_destroy,
            kill_signal,
            kill_timeout,
        })
    }
}

/// The number of a signal given as `SIGTERM`, `term` or `15`.
///
/// # Errors
/// The reason, when there is no such signal.
pub fn signal_number(name: &str) -> Result<i32, String> {
    if let Ok(number) = name.parse::<i32>() {
        return nix::sys::signal::Signal::try_from(number)
            .map(|signal| signal as i32)
            .map_err(|_| format!("there is no signal {number}"));
    }
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    full.parse::<nix::sys::signal::Signal>()
        .map(|signal| signal as i32)
        .map_err(|_| format!("there is no signal {name:?}; write for example \"SIGTERM\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_in_every_spelling_and_nonsense_is_named() {
        for name in ["SIGTERM", "term", "TERM", "15"] {
            assert_eq!(signal_number(name), Ok(15));
        }
        for name in ["", "SIGDONUT", "0", "-1", "900"] {
            assert!(signal_number(name).is_err(), "{name}");
        }
    }

    #[test]
    fn defaults_are_those_of_the_reference_and_a_long_timeout_is_refused() {
        let config: MachineConfig = serde_json::from_str("{}").unwrap();
        let settings = Settings::of(&config).unwrap();
        assert_eq!(settings.kill_signal, libc::SIGINT);
        assert_eq!(settings.kill_timeout, KILL_TIMEOUT);
        assert_eq!((settings.policy, settings.max_retries), (RestartPolicy::OnFailure, 10));
        let long: MachineConfig = serde_json::from_str(r#"{"stop_config":{"timeout":"301s"}}"#).unwrap();
        assert!(Settings::of(&long).is_err());
    }
}
