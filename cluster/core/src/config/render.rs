//! Diagnostics as a compiler prints them.

use super::diagnostic::{Diagnostic, Severity};

/// Characters of a long line that are shown around the place.
const SHOWN: usize = 100;
/// Characters that are shown before the place, at most.
const BEFORE: usize = 60;

/// Everything that was said about `text`, one after another, and the sum at the end. `file` and
/// `text` are what was loaded; `text` may be a lossy copy. Empty when there is nothing to say.
///
/// ```text
/// fly.toml:2:18: error: kill_timeout: expected a duration such as "15s" or "1m30s", …
///   |
/// 2 |   kill_timeout = "1 minute"
///   |                  ^^^^^^^^^^
/// fly.toml: 1 error
/// ```
pub fn render(file: &str, text: &str, diagnostics: &[Diagnostic]) -> String {
    let mut page = String::new();
    // They come in the order of the text: one walk over its lines finds all of theirs.
    let mut lines = text.lines().enumerate().peekable();
    for diagnostic in diagnostics {
        while lines.peek().is_some_and(|(index, _)| index + 1 < diagnostic.line) {
            lines.next();
        }
        let line = lines.peek().filter(|(index, _)| index + 1 == diagnostic.line);
        page.push_str(&one(diagnostic, file, text, line.map(|(_, line)| *line)));
        page.push('\n');
    }
    let counts = [
        (Severity::Error, "error", "errors"),
        (Severity::Warning, "warning", "warnings"),
        (Severity::Note, "note", "notes"),
    ];
    let sum: Vec<String> = counts
        .into_iter()
        .filter_map(|(severity, one, many)| {
            let count = diagnostics.iter().filter(|d| d.severity == severity).count();
            (count > 0).then(|| format!("{count} {}", if count == 1 { one } else { many }))
        })
        .collect();
    if !sum.is_empty() {
        page.push_str(&format!("{file}: {}\n", sum.join(", ")));
    }
    page
}

impl Diagnostic {
    /// The diagnostic as a compiler prints it: one line with the place, then the line of `text` that
    /// it is about with the place marked. `file` and `text` are what was loaded.
    pub fn render(&self, file: &str, text: &str) -> String {
        one(self, file, text, text.lines().nth(self.line - 1))
    }
}

fn one(diagnostic: &Diagnostic, file: &str, text: &str, line: Option<&str>) -> String {
    let head = format!("{file}:{diagnostic}");
    let Some(line) = line else { return head };
    let number = diagnostic.line.to_string();
    let gutter = " ".repeat(number.len());
    // A long line is cut around the place, and says so.
    let first = diagnostic.column.saturating_sub(BEFORE);
    let mut shown: String = line.chars().skip(first).take(SHOWN).map(printable).collect();
    let pad = diagnostic.column - 1 - first.min(diagnostic.column - 1);
    let rest = shown.chars().count().saturating_sub(pad);
    let marked = text.get(diagnostic.span.clone()).and_then(|span| span.lines().next());
    let marks = "^".repeat(marked.map_or(1, |span| span.chars().take(SHOWN).count()).clamp(1, rest.max(1)));
    if line.chars().nth(first + SHOWN).is_some() {
        shown.push('…');
    }
    let (start, pad) = if first > 0 { ("…", " ".repeat(pad + 1)) } else { ("", " ".repeat(pad)) };
    format!("{head}\n{gutter} |\n{number} | {start}{shown}\n{gutter} | {pad}{marks}")
}

/// What a terminal shows in one column; text that writes from the right or controls the terminal
/// would let a file say something else than it does.
fn printable(c: char) -> char {
    match c {
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200b}'..='\u{200f}' | '\u{feff}' => {
            '\u{fffd}'
        }
        _ if c.is_control() => ' ',
        _ => c,
    }
}
