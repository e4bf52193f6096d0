//! What the API holds of its node: the parts it calls, no more.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use skein_cluster::Reader;
use skein_cluster::backhaul::{Backhaul, Peers};
use skein_cluster::barrier;
use skein_cluster::gossip::{Gossip, Membership as _};
use skein_cluster::identity::Identity;
use skein_cluster::registry::RaftRegistry;
use skein_core::key::NodeRecord;
use skein_core::region::Regions;
use skein_core::wire::Seen;
use skein_core::{NodeName, NodeNumber, RegionCode};
use skein_edge::Edge;
use skein_machine::Machines;
use tokio::sync::watch;
use tokio::time::Instant;

use super::autostop::Autostop;
use super::carry::Carrier;
use super::links::LinkRules;
use super::mappings::Mappings;

/// A running node.
#[derive(Clone)]
pub struct NodeHandle {
    /// Its name.
    pub name: NodeName,
    /// Its number.
    pub number: NodeNumber,
    /// Its region.
    pub region: RegionCode,
    /// Its identity; join tokens pin its authority.
    pub identity: Arc<Identity>,
    /// All it knows.
    pub reader: Reader,
    /// The facts of organizations and apps.
    pub registry: RaftRegistry,
    /// Its own Machines.
    pub machines: Machines,
    /// Calls to other nodes.
    pub backhaul: Backhaul,
    /// Distances and suspicion.
    pub peers: Arc<Peers>,
    /// Its proxy.
    pub edge: Edge,
    /// Its part in autostop and autostart.
    pub autostop: Autostop,
    /// Where public addresses are reached on this machine.
    pub mappings: Arc<Mappings>,
    /// The rules of its links.
    pub links: Arc<LinkRules>,
    /// The regions it knows.
    pub regions: Arc<Regions>,
    /// `netns` or `portable`.
    pub isolation: &'static str,
    /// What it says of itself and its Machines.
    pub gossip: Gossip,
    /// What it says of itself now.
    pub record: watch::Sender<NodeRecord>,
}

impl NodeHandle {
    /// How far this node has come.
    ///
    /// # Errors
    /// When gossip has ended.
    pub async fn own_seen(&self) -> anyhow::Result<Seen> {
        let (generation, version) = self.gossip.own_version().await.context("gossip has ended")?;
        Ok(Seen { node: self.number, generation, version, applied: self.registry.applied() })
    }

    /// Returns once every live node has seen all that this node and each of them knew when asked.
    ///
    /// # Errors
    /// At the deadline, with the nodes that are behind.
    pub async fn barrier(&self, patience: Duration) -> anyhow::Result<()> {
        let own = self.own_seen().await?;
        let carrier = Carrier(self.backhaul.clone());
        barrier::run(&self.reader, own, &carrier, Instant::now() + patience).await?;
        Ok(())
    }

    /// Says that it is to take nothing new, and returns once every live node has seen that. Until then
    /// it takes what they still send.
    ///
    /// # Errors
    /// When some node has not seen it after `patience`; it is said all the same.
    pub async fn announce_drain(&self, patience: Duration) -> anyhow::Result<()> {
        self.set_draining(true);
        {
            // The barrier covers what gossip was given before it. The record is held meanwhile: a
            // later one must not be overtaken by this.
            let record = self.record.borrow();
            self.gossip.set_node(&record).context("this node's record can't be gossiped")?;
        }
        self.barrier(patience).await
    }

    /// Whether it is drained, or about to be.
    pub fn is_draining(&self) -> bool {
        self.record.borrow().draining
    }

    /// Gives its Machines nothing new and waits, at most `patience`, until what was open is done; its edge
    /// serves later clients through other nodes. The process stays.
    ///
    /// # Errors
    /// When something that was open was cut off at the end.
    pub async fn drain(&self, patience: Duration) -> anyhow::Result<()> {
        self.set_draining(true);
        let left = self.edge.drain(patience).await;
        anyhow::ensure!(left == 0, "{left} requests were still in flight after {patience:?}");
        Ok(())
    }

    /// Takes requests again.
    pub fn undrain(&self) {
        self.edge.undrain();
        self.set_draining(false);
    }

    fn set_draining(&self, draining: bool) {
        self.record.send_if_modified(|record| std::mem::replace(&mut record.draining, draining) != draining);
    }
}
