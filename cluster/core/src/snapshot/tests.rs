use super::*;
use crate::facts::Command;
use crate::machine::MachineState;
use crate::testing;
use proptest::prelude::*;
use ulid::Ulid;

fn record(id: u64, app: u128, config: u8, started: bool) -> Arc<Record> {
    let state = if started { MachineState::Started } else { MachineState::Stopped };
    let (app, config) = (AppId(Ulid(app)), ConfigHash([config; 16]));
    Arc::new(Record { app, config, state, ..testing::record(id) })
}

fn node(number: u32, version: u64, alive: bool, machines: Vec<Arc<Record>>) -> NodeFacts {
    NodeFacts { alive, ..testing::facts(testing::node(number, "iad"), version, machines) }
}

fn registry(apps: &[u128]) -> Arc<State> {
    registry_with(apps, 0, &[])
}

/// A registry that gave the numbers up to `given` and removed nodes since.
fn registry_with(apps: &[u128], given: u32, removed: &[u32]) -> Arc<State> {
    let app = |app: &u128| testing::create_app(AppId(Ulid(*app)), &format!("app-{app}"));
    let mut commands: Vec<Command> = apps.iter().map(app).collect();
    commands.push(Command::CreateJoinToken { token: testing::join_token([0; 32]) });
    commands.extend((1..=given).map(|number| testing::add_node([0; 32], "iad", [number as u8; 32])));
    let gone = removed.iter().filter(|number| **number <= given);
    commands.extend(gone.map(|number| Command::RemoveNode { number: NodeNumber(*number) }));
    Arc::new(testing::state(commands))
}

fn config() -> Arc<MachineConfig> {
    Arc::new(MachineConfig { image: "skein/hello".into(), ..MachineConfig::default() })
}

fn fold_one(prev: &Snapshot, facts: NodeFacts) -> Snapshot {
    fold(prev, Changes { nodes: vec![facts], ..Changes::default() })
}

#[test]
fn a_machine_that_leaves_its_node_leaves_its_app() {
    let base =
        fold(&Snapshot::default(), Changes { registry: Some((1, registry(&[1]))), ..Changes::default() });
    let with = fold_one(&base, node(1, 1, true, vec![record(5, 1, 0, true)]));
    assert_eq!(with.apps[&AppId(Ulid(1))].machines.len(), 1);
    let without = fold_one(&with, node(1, 2, true, vec![]));
    assert!(without.apps[&AppId(Ulid(1))].machines.is_empty());
}

#[test]
fn what_is_older_than_the_known_is_ignored() {
    let newer = fold_one(&Snapshot::default(), node(1, 5, true, vec![record(5, 1, 0, true)]));
    let after = fold_one(&newer, node(1, 4, true, vec![]));
    assert_eq!(after.nodes[&NodeNumber(1)].machines.len(), 1);
}

#[test]
fn a_dead_nodes_machines_stay_known() {
    let base = fold(
        &Snapshot::default(),
        Changes {
            registry: Some((1, registry(&[1]))),
            nodes: vec![node(1, 1, true, vec![record(5, 1, 0, true)])],
            ..Changes::default()
        },
    );
    let dead = fold_one(&base, node(1, 1, false, vec![record(5, 1, 0, true)]));
    assert!(!dead.nodes[&NodeNumber(1)].alive);
    assert_eq!(dead.apps[&AppId(Ulid(1))].machines.len(), 1);
}

#[test]
fn a_removed_node_is_gone_with_its_machines_whatever_gossip_says() {
    let two = |removed: &[u32]| registry_with(&[1], 2, removed);
    let base = fold(
        &Snapshot::default(),
        Changes {
            registry: Some((1, two(&[]))),
            // Gossip tells of node 3 before the registry does.
            nodes: (1..4).map(|n| node(n, 1, true, vec![record(u64::from(n), 1, 7, true)])).collect(),
            ..Changes::default()
        },
    );
    assert_eq!(base.apps[&AppId(Ulid(1))].machines.len(), 3);
    let removed = fold(&base, Changes { registry: Some((2, two(&[2]))), ..Changes::default() });
    let again = fold_one(&removed, node(2, 9, true, vec![record(2, 1, 7, true)]));
    for snapshot in [&removed, &again] {
        let nodes: Vec<_> = snapshot.nodes.keys().map(|number| number.0).collect();
        assert_eq!(nodes, [1, 3]);
        let machines = &snapshot.apps[&AppId(Ulid(1))].machines;
        assert_eq!(machines.keys().map(|(_, node)| node.0).collect::<Vec<_>>(), [1, 3]);
        assert!(snapshot.machine(MachineId::from_bits(2)).is_none());
        assert_eq!(snapshot.missing_configs().len(), 2, "nobody is asked for its configurations");
    }
}

#[test]
fn the_estimate_survives_and_a_configuration_arrives_late() {
    let base = fold(
        &Snapshot::default(),
        Changes {
            registry: Some((1, registry(&[1]))),
            nodes: vec![node(1, 1, true, vec![record(5, 1, 3, false)])],
            ..Changes::default()
        },
    );
    assert_eq!(base.missing_configs(), [(ConfigHash([3; 16]), NodeNumber(1))]);
    let key = (MachineId::from_bits(5), NodeNumber(1));
    let estimate = Arc::clone(&base.apps[&AppId(Ulid(1))].machines[&key].estimate);
    let after = fold(
        &base,
        Changes {
            nodes: vec![node(1, 2, true, vec![record(5, 1, 3, true)])],
            configs: vec![(ConfigHash([3; 16]), config())],
            ..Changes::default()
        },
    );
    let machine = &after.apps[&AppId(Ulid(1))].machines[&key];
    assert!(machine.config.is_some() && after.missing_configs().is_empty());
    assert!(Arc::ptr_eq(&machine.estimate, &estimate));
}

#[derive(Debug, Clone)]
enum Step {
    Node(u32, bool, Vec<(u64, u128, u8, bool)>),
    Registry(Vec<u128>),
    /// The next node number is given.
    Admit,
    Remove(u32),
    Config(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let machines = proptest::collection::vec((0u64..6, 0u128..4, 0u8..3, any::<bool>()), 0..6);
    let step = prop_oneof![
        4 => (1u32..4, any::<bool>(), machines).prop_map(|(n, alive, m)| Step::Node(n, alive, m)),
        1 => proptest::sample::subsequence(vec![0u128, 1, 2, 3], 0..4).prop_map(Step::Registry),
        1 => Just(Step::Admit),
        1 => (1u32..4).prop_map(Step::Remove),
        1 => (0u8..3).prop_map(Step::Config),
    ];
    proptest::collection::vec(step, 1..30)
}

type Seen = (
    Vec<(NodeNumber, u64, bool, Vec<(Arc<Record>, bool)>)>,
    Vec<(AppId, Vec<(MachineId, NodeNumber, Arc<Record>, bool)>)>,
);

/// Everything of a snapshot that a decision may depend on, but its version and its estimates.
fn seen(snapshot: &Snapshot) -> Seen {
    let nodes = snapshot.nodes.iter().map(|(number, node)| {
        let machines = node.machines.values().map(|m| (Arc::clone(&m.record), m.config.is_some()));
        (*number, node.version, node.alive, machines.collect())
    });
    let apps = snapshot.apps.iter().map(|(id, app)| {
        let machine = |((id, node), m): (&(MachineId, NodeNumber), &Arc<MachineView>)| {
            (*id, *node, Arc::clone(&m.record), m.config.is_some())
        };
        (*id, app.machines.iter().map(machine).collect())
    });
    (nodes.collect(), apps.collect())
}

proptest! {
    #[test]
    fn folding_step_by_step_equals_folding_everything_at_once(steps in steps()) {
        let mut snapshot = Snapshot::default();
        let mut last_nodes = std::collections::BTreeMap::new();
        let mut all = Changes::default();
        let (mut apps, mut given, mut removed) = (vec![], 0, vec![]);
        for (version, step) in (1u64..).zip(steps) {
            let mut changes = Changes::default();
            let registered = matches!(step, Step::Registry(_) | Step::Admit | Step::Remove(_));
            match step {
                Step::Node(number, alive, machines) => {
                    let machines = machines.into_iter().map(|(id, app, c, s)| record(id, app, c, s)).collect();
                    let facts = node(number, version, alive, machines);
                    last_nodes.insert(number, facts.clone());
                    changes.nodes.push(facts);
                }
                Step::Registry(now) => apps = now,
                Step::Admit => given = (given + 1).min(4),
                Step::Remove(number) if number <= given && !removed.contains(&number) => removed.push(number),
                Step::Remove(_) => {}
                Step::Config(hash) => {
                    all.configs.push((ConfigHash([hash; 16]), config()));
                    changes.configs.push((ConfigHash([hash; 16]), config()));
                }
            }
            if registered {
                let state = (version, registry_with(&apps, given, &removed));
                all.registry = Some(state.clone());
                changes.registry = Some(state);
            }
            snapshot = fold(&snapshot, changes);
            let mut whole = all.clone();
            whole.nodes = last_nodes.values().cloned().collect();
            prop_assert_eq!(seen(&snapshot), seen(&fold(&Snapshot::default(), whole)));
        }
    }

    #[test]
    fn folding_the_same_change_twice_changes_nothing(machines in proptest::collection::vec((0u64..6, 0u128..4, 0u8..3, any::<bool>()), 0..6)) {
        let machines: Vec<_> = machines.into_iter().map(|(id, app, c, s)| record(id, app, c, s)).collect();
        let base = fold(&Snapshot::default(), Changes { registry: Some((1, registry(&[0, 1]))), ..Changes::default() });
        let once = fold_one(&base, node(1, 1, true, machines.clone()));
        prop_assert_eq!(seen(&fold_one(&once, node(1, 1, true, machines))), seen(&once));
    }
}
