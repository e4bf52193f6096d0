//! Each cause counts only where and when it was.

use super::*;
use crate::request::{Asked, Desk, End, Stopped};
use skein_core::balance::Constraint;
use skein_core::code::ErrorCode;
use skein_core::queue::Want;
use skein_core::region::Regions;
use skein_core::retry::Failure;
use skein_core::wire::RefuseReason;
use ulid::Ulid;

const EDGE: NodeNumber = NodeNumber(1);
const UP: NodeStatus = NodeStatus { runs: true, answers: true, draining: false };
const STARTED: Status = Status { exists: true, started: true, healthy: true, cordoned: false };

fn machine(number: u64) -> MachineId {
    MachineId::from_bits(number)
}

/// An edge, and a started Machine with room for one on each of nodes 2 and 3, for a minute.
fn reference() -> Reference {
    let mut reference = Reference::default();
    reference.app(0, AppId(Ulid(1)));
    for node in 1..=3 {
        reference.node(0, NodeNumber(node), UP);
    }
    for number in 2..=3 {
        let region = "ams".parse().unwrap();
        reference.deploy(machine(number), AppId(Ulid(1)), NodeNumber(number as u32), region, Some(1));
        reference.machine(0, machine(number), STARTED);
    }
    reference
}

fn at(second: u64) -> Micros {
    second * SECOND
}

fn failed(number: u64, second: u64, failure: Failure) -> Failed {
    Failed { machine: machine(number), node: NodeNumber(number as u32), via: None, at: at(second), failure }
}

const SILENT: Failure = Failure::Broken { code: ErrorCode::PM02, reached_app: true };
const GONE: Failure = Failure::Refused(RefuseReason::Unknown);

#[test]
fn an_attempt_is_broken_off_only_by_trouble_of_its_own_node_or_links_while_it_ran() {
    let mut reference = reference();
    reference.node(at(60), NodeNumber(2), NodeStatus { answers: false, ..UP });
    reference.link(at(60), NodeNumber(3), NodeNumber(2), true);
    let cause = |reference: &Reference, number, second| {
        reference.attempt_failed(EDGE, &failed(number, second, SILENT), at(99), at(second + 1))
    };
    assert!(cause(&reference, 2, 60).is_ok());
    assert!(cause(&reference, 3, 60).is_err(), "trouble of another node and another link");
    assert!(cause(&reference, 2, 57).is_err(), "it came later");
    reference.node(at(62), NodeNumber(2), UP);
    assert!(cause(&reference, 2, 63).is_ok(), "silence from before counts for a moment");
    assert!(cause(&reference, 2, 64).is_err());
    reference.link(at(70), EDGE, NodeNumber(3), true);
    assert!(cause(&reference, 3, 70).is_ok());
}

#[test]
fn a_machine_refuses_only_for_what_was_true_of_itself() {
    let mut reference = reference();
    reference.begins(at(60), machine(2));
    let cause = |reference: &Reference, number, second, reason| {
        let failed = failed(number, second, Failure::Refused(reason));
        reference.attempt_failed(EDGE, &failed, at(99), at(second + 1)).is_ok()
    };
    assert!(cause(&reference, 2, 60, RefuseReason::Full) && !cause(&reference, 3, 60, RefuseReason::Full));
    reference.ends(at(65), machine(2));
    assert!(!cause(&reference, 2, 66, RefuseReason::Full));
    assert!(!cause(&reference, 2, 66, RefuseReason::Unknown));
    reference.machine(at(67), machine(2), Status::default());
    assert!(
        cause(&reference, 2, 66, RefuseReason::Unknown) && cause(&reference, 2, 66, RefuseReason::Stopped)
    );
    assert!(!cause(&reference, 2, 66, RefuseReason::Draining));
}

/// The end of a request that came at second 60 and found no Machine left.
fn end(reference: &Reference, code: ErrorCode, tried: &[Failed]) -> Result<&'static str, String> {
    let app = AppId(Ulid(1));
    let asked = Asked { id: 1, app, post: false, takes: 0, instruction: None, deadline: at(80) };
    let exclude = tried.iter().map(|failed| failed.machine).collect();
    let constraint = Constraint { exclude, ..Constraint::default() };
    let desk = Desk { failed: tried.to_vec(), constraint, stopped: Stopped::Decision, ..Desk::default() };
    reference.confirm(EDGE, End::Code(code), &asked, &desk, &Regions::default(), (at(60), at(61)))
}

#[test]
fn a_request_fails_only_when_no_machine_that_its_edge_knew_was_left() {
    let (second, third) = (failed(2, 60, GONE), failed(3, 60, GONE));
    let mut reference = reference();
    assert!(end(&reference, ErrorCode::PR02, &[second]).is_err(), "the third was not tried");
    assert!(end(&reference, ErrorCode::PR02, &[second, third]).is_ok());
    assert!(end(&reference, ErrorCode::PM02, &[second, third]).is_err(), "not what they said");
    assert!(end(&reference, ErrorCode::PR04, &[second, third]).is_err());
    // Trouble elsewhere does not excuse it.
    reference.link(at(50), NodeNumber(2), NodeNumber(3), true);
    reference.node(at(50), NodeNumber(2), NodeStatus { answers: false, ..UP });
    assert!(end(&reference, ErrorCode::PR02, &[second]).is_err());
    // One that stopped too long ago to be still unknown does not either, one that just did so does.
    reference.machine(at(30), machine(3), Status { started: false, ..STARTED });
    reference.machine(at(31), machine(3), STARTED);
    assert!(end(&reference, ErrorCode::PR02, &[second]).is_err());
    reference.link(at(30), NodeNumber(3), EDGE, true);
    assert!(end(&reference, ErrorCode::PR02, &[second]).is_ok(), "the edge has not heard of it since");
}

#[test]
fn what_is_known_dates_from_before_the_trouble_that_kept_news_away() {
    let spans = |spans: &[(u64, u64)]| spans.iter().map(|(a, b)| (at(*a), at(*b))).collect();
    let since = |all: &[(u64, u64)]| since(spans(all), at(60), FACTS);
    assert_eq!(since(&[]), at(59));
    assert_eq!(since(&[(10, 20)]), at(59), "long over");
    assert_eq!(since(&[(50, 57)]), at(49));
    assert_eq!(since(&[(50, 57), (40, 48)]), at(39), "there was no time in between");
    assert_eq!(since(&[(50, 57), (40, 45)]), at(49));
}

fn wants() -> (Constraint, Want) {
    (Constraint::default(), Want::default())
}

#[test]
fn lb_4_who_came_first_and_waits_idle_is_let_try_first() {
    let (mut reference, app) = (reference(), AppId(Ulid(1)));
    let mut join = |request, edge| reference.joins(at(60), edge, request, app, wants());
    join(1, EDGE);
    join(2, EDGE);
    join(3, NodeNumber(2));
    assert_eq!(reference.waiting(EDGE, app), (2, 2));
    assert_eq!(reference.tries(EDGE, 2), Some(1), "the first waits");
    assert_eq!(reference.passes(EDGE, app, &Want::default()), Some(1), "a newcomer too");
    reference.waits_on(EDGE, 2);
    assert_eq!((reference.tries(EDGE, 1), reference.tries(EDGE, 2)), (None, None), "both try");
    assert_eq!(reference.tries(NodeNumber(2), 3), None, "another edge's line is another one");
}

#[test]
fn lb_4_a_slot_that_is_kept_is_no_others_until_it_is_kept_no_longer() {
    let mut reference = reference();
    let (id, far) = (machine(2), NodeNumber(3));
    let take = |reference: &mut Reference, now, edge| {
        reference.begins(now, id);
        reference.takes(now, id, edge)
    };
    let first = take(&mut reference, at(60), EDGE);
    assert_eq!((first.free, first.others), (Some(1), 0));
    assert_eq!(reference.refuses(at(60), id, far), (0, 0));
    reference.ends(at(61), id);
    reference.offers(at(61), id, far);
    assert_eq!(reference.refuses(at(61), id, EDGE), (1, 1), "it is free, and kept for the other");
    let stolen = take(&mut reference, at(61) + 1, EDGE);
    assert!(stolen.free <= Some(stolen.others), "{stolen:?}");
    reference.ends(at(61) + 2, id);
    let late = take(&mut reference, at(62), EDGE);
    assert_eq!(late.others, 0, "it was kept for a moment only");
}

#[test]
fn lb_9_retries_are_counted_beside_ten_or_a_fifth_of_the_requests() {
    let (mut reference, app) = (reference(), AppId(Ulid(1)));
    for _ in 0..10 {
        let (retries, most) = reference.retries(at(60), EDGE, app);
        assert!(retries <= most && most == 10);
    }
    assert_eq!(reference.retries(at(69), EDGE, app), (11, 10), "the window is ten seconds");
    assert_eq!(reference.retries(at(70), EDGE, app), (2, 10));
    for _ in 0..100 {
        reference.requests(at(70), EDGE, app);
    }
    assert_eq!(reference.retries(at(71), EDGE, app), (3, 20));
    assert_eq!(reference.retries(at(71), NodeNumber(2), app), (1, 10), "each edge has its own");
}
