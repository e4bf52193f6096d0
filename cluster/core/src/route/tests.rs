use super::*;
use crate::balance::AllNear;
use crate::explain::Steps;
use crate::facts::App;
use crate::id::{AppId, ConfigHash, NetworkId, NodeNumber, OrgId, ProcessGroup, VersionId};
use crate::load::LoadClass;
use crate::machine::{MachineConfig, MachineState};
use crate::random::Seed;
use crate::record::Record;
use proptest::prelude::*;
use ulid::Ulid;

const REPEATABLE: Repeat = Repeat { idempotent: true, replayable: true, left: Duration::from_secs(5) };

fn machine(id: u64, region: &str) -> Arc<MachineView> {
    let config: MachineConfig = serde_json::from_str(
        r#"{"image":"skein/hello","services":[{"protocol":"tcp","internal_port":8080,"ports":[{"port":80,"handlers":["http"]}]}]}"#,
    )
    .unwrap();
    Arc::new(MachineView {
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
        config: Some(Arc::new(config)),
        seen_ms: 0,
        estimate: Arc::default(),
    })
}

/// An app with one Machine per region, numbered from 1.
fn snapshot(regions: &[&str]) -> Snapshot {
    let app = App {
        id: AppId(Ulid(1)),
        name: "web".parse().unwrap(),
        org: OrgId(Ulid(1)),
        network: NetworkId(1),
        created_ms: 0,
    };
    let machines = regions.iter().zip(1..).map(|(region, id)| machine(id, region));
    let machines = machines.map(|view| ((view.record.id, view.node), view)).collect();
    let view = AppView { app: Arc::new(app), machines };
    Snapshot { apps: [(AppId(Ulid(1)), Arc::new(view))].into_iter().collect(), ..Snapshot::default() }
}

fn world<'s>(snapshot: &'s Snapshot, regions: &'s Regions) -> World<'s> {
    World { snapshot, proximity: &AllNear, regions, now_ms: 1 }
}

fn route(snapshot: &Snapshot) -> Route<'_> {
    Route::new(snapshot.apps.get(&AppId(Ulid(1))).unwrap(), 80, Vec::new())
}

fn picked(route: &Route<'_>, snapshot: &Snapshot) -> Result<u64, ErrorCode> {
    let regions = Regions::default();
    let (mut rng, mut steps) = (Seed::new(1), Steps::default());
    let decided = route.decide(&world(snapshot, &regions), |_| true, &mut rng, steps.at(Duration::ZERO));
    Ok(decided?.pick.candidate.machine.record.id.bits())
}

#[test]
fn lb_6_each_machine_is_asked_once_and_the_last_failure_is_told() {
    let snapshot = snapshot(&["iad", "iad"]);
    let mut route = route(&snapshot);
    let first = picked(&route, &snapshot).unwrap();
    route.after_failure(MachineId::from_bits(first), Failure::Unreachable, false, REPEATABLE).unwrap();
    let second = picked(&route, &snapshot).unwrap();
    assert_ne!(first, second);
    let full = Failure::Refused(RefuseReason::Full);
    route.after_failure(MachineId::from_bits(second), full, false, REPEATABLE).unwrap();
    assert_eq!(picked(&route, &snapshot), Err(ErrorCode::PR04), "one of them may have room soon");
}

/// However free it says that it is: it is asked once, until the request has waited.
#[test]
fn lb_5_a_worker_that_lies_about_its_load_is_asked_once_a_round() {
    let snapshot = snapshot(&["iad", "lhr", "nrt"]);
    let mut route = route(&snapshot);
    for _ in 0..2 {
        let mut asked = Vec::new();
        while let Ok(machine) = picked(&route, &snapshot) {
            asked.push(machine);
            let machine = MachineId::from_bits(machine);
            for view in snapshot.apps[&AppId(Ulid(1))].machines.values() {
                view.estimate.tell(0, 1);
            }
            route.after_failure(machine, Failure::Refused(RefuseReason::Full), false, REPEATABLE).unwrap();
        }
        asked.sort_unstable();
        assert_eq!((asked, picked(&route, &snapshot)), (vec![1, 2, 3], Err(ErrorCode::PR04)));
        route = route.wait().resume(&snapshot).unwrap();
    }
}

#[test]
fn a_stale_connection_speaks_against_no_machine_until_it_happens_too_often() {
    let snapshot = snapshot(&["iad"]);
    let mut route = route(&snapshot);
    let broken = Failure::Broken { code: ErrorCode::PU02, reached_app: false };
    for _ in 0..MAX_STALE {
        route.after_failure(MachineId::from_bits(1), broken, true, REPEATABLE).unwrap();
        assert_eq!(picked(&route, &snapshot), Ok(1));
    }
    route.after_failure(MachineId::from_bits(1), broken, true, REPEATABLE).unwrap();
    assert_eq!(picked(&route, &snapshot), Err(ErrorCode::PU02));
}

#[test]
fn a_request_that_may_have_reached_the_app_goes_on_only_if_it_may_be_repeated() {
    let snapshot = snapshot(&["iad", "lhr"]);
    let reached = Failure::Broken { code: ErrorCode::PU02, reached_app: true };
    let post = Repeat { idempotent: false, ..REPEATABLE };
    let id = MachineId::from_bits(1);
    assert_eq!(route(&snapshot).after_failure(id, reached, false, post), Err(ErrorCode::PU02));
    assert_eq!(route(&snapshot).after_failure(id, reached, false, REPEATABLE), Ok(()));
    let unreached = Failure::Broken { code: ErrorCode::PU02, reached_app: false };
    assert_eq!(route(&snapshot).after_failure(id, unreached, false, post), Ok(()));
}

#[test]
fn rpl_5_a_replay_begins_anew_and_the_eleventh_is_pa02() {
    let snapshot = snapshot(&["iad", "lhr"]);
    let regions = Regions::default();
    let world = world(&snapshot, &regions);
    let mut route = route(&snapshot);
    let source = machine(1, "iad");
    route.after_failure(MachineId::from_bits(2), Failure::Unreachable, false, REPEATABLE).unwrap();
    for replay in 1..=replay::MAX_REPLAYS {
        let wanted = route.follow(b"region=lhr;state=s", &source, &world).unwrap();
        assert_eq!((wanted.state.as_deref(), route.replays()), (Some("s"), replay));
        assert_eq!(picked(&route, &snapshot), Ok(2), "what failed before counts no more");
    }
    assert_eq!(route.follow(b"region=lhr", &source, &world).unwrap_err().code, ErrorCode::PA02);
}

#[test]
fn instructions_that_lead_nowhere_have_their_codes() {
    let snapshot = snapshot(&["iad"]);
    let regions = Regions::default();
    let source = machine(1, "iad");
    let code = |instruction: &[u8]| {
        let mut route = route(&snapshot);
        let stop = route.follow(instruction, &source, &world(&snapshot, &regions)).err()?;
        assert!(stop.why.is_some(), "{stop:?}");
        Some(stop.code)
    };
    assert_eq!(code(b"region=nowhere"), Some(ErrorCode::PA03));
    assert_eq!(code(b"app=others"), Some(ErrorCode::PA05));
    assert_eq!(code(b"instance=0000000000000f"), Some(ErrorCode::PR02));
    let mut alone = route(&snapshot);
    alone.follow(b"elsewhere=true", &source, &world(&snapshot, &regions)).unwrap();
    assert_eq!(picked(&alone, &snapshot), Err(ErrorCode::PR01), "there is nobody else");
}

proptest! {
    /// SPEC LB-6: however attempts fail, a request ends, and no Machine that spoke against itself is
    /// asked twice.
    #[test]
    fn a_route_ends(seed: u64, machines in 1usize..12, failures in proptest::collection::vec(0u8..4, 100)) {
        let names: Vec<_> = ["iad", "lhr", "nrt"].iter().cycle().take(machines).copied().collect();
        let snapshot = snapshot(&names);
        let regions = Regions::default();
        let mut route = route(&snapshot);
        let mut rng = Seed::new(seed);
        let (mut asked, mut steps) = (Vec::new(), Steps::default());
        for failure in failures {
            let pen = steps.at(Duration::ZERO);
            let decided = route.decide(&world(&snapshot, &regions), |_| true, &mut rng, pen);
            let Ok(decision) = decided else { break };
            let id = decision.pick.candidate.machine.record.id;
            prop_assert!(!asked.contains(&id));
            prop_assert_eq!(decision.alternatives, false, "no node is alive in this snapshot");
            let failure = match failure {
                0 => Failure::Unreachable,
                1 => Failure::Refused(RefuseReason::Full),
                2 => Failure::Refused(RefuseReason::Stopped),
                _ => Failure::Broken { code: ErrorCode::PU04, reached_app: true },
            };
            if route.after_failure(id, failure, false, REPEATABLE).is_err() { break }
            asked.push(id);
        }
        prop_assert!(asked.len() <= machines);
    }
}
