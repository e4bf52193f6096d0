//! A network in memory for tests: every message is bytes, links can be cut and lose messages.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use skein_core::key::NodeRecord;
use skein_core::random::Seed;
pub(crate) use skein_core::testing::record;
use skein_core::{NodeNumber, Random, testing};
use tokio::time;
use ulid::Ulid;

use crate::keeper::Tasks;

use super::{Gossip, GossipConfig, GossipTransport, Members, Membership as _};

const REGIONS: [&str; 5] = ["iad", "ams", "nrt", "syd", "gru"];

pub(crate) fn node(number: u32) -> NodeRecord {
    testing::node(number, REGIONS[number as usize % REGIONS.len()])
}

pub(crate) struct Net {
    state: Mutex<State>,
}

struct State {
    nodes: BTreeMap<NodeNumber, Gossip>,
    cut: BTreeSet<(NodeNumber, NodeNumber)>,
    loss: f64,
    rng: Seed,
}

struct Wire {
    net: Weak<Net>,
    from: NodeNumber,
}

impl GossipTransport for Wire {
    fn send(&self, peer: NodeNumber, message: Bytes) {
        let Some(net) = self.net.upgrade() else { return };
        let to = {
            let mut state = net.state.lock().unwrap();
            let lost = state.loss > 0.0 && state.rng.fraction() < state.loss;
            let lost = lost || state.cut.contains(&(self.from, peer));
            if lost { None } else { state.nodes.get(&peer).cloned() }
        };
        if let Some(to) = to {
            to.inbound(self.from, message);
        }
    }
}

impl Net {
    pub(crate) fn new() -> Arc<Self> {
        let state = State { nodes: BTreeMap::new(), cut: BTreeSet::new(), loss: 0.0, rng: Seed::new(1) };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// A node of that generation, with itself as its only seed.
    pub(crate) fn start(self: &Arc<Self>, config: GossipConfig) -> Gossip {
        let from = config.number;
        let keeper = Tasks::current();
        let gossip = Gossip::start(config, Arc::new(Wire { net: Arc::downgrade(self), from }), &keeper);
        self.state.lock().unwrap().nodes.insert(from, gossip.clone());
        gossip
    }

    /// Nodes 1 to `count` that know each other's numbers and have said who they are.
    pub(crate) fn cluster(self: &Arc<Self>, count: u32, tick: Duration) -> Vec<Gossip> {
        let start = |number| {
            let gossip = self.start(GossipConfig { tick, ..config(number, 1) });
            gossip.set_seeds((1..=count).map(NodeNumber).collect());
            gossip.set_node(&node(number)).unwrap();
            gossip
        };
        (1..=count).map(start).collect()
    }

    /// Ends a node without a word, as a kill does.
    pub(crate) async fn kill(&self, number: u32) {
        let gossip = self.state.lock().unwrap().nodes.remove(&NodeNumber(number));
        gossip.unwrap().shutdown().await;
    }

    /// Cuts or heals both directions between two nodes.
    pub(crate) fn link(&self, a: u32, b: u32, up: bool) {
        let mut state = self.state.lock().unwrap();
        for pair in [(NodeNumber(a), NodeNumber(b)), (NodeNumber(b), NodeNumber(a))] {
            if up {
                state.cut.remove(&pair)
            } else {
                state.cut.insert(pair)
            };
        }
    }

    /// Loses so much of all messages.
    pub(crate) fn lose(&self, fraction: f64) {
        self.state.lock().unwrap().loss = fraction;
    }
}

pub(crate) fn config(number: u32, generation: u64) -> GossipConfig {
    GossipConfig::new(NodeNumber(number), generation, Ulid(7))
}

/// Waits until a node's members are so.
pub(crate) async fn until(gossip: &Gossip, what: &str, condition: impl Fn(&Members) -> bool) -> Members {
    let mut members = gossip.members();
    let reached =
        time::timeout(Duration::from_secs(3_600), members.wait_for(|members| condition(members))).await;
    match reached {
        Ok(members) => members.expect("gossip runs").clone(),
        Err(_) => panic!(
            "never came: {what}; members: {:#?}",
            gossip.members().borrow().values().collect::<Vec<_>>()
        ),
    }
}

/// Asserts that a node's members are so, and stay so for that (virtual) time.
pub(crate) async fn holds(gossip: &Gossip, time: Duration, what: &str, condition: impl Fn(&Members) -> bool) {
    let mut members = gossip.members();
    let broken = members.wait_for(|members| !condition(members));
    if let Ok(members) = time::timeout(time, broken).await {
        panic!(
            "did not hold: {what}; members: {:#?}",
            members.expect("gossip runs").values().collect::<Vec<_>>()
        );
    }
}
