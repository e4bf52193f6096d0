use super::*;
use proptest::prelude::*;
use skein_core::facts::{Fact, Node};

fn state(nodes: impl IntoIterator<Item = Id>) -> State {
    State::from_facts(nodes.into_iter().map(|number| {
        Fact::Node(Node {
            number: NodeNumber(number),
            name: format!("iad-{number}").parse().unwrap(),
            region: "iad".parse().unwrap(),
            key: [number as u8; 32],
            backhaul: "127.0.0.1:1".parse().unwrap(),
            joined_ms: 0,
        })
    }))
}

/// Node `me` leads; every member holds the whole log.
fn view(me: Id, voters: &[Id], learners: &[Id]) -> View {
    let members = voters.iter().chain(learners);
    View {
        me,
        leader: Some(me),
        leads: true,
        term: 1,
        voters: voters.iter().copied().collect(),
        learners: learners.iter().copied().collect(),
        quorums: vec![voters.iter().copied().collect()],
        quorum_ack: Some(Duration::ZERO),
        last_index: 1_000,
        matched: members.map(|id| (*id, 1_000)).collect(),
        stopped: None,
    }
}

fn voters<const N: usize>(ids: [Id; N]) -> Option<Step> {
    Some(Step::Voters(BTreeSet::from(ids)))
}

#[test]
fn a_node_is_a_learner_first_and_one_voter_is_enough_for_two_nodes() {
    assert_eq!(next(&view(1, &[1], &[]), &state([1, 2, 3]), 3, |_| true), Some(Step::AddLearner(2)));
    assert_eq!(next(&view(1, &[1], &[2]), &state([1, 2]), 3, |_| true), None);
    assert_eq!(next(&view(1, &[1, 2], &[]), &state([1, 2]), 3, |_| true), voters([1]));
}

#[test]
fn the_first_nodes_become_voters_together_when_they_have_caught_up() {
    let three = state([1, 2, 3, 4]);
    let mut view = view(1, &[1], &[2, 3, 4]);
    assert_eq!(next(&view, &three, 3, |_| true), voters([1, 2, 3]));
    assert_eq!(next(&view, &three, 3, |id| id != 2), voters([1, 3, 4]), "2 is away");
    assert_eq!(next(&view, &three, 3, |id| id == 1 || id == 4), None, "never two voters on the way to three");
    view.matched.insert(3, 10);
    assert_eq!(next(&view, &three, 3, |_| true), voters([1, 2, 4]), "3 is behind");
    view.matched.remove(&2);
    assert_eq!(next(&view, &three, 3, |_| true), None, "a node that never answered is no proof of anything");
}

#[test]
fn a_dead_voter_stays_one_and_a_removed_one_is_replaced() {
    let settled = view(1, &[1, 2, 3], &[4]);
    assert_eq!(next(&settled, &state([1, 2, 3, 4]), 3, |id| id != 3), None);
    assert_eq!(next(&settled, &state([1, 2, 4]), 3, |_| true), voters([1, 2, 4]));
    assert_eq!(
        next(&settled, &state([1, 2, 4]), 3, |id| id != 4),
        voters([1, 2]),
        "it must get no more facts"
    );
    assert_eq!(next(&view(1, &[1, 2], &[4]), &state([1, 2, 4]), 3, |_| true), voters([1, 2, 4]));
}

#[test]
fn a_removed_learner_is_dropped() {
    let gone = Some(Step::RemoveLearners(BTreeSet::from([4])));
    assert_eq!(next(&view(1, &[1, 2, 3], &[4]), &state([1, 2, 3]), 3, |_| true), gone);
}

#[test]
fn the_first_voter_takes_the_lead_from_a_removed_leader() {
    let nodes = state([2, 3, 4]);
    assert_eq!(next(&view(1, &[1, 2, 3], &[4]), &nodes, 3, |_| true), None, "the removed one does nothing");
    let follower = |me| View { me, leads: false, ..view(1, &[1, 2, 3], &[4]) };
    assert_eq!(next(&follower(2), &nodes, 3, |_| true), Some(Step::TakeLead));
    assert_eq!(next(&follower(3), &nodes, 3, |_| true), None);
    assert_eq!(next(&follower(4), &nodes, 3, |_| true), None, "no voter");
    assert_eq!(next(&follower(2), &state([1, 2, 3]), 3, |_| true), None, "the leader stays");
}

#[test]
fn a_new_leader_brings_a_change_to_its_end() {
    let quorums = vec![BTreeSet::from([1]), BTreeSet::from([1, 2, 3])];
    let half = View { quorums, ..view(2, &[1, 2, 3], &[]) };
    assert_eq!(next(&half, &state([1, 2, 3]), 3, |_| true), voters([1, 2, 3]));
}

fn step(view: &mut View, step: &Step) {
    match step {
        Step::AddLearner(id) => {
            view.learners.insert(*id);
            view.matched.insert(*id, view.last_index);
        }
        Step::RemoveLearners(ids) => view.learners.retain(|id| !ids.contains(id)),
        Step::Voters(ids) => {
            let members: BTreeSet<Id> = view.voters.union(&view.learners).copied().collect();
            assert!(ids.is_subset(&members), "voters are members first");
            assert!(ids.contains(&view.me), "the leader stays a voter");
            view.learners = members.difference(ids).copied().collect();
            view.voters = ids.clone();
            view.quorums = vec![ids.clone()];
        }
        Step::TakeLead => panic!("this node leads"),
    }
}

proptest! {
    /// Whatever the membership was, steps end, and then it is that of the facts.
    #[test]
    fn the_membership_settles_on_the_facts(
        nodes in proptest::collection::btree_set(2u32..9, 0..7),
        old_voters in proptest::collection::btree_set(2u32..9, 0..4),
        old_learners in proptest::collection::btree_set(2u32..9, 0..4),
    ) {
        let nodes: BTreeSet<Id> = nodes.into_iter().chain([1]).collect();
        let old_voters: Vec<Id> = old_voters.into_iter().chain([1]).collect();
        let old_learners: Vec<Id> = old_learners.into_iter().filter(|id| !old_voters.contains(id)).collect();
        let state = state(nodes.iter().copied());
        let mut view = view(1, &old_voters, &old_learners);
        for _ in 0..40 {
            let Some(next) = next(&view, &state, 3, |_| true) else { break };
            step(&mut view, &next);
        }
        prop_assert_eq!(next(&view, &state, 3, |_| true), None);
        let members: BTreeSet<Id> = view.voters.union(&view.learners).copied().collect();
        prop_assert_eq!(&members, &nodes);
        let kept = old_voters.iter().filter(|id| nodes.contains(id)).count();
        prop_assert_eq!(view.voters.len(), if nodes.len() < 3 { 1 } else { kept.max(3) });
    }
}
