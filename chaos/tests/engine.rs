//! Faults in a testbed of processes that are no nodes (SPEC CH-1, CH-2).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../testbed/tests/fake/mod.rs"]
mod fake;

use std::time::Duration;

use skein_chaos::{ActiveJson, ChaosError, Faults, InjectJson};
use skein_core::api::LinksJson;
use skein_testbed::{Life, Testbed};

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn fake_node() {
    fake::serve();
}

async fn testbed(dir: &tempfile::TempDir) -> (Testbed, Faults) {
    let program = fake::program(dir.path(), "fake_node");
    let testbed = fake::launch(dir.path(), &program, "iad,lhr").await.unwrap();
    (testbed.clone(), Faults::new(testbed))
}

async fn inject(faults: &Faults, text: &str, for_ms: Option<u64>) -> Result<ActiveJson, ChaosError> {
    faults.inject(InjectJson { fault: text.parse().unwrap(), for_ms }).await
}

/// The peers that a node has rules for; `None` when it was told nothing.
async fn told(testbed: &Testbed, node: usize) -> Option<Vec<String>> {
    let nodes = testbed.nodes();
    let url = format!("{}/skein/v1/links", nodes[node].api().unwrap());
    let links: Option<LinksJson> = testbed.client().get(&url, PATIENCE).await.unwrap();
    links.map(|links| links.rules.iter().map(|link| link.peer.to_string()).collect())
}

async fn eventually<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::task::yield_now().await;
    }
}

fn texts(faults: &Faults) -> Vec<String> {
    faults.list().into_iter().map(|fault| fault.text).collect()
}

#[tokio::test]
async fn faults_of_links_reach_the_nodes_that_send_and_heal() {
    let dir = tempfile::tempdir().unwrap();
    let (testbed, faults) = testbed(&dir).await;
    let one = inject(&faults, "partition iad lhr --one-way", None).await.unwrap();
    assert_eq!(told(&testbed, 0).await, Some(vec!["lhr-1".into()]));
    assert_eq!(told(&testbed, 1).await, None, "the other way is left alone");
    inject(&faults, "loss iad lhr 10%", None).await.unwrap();
    assert_eq!(texts(&faults), ["partition iad lhr --one-way", "loss iad lhr 10%"]);
    faults.heal(&one.id).await.unwrap();
    assert_eq!(told(&testbed, 0).await, Some(vec!["lhr-1".into()]), "the loss stays");
    faults.heal_all().await.unwrap();
    assert_eq!((told(&testbed, 0).await, told(&testbed, 1).await), (Some(vec![]), Some(vec![])));
    assert!(faults.list().is_empty());
    assert!(matches!(faults.heal(&one.id).await, Err(ChaosError::Unknown(_))));
}

#[tokio::test]
async fn what_can_not_be_done_is_refused_and_not_listed() {
    let dir = tempfile::tempdir().unwrap();
    let (_testbed, faults) = testbed(&dir).await;
    for bad in ["partition iad syd", "kill syd-1"] {
        inject(&faults, bad, None).await.unwrap_err();
    }
    assert!(faults.list().is_empty());
}

#[tokio::test]
async fn a_kill_is_healed_by_starting_the_node_again_whoever_does_it() {
    let dir = tempfile::tempdir().unwrap();
    let (testbed, faults) = testbed(&dir).await;
    let killed = inject(&faults, "kill lhr-1", None).await.unwrap();
    assert_eq!(texts(&faults), ["kill lhr-1"]);
    faults.heal(&killed.id).await.unwrap();
    assert_eq!(testbed.nodes()[1].life, Life::Running);
    inject(&faults, "kill lhr-1", None).await.unwrap();
    testbed.restart("lhr-1").await.unwrap();
    assert!(faults.list().is_empty(), "it is over");
}

#[tokio::test]
async fn a_pause_ends_by_itself_when_it_was_said_so() {
    let dir = tempfile::tempdir().unwrap();
    let (testbed, faults) = testbed(&dir).await;
    let pause = inject(&faults, "pause lhr-1", Some(50)).await.unwrap();
    assert!(pause.heals_in_ms.is_some());
    eventually("the node runs on", async || testbed.nodes()[1].life == Life::Running).await;
    eventually("the fault is over", async || faults.list().is_empty()).await;
}

#[tokio::test]
async fn a_node_that_starts_later_gets_the_rules_of_the_active_faults() {
    let dir = tempfile::tempdir().unwrap();
    let (testbed, faults) = testbed(&dir).await;
    testbed.kill("lhr-1").await.unwrap();
    inject(&faults, "latency iad lhr 5ms", None).await.unwrap();
    testbed.restart("lhr-1").await.unwrap();
    eventually("it is told", async || told(&testbed, 1).await == Some(vec!["iad-1".into()])).await;
}

#[tokio::test]
async fn a_restart_is_over_when_it_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let (testbed, faults) = testbed(&dir).await;
    let done = inject(&faults, "restart lhr-1", None).await.unwrap();
    assert!(!done.active);
    assert!(faults.list().is_empty());
    assert_eq!(testbed.nodes()[1].incarnation, 2);
}
