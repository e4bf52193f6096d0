//! What only several sections together can get wrong.

use std::collections::BTreeSet;

use super::diagnostic::Report;
use super::model::AppConfig;
use super::read::{Claim, Places};
use crate::near::nearest;

/// Reports every contradiction between sections.
pub(super) fn check(config: &AppConfig, places: &Places, report: &mut Report<'_>) {
    ports(&places.claims, report);
    groups(config, places, report);
    for (name, span, path) in &places.portless_checks {
        let Some(check) = config.checks.get(name) else { continue };
        let groups =
            if check.processes.is_empty() { vec![config.default_group()] } else { check.processes.clone() };
        if let Some(group) = groups.iter().find(|group| !config.serves_http(group)) {
            let message = format!(
                "this check needs a `port`: the group {:?} has no http_service to take one from",
                group.as_str()
            );
            report.error(span.clone(), path, message);
        }
    }
}

/// Two services of an app may not claim the same port and protocol (SPEC SVC-3).
fn ports(claims: &[Claim], report: &mut Report<'_>) {
    for udp in [false, true] {
        let mut sorted: Vec<&Claim> = claims.iter().filter(|claim| claim.udp == udp).collect();
        sorted.sort_by_key(|claim| (*claim.range.start(), claim.span.start));
        let mut widest: Option<&Claim> = None;
        for claim in sorted {
            if let Some(other) = widest.filter(|other| other.range.end() >= claim.range.start()) {
                let (first, second) =
                    if other.span.start <= claim.span.start { (other, claim) } else { (claim, other) };
                let message = format!(
                    "{} port {} is taken by {} already",
                    if udp { "UDP" } else { "TCP" },
                    claim.range.start(),
                    first.path
                );
                report.error(second.span.clone(), &second.path, message);
            }
            if widest.is_none_or(|other| other.range.end() < claim.range.end()) {
                widest = Some(claim);
            }
        }
    }
}

/// Sections name process groups that exist, and services name one when there are any
/// (`COMPAT` 4, rule 9).
fn groups(config: &AppConfig, places: &Places, report: &mut Report<'_>) {
    let names = config.groups();
    let known: BTreeSet<&str> = names.iter().map(|group| group.as_str()).collect();
    for (group, span, path) in &places.groups {
        if !known.contains(group.as_str()) {
            let near = if report.is_full() { None } else { nearest(group.as_str(), known.iter().copied()) };
            let hint = near.map_or_else(String::new, |near| format!("; did you mean {near:?}?"));
            let message = format!("there is no process group {:?}{hint}", group.as_str());
            report.error(span.clone(), path, message);
        }
    }
    if !config.processes.is_empty() {
        for (span, path) in &places.without_groups {
            let message = "with [processes] a service needs `processes`, the groups it belongs to";
            report.error(span.clone(), path, message.into());
        }
    }
}
