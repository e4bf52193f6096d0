//! The program's parts: command line, node assembly, API server, telemetry, the sample app.
//!
//! `skein-core` decides, `skein-cluster` knows, `actors/*` do; here they are put together.

pub mod api;
pub mod cli;
pub mod hello;
pub mod node;
pub mod telemetry;
