//! The edge's side of requests: attempts are sent, and what comes of them is handed to the request.

use std::rc::Rc;
use std::sync::Arc;

use skein_core::NodeNumber;
use skein_core::code::ErrorCode;
use skein_core::retry::Failure;
use skein_core::wire::RefuseReason;

use super::{Event, Open, Packet, World};
use crate::agenda::SECOND;
use crate::invariants;
use crate::node::Attempt;
use crate::peers::PROBE;
use crate::reference::{Cause, Failed};
use crate::request::{Aim, End, Outcome};

/// A dial may take so long: backhaul's `dial_timeout`.
pub(super) const DIAL: u64 = 3 * SECOND;

impl World {
    /// Lets a request go on: its next attempt is made, or it ends.
    pub(super) fn go_on(&mut self, edge: NodeNumber, request: u64) {
        let Some(held) = self.nodes.get_mut(&edge).and_then(|node| node.held.get_mut(&request)) else {
            return;
        };
        let end = held.running.go_on();
        let (did, aim) = {
            let mut desk = held.running.desk.borrow_mut();
            (std::mem::take(&mut desk.did), desk.aim.take())
        };
        did.into_iter().for_each(|did| self.did(edge, request, did));
        self.begin_telling(edge);
        match (end, aim) {
            (Some(end), _) => self.ended(edge, request, end),
            (None, Some(aim)) => self.attempt(edge, request, aim),
            (None, None) => {}
        }
    }

    fn ended(&mut self, edge: NodeNumber, request: u64, end: End) {
        let now = self.now();
        let Some(held) = self.nodes.get_mut(&edge).and_then(|node| node.held.remove(&request)) else {
            return;
        };
        let asked = held.running.asked.clone();
        self.reference.holds(now, &asked, false);
        let mut desk = held.running.desk.borrow_mut();
        if let End::Answered(machine) = end {
            self.counts.answered += 1;
            self.note(format_args!("request {request} at {edge}: answered by {machine}"));
            self.leaves(edge, request, &mut desk);
            return;
        }
        self.counts.failed += 1;
        let text = match end {
            End::Code(code) => code.as_str(),
            End::NoApp | End::Answered(_) => "no app",
        };
        let times = (desk.loaded, now);
        let confirmed = self.reference.confirm(edge, end, &asked, &desk, &self.regions, times);
        match &confirmed {
            Ok(cause) => self.note(format_args!("request {request} at {edge}: {text}, {cause}")),
            Err(why) => self.note(format_args!("request {request} at {edge}: {text}, but {why}")),
        }
        self.count(text, &confirmed);
        self.judge(invariants::failed_for_a_reason(request, text, confirmed));
        self.leaves(edge, request, &mut desk);
    }

    /// Counts how often a cause was looked for and found.
    fn count(&mut self, what: &'static str, confirmed: &Cause) {
        if let Ok(cause) = confirmed {
            *self.causes.entry((what, *cause)).or_default() += 1;
        }
    }

    fn attempt(&mut self, edge: NodeNumber, request: u64, aim: Aim) {
        let now = self.now();
        let target = aim.node;
        if let Some(via) = aim.via {
            let troubled = self.reference.parted(edge, target, now);
            self.judge(invariants::relayed_around_trouble(edge, target, troubled));
            self.note(format_args!("request {request} at {edge}: through {via} to {target}"));
        }
        let to = aim.via.unwrap_or(target);
        let their_life = self.nodes.get(&to).and_then(|node| node.life);
        let Some(node) = self.nodes.get_mut(&edge) else { return };
        let Some(held) = node.held.get_mut(&request) else { return };
        let number = held.running.desk.borrow().attempts;
        let connected = match node.peers.get(to) {
            Some(peer) => {
                peer.uses();
                peer.connected()
            }
            None => true,
        };
        let attempt = Attempt {
            number,
            target,
            node: to,
            snapshot: Arc::clone(&aim.snapshot),
            estimate: aim.estimate.clone(),
            admitted: false,
            sent: connected,
            life: their_life,
            alternatives: aim.alternatives,
        };
        held.attempt = Some(attempt);
        let asked = &held.running.asked;
        let open = Open {
            request,
            attempt: number,
            edge,
            relay: aim.via.map(|_| target),
            hops: 0,
            hop: aim.hop,
            app: aim.app,
            machine: aim.machine,
            post: asked.post,
            takes: asked.takes,
            // Only the first Machine that it comes to redirects it.
            instruction: asked.instruction.clone().filter(|_| aim.hop == 0),
        };
        (held.open, held.tried) = (Some(open.clone()), now);
        let life = node.life;
        if connected {
            self.send(edge, to, Packet::Open(open), 0);
        } else {
            // A handshake first: the pong stands for its end.
            self.send(edge, to, Packet::Ping(now), 0);
            if let Some(life) = life {
                self.agenda.after(DIAL, Event::Silent(edge, life, request, number));
            }
        }
        if to != edge {
            self.watch(edge, to, request, number);
        }
    }

    /// Looks at a peer when it could be suspect, for one who waits for it.
    fn watch(&mut self, edge: NodeNumber, peer: NodeNumber, request: u64, attempt: u32) {
        let Some(node) = self.nodes.get(&edge) else { return };
        let at = node.peers.get(peer).and_then(|peer| peer.suspect_at()).unwrap_or(self.now());
        if let Some(life) = node.life {
            self.agenda.at(at, Event::Silent(edge, life, request, attempt));
        }
    }

    /// A connection to a peer is up: what waited for it is sent.
    pub(super) fn connected(&mut self, edge: NodeNumber, peer: NodeNumber) {
        let life = self.nodes.get(&peer).and_then(|node| node.life);
        let Some(node) = self.nodes.get_mut(&edge) else { return };
        let mut opens = Vec::new();
        for held in node.held.values_mut() {
            if let Some(attempt) =
                held.attempt.as_mut().filter(|attempt| attempt.node == peer && !attempt.sent)
            {
                (attempt.sent, attempt.life) = (true, life);
                opens.extend(held.open.clone());
            }
        }
        for open in opens {
            self.send(edge, peer, Packet::Open(open), 0);
        }
    }

    /// A peer that was started anew knows nothing of what an earlier life of it was sent: the new
    /// connection takes the old one's place.
    pub(super) fn met_another_life(&mut self, edge: NodeNumber, peer: NodeNumber) {
        let life = self.nodes.get(&peer).and_then(|node| node.life);
        let Some(node) = self.nodes.get(&edge) else { return };
        let stale = |held: &crate::node::Held| {
            held.attempt.as_ref().is_some_and(|a| a.node == peer && a.sent && a.life != life)
        };
        let stale: Vec<u64> = node.held.iter().filter(|(_, held)| stale(held)).map(|(id, _)| *id).collect();
        for request in stale {
            let failure = Failure::Broken { code: ErrorCode::PM02, reached_app: true };
            self.fail(edge, request, failure, None);
        }
        self.break_passing(edge, |passing| passing.to == peer && passing.life != life);
    }

    /// The attempt of that number, if it is the one under way.
    fn under_way(&mut self, edge: NodeNumber, request: u64, number: u32) -> Option<&mut Attempt> {
        let held = self.nodes.get_mut(&edge)?.held.get_mut(&request)?;
        held.attempt.as_mut().filter(|attempt| attempt.number == number)
    }

    fn hand(&mut self, edge: NodeNumber, request: u64, outcome: Outcome) {
        if let Some(held) = self.nodes.get_mut(&edge).and_then(|node| node.held.get_mut(&request)) {
            held.attempt = None;
            held.running.desk.borrow_mut().outcome = Some(outcome);
            self.go_on(edge, request);
        }
    }

    fn fail(&mut self, edge: NodeNumber, request: u64, failure: Failure, load: Option<u32>) {
        self.fail_stale(edge, request, failure, load, false);
    }

    fn fail_stale(
        &mut self,
        edge: NodeNumber,
        request: u64,
        failure: Failure,
        load: Option<u32>,
        stale: bool,
    ) {
        let now = self.now();
        let mut way = None;
        self.note(format_args!("request {request} at {edge}: attempt failed, {failure:?}"));
        let held = self.nodes.get(&edge).and_then(|node| node.held.get(&request));
        if let Some(held) = held
            && let Some(open) = &held.open
            && let Some(attempt) = &held.attempt
        {
            way = (attempt.node != attempt.target).then_some(attempt.node);
            let (machine, node) = (open.machine, attempt.target);
            let failed = Failed { machine, node, via: way, at: held.tried, failure };
            let deadline = held.running.asked.deadline;
            let confirmed = self.reference.attempt_failed(edge, &failed, deadline, now);
            self.count("attempt", &confirmed);
            self.judge(invariants::failed_for_a_reason(request, "a failed attempt", confirmed));
        }
        self.hand(edge, request, Outcome::Failed { failure, load, stale, via: way });
    }

    pub(super) fn admitted(&mut self, edge: NodeNumber, request: u64, number: u32, load: u32) {
        let ms = self.clock.ms();
        if let Some(attempt) = self.under_way(edge, request, number).filter(|attempt| !attempt.admitted) {
            attempt.admitted = true;
            attempt.estimate.tell(load, ms);
            let held = self.nodes.get(&edge).and_then(|node| node.held.get(&request));
            if let Some(desk) = held.map(|held| Rc::clone(&held.running.desk)) {
                self.leaves(edge, request, &mut desk.borrow_mut());
            }
        }
    }

    pub(super) fn refused(
        &mut self,
        edge: NodeNumber,
        request: u64,
        number: u32,
        reason: RefuseReason,
        load: u32,
    ) {
        if self.under_way(edge, request, number).is_some_and(|attempt| !attempt.admitted) {
            self.fail(edge, request, Failure::Refused(reason), Some(load));
        }
    }

    pub(super) fn head(
        &mut self,
        edge: NodeNumber,
        request: u64,
        number: u32,
        load: u32,
        instruction: Option<String>,
    ) {
        // A stream is in order: whoever answers has admitted before.
        if self.under_way(edge, request, number).is_some() {
            if let Some(instruction) = &instruction {
                self.note(format_args!("request {request} at {edge}: fly-replay: {instruction}"));
            }
            self.hand(edge, request, Outcome::Answered { load, instruction });
        }
    }

    pub(super) fn reset(
        &mut self,
        edge: NodeNumber,
        request: u64,
        number: u32,
        code: ErrorCode,
        reached_app: bool,
    ) {
        if self.under_way(edge, request, number).is_some() {
            self.fail(edge, request, Failure::Broken { code, reached_app }, None);
        }
    }

    /// A peer that a request waits for may be silent for too long by now.
    pub(super) fn silent(&mut self, edge: NodeNumber, request: u64, number: u32) {
        let now = self.now();
        let Some(node) = self.nodes.get(&edge) else { return };
        let Some(held) = node.held.get(&request) else { return };
        let Some(attempt) = held.attempt.as_ref().filter(|attempt| attempt.number == number) else { return };
        let Some(peer) = node.peers.get(attempt.node) else { return };
        let (whom, alternatives, sent) = (attempt.node, attempt.alternatives, attempt.sent);
        let suspect = peer.suspect_at().is_none();
        let post = held.running.asked.post;
        let dialled = !sent && now >= held.tried + DIAL;
        let other = held.running.edge.via(&attempt.snapshot, attempt.target);
        let via = (whom != attempt.target).then_some(whom);
        let around = other.is_some_and(|other| Some(other) != via);
        // Whoever has no other way waits for this one.
        let gives_up = suspect && (alternatives || around);
        if !sent && (dialled || gives_up) {
            self.fail_stale(edge, request, Failure::Unreachable, None, around);
        } else if sent && gives_up && !post {
            let failure = Failure::Broken { code: ErrorCode::PM02, reached_app: true };
            self.fail_stale(edge, request, failure, None, around);
        } else if !(suspect || sent && post) {
            self.watch(edge, whom, request, number);
        }
    }

    /// Nobody took a request in time.
    pub(super) fn late(&mut self, edge: NodeNumber, request: u64) {
        let held = self.nodes.get(&edge).and_then(|node| node.held.get(&request));
        let waits =
            held.and_then(|held| held.attempt.as_ref()).map(|attempt| (attempt.admitted, attempt.sent));
        match waits {
            Some((false, true)) => {
                self.fail(edge, request, Failure::Broken { code: ErrorCode::PM02, reached_app: true }, None);
            }
            Some((false, false)) => self.fail(edge, request, Failure::Unreachable, None),
            Some((true, _)) | None => {}
        }
    }

    /// Probes the peers that are in use, and gives up connections that are lost.
    pub(super) fn probe(&mut self, number: NodeNumber, life: u64) {
        let now = self.now();
        self.agenda.after(PROBE, Event::Probe(number, life));
        let Some(node) = self.nodes.get(&number) else { return };
        let waits = |peer: NodeNumber| {
            let edge = node.held.values().any(|held| held.attempt.as_ref().is_some_and(|a| a.node == peer));
            let passed = node.passing.values().any(|passing| passing.to == peer || passing.edge == peer);
            edge || passed || node.work.values().any(|work| work.from.0 == peer)
        };
        let (mut probed, mut lost) = (Vec::new(), Vec::new());
        for (peer, signs) in node.peers.iter() {
            if signs.probe(waits(peer)) {
                probed.push(peer);
            }
            if signs.loses() {
                lost.push(peer);
            }
        }
        for peer in probed {
            self.send(number, peer, Packet::Ping(now), 0);
        }
        for peer in lost {
            let Some(node) = self.nodes.get(&number) else { return };
            let broken = node.held.iter().filter(|(_, held)| {
                held.attempt.as_ref().is_some_and(|attempt| attempt.node == peer && attempt.sent)
            });
            let broken: Vec<u64> = broken.map(|(request, _)| *request).collect();
            for request in broken {
                let failure = Failure::Broken { code: ErrorCode::PM02, reached_app: true };
                self.fail(number, request, failure, None);
            }
            self.break_passing(number, |passing| passing.to == peer);
        }
        self.want_configs(number);
    }
}
