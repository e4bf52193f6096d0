//! The one place that reads clocks; everything below takes `now` as a parameter.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The monotonic clock.
#[expect(clippy::disallowed_methods, reason = "the shell samples the clock here and hands it down")]
pub fn now() -> Instant {
    Instant::now()
}

/// The wall clock: milliseconds since 1970, 0 before that.
#[expect(clippy::disallowed_methods, reason = "the shell samples the clock here and hands it down")]
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The wall clock: microseconds since 1970, 0 before that.
#[expect(clippy::disallowed_methods, reason = "the shell samples the clock here and hands it down")]
pub fn unix_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}
