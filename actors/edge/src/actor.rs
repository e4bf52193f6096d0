//! The actors: a listener per public address, a connection handler per (listener, chain, core).
//! They own tasks; no request passes through a mailbox.

pub(crate) mod handler;
pub(crate) mod listener;
