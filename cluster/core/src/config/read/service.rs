//! `[http_service]`, `[[services]]`, their ports, limits and checks.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::{Claim, Places, groups};
use crate::config::diagnostic::Report;
use crate::config::item::{Bare, Fields, Item, meant};
use crate::config::kept::{Keys, MACHINE_CHECK, Shape};
use crate::config::model::{HttpService, Probe, ServiceSection, ServiceSettings};
use crate::config::tree::{Value, short};
use crate::machine::{Autostop, Concurrency, GoDuration, HttpOptions, HttpResponseOptions, Port};
use crate::service::{HandlerChain, InvalidHandlers};

/// Where the process listens when a service does not say (SPEC SVC-2).
const DEFAULT_PORT: u16 = 8080;

/// The shortest life of a cached replay, in seconds (SPEC RPL-10).
const MIN_TTL: u64 = 10;

/// Checks that have no effect in Skein.
const CHECKS: Keys = &[("machine_checks", Shape::Tables(MACHINE_CHECK))];

/// What a probe belongs to; they differ in keys and bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Tcp,
    Http,
    TopLevel,
}

pub(super) fn http_service(
    mut fields: Fields<'_>,
    places: &mut Places,
    report: &mut Report<'_>,
) -> HttpService {
    let settings = settings(&mut fields, places, report);
    for port in [80, 443] {
        let (span, path) = (fields.span.clone(), fields.path.clone());
        places.claims.push(Claim { udp: false, range: port..=port, span, path });
    }
    let mut service = HttpService {
        settings,
        force_https: fields.take("force_https").and_then(|item| item.boolean(report)).unwrap_or(false),
        http_options: fields.take("http_options").and_then(|item| http_options(&item, report)),
        tls_options: fields.take("tls_options").and_then(|item| tls_options(&item, report)),
        checks: probes(&mut fields, "checks", Kind::Http, report),
        kept: BTreeMap::new(),
    };
    fields.keep_all(CHECKS, &mut service.kept, report);
    fields.finish(report);
    service
}

pub(super) fn service(
    mut fields: Fields<'_>,
    places: &mut Places,
    report: &mut Report<'_>,
) -> ServiceSection {
    let protocol = fields.take("protocol").and_then(|item| {
        let text = item.string("\"tcp\" or \"udp\"", report)?.to_ascii_lowercase();
        if !["tcp", "udp", ""].contains(&text.as_str()) {
            let hint = meant(&text, &["tcp", "udp"]);
            let message = format!("expected \"tcp\" or \"udp\", found {:?}{hint}", short(&text));
            report.error(item.span(), &item.path, message);
        }
        Some(text)
    });
    let protocol = protocol.unwrap_or_default();
    let settings = settings(&mut fields, places, report);
    let udp = protocol == "udp";
    let ports = fields.take("ports").map_or_else(Vec::new, |item| {
        let tables = item.tables(report);
        tables.into_iter().filter_map(|fields| port(fields, udp, places, report)).collect()
    });
    if ports.is_empty() && !report.is_full() {
        let message = "a service without `ports` gets no traffic from outside".into();
        report.warn(fields.span.clone(), &fields.path, message);
    }
    let mut service = ServiceSection {
        protocol,
        settings,
        ports,
        tcp_checks: probes(&mut fields, "tcp_checks", Kind::Tcp, report),
        http_checks: probes(&mut fields, "http_checks", Kind::Http, report),
        kept: BTreeMap::new(),
    };
    fields.keep_all(CHECKS, &mut service.kept, report);
    fields.keep(&["script_checks"], Shape::Any, &mut service.kept, report);
    fields.finish(report);
    service
}

fn settings(fields: &mut Fields<'_>, places: &mut Places, report: &mut Report<'_>) -> ServiceSettings {
    let settings = ServiceSettings {
        internal_port: fields
            .take("internal_port")
            .map_or(Some(DEFAULT_PORT), |item| item.port(report))
            .unwrap_or(DEFAULT_PORT),
        autostop: fields.take("auto_stop_machines").and_then(|item| autostop(&item, report)),
        autostart: fields.take("auto_start_machines").and_then(|item| item.boolean(report)),
        min_machines_running: fields
            .take("min_machines_running")
            .and_then(|item| item.whole(0..=1_000_000, report)),
        processes: groups(fields, places, report),
        concurrency: fields.take("concurrency").and_then(|item| concurrency(&item, report)),
    };
    if settings.processes.is_empty() {
        places.without_groups.push((fields.span.clone(), fields.path.clone()));
    }
    settings
}

fn autostop(item: &Item<'_>, report: &mut Report<'_>) -> Option<Autostop> {
    match &item.node.value {
        Value::Bool(false) => Some(Autostop::Off),
        Value::Bool(true) => Some(Autostop::Stop),
        Value::String(text) if text == "off" => Some(Autostop::Off),
        Value::String(text) if text == "stop" => Some(Autostop::Stop),
        Value::String(text) if text == "suspend" => Some(Autostop::Suspend),
        Value::String(_)
        | Value::Integer(_)
        | Value::Float(_)
        | Value::Date(_)
        | Value::List(_)
        | Value::Table(_) => {
            let text = if let Value::String(text) = &item.node.value { text } else { "" };
            let hint = meant(text, &["off", "stop", "suspend"]);
            let found = item.node.value.describe();
            let message =
                format!("expected \"off\", \"stop\", \"suspend\", false or true, found {found}{hint}");
            report.error(item.span(), &item.path, message);
            None
        }
    }
}

fn concurrency(item: &Item<'_>, report: &mut Report<'_>) -> Option<Concurrency> {
    let concurrency = match &item.node.value {
        // The form of 2019: "soft,hard".
        Value::String(text) => {
            let pair = text.split_once(',').and_then(|(soft, hard)| {
                Some((soft.trim().parse::<u32>().ok()?, hard.trim().parse::<u32>().ok()?))
            });
            let Some((soft, hard)) = pair.filter(|(soft, hard)| *soft > 0 && *hard > 0) else {
                let message = format!("expected a table, or \"soft,hard\", found {:?}", short(text));
                report.error(item.span(), &item.path, message);
                return None;
            };
            Concurrency { kind: "requests".into(), soft_limit: Some(soft), hard_limit: Some(hard) }
        }
        Value::Table(_) => {
            let mut fields = item.fields(report)?;
            let kind = fields.take("type").and_then(|item| {
                let kind = item.string("\"connections\" or \"requests\"", report)?;
                if !["connections", "requests"].contains(&kind.as_str()) {
                    let message = format!(
                        "{:?} is not \"connections\" or \"requests\" and counts as connections",
                        short(&kind)
                    );
                    report.warn(item.span(), &item.path, message);
                }
                Some(kind)
            });
            let mut limit =
                |name| fields.take(name).and_then(|item: Item<'_>| item.whole_or_none(u32::MAX, report));
            let (soft_limit, hard_limit) = (limit("soft_limit"), limit("hard_limit"));
            fields.finish(report);
            Concurrency { kind: kind.unwrap_or_default(), soft_limit, hard_limit }
        }
        Value::Integer(_) | Value::Float(_) | Value::Bool(_) | Value::Date(_) | Value::List(_) => {
            item.expected("a table with `type`, `soft_limit` and `hard_limit`", report);
            return None;
        }
    };
    if let (Some(soft), Some(hard)) = (concurrency.soft_limit, concurrency.hard_limit)
        && soft > hard
    {
        let message = format!("soft_limit {soft} is above hard_limit {hard} and counts as {hard}");
        report.warn(item.span(), &item.path, message);
    }
    Some(concurrency)
}

fn port(mut fields: Fields<'_>, udp: bool, places: &mut Places, report: &mut Report<'_>) -> Option<Port> {
    let single = fields.take("port").map(|item| (item.port(report), item));
    let start = fields.take("start_port").map(|item| (item.port(report), item));
    let end = fields.take("end_port").map(|item| (item.port(report), item));
    if let (Some(_), Some((_, item))) = (&single, start.as_ref().or(end.as_ref())) {
        report.error(item.span(), &item.path, "a port is either `port` or a range, not both".into());
    }
    if single.is_none() && start.is_none() && end.is_none() {
        // flyctl passes it on: documentation shows options of a port alone.
        let message = "without `port`, or `start_port` and `end_port`, this has no effect".into();
        report.warn(fields.span.clone(), &fields.path, message);
    }
    // Only what could be read counts; an error has been reported for the rest.
    let unread = [&single, &start, &end].into_iter().flatten().any(|(port, _)| port.is_none());
    let place = single.as_ref().or(start.as_ref()).or(end.as_ref()).map(|(_, item)| item.clone());
    let value = |side: Option<(Option<u16>, Item<'_>)>| side.and_then(|(port, _)| port);
    let mut port =
        Port { port: value(single), start_port: value(start), end_port: value(end), ..Port::default() };
    if let Some(item) = place.filter(|_| !unread) {
        let range = port.range();
        if range.is_empty() {
            let message = format!("the range runs backwards: {} to {}", range.start(), range.end());
            report.error(item.span(), &item.path, message);
        } else {
            places.claims.push(Claim { udp, range, span: item.span(), path: item.path.clone() });
        }
    }
    let chain = handlers(&mut fields, &mut port, udp, report);
    if let Some(item) = fields.take("force_https") {
        port.force_https = item.boolean(report).unwrap_or(false);
        if port.force_https && chain.is_some_and(|chain| chain != HandlerChain::Http) {
            let message = "force_https goes only with the handlers [\"http\"]: it answers plain HTTP";
            report.error(item.span(), &item.path, message.into());
        }
    }
    port.http_options = fields.take("http_options").and_then(|item| http_options(&item, report));
    if let Some(tls) = fields.take("tls_options").and_then(|item| tls_options(&item, report)) {
        port.rest.insert("tls_options".into(), tls);
    }
    if let Some(proxy) = fields.take("proxy_proto_options").and_then(|item| proxy_options(&item, report)) {
        port.rest.insert("proxy_proto_options".into(), proxy);
    }
    fields.finish(report);
    Some(port)
}

fn handlers(
    fields: &mut Fields<'_>,
    port: &mut Port,
    udp: bool,
    report: &mut Report<'_>,
) -> Option<HandlerChain> {
    let Some(item) = fields.take("handlers") else { return Some(HandlerChain::Raw) };
    let handlers = item.strings("a list of handlers such as [\"http\"]", report)?;
    let chain = HandlerChain::parse(&handlers)
        .map_err(|error| {
            let hint = match &error {
                InvalidHandlers::Unknown(name) => meant(name, &["http", "tls", "pg_tls", "proxy_proto"]),
                InvalidHandlers::Combination(_) => String::new(),
            };
            report.error(item.span(), &item.path, format!("{error}{hint}"));
        })
        .ok()?;
    if udp && chain != HandlerChain::Raw {
        report.warn(item.span(), &item.path, "handlers have no effect on a UDP service".into());
    }
    port.handlers = handlers;
    Some(chain)
}

fn http_options(item: &Item<'_>, report: &mut Report<'_>) -> Option<HttpOptions> {
    let mut fields = item.fields(report)?;
    let mut options = HttpOptions {
        compress: fields.take("compress").and_then(|item| item.boolean(report)),
        response: fields.take("response").and_then(|item| response_options(&item, report)),
        ..HttpOptions::default()
    };
    options.h2_backend = fields.take("h2_backend").and_then(|item| item.boolean(report)).unwrap_or_default();
    options.idle_timeout = fields.take("idle_timeout").and_then(|item| whole_seconds(&item, report));
    options.headers_read_timeout =
        fields.take("headers_read_timeout").and_then(|item| whole_seconds(&item, report));
    if let Some(item) = fields.take("replay_cache") {
        let rules: Vec<Json> =
            item.tables(report).into_iter().map(|fields| replay_cache(fields, report)).collect();
        options.rest.insert("replay_cache".into(), rules.into());
    }
    fields.finish(report);
    Some(options)
}

/// A duration where the Machines API has seconds: a part of one counts as one.
fn whole_seconds(item: &Item<'_>, report: &mut Report<'_>) -> Option<u64> {
    let time = item.duration(Bare::Seconds, report)?.0;
    Some(time.as_secs() + u64::from(time.subsec_nanos() > 0))
}

fn replay_cache(mut fields: Fields<'_>, report: &mut Report<'_>) -> Json {
    let mut rule = serde_json::Map::new();
    let needed = |name: &str, missing: bool, fields: &Fields<'_>, report: &mut Report<'_>| {
        if missing {
            let message = format!("a replay cache without `{name}` has no effect");
            report.warn(fields.span.clone(), &fields.path, message);
        }
    };
    for name in ["path_prefix", "name"] {
        let text = fields.take(name).map(|item| item.string("a string", report));
        needed(name, text.is_none() && name == "path_prefix", &fields, report);
        rule.extend(text.flatten().map(|text| (name.to_owned(), text.into())));
    }
    let kind = fields.take("type").map(|item| item.one_of(&["cookie", "header"], report));
    needed("type", kind.is_none(), &fields, report);
    rule.extend(kind.flatten().map(|kind| ("type".to_owned(), kind.into())));
    if let Some(item) = fields.take("ttl_seconds")
        && let Some(ttl) = whole_seconds(&item, report)
    {
        if ttl < MIN_TTL {
            let message = format!("{ttl}s is below {MIN_TTL}s, the least there is");
            report.warn(item.span(), &item.path, message);
        }
        rule.insert("ttl_seconds".to_owned(), ttl.into());
    }
    let bypass = fields.take("allow_bypass").and_then(|item| item.boolean(report));
    rule.extend(bypass.map(|flag| ("allow_bypass".to_owned(), flag.into())));
    fields.finish(report);
    rule.into()
}

fn response_options(item: &Item<'_>, report: &mut Report<'_>) -> Option<HttpResponseOptions> {
    let mut fields = item.fields(report)?;
    let mut options = HttpResponseOptions {
        pristine: fields.take("pristine").and_then(|item| item.boolean(report)).unwrap_or(false),
        ..HttpResponseOptions::default()
    };
    if let Some(headers) = fields.take("headers").and_then(|item| item.fields(report)) {
        for (name, _, item) in headers.all() {
            let value = match &item.node.value {
                Value::Bool(false) => Some(json!(false)),
                Value::List(_) => item.strings("a list of strings", report).map(Json::from),
                Value::String(text) => Some(text.clone().into()),
                Value::Bool(true)
                | Value::Integer(_)
                | Value::Float(_)
                | Value::Date(_)
                | Value::Table(_) => {
                    let found = item.node.value.describe();
                    let message = format!(
                        "expected a string or a list of strings, or false to remove it, found {found}"
                    );
                    report.error(item.span(), &item.path, message);
                    None
                }
            };
            options.headers.extend(value.map(|value| (name, value)));
        }
    }
    fields.finish(report);
    Some(options)
}

fn tls_options(item: &Item<'_>, report: &mut Report<'_>) -> Option<Json> {
    let mut fields = item.fields(report)?;
    let mut options = serde_json::Map::new();
    for name in ["alpn", "versions"] {
        let list = fields.take(name).and_then(|item| item.strings("a list of strings", report));
        options.extend(list.map(|list| (name.to_owned(), list.into())));
    }
    let flag = fields.take("default_self_signed").and_then(|item| item.boolean(report));
    options.extend(flag.map(|flag| ("default_self_signed".to_owned(), flag.into())));
    fields.finish(report);
    Some(options.into())
}

fn proxy_options(item: &Item<'_>, report: &mut Report<'_>) -> Option<Json> {
    let mut fields = item.fields(report)?;
    let version = fields.take("version").and_then(|item| item.one_of(&["v1", "v2"], report));
    fields.finish(report);
    Some(version.map_or_else(|| json!({}), |version| json!({ "version": version })))
}

fn probes(fields: &mut Fields<'_>, name: &'static str, kind: Kind, report: &mut Report<'_>) -> Vec<Probe> {
    let Some(item) = fields.take(name) else { return Vec::new() };
    let mut list = Vec::new();
    for mut fields in item.tables(report) {
        list.push(probe(&mut fields, kind, report));
        fields.finish(report);
    }
    list
}

pub(super) fn probe(fields: &mut Fields<'_>, kind: Kind, report: &mut Report<'_>) -> Probe {
    let mut time = |name, minimum| {
        let item: Item<'_> = fields.take(name)?;
        let time = item.duration_or_blank(Bare::Milliseconds, report)?;
        bounds(&item, time, kind, minimum, report);
        Some(time)
    };
    let mut probe = Probe {
        interval: time("interval", Duration::from_secs(if kind == Kind::TopLevel { 2 } else { 1 })),
        timeout: time("timeout", Duration::from_secs(1)),
        grace_period: time("grace_period", Duration::ZERO),
        ..Probe::default()
    };
    if kind == Kind::Tcp {
        // flyctl's old files carry it; nothing reads it.
        fields.take("restart_limit");
        return probe;
    }
    probe.method = fields.take("method").and_then(|item| method(&item, report));
    probe.path = fields.take("path").and_then(|item| path(&item, report));
    probe.protocol = fields.take("protocol").and_then(|item| item.one_of(&["http", "https"], report));
    probe.tls_skip_verify = fields.take("tls_skip_verify").and_then(|item| item.boolean(report));
    probe.tls_server_name =
        fields.take("tls_server_name").and_then(|item| item.string("a host name", report));
    probe.headers = fields.take("headers").map(|item| headers(&item, report)).unwrap_or_default();
    fields.take("restart_limit");
    probe
}

/// The bounds of flyctl: the platform clamps those of service checks and refuses those of others.
fn bounds(item: &Item<'_>, time: GoDuration, kind: Kind, minimum: Duration, report: &mut Report<'_>) {
    let (zero_counts, name) = (minimum.is_zero(), item.path.rsplit('.').next().unwrap_or_default());
    if kind == Kind::TopLevel {
        if name == "interval" && time.0 < minimum {
            report.error(item.span(), &item.path, format!("{time} is too short, 2s is the least"));
        }
        if name == "timeout" && time.0 > Duration::from_secs(60) {
            report.error(item.span(), &item.path, format!("{time} is too long, 1m0s is the most"));
        }
        return;
    }
    let short = time.0 < Duration::from_secs(1) && !(zero_counts && time.0.is_zero());
    if short {
        report.warn(item.span(), &item.path, format!("{time} counts as 1s, the least there is"));
    } else if time.0 > Duration::from_secs(60) {
        report.warn(item.span(), &item.path, format!("{time} counts as 1m0s, the most there is"));
    }
}

fn method(item: &Item<'_>, report: &mut Report<'_>) -> Option<String> {
    let text = item.string("an HTTP method such as \"GET\"", report)?;
    if http::Method::from_bytes(text.as_bytes()).is_err() {
        report.error(item.span(), &item.path, format!("{:?} is not an HTTP method", short(&text)));
        return None;
    }
    Some(text)
}

fn path(item: &Item<'_>, report: &mut Report<'_>) -> Option<String> {
    let text = item.string("a path such as \"/health\"", report)?;
    if text.parse::<http::uri::PathAndQuery>().is_err() {
        report.error(item.span(), &item.path, format!("{:?} is not the path of a URL", short(&text)));
        return None;
    }
    Some(text)
}

/// A table, or a list of `name` and `value` (`COMPAT` 4, rule 8).
fn headers(item: &Item<'_>, report: &mut Report<'_>) -> BTreeMap<String, String> {
    if !matches!(item.node.value, Value::List(_)) {
        return item.fields(report).map(|fields| fields.scalars(report)).unwrap_or_default();
    }
    let mut headers = BTreeMap::new();
    for mut fields in item.tables(report) {
        let value = fields.take("value").map(|item| item.scalar("a header's value", report));
        match fields.take("name") {
            Some(name) => {
                let name = name.scalar("a header's name", report);
                headers.extend(name.zip(value.unwrap_or_else(|| Some(String::new()))));
            }
            None => {
                let message = "a header of a list needs a `name`".into();
                report.error(fields.span.clone(), &fields.path, message);
            }
        }
        fields.finish(report);
    }
    headers
}
