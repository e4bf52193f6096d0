//! Autostop and autostart at a node (SPEC AUTO-1, AUTO-2): what `skein_core::autostop` decides, carried out.
//!
//! [`Owner`] is the last word of a node on its own Machines. [`run`] is the node's part in deciding for
//! apps of its region: it takes the demands of edges as they come, and looks for what is one too many in
//! every interval. It waits for no answer: questions to owners are tasks of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use skein_cluster::{BoxFuture, Reader, clock};
use skein_core::autostop::start::{Demand, Place, Starter};
use skein_core::autostop::{Rest, decider, stop};
use skein_core::snapshot::{AppView, Snapshot};
use skein_core::{MachineId, NodeNumber, RegionCode};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

pub use self::owner::{NotRested, NotWoken, Owner};

mod owner;

/// Demands that may wait to be taken; beyond it they are lost, and repeated by those who wait.
const TOLD: usize = 1_024;

/// How autostop is to go at a node.
#[derive(Debug, Clone, Copy)]
pub struct AutostopConfig {
    /// The node.
    pub node: NodeNumber,
    /// Its region, whose apps it decides for with the other nodes there.
    pub region: RegionCode,
    /// Time between two looks for what is one too many, and the least time that a Machine runs: 120 s.
    pub interval: Duration,
    /// At most so many Machines of an app and process group stop at once: 1.
    pub batch: usize,
}

/// Asks other nodes about their Machines.
pub trait Owners: Send + Sync + 'static {
    /// Starts a Machine of that node; an error says why not.
    fn start(&self, node: NodeNumber, machine: MachineId) -> BoxFuture<'static, Result<(), String>>;
    /// Brings a Machine of that node to rest; an error says why not.
    fn rest(
        &self,
        node: NodeNumber,
        machine: MachineId,
        rest: Rest,
    ) -> BoxFuture<'static, Result<(), String>>;
}

/// What an edge told.
type Told = (NodeNumber, Place, Demand);

/// Takes the demands of edges.
#[derive(Debug, Clone)]
pub struct Demands(mpsc::Sender<Told>);

/// The other end of [`Demands`].
pub type Arrivals = Arc<tokio::sync::Mutex<mpsc::Receiver<Told>>>;

/// Where demands go, and where [`run`] takes them from; one of its lives at a time.
pub fn demands() -> (Demands, Arrivals) {
    let (sender, receiver) = mpsc::channel(TOLD);
    (Demands(sender), Arc::new(tokio::sync::Mutex::new(receiver)))
}

impl Demands {
    /// Takes what an edge needs in this node's region, whether or not this node decides by its own view: the
    /// edge's may be newer. Never waits.
    pub fn tell(&self, edge: NodeNumber, place: Place, demand: Demand) {
        if self.0.try_send((edge, place, demand)).is_err() {
            tracing::debug!(%edge, "a demand was not taken; it is repeated while it lasts");
        }
    }
}

/// Decides for apps of this node's region until cancelled.
pub async fn run(
    config: AutostopConfig,
    owner: Owner,
    others: Arc<dyn Owners>,
    reader: Reader,
    arrivals: Arrivals,
    cancel: CancellationToken,
) {
    let mut arrivals = arrivals.lock().await;
    let deciding = Arc::new(Deciding { config, owner, others, reader });
    let mut starter = Starter::default();
    let (mut starting, mut stopping) = (JoinSet::new(), JoinSet::new());
    let mut news = deciding.reader.watch();
    let mut ticks = tokio::time::interval(config.interval);
    // After a pause of this process nothing is made up for: its view is from before.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            Some((edge, place, demand)) = arrivals.recv() => {
                let now = clock::now();
                starter.tell(now, edge, place, demand);
                for machine in starter.due(now, place, &deciding.reader.load()) {
                    let deciding = Arc::clone(&deciding);
                    starting.spawn(async move {
                        (machine.id, deciding.start(machine.node, machine.id).await)
                    });
                }
            }
            Ok(()) = news.changed(), if starter.is_starting() => {
                starter.look(clock::now(), &deciding.reader.load());
            }
            Some(ended) = starting.join_next() => match ended {
                Ok((_, Ok(()))) => {}
                Ok((machine, Err(error))) => {
                    tracing::warn!(%machine, error, "a Machine that traffic needs was not started");
                    starter.failed(clock::now(), machine);
                }
                Err(error) => tracing::error!(%error, "a start broke"),
            },
            Some(ended) = stopping.join_next() => if let Err(error) = ended {
                tracing::error!(%error, "a look for idle Machines broke");
            },
            _ = ticks.tick() => {
                let now = clock::now();
                starter.forget(now);
                if deciding.owner.look(now) && stopping.is_empty() {
                    deciding.round(&mut stopping);
                }
            }
        }
    }
}

struct Deciding {
    config: AutostopConfig,
    owner: Owner,
    others: Arc<dyn Owners>,
    reader: Reader,
}

impl Deciding {
    async fn start(&self, node: NodeNumber, machine: MachineId) -> Result<(), String> {
        if node == self.config.node {
            return self.owner.start(machine).await.map_err(|error| error.to_string());
        }
        self.others.start(node, machine).await
    }

    async fn rest(&self, node: NodeNumber, machine: MachineId, rest: Rest) -> Result<(), String> {
        if node == self.config.node {
            return self.owner.rest(machine, rest).await.map_err(|error| error.to_string());
        }
        self.others.rest(node, machine, rest).await
    }

    /// One look at every app that this node decides for.
    fn round(self: &Arc<Self>, stopping: &mut JoinSet<()>) {
        let snapshot = self.reader.load();
        for app in snapshot.apps.values() {
            for stops in self.stops(app, &snapshot) {
                let deciding = Arc::clone(self);
                stopping.spawn(async move { deciding.carry_out(stops).await });
            }
        }
    }

    fn stops(&self, app: &AppView, snapshot: &Snapshot) -> Vec<stop::Stops> {
        let AutostopConfig { node, region, batch, .. } = self.config;
        let here = app.machines.values().any(|machine| machine.node == node);
        if !here || !decider::decides(node, app, region, snapshot) {
            return Vec::new();
        }
        let groups = stop::running(app, region, snapshot, clock::monotonic_ms());
        let stops = groups.values().map(|running| stop::stops(running, batch));
        stops.filter(|stops| stops.count > 0 && !stops.among.is_empty()).collect()
    }

    /// Asks owners, one after another, until so many came to rest.
    async fn carry_out(&self, stops: stop::Stops) {
        let mut left = stops.count;
        for (machine, node, rest) in stops.among {
            if left == 0 {
                return;
            }
            match self.rest(node, machine, rest).await {
                Ok(()) => left -= 1,
                Err(error) => tracing::debug!(%machine, %node, error, "a Machine stays up"),
            }
        }
    }
}

/// Whether `now` is so long after the last look that this process was away: it was paused, or the
/// machine slept. What it believes to be idle is then only old.
fn was_away(last: Option<Instant>, now: Instant, interval: Duration) -> bool {
    last.is_some_and(|last| now.saturating_duration_since(last) > interval * 3)
}
