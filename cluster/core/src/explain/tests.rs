use std::sync::Arc;

use proptest::prelude::*;
use ulid::Ulid;

use super::*;
use crate::load::Limits;
use crate::machine::MachineState;
use crate::random::Seed;
use crate::testing;
use crate::wire::RefuseReason;

fn view(id: u64, region: &str) -> MachineView {
    MachineView {
        record: Arc::new(testing::record(id)),
        node: NodeNumber(id as u32),
        region: region.parse().unwrap(),
        config: None,
        seen_ms: 0,
        estimate: Arc::default(),
    }
}

fn candidate(machine: &MachineView, rtt_ms: u64, load: u32) -> Candidate<'_> {
    Candidate {
        machine,
        service: 0,
        limits: Limits::new(Some(20), Some(25)),
        load,
        rtt: Duration::from_millis(rtt_ms),
        suspect: false,
        alive: true,
        out: false,
        silent: false,
        age: Duration::ZERO,
    }
}

fn story(number: u128, steps: Steps) -> Story {
    let (steps, steps_left_out) = steps.end();
    Story {
        request_id: RequestId { ulid: Ulid(number), region: "iad".parse().unwrap() },
        trace_id: None,
        begun_ms: 0,
        edge: None,
        app: Some("hello".parse().unwrap()),
        org_id: Some(testing::ORG),
        method: method(&Method::GET),
        path: "/".into(),
        steps,
        steps_left_out,
        ended: Ended {
            status: Some(200),
            machine: Some(MachineId::from_bits(1)),
            complete: true,
            ..Ended::default()
        },
    }
}

/// Decides among `verdicts` as the edge does, and answers what was written down.
fn decide(
    verdicts: &[balance::Verdict<'_>],
    constraint: &Constraint,
    seed: u64,
) -> (Steps, Option<MachineId>) {
    let regions = Regions::default();
    let able: Vec<_> = verdicts.iter().filter_map(|(_, verdict)| verdict.as_ref().ok().copied()).collect();
    let pick = balance::pick(&able, constraint, &regions, &mut Seed::new(seed));
    let mut steps = Steps::default();
    steps.at(Duration::ZERO).decided(verdicts, pick.as_ref().ok_or(ErrorCode::PR01), constraint, &regions);
    (steps, pick.map(|pick| pick.candidate.machine.record.id))
}

fn decision_of(steps: &Steps) -> &Decided {
    let Some(Step::Decided(decided)) = steps.steps.last() else { panic!("{steps:?}") };
    decided
}

fn verdict(steps: &Steps, id: u64) -> Verdict {
    decision_of(steps).machines.iter().find(|judged| judged.machine.bits() == id).unwrap().verdict
}

#[test]
fn each_machine_that_was_not_chosen_says_why() {
    let regions = ["iad", "iad", "iad", "iad", "iad", "lhr", "lhr", "iad", "iad", "iad"];
    let views: Vec<_> = (1..).zip(regions).map(|(id, region)| view(id, region)).collect();
    let all = |id: usize, rtt, load| candidate(&views[id - 1], rtt, load);
    let verdicts: Vec<balance::Verdict<'_>> = vec![
        (&views[0], Ok(all(1, 1, 3))),
        (&views[1], Ok(all(2, 1, 4))),
        (&views[2], Ok(all(3, 1, 20))),
        (&views[3], Ok(all(4, 1, 25))),
        (&views[4], Ok(all(5, 7, 0))),
        (&views[5], Ok(all(6, 76, 0))),
        (&views[6], Err(PassedOver::Cordoned)),
        (&views[7], Ok(Candidate { suspect: true, ..all(8, 0, 0) })),
        (&views[8], Ok(Candidate { age: Duration::from_secs(6), ..all(9, 0, 0) })),
        (&views[9], Ok(Candidate { alive: false, ..all(10, 0, 0) })),
    ];
    let (steps, chosen) = decide(&verdicts, &Constraint::default(), 1);
    assert_eq!(chosen, Some(MachineId::from_bits(1)));
    let decided = decision_of(&steps);
    assert_eq!((decided.candidates, decided.reason, decided.more), (9, Some(PickReason::Nearest), 0));
    assert_eq!(decided.machines[0].verdict, Verdict::Chosen);
    assert_eq!(decided.machines.last().unwrap().verdict, Verdict::PassedOver(PassedOver::Cordoned));
    let why = [
        (2, Worse::MoreLoaded),
        (3, Worse::AboveSoft),
        (4, Worse::Full),
        (5, Worse::Further),
        (6, Worse::Further),
        (8, Worse::Suspect),
        (9, Worse::Old),
        (10, Worse::Dead),
    ];
    for (id, worse) in why {
        assert_eq!(verdict(&steps, id), Verdict::Worse(worse), "{id}");
    }
    let facts = decided.machines[0].facts.unwrap();
    assert_eq!((facts.rtt_us, facts.load, facts.soft, facts.hard, facts.age_ms), (1_000, 3, 20, Some(25), 0));
    assert_eq!(
        steps.passed_over(),
        "1 more loaded, 1 at its soft limit, 1 at its hard limit, 2 further away, 1 its node is silent, \
         1 what is known of it is old, 1 its node is dead, 1 cordoned"
    );
}

#[test]
fn turns_in_vain_are_one_wait_and_a_replay_begins_another() {
    let machine = view(1, "iad");
    let verdicts = [(&machine, Ok(candidate(&machine, 0, 25)))];
    let (mut steps, _) = decide(&verdicts, &Constraint::default(), 1);
    let (ms, regions) = (Duration::from_millis, Regions::default());
    let full = Failure::Refused(RefuseReason::Full);
    for turn in 1..=300 {
        steps.at(ms(turn)).queued(ms(1), true);
        let pick = Pick { candidate: candidate(&machine, 0, 25), reason: PickReason::Only };
        steps.at(ms(turn)).decided(&verdicts, Ok(&pick), &Constraint::default(), &regions);
        steps.at(ms(turn)).failed(&machine, full, Some(25), false, ms(0));
    }
    let [Step::Decided(_), Step::Queued(queued), Step::Decided(last), Step::Failed(_)] = &steps.steps[..]
    else {
        panic!("{steps:#?}")
    };
    assert_eq!(
        (*queued, last.at_us),
        (Queued { at_us: 300_000, took_us: 300_000, turns: 300, turn: true }, 300_000)
    );
    assert_eq!((steps.listed, steps.left_out), (2, 0));
    steps.at(ms(400)).told_to_replay(&machine, 1, Ok(&Replay { elsewhere: true, ..Replay::default() }));
    steps.at(ms(500)).queued(ms(100), false);
    let waits = steps.steps.iter().filter(|step| matches!(step, Step::Queued(_)));
    assert_eq!(waits.count(), 2);
    let told = lines(&story(1, steps), "");
    assert_eq!(told[3], "  2. waited 300 ms for room, then it was its turn, for the 300. time");
    assert_eq!(told[7], "  6. waited 100 ms for room, as long as it may; it had 0 turns in vain");
}

/// Round trips that differ by at most 5 ms from the shortest count as equal, not from the chosen one's.
#[test]
fn a_machine_is_too_far_when_a_nearer_one_says_so_although_the_chosen_one_is_not_that_near() {
    let views = [view(1, "iad"), view(2, "iad"), view(3, "iad")];
    let verdicts: Vec<balance::Verdict<'_>> = vec![
        (&views[0], Ok(candidate(&views[0], 0, 5))),
        (&views[1], Ok(candidate(&views[1], 4, 1))),
        (&views[2], Ok(candidate(&views[2], 6, 1))),
    ];
    let (steps, chosen) = decide(&verdicts, &Constraint::default(), 1);
    assert_eq!(chosen, Some(MachineId::from_bits(2)));
    assert_eq!(verdict(&steps, 1), Verdict::Worse(Worse::MoreLoaded));
    assert_eq!(verdict(&steps, 3), Verdict::Worse(Worse::Further));
}

#[test]
fn what_is_outside_the_region_that_is_asked_for_or_preferred_says_so() {
    let views = [view(1, "iad"), view(2, "lhr"), view(3, "lhr")];
    let verdicts: Vec<balance::Verdict<'_>> =
        views.iter().map(|view| (view, Ok(candidate(view, view.record.id.bits(), 0)))).collect();
    let asked = Constraint { regions: vec!["nrt".into(), "eu".into()], ..Constraint::default() };
    let preferred = Constraint { prefer: vec!["lhr".into()], ..Constraint::default() };
    for constraint in [asked, preferred] {
        let (steps, chosen) = decide(&verdicts, &constraint, 1);
        assert_ne!(chosen, Some(MachineId::from_bits(1)));
        assert_eq!(verdict(&steps, 1), Verdict::Worse(Worse::Elsewhere), "{constraint:?}");
    }
    let nowhere = Constraint { regions: vec!["nrt".into()], ..Constraint::default() };
    let (steps, chosen) = decide(&verdicts, &nowhere, 1);
    let decided = decision_of(&steps);
    assert_eq!((chosen, decided.code, decided.reason), (None, Some(ErrorCode::PR01), None));
    assert!(decided.machines.iter().all(|judged| judged.verdict == Verdict::Worse(Worse::Elsewhere)));
}

#[test]
fn a_story_reads_in_the_order_of_what_happened() {
    let (near, far) = (view(1, "iad"), view(2, "lhr"));
    let verdicts = [
        (&near, Ok(candidate(&near, 0, 2))),
        (&far, Ok(Candidate { age: Duration::from_millis(1_500), ..candidate(&far, 76, 0) })),
    ];
    let (mut steps, _) = decide(&verdicts, &Constraint::default(), 1);
    let full = Failure::Refused(RefuseReason::Full);
    steps.at(Duration::from_millis(12)).failed(&near, full, Some(25), false, Duration::from_micros(1_200));
    steps.at(Duration::from_millis(12)).queued(Duration::from_millis(11), true);
    let again = [(&near, Err(PassedOver::Tried)), (&far, Ok(candidate(&far, 76, 0)))];
    let regions = Regions::default();
    let pick = Pick { candidate: candidate(&far, 76, 0), reason: PickReason::Only };
    steps.at(Duration::from_millis(12)).decided(&again, Ok(&pick), &Constraint::default(), &regions);
    let replay = Replay { instance: Some("x".into()), state: Some("secret".into()), ..Replay::default() };
    steps.at(Duration::from_millis(90)).told_to_replay(&far, 1, Ok(&replay));
    let stop = Stop { code: ErrorCode::PA03, why: Some("no".into()) };
    steps.at(Duration::from_millis(99)).told_to_replay(&far, 2, Err(&stop));
    let mut story = story(7, steps);
    story.edge = Some("iad-1".parse().unwrap());
    story.trace_id = Some(TraceId(10));
    story.ended = Ended {
        status: Some(502),
        code: Some("PA03".into()),
        why: Some("the instruction is not valid".into()),
        machine: Some(far.record.id),
        took_us: 99_000,
        sent: 80,
        complete: true,
    };
    assert!(story.is_notable());
    let told = lines(&story, "1970-01-01T00:00:00Z");
    let wanted = [
        "request 00000000000000000000000007-iad: GET / for the app hello",
        "at the edge iad-1 (iad), 1970-01-01T00:00:00Z, trace 0000000000000000000000000000000a",
        "  1. of 2 Machines, chose 00000000000001 (iad, 0 ms, 2 of 20/25): nearest",
        "     not 00000000000002 (lhr, 76 ms, 0 of 20/25, 1500 ms old): further away",
        "  2. 00000000000001 (iad) refused: at its hard limit (25 in flight) (PR04, after 1.2 ms)",
        "  3. waited 11 ms for room, then it was its turn",
        "  4. of 2 Machines, chose 00000000000002 (lhr, 76 ms, 0 of 20/25): only",
        "     not 00000000000001 (iad): tried",
        "  5. 00000000000002 (lhr) answered after 90 ms: replay 1 to instance=x",
        "  6. 00000000000002 (lhr) answered a replay that is not followed (PA03): no",
        "  7. the edge itself answered 502 PA03 (80 bytes in 99 ms): the instruction is not valid",
    ];
    assert_eq!(told, wanted);
    let json = serde_json::to_string(&story).unwrap();
    assert!(!json.contains("secret"), "{json}");
    assert_eq!(serde_json::from_str::<Story>(&json).unwrap(), story);
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    let steps = &value["steps"];
    assert_eq!(
        (&steps[1]["step"], &steps[1]["failure"]["refused"], &steps[1]["code"]),
        (&"failed".into(), &"full".into(), &"PR04".into())
    );
    assert_eq!(steps[0]["machines"][1]["verdict"]["worse"], "further");
    assert_eq!(steps[3]["machines"][1]["verdict"]["passed_over"], "tried");
}

#[test]
fn a_client_that_went_and_an_answer_that_was_cut_off_are_told_as_such() {
    let end = |ended: Ended| lines(&Story { ended, ..story(1, Steps::default()) }, "").pop().unwrap();
    let went = Ended { took_us: 5_000_000, ..Ended::default() };
    assert_eq!(end(went), "  1. the client went after 5000 ms, before there was an answer");
    let cut =
        Ended { status: Some(200), machine: Some(MachineId::from_bits(1)), sent: 9, ..Ended::default() };
    assert_eq!(end(cut), "  1. 00000000000001 answered 200 (9 bytes in 0 ms, cut off)");
}

#[test]
fn an_id_is_a_requests_or_a_traces() {
    let request = "01JNRQ9VVKJ7HZFMJWJB3M3RYN-iad";
    assert!(matches!(request.parse(), Ok(Wanted::Request(_))));
    let trace = "0af7651916cd43dd8448eb211c80319c";
    assert!(matches!(trace.parse(), Ok(Wanted::Trace(_))));
    for text in [request, trace] {
        assert_eq!(text.parse::<Wanted>().unwrap().to_string(), text);
    }
    let long = "a".repeat(10_000);
    for bad in
        ["", "hello", "01JNRQ9VVKJ7HZFMJWJB3M3RYN", "01jnrq9vvkj7hzfmjwjb3m3ryn-iad", &"0".repeat(32), &long]
    {
        let error = bad.parse::<Wanted>().unwrap_err().to_string();
        assert!(error.len() < 300, "{error}");
    }
}

#[test]
fn the_newest_are_kept_and_what_failed_longer_than_what_went_well() {
    let kept = Kept::new(8);
    assert_eq!(kept.limits(), (8, 2));
    let id = |number| Wanted::Request(story(number, Steps::default()).request_id);
    let failed = |number| {
        let ended = Ended { status: Some(503), code: Some("PR01".into()), ..Ended::default() };
        Story { ended, trace_id: Some(TraceId(5)), ..story(number, Steps::default()) }
    };
    kept.keep(Box::new(failed(1)));
    kept.keep(Box::new(failed(2)));
    for number in 10..110 {
        kept.keep(Box::new(story(number, Steps::default())));
    }
    let found: Vec<u128> = (0..120).filter(|number| kept.find(id(*number)).is_some()).collect();
    assert_eq!(found, [&[1, 2][..], &(102..110).collect::<Vec<_>>()].concat());
    assert_eq!(
        kept.find(Wanted::Trace(TraceId(5))).unwrap().request_id.ulid,
        Ulid(2),
        "the newest of a trace"
    );
    assert_eq!(kept.find(Wanted::Trace(TraceId(6))), None);
    kept.keep(Box::new(failed(3)));
    assert!(kept.find(id(1)).is_none() && kept.find(id(2)).is_some());
}

#[test]
fn a_refusal_of_a_name_or_a_target_does_not_push_out_what_failed() {
    let ended = Ended { status: Some(404), code: Some("unknown-host".into()), ..Ended::default() };
    assert!(!Story { ended, ..story(1, Steps::default()) }.is_notable());
}

#[test]
fn many_threads_write_and_read_at_once_and_none_waits_for_another() {
    let kept = Kept::new(16);
    std::thread::scope(|scope| {
        for thread in 0..4u128 {
            let kept = &kept;
            scope.spawn(move || {
                for number in 0..500 {
                    kept.keep(Box::new(story(thread * 1_000 + number, Steps::default())));
                    let wanted = Wanted::Request(story(number, Steps::default()).request_id);
                    if let Some(found) = kept.find(wanted) {
                        assert!(wanted.is(&found));
                    }
                }
            });
        }
    });
    let last = story(9_999, Steps::default());
    kept.keep(Box::new(last.clone()));
    assert_eq!(kept.find(Wanted::Request(last.request_id)), Some(last));
}

/// The memory that a story takes.
fn bytes(story: &Story) -> usize {
    let of = |step: &Step| match step {
        Step::Decided(decided) => decided.machines.capacity() * size_of::<Judged>(),
        Step::Failed(_) | Step::Queued(_) | Step::Relayed(_) => 0,
        Step::Replayed(replayed) => replayed.to.len(),
        Step::NotReplayed(not) => not.why.as_deref().map_or(0, str::len),
    };
    size_of::<Story>()
        + story.path.len()
        + story.ended.why.as_deref().map_or(0, str::len)
        + story.steps.capacity() * size_of::<Step>()
        + story.steps.iter().map(of).sum::<usize>()
}

#[test]
fn what_most_requests_keep_is_small() {
    assert!(size_of::<Judged>() <= 48, "{}", size_of::<Judged>());
    assert!(size_of::<Step>() <= 72, "{}", size_of::<Step>());
    assert!(size_of::<Story>() <= 320, "{}", size_of::<Story>());
    let views = [view(1, "iad"), view(2, "lhr"), view(3, "nrt")];
    let verdicts: Vec<balance::Verdict<'_>> =
        views.iter().map(|view| (view, Ok(candidate(view, 1, 0)))).collect();
    let (steps, _) = decide(&verdicts, &Constraint::default(), 1);
    let kept = bytes(&story(1, steps));
    assert!(kept <= 560, "{kept}");
}

fn machines() -> impl Strategy<Value = Vec<(u8, u8, u8, u8)>> {
    proptest::collection::vec((0u8..3, 0u8..5, prop_oneof![0u8..3, 0u8..30], 0u8..12), 1..12)
}

/// One more than a decision lists, now and then.
const CROWD: usize = 90;

proptest! {
    /// Whoever could have been chosen by other lots is told to be as good, and nobody else is.
    #[test]
    fn only_lots_decide_between_those_that_are_told_to_be_as_good(
        machines in machines(), prefer in 0u8..4, seed: u64
    ) {
        let regions = ["iad", "lhr", "nrt"];
        let views: Vec<_> = (1..).zip(&machines).map(|(id, m)| view(id, regions[usize::from(m.0)])).collect();
        let verdicts: Vec<balance::Verdict<'_>> = views.iter().zip(&machines).map(|(view, (_, rtt, load, kind))| {
            let able = candidate(view, u64::from(*rtt) * 2, u32::from(*load));
            let verdict = match kind {
                0 => Err(PassedOver::NotStarted(MachineState::Stopped)),
                1 => Ok(Candidate { suspect: true, ..able }),
                2 => Ok(Candidate { alive: false, ..able }),
                3 => Ok(Candidate { age: Duration::from_secs(9), ..able }),
                4 => Ok(Candidate { out: true, ..able }),
                _ => Ok(able),
            };
            (view, verdict)
        }).collect();
        let constraint = match prefer {
            0 => Constraint { prefer: vec!["lhr".into()], ..Constraint::default() },
            1 => Constraint { regions: vec!["nrt".into(), "eu".into()], ..Constraint::default() },
            _ => Constraint::default(),
        };
        let (steps, chosen) = decide(&verdicts, &constraint, seed);
        let tied = |judged: &&Judged| matches!(judged.verdict, Verdict::Chosen | Verdict::Worse(Worse::Tie));
        let mut as_good: Vec<_> = decision_of(&steps).machines.iter().filter(tied).map(|j| j.machine).collect();
        let mut drawn: Vec<_> =
            (0..200).filter_map(|lot| decide(&verdicts, &constraint, seed.wrapping_add(lot)).1).collect();
        as_good.sort();
        drawn.sort();
        drawn.dedup();
        prop_assert_eq!(chosen.is_some(), !as_good.is_empty());
        prop_assert_eq!(as_good, drawn);
        prop_assert_eq!(decision_of(&steps).machines.len(), machines.len());
    }

    /// However often a request is tried, and whatever apps answer, its story is bounded.
    #[test]
    fn a_story_is_bounded(
        steps in proptest::collection::vec(0u8..6, 0..400), same in proptest::option::of(0u8..6), crowd in 1usize..CROWD
    ) {
        let views: Vec<_> = (0..crowd as u64).map(|id| view(id, "iad")).collect();
        let verdicts: Vec<balance::Verdict<'_>> =
            views.iter().map(|view| (view, Ok(candidate(view, 1, u32::MAX)))).collect();
        let regions = Regions::default();
        let pick = Pick { candidate: candidate(&views[0], 1, 0), reason: PickReason::SeemsFull };
        let mut written = Steps::default();
        let long = "\u{1}é".repeat(5_000);
        for step in &steps {
            let pen = written.at(Duration::MAX);
            match same.unwrap_or(*step) {
                0 => pen.decided(&verdicts, Ok(&pick), &Constraint::default(), &regions),
                1 => pen.decided(&verdicts, Err(ErrorCode::PR01), &Constraint::default(), &regions),
                2 => pen.failed(&views[0], Failure::Refused(RefuseReason::Full), Some(u32::MAX), true, Duration::MAX),
                3 => pen.queued(Duration::MAX, true),
                4 => pen.told_to_replay(&views[0], u32::MAX, Ok(&Replay { app: Some(long.clone()), ..Replay::default() })),
                _ => pen.told_to_replay(&views[0], 1, Err(&Stop { code: ErrorCode::PA03, why: Some(long.clone()) })),
            }
        }
        prop_assert!(written.passed_over().len() <= 300);
        let mut story = story(1, written);
        story.path = bounded(&long, MAX_PATH);
        story.ended.why = Some(bounded(&long, MAX_WORDS));
        let waited = story.steps.iter().any(|step| matches!(step, Step::Queued(_)));
        prop_assert!(waited || story.steps.len() + story.steps_left_out as usize == steps.len());
        prop_assert!(story.steps.len() <= MAX_STEPS);
        prop_assert!(bytes(&story) <= MAX_BYTES, "{} bytes", bytes(&story));
        let json = serde_json::to_string(&story).unwrap();
        prop_assert!(json.len() <= MAX_JSON, "{} bytes", json.len());
        for step in &story.steps {
            if let Step::Decided(decided) = step {
                prop_assert_eq!(decided.machines.len() + decided.more as usize, crowd);
            }
        }
        prop_assert!(lines(&story, "").len() <= 4 + MAX_STEPS * 3 + MAX_LISTED_IN_ALL);
    }

    #[test]
    fn a_text_is_cut_between_letters(text in ".{0,40}", most in 0usize..60) {
        let cut = bounded(&text, most);
        prop_assert!(text.starts_with(&*cut) && cut.len() <= most && (cut.len() + 4 > most || *cut == *text));
    }
}
