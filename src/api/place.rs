//! Where a new Machine goes: a decision over one snapshot.

use skein_core::id::NodeNumber;
use skein_core::region::{RegionCode, Regions, UnknownRegion};
use skein_core::snapshot::Snapshot;

use super::error::ApiError;

/// Why no node takes a new Machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoPlace {
    /// The caller named a region that does not exist.
    #[error(transparent)]
    Unknown(#[from] UnknownRegion),
    /// The region has no node that takes Machines.
    #[error("no node in {region} takes Machines; there are nodes in {}", names(.others))]
    Empty {
        /// The region.
        region: RegionCode,
        /// Regions that have one.
        others: Vec<RegionCode>,
    },
    /// No node of the cluster takes Machines.
    #[error("no node takes Machines: all are draining or dead; see `skein status`")]
    Nowhere,
}

fn names(regions: &[RegionCode]) -> String {
    let names: Vec<&str> = regions.iter().map(RegionCode::as_str).collect();
    if names.is_empty() { "no other region".to_owned() } else { names.join(", ") }
}

impl From<NoPlace> for ApiError {
    fn from(error: NoPlace) -> Self {
        let text = error.to_string();
        match error {
            NoPlace::Unknown(_) => Self::bad_request(text),
            NoPlace::Empty { .. } | NoPlace::Nowhere => {
                Self::unprocessable(text).with_code("insufficient_capacity")
            }
        }
    }
}

/// The node for a new Machine: in the wanted region; without one in the first of `otherwise` that
/// has a node, else in the nearest region to the first of them. Of the live nodes there that are
/// not draining, the one with the fewest Machines, then the lowest number.
pub(crate) fn place(
    snapshot: &Snapshot,
    regions: &Regions,
    wanted: Option<&str>,
    otherwise: &[RegionCode],
) -> Result<NodeNumber, NoPlace> {
    let wanted = wanted.map(|text| regions.find(text)).transpose()?.map(|region| region.code);
    let mut open: Vec<RegionCode> = takers(snapshot).map(|(_, region, _)| region).collect();
    open.sort_unstable();
    open.dedup();
    let region = match wanted {
        Some(region) if open.contains(&region) => region,
        Some(region) => return Err(NoPlace::Empty { region, others: open }),
        None => otherwise
            .iter()
            .copied()
            .find(|region| open.contains(region))
            .or_else(|| nearest(regions, otherwise.first().copied(), &open))
            .ok_or(NoPlace::Nowhere)?,
    };
    let there = takers(snapshot).filter(|(_, of, _)| *of == region);
    let best = there.min_by_key(|(number, _, machines)| (*machines, *number));
    best.map(|(number, _, _)| number).ok_or(NoPlace::Nowhere)
}

fn takers(snapshot: &Snapshot) -> impl Iterator<Item = (NodeNumber, RegionCode, usize)> {
    let open = snapshot.nodes.iter().filter(|(_, node)| node.alive && !node.record.draining);
    open.map(|(number, node)| (*number, node.record.region, node.machines.len()))
}

fn nearest(regions: &Regions, from: Option<RegionCode>, open: &[RegionCode]) -> Option<RegionCode> {
    let Some(from) = from else { return open.first().copied() };
    let distance = |region: &RegionCode| regions.distance_km(from, *region);
    open.iter().copied().min_by(|a, b| distance(a).total_cmp(&distance(b)))
}

#[cfg(test)]
mod tests;
