use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use skein_cluster::BoxFuture;
use skein_cluster::Tasks;
use skein_cluster::backhaul::{AskError, BackhaulConfig, FrameStream, Inbound, Joiner};
use skein_cluster::gossip::GossipConfig;
use skein_cluster::identity::{Authority, DataKey, Identity};
use skein_cluster::link::LinkTable;
use skein_core::facts::{Fact, Node};
use skein_core::region::Regions;
use skein_core::wire::{Ask, JoinRefusal, JoinReply, JoinRequest, Preamble};

use super::super::carry::Carrier;
use super::super::config::Latency;
use super::*;

struct Quiet;

impl Inbound for Quiet {
    fn request(&self, _: NodeNumber, _: Preamble, _: FrameStream) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
    fn ask(&self, _: NodeNumber, _: Ask) -> BoxFuture<'static, Result<Bytes, String>> {
        Box::pin(std::future::ready(Ok(Bytes::new())))
    }
    fn gossip(&self, _: NodeNumber, _: Bytes) {}
}

impl Joiner for Quiet {
    fn join(&self, _: JoinRequest, _: SocketAddr) -> BoxFuture<'static, Result<JoinReply, JoinRefusal>> {
        Box::pin(std::future::ready(Err(JoinRefusal::Final("nobody joins here".into()))))
    }
}

struct Side {
    number: NodeNumber,
    backhaul: Backhaul,
    links: LinkRules,
    gossip: Gossip,
    fact: Fact,
}

impl Side {
    fn start(number: u32, authority: &Authority, data_key: &DataKey) -> Self {
        let number = NodeNumber(number);
        let name: skein_core::NodeName = format!("iad-{number}").parse().unwrap();
        let identity = Identity::issue(authority, data_key, number, name.clone()).unwrap();
        let (key, region) = (identity.key_hash(), "iad".parse().unwrap());
        let (table, regions) = (LinkTable::default(), Arc::new(Regions::default()));
        let config = BackhaulConfig::new("127.0.0.1:0".parse().unwrap(), region);
        let backhaul =
            Backhaul::bind(config, Arc::new(identity), table.clone(), Arc::clone(&regions)).unwrap();
        backhaul.serve(Arc::new(Quiet), Arc::new(Quiet));
        let links = LinkRules::new(table, regions, region, Latency::None);
        let carrier = Arc::new(Carrier(backhaul.clone()));
        let keeper = Tasks::current();
        let gossip = Gossip::start(GossipConfig::new(number, 1, ulid::Ulid(1)), carrier, &keeper);
        let node = Node { number, name, region, key, backhaul: backhaul.local_addr(), joined_ms: 0 };
        Self { number, backhaul, links, gossip, fact: Fact::Node(node) }
    }

    fn apply(&self, state: &State) {
        apply_nodes(state, self.number, &self.backhaul, &self.links, &self.gossip);
    }

    async fn ping(&self, to: NodeNumber) -> Result<Bytes, AskError> {
        self.backhaul.ask(to, Ask::Ping, Duration::from_secs(10)).await
    }

    async fn end(self) {
        self.gossip.shutdown().await;
        self.backhaul.close(Duration::from_secs(1)).await;
    }
}

/// SPEC CLU-1: a certificate outlives the membership.
#[tokio::test]
async fn a_removed_node_is_refused_although_its_certificate_is_good() {
    let (authority, data_key) = (Authority::generate().unwrap(), DataKey::generate());
    let [a, b, c] = [1, 2, 3].map(|number| Side::start(number, &authority, &data_key));
    let sides = [&a, &b, &c];
    let all = State::from_facts(sides.map(|side| side.fact.clone()));
    for side in sides {
        side.apply(&all);
    }
    for side in [&b, &c] {
        side.ping(a.number).await.unwrap();
    }

    let Fact::Node(removed) = &b.fact else { panic!("{:?}", b.fact) };
    let rest = [a.fact.clone(), c.fact.clone(), Fact::Fenced(removed.key)];
    a.apply(&State::from_facts(rest));
    // The removed one does not know it yet, and comes back.
    let coming_back = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(5));
        while a.backhaul.counts().strangers == 0 {
            ticks.tick().await;
            let refused = b.ping(a.number).await;
            assert!(refused.is_err(), "{refused:?}");
        }
    };
    tokio::time::timeout(Duration::from_secs(60), coming_back).await.expect("it is refused");
    c.ping(a.number).await.unwrap();
    for side in [a, b, c] {
        side.end().await;
    }
}
