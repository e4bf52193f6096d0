//! A configuration as a tree of values with their places, whatever format it was written in.

use std::ops::Range;

/// The deepest nesting that is read; no key of a configuration lies deeper than 8.
pub(super) const MAX_DEPTH: usize = 32;

/// A value and its bytes in the text.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) span: Range<usize>,
}

/// A key and its bytes in the text.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Key {
    pub(super) name: String,
    pub(super) span: Range<usize>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    String(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    /// A date or time, as written: no key of a configuration wants one.
    Date(String),
    List(Vec<Node>),
    /// In the order of the text, each name once.
    Table(Vec<(Key, Node)>),
}

impl Value {
    /// What it is, for a message, its content cut short.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::String(text) => format!("the string {:?}", short(text)),
            Self::Integer(number) => format!("the number {number}"),
            Self::Float(number) => format!("the number {number:?}"),
            Self::Bool(flag) => format!("{flag}"),
            Self::Date(text) => format!("the date {text}"),
            Self::List(_) => "a list".into(),
            Self::Table(_) => "a table".into(),
        }
    }

    /// The whole number that it is, however it is written: flyctl takes `3000.0` for one, too.
    pub(super) fn integer(&self) -> Option<i64> {
        // Up to 2^53 every whole number is exact.
        const EXACT: f64 = 9_007_199_254_740_992.0;
        match self {
            Self::Integer(number) => Some(*number),
            Self::Float(number) if number.fract() == 0.0 && number.abs() <= EXACT => Some(*number as i64),
            Self::Float(_)
            | Self::String(_)
            | Self::Bool(_)
            | Self::Date(_)
            | Self::List(_)
            | Self::Table(_) => None,
        }
    }
}

/// At most 40 characters of a text, for a message.
pub(super) fn short(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl Node {
    /// The text of a key of this table, if it is a text.
    pub(super) fn text_of(&self, name: &str) -> Option<String> {
        let Value::Table(entries) = &self.value else { return None };
        match &entries.iter().find(|(key, _)| key.name == name)?.1.value {
            Value::String(text) => Some(text.clone()),
            Value::Integer(_)
            | Value::Float(_)
            | Value::Bool(_)
            | Value::Date(_)
            | Value::List(_)
            | Value::Table(_) => None,
        }
    }

    /// The value without its places.
    pub(super) fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::String(text) | Value::Date(text) => text.clone().into(),
            Value::Integer(number) => (*number).into(),
            // JSON has no word for what is not finite.
            Value::Float(number) if !number.is_finite() => number.to_string().into(),
            Value::Float(number) => (*number).into(),
            Value::Bool(flag) => (*flag).into(),
            Value::List(items) => items.iter().map(Self::to_json).collect(),
            Value::Table(entries) => {
                entries.iter().map(|(key, node)| (key.name.clone(), node.to_json())).collect()
            }
        }
    }
}
