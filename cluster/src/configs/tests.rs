use super::*;
use crate::gossip::net::{node, record};
use crate::reader::{self, Publisher};
use proptest::prelude::*;
use skein_core::record::Record;
use skein_core::snapshot::{Changes, NodeFacts, fold};
use skein_core::testing;
use std::collections::VecDeque;
use std::sync::Mutex;

/// Answers by node, each given once; then none.
#[derive(Default)]
struct Script {
    answers: Mutex<BTreeMap<NodeNumber, VecDeque<Option<Bytes>>>>,
    asked: Mutex<Vec<(NodeNumber, ConfigHash)>>,
}

impl ConfigSource for Script {
    fn fetch(&self, node: NodeNumber, hash: ConfigHash) -> BoxFuture<'static, Option<Bytes>> {
        self.asked.lock().unwrap().push((node, hash));
        assert_ne!(node, NodeNumber(13), "node 13 panics");
        let answer = self.answers.lock().unwrap().entry(node).or_default().pop_front().flatten();
        Box::pin(async move { answer })
    }
}

fn json(image: &str) -> Bytes {
    serde_json::to_vec(&MachineConfig { image: image.to_owned(), ..MachineConfig::default() }).unwrap().into()
}

/// A snapshot of nodes with one Machine of that configuration each.
fn naming(nodes: &[(u32, bool)], hash: ConfigHash) -> Snapshot {
    let facts = |(number, alive): &(u32, bool)| {
        let record = Record { config: hash, ..record(u64::from(*number)) };
        NodeFacts { alive: *alive, ..testing::facts(node(*number), 1, [record]) }
    };
    fold(&Snapshot::default(), Changes { nodes: nodes.iter().map(facts).collect(), ..Changes::default() })
}

type Arriving = mpsc::Receiver<(ConfigHash, Arc<MachineConfig>)>;

fn start(
    snapshot: Snapshot,
    script: &Arc<Script>,
) -> (JoinSet<()>, Publisher, Arriving, Arc<ConfigCounters>) {
    let (publisher, reader) = reader::channel(snapshot);
    let (arrived, arriving) = mpsc::channel(4);
    let counters = Arc::new(ConfigCounters::default());
    let mut tasks = JoinSet::new();
    let source: Arc<dyn ConfigSource> = Arc::<Script>::clone(script);
    tasks.spawn(run(reader, source, arrived, Arc::clone(&counters), CancellationToken::new()));
    (tasks, publisher, arriving, counters)
}

fn script(answers: &[(u32, &[Option<Bytes>])]) -> Arc<Script> {
    let answers =
        answers.iter().map(|(node, answers)| (NodeNumber(*node), answers.iter().cloned().collect()));
    Arc::new(Script { answers: Mutex::new(answers.collect()), asked: Mutex::default() })
}

#[tokio::test(start_paused = true)]
async fn it_asks_again_until_the_right_configuration_comes_and_believes_no_other() {
    let (good, other) = (json("skein/hello"), json("skein/other"));
    let hash = hash_of(&good);
    let script = script(&[(1, &[None, Some(other), Some(Bytes::new()), Some(good)])]);
    let (_tasks, publisher, mut arriving, counters) = start(naming(&[(1, true)], hash), &script);
    let (arrived, config) = arriving.recv().await.unwrap();
    assert_eq!((arrived, config.image.as_str()), (hash, "skein/hello"));
    assert_eq!((counters.unanswered(), counters.refused(), counters.arrived()), (2, 1, 1));

    // Nothing is asked once the snapshot has it.
    let mut snapshot = naming(&[(1, true)], hash);
    snapshot = fold(&snapshot, Changes { configs: vec![(hash, config)], ..Changes::default() });
    publisher.publish(snapshot);
    assert!(time::timeout(LONGEST_PAUSE * 10, arriving.recv()).await.is_err());
    assert_eq!(script.asked.lock().unwrap().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_live_node_is_asked_before_a_dead_one_and_each_in_turn() {
    let good = json("skein/hello");
    let hash = hash_of(&good);
    let script = script(&[(1, &[Some(good)]), (2, &[None])]);
    let (_tasks, _publisher, mut arriving, _) = start(naming(&[(1, false), (2, true)], hash), &script);
    arriving.recv().await.unwrap();
    assert_eq!(*script.asked.lock().unwrap(), [(NodeNumber(2), hash), (NodeNumber(1), hash)]);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_never_answers_is_asked_ever_more_rarely() {
    let script = script(&[]);
    let (_tasks, _publisher, mut arriving, counters) =
        start(naming(&[(1, true)], ConfigHash([9; 16])), &script);
    assert!(time::timeout(Duration::from_secs(60), arriving.recv()).await.is_err());
    let asked = script.asked.lock().unwrap().len();
    assert!((12..=22).contains(&asked), "{asked}");
    assert!(counters.unanswered() >= 12);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_panics_is_one_that_does_not_answer() {
    let good = json("skein/hello");
    let hash = hash_of(&good);
    let script = script(&[(14, &[Some(good)])]);
    let (_tasks, _publisher, mut arriving, counters) =
        start(naming(&[(13, true), (14, true)], hash), &script);
    assert_eq!(arriving.recv().await.unwrap().0, hash);
    assert_eq!((counters.unanswered(), counters.arrived()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn what_appears_later_is_asked_for_at_once() {
    let good = json("skein/hello");
    let hash = hash_of(&good);
    let script = script(&[(1, &[Some(good)])]);
    let (_tasks, publisher, mut arriving, _) = start(Snapshot::default(), &script);
    tokio::task::yield_now().await;
    let before = Instant::now();
    publisher.publish(naming(&[(1, true)], hash));
    assert_eq!(arriving.recv().await.unwrap().0, hash);
    assert_eq!(before.elapsed(), Duration::ZERO);
}

/// Whoever asked dead or silent owners for long does not let a new one wait.
#[tokio::test(start_paused = true)]
async fn an_owner_that_appears_or_comes_back_is_asked_without_a_pause() {
    let good = json("skein/hello");
    let hash = hash_of(&good);
    let script = script(&[(2, &[Some(good.clone())])]);
    let (_tasks, publisher, mut arriving, counters) = start(naming(&[(1, true)], hash), &script);
    assert!(time::timeout(LONGEST_PAUSE * 5, arriving.recv()).await.is_err());
    assert!(counters.unanswered() > 5);
    let before = Instant::now();
    publisher.publish(naming(&[(1, true), (2, true)], hash));
    assert_eq!(arriving.recv().await.unwrap().0, hash);
    assert_eq!(before.elapsed(), Duration::ZERO);

    let mut turns = Turns::default();
    let (first, second) = (NodeNumber(1), NodeNumber(2));
    let owners = [(first, false), (second, true)];
    assert_eq!(turns.next(&owners, false), Some(second));
    turns.failed(second);
    assert_eq!((turns.next(&owners, true), turns.next(&owners, false)), (None, Some(first)));
    turns.failed(first);
    assert_eq!(turns.next(&owners, true), None);
    assert_eq!(turns.next(&[(first, true), (second, true)], true), Some(first), "it has come back");
    turns.arrived();
    assert_eq!(turns.next(&[(first, true), (second, true)], true), None, "the snapshot will have it soon");
}

#[test]
fn the_hash_is_the_first_half_of_sha_256() {
    assert_eq!(hash_of(b"abc").to_string(), "ba7816bf8f01cfea414140de5dae2223");
}

proptest! {
    #[test]
    fn any_bytes_are_that_configuration_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let hash = hash_of(&bytes);
        let _ = verify(hash, &bytes);
        prop_assert!(matches!(verify(ConfigHash([0; 16]), &bytes), Err(BadConfig::Hash(found)) if found == hash));
    }

    #[test]
    fn pauses_grow_to_a_bound(failures in 1u32..1_000_000, seed: u64) {
        let mut rng = skein_core::random::Seed::new(seed);
        let pause = pause(failures, &mut rng);
        prop_assert!(pause <= LONGEST_PAUSE && pause >= FIRST_PAUSE.mul_f64(0.9));
    }
}
