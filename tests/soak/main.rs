//! Long checks of the HTTP proxy, short in CI: `SKEIN_SCALE` makes them longer (`just soak`). Their
//! figures go to stderr, so that they can be quoted.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

#[path = "../support/mod.rs"]
mod support;

mod bulk;
mod connection;
mod cut;
mod herd;
mod load;
mod rolling;
mod servers;
mod spread;
mod steady;
mod websocket;

/// How much longer than in CI: 1 when nothing is said.
fn scale() -> f64 {
    let Some(text) = support::env("SKEIN_SCALE") else { return 1.0 };
    let scale = text.parse().ok().filter(|scale: &f64| scale.is_finite() && *scale > 0.0);
    scale.unwrap_or_else(|| panic!("SKEIN_SCALE is to be a number above 0, not {text}"))
}
