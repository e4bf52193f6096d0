use super::*;

/// SPEC API-4: a write through whichever node is read there at once.
#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_vote_and_each_reads_what_was_written_through_it() {
    let (_cluster, registries) = Cluster::of(3).await;
    for (n, (registry, name)) in registries.iter().zip(["a", "b", "c"]).enumerate() {
        let (outcome, index) = registry.propose(app(10 + n as u128, name)).await.unwrap();
        assert!(matches!(outcome, Outcome::App(_)), "{outcome:?}");
        assert!(registry.applied() >= index);
        assert!(registry.state().app_by_name(name).is_some());
    }
    for registry in &registries {
        until_facts(registry, has("c")).await;
    }
    assert_eq!(registries[0].state(), registries[2].state());
}

/// SPEC CLU-3: facts survive the loss of a minority of voters.
#[tokio::test(flavor = "multi_thread")]
async fn when_the_leader_dies_reads_go_on_and_another_leader_takes_writes() {
    let (cluster, registries) = Cluster::of(4).await;
    registries[3].propose(app(10, "before")).await.unwrap();
    let leader = until(&registries[3], |s| s.leader.is_some()).await.leader.unwrap();
    cluster.stop(leader.0).await;
    let left: Vec<_> = registries.iter().filter(|r| r.0.config.node != leader).collect();
    for registry in &left {
        until_facts(registry, has("before")).await;
    }
    // Through a learner, whose idea of the leader is stale.
    let (_, index) = left.last().unwrap().propose(app(11, "after")).await.unwrap();
    assert!(index > 0);
    let back = cluster.open(leader.0).await;
    assert!(
        back.state().app_by_name("before").is_some(),
        "its own facts are there before anybody speaks to it"
    );
    until_facts(&back, has("after")).await;
}

/// SPEC API-4: without a majority a write is refused with the numbers, not left hanging.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_writes_are_refused_and_go_on_when_it_is_back() {
    let (cluster, registries) = Cluster::of(3).await;
    registries[0].propose(app(10, "before")).await.unwrap();
    until_facts(&registries[2], has("before")).await;
    cluster.stop(1).await;
    cluster.stop(2).await;
    let refused = tokio::time::timeout(DEADLINE / 2, registries[2].propose(app(11, "after"))).await;
    assert_eq!(refused.unwrap(), Err(ProposeError::NoMajority { reached: 1, voters: 3 }));
    assert!(registries[2].state().app_by_name("before").is_some(), "reads go on");
    assert_eq!(registries[2].status().reached, 1);
    cluster.open(1).await;
    registries[2].propose(app(12, "healed")).await.unwrap();
}

/// A leader that lost its majority still believes that it leads, and openraft's write would hang.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_refuses_while_the_others_go_on() {
    let (cluster, registries) = Cluster::of(3).await;
    let leader = until(&registries[0], |s| s.leader.is_some()).await.leader.unwrap();
    cluster.isolate(leader.0);
    let (alone, others): (Vec<_>, Vec<_>) = registries.iter().partition(|r| r.0.config.node == leader);
    let refused = tokio::time::timeout(DEADLINE / 2, alone[0].propose(app(10, "alone"))).await.unwrap();
    assert_eq!(refused, Err(ProposeError::NoMajority { reached: 1, voters: 3 }));
    others[0].propose(app(11, "others")).await.unwrap();
    cluster.heal();
    until_facts(alone[0], has("others")).await;
    alone[0].propose(app(12, "healed")).await.unwrap();
    for other in others {
        until_facts(other, has("healed")).await;
        assert_eq!(other.state().apps().count(), alone[0].state().apps().count());
    }
}

/// openraft asks nobody before it raises the term.
#[tokio::test(flavor = "multi_thread")]
async fn a_voter_that_was_cut_off_does_not_take_the_lead_when_it_comes_back() {
    let (cluster, registries) = Cluster::of(3).await;
    let before = until(&registries[0], |s| s.leader.is_some()).await;
    let leader = before.leader.unwrap();
    let away = registries.iter().find(|r| r.0.config.node != leader).unwrap();
    cluster.isolate(away.0.config.node.0);
    // Each refusal takes as long as the longest election timeout at least: the lease, the timeout and
    // more pass in all.
    for n in 0..4 {
        let refused = tokio::time::timeout(DEADLINE / 2, away.propose(app(10 + n, "never"))).await.unwrap();
        assert_eq!(refused, Err(ProposeError::NoMajority { reached: 1, voters: 3 }));
    }
    assert_eq!(away.status().term, before.term, "it stands for election alone");
    cluster.heal();
    away.propose(app(20, "healed")).await.unwrap();
    for registry in &registries {
        let after = registry.status();
        assert_eq!((after.leader, after.term), (before.leader, before.term));
    }
}

/// openraft takes the heartbeat interval as the limit for a message and its answer, so the usual
/// configuration must fit the farthest pair of regions (270 ms there and back).
#[tokio::test(flavor = "multi_thread")]
async fn over_the_longest_distance_the_leader_stays_and_writes_go_through() {
    let (cluster, registries) = Cluster::tuned(3, |config| {
        let usual = RegistryConfig::new(config.node, config.path.clone());
        (config.heartbeat, config.election) = (usual.heartbeat, usual.election);
    })
    .await;
    let before = until(&registries[1], |s| s.leader.is_some()).await;
    *cluster.hub.one_way.lock().unwrap() = Duration::from_millis(135);
    for n in 0..5u128 {
        registries[1 + n as usize % 2].propose(app(10 + n, &format!("app-{n}"))).await.unwrap();
    }
    let after = registries[1].status();
    assert_eq!((after.leader, after.term), (before.leader, before.term));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_two_nodes_the_second_may_be_away() {
    let (cluster, registries) = Cluster::of(2).await;
    assert_eq!(registries[0].status().voters, [number(1)]);
    cluster.stop(2).await;
    registries[0].propose(app(10, "alone")).await.unwrap();
    let second = cluster.open(2).await;
    until_facts(&second, has("alone")).await;
    cluster.stop(1).await;
    let refused = tokio::time::timeout(DEADLINE / 2, second.propose(app(11, "never"))).await.unwrap();
    assert_eq!(refused, Err(ProposeError::NoMajority { reached: 0, voters: 1 }));
    assert!(second.state().app_by_name("alone").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_that_is_repeated_counts_once() {
    let (_cluster, registries) = Cluster::of(3).await;
    let proposal = Proposal { request: Ulid(77), now_ms: 5, command: app(10, "once") };
    let (first, index) = registries[1].submit(proposal.clone()).await.unwrap();
    let (second, later) = registries[2].submit(proposal).await.unwrap();
    assert_eq!(first, second);
    assert!(later > index, "the log holds it twice");
    assert_eq!(registries[2].state().apps().count(), 1);
    let again = registries[1].propose(app(11, "once")).await;
    assert_eq!(again, Err(ProposeError::Refused(Refusal::NameTaken("once".into()))));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_nodes_that_take_one_name_at_once_exactly_one_wins() {
    let (_cluster, registries) = Cluster::of(3).await;
    for round in 0..5u128 {
        let name = format!("name-{round}");
        let (a, b) = tokio::join!(
            registries[1].propose(app(100 + round, &name)),
            registries[2].propose(app(200 + round, &name)),
        );
        let taken = ProposeError::Refused(Refusal::NameTaken(name.clone()));
        let losers = [&a, &b].into_iter().filter(|result| **result == Err(taken.clone())).count();
        assert_eq!((losers, a.is_ok() != b.is_ok()), (1, true), "{a:?} {b:?}");
    }
}

/// openraft's leader panics when a follower's log goes backwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_back_with_an_empty_file_is_refused_and_harms_nobody() {
    let (cluster, registries) = Cluster::of(2).await;
    registries[0].propose(app(10, "before")).await.unwrap();
    until_facts(&registries[1], has("before")).await;
    cluster.stop(2).await;
    std::fs::remove_file(&registries[1].0.config.path).unwrap();
    let wiped = cluster.open(2).await;
    // It must be asked at least once before the leader can be said to have survived it.
    until(&wiped, |s| s.term > 0).await;
    registries[0].propose(app(11, "after")).await.unwrap();
    assert!(registries[0].status().stopped.is_none());
    assert!(wiped.state().settings().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_leaves_the_voters_and_gets_no_answer() {
    let (cluster, registries) = Cluster::of(4).await;
    registries[0].propose(Command::RemoveNode { number: number(3) }).await.unwrap();
    for n in [1, 2, 4] {
        let wanted = [number(1), number(2), number(4)];
        until(&registries[n - 1], |s| s.voters == wanted && s.learners.is_empty()).await;
    }
    let wire = Wire { hub: Arc::clone(&cluster.hub), from: number(3) };
    let vote = codec::encode(&Request::Vote(openraft::raft::VoteRequest {
        vote: openraft::Vote::new(1_000, 3),
        last_log_id: None,
    }));
    let refused = wire.call(number(1), vote.into(), DEADLINE).await;
    assert_eq!(refused, Err("node 3 was removed from the cluster".into()));
    registries[1].propose(app(10, "after")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_leader_loses_the_lead() {
    let (_cluster, registries) = Cluster::of(4).await;
    let leader = until(&registries[0], |s| s.leader.is_some()).await.leader.unwrap();
    let left: Vec<_> = registries.iter().filter(|r| r.0.config.node != leader).collect();
    left[0].propose(Command::RemoveNode { number: leader }).await.unwrap();
    for registry in &left {
        until(registry, |s| s.leader.is_some_and(|now| now != leader) && !s.voters.contains(&leader)).await;
    }
    left[2].propose(app(10, "after")).await.unwrap();
    until(left[2], |s| s.voters.len() == 3 && !s.voters.contains(&leader)).await;
}
