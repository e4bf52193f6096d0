//! Nodes in one process, joined by real backhaul, with servers of the test as their Machines.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use imbl::OrdMap;
use skein_cluster::backhaul::{Backhaul, BackhaulConfig, FrameStream, Inbound, Joiner, PeerAddress};
use skein_cluster::identity::{Authority, DataKey, Identity};
use skein_cluster::link::LinkTable;
use skein_cluster::{LocalMachine, LocalPublisher, Publisher, Upstream, clock, local, reader};
use skein_core::age::Confirmed;
use skein_core::facts::{AddressKind, Command, Outcome, Proposal, Scope, Settings, State, Token};
use skein_core::fault::LinkRule;
use skein_core::key::NodeRecord;
use skein_core::load::Slots;
use skein_core::machine::{MachineConfig, MachineState};
use skein_core::record::Record;
use skein_core::region::Regions;
use skein_core::snapshot::{Changes, NodeFacts, Snapshot, fold};
use skein_core::wire::{Ask, JoinRefusal, JoinReply, JoinRequest, Preamble};
use skein_core::{AppId, ConfigHash, MachineId, NodeNumber, OrgId, RegionCode, TokenId, codec, testing};
use skein_edge::{Edge, EdgeConfig, Sampling};
use ulid::Ulid;

type BoxFuture<T> = std::pin::Pin<Box<dyn Future<Output = T> + Send>>;

/// A Machine of the test.
#[derive(Clone)]
pub struct Machine {
    pub id: MachineId,
    pub app: AppId,
    pub node: NodeNumber,
    pub config: Arc<MachineConfig>,
    pub address: SocketAddr,
    pub state: MachineState,
    pub healthy: bool,
    pub cordoned: bool,
    slots: Arc<Slots>,
}

/// A node of the test.
pub struct Node {
    pub number: NodeNumber,
    pub region: RegionCode,
    pub edge: Edge,
    pub backhaul: Backhaul,
    pub links: LinkTable,
    publisher: Publisher,
    local: LocalPublisher,
    snapshot: Snapshot,
    address: SocketAddr,
    pub alive: bool,
}

/// All nodes, what the registry holds, and all Machines.
pub struct World {
    pub nodes: Vec<Node>,
    registry: State,
    machines: BTreeMap<MachineId, Machine>,
    version: u64,
}

struct Serving(Edge);

impl Inbound for Serving {
    fn request(&self, peer: NodeNumber, preamble: Preamble, stream: FrameStream) -> BoxFuture<()> {
        let edge = self.0.clone();
        Box::pin(async move { edge.serve_request(peer, preamble, stream).await })
    }
    fn ask(&self, _: NodeNumber, ask: Ask) -> BoxFuture<Result<Bytes, String>> {
        let mut answer = Bytes::new();
        if let Ask::Room(room) = ask {
            answer = codec::encode(&self.0.room(&room)).into();
        }
        Box::pin(async { Ok(answer) })
    }
    fn gossip(&self, _: NodeNumber, _: Bytes) {}
}

impl Joiner for Serving {
    fn join(&self, _: JoinRequest, _: SocketAddr) -> BoxFuture<Result<JoinReply, JoinRefusal>> {
        Box::pin(async { Err(JoinRefusal::Final("nobody joins here".into())) })
    }
}

const SHARED: &str = "203.0.113.1";

impl World {
    /// One node per region.
    pub fn new(regions: &[&str]) -> Self {
        Self::with(regions, |_| {})
    }

    /// One node per region; `configure` changes their settings.
    pub fn with(regions: &[&str], configure: impl Fn(&mut EdgeConfig)) -> Self {
        let (authority, key) = (Authority::generate().unwrap(), DataKey::generate());
        let table = Arc::new(Regions::default());
        let mut nodes = Vec::new();
        let mut peers = OrdMap::new();
        for (index, region) in regions.iter().enumerate() {
            let number = NodeNumber(index as u32 + 1);
            let region: RegionCode = region.parse().unwrap();
            let name: skein_core::NodeName = format!("{region}-{number}").parse().unwrap();
            let identity = Arc::new(Identity::issue(&authority, &key, number, name.clone()).unwrap());
            let bind = "127.0.0.1:0".parse().unwrap();
            let hash = identity.key_hash();
            let config = BackhaulConfig::new(bind, region);
            let links = LinkTable::default();
            let backhaul = Backhaul::bind(config, identity, links.clone(), Arc::clone(&table)).unwrap();
            let addr = backhaul.local_addr();
            peers.insert(number, PeerAddress { addr, name: name.clone(), region, key: hash });
            let (publisher, reader) = reader::channel(Snapshot::default());
            let (local, local_reader) = local::channel();
            let mut config = EdgeConfig::new(number, name, region);
            config.sampling = Sampling { per_second: 0, ratio: 0.0 };
            configure(&mut config);
            let peers = backhaul.proximity();
            let edge = Edge::new(config, reader, local_reader, backhaul.clone(), peers, Arc::clone(&table));
            let serving = Arc::new(Serving(edge.clone()));
            backhaul.serve(Arc::clone(&serving) as Arc<dyn Inbound>, serving);
            let snapshot = Snapshot::default();
            nodes.push(Node {
                number,
                region,
                edge,
                backhaul,
                links,
                publisher,
                local,
                snapshot,
                address: addr,
                alive: true,
            });
        }
        for node in &nodes {
            let mut others = peers.clone();
            others.remove(&node.number);
            node.backhaul.set_peers(&others);
            // Real distances, or round trips on loopback would decide who is nearest.
            let delay = |region| (table.simulated_rtt(node.region, region) / 2).as_micros();
            let distances = others.iter().map(|(number, peer)| {
                (*number, LinkRule { delay_us: delay(peer.region) as _, ..LinkRule::default() })
            });
            node.links.set_distances(distances.collect());
        }
        let mut world = Self { nodes, registry: State::default(), machines: BTreeMap::new(), version: 0 };
        let token = Token {
            id: TokenId(Ulid(1)),
            hash: [0; 32],
            scope: Scope::Cluster,
            read_only: false,
            name: "test".into(),
            created_ms: 0,
        };
        let settings = Settings {
            cluster: Ulid(1),
            base_domain: "localhost".into(),
            shared_v4: SHARED.parse().unwrap(),
            v4_pool: [198, 51, 100],
            v6_pool: "2001:db8::".parse().unwrap(),
            authority: Vec::new(),
            authority_key: Vec::new(),
        };
        let init = Command::Init { settings, org: OrgId(Ulid(1)), slug: "personal".parse().unwrap(), token };
        world.apply(init);
        let other =
            Command::CreateOrg { id: OrgId(Ulid(2)), slug: "other".parse().unwrap(), name: "o".into() };
        world.apply(other);
        world
    }

    fn apply(&mut self, command: Command) -> Outcome {
        self.version += 1;
        let proposal = Proposal { request: Ulid(u128::from(self.version)), now_ms: 0, command };
        self.registry.apply(&proposal).0.unwrap()
    }

    /// An app with a shared address, in the organization `personal` (1) or `other` (2).
    pub fn app_of(&mut self, name: &str, org: u128, network: &str) -> AppId {
        let id = AppId(Ulid(u128::from(self.version) + 100));
        self.apply(Command::CreateApp {
            id,
            name: name.parse().unwrap(),
            org: OrgId(Ulid(org)),
            network: network.parse().unwrap(),
        });
        self.apply(Command::Allocate { app: id, kind: AddressKind::SharedV4 });
        id
    }

    pub fn app(&mut self, name: &str) -> AppId {
        self.app_of(name, 1, "default")
    }

    /// A dedicated IPv4 of an app.
    pub fn dedicated(&mut self, app: AppId) -> IpAddr {
        let Outcome::Address(address) = self.apply(Command::Allocate { app, kind: AddressKind::V4 }) else {
            panic!("an address was expected")
        };
        address.ip
    }

    /// A started Machine on the node of that index; `services` is the JSON of its services.
    pub fn machine(&mut self, node: usize, app: AppId, address: SocketAddr, services: &str) -> MachineId {
        let id = MachineId::from_bits(self.machines.len() as u64 + 1);
        let config: MachineConfig = serde_json::from_str(&format!(r#"{{"services":[{services}]}}"#)).unwrap();
        let node = self.nodes[node].number;
        let machine = Machine {
            id,
            app,
            node,
            config: Arc::new(config),
            address,
            state: MachineState::Started,
            healthy: true,
            cordoned: false,
            slots: Arc::default(),
        };
        self.machines.insert(id, machine);
        id
    }

    /// Changes a Machine; nobody knows before [`Self::publish_local`] and [`Self::publish`].
    pub fn change(&mut self, id: MachineId, change: impl FnOnce(&mut Machine)) {
        change(self.machines.get_mut(&id).unwrap());
    }

    /// What is in flight at a Machine, as its worker counts.
    pub fn in_flight(&self, id: MachineId) -> u32 {
        self.machines[&id].slots.in_flight()
    }

    /// Tells each worker of its Machines.
    pub fn publish_local(&self) {
        for node in &self.nodes {
            let machines = self.machines.values().filter(|machine| machine.node == node.number);
            let local = machines.map(|machine| {
                let local = LocalMachine {
                    id: machine.id,
                    app: machine.app,
                    config: Arc::clone(&machine.config),
                    state: machine.state,
                    healthy: machine.healthy,
                    cordoned: machine.cordoned,
                    since: clock::now(),
                    upstream: Upstream::External(machine.address),
                    slots: vec![Arc::clone(&machine.slots)],
                };
                (machine.id, Arc::new(local))
            });
            node.local.publish(local.collect());
        }
    }

    /// Tells every node of everything, as gossip and registry would.
    pub fn publish(&mut self) {
        self.publish_local();
        self.version += 1;
        let hash = |id: MachineId| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&id.bits().to_be_bytes());
            ConfigHash(bytes)
        };
        let facts = |node: &Node| NodeFacts {
            record: NodeRecord {
                backhaul: node.address,
                api: node.address,
                ..testing::node(node.number.0, node.region.as_str())
            },
            generation: 1,
            version: self.version,
            alive: node.alive,
            // Fresh for as long as the test lasts.
            confirmed: Arc::new(Confirmed::at(u64::MAX)),
            machines: self
                .machines
                .values()
                .filter(|machine| machine.node == node.number)
                .map(|machine| {
                    let record = Record {
                        app: machine.app,
                        state: machine.state,
                        healthy: machine.healthy,
                        cordoned: machine.cordoned,
                        config: hash(machine.id),
                        ..testing::record(machine.id.bits())
                    };
                    (machine.id, Arc::new(record))
                })
                .collect(),
        };
        let all: Vec<NodeFacts> = self.nodes.iter().map(facts).collect();
        let configs: Vec<_> = self.machines.values().map(|m| (hash(m.id), Arc::clone(&m.config))).collect();
        for node in &mut self.nodes {
            let changes = Changes {
                now_ms: 1,
                registry: Some((self.version, Arc::new(self.registry.clone()))),
                nodes: all.clone(),
                configs: configs.clone(),
            };
            node.snapshot = fold(&node.snapshot, changes);
            node.publisher.publish(node.snapshot.clone());
        }
    }

    /// What the node of that index knows.
    pub fn snapshot(&self, node: usize) -> &Snapshot {
        &self.nodes[node].snapshot
    }

    /// Where a node listens for the shared address.
    pub async fn shared(&self, node: usize, port: u16) -> SocketAddr {
        self.map(node, SHARED.parse().unwrap(), port).await
    }

    pub async fn map(&self, node: usize, public: IpAddr, port: u16) -> SocketAddr {
        self.nodes[node].edge.map(SocketAddr::new(public, port), None).await.unwrap()
    }
}

/// The services of most tests: HTTP on port 80, requests counted.
pub const HTTP: &str = r#"{"internal_port":8080,"concurrency":{"type":"requests"},
    "ports":[{"port":80,"handlers":["http"]}]}"#;

/// Waits until `condition` holds.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = clock::now() + Duration::from_secs(30);
    let mut tick = tokio::time::interval(Duration::from_millis(2));
    while !condition() {
        assert!(clock::now() < deadline, "never came true: {what}");
        tick.tick().await;
    }
}
