//! Autostop and autostart: which Machines stop, which are started, who decides it, and when a request
//! waits for a start (SPEC AUTO-1, AUTO-2, AUTO-3, AUTO-4).
//!
//! What: decisions on one view of the cluster. What not: timers, questions to other nodes, the Machines
//! themselves. An edge judges each request ([`wake`]) and tells its demand to the node that decides for the
//! app in a region ([`decider`]), which starts what the load needs ([`start`]) and now and then stops
//! what it does not need ([`stop`]). A Machine's own node has the last word ([`stop::may_rest`]).
//!
//! Source: `launch/autostop-autostart` and `reference/fly-proxy-autostop-autostart` of `superfly/docs`.

use crate::machine::{Autostop, MachineConfig};
use crate::region::RegionCode;
use crate::snapshot::{MachineView, Snapshot};

pub mod decider;
pub mod start;
pub mod stop;
pub mod wake;

/// The variable of a configuration that names the app's primary region.
pub const PRIMARY_REGION: &str = "PRIMARY_REGION";

/// How a Machine comes to rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rest {
    /// Its process ends.
    Stop,
    /// Its process and memory are kept, where that is possible.
    Suspend,
}

/// How it comes to rest by idleness; `None` when it never does.
///
/// A service that says `off`, or nothing, keeps its Machine up, whatever the others say ("If `off`, Fly
/// Proxy will never stop Machines"); it is suspended only if all of them say so.
pub fn rest(config: &MachineConfig) -> Option<Rest> {
    let mut rests = config.services.iter().map(|service| match service.autostop {
        Some(Autostop::Stop) => Some(Rest::Stop),
        Some(Autostop::Suspend) => Some(Rest::Suspend),
        Some(Autostop::Off) | None => None,
    });
    rests.next()?.and_then(|first| rests.try_fold(first, |rest, next| Some(rest.min(next?))))
}

/// How many Machines of its kind run in that region at least: `min_machines_running` in the primary
/// region, 0 in others ("It has no effect on other regions"). A configuration that names no primary
/// region says it of every one.
pub fn floor(config: &MachineConfig, region: RegionCode) -> u32 {
    let elsewhere = config
        .env
        .get(PRIMARY_REGION)
        .and_then(|primary| primary.parse::<RegionCode>().ok())
        .is_some_and(|primary| primary != region);
    let least = config.services.iter().filter_map(|service| service.min_machines_running).max();
    if elsewhere { 0 } else { least.unwrap_or(0) }
}

/// Whether traffic on that public port may start the Machine (SPEC AUTO-3).
pub fn starts_on(config: &MachineConfig, port: u16) -> bool {
    config.tcp_service(port).is_some_and(|(_, service, _)| service.starts_on_traffic())
}

/// Whether traffic on any port may start the Machine.
pub fn starts(config: &MachineConfig) -> bool {
    config.services.iter().any(|service| service.is_tcp() && service.starts_on_traffic())
}

/// Whether a Machine's node can act now: it is alive and takes new requests.
fn node_acts(machine: &MachineView, snapshot: &Snapshot) -> bool {
    snapshot.nodes.get(&machine.node).is_some_and(|node| node.alive && !node.record.draining)
}

#[cfg(test)]
mod tests;
