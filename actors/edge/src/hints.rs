//! Tells edges that a Machine of this node has room again (SPEC LB-4).
//!
//! [`skein_core::turns`] says whose turn it is. A hint that is lost costs the edge a wait of 200 ms.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use skein_cluster::admission::Asked;
use skein_cluster::backhaul::Backhaul;
use skein_cluster::{LocalMachine, LocalReader, clock};
use skein_core::region::Regions;
use skein_core::wire::{Ask, Room, Target};
use skein_core::{MachineId, NodeNumber, RegionCode, codec};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use crate::queue::Queue;

/// How long an edge may take to say whether somebody waits there; what was kept for it is free long
/// before.
const ANSWER: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Hints {
    pub(crate) node: NodeNumber,
    pub(crate) region: RegionCode,
    pub(crate) regions: Arc<Regions>,
    pub(crate) local: LocalReader,
    pub(crate) backhaul: Backhaul,
    pub(crate) queue: Arc<Queue>,
    pub(crate) tasks: TaskTracker,
    /// Hints that found somebody waiting.
    pub(crate) useful: AtomicU64,
}

impl Hints {
    /// Somebody was refused because there was no slot: the Machines that it asked for tell from now on
    /// when they have one.
    pub(crate) fn watch(self: &Arc<Self>, asked: Asked) {
        let meant = |machine: &&Arc<LocalMachine>| {
            machine.app == asked.app && matches!(asked.target, Target::Any)
                || asked.target == Target::Machine(machine.id)
        };
        for machine in self.local.load().values().filter(meant) {
            let Some((service, ..)) = machine.config.tcp_service(asked.port) else { continue };
            let Some(slots) = machine.slots.get(service) else { continue };
            let (hints, machine) = (Arc::clone(self), machine.id);
            slots.on_free(|| {
                let told = Arc::new(AtomicBool::new(false));
                Box::new(move || hints.freed(machine, service, &told))
            });
        }
    }

    /// A slot was given back. `told` keeps it to one task for any number of slots.
    fn freed(self: &Arc<Self>, machine: MachineId, service: usize, told: &Arc<AtomicBool>) {
        // Without a runtime the node is going down.
        if let Ok(runtime) = Handle::try_current()
            && !told.swap(true, Ordering::AcqRel)
        {
            let (hints, told) = (Arc::clone(self), Arc::clone(told));
            let offer = async move {
                told.store(false, Ordering::Release);
                hints.offer(machine, service);
            };
            self.tasks.spawn_on(offer, &runtime);
        }
    }

    /// Offers what is free to the edges whose turn it is.
    fn offer(self: &Arc<Self>, id: MachineId, service: usize) {
        let machines = self.local.load();
        let Some(machine) = machines.get(&id) else { return };
        let (Some(slots), Some(config)) = (machine.slots.get(service), machine.config.services.get(service))
        else {
            return;
        };
        let Some(hard) = config.limits().hard else { return };
        loop {
            let mut refused = false;
            for edge in slots.offer(hard, clock::now()) {
                if edge == self.node && self.here(machine, service) {
                    self.useful.fetch_add(1, Ordering::Relaxed);
                } else if edge == self.node {
                    slots.withdraw(edge);
                    refused = true;
                } else {
                    let room = Room {
                        app: machine.app,
                        machine: id,
                        service: u16::try_from(service).unwrap_or(u16::MAX),
                        load: slots.in_flight(),
                    };
                    self.tasks.spawn(Arc::clone(self).tell(edge, room));
                }
            }
            if !refused {
                return;
            }
        }
    }

    /// Wakes who waits at this node's own edge.
    fn here(&self, machine: &LocalMachine, service: usize) -> bool {
        let port = |port| machine.config.tcp_service(port).is_some_and(|(index, ..)| index == service);
        let within = |name: &str, region| self.regions.matches(name, region) == Some(true);
        self.queue.room(machine.app, port, |want| want.takes(machine.id, self.region, within))
    }

    async fn tell(self: Arc<Self>, edge: NodeNumber, room: Room) {
        let (machine, service) = (room.machine, usize::from(room.service));
        let answer = self.backhaul.ask(edge, Ask::Room(room), ANSWER).await;
        // An edge that can't be asked is one that nobody waits at.
        if answer.is_ok_and(|answer| codec::decode::<bool>(&answer) == Ok(true)) {
            self.useful.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if let Some(slots) = self.local.load().get(&machine).and_then(|machine| machine.slots.get(service)) {
            slots.withdraw(edge);
            self.offer(machine, service);
        }
    }
}
