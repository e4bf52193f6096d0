//! What this edge's requests want started, told to those who can (SPEC AUTO-2).
//!
//! One word per app, port and place in [`EVERY`] while somebody waits, whatever the number of requests:
//! each adds to counters, and one task per place tells them. Requests take no lock, and those of apps
//! whose Machines all run never come here.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use skein_cluster::backhaul::Peers;
use skein_cluster::{BoxFuture, Reader};
use skein_core::autostop::decider::deciders;
use skein_core::autostop::start::{Demand, Place};
use skein_core::autostop::wake::Want;
use skein_core::region::RegionCode;
use skein_core::snapshot::Snapshot;
use skein_core::suspicion::Proximity as _;
use skein_core::{AppId, MachineId, NodeNumber};
use tokio_util::task::TaskTracker;

/// Time between two words about one place.
pub const EVERY: Duration = Duration::from_millis(100);
/// Places that are remembered; beyond it those that nobody wants now are forgotten.
const MAX_CELLS: usize = 1_024;

/// Carries what an edge wants to the nodes that act on it, this one included. Each answer comes within a
/// second: the next word waits for it.
pub trait Starts: Debug + Send + Sync + 'static {
    /// Tells the node that decides for a place what this edge needs there; an error says that it did not
    /// hear it.
    fn demand(
        &self,
        decider: NodeNumber,
        place: Place,
        demand: Demand,
    ) -> BoxFuture<'static, Result<(), String>>;
    /// Asks a node to start one of its Machines; an error says why it is not started.
    fn start(&self, owner: NodeNumber, machine: MachineId) -> BoxFuture<'static, Result<(), String>>;
}

type Key = (AppId, u16, Want);

/// What one place is wanted for.
#[derive(Debug, Default)]
struct Cell {
    waiting: AtomicU32,
    /// Somebody wanted it since the last word.
    wanted: AtomicBool,
    /// A task tells of it.
    told: AtomicBool,
}

/// A request that waits while something is started for it, until it is dropped.
#[derive(Debug)]
pub(crate) struct Waiting {
    cell: Arc<Cell>,
    app: AppId,
    /// What is to be started.
    pub(crate) want: Want,
    /// Whether it waits for nothing else: no Machine that runs could take it.
    pub(crate) only: bool,
}

impl Waiting {
    /// Whether it waits for that.
    pub(crate) fn is_for(&self, app: AppId, want: Want) -> bool {
        (self.app, self.want) == (app, want)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.cell.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

/// All that this edge's requests want started.
#[derive(Debug, Clone)]
pub(crate) struct Demands(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    starts: Arc<dyn Starts>,
    reader: Reader,
    peers: Arc<Peers>,
    tasks: TaskTracker,
    cells: ArcSwap<BTreeMap<Key, Arc<Cell>>>,
}

impl Demands {
    pub(crate) fn new(
        starts: Arc<dyn Starts>,
        reader: Reader,
        peers: Arc<Peers>,
        tasks: TaskTracker,
    ) -> Self {
        Self(Arc::new(Shared { starts, reader, peers, tasks, cells: ArcSwap::default() }))
    }

    /// A request wants a start and goes on.
    pub(crate) fn want(&self, app: AppId, port: u16, want: Want) {
        let cell = self.cell((app, port, want));
        self.tell((app, port, want), cell);
    }

    /// A request wants a start and waits, until the guard is dropped.
    pub(crate) fn wait(&self, app: AppId, port: u16, want: Want) -> Waiting {
        let cell = self.cell((app, port, want));
        cell.waiting.fetch_add(1, Ordering::AcqRel);
        let waiting = Waiting { cell: Arc::clone(&cell), app, want, only: false };
        self.tell((app, port, want), cell);
        waiting
    }

    fn cell(&self, key: Key) -> Arc<Cell> {
        if let Some(cell) = self.0.cells.load().get(&key) {
            return Arc::clone(cell);
        }
        let fresh = Arc::new(Cell::default());
        self.0.cells.rcu(|cells| {
            let mut cells = BTreeMap::clone(cells);
            if cells.len() >= MAX_CELLS {
                cells.retain(|_, cell| cell.told.load(Ordering::Acquire));
            }
            cells.entry(key).or_insert_with(|| Arc::clone(&fresh));
            cells
        });
        self.0.cells.load().get(&key).map_or(fresh, Arc::clone)
    }

    fn tell(&self, key: Key, cell: Arc<Cell>) {
        cell.wanted.store(true, Ordering::Release);
        if !cell.told.swap(true, Ordering::AcqRel) {
            let shared = Arc::clone(&self.0);
            self.0.tasks.spawn(async move { shared.go_on_telling(key, &cell).await });
        }
    }
}

impl Shared {
    async fn go_on_telling(&self, key: Key, cell: &Cell) {
        loop {
            cell.wanted.store(false, Ordering::Release);
            let next = tokio::time::Instant::now() + EVERY;
            self.say(key, cell).await;
            tokio::time::sleep_until(next).await;
            let over = || !cell.wanted.load(Ordering::Acquire) && cell.waiting.load(Ordering::Acquire) == 0;
            if over() {
                cell.told.store(false, Ordering::Release);
                // Whoever came in between found it told.
                if over() || cell.told.swap(true, Ordering::AcqRel) {
                    return;
                }
            }
        }
    }

    async fn say(&self, (app, port, want): Key, cell: &Cell) {
        let region = match want {
            Want::Region(region) => region,
            Want::Machine(machine, owner) => {
                if let Err(error) = self.starts.start(owner, machine).await {
                    tracing::info!(%machine, error, "a Machine that a request asks for was not started");
                }
                return;
            }
        };
        let snapshot = self.reader.load();
        let Some(view) = snapshot.apps.get(&app) else { return };
        let in_flight = in_flight(&snapshot, app, region);
        let waiting = cell.waiting.load(Ordering::Acquire);
        // Requests that went on to another region count there: one of them would have been here.
        let waiting = if in_flight == 0 { waiting.max(1) } else { waiting };
        let mut order = deciders(view, region, &snapshot);
        order.sort_by_key(|node| self.peers.suspect(*node));
        for decider in order {
            match self.starts.demand(decider, (app, port, region), Demand { waiting, in_flight }).await {
                Ok(()) => return,
                Err(error) => tracing::debug!(%decider, error, "a demand was not heard"),
            }
        }
    }
}

/// What this edge has in flight at an app's Machines in a region.
fn in_flight(snapshot: &Snapshot, app: AppId, region: RegionCode) -> u32 {
    let machines = snapshot.apps.get(&app).into_iter().flat_map(|app| app.machines.values());
    machines.filter(|machine| machine.region == region).map(|machine| machine.estimate.own()).sum()
}
