//! From configuration to a serving node, and to its end.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use skein_cluster::backhaul::{Backhaul, BackhaulConfig};
use skein_cluster::configs::{self, ConfigCounters};
use skein_cluster::gossip::{Gossip, GossipConfig, Membership as _};
use skein_cluster::link::LinkTable;
use skein_cluster::publish::{self, PublishCounters};
use skein_cluster::registry::{RaftRegistry, Registry as _, RegistryConfig};
use skein_cluster::store::Store;
use skein_cluster::{clock, local, reader};
use skein_core::api::BoundJson;
use skein_core::facts::Command;
use skein_core::key::NodeRecord;
use skein_core::region::Regions;
use skein_core::snapshot::Snapshot;
use skein_edge::{Edge, EdgeConfig, Sampling};
use skein_machine::autostop::Owner;
use skein_machine::{Machines, MachinesConfig};
use skein_supervise::Drain;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::autostop::Autostop;
use super::carry::{Carrier, Configs};
use super::config::NodeConfig;
use super::cores::Cores;
use super::handle::NodeHandle;
use super::inbound::NodeInbound;
use super::join::Admission;
use super::links::LinkRules;
use super::mappings::Mappings;
use super::{autostop, files, follow, found, part};
use crate::api;

/// Configurations on their way into the snapshot.
const CONFIG_QUEUE: usize = 256;
/// How long actors may take to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Ports of the last life, so that a restarted node is found where it was.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Ports {
    api: u16,
    backhaul: u16,
}

/// Runs a node until a signal, or the end of its standard input, ends it.
///
/// # Errors
/// When it can't start: the message names the part and the next step.
pub async fn run(config: NodeConfig) -> anyhow::Result<()> {
    let data_dir = config.data_dir.clone();
    std::fs::create_dir_all(&data_dir).with_context(|| format!("make {}", data_dir.display()))?;
    let ports_file = data_dir.join("ports.json");
    let ports: Ports = files::read(&ports_file)?.unwrap_or_default();
    let regions = Arc::new(Regions::default());
    let region = regions.find(config.region.as_str())?.code;

    let api_listener = bind_api(config.api_bind, ports.api)?;
    let backhaul_socket = bind_backhaul(config.backhaul_bind, ports.backhaul)?;
    let backhaul_addr = backhaul_socket.local_addr()?;
    let ports = Ports { api: api_listener.local_addr()?.port(), backhaul: backhaul_addr.port() };

    let found::Found { identity, founding, fresh } = found::identity(&config, backhaul_addr).await?;
    let identity = Arc::new(identity);
    let (number, name) = (identity.number(), identity.name().clone());
    let telemetry = crate::telemetry::init(&crate::telemetry::TelemetryConfig {
        log: config.log.clone(),
        log_format: config.log_format,
        node: name.to_string(),
        region: region.to_string(),
        otlp: config.otlp.clone(),
    })?;
    tracing::info!(node = %name, %number, %region, "node starts");

    let table = LinkTable::default();
    let links = Arc::new(LinkRules::new(table.clone(), Arc::clone(&regions), region, config.latency));
    let cores = Cores::start()?;
    let backhaul_config =
        BackhaulConfig { cores: cores.handles(), ..BackhaulConfig::new(backhaul_addr, region) };
    let root = part::root().await?;
    let keeper = Arc::new(part::Supervised::under(&root));
    let backhaul = Backhaul::with_socket(
        backhaul_socket,
        backhaul_config,
        Arc::clone(&identity),
        table,
        Arc::clone(&regions),
        Arc::clone(&keeper) as Arc<_>,
    )
    .context("start the backhaul")?;
    let carrier = Arc::new(Carrier(backhaul.clone()));
    let registry = RaftRegistry::open(
        RegistryConfig {
            create: founding || fresh,
            ..RegistryConfig::new(number, data_dir.join("registry.redb"))
        },
        Arc::clone(&carrier) as Arc<_>,
        &*keeper,
    )
    .await
    .context("open the registry")?;

    // Only now: a second node on this directory was refused before it could change anything.
    files::write(&ports_file, &ports)?;
    let generation = next_generation(&data_dir.join("generation.json"))?;
    let cluster =
        ulid::Ulid::from_bytes(identity.authority_sha256().first_chunk().copied().unwrap_or_default());
    let gossip = Gossip::start(
        GossipConfig::new(number, generation, cluster),
        Arc::clone(&carrier) as Arc<_>,
        &*keeper,
    );
    let (publisher, reader) = reader::channel(Snapshot::default());
    let (local_publisher, local_reader) = local::channel();
    let store = Store::open(&data_dir.join("machines.redb")).context("open the store of Machines")?;
    let machines = Machines::start(
        MachinesConfig {
            adopt_grace: config.adopt_grace(),
            ..MachinesConfig::new(number, name.clone(), region, data_dir.clone(), store)
        },
        local_publisher,
    )
    .await
    .context("start the Machines")?;
    let deciding = autostop::config(&config, number, region);
    let (demands, arrivals) = skein_machine::autostop::demands();
    let owner = Owner::new(machines.clone(), reader.clone(), deciding.interval);
    let autostop = Autostop::new(number, demands, owner, backhaul.clone());
    let edge = Edge::new(
        EdgeConfig {
            starts: Some(Arc::new(autostop.clone())),
            sampling: config
                .trace_sample
                .map_or_else(Sampling::default, |ratio| Sampling { per_second: 0, ratio }),
            cores: cores.handles(),
            ..config.edge.apply(EdgeConfig::new(number, name.clone(), region))
        },
        reader.clone(),
        local_reader,
        backhaul.clone(),
        backhaul.proximity(),
        Arc::clone(&regions),
    );
    let mappings = Mappings::restore(edge.clone(), data_dir.join("mappings.json")).await?;
    let record = NodeRecord {
        number,
        name: name.clone(),
        region,
        backhaul: backhaul_addr,
        api: api_listener.local_addr()?,
        draining: false,
        build: env!("CARGO_PKG_VERSION").to_owned(),
    };
    // Machines before the node: others meet a restarted node with all its Machines at once.
    gossip.set_machines(&machines.records().borrow().clone())?;
    gossip.set_node(&record)?;
    let (record, record_changes) = watch::channel(record);
    let node = NodeHandle {
        name: name.clone(),
        number,
        region,
        identity: Arc::clone(&identity),
        reader: reader.clone(),
        registry: registry.clone(),
        machines: machines.clone(),
        backhaul: backhaul.clone(),
        peers: backhaul.proximity(),
        edge: edge.clone(),
        autostop: autostop.clone(),
        mappings: Arc::new(mappings),
        links: Arc::clone(&links),
        regions,
        isolation: "portable",
        gossip: gossip.clone(),
        record,
    };
    let router = api::router(node.clone());
    // Peers are known before the first is heard, so that none is taken for a stranger.
    follow::apply_nodes(&registry.state(), number, &backhaul, &links, &gossip);
    let admission = Admission { registry: registry.clone(), data_key: identity.data_key().clone() };
    let inbound = NodeInbound { node: node.clone(), router: router.clone() };
    backhaul.serve(Arc::new(inbound), Arc::new(admission));

    let tasks = Drain::new();
    start_parts(&root, &node, record_changes, publisher, &tasks).await?;
    part::add(&root, "autostop", autostop::part(deciding, autostop, reader, arrivals)).await?;
    if founding {
        found::registry(&registry, &identity, &config, backhaul_addr).await?;
    }
    tasks.spawn(announce_move(node.clone(), backhaul_addr));
    let listener = tokio::net::TcpListener::from_std(api_listener)?;
    let asked = tasks.asked().clone();
    tasks.spawn(async move {
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        let served = axum::serve(listener, service).with_graceful_shutdown(asked.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "the API ended");
        }
    });
    let api = format!("http://{}", node.record.borrow().api);
    let bound = BoundJson {
        name: name.clone(),
        region,
        pid: std::process::id(),
        metrics: format!("{api}/metrics"),
        api,
        dns: None,
        wireguard: None,
        data_dir: data_dir.clone(),
    };
    files::write(&data_dir.join("bound.json"), &bound)?;
    tracing::info!(node = %name, api = bound.api, "node serves");

    let end = wait_for_end(config.exit_with_stdin).await?;
    tracing::info!(node = %name, reason = end.reason(), "node ends");
    if end == End::Asked
        && let Err(error) = node.drain(Duration::from_millis(config.drain_ms)).await
    {
        tracing::warn!(%error, "the drain did not finish");
    }
    edge.shutdown(STOP_PATIENCE).await;
    machines.shutdown(STOP_PATIENCE).await;
    // The parts before what they follow: one whose source is gone would count as failed.
    skein_supervise::shutdown(&root, STOP_PATIENCE).await;
    tasks.drain(STOP_PATIENCE).await;
    gossip.shutdown().await;
    registry.shutdown().await;
    backhaul.close(STOP_PATIENCE).await;
    telemetry.shutdown();
    Ok(())
}

async fn start_parts(
    root: &ractor::ActorRef<skein_supervise::SupervisorMessage>,
    node: &NodeHandle,
    record: watch::Receiver<NodeRecord>,
    publisher: reader::Publisher,
    tasks: &Drain,
) -> anyhow::Result<()> {
    let (arrived, arrivals) = mpsc::channel(CONFIG_QUEUE);
    let inputs = publish::Inputs {
        members: node.gossip.members(),
        registry: node.registry.watch(),
        configs: arrivals,
    };
    // It owns the publisher and survives a fold that panics by itself, so it is no restartable part.
    let counters = Arc::new(PublishCounters::default());
    tasks.spawn(publish::run(inputs, publisher, counters, tasks.asked().clone()));

    let this = node.clone();
    part::add(root, "nodes", move |cancel| {
        let this = this.clone();
        Box::pin(follow::nodes(this.registry, this.number, this.backhaul, this.links, this.gossip, cancel))
    })
    .await?;
    let this = node.clone();
    part::add(root, "machine records", move |cancel| {
        Box::pin(follow::machines(this.machines.clone(), this.gossip.clone(), cancel))
    })
    .await?;
    let this = node.clone();
    part::add(root, "destroyed apps", move |cancel| {
        Box::pin(follow::destroyed_apps(this.machines.clone(), this.registry.clone(), cancel))
    })
    .await?;
    let gossip = node.gossip.clone();
    part::add(root, "node record", move |cancel| {
        Box::pin(follow::record(record.clone(), gossip.clone(), cancel))
    })
    .await?;
    let owners =
        Configs { own: node.number, machines: node.machines.clone(), backhaul: node.backhaul.clone() };
    let (reader, owners, counters) =
        (node.reader.clone(), Arc::new(owners), Arc::new(ConfigCounters::default()));
    part::add(root, "configurations", move |cancel| {
        let source = Arc::clone(&owners) as Arc<dyn configs::ConfigSource>;
        Box::pin(configs::run(reader.clone(), source, arrived.clone(), Arc::clone(&counters), cancel))
    })
    .await?;
    Ok(())
}

/// Tells the registry when this node listens elsewhere than it knows; repeated until it is known.
async fn announce_move(node: NodeHandle, backhaul: SocketAddr) {
    let mut states = node.registry.watch();
    loop {
        let (_, state) = states.borrow_and_update().clone();
        match state.node(node.number) {
            Some(known) if known.backhaul == backhaul => return,
            Some(_) => {
                let command = Command::MoveNode { number: node.number, backhaul };
                if let Err(error) = node.registry.propose(command).await {
                    tracing::warn!(%error, "the registry was not told where this node listens");
                }
            }
            None => {}
        }
        if states.changed().await.is_err() {
            return;
        }
    }
}

fn bind_api(wanted: SocketAddr, last: u16) -> anyhow::Result<TcpListener> {
    let bind = |addr: SocketAddr| -> std::io::Result<TcpListener> {
        let listener = TcpListener::bind(addr)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    if wanted.port() == 0
        && last != 0
        && let Ok(listener) = bind(SocketAddr::new(wanted.ip(), last))
    {
        return Ok(listener);
    }
    bind(wanted).with_context(|| {
        format!(
            "the API can't listen on {wanted}; is the port in use? Set `api_bind` (`--api`) to another, or to port 0"
        )
    })
}

/// The backhaul's socket: where it was before, when that is free.
fn bind_backhaul(wanted: SocketAddr, last: u16) -> anyhow::Result<UdpSocket> {
    if wanted.port() == 0
        && last != 0
        && let Ok(socket) = UdpSocket::bind(SocketAddr::new(wanted.ip(), last))
    {
        return Ok(socket);
    }
    UdpSocket::bind(wanted).with_context(|| {
        format!(
            "the backhaul can't listen on {wanted}; is the port in use? Set `backhaul_bind` (`--backhaul`) to another, or to port 0"
        )
    })
}

/// A number that grows with each start, whatever the clock does.
fn next_generation(path: &std::path::Path) -> anyhow::Result<u64> {
    let last: u64 = files::read(path)?.unwrap_or_default();
    let next = clock::unix_us().max(last + 1);
    files::write(path, &next)?;
    Ok(next)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// SIGTERM: what is in flight is finished first.
    Asked,
    /// SIGINT, or the launcher is gone.
    AtOnce,
}

impl End {
    fn reason(self) -> &'static str {
        match self {
            Self::Asked => "SIGTERM",
            Self::AtOnce => "interrupted, or its launcher is gone",
        }
    }
}

async fn wait_for_end(exit_with_stdin: bool) -> anyhow::Result<End> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (holder, mut gone) = tokio::sync::oneshot::channel::<()>();
    // Kept open for ever when there is no launcher to follow.
    let mut holder = Some(holder);
    if exit_with_stdin {
        let holder = holder.take();
        // A thread of its own: a read of standard input can't be cancelled, and it must not hold up
        // the end of the runtime.
        std::thread::Builder::new().name("stdin".into()).spawn(move || {
            // An error is an end, too: nobody holds the other side.
            let ended = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            if let Err(error) = ended {
                tracing::debug!(%error, "standard input broke");
            }
            drop(holder);
        })?;
    }
    tokio::select! {
        _ = terminate.recv() => Ok(End::Asked),
        _ = interrupt.recv() => Ok(End::AtOnce),
        _ = &mut gone => Ok(End::AtOnce),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_grows_even_when_the_clock_went_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("generation.json");
        let first = next_generation(&path).unwrap();
        let ahead = first + 1_000_000_000_000;
        files::write(&path, &ahead).unwrap();
        assert_eq!(next_generation(&path).unwrap(), ahead + 1);
    }

    #[test]
    fn a_port_in_use_is_an_error_that_says_what_to_set() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = bind_api(taken.local_addr().unwrap(), 0).unwrap_err();
        assert!(format!("{error:#}").contains("api_bind"), "{error:#}");
    }

    #[test]
    fn the_last_port_is_taken_again_when_it_is_free() {
        let first = bind_api("127.0.0.1:0".parse().unwrap(), 0).unwrap();
        let port = first.local_addr().unwrap().port();
        let other = bind_api("127.0.0.1:0".parse().unwrap(), port).unwrap();
        assert_ne!(other.local_addr().unwrap().port(), port, "taken: any other will do");
        drop(first);
        let again = bind_api("127.0.0.1:0".parse().unwrap(), port).unwrap();
        assert_eq!(again.local_addr().unwrap().port(), port);
    }
}
