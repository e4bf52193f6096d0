use super::*;
use crate::keeper::Tasks;
use crate::registry::disk::{KV, META};
use redb::ReadableTable;

struct Nobody;

impl RaftTransport for Nobody {
    fn call(&self, _: NodeNumber, _: Bytes, _: Duration) -> BoxFuture<'static, Result<Bytes, String>> {
        Box::pin(async { Err("nobody is there".into()) })
    }
    fn reachable(&self, _: NodeNumber) -> bool {
        false
    }
}

async fn alone(dir: &Path) -> RaftRegistry {
    RaftRegistry::open(config(dir, 1), Arc::new(Nobody), &Tasks::current()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_node_begins_a_cluster_and_keeps_its_facts_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let registry = alone(dir.path()).await;
    assert_eq!(*registry.state(), State::default());
    registry.bootstrap(beginning()).await.unwrap();
    registry.propose(app(10, "web")).await.unwrap();
    let (facts, applied) = (registry.state(), registry.applied());
    registry.shutdown().await;
    let again = alone(dir.path()).await;
    assert_eq!(again.state(), facts, "the facts are there at once");
    assert!(again.applied() >= applied);
    again.bootstrap(beginning()).await.unwrap();
    assert_eq!(again.state().nodes().count(), 1, "a beginning that is repeated changes nothing");
    again.propose(app(11, "api")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_shutdown_reads_go_on_and_writes_fail() {
    let dir = tempfile::tempdir().unwrap();
    let registry = alone(dir.path()).await;
    registry.bootstrap(beginning()).await.unwrap();
    registry.shutdown().await;
    registry.shutdown().await;
    assert!(matches!(registry.propose(app(10, "web")).await, Err(ProposeError::Stopped(_))));
    assert!(registry.state().settings().is_some());
    assert!(registry.status().stopped.is_some());
}

/// A copy of the file at a quiet moment is what a crash at that moment leaves. Applied facts reach
/// the disk shortly after the last write without any further one.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_applied_survives_a_crash_even_when_nobody_else_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let registry = alone(dir.path()).await;
    registry.bootstrap(beginning()).await.unwrap();
    registry.propose(app(10, "web")).await.unwrap();
    let crashed = tempfile::tempdir().unwrap();
    let survives = async {
        loop {
            let copy = config(crashed.path(), 1);
            std::fs::copy(&registry.0.config.path, &copy.path).unwrap();
            // A copy in the midst of a write may not open; the next one will.
            if let Ok((disk, machine)) = open_file(copy.path, number(1)) {
                disk.close().await;
                if machine.watch().borrow().1.app_by_name("web").is_some() {
                    return;
                }
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, survives).await.expect("applied facts never reach the disk");
    assert!(alone(crashed.path()).await.state().app_by_name("web").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_of_another_node_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    alone(dir.path()).await.shutdown().await;
    let config = RegistryConfig { node: number(2), ..config(dir.path(), 1) };
    let error = RaftRegistry::open(config, Arc::new(Nobody), &Tasks::current()).await.unwrap_err();
    assert!(
        matches!(error, RegistryError::OtherNode { owner: NodeNumber(1), node: NodeNumber(2), .. }),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_file_is_not_made_anew_behind_the_clusters_back() {
    let dir = tempfile::tempdir().unwrap();
    let config = RegistryConfig { create: false, ..config(dir.path(), 1) };
    let error = RaftRegistry::open(config.clone(), Arc::new(Nobody), &Tasks::current()).await.unwrap_err();
    assert!(matches!(error, RegistryError::Missing { .. }), "{error}");
    assert!(!config.path.exists());
    alone(dir.path()).await.shutdown().await;
    RaftRegistry::open(config, Arc::new(Nobody), &Tasks::current()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_in_use_is_refused_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let _registry = alone(dir.path()).await;
    let error =
        RaftRegistry::open(config(dir.path(), 1), Arc::new(Nobody), &Tasks::current()).await.unwrap_err();
    assert!(error.to_string().contains("node-1.redb"), "{error}");
}

/// A node that lacks a fact would apply later entries differently from all others.
#[tokio::test(flavor = "multi_thread")]
async fn a_fact_that_cannot_be_read_is_named_and_stops_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let registry = alone(dir.path()).await;
    registry.bootstrap(beginning()).await.unwrap();
    let key = codec::encode(&FactKey::Org(testing::ORG));
    let spoil = registry.0.disk.durable(move |transaction| {
        transaction.open_table(KV)?.insert(key.as_slice(), [9u8, 1].as_slice())?;
        Ok(())
    });
    spoil.await.unwrap();
    registry.shutdown().await;
    let error = RaftRegistry::open(config(dir.path(), 1), Arc::new(Nobody), &Tasks::current())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("Org") && error.contains("format version 9"), "{error}");
}

/// After a failed write nobody knows what is on the disk: the node stops, it does not guess.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_disk_stops_the_registry_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let registry = alone(dir.path()).await;
    registry.bootstrap(beginning()).await.unwrap();
    let broken = registry.0.disk.durable(|_| Err(DiskError::Failed("no space left".into())));
    assert!(broken.await.is_err());
    let refused = registry.propose(app(10, "web")).await;
    assert!(
        matches!(&refused, Err(ProposeError::Stopped(why)) if why.contains("no space left")),
        "{refused:?}"
    );
    assert!(registry.state().app_by_name("web").is_none());
    assert!(registry.state().settings().is_some(), "reads go on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_makes_no_sense_gets_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let registry = alone(dir.path()).await;
    for bytes in [&[][..], &[9, 9], &[1, 200], &[1, 0]] {
        assert!(registry.handle(number(2), Bytes::copy_from_slice(bytes)).await.is_err(), "{bytes:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_the_disk_keep_their_order_and_a_durable_one_takes_the_soft_ones_along() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.redb");
    let disk = Disk::open(&path).unwrap();
    for value in 0..200u32 {
        disk.soft(move |transaction| disk::set_meta(transaction, "value", &value)).unwrap();
    }
    disk.durable(|transaction| {
        let row = transaction.open_table(META)?.get("value")?.map(|row| row.value().to_vec());
        assert_eq!(row.map(|row| codec::decode::<u32>(&row).unwrap()), Some(199));
        Ok(())
    })
    .await
    .unwrap();
    let copy = dir.path().join("copy.redb");
    std::fs::copy(&path, &copy).unwrap();
    assert_eq!(Disk::open(&copy).unwrap().meta::<u32>("value").unwrap(), Some(199));
    disk.close().await;
    assert!(matches!(disk.meta::<u32>("value"), Err(DiskError::Closed)));
    assert_eq!(Disk::open(&path).unwrap().meta::<u32>("value").unwrap(), Some(199));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_in_one_directory_is_told_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let _first = alone(dir.path()).await;
    let error = RaftRegistry::open(config(dir.path(), 1), Arc::new(Nobody), &Tasks::current())
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("another node runs in this data directory"), "{error}");
}
