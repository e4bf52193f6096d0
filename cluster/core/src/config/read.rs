//! The tree into the model: every key of the file, its synonyms and quirks (`COMPAT` section 4).

mod service;

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};

use super::diagnostic::Report;
use super::item::{Bare, Fields, Item, go_float, meant};
use super::kept::{self, Shape};
use super::model::{AppConfig, Build, Deploy, Experimental, RestartSection, TopLevelCheck, VmSection};
use super::size::{amount, preset, presets};
use super::tree::{Node, Value, short};
use super::words::split_words;
use crate::ProcessGroup;
use crate::region::{RegionCode, Regions, is_retired};

/// Signals that `StopConfig` of the Machines API names, and the one that the documentation of
/// `kill_signal` names beside them.
const SIGNALS: [&str; 8] =
    ["SIGHUP", "SIGINT", "SIGQUIT", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGTERM", "SIGSTOP"];
/// More memory than any Machine has, in mebibytes.
const MAX_MEMORY_MB: u32 = 1 << 24;

/// What the checks across sections need beside the model: the places.
#[derive(Default)]
pub(super) struct Places {
    /// Public ports, in the order of the file.
    pub(super) claims: Vec<Claim>,
    /// Mentions of process groups.
    pub(super) groups: Vec<(ProcessGroup, Range<usize>, String)>,
    /// Services that name no process group.
    pub(super) without_groups: Vec<(Range<usize>, String)>,
    /// Top-level checks without a port, by name.
    pub(super) portless_checks: Vec<(String, Range<usize>, String)>,
}

/// Ports that a service wants.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub(super) udp: bool,
    pub(super) range: RangeInclusive<u16>,
    pub(super) span: Range<usize>,
    pub(super) path: String,
}

/// Reads the root of a file.
pub(super) fn app(root: &Node, report: &mut Report<'_>) -> (AppConfig, Places) {
    let mut places = Places::default();
    let mut config = AppConfig::default();
    let Some(mut fields) = (Item { node: root, path: String::new() }).fields(report) else {
        return (config, places);
    };
    config.app = fields.take_filled("app").and_then(|item| item.parsed("an app's name", report));
    config.primary_region = fields.take_filled("primary_region").and_then(|item| region(&item, report));
    config.kill_signal = fields.take_filled("kill_signal").and_then(|item| item.one_of(&SIGNALS, report));
    config.kill_timeout = fields.take("kill_timeout").and_then(|item| kill_timeout(&item, report));
    if let Some(item) = fields.take("build") {
        config.build = item.fields(report).map(|fields| build(fields, report)).unwrap_or_default();
    }
    fields.keep_tables(&["mounts", "mount"], kept::MOUNT, &mut config.kept, report);
    if let Some(serde_json::Value::Array(mounts)) = config.kept.get_mut("mounts") {
        mounts.iter_mut().for_each(size_as_text);
    }
    fields.keep_tables(&["metrics", "metric"], kept::METRICS, &mut config.kept, report);
    if let Some(fields) = fields.take("experimental").and_then(|item| item.fields(report)) {
        experimental(fields, &mut config, report);
    }
    if let Some(item) = fields.take("deploy") {
        config.deploy = item.fields(report).map(|fields| deploy(fields, report)).unwrap_or_default();
    }
    config.env = fields.take("env").map(|item| env(&item, report)).unwrap_or_default();
    config.processes = fields.take("processes").map(|item| processes(&item, report)).unwrap_or_default();
    config.http_service = fields
        .take("http_service")
        .and_then(|item| item.fields(report))
        .map(|fields| service::http_service(fields, &mut places, report));
    config.services = fields.take("services").map_or_else(Vec::new, |item| {
        let tables = item.tables(report).into_iter().filter(|fields| !fields.is_empty());
        tables.map(|fields| service::service(fields, &mut places, report)).collect()
    });
    config.checks = fields.take("checks").map(|item| checks(&item, &mut places, report)).unwrap_or_default();
    config.restart = fields.take("restart").map_or_else(Vec::new, |item| {
        item.tables(report).into_iter().filter_map(|fields| restart(fields, &mut places, report)).collect()
    });
    // flyctl joins them in this order.
    let sizes = fields.take_tables(&["compute", "computes", "vm"], report);
    config.vm = sizes.into_iter().map(|fields| vm(fields, &mut places, report)).collect();
    fields.keep_all(kept::TOP, &mut config.kept, report);
    fields.finish(report);
    (config, places)
}

/// Files from before a region was given up still name it; where else Machines go is for the deploy.
fn region(item: &Item<'_>, report: &mut Report<'_>) -> Option<RegionCode> {
    let text = item.string("a region such as \"iad\"", report)?;
    let error = match Regions::default().find(&text) {
        Ok(region) => return Some(region.code),
        Err(error) => error,
    };
    if let Some(code) = text.parse().ok().filter(|code| is_retired(*code)) {
        let message = format!("{error}; {code} was given up: name another, or deploy with --regions");
        report.warn(item.span(), &item.path, message);
        return Some(code);
    }
    report.error(item.span(), &item.path, error.to_string());
    None
}

fn kill_timeout(item: &Item<'_>, report: &mut Report<'_>) -> Option<crate::machine::GoDuration> {
    let timeout = item.duration_or_blank(Bare::Seconds, report)?;
    if timeout.0.as_secs_f64() > 300.0 {
        report.warn(item.span(), &item.path, format!("{timeout} counts as 5m0s, the longest there is"));
    }
    Some(timeout)
}

/// A mount's size may be a number and counts as its text.
fn size_as_text(mount: &mut serde_json::Value) {
    if let Some(size) = mount.get_mut("initial_size").filter(|size| size.is_number()) {
        let float = size.as_f64().filter(|_| size.is_f64());
        *size = float.map_or_else(|| size.to_string(), go_float).into();
    }
}

fn build(mut fields: Fields<'_>, report: &mut Report<'_>) -> Build {
    let mut build = Build {
        image: fields.take("image").and_then(|item| item.string("an image's name", report)),
        ..Build::default()
    };
    fields.keep_all(kept::BUILD, &mut build.kept, report);
    fields.keep(&["build-target", "build_target"], Shape::Text, &mut build.kept, report);
    fields.finish(report);
    build
}

/// Beside its own keys it has old places of others (`COMPAT` 4, rules 5 and 6).
fn experimental(mut fields: Fields<'_>, config: &mut AppConfig, report: &mut Report<'_>) {
    let mut words = |name| {
        let item: Option<Item<'_>> = fields.take(name);
        item.map(|item| command(&item, report)).unwrap_or_default()
    };
    let (cmd, entrypoint, exec) = (words("cmd"), words("entrypoint"), words("exec"));
    if let Some(item) = fields.take("kill_timeout") {
        let timeout = kill_timeout(&item, report);
        if config.kill_timeout.is_some() {
            let message = "the `kill_timeout` at the top counts, this has no effect";
            report.warn(item.span(), &item.path, message.into());
        } else {
            config.kill_timeout = timeout;
        }
    }
    let mut metrics = serde_json::Map::new();
    for (name, new, shape) in
        [("metrics_port", "port", Shape::Whole(0, 65_535)), ("metrics_path", "path", Shape::Text)]
    {
        if let Some(item) = fields.take(name) {
            let message = "this is kept in `metrics` and has no effect in Skein";
            report.note(item.span(), &item.path, message.into());
            kept::check(&item, shape, report);
            metrics.insert(new.into(), item.node.to_json());
        }
    }
    if !metrics.is_empty() {
        config.kept.entry("metrics".into()).or_insert_with(|| serde_json::json!([metrics]));
    }
    let mut kept = BTreeMap::new();
    fields.keep_all(kept::EXPERIMENTAL, &mut kept, report);
    fields.finish(report);
    config.experimental = Experimental { cmd, entrypoint, exec, kept };
}

/// A command as a list of words; one text is one word, as flyctl reads it.
fn command(item: &Item<'_>, report: &mut Report<'_>) -> Vec<String> {
    if let Value::String(word) = &item.node.value {
        return vec![word.clone()];
    }
    item.strings("a command, as a list of strings or one string", report).unwrap_or_default()
}

fn deploy(mut fields: Fields<'_>, report: &mut Report<'_>) -> Deploy {
    let mut deploy = Deploy {
        strategy: fields
            .take_filled("strategy")
            .and_then(|item| item.one_of(&["rolling", "immediate", "canary", "bluegreen"], report)),
        max_unavailable: fields.take("max_unavailable").and_then(|item| item.number(report)),
        wait_timeout: fields.take("wait_timeout").and_then(|item| item.duration(Bare::Nanoseconds, report)),
        release_command: None,
        kept: BTreeMap::new(),
    };
    if let Some(item) = fields.take("release_command") {
        deploy.release_command =
            item.string("a command", report).and_then(|line| command_line(&item, line, report));
    }
    fields.keep_all(kept::DEPLOY, &mut deploy.kept, report);
    fields.finish(report);
    deploy
}

/// One text that must split into words.
fn command_line(item: &Item<'_>, line: String, report: &mut Report<'_>) -> Option<String> {
    if let Err(error) = split_words(&line) {
        report.error(item.span(), &item.path, error.to_string());
        return None;
    }
    Some(line)
}

/// A table, or a list of tables of which later ones win (`COMPAT` 4, rule 7).
fn env(item: &Item<'_>, report: &mut Report<'_>) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    for fields in item.tables(report) {
        for (name, span, value) in fields.all() {
            if name.is_empty() || name.contains(['=', '\0']) {
                let message = format!("{:?} cannot be the name of an environment variable", short(&name));
                report.error(span, &value.path, message);
            } else if let Some(text) = value.scalar("a string", report) {
                if text.contains('\0') {
                    report.error(value.span(), &value.path, "a value cannot contain a zero byte".into());
                }
                env.insert(name, text);
            }
        }
    }
    env
}

/// A table of command lines, or the old list of `name` and `command`, in which what is empty counts
/// as absent and the last of a name counts (`COMPAT` 4, rule 7).
fn processes(item: &Item<'_>, report: &mut Report<'_>) -> BTreeMap<ProcessGroup, String> {
    let mut groups = BTreeMap::new();
    if let Value::List(_) = &item.node.value {
        for mut fields in item.tables(report).into_iter().filter(|fields| !fields.is_empty()) {
            let line = fields.take("command").map_or_else(
                || Some(String::new()),
                |item| command_line(&item, item.scalar("a command", report)?, report),
            );
            let Some(name) = fields.take("name") else {
                let message = "a process of a list needs a `name`".into();
                report.error(fields.span.clone(), &fields.path, message);
                continue;
            };
            let text = name.scalar("a process group", report);
            let group = text.and_then(|text| name.parse::<ProcessGroup>(&text, report));
            if let Some((group, line)) = group.zip(line)
                && groups.insert(group.clone(), line).is_some()
            {
                let message =
                    format!("the process group {:?} is there twice, the last counts", group.as_str());
                report.warn(name.span(), &name.path, message);
            }
            fields.finish(report);
        }
    } else if let Some(fields) = item.fields(report) {
        for (name, span, item) in fields.all() {
            let line = item.string("a command", report).and_then(|line| command_line(&item, line, report));
            match name.parse::<ProcessGroup>() {
                Ok(group) => groups.extend(line.map(|line| (group, line))),
                Err(error) => report.error(span, &item.path, error.to_string()),
            }
        }
    }
    groups
}

/// The process groups that a section belongs to.
fn groups(fields: &mut Fields<'_>, places: &mut Places, report: &mut Report<'_>) -> Vec<ProcessGroup> {
    let Some(item) = fields.take("processes") else { return Vec::new() };
    let mut groups: Vec<ProcessGroup> = Vec::new();
    for name in item.list("a list of process groups such as [\"app\"]", report).unwrap_or_default() {
        if let Some(group) = name.parsed::<ProcessGroup>("a process group", report) {
            places.groups.push((group.clone(), name.span(), name.path.clone()));
            groups.push(group);
        }
    }
    groups
}

fn checks(item: &Item<'_>, places: &mut Places, report: &mut Report<'_>) -> BTreeMap<String, TopLevelCheck> {
    let mut checks = BTreeMap::new();
    if let Value::List(_) = &item.node.value {
        for mut fields in item.tables(report) {
            match fields.take("name").and_then(|name| name.string("a check's name", report)) {
                Some(name) => {
                    if checks.contains_key(&name) {
                        let message = format!("the check {:?} is there twice, the last counts", short(&name));
                        report.warn(fields.span.clone(), &fields.path, message);
                    }
                    if let Some(check) = top_level_check(&name, fields, places, report) {
                        checks.insert(name, check);
                    }
                }
                None => {
                    let message = "a check of a list needs a `name`".into();
                    report.error(fields.span.clone(), &fields.path, message);
                }
            }
        }
    } else if let Some(fields) = item.fields(report) {
        for (name, _, item) in fields.all() {
            let check = item.fields(report).and_then(|fields| top_level_check(&name, fields, places, report));
            if let Some(check) = check {
                checks.insert(name, check);
            }
        }
    }
    checks
}

fn top_level_check(
    name: &str,
    mut fields: Fields<'_>,
    places: &mut Places,
    report: &mut Report<'_>,
) -> Option<TopLevelCheck> {
    let kind = fields.take("type").map(|item| item.one_of(&["http", "tcp"], report));
    if kind.is_none() {
        let message = "a check needs a `type`: \"http\" or \"tcp\"".into();
        report.error(fields.span.clone(), &fields.path, message);
    }
    let port = fields.take("port").map(|item| item.port(report));
    if port.is_none() {
        places.portless_checks.push((name.to_owned(), fields.span.clone(), fields.path.clone()));
    }
    let mut probe = service::probe(&mut fields, service::Kind::TopLevel, report);
    // flyctl does this for top-level checks alone.
    probe.method = probe.method.map(|method| method.to_ascii_uppercase());
    let processes = groups(&mut fields, places, report);
    fields.finish(report);
    Some(TopLevelCheck { kind: kind.flatten()?, port: port.flatten(), probe, processes })
}

fn restart(mut fields: Fields<'_>, places: &mut Places, report: &mut Report<'_>) -> Option<RestartSection> {
    let policy = fields.take("policy").map(|item| item.one_of(&["always", "on-failure", "never"], report));
    if policy.is_none() {
        let message = "a `policy` is needed: \"always\", \"on-failure\" or \"never\"".into();
        report.error(fields.span.clone(), &fields.path, message);
    }
    let retries = fields.take("retries").and_then(|item| item.whole_or_none(1_000_000, report));
    let processes = groups(&mut fields, places, report);
    fields.finish(report);
    Some(RestartSection { policy: policy.flatten()?, retries, processes })
}

fn vm(mut fields: Fields<'_>, places: &mut Places, report: &mut Report<'_>) -> VmSection {
    let mut vm = VmSection {
        size: fields.take_filled("size").and_then(|item| size(&item, report)),
        cpu_kind: fields
            .take_filled("cpu_kind")
            .and_then(|item| item.one_of(&["shared", "performance"], report)),
        cpus: fields.take("cpus").and_then(|item| item.whole_or_none(1024, report)),
        memory_mb: fields.take("memory_mb").and_then(|item| item.whole_or_none(MAX_MEMORY_MB, report)),
        processes: groups(&mut fields, places, report),
        kept: BTreeMap::new(),
    };
    if let Some(item) = fields.take_filled("memory") {
        // As in flyctl, `memory_mb` wins.
        let memory = memory(&item, report);
        vm.memory_mb = vm.memory_mb.or(memory);
    }
    fields.keep_all(kept::VM, &mut vm.kept, report);
    fields.finish(report);
    vm
}

/// A preset that exists.
fn size(item: &Item<'_>, report: &mut Report<'_>) -> Option<String> {
    let text = item.string("a size such as \"shared-cpu-1x\"", report)?;
    if preset(&text).is_none() {
        let names: Vec<&str> = presets().map(|preset| preset.name).collect();
        let (list, hint) = (names.join(", "), meant(&text, &names));
        let message = format!("there is no size {:?}{hint}; the sizes are {list}", short(&text));
        report.error(item.span(), &item.path, message);
        return None;
    }
    Some(text)
}

/// Mebibytes: a number, or a text such as `512mb` or `1.5gb`.
fn memory(item: &Item<'_>, report: &mut Report<'_>) -> Option<u32> {
    let Value::String(text) = &item.node.value else { return item.whole(1..=MAX_MEMORY_MB, report) };
    let value = amount(text, 1024, 2).map(|mebibytes| mebibytes as u32);
    let value = value.filter(|value| (1..=MAX_MEMORY_MB).contains(value));
    if value.is_none() {
        item.expected("a size such as \"512mb\" or \"1gb\"", report);
    }
    value
}
