//! The handle of a node's edge and worker.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorRef};
use skein_cluster::backhaul::{Backhaul, FrameStream, Peers};
use skein_cluster::{LocalReader, Reader, clock};
use skein_core::NodeNumber;
use skein_core::explain::{Story, Wanted};
use skein_core::region::Regions;
use skein_core::service::HandlerChain;
use skein_core::wire::{Preamble, Room};
use skein_supervise::{Child, GiveUp, Intensity, Life, SupervisorMessage};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, OnceCell, Semaphore};

use crate::accept::{Accepting, Connections};
use crate::actor::handler::Handler;
use crate::actor::listener::{Listener, ListenerArguments};
use crate::config::EdgeConfig;
use crate::core::Core;
use crate::serve;

/// Chains that this build serves; a connection to a port with another one is closed at once.
const SERVED: [HandlerChain; 2] = [HandlerChain::Http, HandlerChain::Raw];

/// Connections that wait in the kernel to be accepted.
const BACKLOG: i32 = 4096;

/// Why a public address was not mapped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The address can't be listened on; the operator or another program caused it.
    #[error("{bind} can't be listened on: {reason}")]
    Bind {
        /// Where.
        bind: SocketAddr,
        /// The system's words.
        reason: String,
    },
    /// The edge is shutting down.
    #[error("the edge is shutting down")]
    Closing,
}

/// What is open at an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EdgeCounts {
    /// Connections of clients and requests served for other edges.
    pub open: usize,
    /// Unused connections to Machines.
    pub pooled: usize,
    /// Bytes left for bodies that are kept for replays.
    pub replay_budget_left: usize,
    /// Responses that are being compressed.
    pub compressions: usize,
}

/// A node's edge and worker: accepts clients, serves requests of other edges. A clone is the same.
#[derive(Debug, Clone)]
pub struct Edge(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    core: Arc<Core>,
    supervisor: OnceCell<ActorRef<SupervisorMessage>>,
    /// Public address to the address that is listened on.
    mapped: Mutex<BTreeMap<SocketAddr, SocketAddr>>,
}

impl Edge {
    /// An edge that listens nowhere yet.
    pub fn new(
        config: EdgeConfig,
        reader: Reader,
        local: LocalReader,
        backhaul: Backhaul,
        peers: Arc<Peers>,
        regions: Arc<Regions>,
    ) -> Self {
        let core = Core::new(config, reader, local, backhaul, peers, regions);
        Self(Arc::new(Shared { core: Arc::new(core), supervisor: OnceCell::new(), mapped: Mutex::default() }))
    }

    /// Listens for a public address and port, on `bind` or on a free port of 127.0.0.1, and says
    /// where. The same public address again gives the same answer.
    ///
    /// # Errors
    /// [`MapError`].
    pub async fn map(&self, public: SocketAddr, bind: Option<SocketAddr>) -> Result<SocketAddr, MapError> {
        let mut mapped = self.0.mapped.lock().await;
        if let Some(bound) = mapped.get(&public) {
            return Ok(*bound);
        }
        let bind = bind.unwrap_or((Ipv4Addr::LOCALHOST, 0).into());
        let refused = |error: std::io::Error| MapError::Bind { bind, reason: error.to_string() };
        let socket = listen(bind).map_err(refused)?;
        let bound = socket.local_addr().map_err(refused)?;
        self.start(public, socket).await?;
        mapped.insert(public, bound);
        tracing::info!(%public, %bound, "listening");
        Ok(bound)
    }

    /// What is mapped: public address to the address that is listened on.
    pub async fn mapped(&self) -> BTreeMap<SocketAddr, SocketAddr> {
        self.0.mapped.lock().await.clone()
    }

    async fn start(&self, public: SocketAddr, socket: std::net::TcpListener) -> Result<(), MapError> {
        let core = &self.0.core;
        let supervisor = self
            .0
            .supervisor
            .get_or_try_init(|| skein_supervise::spawn(clock::now, None))
            .await
            .map_err(|_| MapError::Closing)?;
        let runtimes = match core.config.cores.as_slice() {
            [] => vec![Handle::current()],
            cores => cores.to_vec(),
        };
        let room = Arc::new(Semaphore::new(core.config.max_connections));
        let mut accepting = Vec::new();
        for (index, runtime) in runtimes.into_iter().enumerate() {
            let mut handlers = Vec::new();
            for chain in SERVED {
                let connections = Connections::new(Arc::clone(core), chain);
                let name = format!("handler {public} {chain:?} {index}");
                add(supervisor, name, Handler, Arc::clone(&connections), || Handler).await?;
                handlers.push(connections);
            }
            let (core, room) = (Arc::clone(core), Arc::clone(&room));
            accepting.push(Accepting { core, public, handlers, room, runtime });
        }
        let arguments = ListenerArguments { socket: Arc::new(socket), accepting };
        add(supervisor, format!("listener {public}"), Listener, arguments, || Listener).await
    }

    /// Serves a request or connection that another node sent for a Machine of this node.
    pub async fn serve_request(&self, peer: NodeNumber, preamble: Preamble, stream: FrameStream) {
        serve::serve(&self.0.core, peer, preamble, stream).await;
    }

    /// A Machine that refused this edge has room (SPEC LB-4): whether anybody waited for it.
    pub fn room(&self, room: &Room) -> bool {
        let core = &self.0.core;
        let snapshot = core.reader.load();
        let Some(machine) = snapshot.machine(room.machine).filter(|machine| machine.record.app == room.app)
        else {
            return false;
        };
        machine.estimate.tell(room.load, core.now_ms());
        let service = |port| {
            let found = machine.config.as_ref().and_then(|config| config.tcp_service(port));
            found.is_some_and(|(index, ..)| index == usize::from(room.service))
        };
        let within = |name: &str, region| core.regions.matches(name, region) == Some(true);
        core.queue.room(room.app, service, |want| want.takes(room.machine, machine.region, within))
    }

    /// Asks all that is open to end (`Connection: close`), waits at most `patience`, then cuts the rest
    /// of it off; answers how much that was. Until [`Self::undrain`] this node's Machines take nothing,
    /// clients are served by those of other nodes, and each response is the last one of its connection.
    /// Connections that begin meanwhile are not waited for (SPEC HTTP-11).
    pub async fn drain(&self, patience: Duration) -> usize {
        self.0.core.worker.set_draining(true);
        self.0.core.gate.drain(patience).await
    }

    /// Takes requests again after a drain. Connections of before still end after their response.
    pub fn undrain(&self) {
        self.0.core.gate.reopen();
        self.0.core.worker.set_draining(false);
    }

    /// Drains, then stops listening.
    pub async fn shutdown(&self, patience: Duration) {
        self.drain(patience).await;
        if let Some(supervisor) = self.0.supervisor.get() {
            skein_supervise::shutdown(supervisor, patience).await;
        }
        self.0.mapped.lock().await.clear();
    }

    /// What was decided for a request that came to this edge and has ended; `None` when it is not, or
    /// no longer, known here (SPEC OBS-5).
    pub fn explain(&self, wanted: Wanted) -> Option<Story> {
        let core = &self.0.core;
        let edge = Some(core.config.node_name.clone());
        core.stories.find(wanted).map(|story| Story { edge, ..story })
    }

    /// How many requests can be explained, and how many more that failed, were tried again or replayed.
    pub fn explained(&self) -> (usize, usize) {
        self.0.core.stories.limits()
    }

    /// What is open now.
    pub fn counts(&self) -> EdgeCounts {
        let core = &self.0.core;
        EdgeCounts {
            open: core.gate.open(),
            pooled: core.worker.pool().len(),
            replay_budget_left: core.budget.left(),
            compressions: core.compressions.load(std::sync::atomic::Ordering::Relaxed),
        }
    }

    /// All metrics of the edge and worker as Prometheus text (SPEC OBS-2).
    pub fn metrics(&self) -> String {
        let core = &self.0.core;
        let (region, host) = (core.config.region, &core.config.node_name);
        let (snapshot, waiting) = (core.reader.load(), core.queue.len());
        core.metrics.render(&snapshot, &core.worker, waiting, region.as_str(), host.as_str())
    }
}

async fn add<A>(
    supervisor: &ActorRef<SupervisorMessage>,
    name: String,
    _: A,
    arguments: A::Arguments,
    make: fn() -> A,
) -> Result<(), MapError>
where
    A: Actor,
    A::Arguments: Clone + Sync,
{
    let start = move |parent: ActorCell| {
        let arguments = arguments.clone();
        let started: std::pin::Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(async move {
            let (actor, _) = Actor::spawn_linked(None, make(), arguments, parent).await?;
            Ok(actor.get_cell())
        });
        started
    };
    let child = Child {
        name,
        life: Life::Permanent,
        intensity: Intensity::default(),
        give_up: GiveUp::Abandon,
        start: Arc::new(start),
    };
    skein_supervise::add(supervisor, child).await.map_err(|error| {
        tracing::error!(%error, "an actor of the edge did not start");
        MapError::Closing
    })
}

fn listen(bind: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(bind), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&bind.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
