use super::*;
use crate::codec;
use proptest::prelude::*;

fn settings() -> Settings {
    Settings {
        cluster: Ulid(1),
        base_domain: "localhost".into(),
        shared_v4: Ipv4Addr::new(203, 0, 113, 1),
        v4_pool: [203, 0, 113],
        v6_pool: "2001:db8:1::".parse().unwrap(),
        authority: vec![1],
        authority_key: vec![2],
    }
}

fn token(id: u128) -> Token {
    Token {
        id: TokenId(Ulid(id)),
        hash: [0; 32],
        scope: Scope::Cluster,
        read_only: false,
        name: "operator".into(),
        created_ms: 0,
    }
}

fn init() -> Command {
    Command::Init {
        settings: settings(),
        org: OrgId(Ulid(1)),
        slug: "personal".parse().unwrap(),
        token: token(1),
    }
}

struct Fixture {
    state: State,
    next: u128,
}

impl Fixture {
    fn new() -> Self {
        let mut fixture = Self { state: State::default(), next: 0 };
        fixture.apply(init()).unwrap();
        fixture
    }
    fn apply(&mut self, command: Command) -> Result<Outcome, Refusal> {
        self.apply_at(1_000, command)
    }
    fn apply_at(&mut self, now_ms: u64, command: Command) -> Result<Outcome, Refusal> {
        self.next += 1;
        self.state.apply(&Proposal { request: Ulid(self.next), now_ms, command }).0
    }
    fn create_app(&mut self, id: u128, name: &str, network: &str) -> Result<App, Refusal> {
        let command = Command::CreateApp {
            id: AppId(Ulid(id)),
            name: name.parse().unwrap(),
            org: OrgId(Ulid(1)),
            network: network.parse().unwrap(),
        };
        let outcome = self.apply(command)?;
        let Outcome::App(app) = outcome else { panic!("{outcome:?}") };
        Ok(app)
    }
    fn join(&mut self, now_ms: u64, secret: u8, key: u8) -> Result<Outcome, Refusal> {
        self.apply_at(now_ms, join(secret, key, None, "iad", 1))
    }
    fn allow_joins(&mut self, uses_left: u32) {
        let token = JoinToken { id: TokenId(Ulid(5)), hash: [9; 32], expires_ms: 5_000, uses_left };
        self.apply(Command::CreateJoinToken { token }).unwrap();
    }
}

fn join(secret: u8, key: u8, name: Option<&str>, region: &str, port: u16) -> Command {
    Command::AddNode {
        token: TokenId(Ulid(5)),
        secret_hash: [secret; 32],
        name: name.map(|name| name.parse().unwrap()),
        region: region.parse().unwrap(),
        key: [key; 32],
        backhaul: (Ipv4Addr::LOCALHOST, port).into(),
    }
}

#[test]
fn a_name_is_given_once_and_free_again_after_destroy() {
    let mut f = Fixture::new();
    let app = f.create_app(10, "web", "default").unwrap();
    assert_eq!(f.create_app(11, "web", "default"), Err(Refusal::NameTaken("web".into())));
    f.apply(Command::DestroyApp { id: app.id }).unwrap();
    assert!(f.state.app_by_name("web").is_none());
    f.create_app(11, "web", "default").unwrap();
}

#[test]
fn networks_are_numbered_from_one_and_never_reused() {
    let mut f = Fixture::new();
    assert_eq!(f.create_app(10, "a", "default").unwrap().network, NetworkId(1));
    let blue = f.create_app(11, "b", "blue").unwrap();
    assert_eq!(blue.network, NetworkId(2));
    f.apply(Command::DestroyApp { id: blue.id }).unwrap();
    assert_eq!(f.create_app(12, "c", "green").unwrap().network, NetworkId(3));
    assert_eq!(f.create_app(13, "d", "blue").unwrap().network, NetworkId(2));
}

#[test]
fn a_join_token_admits_as_often_as_it_says_and_not_after_its_expiry() {
    let mut f = Fixture::new();
    f.allow_joins(2);
    assert_eq!(f.join(2_000, 8, 1), Err(Refusal::JoinTokenInvalid), "wrong secret");
    assert_eq!(f.join(5_000, 9, 1), Err(Refusal::JoinTokenExpired));
    assert_eq!(f.join(2_000, 9, 1), Ok(Outcome::Node(NodeNumber(1), "iad-1".parse().unwrap())));
    assert_eq!(f.join(2_000, 9, 2), Ok(Outcome::Node(NodeNumber(2), "iad-2".parse().unwrap())));
    assert_eq!(f.join(2_000, 9, 3), Err(Refusal::JoinTokenUsed));
}

/// SPEC CLU-1: whoever did not hear the answer asks again, and is the same node.
#[test]
fn a_repeated_join_is_the_same_node_and_spends_nothing() {
    let mut f = Fixture::new();
    f.allow_joins(2);
    let first = Ok(Outcome::Node(NodeNumber(1), "iad-1".parse().unwrap()));
    assert_eq!(f.join(2_000, 9, 1), first);
    let before = f.state.clone();
    let proposal =
        Proposal { request: Ulid(900), now_ms: 2_000, command: join(9, 1, Some("other"), "iad", 1) };
    let (outcome, changed) = f.state.apply(&proposal);
    assert_eq!(outcome, first, "another name asked for with the same key keeps the old one");
    assert_eq!(changed, BTreeSet::from([FactKey::Answered(Ulid(900))]));
    assert_eq!(f.state.node(NodeNumber(1)), before.node(NodeNumber(1)));

    assert_eq!(f.join(2_000, 9, 2), Ok(Outcome::Node(NodeNumber(2), "iad-2".parse().unwrap())));
    assert_eq!(f.join(2_000, 9, 3), Err(Refusal::JoinTokenUsed));
    assert_eq!(f.join(2_000, 9, 1), first, "a used-up token is good for who joined");
    assert_eq!(f.join(9_000, 9, 1), first, "so is an expired one");
    assert_eq!(f.join(2_000, 8, 1), Err(Refusal::JoinTokenInvalid), "a wrong secret is not");
    assert_eq!(f.state.nodes().count(), 2);
}

#[test]
fn a_repeated_join_tells_where_the_node_is_now() {
    let mut f = Fixture::new();
    f.allow_joins(1);
    let first = f.join(2_000, 9, 1);
    let joined = f.state.node(NodeNumber(1)).unwrap().clone();
    assert_eq!(f.apply_at(3_000, join(9, 1, None, "lhr", 2)), first);
    let moved = Node {
        region: "lhr".parse().unwrap(),
        backhaul: "127.0.0.1:2".parse().unwrap(),
        ..Node::clone(&joined)
    };
    assert_eq!(**f.state.node(NodeNumber(1)).unwrap(), moved);
}

#[test]
fn node_numbers_are_never_reused() {
    let mut f = Fixture::new();
    f.allow_joins(9);
    f.join(1_000, 9, 1).unwrap();
    f.apply(Command::RemoveNode { number: NodeNumber(1) }).unwrap();
    assert_eq!(f.join(1_000, 9, 1), Ok(Outcome::Node(NodeNumber(2), "iad-1".parse().unwrap())));
}

/// SPEC CLU-1: a removed node's certificate is still good, so its key is remembered.
#[test]
fn a_removed_nodes_key_is_fenced_until_it_is_admitted_again() {
    let mut f = Fixture::new();
    f.allow_joins(3);
    f.join(1_000, 9, 1).unwrap();
    f.join(1_000, 9, 2).unwrap();
    assert!(f.state.fenced().is_empty());
    f.apply(Command::RemoveNode { number: NodeNumber(1) }).unwrap();
    assert_eq!(f.state.fenced().iter().collect::<Vec<_>>(), [&[1; 32]]);
    let removed = |state: &State| [1, 2, 3].map(|number| state.was_removed(NodeNumber(number)));
    assert_eq!(removed(&f.state), [true, false, false]);
    assert_eq!(f.apply(Command::RemoveNode { number: NodeNumber(1) }), Err(Refusal::NotFound("node".into())));
    assert_eq!(f.join(9_000, 9, 1), Err(Refusal::JoinTokenExpired), "a removed node is no repeat");
    assert!(f.state.fenced().contains(&[1; 32]));
    f.join(1_000, 9, 1).unwrap();
    assert!(f.state.fenced().is_empty());
    assert_eq!(removed(&f.state), [true, false, false], "its new number is another");
}

#[test]
fn dedicated_addresses_are_unique_and_the_shared_one_is_shared() {
    let mut f = Fixture::new();
    let ids: Vec<AppId> =
        ["a", "b"].iter().zip(10..).map(|(n, i)| f.create_app(i, n, "default").unwrap().id).collect();
    let mut allocate = |app, kind| {
        let outcome = f.apply(Command::Allocate { app, kind }).unwrap();
        let Outcome::Address(address) = outcome else { panic!("{outcome:?}") };
        address.ip
    };
    assert_ne!(allocate(ids[0], AddressKind::V6), allocate(ids[1], AddressKind::V6));
    assert_ne!(allocate(ids[0], AddressKind::V4), allocate(ids[1], AddressKind::V4));
    assert_eq!(allocate(ids[0], AddressKind::SharedV4), allocate(ids[1], AddressKind::SharedV4));
    let shared = IpAddr::V4(settings().shared_v4);
    assert!(f.state.app_at(shared).is_none(), "a shared address names no app by itself");
    let mine = f.state.addresses_of(ids[0]);
    assert_eq!(
        mine.iter().map(|a| a.kind).collect::<Vec<_>>(),
        [AddressKind::V4, AddressKind::SharedV4, AddressKind::V6]
    );
    assert_eq!(f.state.app_at(mine[0].ip).unwrap().app, ids[0]);
}

#[test]
fn a_request_id_is_applied_once() {
    let mut f = Fixture::new();
    let command =
        Command::CreateOrg { id: OrgId(Ulid(7)), slug: "acme".parse().unwrap(), name: "Acme".into() };
    let proposal = Proposal { request: Ulid(999), now_ms: 0, command };
    let (first, changed) = f.state.apply(&proposal);
    assert!(first.is_ok() && !changed.is_empty());
    let before = f.state.clone();
    assert_eq!(f.state.apply(&proposal), (first, BTreeSet::new()));
    assert_eq!(f.state, before);
}

/// A node that was restarted between two proposals must not drift from one that was not.
#[test]
fn the_same_answers_are_forgotten_after_a_restart() {
    let mut running = State::default();
    let mut restarted = State::default();
    // Request ids come from several clocks, so their order is not that of the log.
    for n in 0..REMEMBERED as u128 + 9 {
        let proposal = Proposal { request: Ulid(u128::MAX - n), now_ms: 0, command: init() };
        assert_eq!(running.apply(&proposal), restarted.apply(&proposal));
        if n % 500 == 0 {
            restarted = State::from_facts(restarted.facts());
        }
    }
    assert_eq!(restarted, running);
    assert!(running.fact(&FactKey::Answered(Ulid(u128::MAX))).is_none(), "the oldest is forgotten");
    assert!(running.fact(&FactKey::Answered(Ulid(u128::MAX - 9))).is_some());
}

fn commands() -> impl Strategy<Value = Command> {
    let app = || (0u128..4).prop_map(|id| AppId(Ulid(id)));
    prop_oneof![
        (0u128..4, 0u8..4, 0u8..3).prop_map(|(id, name, network)| Command::CreateApp {
            id: AppId(Ulid(id)),
            name: format!("app-{name}").parse().unwrap(),
            org: OrgId(Ulid(1)),
            network: format!("net-{network}").parse().unwrap(),
        }),
        app().prop_map(|id| Command::DestroyApp { id }),
        (app(), prop_oneof![Just(AddressKind::V4), Just(AddressKind::V6), Just(AddressKind::SharedV4)])
            .prop_map(|(app, kind)| Command::Allocate { app, kind }),
        (1u32..5).prop_map(|number| Command::RemoveNode { number: NodeNumber(number) }),
        (1u8..4, 1u16..3).prop_map(|(key, port)| join(9, key, None, "iad", port)),
        (1u32..9).prop_map(|uses_left| Command::CreateJoinToken {
            token: JoinToken { id: TokenId(Ulid(5)), hash: [9; 32], expires_ms: 5_000, uses_left }
        }),
        (1u128..4).prop_map(|id| Command::RevokeToken { id: TokenId(Ulid(id)) }),
        (1u128..4).prop_map(|id| Command::CreateToken { token: token(id) }),
        Just(init()),
    ]
}

proptest! {
    /// What the shell stores (the changed facts, one by one) is the state itself.
    #[test]
    fn storing_changed_facts_keeps_the_whole_state(commands in proptest::collection::vec(commands(), 0..40)) {
        let mut state = State::default();
        let mut stored = std::collections::BTreeMap::new();
        for (request, command) in (1u128..).zip(std::iter::once(init()).chain(commands)) {
            let (_, changed) = state.apply(&Proposal { request: Ulid(request), now_ms: 1, command });
            for key in changed {
                match state.fact(&key) {
                    Some(fact) => stored.insert(codec::encode(&key), codec::encode(&fact)),
                    None => stored.remove(&codec::encode(&key)),
                };
            }
        }
        let facts: Vec<Fact> = stored.values().map(|bytes| codec::decode(bytes).unwrap()).collect();
        let keys: Vec<_> = facts.iter().map(|fact| codec::encode(&fact.key())).collect();
        prop_assert_eq!(keys, stored.into_keys().collect::<Vec<_>>());
        prop_assert_eq!(&State::from_facts(facts), &state);
        prop_assert_eq!(&State::from_facts(state.facts()), &state);
    }

    /// One name, one app; each address of an app that exists; one key, one node that is not fenced.
    #[test]
    fn names_and_keys_stay_unique_and_addresses_have_an_app(commands in proptest::collection::vec(commands(), 0..60)) {
        let mut f = Fixture::new();
        for command in commands {
            // Refusals are part of the game; the invariants must hold either way.
            let _outcome = f.apply(command);
            let names: BTreeSet<_> = f.state.apps().map(|app| app.name.clone()).collect();
            prop_assert_eq!(names.len(), f.state.apps().count());
            for address in f.state.addresses() {
                prop_assert!(f.state.app(address.app).is_some());
            }
            let keys: BTreeSet<_> = f.state.nodes().map(|node| node.key).collect();
            prop_assert_eq!(keys.len(), f.state.nodes().count());
            prop_assert!(keys.iter().all(|key| !f.state.fenced().contains(key)), "a member is not fenced");
        }
    }
}
