//! One event: what happens, and what that sets off on either side of the seams.

use std::sync::Arc;

use skein_core::NodeNumber;
use skein_core::suspicion::Proximity as _;

use super::{Event, Packet, World};
use crate::agenda::SECOND;
use crate::peers::PROBE;
use crate::transition::Reply;
use crate::{cluster, registry};

impl World {
    pub(super) fn happen(&mut self, event: Event) {
        match event {
            Event::Transition(place) => {
                if let Some((index, (_, transition))) = self.trace.get(place).copied() {
                    self.note(format_args!("[{index}] {transition}"));
                    self.counts.step = index;
                    self.apply(index, transition);
                }
            }
            Event::Come { edge, app, post, takes } => self.request(edge, app, post, takes, Reply::Plain),
            Event::Gossip(event) => {
                if let cluster::Event::Arrive { from, to, .. } = &event {
                    self.heard(*to, *from);
                }
                let mut later = Vec::new();
                self.gossip.handle(self.agenda.now(), event, &mut self.network, &mut later);
                self.put_gossip(later);
            }
            Event::Registry(event) => {
                if let registry::Event::Arrive { from, to, .. } = &event {
                    self.heard(*to, *from);
                }
                let mut later = Vec::new();
                self.registry.handle(self.agenda.now(), event, &mut self.network, &mut later);
                self.put_registry(later);
            }
            Event::Packet { from, to, packet } => {
                if self.nodes.get(&to).is_some_and(|node| node.life.is_some()) {
                    self.heard(to, from);
                    self.packet(from, to, packet);
                }
            }
            Event::Again { from, to, packet, not_before, since } => {
                if self.nodes.get(&from).is_some_and(|node| node.life.is_some()) {
                    self.pass(from, to, packet, not_before, since);
                }
            }
            Event::Fold(number, life) if self.lives(number, life) => self.fold(number),
            Event::Probe(number, life) if self.lives(number, life) => {
                self.see_ages(number);
                self.probe(number, life);
                self.stand(number);
            }
            Event::Served(number, life, work) if self.lives(number, life) => self.served(number, work),
            Event::Turned(number, machine, life) => self.turned(number, machine, life),
            Event::Silent(number, life, request, attempt) if self.lives(number, life) => {
                self.silent(number, request, attempt);
            }
            Event::Late(number, life, request) if self.lives(number, life) => self.late(number, request),
            Event::Untold(number, life, told) if self.lives(number, life) => {
                self.answered(number, told, false)
            }
            Event::Say(number, life, key, first) if self.lives(number, life) => self.say(number, key, first),
            Event::Look(number, life) if self.lives(number, life) => self.look_for_idle(number, life),
            Event::Unrested(number, life, carry, asked) if self.lives(number, life) => {
                self.carry_on(number, carry, Some((asked, false)));
            }
            Event::Undialled(number, life, key) if self.lives(number, life) => self.undialled(number, key),
            Event::Turn(number, life, request, wait, turn) if self.lives(number, life) => {
                self.turn(number, request, wait, turn);
            }
            Event::Fold(..)
            | Event::Probe(..)
            | Event::Served(..)
            | Event::Silent(..)
            | Event::Late(..)
            | Event::Untold(..)
            | Event::Undialled(..)
            | Event::Say(..)
            | Event::Look(..)
            | Event::Unrested(..)
            | Event::Turn(..) => {}
            Event::Mend => self.mend(),
            Event::SeeEqual => self.see_equal(false),
            Event::SeeLeader => self.see_leader(),
        }
    }

    pub(super) fn lives(&self, number: NodeNumber, life: u64) -> bool {
        self.nodes.get(&number).is_some_and(|node| node.life == Some(life))
    }

    pub(super) fn heard(&mut self, number: NodeNumber, from: NodeNumber) {
        if let Some(peer) = self.nodes.get(&number).and_then(|node| node.peers.get(from)) {
            peer.heard();
        }
        self.met_another_life(number, from);
    }

    /// A voter looks whether it may stand for election: as often as it probes.
    fn stand(&mut self, number: NodeNumber) {
        let now = self.now();
        let voters = self.registry.voters().clone();
        let Some(node) = self.nodes.get(&number).filter(|_| voters.contains(&number)) else { return };
        let reached = voters.iter().filter(|voter| !node.peers.suspect(**voter)).count();
        self.registry.look(number, reached);
        // Backhaul probes peers that are not in use too, about once a second.
        if (now / PROBE).is_multiple_of(SECOND / PROBE) {
            for voter in voters.into_iter().filter(|voter| *voter != number) {
                self.send(number, voter, Packet::Ping(now), 0);
            }
        }
    }

    pub(super) fn put_gossip(&mut self, later: cluster::Later) {
        for (at, event) in later {
            self.agenda.at(at, Event::Gossip(event));
        }
    }

    pub(super) fn put_registry(&mut self, later: registry::Later) {
        for (at, event) in later {
            self.agenda.at(at, Event::Registry(event));
        }
    }

    /// Brings about what an event at `number` has set off on either side of the seams.
    pub(super) fn settle(&mut self, number: Option<NodeNumber>) {
        let (now, mut later) = (self.now(), Vec::new());
        let mut moved = self.registry.settle(now, &mut self.network, &mut later);
        self.put_registry(later);
        moved.extend(number);
        for number in moved {
            self.follow(number);
        }
        let mut later = Vec::new();
        self.gossip.settle(now, &mut later);
        self.put_gossip(later);
    }

    /// What a node does about what came through the seams: its registry's nodes are gossip's seeds,
    /// what is new is folded, and writes that ended are noted.
    pub(super) fn follow(&mut self, number: NodeNumber) {
        let now = self.now();
        let Some(node) = self.nodes.get_mut(&number) else { return };
        let Some(knows) = node.knows.as_mut() else { return };
        if knows.nodes.has_changed().is_ok_and(|changed| changed) {
            let state = Arc::clone(&knows.nodes.borrow_and_update().1);
            let others = state.nodes().map(|other| other.number).filter(|other| *other != number);
            knows.membership.set_seeds(others.collect());
            state.apps().for_each(|app| self.reference.app(now, app.id));
        }
        let news = knows.has_news();
        let answers = knows.answers();
        if news {
            self.fold_soon(number);
        }
        for (request, answer) in answers {
            self.note(format_args!("registry at {number}: write {} is {answer:?}", request.0));
        }
    }
}
