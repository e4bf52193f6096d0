//! Gossipers over the network: who ticks, looks and gets what when.
//!
//! The caller owns the clock; [`Cluster::handle`] takes what is due and says what will be.

use std::collections::BTreeMap;

use skein_cluster::Members;
use skein_core::NodeNumber;

use crate::agenda::Micros;
use crate::gossip::{Gossiper, Message, Outgoing};
use crate::net::{Class, DATAGRAM, Network};

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
    tick: Micros,
    lives: u64,
}

/// What will happen, and when.
pub type Later = Vec<(Micros, Event)>;

impl Cluster {
    /// Without nodes; each ticks after `tick`.
    pub fn new(tick: Micros) -> Self {
        Self { slots: BTreeMap::new(), tick, lives: 0 }
    }

    /// Starts a node; its first tick is now.
    pub fn start(&mut self, now: Micros, number: NodeNumber, gossiper: Gossiper, later: &mut Later) {
        self.lives += 1;
        self.slots.insert(number, Slot { gossiper, life: self.lives, looks: false });
        later.push((now, Event::Tick(number, self.lives)));
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

    /// Changes what a node says; nothing when it does not run. It looks as soon as it may.
    pub fn say(
        &mut self,
        now: Micros,
        number: NodeNumber,
        later: &mut Later,
        change: impl FnOnce(&mut Gossiper),
    ) {
        if let Some(slot) = self.slots.get_mut(&number) {
            change(&mut slot.gossiper);
            slot.due(now, number, later);
        }
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
                later.push((now + self.tick, Event::Tick(number, life)));
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
