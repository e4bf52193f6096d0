//! Programs that were not written for Skein, unchanged, installed from their registries. Where one
//! cannot be had, its test prints SKIPPED and the reason; CI allows none.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

#[path = "../support/mod.rs"]
mod support;

mod grpc;
mod install;
mod s01_curl;
mod s02_h2;
mod s03_litefs;
mod s04_fly_admin;
mod s08_kill;
mod s09_traces;
mod slow;
mod websockets;
