//! SPEC section 6 on plain values and on small snapshots; DESIGN's properties of `autostop`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use imbl::OrdMap;
use proptest::prelude::*;
use ulid::Ulid;

use super::start::{self, Asleep, Awake, DEMAND_FOR, Demand, FAILED_FOR, START_FOR, Starter};
use super::stop::{Own, Running, Stays, may_rest, stops};
use super::wake::{Asked, Sight, Wake, Want, judge};
use super::*;
use crate::balance::{self, Constraint};
use crate::facts::App;
use crate::id::{AppId, MachineId, NetworkId, NodeNumber, OrgId};
use crate::load::LoadClass;
use crate::machine::MachineState;
use crate::random::Seed;
use crate::record::Record;
use crate::region::Regions;
use crate::snapshot::{AppView, MachineView, NodeView, Snapshot};
use crate::suspicion::Proximity;
use crate::testing;

fn config(text: &str) -> MachineConfig {
    serde_json::from_str(text).unwrap()
}

fn service(settings: &str) -> String {
    format!(r#"{{"internal_port":8080,"ports":[{{"port":80,"handlers":["http"]}}]{settings}}}"#)
}

fn running(id: u64, load: u32, floor: u32) -> Running {
    let over_soft = load >= 20;
    let (id, node) = (MachineId::from_bits(id), NodeNumber(id as u32));
    Running { id, node, rest: Some(Rest::Stop), floor, over_soft, load }
}

fn ids(stops: &stop::Stops) -> Vec<u64> {
    stops.among.iter().map(|(id, ..)| id.bits()).collect()
}

#[test]
fn auto_1_the_excess_is_all_but_one_more_than_are_over_their_soft_limit() {
    let several = |loads: &[u32]| {
        let machines: Vec<_> = (1..).zip(loads).map(|(id, load)| running(id, *load, 0)).collect();
        stops(&machines, 1)
    };
    assert_eq!((several(&[0, 0]).count, ids(&several(&[0, 0]))), (1, vec![1, 2]));
    assert_eq!(several(&[20, 0]).count, 0, "2 - (1 + 1)");
    assert_eq!((several(&[20, 3, 1]).count, ids(&several(&[20, 3, 1]))), (1, vec![3, 2]), "the idlest first");
    assert_eq!(several(&[5, 5]).count, 1, "two that are a little busy are one too many");
    assert_eq!(several(&[20, 20, 20]).count, 0);
    assert_eq!(several(&[]).count, 0);
    assert_eq!(stops(&(1..=500).map(|id| running(id, 0, 0)).collect::<Vec<_>>(), 100).count, 100);
}

#[test]
fn auto_1_the_only_one_stops_at_a_load_of_0_and_not_below_the_least_number() {
    assert_eq!(stops(&[running(1, 0, 0)], 1).count, 1);
    assert_eq!(stops(&[running(1, 1, 0)], 1).count, 0);
    assert_eq!(stops(&[running(1, 0, 1)], 1).count, 0);
    assert_eq!(stops(&[running(1, 0, 2), running(2, 0, 2), running(3, 0, 2)], 5).count, 1);
    let stays = |own| may_rest(MachineId::from_bits(1), &[running(1, 0, 0)], own);
    let idle = Own { in_flight: 0, settled: true, quiet: true };
    assert_eq!(stays(idle), Ok(Rest::Stop));
    assert_eq!(stays(Own { quiet: false, ..idle }), Err(Stays::Used));
    assert_eq!(stays(Own { settled: false, ..idle }), Err(Stays::Young));
    assert_eq!(stays(Own { in_flight: 1, ..idle }), Err(Stays::Busy));
    let two = [running(1, 0, 2), running(2, 9, 2)];
    assert_eq!(may_rest(MachineId::from_bits(1), &two, idle), Err(Stays::Floor), "its own node knows better");
    let two = [running(1, 0, 0), running(2, 9, 0)];
    assert_eq!(may_rest(MachineId::from_bits(1), &two, Own { quiet: false, ..idle }), Ok(Rest::Stop));
    assert_eq!(may_rest(MachineId::from_bits(3), &two, idle), Err(Stays::NotRunning));
}

/// INCIDENTS C26.
#[test]
fn c26_500_idle_machines_rest_within_a_minute_when_batch_and_interval_say_so() {
    let (interval, batch) = (Duration::from_secs(5), 50);
    let mut up: Vec<_> = (1..=500).map(|id| running(id, 0, 0)).collect();
    let mut took = Duration::ZERO;
    while !up.is_empty() {
        took += interval;
        let round = stops(&up, batch);
        assert!(round.count > 0, "it goes on to the end");
        let gone: Vec<_> = round.among[..round.count].iter().map(|(id, ..)| *id).collect();
        up.retain(|machine| !gone.contains(&machine.id));
    }
    assert!(took < Duration::from_secs(60), "{took:?}");
}

#[test]
fn a_service_that_is_off_or_says_nothing_keeps_its_machine_up() {
    let of = |services: &[&str]| {
        let services: Vec<_> = services.iter().map(|settings| service(settings)).collect();
        rest(&config(&format!(r#"{{"services":[{}]}}"#, services.join(","))))
    };
    let (stop, suspend, off) = (r#","autostop":"stop""#, r#","autostop":"suspend""#, r#","autostop":"off""#);
    assert_eq!(of(&[stop]), Some(Rest::Stop));
    assert_eq!(of(&[suspend, suspend]), Some(Rest::Suspend));
    assert_eq!(of(&[suspend, stop]), Some(Rest::Stop), "suspended only if all say so");
    assert_eq!(of(&[off, stop]), None);
    assert_eq!(of(&[stop, ""]), None);
    assert_eq!(of(&[]), None, "a worker without services is nobody's to stop");
}

#[test]
fn auto_1_the_least_number_holds_in_the_primary_region_only() {
    let of = |env: &str, region: &str| {
        let services = service(r#","min_machines_running":2"#);
        floor(&config(&format!(r#"{{"env":{env},"services":[{services}]}}"#)), region.parse().unwrap())
    };
    assert_eq!(of(r#"{"PRIMARY_REGION":"iad"}"#, "iad"), 2);
    assert_eq!(of(r#"{"PRIMARY_REGION":"iad"}"#, "nrt"), 0);
    assert_eq!(of("{}", "nrt"), 2, "nobody says which region is primary");
}

#[test]
fn auto_3_traffic_starts_a_machine_unless_its_service_says_no() {
    let of = |settings: &str| {
        let config = config(&format!(r#"{{"services":[{}]}}"#, service(settings)));
        (starts_on(&config, 80), starts_on(&config, 81), starts(&config))
    };
    assert_eq!(of(""), (true, false, true));
    assert_eq!(of(r#","autostart":false"#), (false, false, false));
    assert_eq!(of(r#","autostart":true,"protocol":"udp""#), (false, false, false));
}

fn asleep(id: u64, suspended: bool, start_ms: u32) -> Asleep {
    let (id, node) = (MachineId::from_bits(id), NodeNumber(1));
    Asleep { id, node, soft: 20, suspended, start_ms }
}

fn begun(demand: (u32, u32), awake: &[(u32, bool)], starting: usize, asleep: &[Asleep]) -> Vec<u64> {
    let demand = Demand { waiting: demand.0, in_flight: demand.1 };
    let awake: Vec<_> =
        awake.iter().map(|(soft, at_soft)| Awake { soft: *soft, at_soft: *at_soft }).collect();
    let begun = start::starts(demand, &awake, &vec![20; starting], asleep);
    begun.iter().map(|machine| machine.id.bits()).collect()
}

#[test]
fn auto_2_as_many_are_started_as_the_load_needs() {
    let five: Vec<_> = (1..=5).map(|id| asleep(id, false, 0)).collect();
    assert_eq!(begun((1, 0), &[], 0, &five), [1]);
    assert_eq!(begun((20, 0), &[], 0, &five), [1]);
    assert_eq!(begun((21, 0), &[], 0, &five), [1, 2]);
    assert_eq!(begun((21, 0), &[], 2, &five), [] as [u64; 0], "what is under way counts");
    assert_eq!(begun((0, 21), &[(20, false)], 0, &five), [1]);
    assert_eq!(begun((1_000, 0), &[(20, false)], 0, &five), [1, 2, 3, 4, 5], "never more than there are");
    assert_eq!(
        begun((0, 1), &[(20, true)], 0, &five),
        [1],
        "edges that see little of the load, and a Machine that says it"
    );
    assert_eq!(begun((0, 1), &[(20, true)], 1, &five), [] as [u64; 0]);
    assert_eq!(begun((0, 1), &[(20, true), (20, false)], 0, &five), [] as [u64; 0], "one has room");
    assert_eq!(begun((0, 0), &[], 0, &five), [] as [u64; 0]);
}

#[test]
fn auto_2_the_quickest_are_started_first() {
    let some = [asleep(1, false, 0), asleep(2, false, 300), asleep(3, true, 5_000), asleep(4, false, 2_000)];
    assert_eq!(begun((80, 0), &[], 0, &some), [3, 2, 1, 4], "suspended, then by time: unknown counts as 1 s");
}

proptest! {
    /// SPEC AUTO-1.
    #[test]
    fn never_below_the_least_number_and_never_what_is_over_its_limit(
        loads in proptest::collection::vec(0u32..40, 0..12), floor in 0u32..5, batch in 0usize..6,
    ) {
        let up: Vec<_> = (1..).zip(&loads).map(|(id, load)| running(id, *load, floor)).collect();
        let round = stops(&up, batch);
        let over = up.iter().filter(|machine| machine.over_soft).count();
        prop_assert!(round.count <= batch);
        if round.count > 0 {
            prop_assert!(up.len() - round.count >= floor as usize);
            prop_assert!(round.count <= round.among.len() || round.among.len() < up.len());
            prop_assert!(up.len() == 1 || up.len() - round.count > over, "one stays that has room");
            for (id, ..) in &round.among {
                prop_assert!(!up.iter().find(|machine| machine.id == *id).unwrap().over_soft);
            }
        }
    }

    /// SPEC AUTO-2.
    #[test]
    fn starts_are_what_the_load_needs_and_no_more(
        waiting in 0u32..500, in_flight in 0u32..500, awake in proptest::collection::vec(any::<bool>(), 0..8),
        starting in 0usize..8, sleepers in 0u64..30, soft in 1u32..30,
    ) {
        let demand = Demand { waiting, in_flight };
        let all: Vec<_> = (1..=sleepers).map(|id| Asleep { soft, ..asleep(id, id % 3 == 0, 0) }).collect();
        let up: Vec<_> = awake.iter().map(|at_soft| Awake { soft, at_soft: *at_soft }).collect();
        let begun = start::starts(demand, &up, &vec![soft; starting], &all);
        let told = soft * awake.iter().filter(|at_soft| **at_soft).count() as u32;
        let needed = (waiting + in_flight.max(told)).div_ceil(soft) as usize;
        let lacks = needed.saturating_sub(awake.len() + starting);
        let pressed = starting == 0 && awake.iter().all(|at_soft| *at_soft) && waiting + in_flight > 0;
        let expected = if waiting + in_flight == 0 { 0 } else { lacks.max(usize::from(pressed)) };
        prop_assert_eq!(begun.len(), expected.min(all.len()));
        let mut once: Vec<_> = begun.iter().map(|machine| machine.id).collect();
        once.sort_unstable();
        once.dedup();
        prop_assert_eq!(once.len(), begun.len());
    }
}

/// A Machine on a node of its own, of the same number.
#[derive(Clone)]
struct At {
    id: u64,
    region: &'static str,
    state: MachineState,
    settings: &'static str,
    load: LoadClass,
    change: fn(&mut Record),
}

fn at(id: u64, region: &'static str, state: MachineState) -> At {
    At { id, region, state, settings: "", load: LoadClass::BelowSoft, change: |_| {} }
}

const WEB: AppId = AppId(Ulid(1));
use MachineState::{Failed, Started, Starting, Stopped, Suspended};

fn snapshot(machines: &[At]) -> Snapshot {
    let app = App {
        id: WEB,
        name: "web".parse().unwrap(),
        org: OrgId(Ulid(1)),
        network: NetworkId(1),
        created_ms: 0,
    };
    let mut snapshot = Snapshot::default();
    let mut views = OrdMap::new();
    for machine in machines {
        let node = NodeNumber(machine.id as u32);
        let mut record = Record { state: machine.state, load: machine.load, ..testing::record(machine.id) };
        (machine.change)(&mut record);
        let config = config(&format!(r#"{{"services":[{}]}}"#, service(machine.settings)));
        let view = MachineView {
            record: Arc::new(record),
            node,
            region: machine.region.parse().unwrap(),
            config: Some(Arc::new(config)),
            seen_ms: 0,
            estimate: Arc::default(),
        };
        views.insert((view.record.id, node), Arc::new(view));
        let facts = testing::facts(testing::node(node.0, machine.region), 1, [] as [Record; 0]);
        let node_view = NodeView {
            record: facts.record,
            generation: 1,
            version: 1,
            alive: true,
            confirmed: facts.confirmed,
            machines: OrdMap::new(),
        };
        snapshot.nodes.insert(node, Arc::new(node_view));
    }
    snapshot.apps.insert(WEB, Arc::new(AppView { app: Arc::new(app), machines: views }));
    snapshot
}

fn place() -> start::Place {
    (WEB, 80, "iad".parse().unwrap())
}

fn due(starter: &mut Starter, now: Instant, machines: &[At]) -> Vec<u64> {
    starter.due(now, place(), &snapshot(machines)).iter().map(|machine| machine.id.bits()).collect()
}

#[expect(clippy::disallowed_methods, reason = "any reading will do")]
fn now() -> Instant {
    Instant::now()
}

/// INCIDENTS X17.
#[test]
fn x17_a_herd_on_five_edges_starts_each_machine_once_and_no_more_than_it_needs() {
    let mut all = vec![at(1, "iad", Started)];
    all.extend((2..=5).map(|id| at(id, "iad", Stopped)));
    all.push(at(6, "nrt", Stopped));
    let (mut starter, begin) = (Starter::default(), now());
    let mut begun = Vec::new();
    // 60 at a time, told again and again by five edges while nothing has come up yet.
    for round in 0..20u32 {
        for edge in 1..=5 {
            let now = begin + Duration::from_millis(u64::from(round) * 5);
            starter.tell(now, NodeNumber(edge), place(), Demand { waiting: 0, in_flight: 12 });
            begun.extend(due(&mut starter, now, &all));
        }
    }
    assert_eq!(begun, [2, 3], "60 ÷ 20, one of which ran");
}

#[test]
fn an_edges_word_stands_for_two_seconds_and_replaces_its_last_one() {
    let (mut starter, begin) = (Starter::default(), now());
    for waiting in [50, 7] {
        starter.tell(begin, NodeNumber(1), place(), Demand { waiting, in_flight: 0 });
    }
    starter.tell(begin + DEMAND_FOR / 2, NodeNumber(2), place(), Demand { waiting: 1, in_flight: 2 });
    assert_eq!(starter.demand(begin + DEMAND_FOR, place()), Demand { waiting: 8, in_flight: 2 });
    let later = begin + DEMAND_FOR + Duration::from_millis(1);
    assert_eq!(starter.demand(later, place()), Demand { waiting: 1, in_flight: 2 });
    starter.forget(later + DEMAND_FOR);
    assert!(due(&mut starter, later + DEMAND_FOR, &[at(1, "iad", Stopped)]).is_empty());
}

#[test]
fn a_start_that_fails_or_ends_at_once_gives_way_to_another_and_is_tried_again_later() {
    let (mut starter, begin) = (Starter::default(), now());
    let tell = |starter: &mut Starter, now| {
        starter.tell(now, NodeNumber(1), place(), Demand { waiting: 1, in_flight: 0 });
    };
    let two = [at(1, "iad", Stopped), at(2, "iad", Stopped)];
    tell(&mut starter, begin);
    assert_eq!(due(&mut starter, begin, &two), [1]);
    assert!(due(&mut starter, begin, &two).is_empty(), "it is under way");
    starter.failed(begin, MachineId::from_bits(1));
    assert_eq!(due(&mut starter, begin, &two), [2]);
    // The second one ran, and stands stopped again.
    let ended = [two[0].clone(), At { change: |record| record.changed_ms = 9, ..two[1].clone() }];
    assert!(due(&mut starter, begin, &ended).is_empty(), "both are left alone");
    let later = begin + FAILED_FOR;
    tell(&mut starter, later);
    assert_eq!(due(&mut starter, later, &ended), [1]);
    let lost = later + START_FOR;
    tell(&mut starter, lost);
    assert_eq!(due(&mut starter, lost, &ended), [1], "a start that nothing was heard of is over at last");
}

#[test]
fn a_machine_that_came_up_counts_by_what_it_says() {
    let (mut starter, begin) = (Starter::default(), now());
    starter.tell(begin, NodeNumber(1), place(), Demand { waiting: 1, in_flight: 0 });
    let slow = At { change: |record| record.healthy = false, ..at(1, "iad", Started) };
    let rest = at(2, "iad", Stopped);
    assert_eq!(due(&mut starter, begin, &[at(1, "iad", Suspended), rest.clone()]), [1]);
    assert!(due(&mut starter, begin, &[at(1, "iad", Starting), rest.clone()]).is_empty());
    assert!(
        due(&mut starter, begin, &[slow.clone(), rest.clone()]).is_empty(),
        "its checks did not pass yet"
    );
    assert!(due(&mut starter, begin, &[at(1, "iad", Started), rest.clone()]).is_empty());
    assert_eq!(due(&mut starter, begin, &[slow, rest]), [2], "it was healthy once: this is another matter");
}

#[test]
fn auto_4_one_that_came_up_and_ended_later_is_started_again_at_once() {
    let (mut starter, begin) = (Starter::default(), now());
    starter.tell(begin, NodeNumber(1), place(), Demand { waiting: 1, in_flight: 0 });
    assert_eq!(due(&mut starter, begin, &[at(1, "iad", Stopped)]), [1]);
    assert!(starter.is_starting());
    starter.look(begin, &snapshot(&[at(1, "iad", Started)]));
    assert!(!starter.is_starting());
    let ended = At { change: |record| record.changed_ms = 9, ..at(1, "iad", Stopped) };
    assert_eq!(due(&mut starter, begin, std::slice::from_ref(&ended)), [1]);
    let again = At { change: |record| record.changed_ms = 10, ..at(1, "iad", Stopped) };
    starter.look(begin, &snapshot(std::slice::from_ref(&again)));
    assert!(due(&mut starter, begin, &[again]).is_empty(), "it ended instead of coming up");
}

#[test]
fn auto_3_what_traffic_may_not_start_is_not_started() {
    let never = [
        At { settings: r#","autostart":false"#, ..at(1, "iad", Stopped) },
        At { change: |record| record.cordoned = true, ..at(2, "iad", Stopped) },
        at(3, "iad", Failed),
        at(4, "nrt", Stopped),
    ];
    let (mut starter, begin) = (Starter::default(), now());
    starter.tell(begin, NodeNumber(1), place(), Demand { waiting: 100, in_flight: 0 });
    assert!(due(&mut starter, begin, &never).is_empty());
}

/// Round trips by the number of the node, in milliseconds.
struct Far(fn(u32) -> u64);

impl Proximity for Far {
    fn rtt(&self, node: NodeNumber) -> Duration {
        Duration::from_millis((self.0)(node.0))
    }
    fn suspect(&self, _: NodeNumber) -> bool {
        false
    }
}

/// What an edge next to node 1 does; node n is n × 50 ms away.
fn woken(machines: &[At], constraint: &Constraint, stopped: &[u64], waits: bool) -> Wake {
    let snapshot = snapshot(machines);
    let (regions, far) = (Regions::default(), Far(|node| u64::from(node - 1) * 50));
    let app = &snapshot.apps[&WEB];
    let verdicts = balance::candidates(app, &snapshot, 80, constraint, &far, 1);
    let able: Vec<_> = verdicts.iter().filter_map(|(_, verdict)| verdict.ok()).collect();
    let pick = balance::pick(&able, constraint, &regions, &mut Seed::new(1));
    let stopped: Vec<_> = stopped.iter().map(|id| MachineId::from_bits(*id)).collect();
    let asked = Asked { port: 80, constraint, stopped: &stopped, refused: &stopped, waits };
    let sight = Sight { snapshot: &snapshot, proximity: &far, regions: &regions, unix_ms: 100_000 };
    let judged = judge(&verdicts, pick.as_ref(), asked, sight);
    if !wake::any_asleep(&verdicts) && stopped.is_empty() && !waits {
        assert_eq!(judged, Wake::Nothing, "the cheap question must not hide anything");
    }
    judged
}

fn plain(machines: &[At]) -> Wake {
    woken(machines, &Constraint::default(), &[], false)
}

fn region(code: &str) -> Want {
    Want::Region(code.parse().unwrap())
}

#[test]
fn auto_2_a_region_whose_machines_all_rest_starts_one() {
    let slow = At { load: LoadClass::BelowSoft, ..at(30, "nrt", Started) };
    assert_eq!(plain(&[at(1, "iad", Stopped)]), Wake::Wait(region("iad")));
    assert_eq!(
        plain(&[at(1, "iad", Suspended), at(2, "lhr", Stopped)]),
        Wake::Wait(region("iad")),
        "nearest first"
    );
    assert_eq!(
        plain(&[at(1, "iad", Stopped), at(2, "lhr", Started)]),
        Wake::GoOn(region("iad")),
        "50 ms are less than a start"
    );
    assert_eq!(plain(&[at(1, "iad", Stopped), slow]), Wake::Wait(region("iad")), "1,450 ms are more");
    assert_eq!(plain(&[at(1, "iad", Starting)]), Wake::Wait(region("iad")), "somebody started it already");
    assert_eq!(plain(&[at(1, "iad", Started), at(2, "lhr", Stopped)]), Wake::Nothing);
    assert_eq!(plain(&[at(1, "iad", Started), at(2, "iad", Stopped)]), Wake::Nothing, "it has room");
    assert_eq!(plain(&[]), Wake::Nothing);
}

#[test]
fn auto_2_a_region_whose_machines_are_at_their_soft_limit_starts_one_and_the_request_stays() {
    let busy = At { load: LoadClass::SoftToHard, ..at(1, "iad", Started) };
    let full = At {
        settings: r#","concurrency":{"hard_limit":20}"#,
        load: LoadClass::AtHard,
        ..at(1, "iad", Started)
    };
    assert_eq!(plain(&[busy.clone(), at(2, "iad", Stopped)]), Wake::GoOn(region("iad")));
    assert_eq!(plain(&[busy.clone(), at(2, "lhr", Stopped)]), Wake::Nothing, "soft limits send nothing away");
    assert_eq!(
        plain(&[full.clone(), at(2, "lhr", Stopped)]),
        Wake::Wait(region("lhr")),
        "there is no room but there"
    );
    assert_eq!(plain(&[full, at(2, "lhr", Started), at(3, "lhr", Stopped)]), Wake::Nothing);
    assert_eq!(plain(&[busy, at(2, "iad", Started), at(3, "iad", Stopped)]), Wake::Nothing);
}

#[test]
fn auto_3_without_autostart_nothing_is_waited_for() {
    let off = |id, region| At { settings: r#","autostart":false"#, ..at(id, region, Stopped) };
    assert_eq!(plain(&[off(1, "iad")]), Wake::Nothing);
    assert_eq!(plain(&[off(1, "iad"), at(2, "lhr", Stopped)]), Wake::Wait(region("lhr")));
    assert_eq!(plain(&[at(1, "iad", Failed)]), Wake::Nothing, "a failed one is not traffic's to start");
    let cordoned = At { change: |record| record.cordoned = true, ..at(1, "iad", Stopped) };
    assert_eq!(plain(&[cordoned]), Wake::Nothing);
}

#[test]
fn what_the_request_asks_for_is_respected() {
    let three = [at(1, "iad", Stopped), at(2, "lhr", Stopped), at(3, "lhr", Stopped)];
    let machine = Constraint { machine: Some(MachineId::from_bits(3)), ..Constraint::default() };
    let three_itself = Want::Machine(MachineId::from_bits(3), NodeNumber(3));
    assert_eq!(woken(&three, &machine, &[], false), Wake::Wait(three_itself));
    let eu = Constraint { regions: vec!["eu".into()], ..Constraint::default() };
    assert_eq!(woken(&three, &eu, &[], false), Wake::Wait(region("lhr")));
    let prefer = Constraint { prefer: vec!["lhr".into()], ..Constraint::default() };
    assert_eq!(woken(&three, &prefer, &[], false), Wake::Wait(region("lhr")));
    let excluded = Constraint { exclude: vec![MachineId::from_bits(1)], ..Constraint::default() };
    assert_eq!(woken(&three, &excluded, &[], false), Wake::Wait(region("lhr")));
    // The one that runs failed this request: who decides sees one that has room.
    let up = [at(1, "iad", Started), at(2, "iad", Stopped)];
    let second = Want::Machine(MachineId::from_bits(2), NodeNumber(2));
    assert_eq!(woken(&up, &excluded, &[], false), Wake::Wait(second));
}

/// SPEC LB-5.
#[test]
fn one_that_refused_because_it_stopped_is_woken_only_when_no_other_can_take_the_request() {
    let excluded = Constraint { exclude: vec![MachineId::from_bits(1)], ..Constraint::default() };
    let alone = [at(1, "iad", Started)];
    assert_eq!(woken(&alone, &excluded, &[1], false), Wake::Wait(region("iad")));
    assert_eq!(woken(&alone, &excluded, &[], false), Wake::Nothing, "another failure is no reason");
    assert_eq!(woken(&[at(1, "iad", Started), at(2, "iad", Started)], &excluded, &[1], false), Wake::Nothing);
}

/// SPEC AUTO-5.
#[test]
fn one_that_came_up_a_moment_ago_is_waited_for_and_one_that_is_ill_is_not() {
    let slow = |start_ms| At {
        change: if start_ms {
            |record| (record.healthy, record.start_ms) = (false, 60_000)
        } else {
            |record| record.healthy = false
        },
        ..at(1, "iad", Started)
    };
    assert_eq!(plain(&[slow(true)]), Wake::Await(region("iad")), "its last start took long");
    assert_eq!(plain(&[slow(true), at(2, "iad", Stopped)]), Wake::Await(region("iad")), "it is the one");
    assert_eq!(plain(&[slow(true), at(2, "lhr", Started)]), Wake::Nothing, "50 ms are less");
    assert_eq!(plain(&[slow(false)]), Wake::Nothing, "known for 100 s");
    assert_eq!(
        plain(&[slow(false), at(2, "iad", Stopped)]),
        Wake::Wait(region("iad")),
        "another one is needed"
    );
}

#[test]
fn one_that_waits_waits_also_for_checks_and_restarts() {
    let slow = At { change: |record| record.healthy = false, ..at(1, "iad", Started) };
    let again = at(1, "iad", MachineState::Restarting);
    for coming in [slow, again] {
        assert_eq!(plain(std::slice::from_ref(&coming)), Wake::Nothing);
        assert_eq!(
            woken(std::slice::from_ref(&coming), &Constraint::default(), &[], true),
            Wake::Wait(region("iad"))
        );
    }
}
