//! Connections to Machines.

pub(crate) mod connect;
pub(crate) mod pool;
