//! What is started: as many Machines as the demand of all edges needs, each once (SPEC AUTO-2).
//!
//! [`Starter`] is the memory of the node that decides: what edges told, each word good for
//! [`DEMAND_FOR`], and which starts are under way, which count as running. A herd of waiting requests
//! therefore starts what its size needs, however often and from how many edges it is told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::autostop::{node_acts, starts_on};
use crate::id::{AppId, MachineId, NodeNumber};
use crate::load::LoadClass;
use crate::machine::MachineState;
use crate::region::RegionCode;
use crate::snapshot::{MachineView, Snapshot};

/// How long an edge's word stands. It repeats it while somebody waits.
pub const DEMAND_FOR: Duration = Duration::from_secs(2);
/// How long a start may be under way and count as running, and no longer.
pub const START_FOR: Duration = Duration::from_secs(30);
/// How long a Machine whose start failed is left alone.
pub const FAILED_FOR: Duration = Duration::from_secs(5);
/// A start takes so long when none was measured yet, in milliseconds.
pub const UNKNOWN_START_MS: u32 = 1_000;
/// Words of edges that are kept; beyond it new ones are not heard until old ones are over.
const MAX_TOLD: usize = 100_000;

/// What there is to do for the Machines of an app in a region, on one public port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Demand {
    /// Requests that wait for a start.
    pub waiting: u32,
    /// Requests in flight.
    pub in_flight: u32,
}

/// A Machine that takes requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Awake {
    /// Its soft limit.
    pub soft: u32,
    /// Whether its node says that it is at or above it.
    pub at_soft: bool,
}

/// A Machine that may be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asleep {
    /// The Machine.
    pub id: MachineId,
    /// Its node.
    pub node: NodeNumber,
    /// Its soft limit.
    pub soft: u32,
    /// Whether it is suspended: quicker than a start.
    pub suspended: bool,
    /// How long its last start took, in milliseconds; 0 is unknown.
    pub start_ms: u32,
}

/// Which of `asleep` are to be started now. `starting` are the soft limits of those that are under way.
///
/// Started are as many as the load needs beyond what runs: load ÷ soft limit, rounded up. Whatever the
/// edges count: when all that run say that they are at their soft limit, and none is under way, one is.
pub fn starts(demand: Demand, awake: &[Awake], starting: &[u32], asleep: &[Asleep]) -> Vec<Asleep> {
    if demand == Demand::default() {
        return Vec::new();
    }
    let told: u32 = awake.iter().filter(|machine| machine.at_soft).map(|machine| machine.soft).sum();
    let load = u64::from(demand.waiting) + u64::from(demand.in_flight.max(told));
    let up = awake.iter().map(|machine| machine.soft).chain(starting.iter().copied());
    let mut room: u64 = up.map(capacity).sum();
    let pressed = starting.is_empty() && awake.iter().all(|machine| machine.at_soft);
    let mut order: Vec<Asleep> = asleep.to_vec();
    order.sort_by_key(|machine| (!machine.suspended, known(machine.start_ms), machine.id));
    let mut begun = Vec::new();
    for machine in order {
        if room >= load && !(pressed && begun.is_empty()) {
            break;
        }
        room += capacity(machine.soft);
        begun.push(machine);
    }
    begun
}

/// A soft limit of 0 counts as 1, or nothing would ever be enough.
fn capacity(soft: u32) -> u64 {
    u64::from(soft.max(1))
}

/// The measured time of a start, or what is assumed of one that was never measured, in milliseconds.
pub fn known(start_ms: u32) -> u32 {
    if start_ms == 0 { UNKNOWN_START_MS } else { start_ms }
}

/// An app's public port in a region.
pub type Place = (AppId, u16, RegionCode);

/// A start under way, or one that failed.
#[derive(Debug, Clone, Copy)]
struct Begun {
    app: AppId,
    at: Instant,
    /// The state that it was begun in: another one is its outcome.
    changed_ms: u64,
    /// It failed; it is left alone until then.
    failed: Option<Instant>,
}

/// The memory of a node that decides.
#[derive(Debug, Default)]
pub struct Starter {
    told: BTreeMap<Place, BTreeMap<NodeNumber, (Demand, Instant)>>,
    words: usize,
    begun: BTreeMap<MachineId, Begun>,
}

impl Starter {
    /// Takes an edge's word, which replaces its last one.
    pub fn tell(&mut self, now: Instant, edge: NodeNumber, place: Place, demand: Demand) {
        if self.words >= MAX_TOLD {
            self.forget(now);
        }
        let known = self.told.get(&place).is_some_and(|edges| edges.contains_key(&edge));
        if !known && self.words >= MAX_TOLD {
            return;
        }
        self.words += usize::from(!known);
        self.told.entry(place).or_default().insert(edge, (demand, now));
    }

    /// What all edges told of a place and still stands.
    pub fn demand(&self, now: Instant, place: Place) -> Demand {
        let words = self.told.get(&place).into_iter().flat_map(BTreeMap::values);
        let standing = words.filter(|(_, at)| now.saturating_duration_since(*at) <= DEMAND_FOR);
        standing.fold(Demand::default(), |sum, (demand, _)| Demand {
            waiting: sum.waiting.saturating_add(demand.waiting),
            in_flight: sum.in_flight.saturating_add(demand.in_flight),
        })
    }

    /// Which Machines are to be started for a place now; they count as running from here on.
    pub fn due(&mut self, now: Instant, place: Place, snapshot: &Snapshot) -> Vec<Asleep> {
        let (app, port, region) = place;
        let demand = self.demand(now, place);
        let Some(app) = snapshot.apps.get(&app) else { return Vec::new() };
        self.settle(now, app.machines.values());
        let (mut awake, mut starting, mut asleep) = (Vec::new(), Vec::new(), Vec::new());
        for machine in app.machines.values().filter(|machine| machine.region == region) {
            match self.stand(machine, port, snapshot) {
                Some(Stand::Awake(up)) => awake.push(up),
                Some(Stand::Starting(soft)) => starting.push(soft),
                Some(Stand::Asleep(down)) => asleep.push(down),
                None => {}
            }
        }
        let begun = starts(demand, &awake, &starting, &asleep);
        for machine in &begun {
            let view = app.machines.get(&(machine.id, machine.node));
            let changed_ms = view.map_or(0, |view| view.record.changed_ms);
            self.begun.insert(machine.id, Begun { app: place.0, at: now, changed_ms, failed: None });
        }
        begun
    }

    /// A start was refused, or its node did not answer: another Machine is next.
    pub fn failed(&mut self, now: Instant, machine: MachineId) {
        if let Some(begun) = self.begun.get_mut(&machine) {
            begun.failed = Some(now + FAILED_FOR);
        }
    }

    /// How the Machine counts for that port; `None` when it does not.
    fn stand(&self, machine: &MachineView, port: u16, snapshot: &Snapshot) -> Option<Stand> {
        let record = &machine.record;
        let config = machine.config.as_ref().filter(|_| !record.cordoned && node_acts(machine, snapshot))?;
        let (_, service, _) = config.tcp_service(port)?;
        let soft = service.limits().soft;
        let begun = self.begun.get(&record.id);
        #[expect(clippy::wildcard_enum_match_arm, reason = "in no other state does it serve, now or soon")]
        match record.state {
            MachineState::Started if record.healthy => {
                let at_soft = record.load > LoadClass::BelowSoft;
                Some(Stand::Awake(Awake { soft, at_soft }))
            }
            MachineState::Started if begun.is_some() => Some(Stand::Starting(soft)),
            MachineState::Starting => Some(Stand::Starting(soft)),
            MachineState::Stopped | MachineState::Suspended => match begun {
                Some(Begun { failed: Some(_), .. }) => None,
                Some(_) => Some(Stand::Starting(soft)),
                None if starts_on(config, port) => Some(Stand::Asleep(Asleep {
                    id: record.id,
                    node: machine.node,
                    soft,
                    suspended: record.state == MachineState::Suspended,
                    start_ms: record.start_ms,
                })),
                None => None,
            },
            _ => None,
        }
    }

    /// Whether a start is under way, so that [`Self::look`] is needed.
    pub fn is_starting(&self) -> bool {
        !self.begun.is_empty()
    }

    /// Takes note of what became of starts; to be called whenever Machines may have changed. One that came up
    /// and ended later is then known from one that ended instead of coming up.
    pub fn look(&mut self, now: Instant, snapshot: &Snapshot) {
        let apps: BTreeSet<AppId> = self.begun.values().map(|begun| begun.app).collect();
        let apps = apps.iter().filter_map(|app| snapshot.apps.get(app));
        self.settle(now, apps.flat_map(|app| app.machines.values()));
    }

    fn settle<'s>(&mut self, now: Instant, machines: impl Iterator<Item = &'s Arc<MachineView>>) {
        for machine in machines {
            let record = &machine.record;
            let Some(begun) = self.begun.get_mut(&record.id) else { continue };
            let asleep = matches!(record.state, MachineState::Stopped | MachineState::Suspended);
            if begun.failed.is_none() && asleep && record.changed_ms != begun.changed_ms {
                // It ended, and nobody saw it up.
                begun.failed = Some(now + FAILED_FOR);
            }
            let over = match begun.failed {
                Some(until) => now >= until,
                None => now.saturating_duration_since(begun.at) >= START_FOR,
            };
            if over || record.routable() {
                self.begun.remove(&record.id);
            }
        }
    }

    /// Forgets what no longer stands; to be called now and then.
    pub fn forget(&mut self, now: Instant) {
        self.told.retain(|_, edges| {
            edges.retain(|_, (_, at)| now.saturating_duration_since(*at) <= DEMAND_FOR);
            !edges.is_empty()
        });
        self.words = self.told.values().map(BTreeMap::len).sum();
        self.begun.retain(|_, begun| now.saturating_duration_since(begun.at) < START_FOR + FAILED_FOR);
    }
}

enum Stand {
    Awake(Awake),
    Starting(u32),
    Asleep(Asleep),
}
