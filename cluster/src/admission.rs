//! Admission: whether a worker takes a request for one of its Machines (SPEC LB-5).
//!
//! The worker is the truth about its Machines. What it refuses, it refuses before anything of a body
//! is read, with the reason and its exact load. Pure: the edge's shell and the simulator call it.

use std::sync::Arc;
use std::time::Instant;

use imbl::OrdMap;
use skein_core::load::Permit;
use skein_core::machine::MachineState;
use skein_core::wire::{RefuseReason, Refused, Target};
use skein_core::{AppId, MachineId, NodeNumber};

use crate::local::LocalMachine;

/// Nodes that may have passed a request on before this one (SPEC LB-8, DESIGN section 4).
pub const MAX_HOPS: u8 = 1;

/// A request that was taken, and its slot.
#[derive(Debug)]
pub struct Admission {
    /// The Machine.
    pub machine: Arc<LocalMachine>,
    /// Index of the service in its configuration.
    pub service: usize,
    /// Its slot, given back when dropped.
    pub permit: Permit,
}

/// What is asked of a worker.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// The app.
    pub app: AppId,
    /// The public port, which names the service.
    pub port: u16,
    /// Which Machine.
    pub target: Target,
    /// Nodes that it has passed.
    pub hops: u8,
    /// The edge that holds the client: who waits, if it must.
    pub edge: NodeNumber,
}

/// Takes a request or connection for a Machine of this node: finds the Machine, takes a slot.
///
/// # Errors
/// [`Refused`]: nothing reached the Machine.
pub fn admit(
    machines: &OrdMap<MachineId, Arc<LocalMachine>>,
    asked: Asked,
    now: Instant,
) -> Result<Admission, Refused> {
    let Asked { app, port, target, hops, edge } = asked;
    let refuse = |reason| Refused { reason, age_ms: 0, load: 0 };
    if hops > MAX_HOPS {
        return Err(refuse(RefuseReason::Hops));
    }
    match target {
        Target::Machine(id) => {
            let machine = machines.get(&id).filter(|machine| machine.app == app);
            take(machine.ok_or_else(|| refuse(RefuseReason::Unknown))?, port, edge, now)
        }
        Target::Any => {
            let mut mine: Vec<_> = machines.values().filter(|machine| machine.app == app).collect();
            mine.sort_by_key(|machine| load(machine, port));
            let mut last = refuse(RefuseReason::Unknown);
            for machine in mine {
                match take(machine, port, edge, now) {
                    Ok(taken) => return Ok(taken),
                    // What is full may have room soon: the most hopeful reason is told.
                    Err(refused) if last.reason != RefuseReason::Full => last = refused,
                    Err(_) => {}
                }
            }
            Err(last)
        }
    }
}

/// In flight ÷ soft limit in millionths: orders the Machines of one node.
fn load(machine: &LocalMachine, port: u16) -> u64 {
    let Some((index, service, _)) = machine.config.tcp_service(port) else { return u64::MAX };
    let in_flight = machine.slots.get(index).map_or(0, |slots| slots.in_flight());
    u64::from(in_flight) * 1_000_000 / u64::from(service.limits().soft.max(1))
}

fn take(
    machine: &Arc<LocalMachine>,
    port: u16,
    edge: NodeNumber,
    now: Instant,
) -> Result<Admission, Refused> {
    let age_ms = now.saturating_duration_since(machine.since).as_millis() as u64;
    let refuse = |reason, load| Refused { reason, age_ms, load };
    if machine.state != MachineState::Started {
        return Err(refuse(RefuseReason::Stopped, 0));
    }
    if machine.cordoned {
        return Err(refuse(RefuseReason::Cordoned, 0));
    }
    if !machine.healthy {
        return Err(refuse(RefuseReason::Unhealthy, 0));
    }
    let (index, service, _) =
        machine.config.tcp_service(port).ok_or_else(|| refuse(RefuseReason::NoService, 0))?;
    let slots = machine.slots.get(index).ok_or_else(|| refuse(RefuseReason::NoService, 0))?;
    match slots.take(service.limits().hard, edge, now) {
        Some(permit) => Ok(Admission { machine: Arc::clone(machine), service: index, permit }),
        None => Err(Refused { reason: RefuseReason::Full, age_ms: 0, load: slots.in_flight() }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use skein_core::load::Slots;
    use skein_core::machine::MachineConfig;
    use ulid::Ulid;

    use super::*;
    use crate::clock;
    use crate::local::Upstream;

    const WEB: AppId = AppId(Ulid(1));

    fn machine(id: u64, hard: u32) -> LocalMachine {
        let config = format!(
            r#"{{"image":"skein/hello","services":[{{"protocol":"tcp","internal_port":8080,
                "ports":[{{"port":80,"handlers":["http"]}}],
                "concurrency":{{"type":"requests","hard_limit":{hard}}}}}]}}"#
        );
        let config: MachineConfig = serde_json::from_str(&config).unwrap();
        LocalMachine {
            id: MachineId::from_bits(id),
            app: WEB,
            config: Arc::new(config),
            state: MachineState::Started,
            healthy: true,
            cordoned: false,
            since: clock::now(),
            upstream: Upstream::Loopback(BTreeMap::new()),
            slots: vec![Arc::new(Slots::default())],
        }
    }

    fn asked(target: Target) -> Asked {
        Asked { app: WEB, port: 80, target, hops: 0, edge: NodeNumber(1) }
    }

    fn of(machines: Vec<LocalMachine>) -> OrdMap<MachineId, Arc<LocalMachine>> {
        machines.into_iter().map(|machine| (machine.id, Arc::new(machine))).collect()
    }

    fn refusal(machine: LocalMachine, app: AppId, port: u16, hops: u8) -> RefuseReason {
        let target = Target::Machine(machine.id);
        let asked = Asked { app, port, target, hops, edge: NodeNumber(1) };
        let refused = admit(&of(vec![machine]), asked, clock::now());
        refused.expect_err("it must not be taken").reason
    }

    #[test]
    fn lb_5_a_slot_is_taken_up_to_the_hard_limit_and_comes_back() {
        let machines = of(vec![machine(1, 2)]);
        let take = || admit(&machines, asked(Target::Machine(MachineId::from_bits(1))), clock::now());
        let first = take().unwrap();
        let second = take().unwrap();
        assert_eq!((first.permit.in_flight(), second.machine.id), (2, MachineId::from_bits(1)));
        let refused = take().unwrap_err();
        assert_eq!((refused.reason, refused.load), (RefuseReason::Full, 2));
        drop(first);
        assert_eq!(take().unwrap().permit.in_flight(), 2);
    }

    #[test]
    fn what_cannot_take_a_request_says_why() {
        let web = || machine(1, 9);
        assert_eq!(refusal(web(), AppId(Ulid(2)), 80, 0), RefuseReason::Unknown, "another app's Machine");
        assert_eq!(refusal(web(), WEB, 81, 0), RefuseReason::NoService);
        assert_eq!(refusal(web(), WEB, 80, MAX_HOPS + 1), RefuseReason::Hops);
        let stopped = LocalMachine { state: MachineState::Stopped, ..web() };
        assert_eq!(refusal(stopped, WEB, 80, 0), RefuseReason::Stopped);
        assert_eq!(refusal(LocalMachine { cordoned: true, ..web() }, WEB, 80, 0), RefuseReason::Cordoned);
        assert_eq!(refusal(LocalMachine { healthy: false, ..web() }, WEB, 80, 0), RefuseReason::Unhealthy);
    }

    #[test]
    fn any_machine_means_the_least_loaded_and_full_is_the_most_hopeful_refusal() {
        let machines = of(vec![machine(1, 2), machine(2, 2)]);
        let any = || admit(&machines, asked(Target::Any), clock::now());
        let taken: Vec<_> = (0..4).map(|_| any().unwrap()).collect();
        let on_first = taken.iter().filter(|seat| seat.machine.id == MachineId::from_bits(1)).count();
        assert_eq!(on_first, 2, "evenly");
        assert_eq!(any().unwrap_err().reason, RefuseReason::Full);
        let stopped = LocalMachine { state: MachineState::Stopped, ..machine(3, 2) };
        let full = machine(1, 0);
        let machines = of(vec![full, stopped]);
        let refused = admit(&machines, asked(Target::Any), clock::now()).unwrap_err();
        assert_eq!(refused.reason, RefuseReason::Full);
    }
}
