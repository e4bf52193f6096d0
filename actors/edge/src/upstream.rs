//! Connections to Machines.

pub(crate) mod connect;
pub(crate) mod driven;
pub(crate) mod pool;
