//! Which responses the proxy compresses, and how (SPEC HTTP-5).
//!
//! What: negotiation of `Accept-Encoding` (RFC 9110 section 12.5.3), what is left alone, and the edits
//! of a compressed response's head. What not: the bytes.
//!
//! Source of order and of `Content-Encoding: none`: `reference/content-encoding` of `superfly/docs`.

use http::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, ETAG, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

/// Bodies shorter than this, in bytes, are left alone.
pub const LEAST: u64 = 1024;

/// A way to compress that the proxy knows; the first is the one it likes best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Coding {
    /// Zstandard, with a window of at most 8 MiB (RFC 9659).
    Zstd,
    /// Brotli.
    Brotli,
    /// gzip.
    Gzip,
    /// zlib's format, as RFC 9110 section 8.4.1.2 says.
    Deflate,
}

impl Coding {
    /// All of them, in the order of preference.
    pub const ALL: [Self; 4] = [Self::Zstd, Self::Brotli, Self::Gzip, Self::Deflate];

    /// As written in headers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Brotli => "br",
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }

    fn parse(token: &[u8]) -> Option<Self> {
        if token.eq_ignore_ascii_case(b"x-gzip") {
            // RFC 9110 section 8.4.1.3.
            return Some(Self::Gzip);
        }
        Self::ALL.into_iter().find(|coding| token.eq_ignore_ascii_case(coding.as_str().as_bytes()))
    }
}

/// Removes `Content-Encoding: none` and says how the body is to be compressed; `None` leaves it as it
/// is. A response that could have been compressed is marked with `Vary`, whatever this client takes.
///
/// `length` is the body's, in bytes, when it is known; `on` what the app's settings say.
pub fn negotiate(
    method: &Method,
    request: &HeaderMap,
    status: StatusCode,
    response: &mut HeaderMap,
    length: Option<u64>,
    on: bool,
) -> Option<Coding> {
    if let Some(coding) = response.get(CONTENT_ENCODING) {
        if coding.as_bytes().eq_ignore_ascii_case(b"none") {
            response.remove(CONTENT_ENCODING);
        }
        return None;
    }
    let short = length.is_some_and(|length| length < LEAST);
    if short || !on || *method == Method::HEAD || !has_whole_body(status) || !is_compressible(response) {
        return None;
    }
    if no_transform(response) {
        return None;
    }
    vary(response);
    if no_transform(request) {
        return None;
    }
    choose(request.get_all(ACCEPT_ENCODING).iter().map(HeaderValue::as_bytes))
}

/// Makes the head one of a compressed body.
pub fn apply(response: &mut HeaderMap, coding: Coding) {
    response.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.as_str()));
    response.remove(CONTENT_LENGTH);
    // Of this body no parts can be had.
    response.remove(ACCEPT_RANGES);
    if let Some(tag) = response.get_mut(ETAG)
        && tag.as_bytes().starts_with(b"\"")
    {
        let weak = [b"W/", tag.as_bytes()].concat();
        if let Ok(weak) = HeaderValue::from_bytes(&weak) {
            *tag = weak;
        }
    }
}

fn has_whole_body(status: StatusCode) -> bool {
    !status.is_informational()
        && !matches!(status, StatusCode::NO_CONTENT | StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Whether a body of that kind gets smaller, and nothing in the head speaks of its very bytes.
fn is_compressible(response: &HeaderMap) -> bool {
    // RFC 9530 and its forerunners: a digest of the bytes that the app sent.
    const OF_THE_BYTES: [HeaderName; 5] = [
        CONTENT_RANGE,
        HeaderName::from_static("content-digest"),
        HeaderName::from_static("repr-digest"),
        HeaderName::from_static("digest"),
        HeaderName::from_static("content-md5"),
    ];
    response.get(CONTENT_TYPE).is_some_and(|kind| is_text(kind.as_bytes()))
        && !OF_THE_BYTES.iter().any(|name| response.contains_key(name))
}

/// Whether a media type is one of SPEC HTTP-5.
fn is_text(kind: &[u8]) -> bool {
    let essence = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let starts =
        |with: &[u8]| essence.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    let ends = |with: &[u8]| {
        let start = essence.len().checked_sub(with.len());
        start.is_some_and(|start| essence[start..].eq_ignore_ascii_case(with))
    };
    if starts(b"application/grpc") || essence.eq_ignore_ascii_case(b"text/event-stream") {
        return false;
    }
    const OTHERS: [&[u8]; 5] = [
        b"application/json",
        b"application/xml",
        b"application/javascript",
        b"application/x-javascript",
        b"application/wasm",
    ];
    starts(b"text/")
        || ends(b"+json")
        || ends(b"+xml")
        || OTHERS.iter().any(|other| essence.eq_ignore_ascii_case(other))
}

fn no_transform(headers: &HeaderMap) -> bool {
    let directives = headers.get_all(CACHE_CONTROL).iter().flat_map(|value| items(value.as_bytes()));
    directives.into_iter().any(|directive| directive.eq_ignore_ascii_case(b"no-transform"))
}

/// What stands between the commas of a list.
fn items(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// Adds `Accept-Encoding` to what the response depends on.
fn vary(response: &mut HeaderMap) {
    let names = response.get_all(VARY).iter().flat_map(|value| items(value.as_bytes()));
    let told = names.into_iter().any(|name| name == b"*" || name.eq_ignore_ascii_case(b"accept-encoding"));
    if !told {
        response.append(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
}

/// The coding that the client likes best, in the proxy's order among equals. `None` when it likes none
/// or an unchanged body better, names no coding at all, or refuses all: then an unchanged body is what
/// it gets (RFC 9110 section 12.5.3).
pub fn choose<'h>(values: impl Iterator<Item = &'h [u8]>) -> Option<Coding> {
    // Thousandths.
    let mut likes: [Option<u16>; 4] = [None; 4];
    let (mut unchanged, mut others) = (None, None);
    for item in values.flat_map(items) {
        let mut parts = item.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let token = parts.next().unwrap_or_default();
        let Some(weight) = weight(parts) else { continue };
        if let Some(coding) = Coding::parse(token) {
            likes[coding as usize].get_or_insert(weight);
        } else if token.eq_ignore_ascii_case(b"identity") {
            unchanged.get_or_insert(weight);
        } else if token == b"*" {
            others.get_or_insert(weight);
        }
    }
    let like = |coding: &Coding| likes[*coding as usize].or(others).unwrap_or(0);
    // The first of equals.
    let best = Coding::ALL.into_iter().rev().max_by_key(like)?;
    let least = unchanged.unwrap_or(0).max(1);
    (like(&best) >= least).then_some(best)
}

/// The weight among an item's parameters, in thousandths; 1,000 when there is none, `None` when it is
/// malformed.
fn weight<'h>(parameters: impl Iterator<Item = &'h [u8]>) -> Option<u16> {
    for parameter in parameters {
        let Some(value) = parameter.strip_prefix(b"q=").or_else(|| parameter.strip_prefix(b"Q=")) else {
            continue;
        };
        let (whole, rest) = value.split_first()?;
        let digits = match rest.split_first() {
            None => &[],
            Some((b'.', digits)) if digits.len() <= 3 => digits,
            Some(_) => return None,
        };
        let mut thousandths = match whole {
            b'0' => 0,
            b'1' => 1000,
            _ => return None,
        };
        for (place, digit) in [100, 10, 1].into_iter().zip(digits) {
            thousandths += place * u16::from(char::from(*digit).to_digit(10)? as u8);
        }
        return (thousandths <= 1000).then_some(thousandths);
    }
    Some(1000)
}

#[cfg(test)]
mod tests;
