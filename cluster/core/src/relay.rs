//! Relay: around a link that is cut between an edge and a worker (SPEC LB-8).
//!
//! When a node is silent to this edge, and gossip, which takes every way, counts it as alive, a node
//! that both can reach passes the request on. At most one does: what was relayed once is not relayed
//! again.

use std::time::Duration;

use crate::id::NodeNumber;
use crate::region::Regions;
use crate::snapshot::Snapshot;
use crate::suspicion::Proximity;

/// The node to relay through to `to`: of those that answer, the one by which the way is the shortest, its
/// second half guessed from the regions' distance. `None` when `to` counts as dead or no other answers.
pub fn via(
    snapshot: &Snapshot,
    proximity: &dyn Proximity,
    regions: &Regions,
    own: NodeNumber,
    to: NodeNumber,
) -> Option<NodeNumber> {
    let target = snapshot.nodes.get(&to).filter(|node| node.alive)?;
    let between = snapshot.nodes.iter().filter(|(number, node)| {
        **number != own && **number != to && node.alive && !proximity.suspect(**number)
    });
    let way = |number: NodeNumber, region| -> Duration {
        proximity.rtt(number) + regions.simulated_rtt(region, target.record.region)
    };
    between.map(|(number, node)| (way(*number, node.record.region), *number)).min().map(|(_, number)| number)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::snapshot::{Changes, fold};
    use crate::testing;

    /// Node 1 is the edge, in iad; some are suspect to it.
    struct Seen(Vec<u32>);

    impl Proximity for Seen {
        fn rtt(&self, node: NodeNumber) -> Duration {
            Duration::from_millis(u64::from(node.0) * 10)
        }
        fn suspect(&self, node: NodeNumber) -> bool {
            self.0.contains(&node.0)
        }
    }

    fn snapshot(dead: &[u32]) -> Snapshot {
        let regions = ["iad", "nrt", "lhr", "fra"];
        let nodes = (1..).zip(regions).map(|(number, region)| crate::snapshot::NodeFacts {
            record: testing::node(number, region),
            generation: 1,
            version: 1,
            alive: !dead.contains(&number),
            confirmed: Arc::default(),
            machines: imbl::OrdMap::new(),
        });
        fold(&Snapshot::default(), Changes { nodes: nodes.collect(), ..Changes::default() })
    }

    fn via_to_4(dead: &[u32], suspect: &[u32]) -> Option<u32> {
        let seen = Seen(suspect.to_vec());
        via(&snapshot(dead), &seen, &Regions::default(), NodeNumber(1), NodeNumber(4)).map(|node| node.0)
    }

    #[test]
    fn lb_8_the_way_around_a_cut_link_is_the_shortest_that_answers() {
        assert_eq!(via_to_4(&[], &[4]), Some(3), "lhr is next to fra, nrt is not");
        assert_eq!(via_to_4(&[], &[3, 4]), Some(2), "it is silent too");
        assert_eq!(via_to_4(&[3], &[4]), Some(2), "it is dead");
    }

    #[test]
    fn a_dead_node_is_not_reached_through_another_and_nobody_is_no_way() {
        assert_eq!(via_to_4(&[4], &[4]), None);
        assert_eq!(via_to_4(&[2, 3], &[4]), None);
        assert_eq!(via_to_4(&[], &[2, 3, 4]), None);
    }
}
