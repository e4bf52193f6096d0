//! Records, registries and views for tests and for the simulator: each a plain and whole one, of
//! which a test changes what it is about.
//!
//! Only with the feature `testing`, which only tests and the simulator ask for; `tests/layout.rs`
//! holds that.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::net::Ipv4Addr;
use std::sync::Arc;

use ulid::Ulid;

use crate::facts::{Command, JoinToken, Proposal, Scope, Settings, State, Token};
use crate::key::NodeRecord;
use crate::load::LoadClass;
use crate::machine::MachineState;
use crate::record::Record;
use crate::snapshot::NodeFacts;
use crate::{AppId, ConfigHash, MachineId, NodeNumber, OrgId, ProcessGroup, TokenId, VersionId};

/// The organization of all apps here.
pub const ORG: OrgId = OrgId(Ulid(1));

/// Some moment, to reckon from.
#[expect(clippy::disallowed_methods, reason = "a moment can only be had from the clock")]
pub fn instant() -> std::time::Instant {
    std::time::Instant::now()
}

/// A started, healthy Machine of app 1.
pub fn record(id: u64) -> Record {
    Record {
        id: MachineId::from_bits(id),
        app: AppId(Ulid(1)),
        group: ProcessGroup::app(),
        state: MachineState::Started,
        healthy: true,
        cordoned: false,
        load: LoadClass::BelowSoft,
        config: ConfigHash([1; 16]),
        version: VersionId(Ulid(1)),
        number: 1,
        changed_ms: 0,
        start_ms: 0,
    }
}

/// What a node of that region says of itself.
///
/// # Panics
/// When `region` is no region's code.
pub fn node(number: u32, region: &str) -> NodeRecord {
    NodeRecord {
        number: NodeNumber(number),
        name: format!("{region}-{number}").parse().unwrap(),
        region: region.parse().unwrap(),
        backhaul: (Ipv4Addr::LOCALHOST, 1).into(),
        api: (Ipv4Addr::LOCALHOST, 2).into(),
        draining: false,
        build: String::new(),
    }
}

/// What gossip carries of a living node.
pub fn facts(
    record: NodeRecord,
    version: u64,
    machines: impl IntoIterator<Item = impl Into<Arc<Record>>>,
) -> NodeFacts {
    let machines = machines.into_iter().map(|record| {
        let record: Arc<Record> = record.into();
        (record.id, record)
    });
    NodeFacts {
        record,
        generation: 1,
        version,
        alive: true,
        confirmed: Arc::default(),
        machines: machines.collect(),
    }
}

/// The settings of a cluster.
pub fn settings() -> Settings {
    Settings {
        cluster: Ulid(1),
        base_domain: "localhost".to_owned(),
        shared_v4: Ipv4Addr::new(203, 0, 113, 1),
        v4_pool: [203, 0, 113],
        v6_pool: "2001:db8:1::".parse().unwrap(),
        authority: vec![1],
        authority_key: vec![2],
    }
}

/// A token that may do all.
pub fn operator() -> Token {
    Token {
        id: TokenId(Ulid(1)),
        hash: [0; 32],
        scope: Scope::Cluster,
        read_only: false,
        name: "operator".to_owned(),
        created_ms: 0,
    }
}

/// Begins a cluster with [`ORG`] and [`operator`].
pub fn init(settings: Settings) -> Command {
    Command::Init { settings, org: ORG, slug: "personal".parse().unwrap(), token: operator() }
}

/// A token, number 2, that admits any number of nodes with the secret of that hash.
pub fn join_token(hash: [u8; 32]) -> JoinToken {
    JoinToken { id: TokenId(Ulid(2)), hash, expires_ms: u64::MAX, uses_left: u32::MAX }
}

/// Admits a node of that region by [`join_token`]; it gets the next number.
///
/// # Panics
/// When `region` is no region's code.
pub fn add_node(hash: [u8; 32], region: &str, key: [u8; 32]) -> Command {
    Command::AddNode {
        token: TokenId(Ulid(2)),
        secret_hash: hash,
        name: None,
        region: region.parse().unwrap(),
        key,
        backhaul: (Ipv4Addr::LOCALHOST, 1).into(),
    }
}

/// Makes an app of [`ORG`].
///
/// # Panics
/// When `name` is no app's name.
pub fn create_app(id: AppId, name: &str) -> Command {
    let name = name.parse().unwrap();
    Command::CreateApp { id, name, org: ORG, network: "default".parse().unwrap() }
}

/// A registry after [`init`] and `commands`.
///
/// # Panics
/// When one of them is refused.
pub fn state(commands: impl IntoIterator<Item = Command>) -> State {
    let mut state = State::default();
    for (request, command) in (1u128..).zip([init(settings())].into_iter().chain(commands)) {
        state.apply(&Proposal { request: Ulid(request), now_ms: 0, command }).0.unwrap();
    }
    state
}

/// A registry with these apps, each `app-` and its number.
pub fn apps(numbers: &[u128]) -> State {
    state(numbers.iter().map(|number| create_app(AppId(Ulid(*number)), &format!("app-{number}"))))
}
