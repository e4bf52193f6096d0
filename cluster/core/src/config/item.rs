//! Values taken from the tree as what they should be; what they are not is reported with its place.

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::str::FromStr;
use std::time::Duration;

use super::diagnostic::Report;
use super::kept::{self, Keys, Shape};
use super::tree::{Key, Node, Value, short};
use crate::machine::GoDuration;
use crate::near::nearest;

/// A value and the path of the keys that lead to it.
#[derive(Debug, Clone)]
pub(super) struct Item<'a> {
    pub(super) node: &'a Node,
    pub(super) path: String,
}

/// What a bare number means as a duration (SPEC SVC-7, `COMPAT` 4, rule 5).
#[derive(Debug, Clone, Copy)]
pub(super) enum Bare {
    Nanoseconds,
    Milliseconds,
    Seconds,
}

impl<'a> Item<'a> {
    pub(super) fn span(&self) -> Range<usize> {
        self.node.span.clone()
    }

    /// Whether it is an empty text.
    pub(super) fn is_blank(&self) -> bool {
        matches!(&self.node.value, Value::String(text) if text.is_empty())
    }

    pub(super) fn expected(&self, what: &str, report: &mut Report<'_>) {
        report.error(
            self.span(),
            &self.path,
            format!("expected {what}, found {}", self.node.value.describe()),
        );
    }

    /// A text.
    pub(super) fn string(&self, what: &str, report: &mut Report<'_>) -> Option<String> {
        if let Value::String(text) = &self.node.value {
            return Some(text.clone());
        }
        self.expected(what, report);
        None
    }

    /// A text that parses, for example an app's name.
    pub(super) fn parsed<T: FromStr<Err: std::fmt::Display>>(
        &self,
        what: &str,
        report: &mut Report<'_>,
    ) -> Option<T> {
        let text = self.string(what, report)?;
        self.parse(&text, report)
    }

    /// A text of this item, parsed.
    pub(super) fn parse<T: FromStr<Err: std::fmt::Display>>(
        &self,
        text: &str,
        report: &mut Report<'_>,
    ) -> Option<T> {
        text.parse().map_err(|error: T::Err| report.error(self.span(), &self.path, error.to_string())).ok()
    }

    /// One of some texts.
    pub(super) fn one_of(&self, allowed: &[&str], report: &mut Report<'_>) -> Option<String> {
        let what = one_of(allowed);
        let text = self.string(&what, report)?;
        if allowed.contains(&text.as_str()) {
            return Some(text);
        }
        let message = format!("expected {what}, found {:?}{}", short(&text), meant(&text, allowed));
        report.error(self.span(), &self.path, message);
        None
    }

    /// A text, or a number or flag that counts as its text (`COMPAT` 4, rules 7 and 8).
    pub(super) fn scalar(&self, what: &str, report: &mut Report<'_>) -> Option<String> {
        match &self.node.value {
            Value::String(text) => Some(text.clone()),
            Value::Integer(number) => Some(number.to_string()),
            Value::Float(number) => Some(go_float(*number)),
            Value::Bool(flag) => Some(flag.to_string()),
            Value::Date(text) => Some(text.clone()),
            Value::List(_) | Value::Table(_) => {
                self.expected(what, report);
                None
            }
        }
    }

    pub(super) fn boolean(&self, report: &mut Report<'_>) -> Option<bool> {
        if let Value::Bool(flag) = self.node.value {
            return Some(flag);
        }
        self.expected("true or false", report);
        None
    }

    /// A whole number in a range.
    pub(super) fn whole(&self, range: RangeInclusive<u32>, report: &mut Report<'_>) -> Option<u32> {
        let what = format!("a whole number from {} to {}", range.start(), range.end());
        let number = self.node.value.integer().and_then(|number| u32::try_from(number).ok());
        if let Some(number) = number.filter(|number| range.contains(number)) {
            return Some(number);
        }
        self.expected(&what, report);
        None
    }

    /// A whole number up to `most`, of which 0 counts as absent as in flyctl.
    pub(super) fn whole_or_none(&self, most: u32, report: &mut Report<'_>) -> Option<u32> {
        self.whole(0..=most, report).filter(|number| *number > 0)
    }

    /// A number of at least 0 that need not be whole.
    pub(super) fn number(&self, report: &mut Report<'_>) -> Option<f64> {
        match self.node.value {
            Value::Integer(number) if number >= 0 => Some(number as f64),
            Value::Float(number) if number >= 0.0 && number.is_finite() => Some(number),
            Value::Integer(_)
            | Value::Float(_)
            | Value::String(_)
            | Value::Bool(_)
            | Value::Date(_)
            | Value::List(_)
            | Value::Table(_) => {
                self.expected("a number of at least 0", report);
                None
            }
        }
    }

    /// A port as a number or a numeric text (SPEC SVC-3).
    pub(super) fn port(&self, report: &mut Report<'_>) -> Option<u16> {
        let number = if let Value::String(text) = &self.node.value {
            text.parse().ok()
        } else {
            self.node.value.integer().and_then(|number| u16::try_from(number).ok())
        };
        if let Some(port) = number.filter(|port| *port > 0) {
            return Some(port);
        }
        self.expected("a port from 1 to 65535", report);
        None
    }

    /// A duration where an empty text counts as absent (`COMPAT` 4, rule 5).
    pub(super) fn duration_or_blank(&self, bare: Bare, report: &mut Report<'_>) -> Option<GoDuration> {
        if self.is_blank() { None } else { self.duration(bare, report) }
    }

    /// A duration.
    pub(super) fn duration(&self, bare: Bare, report: &mut Report<'_>) -> Option<GoDuration> {
        let unit = match bare {
            Bare::Nanoseconds => 1,
            Bare::Milliseconds => 1_000_000,
            Bare::Seconds => 1_000_000_000u64,
        };
        let value = if let Value::String(text) = &self.node.value {
            text.parse().ok()
        } else {
            let number = self.node.value.integer().and_then(|number| u64::try_from(number).ok());
            let nanos = number.and_then(|number| number.checked_mul(unit));
            nanos
                .filter(|nanos| *nanos <= i64::MAX as u64)
                .map(|nanos| GoDuration(Duration::from_nanos(nanos)))
        };
        if value.is_none() {
            let name = match bare {
                Bare::Nanoseconds => "nanoseconds",
                Bare::Milliseconds => "milliseconds",
                Bare::Seconds => "seconds",
            };
            self.expected(&format!("a duration such as \"15s\" or \"1m30s\", or a number of {name}"), report);
        }
        value
    }

    /// A list of texts.
    pub(super) fn strings(&self, what: &str, report: &mut Report<'_>) -> Option<Vec<String>> {
        self.list(what, report)?
            .iter()
            .map(|item| item.string("a string", report))
            .collect::<Vec<_>>()
            .into_iter()
            .collect()
    }

    pub(super) fn list(&self, what: &str, report: &mut Report<'_>) -> Option<Vec<Item<'a>>> {
        if let Value::List(nodes) = &self.node.value {
            return Some(self.items(nodes));
        }
        self.expected(what, report);
        None
    }

    fn items(&self, nodes: &'a [Node]) -> Vec<Item<'a>> {
        let path = |index| format!("{}[{index}]", self.path);
        nodes.iter().enumerate().map(|(index, node)| Item { node, path: path(index) }).collect()
    }

    /// One table, or a list of tables (`COMPAT` 4, rule 6).
    pub(super) fn tables(&self, report: &mut Report<'_>) -> Vec<Fields<'a>> {
        match &self.node.value {
            Value::List(nodes) => {
                self.items(nodes).into_iter().filter_map(|item| item.fields(report)).collect()
            }
            Value::Table(_) => self.fields(report).into_iter().collect(),
            Value::String(_) | Value::Integer(_) | Value::Float(_) | Value::Bool(_) | Value::Date(_) => {
                self.expected("a table or a list of tables", report);
                Vec::new()
            }
        }
    }

    pub(super) fn fields(&self, report: &mut Report<'_>) -> Option<Fields<'a>> {
        if let Value::Table(entries) = &self.node.value {
            let path = self.path.clone();
            return Some(Fields { span: self.span(), path, entries, known: Vec::new() });
        }
        self.expected("a table", report);
        None
    }
}

/// The entries of a table, each taken once by name; what nobody asked for is unknown.
pub(super) struct Fields<'a> {
    pub(super) span: Range<usize>,
    pub(super) path: String,
    entries: &'a [(Key, Node)],
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn path_of(&self, key: &str) -> String {
        let plain = !key.is_empty()
            && key.len() <= 64
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        let key = if plain { key.to_owned() } else { format!("{:?}", short(key)) };
        if self.path.is_empty() { key } else { format!("{}.{key}", self.path) }
    }

    /// The value of a key.
    pub(super) fn take(&mut self, name: &'static str) -> Option<Item<'a>> {
        self.known.push(name);
        let (_, node) = self.entries.iter().find(|(key, _)| key.name == name)?;
        Some(Item { node, path: self.path_of(name) })
    }

    /// The same, where an empty text counts as absent as in flyctl.
    pub(super) fn take_filled(&mut self, name: &'static str) -> Option<Item<'a>> {
        self.take(name).filter(|item| !item.is_blank())
    }

    /// The value of the first of some keys that is there; the others that are there are reported.
    pub(super) fn take_any(&mut self, names: &[&'static str], report: &mut Report<'_>) -> Option<Item<'a>> {
        let mut found = names.iter().filter_map(|name| self.take(name)).collect::<Vec<_>>().into_iter();
        let first = found.next();
        for other in found {
            let message = format!("this is another name of `{}`, which is also there; keep one", names[0]);
            report.error(other.span(), &other.path, message);
        }
        first
    }

    /// The tables of several keys that mean the same, one after another: each key holds a table or a
    /// list of tables (`COMPAT` 4, rule 6).
    pub(super) fn take_tables(&mut self, names: &[&'static str], report: &mut Report<'_>) -> Vec<Fields<'a>> {
        let items: Vec<Item<'a>> = names.iter().filter_map(|name| self.take(name)).collect();
        items.iter().flat_map(|item| item.tables(report)).collect()
    }

    /// Every entry, for tables whose keys are free.
    pub(super) fn all(&self) -> Vec<(String, Range<usize>, Item<'a>)> {
        let item = |(key, node): &'a (Key, Node)| {
            (key.name.clone(), key.span.clone(), Item { node, path: self.path_of(&key.name) })
        };
        self.entries.iter().map(item).collect()
    }

    /// Every entry as texts, for environments and headers.
    pub(super) fn scalars(&self, report: &mut Report<'_>) -> BTreeMap<String, String> {
        self.all()
            .into_iter()
            .filter_map(|(name, _, item)| Some((name, item.scalar("a string", report)?)))
            .collect()
    }

    /// A key with several names that has no effect in Skein: kept under the first, and said so.
    pub(super) fn keep(
        &mut self,
        names: &[&'static str],
        shape: Shape,
        kept: &mut BTreeMap<String, serde_json::Value>,
        report: &mut Report<'_>,
    ) {
        if let Some(item) = self.take_any(names, report) {
            report.note(item.span(), &item.path, "this is kept and has no effect in Skein".into());
            kept::check(&item, shape, report);
            kept.insert(names[0].to_owned(), item.node.to_json());
        }
    }

    /// The same for each of some keys with one name.
    pub(super) fn keep_all(
        &mut self,
        keys: Keys,
        kept: &mut BTreeMap<String, serde_json::Value>,
        report: &mut Report<'_>,
    ) {
        for (name, shape) in keys {
            self.keep(&[name], *shape, kept, report);
        }
    }

    /// The same for tables, which are kept as one list under the first name.
    pub(super) fn keep_tables(
        &mut self,
        names: &[&'static str],
        keys: Keys,
        kept: &mut BTreeMap<String, serde_json::Value>,
        report: &mut Report<'_>,
    ) {
        let mut list = Vec::new();
        for item in names.iter().filter_map(|name| self.take(name)).collect::<Vec<_>>() {
            report.note(item.span(), &item.path, "this is kept and has no effect in Skein".into());
            for fields in item.tables(report) {
                list.push(fields.to_json());
                kept::table(fields, keys, report);
            }
        }
        if !list.is_empty() {
            kept.insert(names[0].to_owned(), list.into());
        }
    }

    fn to_json(&self) -> serde_json::Value {
        self.entries.iter().map(|(key, node)| (key.name.clone(), node.to_json())).collect()
    }

    /// The known key that an unknown one was probably meant to be: by its letters, else because one
    /// is the other with something before it, as `http_checks` where `checks` is meant.
    fn near(&self, name: &str) -> Option<&'static str> {
        let longer = |long: &str, short: &str| {
            long.strip_suffix(short).is_some_and(|rest| short.len() > 3 && rest.ends_with(['_', '-']))
        };
        let known = || self.known.iter().copied();
        nearest(name, known()).or_else(|| known().find(|known| longer(name, known) || longer(known, name)))
    }

    /// Reports the keys that nobody asked for.
    pub(super) fn finish(self, report: &mut Report<'_>) {
        for (key, _) in self.entries.iter().filter(|(key, _)| !self.known.contains(&key.name.as_str())) {
            let near = if report.is_full() { None } else { self.near(&key.name) };
            let hint = near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
            report.warn(
                key.span.clone(),
                &self.path_of(&key.name),
                format!("unknown key, it has no effect{hint}"),
            );
        }
    }
}

/// The hint at the nearest of some texts; empty when none is near.
pub(super) fn meant(text: &str, allowed: &[&str]) -> String {
    let near = nearest(text, allowed.iter().copied());
    near.map_or_else(String::new, |near| format!("; did you mean {near:?}?"))
}

/// A number as Go's `%v` writes it, which is how flyctl turns numbers into texts.
pub(super) fn go_float(number: f64) -> String {
    let size = number.abs();
    if number.is_nan() {
        return "NaN".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "+Inf".into() } else { "-Inf".into() };
    }
    if size == 0.0 || (1e-4..1e6).contains(&size) {
        return number.to_string();
    }
    // Rust writes `1e6` and `1e-5`; Go gives the exponent a sign and two digits.
    let text = format!("{number:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    match exponent.strip_prefix('-') {
        Some(exponent) => format!("{digits}e-{exponent:0>2}"),
        None => format!("{digits}e+{exponent:0>2}"),
    }
}

/// `"a", "b" or "c"`.
fn one_of(allowed: &[&str]) -> String {
    let quoted: Vec<String> = allowed.iter().map(|text| format!("{text:?}")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.join(""),
    }
}
