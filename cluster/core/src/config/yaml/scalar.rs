//! What a plain scalar of YAML means, as Go's `yaml.v3` resolves it.

use crate::config::tree::Value;

/// The value of a plain scalar; `None` is null. What is nothing else is a text.
pub(super) fn resolve(text: String) -> Option<Value> {
    match text.as_str() {
        "" | "~" | "null" | "Null" | "NULL" => return None,
        "true" | "True" | "TRUE" => return Some(Value::Bool(true)),
        "false" | "False" | "FALSE" => return Some(Value::Bool(false)),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Some(Value::Float(f64::INFINITY)),
        "-.inf" | "-.Inf" | "-.INF" => return Some(Value::Float(f64::NEG_INFINITY)),
        ".nan" | ".NaN" | ".NAN" => return Some(Value::Float(f64::NAN)),
        _ => {}
    }
    Some(number(&text).unwrap_or(Value::String(text)))
}

fn number(text: &str) -> Option<Value> {
    // No number is longer; texts of any length come here.
    if text.len() > 400 || !text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) {
        return None;
    }
    let plain = text.replace('_', "");
    let (negative, digits) = match plain.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, plain.strip_prefix('+').unwrap_or(&plain)),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', rest @ ..] if !rest.is_empty() && rest.iter().all(|b| (b'0'..=b'7').contains(b)) => {
            (8, &digits[1..])
        }
        _ => (10, digits),
    };
    if digits.bytes().all(|b| b.is_ascii_alphanumeric())
        && let Ok(number) = i64::from_str_radix(digits, radix)
    {
        return Some(Value::Integer(if negative { -number } else { number }));
    }
    // Rust also reads `inf` and `infinity`, which are texts here; addresses have several dots.
    let decimal = radix == 10
        && digits.bytes().any(|b| b.is_ascii_digit())
        && digits.bytes().all(|b| b.is_ascii_digit() || b".eE+-".contains(&b));
    if decimal { plain.parse().ok().map(Value::Float) } else { None }
}
