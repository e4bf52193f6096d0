//! What the black-box tests share: clusters run by the built program, an HTTP client that changes
//! nothing, processes, and waits on conditions.

#![allow(dead_code, unused_imports, reason = "each test program uses a part of it")]

pub(crate) mod cluster;
pub(crate) mod http;
pub(crate) mod process;

use std::fmt::Debug;
use std::io::Write;
use std::time::Duration;

pub(crate) use cluster::Cluster;
pub(crate) use http::{Reply, Request};

/// The deadline of conditions that hold within a second on an idle machine.
pub(crate) const SOON: Duration = Duration::from_secs(30);

pub(crate) use skein_cluster::clock::now;

/// Waits until `probe` gives a value; panics after `deadline` with the last thing that it said.
#[track_caller]
pub(crate) fn eventually<T, E: Debug>(
    what: &str,
    deadline: Duration,
    mut probe: impl FnMut() -> Result<T, E>,
) -> T {
    let end = now() + deadline;
    loop {
        match probe() {
            Ok(value) => return value,
            Err(last) if now() >= end => panic!("{what}: not within {deadline:?}; at last: {last:#?}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the tests' own switches")]
pub(crate) fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// By how much long checks are longer than CI's (`SKEIN_SCALE`, as `just soak` sets it).
pub(crate) fn scale() -> f64 {
    let scale = env("SKEIN_SCALE").map_or(1.0, |text| text.parse().expect("SKEIN_SCALE is a number"));
    assert!(scale > 0.0, "SKEIN_SCALE is above 0");
    scale
}

/// Says that a test did not run, and why. Where `CI` is `true` that is a failure; elsewhere a line
/// is added to the file that `SKEIN_SKIPPED` names, for the runner to count.
#[track_caller]
#[expect(clippy::print_stdout, reason = "the runner shows what a test prints")]
pub(crate) fn skipped(test: &str, reason: &str) {
    println!("SKIPPED {test}: {reason}");
    assert!(env("CI").as_deref() != Some("true"), "CI allows no skip; {test}: {reason}");
    if let Some(file) = env("SKEIN_SKIPPED") {
        let open = std::fs::OpenOptions::new().create(true).append(true).open(&file);
        let mut file = open.unwrap_or_else(|error| panic!("open {file}: {error}"));
        writeln!(file, "{test}: {reason}").expect("write the skip");
    }
}
