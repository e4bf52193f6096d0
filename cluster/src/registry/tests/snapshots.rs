use super::*;

/// SPEC CLU-3: a node that was away longer than the log reaches back catches up whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_learner_far_behind_catches_up_by_a_snapshot_and_none_is_sent_before_it_is_back() {
    let (cluster, registries) = Cluster::tuned(4, |config| {
        config.snapshot_after = 20;
        config.keep = 5;
    })
    .await;
    let learner = &registries[3];
    assert_eq!(learner.status().learners, [number(4)]);
    cluster.isolate(4);
    let away_at = learner.applied();
    let sent = |hub: &Hub| hub.parts.lock().unwrap().get(&number(4)).copied().unwrap_or(0);
    let before = sent(&cluster.hub);
    for n in 0..100u128 {
        registries[0].propose(app(1_000 + n, &format!("app-{n}"))).await.unwrap();
    }
    let leader = until(&registries[0], |s| s.leader.is_some()).await.leader.unwrap();
    let leader = registries.iter().find(|r| r.0.config.node == leader).unwrap();
    until(leader, |_| leader.0.raft.metrics().borrow().purged.is_some_and(|id| id.index > away_at)).await;
    registries[0].propose(app(5, "last")).await.unwrap();
    assert_eq!(sent(&cluster.hub), before, "a node that is away gets no snapshot");
    cluster.heal();
    until_facts(learner, has("last")).await;
    assert!(sent(&cluster.hub) > before);
    let applied = leader.applied();
    tokio::time::timeout(DEADLINE, learner.watch().wait_for(|(at, _)| *at >= applied))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(learner.state(), leader.state());

    // What came in the snapshot is on its disk.
    cluster.stop(4).await;
    let again = cluster.open(4).await;
    assert_eq!(again.state().apps().count(), 101);
    registries[0].propose(app(6, "more")).await.unwrap();
    until_facts(&again, has("more")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_joins_late_gets_everything() {
    let (cluster, registries) = Cluster::tuned(1, |config| {
        config.snapshot_after = 20;
        config.keep = 0;
    })
    .await;
    for n in 0..100u128 {
        registries[0].propose(app(1_000 + n, &format!("app-{n}"))).await.unwrap();
    }
    let purged = |registry: &RaftRegistry| registry.0.raft.metrics().borrow().purged.is_some();
    until(&registries[0], |_| purged(&registries[0])).await;
    // A leader that was restarted has no snapshot at hand and makes one.
    cluster.stop(1).await;
    let first = cluster.open(1).await;
    let second = cluster.add(&first, 2).await;
    until_facts(&second, has("app-99")).await;
    assert!(cluster.hub.parts.lock().unwrap().contains_key(&number(2)), "it came by a snapshot");
}
