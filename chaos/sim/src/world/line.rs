//! Requests that wait at edges, and hints of workers that they have room (SPEC LB-4): the shells of
//! `core::queue` and `core::turns`, and what the reference model is told of them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use skein_core::queue::POLL;
use skein_core::{AppId, MachineId, NodeNumber};

use super::{Event, Packet, World};
use crate::agenda::{Micros, SECOND, micros};
use crate::invariants;
use crate::request::{Desk, Did, PORT, Turn};

/// An edge may take so long to say whether somebody waits: the production's.
const ANSWER: Micros = 2 * SECOND;

impl World {
    /// What a request did is judged, and the reference model is told.
    pub(super) fn did(&mut self, edge: NodeNumber, request: u64, did: Did) {
        let now = self.now();
        match did {
            Did::Decided(decided) => {
                self.counts.decisions += 1;
                let verdict = invariants::decided_well(&decided, &self.regions);
                self.judge(verdict);
            }
            Did::Joined(app, wants, want) => self.reference.joins(now, edge, request, app, (wants, want)),
            Did::Waits { first, until } => self.waits(edge, request, first, until),
            Did::Tries => {
                let ahead = self.reference.tries(edge, request);
                self.judge(invariants::in_their_order(edge, request, ahead));
            }
            Did::Passes(app, want) => {
                let ahead = self.reference.passes(edge, app, &want);
                self.judge(invariants::in_their_order(edge, request, ahead));
            }
            Did::Retries(app) => {
                let spent = self.reference.retries(now, edge, app);
                self.judge(invariants::retried_within_budget(edge, app, spent));
            }
        }
    }

    fn waits(&mut self, edge: NodeNumber, request: u64, first: bool, until: Micros) {
        self.reference.waits_on(edge, request);
        let Some(node) = self.nodes.get(&edge) else { return };
        let (Some(life), Some(held)) = (node.life, node.held.get(&request)) else { return };
        let wait = Some(held.running.desk.borrow().waits);
        if wait == Some(1) {
            self.counts.waited += 1;
            self.note(format_args!("request {request} at {edge}: waits"));
        }
        if first {
            self.agenda.after(micros(POLL), Event::Turn(edge, life, request, wait, Turn::Poll));
        }
        self.agenda.at(until, Event::Turn(edge, life, request, wait, Turn::Late));
    }

    /// Those that were woken at an edge have their turn.
    pub(super) fn wake(&mut self, edge: NodeNumber) {
        self.begin_telling(edge);
        let Some(node) = self.nodes.get(&edge) else { return };
        let woken = node.queue.take_woken();
        let Some(life) = node.life else { return };
        for request in woken {
            let ahead = self.reference.tries(edge, request);
            self.judge(invariants::in_their_order(edge, request, ahead));
            self.agenda.after(0, Event::Turn(edge, life, request, None, Turn::Woken));
        }
    }

    /// A request that waits has its turn, unless it had another since `wait`.
    pub(super) fn turn(&mut self, edge: NodeNumber, request: u64, wait: Option<u32>, turn: Turn) {
        let Some(held) = self.nodes.get(&edge).and_then(|node| node.held.get(&request)) else { return };
        {
            let mut desk = held.running.desk.borrow_mut();
            if desk.place.is_none() || held.attempt.is_some() || wait.is_some_and(|wait| wait != desk.waits) {
                return;
            }
            desk.turn = Some(turn);
        }
        self.go_on(edge, request);
    }

    /// A request has its place no longer, if it had one.
    pub(super) fn leaves(&mut self, edge: NodeNumber, request: u64, desk: &mut Desk) {
        let now = self.now();
        let region =
            |node: NodeNumber| self.places.iter().find(|(n, _)| *n == node).map(|(_, region)| *region);
        let rtt = |node| match (region(edge), region(node)) {
            (Some(a), Some(b)) => micros(self.regions.simulated_rtt(a, b)),
            _ => 0,
        };
        let left = self.reference.served_in_turn(edge, request, desk, &self.regions, now, rtt);
        self.judge(invariants::served_when_free(edge, request, left));
        // The next one is woken once this one is gone.
        desk.place = None;
        self.wake(edge);
    }

    /// From now on the Machine tells when it has a slot.
    pub(super) fn watch_slots(&mut self, number: NodeNumber, id: MachineId) {
        let Some(machine) = self.nodes.get(&number).and_then(|node| node.machines.get(&id)) else { return };
        let freed = Arc::clone(&machine.freed);
        machine.slots.on_free(|| Box::new(move || freed.store(true, Ordering::Relaxed)));
    }

    /// Slots were given back. The production's offer is a task of its own: who comes in the microseconds
    /// before it runs may be quicker.
    pub(super) fn freed(&mut self, number: NodeNumber, id: MachineId) {
        let Some(node) = self.nodes.get(&number) else { return };
        let freed = node.machines.get(&id).is_some_and(|m| m.freed.swap(false, Ordering::Relaxed));
        if freed {
            self.offer(number, id);
        }
    }

    /// Offers what is free to the edges whose turn it is.
    pub(super) fn offer(&mut self, number: NodeNumber, id: MachineId) {
        let now = self.now();
        loop {
            let Some(node) = self.nodes.get(&number) else { return };
            let (Some(life), Some(machine)) = (node.life, node.machines.get(&id)) else { return };
            let Some((_, service, _)) = machine.config.tcp_service(PORT) else { return };
            let Some(hard) = service.limits().hard else { return };
            let (slots, app) = (Arc::clone(&machine.slots), machine.app);
            let mut refused = false;
            for edge in slots.offer(hard, self.clock.instant(now)) {
                self.reference.offers(now, id, edge);
                if edge != number {
                    self.hints += 1;
                    let told = self.hints;
                    let room = Packet::Room { told, app, machine: id, load: slots.in_flight() };
                    self.send(number, edge, room, 0);
                    self.agenda.after(ANSWER, Event::Untold(number, life, told));
                    if let Some(node) = self.nodes.get_mut(&number) {
                        node.told.insert(told, (id, edge));
                    }
                } else if !self.here(number, app, id) {
                    slots.withdraw(edge);
                    self.reference.withdraws(now, id, edge);
                    refused = true;
                }
            }
            if !refused {
                return;
            }
        }
    }

    /// Wakes who waits at an edge for that Machine; whether somebody does.
    fn here(&mut self, edge: NodeNumber, app: AppId, id: MachineId) -> bool {
        let Some(node) = self.nodes.get(&edge) else { return false };
        let region = self.nodes.values().find(|node| node.machines.contains_key(&id)).map(|node| node.region);
        let Some(region) = region else { return false };
        let within = |name: &str, region| self.regions.matches(name, region) == Some(true);
        let waits = node.queue.room((app, PORT), |want| want.takes(id, region, within));
        self.wake(edge);
        waits
    }

    /// An edge is told of room, and answers whether somebody waits.
    pub(super) fn room(
        &mut self,
        from: NodeNumber,
        to: NodeNumber,
        told: u64,
        app: AppId,
        id: MachineId,
        load: u32,
    ) {
        let Some(node) = self.nodes.get(&to) else { return };
        let machine = node.snapshot.machine(id).filter(|machine| machine.record.app == app);
        let known = machine.is_some_and(|machine| {
            machine.estimate.tell(load, self.clock.ms());
            machine.config.as_ref().is_some_and(|config| config.tcp_service(PORT).is_some())
        });
        let waits = known && self.here(to, app, id);
        self.send(to, from, Packet::Waits { told, waits }, 0);
    }

    /// An edge has answered, or has not for too long.
    pub(super) fn answered(&mut self, number: NodeNumber, told: u64, waits: bool) {
        let now = self.now();
        let Some(node) = self.nodes.get_mut(&number) else { return };
        let Some((id, edge)) = node.told.remove(&told) else { return };
        if let Some(machine) = node.machines.get(&id).filter(|_| !waits) {
            machine.slots.withdraw(edge);
            self.reference.withdraws(now, id, edge);
            self.offer(number, id);
        }
    }
}
