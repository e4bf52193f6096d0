//! The one place that reads clocks; everything below takes `now` as a parameter.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The monotonic clock.
#[expect(clippy::disallowed_methods, reason = "the shell samples the clock here and hands it down")]
pub fn now() -> Instant {
    Instant::now()
}

/// The monotonic clock of decisions (load estimates, ages of facts): milliseconds since its first
/// use in this process, plus one, so never 0.
pub fn monotonic_ms() -> u64 {
    ms(now())
}

/// A reading of the monotonic clock as [`monotonic_ms`] tells it.
pub fn ms(reading: Instant) -> u64 {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    reading.saturating_duration_since(*EPOCH.get_or_init(now)).as_millis() as u64 + 1
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
