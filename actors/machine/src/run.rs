//! One run of a Machine: its process under an init, or an external server, with its checks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use skein_cluster::entropy::Entropy;
use skein_cluster::{Upstream, clock};
use skein_core::load::Slots;
use skein_core::machine::{CheckStatus, MachineConfig};
use skein_core::sixpn;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::actor::Message;
use crate::check::{self, Spec, Status};
use crate::checking::{Addresses, check_on, listens};
use crate::health::Health;
use crate::holder::{self, Fate, Link};
use crate::init::protocol::{Launch, Program, ToInit};
use crate::log::MachineLog;
use crate::machines::Shared;
use crate::plan::{self, Plan, Surroundings};
use crate::ports::{self, Reserved};
use crate::stored::{Adoptable, Stored, rfc3339};

/// How a run begins.
#[derive(Debug)]
pub(crate) enum Begin {
    /// With a new process.
    Launch,
    /// With what a former life of the node left, else with a new process.
    Adopt(Adoptable),
    /// With what a former life of the node left, else it is lost.
    Reclaim(Adoptable),
}

/// Work that goes on beside the actor.
pub(crate) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Time between looks at what is in flight while a Machine drains.
const IDLE_LOOK: Duration = Duration::from_millis(10);

pub(crate) struct Run {
    pub(crate) number: u64,
    pub(crate) adoptable: Option<Adoptable>,
    driver: Driver,
    checks: Vec<Checked>,
    /// Turns once its process accepts connections, or had its time for that.
    open: watch::Sender<bool>,
    /// What others are told of its health.
    health: Health,
    /// Whether its checks rest, as those of a process that waits.
    resting: watch::Sender<bool>,
    /// Ends its checks.
    _checks: tokio_util::sync::DropGuard,
}

struct Checked {
    spec: Spec,
    status: Status,
    output: String,
    /// When status or output last changed: milliseconds since 1970.
    updated_ms: u64,
}

enum Driver {
    Process { orders: mpsc::Sender<ToInit>, kill: CancellationToken, ports: Vec<(u16, Reserved)> },
    External(watch::Receiver<Option<SocketAddr>>),
}

impl Run {
    /// Prepares a run; the tasks carry it.
    pub(crate) fn start(
        shared: &Arc<Shared>,
        stored: &Stored,
        plan: &Plan,
        log: &Arc<MachineLog>,
        number: u64,
        begin: Begin,
        tell: impl Fn(Message) + Clone + Send + Sync + 'static,
    ) -> Result<(Self, Vec<Task>), String> {
        let token = CancellationToken::new();
        let specs = check::specs(&stored.config).map_err(|error| error.to_string())?;
        // Who runs already is not waited for.
        let awaited = match plan {
            Plan::Process { .. } => plan::tcp_ports(&stored.config),
            Plan::External(_) => Vec::new(),
        };
        let (driver, adoptable, task, addresses) = match plan {
            Plan::Process { program, args, env, user } => {
                let command = (program, args.as_slice(), env, user.as_deref());
                process(shared, stored, command, log, number, begin, tell.clone())?
            }
            Plan::External(address) => external(address, number, tell.clone()),
        };
        let mut tasks = vec![task];
        let (resting, _) = watch::channel(false);
        let (open, _) = watch::channel(awaited.is_empty());
        let mut while_it_lasts = |probing: Task| {
            let token = token.clone();
            tasks.push(Box::pin(async move {
                tokio::select! {
                    () = token.cancelled() => {}
                    () = probing => {}
                }
            }));
        };
        if !awaited.is_empty() {
            let (addresses, tell) = (addresses.clone(), tell.clone());
            let told = move |heard| tell(Message::Listens(number, heard));
            while_it_lasts(Box::pin(listens(
                awaited,
                shared.listens_within,
                addresses,
                resting.subscribe(),
                told,
            )));
        }
        for (index, spec) in specs.iter().enumerate() {
            let (spec, addresses, tell) = (spec.clone(), addresses.clone(), tell.clone());
            let told = move |status, output| tell(Message::Check(number, index, status, output));
            while_it_lasts(Box::pin(check_on(spec, addresses, resting.subscribe(), open.subscribe(), told)));
        }
        let checked = |spec| Checked {
            spec,
            status: Status::Unknown,
            output: "waiting for the first probe".to_owned(),
            updated_ms: clock::unix_ms(),
        };
        let mut run = Self {
            number,
            adoptable,
            driver,
            checks: specs.into_iter().map(checked).collect(),
            open,
            health: Health::new(false),
            resting,
            _checks: token.drop_guard(),
        };
        run.health = Health::new(run.healthy());
        Ok((run, tasks))
    }

    /// Where the process is reached; `None` before it is known.
    pub(crate) fn upstream(&self) -> Option<Upstream> {
        match &self.driver {
            Driver::Process { ports, .. } => Some(Upstream::Loopback(
                ports.iter().map(|(internal, reserved)| (*internal, reserved.address())).collect(),
            )),
            Driver::External(address) => (*address.borrow()).map(Upstream::External),
        }
    }

    /// Whether it accepts connections and all checks that decide routing pass.
    pub(crate) fn healthy(&self) -> bool {
        let fails = |check: &Checked| check.spec.routing && check.status != Status::Passing;
        *self.open.borrow() && !self.checks.iter().any(fails)
    }

    /// What others are told of that.
    pub(crate) fn said_healthy(&self) -> bool {
        self.health.said()
    }

    /// Whether others are to be told something else from now on.
    pub(crate) fn says_otherwise(&mut self) -> bool {
        let healthy = self.healthy();
        self.health.observe(clock::now(), healthy)
    }

    /// When to ask that again, if nothing happens before.
    pub(crate) fn look_at(&self) -> Option<Instant> {
        self.health.look_at(self.healthy())
    }

    /// It accepts connections, or had its time for that.
    pub(crate) fn open(&self) {
        self.open.send_replace(true);
    }

    pub(crate) fn checked(&mut self, index: usize, status: Status, output: String) {
        if let Some(check) = self.checks.get_mut(index) {
            (check.status, check.output, check.updated_ms) = (status, output, clock::unix_ms());
        }
    }

    pub(crate) fn check_statuses(&self) -> Vec<CheckStatus> {
        let shown = |check: &Checked| CheckStatus {
            name: check.spec.name.clone(),
            status: check.status.as_str().to_owned(),
            output: check.output.clone(),
            updated_at: rfc3339(check.updated_ms),
        };
        self.checks.iter().map(shown).collect()
    }

    /// Signals the process; `false` when there is none.
    pub(crate) fn signal(&self, signal: i32) -> bool {
        self.order(ToInit::Signal(signal))
    }

    /// Makes all processes wait, and the checks rest; `false` when there are none.
    pub(crate) fn suspend(&self) -> bool {
        self.resting.send_replace(true);
        self.order(ToInit::Suspend)
    }

    /// Lets all processes go on; `false` when there are none.
    pub(crate) fn resume(&self) -> bool {
        self.order(ToInit::Resume)
    }

    /// Its process answers again, so its checks go on.
    pub(crate) fn up(&self) {
        self.resting.send_replace(false);
    }

    fn order(&self, order: ToInit) -> bool {
        let Driver::Process { orders, .. } = &self.driver else { return false };
        if let Err(error) = orders.try_send(order) {
            tracing::warn!(%error, "an order was not delivered to machine-init");
        }
        true
    }

    /// Kills all processes; `false` when there are none.
    pub(crate) fn kill(&self) -> bool {
        let Driver::Process { kill, .. } = &self.driver else { return false };
        kill.cancel();
        true
    }
}

type Prepared = (Driver, Option<Adoptable>, Task, Addresses);

fn process(
    shared: &Arc<Shared>,
    stored: &Stored,
    (program, args, own_env, user): (&Program, &[String], &BTreeMap<String, String>, Option<&str>),
    log: &Arc<MachineLog>,
    number: u64,
    begin: Begin,
    tell: impl Fn(Message) + Send + Sync + 'static,
) -> Result<Prepared, String> {
    let run_as = plan::run_as(user).map_err(|error| error.to_string())?;
    let reclaims = matches!(begin, Begin::Reclaim(_));
    let left = match begin {
        Begin::Launch => None,
        Begin::Adopt(left) | Begin::Reclaim(left) => Some(left),
    };
    let kept = left.as_ref().and_then(|left| keep_ports(&left.ports));
    let left = left.filter(|_| kept.is_some());
    let reserved = match kept {
        Some(kept) => kept,
        None => reserve_ports(&stored.config)?,
    };
    let ports: Vec<(u16, u16)> = reserved.iter().map(|(internal, port)| (*internal, port.port)).collect();
    let platform = platform(shared, stored);
    let around = Surroundings { inherited: &shared.inherited, platform: &platform, ports: &ports };
    let env = plan::environment(&stored.config, own_env, around);
    let launch = Launch {
        program: program.clone(),
        args: args.to_vec(),
        env: env.into_iter().collect(),
        dir: plan::working_dir(&shared.working_dir).to_owned(),
        run_as,
        adopt_grace_ms: shared.adopt_grace.as_millis() as u64,
        secret: skein_cluster::entropy::secret(),
        adopt_at: adopt_at(shared, stored),
    };
    let adoptable = launch.adopt_at.clone().map(|path| match &left {
        // Until it is known that nobody waits there, that is where this run is found again.
        Some(left) => left.clone(),
        None => Adoptable { path, secret: launch.secret, ports: ports.clone() },
    });
    let (orders, receiver) = mpsc::channel(holder::ORDERS);
    let kill = CancellationToken::new();
    let link = Link { orders: receiver, kill: kill.clone() };
    let (spawner, machine, log) = (shared.spawner.clone(), stored.id, Arc::clone(log));
    let task: Task = Box::pin(async move {
        let tell = |fate| tell(Message::Run(number, fate));
        if let Some(left) = left {
            match holder::ask_for(&left.path, left.secret).await {
                Ok(init) => return holder::adopt(init, machine, link, &log, tell).await,
                Err(error) => tracing::info!(%error, %machine, "its process did not outlive the node"),
            }
            if reclaims {
                return tell(Fate::Lost("its process did not outlive the node".into()));
            }
            // The new process is found where the old one was.
            let launch = Launch { secret: left.secret, adopt_at: Some(left.path), ..launch };
            return holder::hold(spawner, machine, launch, link, &log, tell).await;
        }
        if reclaims {
            return tell(Fate::Lost("a port of its process is another's by now".into()));
        }
        holder::hold(spawner, machine, launch, link, &log, tell).await;
    });
    let upstream = reserved.iter().map(|(internal, port)| (*internal, port.address())).collect();
    let (_, addresses) = watch::channel(Some(Upstream::Loopback(upstream)));
    Ok((Driver::Process { orders, kill, ports: reserved }, adoptable, task, addresses))
}

/// Where init waits for a new life of this node; `None` when nothing outlives it.
fn adopt_at(shared: &Shared, stored: &Stored) -> Option<PathBuf> {
    if shared.adopt_grace.is_zero() {
        return None;
    }
    let run = shared.version().to_string();
    Some(shared.adopt_dir.join(format!("{}-{}", stored.id, &run[run.len() - 8..])))
}

fn reserve_ports(config: &MachineConfig) -> Result<Vec<(u16, Reserved)>, String> {
    let mut rng = Entropy::default();
    let full = "no loopback port is free for it on this machine; stop some Machines";
    let reserve = |internal| Ok((internal, ports::reserve(&mut rng).ok_or(full)?));
    plan::internal_ports(config).into_iter().map(reserve).collect()
}

/// The ports of a run that was left; `None` when one of them is somebody else's by now.
fn keep_ports(left: &[(u16, u16)]) -> Option<Vec<(u16, Reserved)>> {
    left.iter().map(|(internal, port)| Some((*internal, ports::reserve_in_use(*port)?))).collect()
}

/// SPEC RUN-2.
fn platform(shared: &Shared, stored: &Stored) -> Vec<(&'static str, String)> {
    let config = &stored.config;
    let memory = config.guest.as_ref().and_then(|guest| guest.memory_mb).unwrap_or(256);
    vec![
        ("FLY_APP_NAME", stored.app_name.to_string()),
        ("FLY_MACHINE_ID", stored.id.to_string()),
        ("FLY_ALLOC_ID", stored.id.to_string()),
        ("FLY_REGION", shared.region.to_string()),
        // In portable mode the Machine leaves through the node's own machine.
        ("FLY_PUBLIC_IP", "127.0.0.1".to_owned()),
        ("FLY_PRIVATE_IP", sixpn::machine(stored.network, shared.node, stored.number).to_string()),
        ("FLY_IMAGE_REF", config.image.clone()),
        ("FLY_MACHINE_VERSION", stored.version.to_string()),
        ("FLY_PROCESS_GROUP", config.process_group().to_string()),
        ("FLY_VM_MEMORY_MB", memory.to_string()),
    ]
}

fn external(address: &str, number: u64, tell: impl Fn(Message) + Send + Sync + 'static) -> Prepared {
    let (known, address_known) = watch::channel(None);
    let (upstream, addresses) = watch::channel(None);
    let address = address.to_owned();
    let task: Task = Box::pin(async move {
        let fate = match tokio::net::lookup_host(&address).await.map(|mut found| found.next()) {
            Ok(Some(found)) => {
                known.send_replace(Some(found));
                upstream.send_replace(Some(Upstream::External(found)));
                Fate::Up
            }
            Ok(None) => {
                Fate::Refused(format!("{address} has no address; name one that this machine can resolve"))
            }
            Err(error) => Fate::Refused(format!(
                "{address} could not be resolved: {error}; name one that this machine can resolve"
            )),
        };
        tell(Message::Run(number, fate));
    });
    (Driver::External(address_known), None, task, addresses)
}

/// Waits until nothing is in flight. Two looks in a row have to agree: a request that was routed a
/// moment before the Machine left routing may take its slot between them.
pub(crate) async fn idle(slots: &[Arc<Slots>]) {
    let mut quiet = 0;
    while quiet < 2 {
        let in_flight: u32 = slots.iter().map(|slots| slots.in_flight()).sum();
        quiet = if in_flight == 0 { quiet + 1 } else { 0 };
        if quiet < 2 {
            tokio::time::sleep(IDLE_LOOK).await;
        }
    }
}
