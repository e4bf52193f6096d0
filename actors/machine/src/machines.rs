//! The handle to all Machines of this node.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use imbl::OrdMap;
use ractor::{Actor, ActorRef};
use skein_cluster::entropy::Entropy;
use skein_cluster::store::Store;
use skein_cluster::{LocalPublisher, clock};
use skein_core::machine::{MachineConfig, MachineJson, MachineState};
use skein_core::record::Record;
use skein_core::{
    AppId, AppName, ConfigHash, MachineId, NodeName, NodeNumber, Random, RegionCode, VersionId,
};
use skein_supervise::{Child, Drain, GiveUp, Intensity, Life, Start, SupervisorMessage};
use tokio::sync::watch;

use crate::actor::{Call, MachineActor, Message};
use crate::board::{Board, Entry};
use crate::config::{Create, MachinesConfig, StartError};
use crate::error::MachineError;
use crate::holder::Spawner;
use crate::life::{Desired, MAX_KILL_TIMEOUT, Source, StopHow, signal_number};
use crate::log::{LogLine, MachineLog};
use crate::stored::{Row, Stored, TABLE, View, canonical};
use crate::{load, names, plan, strays};

/// The table of what is not of one Machine, and its only row: the last number given.
const META: &str = "machine_meta";
const LAST_NUMBER: &str = "last_number";

/// How long killed processes may take to be gone.
const KILLED_WITHIN: Duration = Duration::from_secs(10);

/// What all Machine actors of a node share.
pub(crate) struct Shared {
    pub(crate) node: NodeNumber,
    pub(crate) node_name: NodeName,
    pub(crate) region: RegionCode,
    pub(crate) spawner: Spawner,
    pub(crate) store: Store,
    pub(crate) inherited: BTreeMap<String, String>,
    pub(crate) working_dir: PathBuf,
    pub(crate) adopt_grace: Duration,
    pub(crate) adopt_dir: PathBuf,
    pub(crate) listens_within: Duration,
    pub(crate) board: Arc<Board>,
    last_number: tokio::sync::Mutex<u32>,
}

impl Shared {
    /// A new id for a version or an event: sortable by time.
    pub(crate) fn version(&self) -> VersionId {
        VersionId::generate(clock::unix_ms(), &mut Entropy::default())
    }
}

/// All Machines of this node. A clone is the same.
#[derive(Clone)]
pub struct Machines {
    shared: Arc<Shared>,
    supervisor: ActorRef<SupervisorMessage>,
    tasks: Drain,
}

impl std::fmt::Debug for Machines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machines").field("node", &self.shared.node).finish_non_exhaustive()
    }
}

impl Machines {
    /// Brings back the Machines that the store knows, each in its desired state, and waits for none.
    ///
    /// # Errors
    /// [`StartError`]. A Machine whose row can't be read is left out and logged; the others come.
    pub async fn start(config: MachinesConfig, publisher: LocalPublisher) -> Result<Self, StartError> {
        let last_number = config.store.get::<u32>(META, LAST_NUMBER).await?.unwrap_or(0);
        let rows = config.store.list::<Row>(TABLE).await?.rows;
        // Sockets have short paths, and only the node's own user may open them.
        let adopt_dir = config.data_dir.join("init");
        if !config.adopt_grace.is_zero() {
            let private = std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
                .recursive(true)
                .create(&adopt_dir);
            private?;
        }
        let supervisor = skein_supervise::spawn(clock::now, None)
            .await
            .map_err(|error| StartError::Supervisor(error.to_string()))?;
        let shared = Arc::new(Shared {
            node: config.node,
            node_name: config.node_name,
            region: config.region,
            spawner: Spawner::new(&config.exe)?,
            store: config.store,
            inherited: config.inherited,
            working_dir: config.working_dir,
            adopt_grace: config.adopt_grace,
            adopt_dir,
            listens_within: config.listens_within,
            board: Arc::new(Board::new(publisher)),
            last_number: tokio::sync::Mutex::new(last_number),
        });
        let machines = Self { shared, supervisor, tasks: Drain::new() };
        machines.tasks.spawn(load::sample(Arc::clone(&machines.shared.board)));
        if config.adopt_grace.is_zero() {
            // What was left by a node and an init that were killed together.
            let ids = rows.iter().filter_map(|(key, _)| key.parse().ok()).collect();
            let swept = tokio::task::spawn_blocking(move || strays::end(&ids)).await;
            if let Ok(count @ 1..) = swept {
                tracing::warn!(count, "processes of a former life of this node were killed");
            }
        }
        for (key, row) in rows {
            let outcome = match Stored::from_row(row) {
                Ok(stored) => machines.bring_up(stored).await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            if let Err(error) = outcome {
                tracing::error!(machine = key, error, "a stored Machine could not be brought back");
            }
        }
        Ok(machines)
    }

    /// Makes a Machine and, unless `skip_launch`, starts it; its configuration is on the disk when
    /// this returns. It is then `created` or `starting`: wait for `started`.
    ///
    /// # Errors
    /// [`MachineError::Invalid`], [`MachineError::NotProvided`] or [`MachineError::Unavailable`].
    pub async fn create(&self, create: Create) -> Result<MachineJson, MachineError> {
        plan::validate(&create.config)?;
        let (config_json, hash) = canonical(&create.config)
            .map_err(|error| MachineError::Invalid(format!("it can't be written as JSON: {error}")))?;
        let name = match create.name.filter(|name| !name.is_empty()) {
            None => names::generate(&mut Entropy::default()),
            Some(name) if name.len() <= 63 && !name.contains(char::is_control) => name,
            Some(_) => {
                return Err(MachineError::Invalid(
                    "name has to be 1 to 63 characters without control characters".into(),
                ));
            }
        };
        let now = clock::unix_ms();
        let stored = Stored {
            id: self.fresh_id(),
            app: create.app,
            app_name: create.app_name,
            network: create.network,
            name,
            number: self.next_number().await?,
            config: Arc::new(create.config),
            config_json,
            hash,
            version: self.shared.version(),
            desired: if create.skip_launch { Desired::Stopped } else { Desired::Started },
            state: MachineState::Created,
            cordoned: create.cordoned,
            created_ms: now,
            updated_ms: now,
            changed_ms: now,
            start_ms: 0,
            resume_ms: 0,
            events: Default::default(),
            adopt: None,
        };
        let id = stored.id;
        let unavailable =
            |error: String| MachineError::Unavailable(format!("the node could not store it: {error}"));
        let row = stored.row().map_err(|error| unavailable(error.to_string()))?;
        self.shared
            .store
            .put(TABLE, &id.to_string(), &row)
            .await
            .map_err(|error| unavailable(error.to_string()))?;
        self.bring_up(stored).await?;
        self.get(id)
    }

    /// Replaces a configuration; a process that runs is stopped first. With `skip_launch` it stays
    /// stopped, else it is started with the new one. `current_version` guards against lost updates.
    ///
    /// # Errors
    /// [`MachineError`]; the configuration is then as before.
    pub async fn update(
        &self,
        id: MachineId,
        config: MachineConfig,
        skip_launch: bool,
        current_version: Option<String>,
    ) -> Result<MachineJson, MachineError> {
        let call = Call::Update { config: Box::new(config), launch: !skip_launch, current: current_version };
        self.call(id, call).await?;
        self.get(id)
    }

    /// Starts a Machine, or lets a suspended one go on; the state it was in. It does nothing to one that
    /// runs.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn start_machine(&self, id: MachineId) -> Result<MachineState, MachineError> {
        self.call(id, Call::Start).await
    }

    /// Begins a stop (SPEC RUN-5); the state it was in. Signal and kill timeout are as configured when
    /// `None`.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn stop(
        &self,
        id: MachineId,
        signal: Option<String>,
        timeout: Option<Duration>,
    ) -> Result<MachineState, MachineError> {
        self.call(id, Call::Stop(how(signal, timeout)?)).await
    }

    /// Begins a stop that is followed by a start. A timeout of zero is a forced one: no drain, and
    /// SIGKILL at once.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn restart(
        &self,
        id: MachineId,
        signal: Option<String>,
        timeout: Option<Duration>,
    ) -> Result<MachineState, MachineError> {
        let force = timeout.is_some_and(|timeout| timeout.is_zero());
        self.call(id, Call::Restart(StopHow { force, ..how(signal, timeout)? })).await
    }

    /// Begins a suspension: the process and its memory stay and wait for a start (SPEC AUTO-3). What is
    /// in flight is waited for as long as a stop would. The state that it was in.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn suspend(&self, id: MachineId) -> Result<MachineState, MachineError> {
        self.call(id, Call::Suspend(Source::User)).await
    }

    /// Removes a Machine; while it runs only with `force`, which kills it.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn destroy(&self, id: MachineId, force: bool) -> Result<(), MachineError> {
        self.call(id, Call::Destroy { force }).await.map(drop)
    }

    /// Takes a Machine out of routing.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn cordon(&self, id: MachineId) -> Result<(), MachineError> {
        self.call(id, Call::Cordon(true)).await.map(drop)
    }

    /// Puts a Machine back into routing.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn uncordon(&self, id: MachineId) -> Result<(), MachineError> {
        self.call(id, Call::Cordon(false)).await.map(drop)
    }

    /// Signals a Machine's first process, with a name or a number.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn signal(&self, id: MachineId, signal: String) -> Result<(), MachineError> {
        let number = signal_number(&signal).map_err(MachineError::Invalid)?;
        self.call(id, Call::Signal(number)).await.map(drop)
    }

    /// Waits until the Machine is in one of `states` and, if given, of that version. Looks at what
    /// is, not at what happens: a state that was reached before counts.
    ///
    /// # Errors
    /// [`MachineError::Deadline`], or [`MachineError::Unreachable`] as soon as only another call
    /// could lead there.
    pub async fn wait(
        &self,
        id: MachineId,
        states: Vec<MachineState>,
        version: Option<VersionId>,
        timeout: Duration,
    ) -> Result<MachineJson, MachineError> {
        let entry = self.shared.board.entry(id).ok_or(MachineError::NotFound(id))?;
        let mut view = entry.view.subscribe();
        let there = |view: &View| {
            states.contains(&view.stored.state)
                && version.is_none_or(|version| version == view.stored.version)
        };
        let hopeless = |view: &View| {
            let stuck = matches!(view.stored.state, MachineState::Failed | MachineState::LaunchFailed);
            let only = |wanted| states.iter().all(|state| *state == wanted);
            let unsuspended = view.stored.state == MachineState::Stopped && only(MachineState::Suspended);
            (stuck && only(MachineState::Started)) || unsuspended || view.stored.state.is_final()
        };
        let decided = view.wait_for(|view| there(view) || hopeless(view));
        let wanted = || states.iter().map(|state| state.as_str()).collect::<Vec<_>>().join(" or ");
        let outcome =
            tokio::time::timeout(timeout, decided).await.map(|view| view.map(|view| Arc::clone(&view)));
        match outcome {
            Ok(Ok(view)) if there(&view) => Ok(self.json(&view)),
            Ok(Ok(view)) => Err(MachineError::Unreachable {
                wanted: wanted(),
                current: view.stored.state,
                why: view.error.clone().unwrap_or_else(|| {
                    let no_process = view.stored.state == MachineState::Stopped;
                    if no_process { "it has no process; start it first" } else { "it is gone" }.into()
                }),
            }),
            Ok(Err(_)) => Err(MachineError::NotFound(id)),
            Err(_) => {
                Err(MachineError::Deadline { wanted: wanted(), current: entry.view.borrow().stored.state })
            }
        }
    }

    /// A Machine as the API shows it; a destroyed one for a while too.
    ///
    /// # Errors
    /// [`MachineError::NotFound`].
    pub fn get(&self, id: MachineId) -> Result<MachineJson, MachineError> {
        let entry = self.shared.board.entry(id).ok_or(MachineError::NotFound(id))?;
        let view = Arc::clone(&entry.view.borrow());
        Ok(self.json(&view))
    }

    /// A Machine's app and its name, without the rest; destroyed ones for a while too.
    pub fn app_of(&self, id: MachineId) -> Option<(AppId, AppName)> {
        let entry = self.shared.board.entry(id)?;
        let view = Arc::clone(&entry.view.borrow());
        Some((view.stored.app, view.stored.app_name.clone()))
    }

    /// What went wrong last with a Machine that is not running as it should.
    pub fn last_error(&self, id: MachineId) -> Option<String> {
        let entry = self.shared.board.entry(id)?;
        let view = Arc::clone(&entry.view.borrow());
        view.error.clone()
    }

    /// The Machines, by id; of one app when it is named. Destroyed ones stand there for a while, in
    /// that state.
    pub fn list(&self, app: Option<AppId>) -> Vec<MachineJson> {
        let entries = self.shared.board.entries();
        let views = entries.values().map(|entry| Arc::clone(&entry.view.borrow()));
        views
            .filter(|view| app.is_none_or(|app| app == view.stored.app))
            .map(|view| self.json(&view))
            .collect()
    }

    /// The canonical JSON of the configuration of that hash, for the nodes that ask for it.
    pub fn config_json(&self, hash: ConfigHash) -> Option<Bytes> {
        let entries = self.shared.board.entries();
        let mut views = entries.values().map(|entry| Arc::clone(&entry.view.borrow()));
        views.find(|view| view.stored.hash == hash).map(|view| view.stored.config_json.clone())
    }

    /// The node's region.
    pub(crate) fn region(&self) -> RegionCode {
        self.shared.region
    }

    /// A Machine as the proxy sees it.
    pub(crate) fn local(&self, id: MachineId) -> Option<Arc<skein_cluster::LocalMachine>> {
        self.shared.board.local(id)
    }

    /// All Machines as the proxy sees them.
    pub(crate) fn locals(&self) -> OrdMap<MachineId, Arc<skein_cluster::LocalMachine>> {
        self.shared.board.locals()
    }

    /// The records for gossip, by Machine; changes whenever one does.
    pub fn records(&self) -> watch::Receiver<OrdMap<MachineId, Record>> {
        self.shared.board.records()
    }

    /// The last lines that a Machine wrote, oldest first.
    pub fn logs(&self, id: MachineId) -> Option<Vec<LogLine>> {
        self.shared.board.entry(id).map(|entry| entry.log.lines())
    }

    /// Stops all Machines as configured, without forgetting that they are to run with the node's
    /// next life. What has not ended within `patience` is killed. Returns when no process is left.
    pub async fn shutdown(&self, patience: Duration) {
        let entries = self.shared.board.entries();
        let mut closing = tokio::task::JoinSet::new();
        for entry in entries.values() {
            let Some(actor) = entry.actor.load_full() else { continue };
            closing.spawn(async move {
                // An actor that is gone holds no process.
                let _ = ractor::call!(actor, Message::Close);
            });
        }
        let all = async { while closing.join_next().await.is_some() {} };
        tokio::pin!(all);
        if tokio::time::timeout(patience, &mut all).await.is_err() {
            tracing::warn!("Machines did not stop in time; they are killed");
            for actor in entries.values().filter_map(|entry| entry.actor.load_full()) {
                // An actor that is gone holds no process.
                let _ = actor.cast(Message::End);
            }
            if tokio::time::timeout(KILLED_WITHIN, &mut all).await.is_err() {
                tracing::error!("processes of Machines hang in the kernel");
            }
        }
        skein_supervise::shutdown(&self.supervisor, Duration::from_secs(5)).await;
        self.tasks.drain(Duration::ZERO).await;
    }

    fn json(&self, view: &View) -> MachineJson {
        view.json(self.shared.node, &self.shared.node_name, self.shared.region)
    }

    async fn call(&self, id: MachineId, call: Call) -> Result<MachineState, MachineError> {
        let entry = self.shared.board.entry(id).ok_or(MachineError::NotFound(id))?;
        if entry.view.borrow().stored.state.is_final() {
            return Err(MachineError::NotFound(id));
        }
        let actor = entry.actor.load_full().ok_or_else(|| {
            MachineError::Unavailable("the Machine's actor is being restarted; try again".into())
        })?;
        let gone = || MachineError::Unavailable("the Machine's actor ended; try again".into());
        ractor::call!(actor, Message::Call, call).unwrap_or_else(|_| Err(gone()))
    }

    async fn bring_up(&self, stored: Stored) -> Result<(), MachineError> {
        let id = stored.id;
        let log = MachineLog::new(stored.app_name.clone(), id, self.shared.region);
        let view = View { stored, healthy: true, checks: Vec::new(), error: None };
        let entry = Arc::new(Entry {
            view: watch::Sender::new(Arc::new(view)),
            actor: ArcSwapOption::empty(),
            log: Arc::new(log),
        });
        self.shared.board.add(id, Arc::clone(&entry));
        let shared = Arc::clone(&self.shared);
        let start: Start = Arc::new(move |supervisor| {
            let (shared, entry) = (Arc::clone(&shared), Arc::clone(&entry));
            Box::pin(async move {
                let (actor, _) = Actor::spawn_linked(None, MachineActor(shared), id, supervisor).await?;
                let cell = actor.get_cell();
                entry.actor.store(Some(Arc::new(actor)));
                Ok(cell)
            })
        });
        let child = Child {
            name: id.to_string(),
            // It stops by itself once its Machine is destroyed.
            life: Life::Transient,
            intensity: Intensity::default(),
            give_up: GiveUp::Abandon,
            start,
        };
        skein_supervise::add(&self.supervisor, child).await.map_err(|error| {
            self.shared.board.withdraw(id);
            MachineError::Unavailable(error.to_string())
        })
    }

    fn fresh_id(&self) -> MachineId {
        let (entries, mut rng) = (self.shared.board.entries(), Entropy::default());
        std::iter::repeat_with(|| MachineId::from_bits(rng.next_u64()))
            .find(|id| !entries.contains_key(id))
            .expect("invariant: 2^56 ids are never all taken")
    }

    /// Numbers are part of addresses and never given twice, so the last one is durable before it is
    /// used, and they are given one after another.
    async fn next_number(&self) -> Result<u32, MachineError> {
        let mut last = self.shared.last_number.lock().await;
        let number =
            last.checked_add(1).ok_or_else(|| MachineError::Unavailable("all numbers are used up".into()))?;
        self.shared
            .store
            .put(META, LAST_NUMBER, &number)
            .await
            .map_err(|error| MachineError::Unavailable(format!("the node could not store it: {error}")))?;
        *last = number;
        Ok(number)
    }
}

/// How a call wants a stop to go.
fn how(signal: Option<String>, timeout: Option<Duration>) -> Result<StopHow, MachineError> {
    if timeout.is_some_and(|timeout| timeout > MAX_KILL_TIMEOUT) {
        return Err(MachineError::Invalid("timeout is at most 300s".into()));
    }
    let signal = signal.map(|name| signal_number(&name)).transpose().map_err(MachineError::Invalid)?;
    Ok(StopHow { signal, timeout, ..StopHow::default() })
}
