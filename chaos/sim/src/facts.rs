//! The facts that a simulated cluster begins with, and the commands that add to them.

use skein_core::facts::{Command, Settings};
use skein_core::{AppId, NodeNumber, RegionCode, testing};
use ulid::Ulid;

const SECRET: [u8; 32] = [7; 32];

/// An id with a time in it, as all real ones have: short ones would make messages shorter than they
/// are.
pub fn ulid(number: u128) -> Ulid {
    Ulid((0x0192_u128 << 112) | number)
}

/// Makes an organization and admits `nodes`, whose numbers must be 1, 2, 3 and so on.
pub fn beginning(nodes: &[(NodeNumber, RegionCode)]) -> Vec<Command> {
    let settings = Settings { cluster: ulid(7), ..testing::settings() };
    let mut commands = vec![testing::init(settings)];
    commands.push(Command::CreateJoinToken { token: testing::join_token(SECRET) });
    let admit = |(number, region): &(NodeNumber, RegionCode)| {
        testing::add_node(SECRET, region.as_str(), key(*number))
    };
    commands.extend(nodes.iter().map(admit));
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

/// Makes an app on the default network of the only organization.
///
/// # Panics
/// When `name` is no app's name.
pub fn create_app(number: u128, name: &str) -> Command {
    testing::create_app(app_id(number), name)
}
