//! TOML text into a tree, with every syntax error at once.

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use toml_parser::Source;
use toml_parser::lexer::TokenKind;

use super::diagnostic::Report;
use super::tree::{Key, MAX_DEPTH, Node, Value};

/// Reads a text; what could not be read is reported and left out.
pub(super) fn parse(text: &str, report: &mut Report<'_>) -> Node {
    let nothing = Node { value: Value::Table(Vec::new()), span: 0..text.len() };
    if let Some(at) = deep_key(text) {
        report.error(at..at, "", format!("this key has more than {MAX_DEPTH} parts"));
        return nothing;
    }
    let (root, errors) = DeTable::parse_recoverable(text);
    // What else is wrong behind a mistake mostly follows from it; the next line is news again.
    let mut errors: Vec<_> = errors.into_iter().map(|error| (error.span().unwrap_or(0..0), error)).collect();
    errors.sort_by_key(|(span, _)| span.start);
    let mut mistake_until = 0;
    for (span, error) in errors {
        if span.start < mistake_until {
            continue;
        }
        let (before, behind) = text.split_at_checked(span.start).unwrap_or((text, ""));
        mistake_until = behind.find('\n').map_or(text.len(), |at| span.start + at + 1);
        let line = &text[before.rfind('\n').map_or(0, |at| at + 1)..mistake_until];
        let dots = line.contains("...");
        let hint =
            if dots { "; if the dots stand for something left out, write it or remove them" } else { "" };
        report.error(span, "", format!("this is not TOML: {}{hint}", error.message()));
    }
    let span = root.span();
    table(root.get_ref(), span, 0, report)
}

fn table(entries: &DeTable<'_>, span: std::ops::Range<usize>, depth: usize, report: &mut Report<'_>) -> Node {
    let mut list: Vec<(Key, Node)> = entries
        .iter()
        .map(|(key, value)| {
            let key = Key { name: key.get_ref().to_string(), span: key.span() };
            (key, node(value, depth + 1, report))
        })
        .collect();
    list.sort_by_key(|(key, _)| key.span.start);
    Node { value: Value::Table(list), span }
}

fn node(spanned: &Spanned<DeValue<'_>>, depth: usize, report: &mut Report<'_>) -> Node {
    let span = spanned.span();
    let value = match spanned.get_ref() {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => {
                report.error(span.clone(), "", "this number does not fit into 64 bits".into());
                Value::Integer(0)
            }
        },
        DeValue::Float(float) => match float.as_str().parse() {
            Ok(number) => Value::Float(number),
            Err(_) => {
                if !report.has_errors() {
                    report.error(span.clone(), "", "this is not a number".into());
                }
                Value::Float(0.0)
            }
        },
        DeValue::Boolean(flag) => Value::Bool(*flag),
        DeValue::Datetime(date) => Value::Date(date.to_string()),
        DeValue::Array(_) | DeValue::Table(_) if depth > MAX_DEPTH => {
            report.error(span.clone(), "", format!("this is nested more than {MAX_DEPTH} levels deep"));
            Value::List(Vec::new())
        }
        DeValue::Array(items) => {
            Value::List(items.iter().map(|item| node(item, depth + 1, report)).collect())
        }
        DeValue::Table(entries) => return table(entries, span, depth, report),
    };
    Node { value, span }
}

/// Where a dotted key has too many parts: the parser bounds the nesting of lists and inline tables,
/// not the parts of a key, and each part is a table whose drop takes stack.
fn deep_key(text: &str) -> Option<usize> {
    let mut dots = 0;
    for token in Source::new(text).lex() {
        match token.kind() {
            TokenKind::Dot => dots += 1,
            TokenKind::Atom | TokenKind::BasicString | TokenKind::LiteralString | TokenKind::Whitespace => {}
            TokenKind::Equals
            | TokenKind::Comma
            | TokenKind::LeftSquareBracket
            | TokenKind::RightSquareBracket
            | TokenKind::LeftCurlyBracket
            | TokenKind::RightCurlyBracket
            | TokenKind::Comment
            | TokenKind::Newline
            | TokenKind::MlLiteralString
            | TokenKind::MlBasicString
            | TokenKind::Eof => dots = 0,
        }
        if dots >= MAX_DEPTH {
            return Some(token.span().start());
        }
    }
    None
}
