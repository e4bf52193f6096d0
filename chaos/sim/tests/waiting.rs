//! Balancing and waiting, as scenarios over real messages (SPEC LB-3, LB-4, LB-5).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::collections::BTreeMap;

use skein_sim::agenda::{MS, SECOND};
use skein_sim::run::{Ran, play};
use skein_sim::transition::{Auto, Reply, Transition};
use skein_sim::world::Setup;

type Step = (u64, Transition);

fn run(setup: Setup, steps: Vec<Step>) -> Ran {
    let ran = play(1, setup, steps.into_iter().enumerate().collect());
    assert_eq!(ran.violation, None, "{}", ran.log);
    ran
}

/// An app, and Machines of it: on which node, soft limit, room above it. Their ids in a log begin with
/// the slot.
fn app(machines: &[(u8, u8, u8)]) -> Vec<Step> {
    let mut steps = vec![(3 * SECOND, Transition::Create { app: 0, node: 0 })];
    for (slot, (node, soft, room)) in (0..).zip(machines) {
        let (node, soft, room) = (*node, *soft, *room);
        steps.push((
            5 * SECOND,
            Transition::Deploy { machine: slot, app: 0, node, soft, room, auto: Auto::Off },
        ));
    }
    steps
}

/// Requests at `edges` nodes from the first on, one every `gap` ms in turn.
fn load(edges: u8, count: u8, gap: u8, takes: u16) -> Transition {
    Transition::Load { edge: 0, edges, app: 0, count, gap, takes }
}

/// The slot of a Machine.
fn slot(id: &str) -> u8 {
    u8::from_str_radix(&id[..6], 16).unwrap()
}

/// In the order of the log: the requests that Machines took, and their slots.
fn taken(log: &str) -> Vec<(u64, u8)> {
    let word = |line: &str, at: usize| line.split(' ').nth(at).unwrap().to_owned();
    let taken = log.lines().filter(|line| line.contains(" takes it, "));
    taken.map(|line| (word(line, 2).parse().unwrap(), slot(&word(line, 5)))).collect()
}

fn place(log: &str, what: &str) -> usize {
    log.lines().position(|line| line.contains(what)).unwrap_or_else(|| panic!("no {what:?} in\n{log}"))
}

/// The platform's worked example: limits 20/25, ten Machines, three in ams, where the edge is.
#[test]
fn lb_3_the_worked_example_holds_over_real_messages_and_the_251st_is_served_when_a_slot_is_free() {
    const REGION: [usize; 10] = [0, 0, 0, 1, 1, 2, 2, 3, 3, 3];
    let mut steps = app(&REGION.map(|region| (region as u8, 20, 5)));
    let one =
        |takes| Transition::Request { edge: 0, app: 0, post: false, count: 1, takes, reply: Reply::Plain };
    steps.push((8 * SECOND, one(6_000)));
    steps.push((8 * SECOND + 20 * MS, load(1, 249, 20, 30_000)));
    steps.push((13_500 * MS, one(30)));
    let log = run(Setup::at(&["ams", "bom", "sea", "sin"]), steps).log;

    let mut by_request = taken(&log);
    by_request.sort_unstable();
    let ids: Vec<u64> = by_request.iter().map(|(request, _)| *request).collect();
    assert_eq!(ids, (1..=251).collect::<Vec<u64>>(), "each is taken once");
    let mut loads = [0u32; 10];
    for (request, slot) in by_request.iter().take(250) {
        loads[usize::from(*slot)] += 1;
        let in_region = |region: usize| -> Vec<u32> {
            (0..10).filter(|slot| REGION[*slot] == region).map(|slot| loads[slot]).collect()
        };
        let region = match request {
            ..=75 => 0,
            76..=125 => 1,
            126..=175 => 2,
            _ => 3,
        };
        assert_eq!(REGION[usize::from(*slot)], region, "request {request} goes to the nearest with room");
        let inside = in_region(region);
        let below = inside.iter().any(|load| *load < 20);
        if below {
            let spread = inside.iter().max().unwrap() - inside.iter().min().unwrap();
            assert!(spread <= 1, "request {request}: evenly, {inside:?}");
        }
    }
    assert_eq!(loads, [25; 10], "all at hard");
    let waits = place(&log, "request 251 at 1: waits");
    let freed = place(&log, "request 1 at 1: answered");
    let served = place(&log, "request 251 of 1: ");
    assert!(waits < freed && freed < served, "it waits until a slot is free");
    assert_eq!(by_request[250].1, by_request[0].1, "that slot");
}

/// Five edges far apart, one Machine near its limit.
#[test]
fn x18_a_machine_near_its_limit_is_never_over_it_and_a_stale_view_costs_two_hops_at_most() {
    let mut steps = app(&[(0, 3, 1)]);
    steps.push((8 * SECOND, load(5, 240, 16, 30)));
    let ran = run(Setup::at(&["fra", "lhr", "iad", "nrt", "gru"]), steps);
    assert_eq!((ran.counts.requests, ran.counts.answered), (240, 240), "{}", ran.log);
    assert!(ran.counts.waited > 20, "it is near its limit: {:?}", ran.counts);
    let most = ran.log.lines().filter(|line| line.contains(" takes it, "));
    let most = most.map(|line| line.split(' ').nth(8).unwrap().parse::<u32>().unwrap()).max();
    assert_eq!(most, Some(4), "up to its limit");
    // Refusals of each request before it waits, as the log has them.
    let mut refused: BTreeMap<u64, u32> = BTreeMap::new();
    for line in ran.log.lines().filter(|line| line.contains("] ") || line.contains("request ")) {
        let words: Vec<&str> = line.split(' ').collect();
        let Some(request) = words.get(2).and_then(|word| word.parse().ok()) else { continue };
        if line.ends_with("Refused(Full)") {
            let times = refused.entry(request).or_default();
            *times += 1;
            assert!(*times <= 2, "request {request} met {times} full Machines before it waited");
        } else if line.ends_with(": waits") {
            // From here on it asks once for each turn.
            refused.insert(request, 0);
        }
    }
}
