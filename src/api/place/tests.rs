//! Placement over small worlds.

use std::sync::Arc;

use imbl::OrdMap;
use proptest::prelude::*;
use skein_core::NodeNumber;
use skein_core::key::NodeRecord;
use skein_core::machine::MachineState;
use skein_core::record::Record;
use skein_core::region::Regions;
use skein_core::snapshot::{Changes, NodeFacts, Snapshot, fold};

use super::{NoPlace, place};

/// Number, region, Machines, alive, draining.
type Row = (u32, &'static str, u64, bool, bool);

fn snapshot(rows: &[Row]) -> Snapshot {
    let nodes = rows.iter().map(|&(number, region, machines, alive, draining)| {
        let record = NodeRecord {
            number: NodeNumber(number),
            name: format!("{region}-{number}").parse().unwrap(),
            region: region.parse().unwrap(),
            backhaul: "127.0.0.1:1".parse().unwrap(),
            api: "127.0.0.1:2".parse().unwrap(),
            draining,
            build: String::new(),
        };
        let machine = |n: u64| {
            let id = skein_core::MachineId::from_bits(u64::from(number) << 20 | n);
            let record = Record {
                id,
                app: skein_core::AppId(ulid::Ulid(1)),
                group: skein_core::ProcessGroup::app(),
                state: MachineState::Started,
                healthy: true,
                cordoned: false,
                load: skein_core::load::LoadClass::BelowSoft,
                config: skein_core::ConfigHash([0; 16]),
                version: skein_core::VersionId(ulid::Ulid(1)),
                number: n as u32,
                changed_ms: 0,
                start_ms: 0,
            };
            (id, Arc::new(record))
        };
        let machines: OrdMap<_, _> = (0..machines).map(machine).collect();
        NodeFacts { record, generation: 1, version: 1, alive, confirmed: Arc::default(), machines }
    });
    fold(&Snapshot::default(), Changes { nodes: nodes.collect(), ..Changes::default() })
}

fn at(rows: &[Row], wanted: Option<&str>, otherwise: &[&str]) -> Result<u32, NoPlace> {
    let otherwise: Vec<_> = otherwise.iter().map(|region| region.parse().unwrap()).collect();
    place(&snapshot(rows), &Regions::default(), wanted, &otherwise).map(|number| number.0)
}

#[test]
fn the_live_node_with_the_fewest_machines_of_the_wanted_region_is_chosen() {
    let rows = [(1, "iad", 4, true, false), (2, "iad", 2, true, false), (3, "lhr", 0, true, false)];
    assert_eq!(at(&rows, Some("iad"), &["lhr"]), Ok(2));
    let rows = [(1, "iad", 4, true, false), (2, "iad", 2, false, false), (3, "iad", 0, true, true)];
    assert_eq!(at(&rows, Some("iad"), &[]), Ok(1), "dead and draining nodes take nothing");
}

#[test]
fn without_a_region_the_preferred_one_is_taken_or_the_nearest_with_a_node() {
    let rows = [(1, "lhr", 0, true, false), (2, "nrt", 0, true, false)];
    assert_eq!(at(&rows, None, &["nrt", "lhr"]), Ok(2));
    assert_eq!(at(&rows, None, &["ams"]), Ok(1));
    assert_eq!(at(&rows, None, &["syd"]), Ok(2));
}

#[test]
fn an_unknown_region_names_near_ones_and_an_empty_one_names_those_with_nodes() {
    let rows = [(1, "lhr", 0, true, false), (2, "nrt", 0, false, false)];
    let unknown = at(&rows, Some("lhx"), &[]).unwrap_err().to_string();
    assert!(unknown.contains("lhr"), "{unknown}");
    let empty = at(&rows, Some("nrt"), &[]).unwrap_err().to_string();
    assert_eq!(empty, "no node in nrt takes Machines; there are nodes in lhr");
    assert_eq!(at(&[(1, "lhr", 0, false, false)], None, &["lhr"]), Err(NoPlace::Nowhere));
}

proptest! {
    #[test]
    fn whoever_is_chosen_is_alive_not_draining_and_where_it_was_wanted(
        nodes in proptest::collection::vec((0usize..3, 0u64..4, any::<bool>(), any::<bool>()), 0..6),
        wanted in proptest::option::of(0usize..3),
    ) {
        let names = ["iad", "lhr", "nrt"];
        let rows: Vec<Row> = nodes
            .iter()
            .zip(1u32..)
            .map(|(&(region, machines, alive, draining), n)| (n, names[region], machines, alive, draining))
            .collect();
        let open = |row: &&Row| row.3 && !row.4 && wanted.is_none_or(|wanted| names[wanted] == row.1);
        match at(&rows, wanted.map(|index| names[index]), &["iad"]) {
            Ok(number) => prop_assert!(rows.iter().filter(open).any(|row| row.0 == number)),
            Err(_) => prop_assert_eq!(rows.iter().filter(open).count(), 0),
        }
    }
}
