use super::*;
use crate::id::{AppId, ConfigHash, ProcessGroup, VersionId};
use crate::load::LoadClass;
use crate::random::Seed;
use crate::record::Record;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use ulid::Ulid;

fn view(id: u64, region: &str) -> MachineView {
    MachineView {
        record: Arc::new(Record {
            id: MachineId::from_bits(id),
            app: AppId(Ulid(1)),
            group: ProcessGroup::app(),
            state: MachineState::Started,
            healthy: true,
            cordoned: false,
            load: LoadClass::BelowSoft,
            config: ConfigHash([0; 16]),
            version: VersionId(Ulid(1)),
            number: 1,
            changed_ms: 0,
            start_ms: 0,
        }),
        node: NodeNumber(id as u32),
        region: region.parse().unwrap(),
        config: None,
        seen_ms: 0,
        estimate: Arc::default(),
    }
}

fn candidate<'a>(machine: &'a MachineView, rtt_ms: u64, load: u32, soft: u32, hard: u32) -> Candidate<'a> {
    Candidate {
        machine,
        service: 0,
        limits: Limits::new(Some(soft), Some(hard)),
        load,
        rtt: Duration::from_millis(rtt_ms),
        suspect: false,
        alive: true,
        out: false,
        silent: false,
        age: Duration::ZERO,
    }
}

fn pick_any<'a>(candidates: &[Candidate<'a>], rng: &mut Seed) -> Option<Pick<'a>> {
    pick(candidates, &Constraint::default(), &Regions::default(), rng)
}

/// SPEC LB-3: the platform's worked example, `reference/load-balancing`: limits 20/25, ten Machines,
/// three in ams.
#[test]
fn lb_3_the_worked_example_holds() {
    let views: Vec<MachineView> = [("ams", 3), ("bom", 2), ("sea", 2), ("sin", 3)]
        .iter()
        .flat_map(|(region, n)| std::iter::repeat_n(*region, *n))
        .enumerate()
        .map(|(id, region)| view(id as u64, region))
        .collect();
    let rtt = |region: &str| match region {
        "ams" => 0,
        "bom" => 120,
        "sea" => 140,
        _ => 160,
    };
    let mut loads: BTreeMap<MachineId, u32> = BTreeMap::new();
    let mut rng = Seed::new(3);
    let in_region = |loads: &BTreeMap<MachineId, u32>, region: &str| -> Vec<u32> {
        let mine = views.iter().filter(|v| v.region.as_str() == region);
        mine.map(|v| loads.get(&v.record.id).copied().unwrap_or(0)).collect()
    };
    for n in 1..=250 {
        let candidates: Vec<_> = views
            .iter()
            .map(|v| {
                let load = loads.get(&v.record.id).copied().unwrap_or(0);
                candidate(v, rtt(v.region.as_str()), load, 20, 25)
            })
            .collect();
        let picked = pick_any(&candidates, &mut rng).unwrap();
        assert_ne!(picked.reason, PickReason::SeemsFull, "request {n}");
        *loads.entry(picked.candidate.machine.record.id).or_default() += 1;
        let ams = in_region(&loads, "ams");
        if n <= 60 {
            assert_eq!(ams.iter().sum::<u32>(), n, "up to 60 in ams");
            assert!(ams.iter().max().unwrap() - ams.iter().min().unwrap() <= 1, "evenly: {ams:?}");
        } else if n <= 75 {
            assert_eq!(ams.iter().sum::<u32>(), n, "61 to 75 in ams");
        } else {
            assert_eq!(ams.iter().sum::<u32>(), 75);
        }
        if (76..=125).contains(&n) {
            assert_eq!(in_region(&loads, "bom").iter().sum::<u32>(), n - 75, "then the next nearest");
        }
    }
    let candidates: Vec<_> = views.iter().map(|v| candidate(v, 0, 25, 20, 25)).collect();
    assert_eq!(pick_any(&candidates, &mut rng).unwrap().reason, PickReason::SeemsFull);
}

#[test]
fn a_suspect_or_dead_node_gets_nothing_while_another_can_take_it() {
    let (near, far) = (view(1, "iad"), view(2, "nrt"));
    let mut rng = Seed::new(1);
    let mut candidates = [candidate(&near, 1, 0, 20, 25), candidate(&far, 150, 19, 20, 25)];
    candidates[0].suspect = true;
    assert_eq!(pick_any(&candidates, &mut rng).unwrap().candidate.machine.region.as_str(), "nrt");
    candidates[1].alive = false;
    let picked = pick_any(&candidates, &mut rng).unwrap();
    assert_eq!(picked.candidate.machine.region.as_str(), "iad", "suspect before dead");
    assert_eq!(picked.reason, PickReason::LastResort);
}

#[test]
fn lb_7_a_machine_that_is_out_gets_nothing_while_another_can_take_it_and_never_are_all_out() {
    let (near, far) = (view(1, "iad"), view(2, "nrt"));
    let mut rng = Seed::new(1);
    let mut candidates = [candidate(&near, 1, 0, 20, 25), candidate(&far, 150, 19, 20, 25)];
    candidates[0].out = true;
    assert_eq!(pick_any(&candidates, &mut rng).unwrap().candidate.machine.region.as_str(), "nrt");
    candidates[1].out = true;
    let picked = pick_any(&candidates, &mut rng).unwrap();
    assert_eq!((picked.candidate.machine.region.as_str(), picked.reason), ("iad", PickReason::LastResort));
}

#[test]
fn lb_7_a_silent_machine_gets_nothing_while_another_of_its_region_has_room_and_none_leaves_the_region_for_it()
{
    let (near, same, far) = (view(1, "iad"), view(2, "iad"), view(3, "nrt"));
    let mut rng = Seed::new(1);
    let mut candidates =
        [candidate(&near, 1, 0, 20, 25), candidate(&same, 1, 22, 20, 25), candidate(&far, 150, 0, 20, 25)];
    candidates[0].silent = true;
    let picked = |candidates: &[Candidate<'_>], rng: &mut Seed| {
        pick_any(candidates, rng).unwrap().candidate.machine.record.id.bits()
    };
    assert_eq!(picked(&candidates, &mut rng), 2);
    candidates[1].load = 25;
    assert_eq!(picked(&candidates, &mut rng), 1, "full is worse");
    candidates[1] = Candidate { silent: true, load: 5, ..candidates[1] };
    assert_eq!(picked(&candidates, &mut rng), 1, "all are");
}

#[test]
fn lb_8_old_facts_are_used_only_if_nothing_fresher_exists() {
    let (near, far) = (view(1, "iad"), view(2, "nrt"));
    let mut rng = Seed::new(1);
    let mut candidates = [candidate(&near, 1, 0, 20, 25), candidate(&far, 150, 19, 20, 25)];
    candidates[0].age = OLD;
    let picked = pick_any(&candidates, &mut rng).unwrap();
    assert_eq!((picked.candidate.machine.region.as_str(), picked.reason), ("iad", PickReason::Nearest));
    candidates[0].age = OLD + Duration::from_millis(1);
    assert_eq!(pick_any(&candidates, &mut rng).unwrap().candidate.machine.region.as_str(), "nrt");
    candidates[1].age = Duration::MAX;
    let picked = pick_any(&candidates, &mut rng).unwrap();
    assert_eq!((picked.candidate.machine.region.as_str(), picked.reason), ("iad", PickReason::LastResort));
}

#[test]
fn an_asked_machine_or_region_is_never_replaced_by_another() {
    let (a, b) = (view(1, "iad"), view(2, "nrt"));
    let regions = Regions::default();
    let mut rng = Seed::new(1);
    let only_b = [candidate(&b, 150, 0, 20, 25)];
    let asked = |names: &[&str]| Constraint {
        regions: names.iter().map(|n| (*n).to_owned()).collect(),
        ..Constraint::default()
    };
    assert!(pick(&only_b, &asked(&["iad"]), &regions, &mut rng).is_none());
    let both = [candidate(&a, 1, 0, 20, 25), candidate(&b, 150, 0, 20, 25)];
    let picked = pick(&both, &asked(&["apac"]), &regions, &mut rng).unwrap();
    assert_eq!(picked.candidate.machine.region.as_str(), "nrt");
    let prefer = Constraint { prefer: vec!["nrt".into()], ..Constraint::default() };
    let picked = pick(&both, &prefer, &regions, &mut rng).unwrap();
    assert_eq!(
        (picked.candidate.machine.region.as_str(), picked.reason),
        ("nrt", PickReason::PreferredRegion)
    );
    let full = [candidate(&a, 1, 0, 20, 25), candidate(&b, 150, 25, 20, 25)];
    assert_eq!(pick(&full, &prefer, &regions, &mut rng).unwrap().candidate.machine.region.as_str(), "iad");
}

#[test]
fn equally_near_and_loaded_machines_share_the_requests() {
    let (a, b) = (view(1, "iad"), view(2, "iad"));
    let candidates = [candidate(&a, 1, 5, 20, 25), candidate(&b, 6, 5, 20, 25)];
    let mut rng = Seed::new(9);
    let first = (0..1_000)
        .filter(|_| pick_any(&candidates, &mut rng).unwrap().candidate.machine.record.id == a.record.id)
        .count();
    assert!((400..600).contains(&first), "{first}");
}

fn pool() -> impl Strategy<Value = Vec<(usize, u64, u32, u32, u32, bool)>> {
    proptest::collection::vec((0usize..3, 0u64..200, 0u32..40, 1u32..30, 0u32..10, any::<bool>()), 1..12)
}

proptest! {
    #[test]
    fn the_pick_is_the_same_in_any_order_and_follows_the_limits(pool in pool(), seed: u64) {
        let names = ["iad", "lhr", "nrt"];
        let views: Vec<_> = pool.iter().enumerate().map(|(id, p)| view(id as u64, names[p.0])).collect();
        let candidates: Vec<_> = views.iter().zip(&pool).map(|(view, p)| {
            let mut c = candidate(view, p.1, p.2, p.3, p.3 + p.4);
            c.suspect = p.5;
            c
        }).collect();
        let picked = pick_any(&candidates, &mut Seed::new(seed)).unwrap();
        let full = |c: &Candidate<'_>| c.load >= c.limits.hard.unwrap();
        let best: Vec<_> = candidates.iter().filter(|c| !c.suspect).collect();
        let tier: Vec<_> = if best.is_empty() { candidates.iter().collect() } else { best };
        if tier.iter().any(|c| !full(c)) {
            prop_assert!(!full(&picked.candidate), "never at the hard limit while another has room");
            let c = picked.candidate;
            let same = |o: &&&Candidate<'_>| o.machine.region == c.machine.region && !full(o);
            if c.load >= c.limits.soft {
                prop_assert!(tier.iter().filter(same).all(|o| o.load >= o.limits.soft), "soft only if all are");
            }
            let nearest = tier.iter().filter(|o| !full(o)).map(|o| o.rtt).min().unwrap();
            let region_rtt = tier.iter().filter(same).map(|o| o.rtt).min().unwrap();
            prop_assert_eq!(nearest, region_rtt, "the nearest region with room");
        } else if candidates.len() > 1 {
            prop_assert!(matches!(picked.reason, PickReason::SeemsFull | PickReason::LastResort));
        }
        let mut reversed = candidates.clone();
        reversed.reverse();
        let weight = |c: &Candidate<'_>| {
            // When all are full a tie is drawn across regions; otherwise the region is decided.
            let region = (!full(c)).then_some(c.machine.region);
            (region, u64::from(c.load) * 1_000_000 / u64::from(c.limits.soft))
        };
        let again = pick_any(&reversed, &mut Seed::new(seed)).unwrap();
        prop_assert_eq!(weight(&again.candidate), weight(&picked.candidate), "order does not matter");
    }

    #[test]
    fn removing_one_that_was_not_picked_keeps_an_untied_pick(pool in pool(), seed: u64) {
        let views: Vec<_> = (0..pool.len()).map(|id| view(id as u64, "iad")).collect();
        // Loads made distinct: a tie is decided at random, and the draw depends on the number of ties.
        let candidates: Vec<_> = views.iter().enumerate()
            .map(|(i, view)| candidate(view, 0, i as u32, 100, 200)).collect();
        let picked = pick_any(&candidates, &mut Seed::new(seed)).unwrap().candidate.machine.record.id;
        for gone in 0..candidates.len() {
            let rest: Vec<_> = candidates.iter().enumerate().filter(|(i, _)| *i != gone).map(|(_, c)| *c).collect();
            if candidates[gone].machine.record.id != picked && !rest.is_empty() {
                let again = pick_any(&rest, &mut Seed::new(seed)).unwrap();
                prop_assert_eq!(again.candidate.machine.record.id, picked);
            }
        }
    }
}
