//! Exits in words and as events.

use serde_json::{Value, json};
use skein_core::restart::Exit;

/// An exit in words.
pub(super) fn describe(exit: Option<Exit>) -> String {
    match exit {
        Some(Exit::Code(code)) => format!("its process exited with code {code}; see its log"),
        Some(Exit::Signal(signal)) => format!("its process was killed by signal {signal}; see its log"),
        None => "its machine-init ended without a word".into(),
    }
}

/// The `request` of an exit event, in the shape of Fly's.
pub(super) fn exit_event(exit: Option<Exit>, requested_stop: bool, restarting: bool) -> Value {
    let (code, signal) = match exit {
        Some(Exit::Code(code)) => (code, -1),
        Some(Exit::Signal(signal)) => (128 + signal, signal),
        None => (-1, -1),
    };
    json!({"exit_event": {
        "requested_stop": requested_stop, "restarting": restarting, "exit_code": code, "signal": signal,
        "guest_exit_code": code, "guest_signal": signal, "oom_killed": false,
        "error": if exit.is_none() { describe(exit) } else { String::new() },
    }})
}
