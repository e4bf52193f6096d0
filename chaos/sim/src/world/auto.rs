//! Autostop and autostart (SPEC AUTO-1, AUTO-2): the shells of `core::autostop` at edges, at nodes that
//! decide and at owners, as the production's `demand`, `autostop` and `owner` are.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use skein_core::autostop::start::Demand;
use skein_core::autostop::stop::{self, Own, may_rest};
use skein_core::autostop::wake::Want;
use skein_core::autostop::{Rest, decider, floor, starts};
use skein_core::machine::MachineState;
use skein_core::suspicion::Proximity as _;
use skein_core::{AppId, MachineId, NodeNumber, RegionCode};

use super::apply::STOP;
use super::{Event, Packet, World};
use crate::agenda::{MS, Micros, SECOND};
use crate::demand::Key;
use crate::invariants;
use crate::node::{Carry, Look};
use crate::request::{PORT, Turn};

/// Between two words of an edge about one place: the production's.
const EVERY: Micros = 100 * MS;
/// An owner may take so long to answer: the production's.
const PATIENCE: Micros = SECOND;

impl World {
    /// What an edge's requests began to want is told.
    pub(super) fn begin_telling(&mut self, edge: NodeNumber) {
        let Some(node) = self.nodes.get(&edge) else { return };
        let (begun, Some(life)) = (node.demands.take_begun(), node.life) else { return };
        for key in begun {
            self.agenda.after(0, Event::Say(edge, life, key, true));
        }
    }

    /// An edge tells what it wants, if anybody still does.
    pub(super) fn say(&mut self, edge: NodeNumber, key: Key, first: bool) {
        let Some(node) = self.nodes.get(&edge) else { return };
        let Some(life) = node.life.filter(|_| first || !node.demands.ends(key)) else { return };
        self.agenda.after(EVERY, Event::Say(edge, life, key, false));
        let (waiting, (app, want)) = (node.demands.says(key), key);
        let region = match want {
            Want::Region(region) => region,
            Want::Machine(machine, owner) => {
                self.use_peer(edge, owner);
                self.send(edge, owner, Packet::Start(machine), 0);
                return;
            }
        };
        let Some(view) = node.snapshot.apps.get(&app) else { return };
        let there = view.machines.values().filter(|machine| machine.region == region);
        let in_flight: u32 = there.map(|machine| machine.estimate.own()).sum();
        let waiting = if in_flight == 0 { waiting.max(1) } else { waiting };
        let mut order = decider::deciders(view, region, &node.snapshot);
        order.sort_by_key(|node| self.nodes.get(&edge).is_some_and(|own| own.peers.suspect(*node)));
        if let Some(decider) = order.first().copied() {
            self.use_peer(edge, decider);
            self.send(edge, decider, Packet::Demand(app, region, Demand { waiting, in_flight }), 0);
        }
    }

    fn use_peer(&self, node: NodeNumber, peer: NodeNumber) {
        let peer = self.nodes.get(&node).and_then(|node| node.peers.get(peer));
        peer.into_iter().for_each(crate::peers::Peer::uses);
    }

    /// A node hears what an edge wants in its region.
    pub(super) fn demanded(
        &mut self,
        number: NodeNumber,
        edge: NodeNumber,
        app: AppId,
        region: RegionCode,
        demand: Demand,
    ) {
        let now = self.now();
        let at = self.clock.instant(now);
        let Some(node) = self.nodes.get_mut(&number) else { return };
        let place = (app, PORT, region);
        node.starter.tell(at, edge, place, demand);
        for machine in node.starter.due(at, place, &node.snapshot) {
            let needed = self.reference.starts(now, app, region, machine.id);
            self.judge(invariants::started_for_a_load(machine.id, needed));
            self.use_peer(number, machine.node);
            self.send(number, machine.node, Packet::Start(machine.id), 0);
        }
    }

    /// A Machine is to be started because traffic needs it.
    pub(super) fn wanted(&mut self, number: NodeNumber, from: NodeNumber, id: MachineId) {
        let Some(node) = self.nodes.get_mut(&number) else { return };
        let machine = node.machines.get_mut(&id).filter(|m| !m.cordoned && starts(&m.config));
        let state = machine.map(|machine| {
            machine.wanted |= matches!(machine.state, MachineState::Stopped | MachineState::Suspended);
            machine.state
        });
        let rests = matches!(state, Some(MachineState::Stopped | MachineState::Suspended));
        let begun = rests || matches!(state, Some(MachineState::Started | MachineState::Starting));
        if rests {
            self.note(format_args!("traffic starts {id}"));
            self.counts.started += 1;
            self.boot(number, id);
        }
        self.send(number, from, Packet::Begun { machine: id, begun }, 0);
    }

    /// An owner has begun a start, or has not.
    pub(super) fn begun(&mut self, number: NodeNumber, id: MachineId, begun: bool) {
        let at = self.clock.instant(self.now());
        if let Some(node) = self.nodes.get_mut(&number).filter(|_| !begun) {
            node.starter.failed(at, id);
        }
    }

    /// A node looks for what is one too many.
    pub(super) fn look_for_idle(&mut self, number: NodeNumber, life: u64) {
        let (now, ms, interval) = (self.now(), self.clock.ms(), self.setup.interval);
        let at = self.clock.instant(now);
        self.agenda.after(interval, Event::Look(number, life));
        let Some(node) = self.nodes.get_mut(&number) else { return };
        node.starter.forget(at);
        let away = node.looked.replace(now).is_some_and(|last| now - last > 3 * interval);
        let machines = &node.machines;
        node.looks.retain(|id, _| machines.contains_key(id) && !away);
        for id in node.machines.keys().copied().collect::<Vec<_>>() {
            node.see(id, now);
        }
        if away || !node.carries.is_empty() {
            return;
        }
        let (snapshot, region) = (std::sync::Arc::clone(&node.snapshot), node.region);
        let mut rounds = Vec::new();
        for app in snapshot.apps.values() {
            let here = app.machines.values().any(|machine| machine.node == number);
            if here && decider::decides(number, app, region, &snapshot) {
                let groups = stop::running(app, region, &snapshot, ms);
                let stops = groups.values().map(|running| stop::stops(running, self.setup.batch));
                rounds.extend(stops.filter(|stops| stops.count > 0).map(|stops| (app.app.id, stops)));
            }
        }
        for (app, stops) in rounds {
            let others = self.nodes.values().filter(|node| node.number != number && node.life.is_some());
            let other = others.clone().find(|other| {
                let view = other.snapshot.apps.get(&app);
                other.region == region
                    && view.is_some_and(|view| decider::decides(other.number, view, region, &other.snapshot))
            });
            let other = other.map(|node| node.number).filter(|_| self.reference.settled(now));
            self.judge(invariants::one_decides(app, region, number, other));
            self.works += 1;
            let carry = Carry { left: stops.count, among: VecDeque::from(stops.among), asked: 0 };
            if let Some(node) = self.nodes.get_mut(&number) {
                node.carries.insert(self.works, carry);
            }
            self.carry_on(number, self.works, None);
        }
    }

    /// Asks the next owner, after the last one's answer.
    pub(super) fn carry_on(&mut self, number: NodeNumber, key: u64, rested: Option<(u32, bool)>) {
        let Some(node) = self.nodes.get_mut(&number) else { return };
        let (Some(life), Some(carry)) = (node.life, node.carries.get_mut(&key)) else { return };
        if let Some((asked, rested)) = rested {
            if asked != carry.asked {
                return;
            }
            carry.left -= usize::from(rested);
        }
        let next = carry.among.pop_front().filter(|_| carry.left > 0);
        let Some((machine, owner, rest)) = next else {
            node.carries.remove(&key);
            return;
        };
        carry.asked += 1;
        let asked = carry.asked;
        self.use_peer(number, owner);
        self.send(number, owner, Packet::Rest { carry: key, asked, machine, rest }, 0);
        self.agenda.after(PATIENCE, Event::Unrested(number, life, key, asked));
    }

    /// A Machine seems to be one too many: its own node has the last word.
    pub(super) fn rest(
        &mut self,
        number: NodeNumber,
        from: NodeNumber,
        (carry, asked): (u64, u32),
        id: MachineId,
        rest: Rest,
    ) {
        let (now, ms) = (self.now(), self.clock.ms());
        let may = self.may_rest(number, id, now, ms).map(|may| may.min(rest)).is_some();
        if !may {
            self.send(number, from, Packet::Rested { carry, asked, rested: false }, 0);
            return;
        }
        self.note(format_args!("{id} comes to rest"));
        self.counts.rested += 1;
        let judged = self.nodes.get(&number).and_then(|node| {
            let machine = node.machines.get(&id)?;
            let least = floor(&machine.config, node.region);
            let running = self.reference.running(machine.app, node.region);
            // What the configuration says, and what was asked for when it was made.
            Some((running, machine.least.max(least), machine.slots.in_flight()))
        });
        if let Some((running, least, in_flight)) = judged.filter(|_| self.reference.settled(now)) {
            self.judge(invariants::enough_stay_up(id, running - 1, least));
            self.judge(invariants::only_idle_ones_rest(id, in_flight));
        }
        let Some(node) = self.nodes.get_mut(&number) else { return };
        let Some(machine) = node.machines.get_mut(&id) else { return };
        machine.wanted = false;
        machine.life += 1;
        (machine.state, machine.since) = (MachineState::Stopping, now);
        machine.tells = Some((from, carry, asked));
        self.agenda.after(STOP, Event::Turned(number, id, machine.life));
        self.tell(number, id);
    }

    fn may_rest(&mut self, number: NodeNumber, id: MachineId, now: Micros, ms: u64) -> Option<Rest> {
        let interval = Duration::from_micros(self.setup.interval);
        let node = self.nodes.get_mut(&number)?;
        let look = node.see(id, now)?;
        let machine = node.machines.get(&id).filter(|machine| machine.state == MachineState::Started)?;
        let app = node.snapshot.apps.get(&machine.app)?;
        let groups = stop::running(app, node.region, &node.snapshot, ms);
        let running = groups.get(&machine.config.process_group())?;
        let instant = |at: Micros| -> Instant { self.clock.instant(at) };
        let long = |since| instant(now).saturating_duration_since(instant(since)) >= interval;
        let own = Own {
            in_flight: machine.slots.in_flight(),
            settled: long(machine.since),
            quiet: long(look.quiet_since),
        };
        may_rest(id, running, own).ok()
    }

    /// Requests that wait for a start look at what is new.
    pub(super) fn news(&mut self, edge: NodeNumber) {
        let Some(node) = self.nodes.get(&edge) else { return };
        let Some(life) = node.life else { return };
        let mut turns = Vec::new();
        for (request, held) in &node.held {
            let desk = held.running.desk.borrow();
            if desk.hopes
                && held.attempt.is_none()
                && desk.place.as_ref().is_some_and(crate::queue::Place::is_first)
            {
                turns.push((*request, desk.waits));
            }
        }
        for (request, wait) in turns {
            self.agenda.after(0, Event::Turn(edge, life, request, Some(wait), Turn::Poll));
        }
    }
}

impl crate::node::Node {
    /// Looks at what a Machine took and has in flight.
    fn see(&mut self, id: MachineId, now: Micros) -> Option<Look> {
        let slots = &self.machines.get(&id)?.slots;
        let (taken, busy) = (slots.taken(), slots.in_flight() > 0);
        let fresh = Look { taken, busy, quiet_since: now };
        let look = self.looks.entry(id).or_insert(fresh);
        if look.taken != taken || look.busy || busy {
            *look = fresh;
        }
        Some(*look)
    }
}
