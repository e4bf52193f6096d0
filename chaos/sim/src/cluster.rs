//! Gossipers over the network: who ticks, looks and gets what when.
//!
//! The caller owns the clock; [`Cluster::handle`] takes what is due and says what will be.

use std::collections::BTreeMap;

use skein_cluster::Members;
use skein_core::NodeNumber;
use skein_core::random::Seed;

use crate::agenda::Micros;
use crate::gossip::{Gossiper, Member, Message, Outgoing, Params};
use crate::net::{Class, DATAGRAM, Network};
use crate::seam::Bell;

/// What happens to a node. `life` is that of the node it was meant for: another one ignores it.
#[derive(Debug, Clone)]
pub enum Event {
    /// A tick of its own clock.
    Tick(NodeNumber, u64),
    /// It looks at what it knows.
    Look(NodeNumber, u64),
    /// A message arrives, at whichever life is there.
    Arrive {
        /// Whose it is.
        from: NodeNumber,
        /// Who gets it.
        to: NodeNumber,
        /// The message.
        message: Message,
    },
}

impl Event {
    /// The node it happens to.
    pub fn node(&self) -> NodeNumber {
        match self {
            Self::Tick(node, _) | Self::Look(node, _) => *node,
            Self::Arrive { to, .. } => *to,
        }
    }
}

#[derive(Debug)]
struct Slot {
    gossiper: Gossiper,
    life: u64,
    looks: bool,
}

/// The gossipers of nodes that run.
#[derive(Debug, Default)]
pub struct Cluster {
    slots: BTreeMap<NodeNumber, Slot>,
    params: Params,
    lives: u64,
    bell: Bell,
}

/// What will happen, and when.
pub type Later = Vec<(Micros, Event)>;

impl Cluster {
    /// Without nodes; each will gossip by `params`.
    pub fn new(params: Params) -> Self {
        Self { slots: BTreeMap::new(), params, lives: 0, bell: Bell::default() }
    }

    /// Starts a node, whose first tick is now: what it is to say is said through what comes back, and
    /// [`Cluster::settle`] sees to it.
    pub fn start(
        &mut self,
        now: Micros,
        number: NodeNumber,
        generation: u64,
        rng: Seed,
        later: &mut Later,
    ) -> Member {
        self.lives += 1;
        let gossiper = Gossiper::new(number, generation, self.params, rng, self.bell.clone());
        let member = gossiper.member().clone();
        self.slots.insert(number, Slot { gossiper, life: self.lives, looks: false });
        later.push((now, Event::Tick(number, self.lives)));
        member
    }

    /// Puts on the agenda what was asked of members since the last time: each looks as soon as it may.
    pub fn settle(&mut self, now: Micros, later: &mut Later) {
        for number in self.bell.rung() {
            if let Some(slot) = self.slots.get_mut(&number) {
                slot.due(now, number, later);
            }
        }
    }

    /// Ends a node without a word.
    pub fn kill(&mut self, number: NodeNumber) {
        self.slots.remove(&number);
    }

    /// A node's gossiper, when it runs.
    pub fn gossiper(&self, number: NodeNumber) -> Option<&Gossiper> {
        self.slots.get(&number).map(|slot| &slot.gossiper)
    }

    /// What a node believes; `None` while it does not run.
    pub fn members(&self, number: NodeNumber) -> Option<&Members> {
        self.gossiper(number).map(Gossiper::members)
    }

    /// The nodes that run.
    pub fn running(&self) -> impl Iterator<Item = NodeNumber> {
        self.slots.keys().copied()
    }

    /// Lets `event` happen; the node whose members changed by it, if any did.
    pub fn handle(
        &mut self,
        now: Micros,
        event: Event,
        network: &mut Network,
        later: &mut Later,
    ) -> Option<NodeNumber> {
        let number = event.node();
        let slot = self.slots.get_mut(&number)?;
        match event {
            Event::Tick(_, life) if life == slot.life => {
                for message in slot.gossiper.tick(now) {
                    send(now, number, message, network, later);
                }
                slot.due(now, number, later);
                later.push((now + self.params.tick, Event::Tick(number, life)));
                None
            }
            Event::Look(_, life) if life == slot.life => {
                slot.looks = false;
                let (changed, messages) = slot.gossiper.look(now);
                for message in messages {
                    send(now, number, message, network, later);
                }
                changed.then_some(number)
            }
            Event::Tick(..) | Event::Look(..) => None,
            Event::Arrive { from, message, .. } => {
                let (due, answer) = slot.gossiper.receive(now, from, message);
                if let Some(answer) = answer {
                    send(now, number, answer, network, later);
                }
                if due {
                    slot.due(now, number, later);
                }
                None
            }
        }
    }
}

impl Slot {
    fn due(&mut self, now: Micros, number: NodeNumber, later: &mut Later) {
        if !std::mem::replace(&mut self.looks, true) {
            later.push((self.gossiper.next_look(now), Event::Look(number, self.life)));
        }
    }
}

fn send(now: Micros, from: NodeNumber, outgoing: Outgoing, network: &mut Network, later: &mut Later) {
    let Outgoing { to, message, bytes } = outgoing;
    let class = if bytes <= DATAGRAM { Class::Datagram } else { Class::Stream };
    for at in network.send(now, from, to, class, bytes) {
        later.push((at, Event::Arrive { from, to, message: message.clone() }));
    }
}
