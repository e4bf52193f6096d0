//! YAML text into a tree. Only the first document counts, as in flyctl.
//!
//! Aliases are copied, so what they may add is bounded by a budget that is linear in the text.

mod scalar;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span, StrInput, Tag};

use super::diagnostic::Report;
use super::tree::{Key, MAX_DEPTH, Node, Value, short};

/// What aliases may add: this many times the text, and a little that a small file has for free.
const BUDGET_FACTOR: usize = 16;
const BUDGET_FREE: usize = 64 << 10;
/// What a node costs beside its text.
const NODE_COST: usize = 64;

/// Reads a text; reading stops at the first place that is not YAML, with what was read so far.
pub(super) fn parse(text: &str, report: &mut Report<'_>) -> Node {
    let budget = text.len() * BUDGET_FACTOR + BUDGET_FREE;
    let places = Places::new(text);
    let mut builder =
        Builder { places, open: Vec::new(), root: None, anchors: BTreeMap::new(), budget, report };
    builder.run(Parser::new_from_str(text));
    // What was open when reading stopped.
    while let Some(frame) = builder.open.pop() {
        let end = frame.start;
        builder.close(frame, end);
    }
    builder.root.unwrap_or(Node { value: Value::Table(Vec::new()), span: 0..text.len() })
}

/// A table or list whose end has not come yet.
struct Frame {
    start: usize,
    anchor: usize,
    kind: Kind,
}

enum Kind {
    List(Vec<Node>),
    Table { entries: Vec<(Key, Node)>, names: BTreeSet<String>, merged: Vec<Node>, key: Option<Key> },
}

struct Builder<'a, 'r> {
    places: Places<'a>,
    open: Vec<Frame>,
    root: Option<Node>,
    /// Finished nodes by the number of their anchor; `None` is null.
    anchors: BTreeMap<usize, Option<Node>>,
    budget: usize,
    report: &'a mut Report<'r>,
}

impl Builder<'_, '_> {
    fn run(&mut self, mut parser: Parser<'_, StrInput<'_>>) {
        let mut documents = 0;
        while let Some(next) = parser.next_event() {
            let (event, span) = match next {
                Ok(next) => next,
                Err(error) => {
                    let at = self.places.byte(error.marker());
                    self.report.error(at..at, "", format!("this is not YAML: {}", error.info()));
                    return;
                }
            };
            if let Event::DocumentStart(_) = event {
                documents += 1;
            }
            if documents > 1 {
                let message = "only the first document of a file counts; this one has no effect";
                self.report.warn(self.places.range(&span), "", message.into());
                return;
            }
            if self.event(event, &span).is_none() {
                return;
            }
        }
    }

    /// Takes one event in; `None` when reading cannot go on.
    fn event(&mut self, event: Event<'_>, span: &Span) -> Option<()> {
        let place = self.places.range(span);
        match event {
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Some(()),
            Event::Scalar(text, style, anchor, tag) => {
                let value = value(text.into_owned(), style, tag.as_deref());
                let node = value.map(|value| Node { value, span: place.clone() });
                self.remember(anchor, node.as_ref());
                self.add(node, place)
            }
            Event::Alias(anchor) => self.alias(anchor, place),
            Event::SequenceStart(anchor, _) => self.begin(anchor, place, Kind::List(Vec::new())),
            Event::MappingStart(anchor, _) => {
                let (entries, names, merged) = (Vec::new(), BTreeSet::new(), Vec::new());
                self.begin(anchor, place, Kind::Table { entries, names, merged, key: None })
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let frame = self.open.pop()?;
                self.close(frame, place.end)
            }
        }
    }

    fn begin(&mut self, anchor: usize, place: Range<usize>, kind: Kind) -> Option<()> {
        if self.open.len() >= MAX_DEPTH {
            return self.refuse(place, format!("this is nested more than {MAX_DEPTH} levels deep"));
        }
        if let Some(Frame { kind: Kind::Table { key: None, .. }, .. }) = self.open.last() {
            return self.refuse(place, "a key is one text, not a table or a list".into());
        }
        self.open.push(Frame { start: place.start, anchor, kind });
        Some(())
    }

    fn close(&mut self, frame: Frame, end: usize) -> Option<()> {
        let span = frame.start..end.max(frame.start);
        let value = match frame.kind {
            Kind::List(items) => Value::List(items),
            Kind::Table { mut entries, mut names, merged, .. } => {
                // The table's own keys win over merged ones, earlier merged ones over later ones.
                for node in merged {
                    let Value::Table(more) = node.value else { continue };
                    for (key, node) in more {
                        if names.insert(key.name.clone()) {
                            entries.push((key, node));
                        }
                    }
                }
                Value::Table(entries)
            }
        };
        let node = Node { value, span: span.clone() };
        self.remember(frame.anchor, Some(&node));
        self.add(Some(node), span)
    }

    /// Keeps what an anchor names; 0 is no anchor. A copy costs as much as the use of an alias.
    fn remember(&mut self, anchor: usize, node: Option<&Node>) {
        if anchor > 0 && node.is_none_or(|node| self.spend(node)) {
            self.anchors.insert(anchor, node.cloned());
        }
    }

    fn spend(&mut self, node: &Node) -> bool {
        let cost = cost(node);
        let enough = cost <= self.budget;
        self.budget = self.budget.saturating_sub(cost);
        enough
    }

    fn alias(&mut self, anchor: usize, place: Range<usize>) -> Option<()> {
        if self.open.iter().any(|frame| frame.anchor == anchor) {
            return self.refuse(place, "an alias cannot stand inside of what it names".into());
        }
        let Some(node) = self.anchors.remove(&anchor) else {
            return self.refuse(place, "the aliases of this file make it too large".into());
        };
        let copy = node.clone();
        let (fits, deep) = node.as_ref().map_or((true, 0), |node| (self.spend(node), height(node)));
        self.anchors.insert(anchor, node);
        if !fits {
            return self.refuse(place, "the aliases of this file make it too large".into());
        }
        if self.open.len() + deep > MAX_DEPTH {
            return self.refuse(place, format!("this is nested more than {MAX_DEPTH} levels deep"));
        }
        self.add(copy.map(|node| Node { span: place.clone(), ..node }), place)
    }

    fn refuse(&mut self, place: Range<usize>, message: String) -> Option<()> {
        self.report.error(place, "", message);
        None
    }

    /// Puts a node, or null, where it belongs: a key, a value, an item or the root.
    fn add(&mut self, node: Option<Node>, place: Range<usize>) -> Option<()> {
        let Some(Frame { kind, .. }) = self.open.last_mut() else {
            self.root = node;
            return Some(());
        };
        match kind {
            Kind::List(items) => match node {
                Some(node) => items.push(node),
                None => self.report.error(place, "", "an empty item has no place in a list".into()),
            },
            Kind::Table { entries, names, merged, key } => match key.take() {
                None => {
                    let name = match node.map(|node| node.value) {
                        Some(Value::String(name)) => name,
                        Some(Value::Integer(number)) => number.to_string(),
                        Some(Value::Float(number)) => number.to_string(),
                        Some(Value::Bool(flag)) => flag.to_string(),
                        Some(Value::Date(_) | Value::List(_) | Value::Table(_)) | None => {
                            return self.refuse(place, "a key is one text".into());
                        }
                    };
                    *key = Some(Key { name, span: place });
                }
                Some(key) if key.name == "<<" => match node.map(|node| (node.span, node.value)) {
                    Some((span, Value::Table(table))) => {
                        merged.push(Node { value: Value::Table(table), span });
                    }
                    Some((_, Value::List(tables)))
                        if tables.iter().all(|table| matches!(table.value, Value::Table(_))) =>
                    {
                        merged.extend(tables);
                    }
                    Some(_) | None => {
                        let message = "`<<` merges a table or a list of tables".into();
                        self.report.error(place, "", message);
                    }
                },
                Some(key) if !names.insert(key.name.clone()) => {
                    let message = format!("the key {:?} is there twice", short(&key.name));
                    self.report.error(key.span, "", message);
                }
                // As in flyctl, null counts as absent.
                Some(key) => entries.extend(node.map(|node| (key, node))),
            },
        }
        Some(())
    }
}

fn value(text: String, style: ScalarStyle, tag: Option<&Tag>) -> Option<Value> {
    let plain = style == ScalarStyle::Plain;
    match tag {
        None if plain => scalar::resolve(text),
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix != "str" => scalar::resolve(text),
        Some(_) | None => Some(Value::String(text)),
    }
}

fn cost(node: &Node) -> usize {
    NODE_COST
        + match &node.value {
            Value::String(text) | Value::Date(text) => text.len(),
            Value::Integer(_) | Value::Float(_) | Value::Bool(_) => 0,
            Value::List(items) => items.iter().map(cost).sum(),
            Value::Table(entries) => entries.iter().map(|(key, node)| key.name.len() + cost(node)).sum(),
        }
}

fn height(node: &Node) -> usize {
    match &node.value {
        Value::String(_) | Value::Date(_) | Value::Integer(_) | Value::Float(_) | Value::Bool(_) => 0,
        Value::List(items) => 1 + items.iter().map(height).max().unwrap_or(0),
        Value::Table(entries) => 1 + entries.iter().map(|(_, node)| height(node)).max().unwrap_or(0),
    }
}

/// The parser counts characters, diagnostics count bytes.
struct Places<'a> {
    text: &'a str,
    /// The byte of each character; `None` when each is one byte.
    bytes: Option<Vec<usize>>,
}

impl<'a> Places<'a> {
    fn new(text: &'a str) -> Self {
        let bytes = (!text.is_ascii()).then(|| text.char_indices().map(|(at, _)| at).collect());
        Self { text, bytes }
    }

    fn byte(&self, marker: &Marker) -> usize {
        let end = self.text.len();
        match &self.bytes {
            None => marker.index().min(end),
            Some(bytes) => bytes.get(marker.index()).copied().unwrap_or(end),
        }
    }

    fn range(&self, span: &Span) -> Range<usize> {
        let start = self.byte(&span.start);
        start..self.byte(&span.end).max(start)
    }
}
