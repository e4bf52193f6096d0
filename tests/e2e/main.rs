//! The built program, from outside: `skein up`, requests, faults, bad input. What these tests use is
//! what DESIGN section 8 promises to scripts, and nothing else.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod explain;
mod faults;
mod lifecycle;
mod machines;
mod queue;
mod routing;
mod waiting;
mod waking;
