//! Autostop and autostart between nodes: what edges and deciders say to this node and to others.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use skein_cluster::BoxFuture;
use skein_cluster::backhaul::Backhaul;
use skein_core::autostop::Rest;
use skein_core::autostop::start::{Demand, Place};
use skein_core::wire::Ask;
use skein_core::{MachineId, NodeNumber, RegionCode};
use skein_edge::Starts;
use skein_machine::autostop::{AutostopConfig, Demands, Owner, Owners};

use super::config::NodeConfig;

/// How long a question may take: the edge's next word waits for it.
const PATIENCE: Duration = Duration::from_secs(1);

/// A node's part in autostop and autostart. A clone is the same.
#[derive(Debug, Clone)]
pub struct Autostop {
    own: NodeNumber,
    demands: Demands,
    owner: Owner,
    backhaul: Backhaul,
}

/// What `node.toml` says of it.
pub(super) fn config(config: &NodeConfig, node: NodeNumber, region: RegionCode) -> AutostopConfig {
    AutostopConfig {
        node,
        region,
        interval: Duration::from_millis(config.autostop_interval_ms.get().into()),
        batch: config.autostop_batch.get() as usize,
    }
}

impl Autostop {
    /// Of this node.
    pub(super) fn new(own: NodeNumber, demands: Demands, owner: Owner, backhaul: Backhaul) -> Self {
        Self { own, demands, owner, backhaul }
    }

    /// The last word on this node's Machines.
    pub(super) fn owner(&self) -> Owner {
        self.owner.clone()
    }

    /// Takes what another node's edge needs in this node's region.
    pub(super) fn told(&self, edge: NodeNumber, place: Place, demand: Demand) {
        self.demands.tell(edge, place, demand);
    }

    /// Starts a Machine of this node that traffic needs.
    pub(super) async fn start(&self, machine: MachineId) -> Result<Bytes, String> {
        self.owner.start(machine).await.map(|()| Bytes::new()).map_err(|error| error.to_string())
    }

    /// Brings a Machine of this node to rest that seems to be one too many.
    pub(super) async fn rest(&self, machine: MachineId, suspend: bool) -> Result<Bytes, String> {
        let rest = if suspend { Rest::Suspend } else { Rest::Stop };
        self.owner.rest(machine, rest).await.map(|()| Bytes::new()).map_err(|error| error.to_string())
    }

    fn ask(&self, to: NodeNumber, ask: Ask) -> BoxFuture<'static, Result<(), String>> {
        let backhaul = self.backhaul.clone();
        Box::pin(
            async move { backhaul.ask(to, ask, PATIENCE).await.map(drop).map_err(|error| error.to_string()) },
        )
    }
}

impl Starts for Autostop {
    fn demand(
        &self,
        decider: NodeNumber,
        place: Place,
        demand: Demand,
    ) -> BoxFuture<'static, Result<(), String>> {
        if decider == self.own {
            self.told(self.own, place, demand);
            return Box::pin(async { Ok(()) });
        }
        let ((app, port, region), Demand { waiting, in_flight }) = (place, demand);
        self.ask(decider, Ask::Demand { app, port, region, waiting, in_flight })
    }

    fn start(&self, owner: NodeNumber, machine: MachineId) -> BoxFuture<'static, Result<(), String>> {
        if owner != self.own {
            return self.ask(owner, Ask::Start(machine));
        }
        let this = self.clone();
        Box::pin(async move { Self::start(&this, machine).await.map(drop) })
    }
}

impl Owners for Autostop {
    fn start(&self, node: NodeNumber, machine: MachineId) -> BoxFuture<'static, Result<(), String>> {
        self.ask(node, Ask::Start(machine))
    }

    fn rest(
        &self,
        node: NodeNumber,
        machine: MachineId,
        rest: Rest,
    ) -> BoxFuture<'static, Result<(), String>> {
        self.ask(node, Ask::Rest { machine, suspend: rest == Rest::Suspend })
    }
}

/// Runs this node's part until cancelled.
pub(super) fn part(
    config: AutostopConfig,
    autostop: Autostop,
    reader: skein_cluster::Reader,
    arrivals: skein_machine::autostop::Arrivals,
) -> impl Fn(tokio_util::sync::CancellationToken) -> BoxFuture<'static, ()> + Send + Sync + 'static {
    move |cancel| {
        let (owner, others) = (autostop.owner(), Arc::new(autostop.clone()) as Arc<dyn Owners>);
        let (reader, arrivals) = (reader.clone(), Arc::clone(&arrivals));
        Box::pin(skein_machine::autostop::run(config, owner, others, reader, arrivals, cancel))
    }
}
