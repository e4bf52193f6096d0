//! A cluster to decide on: one app with Machines spread over nodes and regions.

use std::net::Ipv4Addr;
use std::sync::Arc;

use skein_core::age::Confirmed;
use skein_core::facts::{Command, Proposal, Scope, Settings, State, Token};
use skein_core::id::{AppId, ConfigHash, MachineId, NodeNumber, OrgId, ProcessGroup, TokenId, VersionId};
use skein_core::key::NodeRecord;
use skein_core::load::LoadClass;
use skein_core::machine::{MachineConfig, MachineState};
use skein_core::record::Record;
use skein_core::snapshot::{Changes, NodeFacts, Snapshot, fold};
use ulid::Ulid;

/// The app.
pub(crate) const APP: AppId = AppId(Ulid(7));
const REGIONS: [&str; 3] = ["iad", "lhr", "nrt"];
const CONFIG: ConfigHash = ConfigHash([1; 16]);

/// What a node knows.
pub(crate) struct World {
    pub(crate) snapshot: Snapshot,
    /// What gossip holds of the first node; it has the Machine 0.
    pub(crate) first: NodeFacts,
}

impl World {
    pub(crate) fn new(machines: u64, nodes: u64) -> Self {
        let config: MachineConfig = serde_json::from_str(
            r#"{"services": [{"protocol": "tcp", "internal_port": 8080, "ports": [{"port": 80, "handlers": ["http"]}]}]}"#,
        )
        .expect("invariant: a configuration");
        let of = |node: u64| (0..machines).filter(move |machine| machine % nodes == node);
        let facts = (0..nodes).map(|node| facts(node, of(node))).collect::<Vec<_>>();
        let first = facts.first().expect("invariant: there are nodes").clone();
        let changes = Changes {
            now_ms: 0,
            registry: Some((1, Arc::new(registry()))),
            nodes: facts,
            configs: vec![(CONFIG, Arc::new(config))],
        };
        Self { snapshot: fold(&Snapshot::default(), changes), first }
    }
}

fn facts(node: u64, machines: impl Iterator<Item = u64>) -> NodeFacts {
    let region = REGIONS[node as usize % REGIONS.len()];
    let record = |id| Record {
        id: MachineId::from_bits(id),
        app: APP,
        group: ProcessGroup::app(),
        state: MachineState::Started,
        healthy: true,
        cordoned: false,
        load: LoadClass::BelowSoft,
        config: CONFIG,
        version: VersionId(Ulid(1)),
        number: 1,
        changed_ms: 0,
        start_ms: 0,
    };
    NodeFacts {
        record: NodeRecord {
            number: NodeNumber(node as u32 + 1),
            name: format!("{region}-{node}").parse().expect("invariant: a name"),
            region: region.parse().expect("invariant: a region"),
            backhaul: ([127, 0, 0, 1], 1).into(),
            api: ([127, 0, 0, 1], 2).into(),
            draining: false,
            build: String::new(),
        },
        generation: 1,
        version: 1,
        alive: true,
        confirmed: Arc::new(Confirmed::at(1)),
        machines: machines.map(|id| (MachineId::from_bits(id), Arc::new(record(id)))).collect(),
    }
}

fn registry() -> State {
    let token = Token {
        id: TokenId(Ulid(1)),
        hash: [0; 32],
        scope: Scope::Cluster,
        read_only: false,
        name: String::new(),
        created_ms: 0,
    };
    let settings = Settings {
        cluster: Ulid(1),
        base_domain: "localhost".into(),
        shared_v4: Ipv4Addr::LOCALHOST,
        v4_pool: [203, 0, 113],
        v6_pool: "2001:db8::".parse().expect("invariant: an address"),
        authority: vec![],
        authority_key: vec![],
    };
    let org = OrgId(Ulid(1));
    let name = |text: &str| text.parse().expect("invariant: a name");
    let network = "default".parse().expect("invariant: a name");
    let commands = [
        Command::Init { settings, org, slug: "personal".parse().expect("invariant: a name"), token },
        Command::CreateApp { id: APP, name: name("bench"), org, network },
    ];
    let mut state = State::default();
    for (request, command) in (1..).zip(commands) {
        let proposal = Proposal { request: Ulid(request), now_ms: 0, command };
        state.apply(&proposal).0.expect("invariant: a new registry takes them");
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_machines_are_in_the_app_and_configured() {
        let world = World::new(100, 10);
        let app = &world.snapshot.apps[&APP];
        assert_eq!(app.machines.len(), 100);
        assert!(app.machines.values().all(|machine| machine.config.is_some()));
        assert_eq!(world.first.machines.len(), 10);
    }
}
