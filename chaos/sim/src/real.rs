//! The real gossip (chitchat and all that `skein_cluster::gossip` adds) over the virtual network, on
//! tokio's paused clock: for tests, and to fit the model to it.
//!
//! Its peer choice is chitchat's own, which no seed reaches: runs differ, and only their figures can
//! be compared.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use skein_cluster::Tasks;
use skein_cluster::gossip::Membership;
use skein_cluster::{Gossip, GossipConfig, GossipTransport, Members};
use skein_core::NodeNumber;
use skein_core::fault::LinkRule;
use skein_core::random::Seed;
use skein_core::region::Regions;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use ulid::Ulid;

use crate::agenda::{Agenda, Micros, micros};
use crate::bare::{node_record, region_of};
use crate::net::{Carried, Class, DATAGRAM, Network};

/// A message on its way.
type Letter = (Micros, NodeNumber, NodeNumber, Bytes);

struct Post {
    epoch: Instant,
    network: Mutex<Network>,
    nodes: Mutex<BTreeMap<NodeNumber, Gossip>>,
    letters: mpsc::UnboundedSender<Letter>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Wire {
    post: Weak<Post>,
    from: NodeNumber,
}

impl GossipTransport for Wire {
    fn send(&self, to: NodeNumber, message: Bytes) {
        let Some(post) = self.post.upgrade() else { return };
        let class = if message.len() <= DATAGRAM { Class::Datagram } else { Class::Stream };
        let now = micros(post.epoch.elapsed());
        let arrivals = lock(&post.network).send(now, self.from, to, class, message.len());
        for at in arrivals {
            // Fails only when the whole network is gone.
            let _ = post.letters.send((at, self.from, to, message.clone()));
        }
    }
}

async fn deliver(post: Weak<Post>, epoch: Instant, mut letters: mpsc::UnboundedReceiver<Letter>) {
    let mut agenda = Agenda::default();
    loop {
        let now = micros(epoch.elapsed());
        while let Some((from, to, message)) = agenda.next(now) {
            let Some(post) = post.upgrade() else { return };
            let gossip = lock(&post.nodes).get(&to).cloned();
            if let Some(gossip) = gossip {
                gossip.inbound(from, message);
            }
        }
        let due = agenda.due().unwrap_or(now + 3_600_000_000);
        tokio::select! {
            letter = letters.recv() => match letter {
                Some((at, from, to, message)) => agenda.at(at, (from, to, message)),
                None => return,
            },
            () = tokio::time::sleep_until(epoch + Duration::from_micros(due)) => {}
        }
    }
}

/// Real nodes that only gossip.
pub struct Real {
    post: Arc<Post>,
    regions: Arc<Regions>,
    count: u32,
    generation: u64,
    _delivery: JoinSet<()>,
}

impl Real {
    /// Nodes 1 to `count`, started within one tick of each other. Needs a runtime whose clock is
    /// paused.
    pub async fn new(count: u32, seed: &Seed) -> Self {
        use skein_core::Random;
        let regions: Arc<Regions> = Arc::default();
        let mut network = Network::new(Arc::clone(&regions), seed.child("network"));
        network.add((1..=count).map(NodeNumber).map(|number| (number, region_of(&regions, number))));
        let (sender, letters) = mpsc::unbounded_channel();
        let epoch = Instant::now();
        let post = Post { epoch, network: Mutex::new(network), nodes: Mutex::default(), letters: sender };
        let post = Arc::new(post);
        let mut delivery = JoinSet::new();
        delivery.spawn(deliver(Arc::downgrade(&post), epoch, letters));
        let mut real = Self { post, regions, count, generation: 0, _delivery: delivery };
        let mut phase = seed.child("phases");
        let mut starts: Vec<(usize, u32)> = (1..=count).map(|number| (phase.below(500), number)).collect();
        starts.sort_unstable();
        for (at, number) in starts {
            tokio::time::sleep_until(epoch + Duration::from_millis(at as u64)).await;
            real.restart(NodeNumber(number));
        }
        real
    }

    /// The time.
    pub fn now(&self) -> Micros {
        micros(self.post.epoch.elapsed())
    }

    /// What the network has carried.
    pub fn carried(&self) -> Carried {
        lock(&self.post.network).carried()
    }

    /// What every packet of every link meets.
    pub fn set_weather(&self, rule: LinkRule) {
        lock(&self.post.network).set_weather(rule);
    }

    /// Sets the faults of every link, by the numbers of sender and receiver.
    pub fn rules(&self, rule: impl Fn(u32, u32) -> LinkRule) {
        let network = lock(&self.post.network);
        for from in 1..=self.count {
            let rules = (1..=self.count).filter(|to| *to != from).map(|to| (NodeNumber(to), rule(from, to)));
            if let Some(table) = network.table(NodeNumber(from)) {
                table.set_faults(rules.filter(|(_, rule)| !rule.is_idle()).collect());
            }
        }
    }

    /// Lets so much virtual time pass.
    pub async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// A node's gossip, when it runs.
    pub fn gossip(&self, number: NodeNumber) -> Option<Gossip> {
        lock(&self.post.nodes).get(&number).cloned()
    }

    /// The nodes that run.
    pub fn running(&self) -> Vec<NodeNumber> {
        lock(&self.post.nodes).keys().copied().collect()
    }

    /// Ends a node without a word.
    pub async fn kill(&self, number: NodeNumber) {
        let gossip = lock(&self.post.nodes).remove(&number);
        if let Some(gossip) = gossip {
            gossip.shutdown().await;
        }
    }

    /// Starts a node that does not run, with a greater generation than any before.
    pub fn restart(&mut self, number: NodeNumber) {
        self.generation += 1;
        let config = GossipConfig::new(number, self.generation, Ulid(7));
        let wire = Wire { post: Arc::downgrade(&self.post), from: number };
        let gossip = Gossip::start(config, Arc::new(wire), &Tasks::current());
        gossip.set_seeds((1..=self.count).map(NodeNumber).collect());
        let said = gossip.set_node(&node_record(number, region_of(&self.regions, number)));
        debug_assert!(said.is_ok(), "a node's record is short");
        lock(&self.post.nodes).insert(number, gossip);
    }

    /// Waits until the members of all running nodes are so; whether they became so within `limit`.
    pub async fn until(&self, limit: Micros, wanted: impl Fn(&Members) -> bool) -> bool {
        let all = async {
            for number in self.running() {
                let Some(gossip) = self.gossip(number) else { continue };
                if gossip.members().wait_for(|members| wanted(members)).await.is_err() {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(Duration::from_micros(limit), all).await.unwrap_or(false)
    }
}
