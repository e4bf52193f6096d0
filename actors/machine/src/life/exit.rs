//! Exits in words and as events.

use serde_json::{Value, json};
use skein_core::restart::Exit;

/// An exit in words, with what the process `wrote` last.
pub(super) fn describe(exit: Option<Exit>, wrote: &str) -> String {
    let more = if wrote.is_empty() { "see its log".to_owned() } else { format!("it last wrote: {wrote}") };
    match exit {
        Some(Exit::Code(code)) => format!("its process exited with code {code}; {more}"),
        Some(Exit::Signal(signal)) => format!("its process was killed by signal {signal}; {more}"),
        None => "its machine-init ended without a word".into(),
    }
}

/// The `request` of an exit event, in the shape of Fly's.
pub(super) fn exit_event(exit: Option<Exit>, wrote: &str, requested_stop: bool, restarting: bool) -> Value {
    let failed = exit.is_none_or(|exit| !exit.is_success() && !requested_stop);
    let (code, signal) = match exit {
        Some(Exit::Code(code)) => (code, -1),
        Some(Exit::Signal(signal)) => (128 + signal, signal),
        None => (-1, -1),
    };
    json!({"exit_event": {
        "requested_stop": requested_stop, "restarting": restarting, "exit_code": code, "signal": signal,
        "guest_exit_code": code, "guest_signal": signal, "oom_killed": false,
        "error": if failed { describe(exit, wrote) } else { String::new() },
    }})
}
