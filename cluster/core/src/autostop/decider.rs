//! Who decides for an app in a region: one of the nodes there, by rendezvous hash (SPEC AUTO-1).
//!
//! Every node computes it from its own view and they agree when their views do. A node that comes or goes
//! takes or leaves its own apps only. Two that both think it is theirs do no harm: owners of Machines
//! check again.

use std::collections::BTreeSet;

use crate::id::{AppId, NodeNumber};
use crate::planted::{self, Bug};
use crate::random::{Random as _, Seed};
use crate::region::RegionCode;
use crate::snapshot::{AppView, Snapshot};

/// The nodes that may decide for an app in a region, the one that does first: those that live there and
/// host Machines of it. The next one is asked when the first does not answer.
pub fn deciders(app: &AppView, region: RegionCode, snapshot: &Snapshot) -> Vec<NodeNumber> {
    let hosts: BTreeSet<NodeNumber> = app
        .machines
        .values()
        .filter(|machine| machine.region == region && !machine.record.state.is_final())
        .map(|machine| machine.node)
        .filter(|node| snapshot.nodes.get(node).is_some_and(|node| node.alive))
        .collect();
    ranked(app.app.id, region, hosts)
}

/// Whether `own` decides for an app in a region.
pub fn decides(own: NodeNumber, app: &AppView, region: RegionCode, snapshot: &Snapshot) -> bool {
    deciders(app, region, snapshot).first() == Some(&own) || planted::is(Bug::Decider)
}

fn ranked(app: AppId, region: RegionCode, nodes: impl IntoIterator<Item = NodeNumber>) -> Vec<NodeNumber> {
    let mut ranked: Vec<_> = nodes.into_iter().map(|node| (weight(app, region, node), node)).collect();
    ranked.sort_unstable_by(|a, b| b.cmp(a));
    ranked.into_iter().map(|(_, node)| node).collect()
}

/// The same on every computer and in every version: nodes of different builds have to agree.
fn weight(app: AppId, region: RegionCode, node: NodeNumber) -> u64 {
    let bits = app.0.0;
    let mut mixed = Seed::new((bits >> 64) as u64 ^ bits as u64).child(region.as_str());
    let of_app = mixed.next_u64();
    Seed::new(of_app ^ u64::from(node.0).wrapping_mul(0x9e37_79b9_7f4a_7c15)).next_u64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ulid::Ulid;

    fn app(id: u128) -> AppId {
        AppId(Ulid(id))
    }

    fn first(id: u128, nodes: &BTreeSet<u32>) -> Option<NodeNumber> {
        let nodes = nodes.iter().map(|node| NodeNumber(*node));
        ranked(app(id), "iad".parse().unwrap(), nodes).first().copied()
    }

    #[test]
    fn apps_are_spread_over_the_nodes_of_a_region() {
        let nodes: BTreeSet<u32> = (1..=10).collect();
        let mut got = [0; 10];
        for id in 0..10_000 {
            got[first(id, &nodes).unwrap().0 as usize - 1] += 1;
        }
        assert!(got.iter().all(|share| (800..1200).contains(share)), "{got:?}");
        let far = ranked(app(1), "nrt".parse().unwrap(), [1, 2, 3, 4, 5, 6, 7, 8].map(NodeNumber));
        let near = ranked(app(1), "iad".parse().unwrap(), [1, 2, 3, 4, 5, 6, 7, 8].map(NodeNumber));
        assert_ne!(far, near, "a region is no copy of another");
    }

    #[test]
    fn nodes_of_every_build_agree() {
        let order = ranked(app(7), "iad".parse().unwrap(), [1, 2, 3, 4, 5].map(NodeNumber));
        let order: Vec<u32> = order.iter().map(|node| node.0).collect();
        assert_eq!(order, [4, 2, 3, 1, 5], "a change here splits a cluster");
    }

    proptest! {
        #[test]
        fn a_node_that_goes_moves_only_what_it_decided(
            id: u128, nodes in proptest::collection::btree_set(1u32..200, 2..12), gone in any::<prop::sample::Index>(),
        ) {
            let gone = *gone.get(&nodes.iter().copied().collect::<Vec<_>>());
            let before = first(id, &nodes).unwrap();
            let mut left = nodes.clone();
            left.remove(&gone);
            let after = first(id, &left).unwrap();
            if before.0 != gone {
                prop_assert_eq!(after, before);
            } else {
                let order = ranked(app(id), "iad".parse().unwrap(), nodes.iter().map(|n| NodeNumber(*n)));
                prop_assert_eq!(after, order[1], "the next one is known beforehand");
            }
        }
    }
}
