//! Durations as the Machines API writes them: Go's.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A duration in the API's JSON: a Go duration string (`"15s"`, `"1m30s"`, `"500ms"`) or a number
/// of nanoseconds; written as a string (`COMPAT` 3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub Duration);

/// A text that is not a Go duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration; write for example \"15s\", \"1m30s\" or \"500ms\"")]
pub struct InvalidDuration(pub String);

impl std::str::FromStr for GoDuration {
    type Err = InvalidDuration;
    fn from_str(text: &str) -> Result<Self, InvalidDuration> {
        let invalid = || InvalidDuration(text.chars().take(40).collect());
        let mut rest = text;
        if rest == "0" {
            return Ok(Self(Duration::ZERO));
        }
        if rest.is_empty() || rest.len() > 64 {
            return Err(invalid());
        }
        let mut nanos = 0f64;
        while !rest.is_empty() {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
            let number: f64 = rest[..end].parse().map_err(|_| invalid())?;
            rest = &rest[end..];
            let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
            let unit = match &rest[..end] {
                "ns" => 1.0,
                "us" | "µs" | "μs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return Err(invalid()),
            };
            nanos += number * unit;
            rest = &rest[end..];
        }
        if nanos > i64::MAX as f64 {
            return Err(invalid());
        }
        Ok(Self(Duration::from_nanos(nanos.round() as u64)))
    }
}

impl std::fmt::Display for GoDuration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nanos = self.0.as_nanos();
        if nanos == 0 {
            return f.write_str("0s");
        }
        if nanos < 1_000_000_000 {
            let (unit, name) = match nanos {
                0..1_000 => (1, "ns"),
                1_000..1_000_000 => (1_000, "µs"),
                _ => (1_000_000, "ms"),
            };
            return write!(f, "{}{name}", nanos as f64 / unit as f64);
        }
        let seconds = self.0.as_secs();
        let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if seconds >= 60 {
            write!(f, "{minutes}m")?;
        }
        let rest = nanos - u128::from(seconds / 60 * 60) * 1_000_000_000;
        write!(f, "{}s", rest as f64 / 1e9)
    }
}

impl Serialize for GoDuration {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = GoDuration;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a duration such as \"15s\", or a number of nanoseconds")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<GoDuration, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E: serde::de::Error>(self, nanos: u64) -> Result<GoDuration, E> {
                Ok(GoDuration(Duration::from_nanos(nanos)))
            }
            fn visit_i64<E: serde::de::Error>(self, nanos: i64) -> Result<GoDuration, E> {
                u64::try_from(nanos)
                    .map(|nanos| GoDuration(Duration::from_nanos(nanos)))
                    .map_err(|_| E::custom("a duration is not negative"))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn go_durations_are_read_as_go_reads_them_and_printed_back() {
        let read = |text: &str| text.parse::<GoDuration>().unwrap().0;
        assert_eq!(read("1m21s"), Duration::from_secs(81));
        assert_eq!(read("500ms"), Duration::from_millis(500));
        assert_eq!(read("1.5h"), Duration::from_secs(5400));
        assert_eq!(GoDuration(Duration::from_secs(5400)).to_string(), "1h30m0s");
        assert_eq!(GoDuration(Duration::from_millis(1500)).to_string(), "1.5s");
        for bad in ["", "5", "s", "5x", "-5s", "1m 2s"] {
            assert!(bad.parse::<GoDuration>().is_err(), "{bad}");
        }
        assert_eq!(serde_json::from_str::<GoDuration>("15000000000").unwrap().0, Duration::from_secs(15));
    }

    proptest! {
        #[test]
        fn every_millisecond_duration_round_trips(ms in 0u64..10_000_000) {
            let duration = GoDuration(Duration::from_millis(ms));
            prop_assert_eq!(duration.to_string().parse::<GoDuration>().unwrap(), duration);
        }

        #[test]
        fn no_text_makes_the_duration_parser_panic(text in ".{0,70}") {
            // The property is that it returns at all; what it returns must print and parse.
            if let Ok(duration) = text.parse::<GoDuration>() {
                prop_assert!(duration.to_string().parse::<GoDuration>().is_ok());
            }
        }
    }
}
