//! What there is to say about a configuration, and where.

use std::fmt;
use std::ops::Range;

use serde::Serialize;

/// At most this many diagnostics are kept; the last one then counts the rest.
const MAX_DIAGNOSTICS: usize = 100;

/// The longest message in characters: some quote what the file says.
const MAX_MESSAGE: usize = 500;

/// How much a diagnostic matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can be used, and probably does not say what was meant.
    Warning,
    /// A part of it has no effect in Skein.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// One thing to say about a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// How much it matters.
    pub severity: Severity,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The key, for example `services[0].ports[1].handlers`; empty when there is none.
    pub key_path: String,
    /// What is wrong and what was expected.
    pub message: String,
    /// The bytes of the text that it is about.
    #[serde(skip)]
    pub span: Range<usize>,
}

impl Diagnostic {
    /// An error about the whole text.
    pub(super) fn at_start(message: String) -> Self {
        Self { severity: Severity::Error, line: 1, column: 1, key_path: String::new(), message, span: 0..0 }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: ", self.line, self.column, self.severity)?;
        if !self.key_path.is_empty() {
            write!(f, "{}: ", self.key_path)?;
        }
        f.write_str(&self.message)
    }
}

/// Collects diagnostics about one text.
pub(super) struct Report<'a> {
    text: &'a str,
    line_starts: Vec<usize>,
    found: Vec<Diagnostic>,
    dropped: usize,
    errors: usize,
}

impl<'a> Report<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let newlines = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1);
        let line_starts = std::iter::once(0).chain(newlines).collect();
        Self { text, line_starts, found: Vec::new(), dropped: 0, errors: 0 }
    }

    pub(super) fn has_errors(&self) -> bool {
        self.errors > 0
    }

    /// Whether another diagnostic would only be counted.
    pub(super) fn is_full(&self) -> bool {
        self.found.len() >= MAX_DIAGNOSTICS
    }

    pub(super) fn error(&mut self, span: Range<usize>, key_path: &str, message: String) {
        self.errors += 1;
        self.push(Severity::Error, span, key_path, message);
    }

    pub(super) fn warn(&mut self, span: Range<usize>, key_path: &str, message: String) {
        self.push(Severity::Warning, span, key_path, message);
    }

    pub(super) fn note(&mut self, span: Range<usize>, key_path: &str, message: String) {
        self.push(Severity::Note, span, key_path, message);
    }

    fn push(&mut self, severity: Severity, span: Range<usize>, key_path: &str, mut message: String) {
        if let Some((end, _)) = message.char_indices().nth(MAX_MESSAGE) {
            message.truncate(end);
            message.push('…');
        }
        if self.is_full() {
            // An error must not be lost behind a hundred warnings.
            let spare = self.found.iter().rposition(|d| d.severity > severity);
            self.dropped += 1;
            match spare {
                Some(index) => self.found.remove(index),
                None => return,
            };
        }
        let (line, column) = self.place(span.start);
        self.found.push(Diagnostic { severity, line, column, key_path: key_path.to_owned(), message, span });
    }

    /// Line and column of a byte, both from 1, the column in characters.
    fn place(&self, at: usize) -> (usize, usize) {
        let at = at.min(self.text.len());
        let line = self.line_starts.partition_point(|start| *start <= at);
        let start = self.line_starts[line - 1];
        let column = self.text.as_bytes()[start..at].iter().filter(|b| **b & 0xc0 != 0x80).count() + 1;
        (line, column)
    }

    /// The diagnostics in the order of the text.
    pub(super) fn finish(mut self) -> Vec<Diagnostic> {
        self.found.sort_by_key(|found| (found.span.start, found.severity));
        if self.dropped > 0 {
            let end = self.text.len();
            let (line, column) = self.place(end);
            let message = format!("{} more like these are not shown", self.dropped);
            let severity = if self.errors > MAX_DIAGNOSTICS { Severity::Error } else { Severity::Note };
            self.found.push(Diagnostic {
                severity,
                line,
                column,
                key_path: String::new(),
                message,
                span: end..end,
            });
        }
        self.found
    }
}
