//! Backhaul as the carrier of what cluster's parts say to each other.

use std::time::Duration;

use bytes::Bytes;
use skein_cluster::BoxFuture;
use skein_cluster::backhaul::Backhaul;
use skein_cluster::barrier::BarrierPeers;
use skein_cluster::configs::ConfigSource;
use skein_cluster::gossip::GossipTransport;
use skein_cluster::registry::RaftTransport;
use skein_core::suspicion::Proximity as _;
use skein_core::wire::{Ask, Seen};
use skein_core::{ConfigHash, NodeNumber, codec};
use skein_machine::Machines;
use tokio::time::Instant;

/// How long a worker may take to give a configuration.
const CONFIG_PATIENCE: Duration = Duration::from_secs(2);

/// Backhaul, as gossip, the registry and barriers see it.
#[derive(Clone)]
pub(super) struct Carrier(pub(super) Backhaul);

impl GossipTransport for Carrier {
    fn send(&self, peer: NodeNumber, message: Bytes) {
        self.0.send_gossip(peer, message);
    }
}

impl RaftTransport for Carrier {
    fn call(
        &self,
        to: NodeNumber,
        message: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, String>> {
        let backhaul = self.0.clone();
        Box::pin(async move {
            let ask = Ask::Registry(message.into());
            backhaul.ask(to, ask, timeout).await.map_err(|error| error.to_string())
        })
    }

    fn reachable(&self, to: NodeNumber) -> bool {
        !self.0.proximity().suspect(to)
    }
}

/// Configurations from their owners: this node's own Machines, or a peer.
pub(super) struct Configs {
    /// This node.
    pub(super) own: NodeNumber,
    /// Its Machines.
    pub(super) machines: Machines,
    /// The way to the peers.
    pub(super) backhaul: Backhaul,
}

impl ConfigSource for Configs {
    fn fetch(&self, node: NodeNumber, hash: ConfigHash) -> BoxFuture<'static, Option<Bytes>> {
        if node == self.own {
            let found = self.machines.config_json(hash);
            return Box::pin(async { found });
        }
        let backhaul = self.backhaul.clone();
        Box::pin(async move {
            match backhaul.ask(node, Ask::Config(hash), CONFIG_PATIENCE).await {
                Ok(json) => (!json.is_empty()).then_some(json),
                Err(error) => {
                    tracing::debug!(%node, %hash, %error, "the configuration could not be asked for");
                    None
                }
            }
        })
    }
}

impl BarrierPeers for Carrier {
    fn version(&self, node: NodeNumber, deadline: Instant) -> BoxFuture<'static, Result<Seen, String>> {
        let backhaul = self.0.clone();
        Box::pin(async move {
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = backhaul.ask(node, Ask::Version, left).await.map_err(|error| error.to_string())?;
            codec::decode(&answer).map_err(|error| error.to_string())
        })
    }

    fn barrier(
        &self,
        node: NodeNumber,
        wanted: Vec<Seen>,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<(), String>> {
        let backhaul = self.0.clone();
        Box::pin(async move {
            let left = deadline.saturating_duration_since(Instant::now());
            backhaul.ask(node, Ask::Barrier(wanted), left).await.map_err(|error| error.to_string())?;
            Ok(())
        })
    }
}
