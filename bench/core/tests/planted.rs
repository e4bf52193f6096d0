//! A slow-down that is planted must be found. Needs valgrind.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_skein-bench-core");

fn compare(planted: bool) -> (bool, String) {
    let mut command = Command::new(PROGRAM);
    command.args(["compare", "--base", PROGRAM, "replay"]).args(planted.then_some("--planted"));
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text.into_owned())
}

#[test]
fn a_build_beside_itself_passes_and_a_planted_slow_down_does_not() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        return skipped();
    }
    let (passed, text) = compare(false);
    assert!(passed && text.contains("replay") && !text.contains("DEARER"), "{text}");
    let (passed, text) = compare(true);
    assert!(!passed && text.contains("DEARER"), "{text}");
}

/// Where `CI` is `true` nothing may be skipped; elsewhere the runner counts what the file names.
#[expect(clippy::disallowed_methods, reason = "how the runner of tests speaks to them")]
#[expect(clippy::print_stdout, reason = "the runner shows what a test prints")]
fn skipped() {
    const WHY: &str = "a planted slow-down: valgrind is not installed";
    assert!(std::env::var("CI").as_deref() != Ok("true"), "CI allows no skip; {WHY}");
    println!("SKIPPED {WHY}");
    if let Ok(file) = std::env::var("SKEIN_SKIPPED") {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(file).unwrap();
        std::io::Write::write_all(&mut file, format!("{WHY}\n").as_bytes()).unwrap();
    }
}
