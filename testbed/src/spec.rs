//! Which nodes a testbed has: `iad:2,lhr,nrt`, or a count.

use std::collections::BTreeMap;

use skein_core::region::{Region, Regions, UnknownRegion};
use skein_core::{NodeName, RegionCode};

/// The most nodes of one testbed.
pub const MAX_NODES: usize = 200;

/// The regions of a testbed that names none.
pub const DEFAULT_REGIONS: &str = "iad,lhr,nrt";

/// The order in which a bare count takes regions: far apart first.
const SPREAD: [&str; 18] = [
    "iad", "lhr", "nrt", "sin", "fra", "syd", "gru", "sjc", "ams", "jnb", "bom", "ord", "cdg", "ewr", "lax",
    "dfw", "arn", "yyz",
];

/// A node to be launched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSpec {
    /// `<region>-<n>`, n from 1.
    pub name: NodeName,
    /// Its region.
    pub region: RegionCode,
}

/// Why a text or count names no nodes; the caller of `skein up` wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A region that the table does not hold.
    #[error(transparent)]
    Region(#[from] UnknownRegion),
    /// Not `region` or `region:count`.
    #[error("{0:?} is not a region or region:count; write for example --regions iad:2,lhr,nrt")]
    Shape(String),
    /// None, or too many.
    #[error("{0} nodes can't be launched; choose 1 to {MAX_NODES}")]
    Count(usize),
}

/// The nodes that `text` names, for example `iad:2,lhr,nrt`, in its order.
///
/// # Errors
/// [`SpecError`].
pub fn by_regions(text: &str, regions: &Regions) -> Result<Vec<NodeSpec>, SpecError> {
    let mut codes = Vec::new();
    for item in text.split(',').map(str::trim) {
        let shape = || SpecError::Shape(item.chars().take(80).collect());
        let (name, count) = match item.split_once(':') {
            None => (item, 1),
            Some((name, count)) => (name.trim(), count.trim().parse::<usize>().map_err(|_| shape())?),
        };
        if name.is_empty() || count == 0 {
            return Err(shape());
        }
        let code = regions.find(name)?.code;
        if count > MAX_NODES {
            return Err(SpecError::Count(count));
        }
        codes.extend(std::iter::repeat_n(code, count));
    }
    named(codes)
}

/// `count` nodes, spread over the regions.
///
/// # Errors
/// [`SpecError::Count`].
pub fn by_count(count: usize, regions: &Regions) -> Result<Vec<NodeSpec>, SpecError> {
    if !(1..=MAX_NODES).contains(&count) {
        return Err(SpecError::Count(count));
    }
    let near_first = SPREAD.iter().filter_map(|code| regions.find(code).ok());
    let known: Vec<&Region> = near_first.collect();
    named(known.iter().cycle().take(count).map(|region| region.code).collect())
}

fn named(codes: Vec<RegionCode>) -> Result<Vec<NodeSpec>, SpecError> {
    if !(1..=MAX_NODES).contains(&codes.len()) {
        return Err(SpecError::Count(codes.len()));
    }
    let mut counts: BTreeMap<RegionCode, u32> = BTreeMap::new();
    let node = |region: RegionCode| {
        let number = counts.entry(region).or_default();
        *number += 1;
        let name = format!("{region}-{number}");
        NodeSpec {
            name: name.parse().expect("invariant: a region code and a number are a node name"),
            region,
        }
    };
    Ok(codes.into_iter().map(node).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Result<Vec<String>, SpecError> {
        let nodes = by_regions(text, &Regions::default())?;
        Ok(nodes.iter().map(|node| node.name.to_string()).collect())
    }

    #[test]
    fn regions_with_and_without_counts_name_nodes_in_their_order() {
        assert_eq!(names("iad:2,lhr,nrt").unwrap(), ["iad-1", "iad-2", "lhr-1", "nrt-1"]);
        assert_eq!(names(" lhr , iad:1 ").unwrap(), ["lhr-1", "iad-1"]);
        assert_eq!(names("iad,lhr,iad").unwrap(), ["iad-1", "lhr-1", "iad-2"]);
    }

    /// SPEC CLU-8.
    #[test]
    fn an_unknown_region_is_refused_with_near_ones() {
        let error = names("iad,lhx").unwrap_err().to_string();
        assert!(error.contains("lhx") && error.contains("lhr"), "{error}");
    }

    #[test]
    fn what_is_no_region_list_is_refused_with_the_form() {
        for bad in ["", "iad,", "iad:", "iad:x", "iad:0", ":2", "iad:-1"] {
            assert!(matches!(names(bad), Err(SpecError::Shape(_))), "{bad}");
        }
        assert!(matches!(names("iad:201"), Err(SpecError::Count(201))));
        assert!(matches!(names("iad:200,lhr"), Err(SpecError::Count(201))));
    }

    #[test]
    fn a_count_spreads_nodes_over_regions() {
        let nodes = by_count(3, &Regions::default()).unwrap();
        assert_eq!(nodes, by_regions(DEFAULT_REGIONS, &Regions::default()).unwrap());
        let fifty = by_count(50, &Regions::default()).unwrap();
        assert_eq!(fifty.len(), 50);
        assert_eq!(fifty[18].name.as_str(), "iad-2");
        assert_eq!(by_count(0, &Regions::default()), Err(SpecError::Count(0)));
    }
}
