//! A trace as JSON and as a tree with times (SPEC OBS-1, OBS-4).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use skein_core::attr;

/// The width of the bars, in letters.
const BAR: usize = 32;

/// All that was collected of one trace.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TraceJson {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// The ids of the requests in it (`Fly-Request-Id`).
    pub request_ids: Vec<String>,
    /// In the order of their arrival.
    pub spans: Vec<SpanJson>,
    /// How many more there were than are kept.
    #[serde(default)]
    pub dropped_spans: u64,
}

/// One span.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SpanJson {
    /// 16 hexadecimal digits.
    pub span_id: String,
    /// Its parent; `null` for a root.
    pub parent_span_id: Option<String>,
    /// Its name.
    pub name: String,
    /// `internal`, `server`, `client`, `producer` or `consumer`.
    pub kind: String,
    /// `service.name`.
    pub service: String,
    /// `service.instance.id`: for Skein the node's name.
    pub instance: Option<String>,
    /// `cloud.region`.
    pub region: Option<String>,
    /// Nanoseconds since 1970.
    pub start_unix_ns: u64,
    /// Nanoseconds since 1970.
    pub end_unix_ns: u64,
    /// The message of its error status; `null` without one.
    pub error: Option<String>,
    /// Its attributes.
    pub attributes: BTreeMap<String, Value>,
    /// What happened meanwhile.
    #[serde(default)]
    pub events: Vec<EventJson>,
}

/// Something that happened within a span.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct EventJson {
    /// What.
    pub name: String,
    /// When, in nanoseconds since 1970.
    pub unix_ns: u64,
    /// More about it.
    #[serde(default)]
    pub attributes: BTreeMap<String, Value>,
}

impl TraceJson {
    /// Whether at most one parent is missing: that of the root, when a client began the trace.
    pub fn is_connected(&self) -> bool {
        let known: BTreeSet<&str> = self.spans.iter().map(|span| span.span_id.as_str()).collect();
        let mut roots = 0;
        let mut unknown = BTreeSet::new();
        for span in &self.spans {
            match &span.parent_span_id {
                None => roots += 1,
                Some(parent) if !known.contains(parent.as_str()) => drop(unknown.insert(parent)),
                Some(_) => {}
            }
        }
        roots + unknown.len() == 1
    }
}

/// The tree as text, one span a line, with the time since the first and bars. No line ends in blanks.
pub fn render(trace: &TraceJson) -> Vec<String> {
    let begin = trace.spans.iter().map(|span| span.start_unix_ns).min().unwrap_or_default();
    let end = trace.spans.iter().map(|span| span.end_unix_ns).max().unwrap_or_default().max(begin);
    let rows = rows(&trace.spans);
    let label = |row: &Row<'_>| format!("{}{}", row.branch, describe(row.span));
    let place = |span: &SpanJson| span.instance.clone().unwrap_or_else(|| span.service.clone());
    let wide = |texts: &mut dyn Iterator<Item = String>| texts.map(|t| t.chars().count()).max().unwrap_or(0);
    let places = wide(&mut trace.spans.iter().map(place)).max(5);
    let labels = wide(&mut rows.iter().map(label)).max(4);

    let mut lines = vec![heading(trace, end - begin)];
    lines.push(format!("{:>10}  {:>10}  {:<places$}  SPAN", "START", "TOOK", "WHERE"));
    for row in &rows {
        let span = row.span;
        let (at, took) = (span.start_unix_ns - begin, span.end_unix_ns.saturating_sub(span.start_unix_ns));
        let bar = bar(at, took, end - begin);
        let (at, took, place, label) = (millis(at), millis(took), place(span), label(row));
        lines.push(format!("{at:>10}  {took:>10}  {place:<places$}  {label:<labels$}  {bar}"));
        for event in &span.events {
            let at = millis(event.unix_ns.saturating_sub(begin));
            let under = row.below.clone();
            lines.push(format!("{at:>10}  {:>10}  {:<places$}  {under}· {}", "", "", event.name));
        }
    }
    if trace.dropped_spans > 0 {
        lines.push(format!("{} more spans were not kept", trace.dropped_spans));
    }
    if !trace.is_connected() {
        lines.push("some spans of this trace are missing: their parents did not arrive".into());
    }
    lines.into_iter().map(|line| line.trim_end().to_owned()).collect()
}

fn heading(trace: &TraceJson, took: u64) -> String {
    let count = trace.spans.len();
    let spans = if count == 1 { "1 span".to_owned() } else { format!("{count} spans") };
    let mut parts = vec![format!("trace {}", trace.trace_id)];
    match trace.request_ids.as_slice() {
        [] => {}
        [only] => parts.push(format!("request {only}")),
        many => parts.push(format!("{} requests", many.len())),
    }
    parts.push(spans);
    parts.push(millis(took));
    parts.join("  ")
}

struct Row<'a> {
    /// What stands before the span's own text.
    branch: String,
    /// What stands before lines below it.
    below: String,
    span: &'a SpanJson,
}

/// Depth first, children by time; a span whose parent is missing is a root.
fn rows(spans: &[SpanJson]) -> Vec<Row<'_>> {
    let known: BTreeSet<&str> = spans.iter().map(|span| span.span_id.as_str()).collect();
    let mut children: BTreeMap<Option<&str>, Vec<&SpanJson>> = BTreeMap::new();
    for span in spans {
        let parent = span.parent_span_id.as_deref().filter(|parent| known.contains(parent));
        children.entry(parent).or_default().push(span);
    }
    for siblings in children.values_mut() {
        siblings.sort_by_key(|span| (span.start_unix_ns, span.end_unix_ns, span.span_id.as_str()));
    }
    // What was received may call itself its own ancestor: each span is shown once, whatever it says.
    let mut shown = BTreeSet::new();
    let mut rows = Vec::new();
    let first = children.get(&None).cloned().unwrap_or_default();
    let starts = first.into_iter().chain(spans.iter());
    for start in starts {
        let mut stack = vec![(start, String::new(), String::new())];
        while let Some((span, branch, below)) = stack.pop() {
            if !shown.insert(span.span_id.as_str()) {
                continue;
            }
            let inner = children.get(&Some(span.span_id.as_str())).map(Vec::as_slice).unwrap_or_default();
            for (index, child) in inner.iter().enumerate().rev() {
                let (tee, rest) =
                    if index + 1 == inner.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
                stack.push((child, format!("{below}{tee}"), format!("{below}{rest}")));
            }
            rows.push(Row { branch, below, span });
        }
    }
    rows
}

/// The attributes that tell a request's story, in this order.
const TOLD: [(&str, &str); 12] = [
    (attr::METHOD, ""),
    (attr::PATH, ""),
    (attr::STATUS, ""),
    (attr::APP, "app"),
    (attr::ROUTE_REASON, "reason"),
    (attr::ROUTE_CANDIDATES, "candidates"),
    (attr::MACHINE, "machine"),
    (attr::REPLAY_KIND, "replay"),
    (attr::REPLAY_HOP, "hop"),
    (attr::RESEND, "resend"),
    (attr::ERROR_CODE, "code"),
    (attr::ERROR_TYPE, "error"),
];

fn describe(span: &SpanJson) -> String {
    let mut text = span.name.clone();
    let mut error = span.error.as_deref();
    for (key, short) in TOLD {
        let Some(value) = span.attributes.get(key) else { continue };
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        // The name of a request's span is its method.
        if key == attr::METHOD && span.name.contains(&value) {
            continue;
        }
        if key == attr::ERROR_TYPE {
            error = error.filter(|message| !message.is_empty() && *message != value);
        }
        text.push(' ');
        if !short.is_empty() {
            text.push_str(short);
            text.push('=');
        }
        text.extend(value.chars().take(80));
    }
    if let Some(message) = error {
        let message: String = message.chars().take(120).collect();
        text.push_str(if message.is_empty() { " failed" } else { " failed: " });
        text.push_str(&message);
    }
    // What came from elsewhere must not move the cursor of a terminal.
    text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
}

fn millis(ns: u64) -> String {
    format!("{:.1} ms", ns as f64 / 1e6)
}

fn bar(at: u64, took: u64, whole: u64) -> String {
    let scale = |ns: u64| {
        if whole == 0 { 0 } else { (u128::from(ns) * BAR as u128 / u128::from(whole)) as usize }
    };
    let from = scale(at).min(BAR - 1);
    let to = scale(at.saturating_add(took)).clamp(from + 1, BAR);
    format!("│{}{}{}│", " ".repeat(from), "█".repeat(to - from), " ".repeat(BAR - to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn span(id: &str, parent: Option<&str>, name: &str, from_ms: u64, to_ms: u64) -> SpanJson {
        SpanJson {
            span_id: id.into(),
            parent_span_id: parent.map(str::to_owned),
            name: name.into(),
            kind: "internal".into(),
            service: "skein".into(),
            instance: Some("iad-1".into()),
            start_unix_ns: 1_000_000_000 + from_ms * 1_000_000,
            end_unix_ns: 1_000_000_000 + to_ms * 1_000_000,
            ..SpanJson::default()
        }
    }

    fn with(mut span: SpanJson, attributes: &[(&str, Value)]) -> SpanJson {
        span.attributes.extend(attributes.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        span
    }

    fn trace(spans: Vec<SpanJson>) -> TraceJson {
        TraceJson {
            trace_id: "0af7651916cd43dd8448eb211c80319c".into(),
            request_ids: vec!["01JNRQ9VVKJ7HZFMJWJB3M3RYN-iad".into()],
            spans,
            dropped_spans: 0,
        }
    }

    /// SPEC OBS-1: edge, decision, hop and Machine as one tree.
    #[test]
    fn a_trace_is_drawn_as_a_tree_in_the_order_of_time() {
        let lhr = |span: SpanJson| SpanJson { instance: Some("lhr-1".into()), ..span };
        let spans = vec![
            lhr(with(span("d", Some("c"), "GET", 42, 80), &[(attr::MACHINE, json!("0123456789abcd"))])),
            span("c", Some("a"), "backhaul", 2, 90),
            with(
                span("b", Some("a"), "route", 1, 2),
                &[(attr::ROUTE_REASON, json!("nearest")), (attr::ROUTE_CANDIDATES, json!(3))],
            ),
            with(
                span("a", Some("remote"), "GET", 0, 100),
                &[(attr::METHOD, json!("GET")), (attr::STATUS, json!(200))],
            ),
        ];
        let lines = render(&trace(spans));
        assert_eq!(
            lines,
            [
                "trace 0af7651916cd43dd8448eb211c80319c  request 01JNRQ9VVKJ7HZFMJWJB3M3RYN-iad  4 spans  100.0 ms",
                "     START        TOOK  WHERE  SPAN",
                "    0.0 ms    100.0 ms  iad-1  GET 200                               │████████████████████████████████│",
                "    1.0 ms      1.0 ms  iad-1  ├─ route reason=nearest candidates=3  │█                               │",
                "    2.0 ms     88.0 ms  iad-1  └─ backhaul                           │████████████████████████████    │",
                "   42.0 ms     38.0 ms  lhr-1     └─ GET machine=0123456789abcd      │             ████████████       │",
            ]
        );
    }

    #[test]
    fn a_trace_is_connected_when_only_its_roots_parent_is_missing() {
        let child = span("b", Some("a"), "b", 0, 1);
        assert!(!trace(vec![]).is_connected());
        assert!(trace(vec![span("a", None, "a", 0, 1), child.clone()]).is_connected());
        assert!(trace(vec![span("a", Some("remote"), "a", 0, 1), child.clone()]).is_connected());
        let orphan = span("d", Some("c"), "d", 0, 1);
        assert!(!trace(vec![span("a", None, "a", 0, 1), child, orphan]).is_connected());
    }

    #[test]
    fn spans_that_call_each_other_parent_are_shown_once_each() {
        let lines = render(&trace(vec![span("a", Some("b"), "x", 0, 1), span("b", Some("a"), "y", 0, 1)]));
        assert_eq!(lines.iter().filter(|line| line.contains("iad-1")).count(), 2, "{lines:?}");
    }

    #[test]
    fn errors_and_events_are_told_and_control_letters_are_not() {
        let mut failed = with(span("a", None, "GET\u{1b}[2J", 0, 3), &[(attr::ERROR_CODE, json!("PR03"))]);
        failed.error = Some("no candidate".into());
        failed.events.push(EventJson {
            name: "refused".into(),
            unix_ns: 1_001_000_000,
            ..EventJson::default()
        });
        let text = render(&trace(vec![failed])).join("\n");
        assert!(text.contains("code=PR03 failed: no candidate"), "{text}");
        assert!(text.contains("· refused"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn times_that_make_no_sense_are_drawn_all_the_same() {
        let mut odd = span("a", None, "odd", 0, 0);
        odd.end_unix_ns = 0;
        let huge = SpanJson { end_unix_ns: u64::MAX, ..span("b", Some("a"), "huge", 0, 0) };
        assert_eq!(render(&trace(vec![odd, huge])).len(), 4);
    }
}
