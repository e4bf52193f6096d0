//! JSON text into a tree.

use std::collections::BTreeMap;

use super::diagnostic::Report;
use super::tree::{Key, MAX_DEPTH, Node, Value, short};

/// Reads a text; reading stops at the first place that is not JSON, with what was read so far.
pub(super) fn parse(text: &str, report: &mut Report<'_>) -> Node {
    let mut reader = Reader { text, at: 0, report, stopped: false };
    let root = reader.value(0);
    reader.blank();
    if !reader.stopped && reader.at < text.len() {
        reader.stop("expected the end of the file");
    }
    root.unwrap_or(Node { value: Value::Table(Vec::new()), span: 0..text.len() })
}

struct Reader<'a, 'r> {
    text: &'a str,
    at: usize,
    report: &'a mut Report<'r>,
    stopped: bool,
}

impl Reader<'_, '_> {
    fn next(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn blank(&mut self) {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.next() {
            self.at += 1;
        }
    }

    /// The bytes from here on that are in a set.
    fn run(&mut self, accepted: fn(u8) -> bool) -> std::ops::Range<usize> {
        let start = self.at;
        while self.next().is_some_and(accepted) {
            self.at += 1;
        }
        start..self.at
    }

    fn stop(&mut self, expected: &str) {
        let next = self.text[self.at..].chars().next();
        let found = next.map_or_else(|| "the end of the file".into(), |next| format!("{next:?}"));
        let end = self.at + next.map_or(0, char::len_utf8);
        let message = format!("this is not JSON: {expected}, found {found}");
        self.report.error(self.at..end, "", message);
        self.stopped = true;
    }

    /// A value; `None` for null, and where reading stopped before there was one.
    fn value(&mut self, depth: usize) -> Option<Node> {
        self.blank();
        let start = self.at;
        let value = match self.next() {
            Some(b'{' | b'[') if depth >= MAX_DEPTH => {
                let message = format!("this is nested more than {MAX_DEPTH} levels deep");
                self.report.error(start..start + 1, "", message);
                self.stopped = true;
                return None;
            }
            Some(b'{') => self.table(depth),
            Some(b'[') => self.list(depth),
            Some(b'"') => Value::String(self.string()?),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b'a'..=b'z' | b'A'..=b'Z') => {
                let word = self.run(|b| b.is_ascii_alphanumeric());
                match &self.text[word.clone()] {
                    "true" => Value::Bool(true),
                    "false" => Value::Bool(false),
                    "null" => return None,
                    _ => {
                        self.at = word.start;
                        self.stop("expected a value");
                        return None;
                    }
                }
            }
            _ => {
                self.stop("expected a value");
                return None;
            }
        };
        Some(Node { value, span: start..self.at })
    }

    fn table(&mut self, depth: usize) -> Value {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        let mut index: BTreeMap<String, usize> = BTreeMap::new();
        self.at += 1;
        self.blank();
        if self.next() == Some(b'}') {
            self.at += 1;
            return Value::Table(entries);
        }
        loop {
            self.blank();
            let start = self.at;
            if self.next() != Some(b'"') {
                self.stop("expected a key in double quotes");
                break;
            }
            let Some(name) = self.string() else { break };
            let key = Key { name: name.clone(), span: start..self.at };
            self.blank();
            if self.next() != Some(b':') {
                self.stop("expected \":\" after a key");
                break;
            }
            self.at += 1;
            // As in flyctl, null counts as absent and the last of a name counts.
            if let Some(node) = self.value(depth + 1) {
                if let Some(place) = index.get(&name) {
                    let message = format!("the key {:?} is there twice, the last counts", short(&name));
                    self.report.warn(key.span.clone(), "", message);
                    entries[*place] = (key, node);
                } else {
                    index.insert(name, entries.len());
                    entries.push((key, node));
                }
            }
            if !self.goes_on(b'}') {
                break;
            }
        }
        Value::Table(entries)
    }

    fn list(&mut self, depth: usize) -> Value {
        let mut items = Vec::new();
        self.at += 1;
        self.blank();
        if self.next() == Some(b']') {
            self.at += 1;
            return Value::List(items);
        }
        loop {
            self.blank();
            let start = self.at;
            match self.value(depth + 1) {
                Some(node) => items.push(node),
                None if self.stopped => {}
                None => self.report.error(start..self.at, "", "null has no place in a list".into()),
            }
            if !self.goes_on(b']') {
                break;
            }
        }
        Value::List(items)
    }

    /// Behind a value: a comma, or the end of the table or list.
    fn goes_on(&mut self, end: u8) -> bool {
        if self.stopped {
            return false;
        }
        self.blank();
        match self.next() {
            Some(b',') => {
                self.at += 1;
                true
            }
            Some(b) if b == end => {
                self.at += 1;
                false
            }
            _ => {
                self.stop(&format!("expected \",\" or {:?}", char::from(end).to_string()));
                false
            }
        }
    }

    fn string(&mut self) -> Option<String> {
        let start = self.at;
        let mut escaped = false;
        let bytes = &self.text.as_bytes()[start + 1..];
        let end = bytes.iter().position(|b| {
            let ends = (*b == b'"' && !escaped) || *b == b'\n';
            escaped = *b == b'\\' && !escaped;
            ends
        });
        let end = end.map_or(self.text.len(), |end| start + 1 + end);
        if self.text.as_bytes().get(end) != Some(&b'"') {
            self.at = end;
            self.stop("expected the closing quote of a string");
            return None;
        }
        match serde_json::from_str(&self.text[start..=end]) {
            Ok(text) => {
                self.at = end + 1;
                Some(text)
            }
            Err(_) => {
                let message = "this is not JSON: the string has an escape or a character that JSON has not";
                self.report.error(start..end + 1, "", message.into());
                self.stopped = true;
                None
            }
        }
    }

    fn number(&mut self) -> Option<Value> {
        let span = self.run(|b| matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'));
        match serde_json::from_str::<serde_json::Number>(&self.text[span.clone()]) {
            Ok(number) => Some(match number.as_i64() {
                Some(number) => Value::Integer(number),
                None => Value::Float(number.as_f64().unwrap_or(f64::INFINITY)),
            }),
            Err(_) => {
                self.report.error(span, "", "this is not JSON: this is not a number".into());
                self.stopped = true;
                None
            }
        }
    }
}
