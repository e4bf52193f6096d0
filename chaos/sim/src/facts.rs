//! The facts that a simulated cluster begins with, and the commands that add to them.

use std::net::{Ipv6Addr, SocketAddr};

use skein_core::facts::{Command, JoinToken, Scope, Settings, Token};
use skein_core::{AppId, AppName, NetworkName, NodeNumber, OrgId, RegionCode, TokenId};
use ulid::Ulid;

/// The only organization.
pub const ORG: OrgId = OrgId(Ulid(1));
const SECRET: [u8; 32] = [7; 32];

/// An id with a time in it, as all real ones have: short ones would make messages shorter than they
/// are.
pub fn ulid(number: u128) -> Ulid {
    Ulid((0x0192_u128 << 112) | number)
}

/// Makes an organization and admits `nodes`, whose numbers must be 1, 2, 3 and so on.
pub fn beginning(nodes: &[(NodeNumber, RegionCode)]) -> Vec<Command> {
    let name = "personal";
    let settings = Settings {
        cluster: ulid(7),
        base_domain: "localhost".into(),
        shared_v4: [203, 0, 113, 1].into(),
        v4_pool: [203, 0, 113],
        v6_pool: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0),
        authority: vec![1],
        authority_key: vec![2],
    };
    let operator = TokenId(Ulid(1));
    let token = Token {
        id: operator,
        hash: [0; 32],
        scope: Scope::Cluster,
        read_only: false,
        name: "operator".into(),
        created_ms: 0,
    };
    let join = TokenId(Ulid(2));
    let admits = JoinToken { id: join, hash: SECRET, expires_ms: u64::MAX, uses_left: u32::MAX };
    let mut commands = Vec::new();
    if let Ok(slug) = name.parse() {
        commands.push(Command::Init { settings, org: ORG, slug, token });
    }
    commands.push(Command::CreateJoinToken { token: admits });
    commands.extend(nodes.iter().map(|(number, region)| Command::AddNode {
        token: join,
        secret_hash: SECRET,
        name: None,
        region: *region,
        key: key(*number),
        backhaul: SocketAddr::from(([127, 0, 0, 1], 1)),
    }));
    commands
}

fn key(number: NodeNumber) -> [u8; 32] {
    let mut key = [0; 32];
    key[..4].copy_from_slice(&number.0.to_be_bytes());
    key
}

/// The id of an app.
pub fn app_id(number: u128) -> AppId {
    AppId(ulid(number))
}

/// Makes an app on the default network of [`ORG`].
///
/// # Panics
/// When `name` is no app's name.
pub fn create_app(number: u128, name: &str) -> Command {
    let name: AppName = name.parse().unwrap_or_else(|_| panic!("{name} is no app's name"));
    Command::CreateApp { id: app_id(number), name, org: ORG, network: NetworkName::default_network() }
}
