//! Packets between nodes, beside gossip and the registry.

use std::sync::Arc;

use skein_core::NodeNumber;

use super::{Event, Packet, World};
use crate::agenda::{MS, Micros};
use crate::net::{Class, IDLE};

/// How often a stream is tried again over a link that is cut.
const AGAIN: Micros = 100 * MS;

impl World {
    /// Sends a packet, on a stream if it is not a probe; it arrives at `not_before` at the earliest.
    pub(super) fn send(
        &mut self,
        from: NodeNumber,
        to: NodeNumber,
        packet: Packet,
        not_before: Micros,
    ) -> Micros {
        let now = self.now();
        if !matches!(packet, Packet::Pong(_))
            && let Some(peer) = self.nodes.get(&from).and_then(|node| node.peers.get(to))
        {
            peer.owes();
        }
        self.pass(from, to, packet, not_before, now)
    }

    pub(super) fn pass(
        &mut self,
        from: NodeNumber,
        to: NodeNumber,
        packet: Packet,
        not_before: Micros,
        since: Micros,
    ) -> Micros {
        let now = self.now();
        // Hints are lost, late and doubled with the packets that carry them: harder than a stream.
        let hint = matches!(packet, Packet::Room { .. } | Packet::Waits { .. });
        let probe = hint || matches!(packet, Packet::Ping(_) | Packet::Pong(_));
        let class = if probe { Class::Datagram } else { Class::Stream };
        if !probe && from != to && self.network.rule(from, to).cut {
            if now - since < IDLE {
                self.agenda.after(AGAIN, Event::Again { from, to, packet, not_before, since });
            }
            return not_before;
        }
        let arrivals = if from == to { vec![now] } else { self.network.send(now, from, to, class, 300) };
        let mut last = not_before;
        for at in arrivals {
            last = at.max(not_before);
            self.agenda.at(last, Event::Packet { from, to, packet: packet.clone() });
        }
        last
    }

    pub(super) fn packet(&mut self, from: NodeNumber, to: NodeNumber, packet: Packet) {
        let Some(packet) = self.pass_back(to, from, packet) else { return };
        match packet {
            Packet::Ping(at) => drop(self.send(to, from, Packet::Pong(at), 0)),
            Packet::Pong(at) => {
                let now = self.now();
                if let Some(peer) = self.nodes.get(&to).and_then(|node| node.peers.get(from)) {
                    peer.measured(now - at);
                }
                self.connected(to, from);
                self.pass_waiting(to, from);
            }
            Packet::Open(open) => match open.relay.filter(|target| *target != to) {
                Some(target) => self.pass_on(to, from, target, open),
                None => self.open(to, from, open),
            },
            Packet::Admitted { request, attempt, load } => self.admitted(to, request, attempt, load),
            Packet::Refused { request, attempt, reason, load } => {
                self.refused(to, request, attempt, reason, load);
            }
            Packet::Head { request, attempt, load, instruction } => {
                self.head(to, request, attempt, load, instruction);
            }
            Packet::Reset { request, attempt, code, reached_app } => {
                self.reset(to, request, attempt, code, reached_app);
            }
            Packet::Room { told, app, machine, load } => self.room(from, to, told, app, machine, load),
            Packet::Waits { told, waits } => self.answered(to, told, waits),
            Packet::Demand(app, region, demand) => self.demanded(to, from, app, region, demand),
            Packet::Start(machine) => self.wanted(to, from, machine),
            Packet::Begun { machine, begun } => self.begun(to, machine, begun),
            Packet::Rest { carry, asked, machine, rest } => {
                self.rest(to, from, (carry, asked), machine, rest)
            }
            Packet::Rested { carry, asked, rested } => self.carry_on(to, carry, Some((asked, rested))),
            Packet::WantConfig(hash) => {
                let machines = self.nodes.get(&to).map(|node| &node.machines);
                let machine = machines.and_then(|all| all.values().find(|machine| machine.hash == hash));
                if let Some(config) = machine.map(|machine| Arc::clone(&machine.config)) {
                    self.send(to, from, Packet::Config(hash, config), 0);
                }
            }
            Packet::Config(hash, config) => {
                self.arrived.entry(to).or_default().push((hash, config));
                self.fold_soon(to);
            }
        }
    }
}
