//! A story in words.

use crate::code::ErrorCode;
use crate::retry::Failure;
use crate::wire::RefuseReason;

use super::{Decided, Ended, Failed, Judged, Relayed, Step, Story, Verdict};

/// Facts older than so many milliseconds are told with their age.
const FRESH_MS: u32 = 1_000;

/// The story, one line each: a heading, the steps with their numbers, the end. `begun` is the time at
/// which the request's head came. No line ends in blanks.
pub fn lines(story: &Story, begun: &str) -> Vec<String> {
    let Story { request_id, method, path, steps, .. } = story;
    let region = request_id.region;
    let app = story.app.as_ref().map(|app| format!(" for the app {app}")).unwrap_or_default();
    let edge = story.edge.as_ref().map(|edge| format!(" {edge}")).unwrap_or_default();
    let trace = story.trace_id.map(|id| format!(", trace {id}")).unwrap_or_default();
    let mut lines = vec![
        format!("request {request_id}: {method} {path}{app}"),
        format!("at the edge{edge} ({region}), {begun}{trace}"),
    ];
    let mut number = 0;
    let mut numbered = |text: String| {
        number += 1;
        format!("{number:>3}. {text}")
    };
    for step in steps {
        let (first, more) = tell(step);
        lines.push(numbered(first));
        lines.extend(more.into_iter().map(|line| format!("     {line}")));
    }
    if story.steps_left_out > 0 {
        lines.push(format!("     … {} more steps", story.steps_left_out));
    }
    lines.push(numbered(ended(&story.ended)));
    lines
}

/// A step: its first line, and what stands below it.
fn tell(step: &Step) -> (String, Vec<String>) {
    match step {
        Step::Decided(decided) => decision(decided),
        Step::Failed(failed) => (failure(failed), Vec::new()),
        Step::Relayed(relayed) => {
            let Relayed { machine, via, .. } = relayed;
            (format!("to {machine} through node {via}: the edge can't reach its node"), Vec::new())
        }
        Step::Queued(queued) => {
            let took = time(queued.took_us.into());
            let end = match (queued.turn, queued.turns) {
                (true, 1) => "then it was its turn".to_owned(),
                (true, turns) => format!("then it was its turn, for the {turns}. time"),
                (false, turns) => format!("as long as it may; it had {turns} turns in vain"),
            };
            (format!("waited {took} for room, {end}"), Vec::new())
        }
        Step::Replayed(replayed) => {
            let (machine, region) = (replayed.machine, replayed.region);
            let text = format!("{machine} ({region}) answered after {}", time(replayed.at_us.into()));
            (format!("{text}: replay {} to {}", replayed.hop, replayed.to), Vec::new())
        }
        Step::NotReplayed(not) => {
            let why = not.why.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
            let (machine, region, code) = (not.machine, not.region, not.code);
            let text = format!("{machine} ({region}) answered a replay that is not followed");
            (format!("{text} ({code}){why}"), Vec::new())
        }
    }
}

fn decision(decided: &Decided) -> (String, Vec<String>) {
    let all = decided.machines.len() + decided.more as usize;
    let of = match all {
        0 => "the app has no Machine".to_owned(),
        1 => "of 1 Machine".to_owned(),
        all => format!("of {all} Machines"),
    };
    let mut more = Vec::new();
    let mut chosen = None;
    for judged in &decided.machines {
        let Judged { machine, .. } = judged;
        let place = place(judged);
        match judged.verdict {
            Verdict::Chosen => chosen = Some(format!("{machine} ({place})")),
            Verdict::Worse(worse) => more.push(format!("not {machine} ({place}): {}", worse.as_str())),
            Verdict::PassedOver(why) => more.push(format!("not {machine} ({place}): {}", why.as_str())),
        }
    }
    if decided.more > 0 {
        more.push(format!("not {} others, which are not listed", decided.more));
    }
    let reason = decided.reason.map(|reason| format!(": {}", reason.as_str())).unwrap_or_default();
    let first = match (chosen, decided.code) {
        (Some(chosen), _) => format!("{of}, chose {chosen}{reason}"),
        (None, Some(code)) => format!("{of}, chose none ({code})"),
        (None, None) => format!("{of}, chose none"),
    };
    (first, more)
}

/// Where a Machine is, how far, how loaded it seemed, and how old that is.
fn place(judged: &Judged) -> String {
    let region = judged.region;
    let Some(facts) = judged.facts else { return region.to_string() };
    let hard = facts.hard.map(|hard| format!("/{hard}")).unwrap_or_default();
    let age = match facts.age_ms {
        0..=FRESH_MS => String::new(),
        u32::MAX => ", never confirmed".to_owned(),
        age => format!(", {} old", time(u64::from(age) * 1_000)),
    };
    format!("{region}, {}, {} of {}{hard}{age}", time(facts.rtt_us.into()), facts.load, facts.soft)
}

fn failure(failed: &Failed) -> String {
    let Failed { machine, region, code, .. } = failed;
    let load = failed.load.map(|load| format!(" ({load} in flight)")).unwrap_or_default();
    let words = match failed.failure {
        Failure::Refused(reason) => format!("refused: {}{load}", refusal(reason)),
        Failure::Unreachable => "was not reached: its node did not answer".to_owned(),
        Failure::Broken { reached_app, .. } => {
            let seen = match (failed.stale, reached_app) {
                (true, _) => "an old connection closed, nothing speaks against it",
                (false, true) => "the app may have seen the request",
                (false, false) => "the app has seen nothing of it",
            };
            format!("failed: {}; {seen}", help(*code))
        }
    };
    format!("{machine} ({region}) {words} ({code}, after {})", time(failed.took_us.into()))
}

fn refusal(reason: RefuseReason) -> &'static str {
    match reason {
        RefuseReason::Full => "at its hard limit",
        RefuseReason::Stopped => "not started",
        RefuseReason::Unknown => "not on that node",
        RefuseReason::Cordoned => "cordoned",
        RefuseReason::Unhealthy => "its checks fail",
        RefuseReason::NoService => "no service on the port",
        RefuseReason::Draining => "its node drains",
        RefuseReason::Connect(code) => help(code),
        RefuseReason::Hops => "too many hops",
        RefuseReason::Unreachable => "its node is out of reach of the node in between",
    }
}

/// What happened, without what to do.
fn help(code: ErrorCode) -> &'static str {
    let help = code.help();
    help.split(';').next().unwrap_or(help)
}

fn ended(ended: &Ended) -> String {
    let took = time(ended.took_us);
    let Some(status) = ended.status else {
        return format!("the client went after {took}, before there was an answer");
    };
    let who = match (&ended.code, ended.machine) {
        (None, Some(machine)) => machine.to_string(),
        _ => "the edge itself".to_owned(),
    };
    let code = ended.code.as_deref().map(|code| format!(" {code}")).unwrap_or_default();
    let why = ended.why.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
    let cut = if ended.complete { "" } else { ", cut off" };
    format!("{who} answered {status}{code} ({} bytes in {took}{cut}){why}", ended.sent)
}

/// A time: in milliseconds, with a decimal below ten.
fn time(us: u64) -> String {
    match us {
        0 => "0 ms".to_owned(),
        1..10_000 => format!("{:.1} ms", us as f64 / 1e3),
        10_000..10_000_000 => format!("{} ms", us / 1_000),
        _ => format!("{} s", us / 1_000_000),
    }
}
