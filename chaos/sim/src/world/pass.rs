//! A node passes a request on for an edge that can't reach the Machine's node (SPEC LB-8), as the
//! production's `pass_on` does.

use skein_core::NodeNumber;
use skein_core::code::ErrorCode;
use skein_core::suspicion::Proximity as _;
use skein_core::wire::RefuseReason;

use super::edge::DIAL;
use super::{Event, Open, Packet, World};
use crate::invariants;
use crate::node::Passing;

impl World {
    /// A request has come that is for another node.
    pub(super) fn pass_on(&mut self, number: NodeNumber, from: NodeNumber, to: NodeNumber, open: Open) {
        let now = self.now();
        let key = (open.request, open.attempt);
        let times = self.reference.passes_on(key);
        self.judge(invariants::relayed_once(open.request, times));
        self.note(format_args!("request {} of {}: {number} passes it on to {to}", open.request, open.edge));
        let Some(node) = self.nodes.get(&number) else { return };
        let refusal = match open.hops {
            0 if node.peers.suspect(to) => Some(RefuseReason::Unreachable),
            0 => None,
            _ => Some(RefuseReason::Hops),
        };
        let (request, attempt) = key;
        if let Some(reason) = refusal {
            self.send(number, from, Packet::Refused { request, attempt, reason, load: 0 }, 0);
            return;
        }
        let connected = node.peers.get(to).is_none_or(|peer| {
            peer.uses();
            peer.connected()
        });
        let (life, their_life) = (node.life, self.nodes.get(&to).and_then(|node| node.life));
        let open = Open { relay: None, hops: open.hops.saturating_add(1), ..open };
        let waiting = (!connected).then(|| open.clone());
        let passing = Passing { edge: from, to, open: waiting, life: their_life, not_before: 0 };
        if let Some(node) = self.nodes.get_mut(&number) {
            node.passing.insert(key, passing);
        }
        if connected {
            self.send(number, to, Packet::Open(open), 0);
        } else {
            self.send(number, to, Packet::Ping(now), 0);
            life.into_iter().for_each(|life| self.agenda.after(DIAL, Event::Undialled(number, life, key)));
        }
    }

    /// A connection to a peer is up: what waits for it is passed on.
    pub(super) fn pass_waiting(&mut self, number: NodeNumber, to: NodeNumber) {
        let life = self.nodes.get(&to).and_then(|node| node.life);
        let Some(node) = self.nodes.get_mut(&number) else { return };
        let mut opens = Vec::new();
        for passing in node.passing.values_mut().filter(|passing| passing.to == to) {
            if let Some(open) = passing.open.take() {
                passing.life = life;
                opens.push(open);
            }
        }
        for open in opens {
            self.send(number, to, Packet::Open(open), 0);
        }
    }

    /// No connection came up in time.
    pub(super) fn undialled(&mut self, number: NodeNumber, key: (u64, u32)) {
        let Some(node) = self.nodes.get_mut(&number) else { return };
        if node.passing.get(&key).is_some_and(|passing| passing.open.is_some())
            && let Some(passing) = node.passing.remove(&key)
        {
            let (request, attempt) = key;
            let refused = Packet::Refused { request, attempt, reason: RefuseReason::Unreachable, load: 0 };
            self.send(number, passing.edge, refused, 0);
        }
    }

    /// Hands an answer on to the edge, if it is one that this node passes on; else gives it back.
    pub(super) fn pass_back(
        &mut self,
        number: NodeNumber,
        from: NodeNumber,
        packet: Packet,
    ) -> Option<Packet> {
        let Some(key) = packet.answers() else { return Some(packet) };
        let Some(node) = self.nodes.get_mut(&number) else { return Some(packet) };
        let Some(passing) = node.passing.get(&key).filter(|passing| passing.to == from) else {
            return Some(packet);
        };
        let (edge, not_before) = (passing.edge, passing.not_before);
        let over = !matches!(packet, Packet::Admitted { .. });
        if over {
            node.passing.remove(&key);
        }
        let at = self.send(number, edge, packet, not_before);
        if let Some(passing) = self.nodes.get_mut(&number).and_then(|node| node.passing.get_mut(&key)) {
            passing.not_before = at;
        }
        None
    }

    /// A connection is lost, or the peer is another one than before: what was passed on to it broke off.
    pub(super) fn break_passing(&mut self, number: NodeNumber, lost: impl Fn(&Passing) -> bool) {
        let Some(node) = self.nodes.get_mut(&number) else { return };
        let broken = node.passing.iter().filter(|(_, passing)| passing.open.is_none() && lost(passing));
        let broken: Vec<(u64, u32)> = broken.map(|(key, _)| *key).collect();
        let broken: Vec<_> =
            broken.into_iter().filter_map(|key| Some((key, node.passing.remove(&key)?))).collect();
        for ((request, attempt), Passing { edge, not_before, .. }) in broken {
            let reset = Packet::Reset { request, attempt, code: ErrorCode::PM02, reached_app: true };
            self.send(number, edge, reset, not_before);
        }
    }
}
