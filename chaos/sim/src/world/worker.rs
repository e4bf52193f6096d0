//! The worker's side of requests, on the production's [`admit`].

use skein_cluster::admission::{Asked, admit};
use skein_core::code::ErrorCode;
use skein_core::wire::{RefuseReason, Target};
use skein_core::{MachineId, NodeNumber};

use super::{Event, Open, Packet, World};
use crate::invariants;
use crate::node::Work;
use crate::request::PORT;

/// So many others are served at most while an edge waits and asks. An edge whose waiting requests all try
/// elsewhere when its turn comes loses it, so this is some rounds of all slots, not one.
const STARVED: u32 = 40;

impl World {
    /// A request has come to a worker.
    pub(super) fn open(&mut self, number: NodeNumber, from: NodeNumber, open: Open) {
        let now = self.now();
        let Open { request, attempt, edge, hops, hop, app, machine, post, takes, instruction, .. } = open;
        let Some(node) = self.nodes.get(&number) else { return };
        let target = Target::Machine(machine);
        let admission = if node.drains() {
            Err((RefuseReason::Draining, 0))
        } else {
            admit(&node.local, Asked { app, port: PORT, target, hops, edge }, self.clock.instant(now))
                .map_err(|refused| (refused.reason, refused.load))
        };
        let admission = match admission {
            Ok(admission) => admission,
            Err((reason, load)) => {
                if reason == RefuseReason::Full {
                    let verdict = self.reference.refuses(now, machine, edge);
                    self.judge(invariants::full_for_it(machine, edge, verdict));
                    self.watch_slots(number, machine);
                }
                self.send(number, from, Packet::Refused { request, attempt, reason, load }, 0);
                return;
            }
        };
        let machine = admission.machine.id;
        let load = admission.permit.in_flight();
        let running = self.reference.begins(now, machine);
        let (of, hard) = self.reference.of(machine).unwrap_or((admission.machine.app, None));
        self.judge(invariants::delivered_to_its_app(request, app, machine, of));
        self.judge(invariants::within_hard_limit(machine, running, hard));
        let taken = self.reference.takes(now, machine, edge);
        self.judge(invariants::kept_for_whom_it_was_offered(machine, edge, taken));
        self.judge(invariants::nobody_starves(machine, taken, STARVED));
        self.note(format_args!("request {request} of {edge}: {machine} takes it, {running} in flight"));
        let times = self.reference.executes(request, hop);
        self.judge(invariants::executed_at_most_once(request, hop, !post, times));
        self.works += 1;
        let work = self.works;
        let not_before = self.send(number, from, Packet::Admitted { request, attempt, load }, 0);
        let key = (from, request, attempt);
        let permit = admission.permit;
        if let Some(node) = self.nodes.get_mut(&number) {
            node.work.insert(work, Work { from: key, machine, permit, instruction, not_before });
            if let Some(life) = node.life {
                self.agenda.after(takes, Event::Served(number, life, work));
            }
        }
        self.reclass(number, machine);
    }

    /// A Machine has finished with a work.
    pub(super) fn served(&mut self, number: NodeNumber, work: u64) {
        let now = self.now();
        let Some(work) = self.nodes.get_mut(&number).and_then(|node| node.work.remove(&work)) else { return };
        let Work { from: (edge, request, attempt), machine, permit, instruction, not_before } = work;
        let load = permit.in_flight();
        drop(permit);
        self.reference.ends(now, machine);
        self.freed(number, machine);
        self.send(number, edge, Packet::Head { request, attempt, load, instruction }, not_before);
        self.reclass(number, machine);
    }

    /// A Machine's process has ended under what it served.
    pub(super) fn break_off(&mut self, number: NodeNumber, machine: MachineId) {
        let now = self.now();
        let Some(node) = self.nodes.get_mut(&number) else { return };
        let broken: Vec<u64> =
            node.work.iter().filter(|(_, work)| work.machine == machine).map(|(key, _)| *key).collect();
        let broken: Vec<Work> = broken.into_iter().filter_map(|key| node.work.remove(&key)).collect();
        for Work { from: (edge, request, attempt), not_before, .. } in broken {
            self.reference.ends(now, machine);
            let reset = Packet::Reset { request, attempt, code: ErrorCode::PU02, reached_app: true };
            self.send(number, edge, reset, not_before);
        }
        self.freed(number, machine);
        self.reclass(number, machine);
    }

    /// The class of a Machine's load may have changed.
    fn reclass(&mut self, number: NodeNumber, id: MachineId) {
        let Some(machine) = self.nodes.get_mut(&number).and_then(|node| node.machines.get_mut(&id)) else {
            return;
        };
        let Some((_, service, _)) = machine.config.tcp_service(PORT) else { return };
        let class = machine.class.next(machine.slots.in_flight(), service.limits());
        if class != machine.class {
            machine.class = class;
            self.tell(number, id);
        }
    }
}
