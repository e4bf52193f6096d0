//! What this node's Machines show to the others: the API's views, the proxy's [`LocalMachine`]s and
//! the records for gossip, changed together.
//!
//! Readers take no lock. The writers, one actor per Machine and the load sampler, meet in one mutex
//! that is held for the time of a few map inserts and never across an await.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use arc_swap::{ArcSwap, ArcSwapOption};
use imbl::OrdMap;
use ractor::ActorRef;
use skein_cluster::{LocalMachine, LocalPublisher};
use skein_core::MachineId;
use skein_core::load::LoadClass;
use skein_core::machine::MachineState;
use skein_core::record::Record;
use tokio::sync::watch;

use crate::actor::Message;
use crate::log::MachineLog;
use crate::stored::View;

/// Destroyed Machines that can still be asked for.
const KEPT_DESTROYED: usize = 100;

/// The fixed point of a Machine that others hold while its actor may be restarted.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) view: watch::Sender<Arc<View>>,
    pub(crate) actor: ArcSwapOption<ActorRef<Message>>,
    pub(crate) log: Arc<MachineLog>,
}

#[derive(Debug)]
pub(crate) struct Board {
    entries: ArcSwap<OrdMap<MachineId, Arc<Entry>>>,
    records: watch::Sender<OrdMap<MachineId, Record>>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    publisher: LocalPublisher,
    locals: OrdMap<MachineId, Arc<LocalMachine>>,
    loads: BTreeMap<MachineId, LoadClass>,
    destroyed: std::collections::VecDeque<MachineId>,
}

/// What a Machine shows.
pub(crate) struct Shown {
    pub(crate) view: View,
    /// `None` once it is destroyed.
    pub(crate) local: Option<LocalMachine>,
}

impl Board {
    pub(crate) fn new(publisher: LocalPublisher) -> Self {
        Self {
            entries: ArcSwap::default(),
            records: watch::Sender::new(OrdMap::new()),
            inner: Mutex::new(Inner {
                publisher,
                locals: OrdMap::new(),
                loads: BTreeMap::new(),
                destroyed: std::collections::VecDeque::new(),
            }),
        }
    }

    pub(crate) fn entries(&self) -> Arc<OrdMap<MachineId, Arc<Entry>>> {
        self.entries.load_full()
    }

    pub(crate) fn entry(&self, id: MachineId) -> Option<Arc<Entry>> {
        self.entries.load_full().get(&id).cloned()
    }

    pub(crate) fn records(&self) -> watch::Receiver<OrdMap<MachineId, Record>> {
        self.records.subscribe()
    }

    pub(crate) fn local(&self, id: MachineId) -> Option<Arc<LocalMachine>> {
        self.with(|inner| inner.locals.get(&id).cloned())
    }

    pub(crate) fn locals(&self) -> OrdMap<MachineId, Arc<LocalMachine>> {
        self.with(|inner| inner.locals.clone())
    }

    /// Adds a Machine that no actor has published yet.
    pub(crate) fn add(&self, id: MachineId, entry: Arc<Entry>) {
        self.with(|_| self.insert(id, entry));
    }

    /// Takes back a Machine whose actor could not be started.
    pub(crate) fn withdraw(&self, id: MachineId) {
        self.with(|inner| {
            let mut entries = OrdMap::clone(&self.entries.load_full());
            entries.remove(&id);
            self.entries.store(Arc::new(entries));
            inner.locals.remove(&id);
            inner.publisher.publish(inner.locals.clone());
            self.records.send_if_modified(|records| records.remove(&id).is_some());
        });
    }

    fn insert(&self, id: MachineId, entry: Arc<Entry>) {
        let mut entries = OrdMap::clone(&self.entries.load_full());
        entries.insert(id, entry);
        self.entries.store(Arc::new(entries));
    }

    /// Shows the whole of a Machine. The proxy sees it before this returns.
    pub(crate) fn publish(&self, entry: &Entry, shown: Shown) {
        let Shown { view, local } = shown;
        let id = view.stored.id;
        self.with(|inner| {
            match local {
                Some(local) => {
                    inner.locals.insert(id, Arc::new(local));
                    let load = inner.loads.get(&id).copied().unwrap_or(LoadClass::BelowSoft);
                    let record = record(&view, load);
                    self.records.send_if_modified(|records| {
                        let changed = records.get(&id) != Some(&record);
                        if changed {
                            records.insert(id, record);
                        }
                        changed
                    });
                }
                None => {
                    inner.locals.remove(&id);
                    inner.loads.remove(&id);
                    self.records.send_if_modified(|records| records.remove(&id).is_some());
                    inner.destroyed.push_back(id);
                    if inner.destroyed.len() > KEPT_DESTROYED
                        && let Some(oldest) = inner.destroyed.pop_front()
                    {
                        let mut entries = OrdMap::clone(&self.entries.load_full());
                        entries.remove(&oldest);
                        self.entries.store(Arc::new(entries));
                    }
                }
            }
            inner.publisher.publish(inner.locals.clone());
            entry.view.send_replace(Arc::new(view));
        });
    }

    /// Shows how loaded a Machine is.
    pub(crate) fn set_load(&self, id: MachineId, load: LoadClass) {
        self.with(|inner| {
            if !inner.locals.contains_key(&id) {
                return;
            }
            inner.loads.insert(id, load);
            self.records.send_if_modified(|records| match records.get_mut(&id) {
                Some(record) if record.load != load => {
                    record.load = load;
                    true
                }
                Some(_) | None => false,
            });
        });
    }

    /// The one place that locks.
    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

fn record(view: &View, load: LoadClass) -> Record {
    let stored = &view.stored;
    Record {
        id: stored.id,
        app: stored.app,
        group: stored.config.process_group(),
        state: stored.state,
        healthy: view.healthy,
        cordoned: stored.cordoned,
        load,
        config: stored.hash,
        version: stored.version,
        number: stored.number,
        changed_ms: stored.changed_ms,
        start_ms: match (stored.state, stored.resume_ms) {
            (MachineState::Suspending | MachineState::Suspended, 1..) => stored.resume_ms,
            _ => stored.start_ms,
        },
    }
}
