//! From faults to the rules of each node's links.

use std::collections::BTreeMap;

use skein_core::api::LinkJson;
use skein_core::fault::LinkRule;
use skein_testbed::NodeSpec;

use crate::fault::Fault;
use crate::place::{Place, UnknownPlace};

/// For each of `nodes`, in their order, what all `faults` together make of its links.
///
/// Each direction of a link is a rule at the node that sends. Between two places that overlap, every
/// two different nodes are meant.
///
/// # Errors
/// [`UnknownPlace`] of the first fault that names a place which is not there.
pub fn rules<'a>(
    faults: impl IntoIterator<Item = &'a Fault>,
    nodes: &[NodeSpec],
) -> Result<Vec<Vec<LinkJson>>, UnknownPlace> {
    let mut tables: Vec<BTreeMap<usize, LinkRule>> = vec![BTreeMap::new(); nodes.len()];
    for fault in faults {
        let Fault::Link { from, to, one_way, what } = fault else { continue };
        let (mut senders, mut receivers) = (from.find(nodes)?, to.find(nodes)?);
        match (from, to) {
            (Place::Named(_), Place::Everyone) => receivers.retain(|node| !senders.contains(node)),
            (Place::Everyone, Place::Named(_)) => senders.retain(|node| !receivers.contains(node)),
            (Place::Named(_), Place::Named(_)) | (Place::Everyone, Place::Everyone) => {}
        }
        // A link is named twice when the places overlap; its rule holds once.
        let mut links = Vec::new();
        for (&a, &b) in senders.iter().flat_map(|a| receivers.iter().map(move |b| (a, b))) {
            links.push((a, b));
            if !one_way {
                links.push((b, a));
            }
        }
        links.sort_unstable();
        links.dedup();
        for (sender, receiver) in links.into_iter().filter(|(a, b)| a != b) {
            let rule = tables[sender].entry(receiver).or_default();
            *rule = rule.plus(&what.rule());
        }
    }
    let link = |(peer, rule): (usize, LinkRule)| LinkJson { peer: nodes[peer].name.clone(), rule };
    Ok(tables.into_iter().map(|table| table.into_iter().map(link).collect()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_core::region::Regions;

    fn tables(faults: &[&str]) -> Vec<Vec<(String, LinkRule)>> {
        let nodes = skein_testbed::by_regions("iad:2,lhr,nrt", &Regions::default()).unwrap();
        let faults: Vec<Fault> = faults.iter().map(|text| text.parse().unwrap()).collect();
        let tables = rules(&faults, &nodes).unwrap();
        let plain = |link: LinkJson| (link.peer.to_string(), link.rule);
        tables.into_iter().map(|table| table.into_iter().map(plain).collect()).collect()
    }

    fn peers(tables: &[Vec<(String, LinkRule)>]) -> Vec<Vec<&str>> {
        tables.iter().map(|table| table.iter().map(|(peer, _)| peer.as_str()).collect()).collect()
    }

    #[test]
    fn a_partition_of_regions_cuts_both_ways_and_one_way_only_the_senders() {
        let both = tables(&["partition iad lhr"]);
        assert_eq!(peers(&both), [vec!["lhr-1"], vec!["lhr-1"], vec!["iad-1", "iad-2"], vec![]]);
        assert!(both.iter().flatten().all(|(_, rule)| rule.cut));
        let one = tables(&["partition iad lhr --one-way"]);
        assert_eq!(peers(&one), [vec!["lhr-1"], vec!["lhr-1"], vec![], vec![]]);
    }

    #[test]
    fn everyone_is_every_other_node() {
        let cut = tables(&["partition nrt-1"]);
        assert_eq!(
            peers(&cut),
            [vec!["nrt-1"], vec!["nrt-1"], vec!["nrt-1"], vec!["iad-1", "iad-2", "lhr-1"]]
        );
        let region = tables(&["partition iad"]);
        assert_eq!(peers(&region)[0], ["lhr-1", "nrt-1"], "inside the region nothing is cut");
    }

    #[test]
    fn faults_on_one_link_add_up_and_overlapping_places_count_once() {
        let both = tables(&["latency iad lhr 10ms", "loss iad-1 lhr-1 50% --one-way", "latency iad iad 1ms"]);
        let rule = both[0].iter().find(|(peer, _)| peer == "lhr-1").unwrap().1;
        assert_eq!((rule.delay_us, rule.loss), (10_000, 0.5));
        let inner = both[0].iter().find(|(peer, _)| peer == "iad-2").unwrap().1;
        assert_eq!(inner.delay_us, 1_000);
    }

    #[test]
    fn an_unknown_place_is_refused_and_the_known_ones_are_named() {
        let nodes = skein_testbed::by_regions("iad:2,lhr", &Regions::default()).unwrap();
        let fault: Fault = "partition iad syd".parse().unwrap();
        let error = rules([&fault], &nodes).unwrap_err().to_string();
        assert!(error.contains("syd") && error.contains("iad-1, iad-2, lhr-1"), "{error}");
    }

    #[test]
    fn faults_of_nodes_make_no_rules() {
        assert!(tables(&["kill iad-1", "pause lhr-1"]).iter().all(Vec::is_empty));
    }
}
