use super::*;
use crate::gossip::net::{node, record};
use crate::reader::{self, Reader};
use proptest::prelude::*;
use skein_core::record::Record;
use skein_core::snapshot::{MachineView, NodeFacts};
use skein_core::{AppId, MachineId, NodeNumber, testing};
use ulid::Ulid;

struct World {
    members: watch::Sender<Members>,
    registry: watch::Sender<(u64, Arc<State>)>,
    configs: mpsc::Sender<(ConfigHash, Arc<MachineConfig>)>,
    counters: Arc<PublishCounters>,
    reader: Reader,
}

/// The publisher at work, with a fold of the test's choice.
fn world(fold: Fold) -> (World, impl Future<Output = ()>) {
    let members = watch::Sender::new(Members::new());
    let registry = watch::Sender::new((0, Arc::new(State::default())));
    let (configs, arriving) = mpsc::channel(16);
    let inputs = Inputs { members: members.subscribe(), registry: registry.subscribe(), configs: arriving };
    let (out, reader) = reader::channel(Snapshot::default());
    let counters = Arc::new(PublishCounters::default());
    let folder = Folder { fold, ..Folder::new(Arc::clone(&counters)) };
    let run = folder.run(inputs, out, CancellationToken::new());
    (World { members, registry, configs, counters, reader }, run)
}

fn facts(number: u32, version: u64, alive: bool, machines: Vec<Record>) -> Arc<NodeFacts> {
    Arc::new(NodeFacts { alive, ..testing::facts(node(number), version, machines) })
}

fn registry(apps: &[u128]) -> Arc<State> {
    Arc::new(testing::apps(apps))
}

fn config() -> Arc<MachineConfig> {
    Arc::new(MachineConfig { image: "skein/hello".into(), ..MachineConfig::default() })
}

async fn until(reader: &Reader, condition: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
    let mut versions = reader.watch();
    loop {
        let snapshot = reader.load();
        if condition(&snapshot) {
            return snapshot;
        }
        let changed = time::timeout(Duration::from_secs(60), versions.changed()).await;
        changed.expect("the snapshot gets there").expect("the publisher runs");
    }
}

#[tokio::test(start_paused = true)]
async fn what_gossip_the_registry_and_a_worker_tell_is_published() {
    let (world, run) = world(fold);
    let test = async {
        world.registry.send_replace((7, registry(&[1])));
        world.members.send_replace(Members::unit(NodeNumber(1), facts(1, 1, true, vec![record(5)])));
        let snapshot =
            until(&world.reader, |snapshot| snapshot.applied == 7 && snapshot.nodes.len() == 1).await;
        assert_eq!(snapshot.apps[&AppId(Ulid(1))].machines.len(), 1);
        assert_eq!(snapshot.missing_configs(), [(record(5).config, NodeNumber(1))]);
        world.configs.send((record(5).config, config())).await.unwrap();
        let snapshot = until(&world.reader, |snapshot| snapshot.missing_configs().is_empty()).await;
        assert!(snapshot.machine(MachineId::from_bits(5)).unwrap().seen_ms > 0);
    };
    tokio::select! { () = test => {}, () = run => panic!("it ended") }
}

#[tokio::test(start_paused = true)]
async fn changes_within_the_batch_time_make_one_snapshot_and_the_first_does_not_wait() {
    let (world, run) = world(fold);
    let test = async {
        until(&world.reader, |snapshot| snapshot.version == 1).await;
        time::advance(BATCH).await;
        let start = Instant::now();
        world.registry.send_replace((1, registry(&[1])));
        until(&world.reader, |snapshot| snapshot.applied == 1).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        for version in 1..=50u64 {
            world.members.send_replace(Members::unit(NodeNumber(1), facts(1, version, true, vec![])));
            tokio::task::yield_now().await;
        }
        until(&world.reader, |snapshot| snapshot.nodes.values().any(|node| node.version == 50)).await;
        assert!(start.elapsed() <= BATCH * 2, "{:?}", start.elapsed());
        assert_eq!(world.counters.folds(), 3);
    };
    tokio::select! { () = test => {}, () = run => panic!("it ended") }
}

/// SPEC CLU-6: the last good snapshot keeps serving, the other changes go on.
#[tokio::test(start_paused = true)]
async fn a_change_whose_fold_panics_is_left_out_and_the_rest_goes_on() {
    fn fragile(prev: &Snapshot, changes: Changes) -> Snapshot {
        assert!(changes.nodes.iter().all(|facts| facts.version != 13), "version 13");
        fold(prev, changes)
    }
    let (world, run) = world(fragile);
    let test = async {
        let of = |version| {
            Members::from_iter([1, 2, 3].map(|number| {
                let version = if number == 2 { version } else { 1 };
                (NodeNumber(number), facts(number, version, true, vec![record(number.into())]))
            }))
        };
        world.registry.send_replace((1, registry(&[1])));
        world.members.send_replace(of(13));
        let snapshot = until(&world.reader, |snapshot| snapshot.nodes.len() == 2).await;
        assert_eq!((snapshot.applied, world.counters.left_out()), (1, 1));
        assert!(!snapshot.nodes.contains_key(&NodeNumber(2)));
        world.members.send_replace(of(14));
        let snapshot = until(&world.reader, |snapshot| snapshot.nodes.len() == 3).await;
        assert_eq!(snapshot.apps[&AppId(Ulid(1))].machines.len(), 3);
        world.members.send_replace(of(13));
        world.registry.send_replace((2, registry(&[1, 2])));
        let snapshot = until(&world.reader, |snapshot| snapshot.applied == 2).await;
        assert_eq!((snapshot.nodes[&NodeNumber(2)].version, world.counters.left_out()), (14, 2));
    };
    tokio::select! { () = test => {}, () = run => panic!("it ended") }
}

#[tokio::test(start_paused = true)]
async fn it_goes_on_when_a_source_has_ended_and_ends_when_cancelled() {
    let (mut world, run) = world(fold);
    let test = async {
        let (configs, _) = mpsc::channel(1);
        world.configs = configs;
        world.members.send_replace(Members::unit(NodeNumber(1), facts(1, 1, true, vec![])));
        until(&world.reader, |snapshot| snapshot.nodes.len() == 1).await;
        world.members = watch::Sender::new(Members::new());
        world.registry.send_replace((1, registry(&[1])));
        until(&world.reader, |snapshot| snapshot.applied == 1).await;
    };
    tokio::select! { () = test => {}, () = run => panic!("it ended") }

    let members = watch::Sender::new(Members::new());
    let registry = watch::Sender::new((0, Arc::new(State::default())));
    let inputs =
        Inputs { members: members.subscribe(), registry: registry.subscribe(), configs: mpsc::channel(1).1 };
    let cancel = CancellationToken::new();
    cancel.cancel();
    super::run(inputs, reader::channel(Snapshot::default()).0, Arc::default(), cancel).await;
}

#[test]
fn configurations_that_nothing_names_are_forgotten_beyond_the_spare_ones() {
    let hash = |byte: u8| ConfigHash([byte; 16]);
    let changes = Changes {
        nodes: vec![facts(1, 1, true, vec![record(5)]).as_ref().clone()],
        configs: (0..10).map(|byte| (hash(byte), config())).collect(),
        ..Changes::default()
    };
    let mut snapshot = fold(&Snapshot::default(), changes);
    forget_configs(&mut snapshot, 9);
    assert_eq!(snapshot.configs.len(), 10);
    forget_configs(&mut snapshot, 8);
    assert_eq!(snapshot.configs.keys().copied().collect::<Vec<_>>(), [record(5).config]);
    assert!(snapshot.missing_configs().is_empty());
}

#[derive(Debug, Clone)]
enum Step {
    Node(u32, bool, Vec<(u64, u128, u8)>),
    Registry(Vec<u128>),
    Config(u8),
    Pause,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let machines = proptest::collection::vec((0u64..6, 0u128..4, 0u8..3), 0..6);
    let step = prop_oneof![
        4 => (1u32..4, any::<bool>(), machines).prop_map(|(n, alive, m)| Step::Node(n, alive, m)),
        1 => proptest::sample::subsequence(vec![0u128, 1, 2, 3], 0..4).prop_map(Step::Registry),
        1 => (0u8..3).prop_map(Step::Config),
        3 => Just(Step::Pause),
    ];
    proptest::collection::vec(step, 1..20)
}

type Told = (Vec<(NodeNumber, u64, bool, Vec<Told1>)>, Vec<(AppId, Vec<Told1>)>, u64);
type Told1 = (MachineId, NodeNumber, Arc<Record>, bool);

/// Everything of a snapshot that a decision may depend on, but versions, times and estimates.
fn told(snapshot: &Snapshot) -> Told {
    let machine = |view: &Arc<MachineView>| {
        (view.record.id, view.node, Arc::clone(&view.record), view.config.is_some())
    };
    let nodes = snapshot.nodes.iter().map(|(number, node)| {
        (*number, node.version, node.alive, node.machines.values().map(machine).collect())
    });
    let apps = snapshot.apps.iter().map(|(id, app)| (*id, app.machines.values().map(machine).collect()));
    (nodes.collect(), apps.collect(), snapshot.applied)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_published_equals_the_fold_from_nothing(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(async move {
            let (world, run) = world(fold);
            let test = async {
                let mut all = Changes::default();
                for (version, step) in (1u64..).zip(steps) {
                    match step {
                        Step::Node(number, alive, machines) => {
                            let of = |(id, app, config): (u64, u128, u8)| Record {
                                app: AppId(Ulid(app)),
                                config: ConfigHash([config; 16]),
                                ..record(id)
                            };
                            let facts = facts(number, version, alive, machines.into_iter().map(of).collect());
                            world.members.send_modify(|members| drop(members.insert(NodeNumber(number), facts)));
                        }
                        Step::Registry(apps) => {
                            let state = (version, registry(&apps));
                            all.registry = Some(state.clone());
                            world.registry.send_replace(state);
                        }
                        Step::Config(hash) => {
                            all.configs.push((ConfigHash([hash; 16]), config()));
                            world.configs.send((ConfigHash([hash; 16]), config())).await.unwrap();
                        }
                        Step::Pause => tokio::task::yield_now().await,
                    }
                }
                all.nodes = world.members.borrow().values().map(|facts| facts.as_ref().clone()).collect();
                let expected = told(&fold(&Snapshot::default(), all));
                until(&world.reader, |snapshot| told(snapshot) == expected).await;
            };
            tokio::select! { () = test => {}, () = run => panic!("it ended") }
        });
    }
}
