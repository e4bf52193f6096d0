use super::*;
use crate::clock;
use crate::gossip::net::{node, record};
use chitchat::{ChitchatConfig, FailureDetectorConfig};
use data_encoding::BASE64URL_NOPAD;
use proptest::prelude::*;
use std::sync::atomic::Ordering;

const FLOOR: Duration = Duration::from_secs(2);

fn sighting(number: u32, generation: u64, version: u64, entries: Vec<(GossipKey, String)>) -> Sighting {
    let id = |(key, _): &(GossipKey, String)| match key {
        GossipKey::Machine(id) => Some(*id),
        GossipKey::Node => None,
    };
    let present = entries.iter().filter_map(id).collect();
    let entries = entries.into_iter().map(|(key, text)| (key.to_string(), text)).collect();
    Sighting {
        number: NodeNumber(number),
        generation,
        live: true,
        heartbeat: (generation, 1),
        news: Some(News { version, entries, present }),
    }
}

fn node_entry(number: u32) -> (GossipKey, String) {
    (GossipKey::Node, entry::to_text(&node(number)).unwrap())
}

fn machine_entry(id: u64) -> (GossipKey, String) {
    (GossipKey::Machine(MachineId::from_bits(id)), entry::to_text(&record(id)).unwrap())
}

fn apply(view: &mut View, sightings: Vec<Sighting>, now: Instant, counters: &Counters) -> Outcome {
    view.apply(sightings, &BTreeMap::new(), (now, clock::monotonic_ms()), FLOOR, counters)
}

#[tokio::test]
async fn a_bad_entry_is_counted_and_the_others_of_its_node_stay() {
    let (mut view, counters) = (View::new(NodeNumber(1)), Counters::default());
    let mut future = skein_core::codec::encode(&record(7));
    future[0] = 9;
    let entries = vec![
        node_entry(2),
        machine_entry(5),
        (GossipKey::Machine(MachineId::from_bits(6)), "%%".to_owned()),
        (GossipKey::Machine(MachineId::from_bits(7)), BASE64URL_NOPAD.encode(&future)),
        (GossipKey::Machine(MachineId::from_bits(8)), entry::to_text(&record(9)).unwrap()),
    ];
    apply(&mut view, vec![sighting(2, 1, 5, entries)], Instant::now(), &counters);
    let facts = &view.members()[&NodeNumber(2)];
    assert_eq!(facts.machines.keys().copied().collect::<Vec<_>>(), [MachineId::from_bits(5)]);
    assert_eq!(facts.version, 5);
    assert_eq!(counters.bad_entries.load(Ordering::Relaxed), 2);
    assert_eq!(counters.unknown_versions.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_node_whose_record_turns_bad_keeps_the_last_one_and_its_machines_move_on() {
    let (mut view, counters) = (View::new(NodeNumber(1)), Counters::default());
    let now = Instant::now();
    apply(&mut view, vec![sighting(2, 1, 2, vec![node_entry(2), machine_entry(5)])], now, &counters);
    let entries = vec![(GossipKey::Node, "%%".to_owned()), machine_entry(6)];
    apply(&mut view, vec![sighting(2, 1, 4, entries)], now, &counters);
    let facts = &view.members()[&NodeNumber(2)];
    assert_eq!(facts.record, node(2));
    assert!(facts.machines.contains_key(&MachineId::from_bits(6)) && facts.machines.len() == 1);
    assert_eq!(counters.bad_entries.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn keys_that_this_build_does_not_know_and_ids_that_are_no_nodes_are_counted_once() {
    let of = |id: ChitchatId, keys: &[(String, String)]| {
        let config = ChitchatConfig {
            listen_addr: id.gossip_advertise_addr,
            chitchat_id: id,
            cluster_id: "c".to_owned(),
            gossip_interval: FLOOR,
            seed_nodes: vec![],
            failure_detector_config: FailureDetectorConfig::default(),
            marked_for_deletion_grace_period: FLOOR,
            catchup_callback: None,
            extra_liveness_predicate: None,
        };
        let seeds = tokio::sync::watch::channel(Default::default()).1;
        Chitchat::with_chitchat_id_and_seeds(config, seeds, keys.to_vec())
    };
    let (mut view, counters) = (View::new(NodeNumber(1)), Counters::default());
    let id = |text: &str| ChitchatId::new(text, 1, socket::address(NodeNumber(2)));
    let keys = ["node", "m/00000000000005", "x/new"];
    let texts = [node_entry(2).1, machine_entry(5).1, "?".to_owned()];
    let keys: Vec<_> = keys.map(str::to_owned).into_iter().zip(texts).collect();
    for _ in 0..2 {
        let seen = view.look(&of(id("2"), &keys), &counters);
        apply(&mut view, seen, Instant::now(), &counters);
    }
    assert_eq!(counters.unknown_keys.load(Ordering::Relaxed), 1);
    assert_eq!(view.members()[&NodeNumber(2)].machines.len(), 1);
    assert_eq!(counters.bad_entries.load(Ordering::Relaxed), 0);
    for spelling in ["02", "3", "two"] {
        for _ in 0..2 {
            assert!(view.look(&of(id(spelling), &keys), &counters).is_empty(), "{spelling}");
        }
    }
    assert_eq!(counters.bad_entries.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn an_unchanged_machine_keeps_its_record_over_changes_and_generations() {
    let (mut view, counters) = (View::new(NodeNumber(1)), Counters::default());
    let (now, machine) = (Instant::now(), MachineId::from_bits(5));
    apply(&mut view, vec![sighting(2, 1, 2, vec![node_entry(2), machine_entry(5)])], now, &counters);
    let first = Arc::clone(&view.members()[&NodeNumber(2)].machines[&machine]);
    apply(&mut view, vec![sighting(2, 2, 2, vec![node_entry(2), machine_entry(5)])], now, &counters);
    let facts = &view.members()[&NodeNumber(2)];
    assert_eq!(facts.generation, 2);
    assert!(Arc::ptr_eq(&first, &facts.machines[&machine]));
}

#[tokio::test(start_paused = true)]
async fn a_growing_heartbeat_keeps_a_node_alive_but_never_makes_it_so() {
    let (mut view, counters) = (View::new(NodeNumber(1)), Counters::default());
    let start = Instant::now();
    let beat = |live, heartbeat| Sighting {
        number: NodeNumber(2),
        generation: 1,
        live,
        heartbeat: (1, heartbeat),
        news: None,
    };
    apply(&mut view, vec![sighting(2, 1, 1, vec![node_entry(2)])], start, &counters);
    apply(&mut view, vec![beat(true, 5)], start, &counters);
    let at = |seconds| start + Duration::from_secs(seconds);
    apply(&mut view, vec![beat(false, 5)], at(1), &counters);
    assert!(view.alive(NodeNumber(2)), "the failure detector alone is not believed at once");
    let outcome = apply(&mut view, vec![beat(false, 5)], at(2), &counters);
    assert!(outcome.changed && !outcome.learned && !view.alive(NodeNumber(2)));
    apply(&mut view, vec![beat(false, 6)], at(3), &counters);
    assert!(!view.alive(NodeNumber(2)), "it may be an old heartbeat");
    let heard = BTreeMap::from([(NodeNumber(2), at(3))]);
    view.apply(vec![beat(false, 6)], &heard, (at(3), 1), FLOOR, &counters);
    assert!(view.alive(NodeNumber(2)), "it was heard itself");
    // chitchat forgets it after its grace; the member stays.
    apply(&mut view, vec![], at(9), &counters);
    assert!(!view.members()[&NodeNumber(2)].alive);
}

proptest! {
    #[test]
    fn no_entry_makes_the_view_panic_and_what_it_lists_says_who_it_is(
        entries in proptest::collection::vec(
            (prop_oneof![Just("node".to_owned()), "m/0000000000000[0-3]", ".{0,20}"], prop_oneof![
                Just(node_entry(2).1), (0u64..4).prop_map(|id| machine_entry(id).1), ".{0,60}",
            ]),
            0..12,
        ),
    ) {
        let (mut view, counters) = (View::new(NodeNumber(1)), Counters::default());
        let present = (0..4).map(MachineId::from_bits).collect();
        let news = Some(News { version: 9, entries, present });
        let sighting = Sighting { number: NodeNumber(2), generation: 1, live: true, heartbeat: (1, 1), news };
        apply(&mut view, vec![sighting], Instant::now(), &counters);
        for (number, facts) in view.members() {
            prop_assert_eq!(facts.record.number, *number);
            prop_assert!(facts.machines.iter().all(|(id, record)| record.id == *id));
        }
    }
}
