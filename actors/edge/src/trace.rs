//! Which requests are traced, and their spans (SPEC OBS-1).
//!
//! Only a sampled request creates spans; all others cost one comparison. A client's own W3C context
//! decides for its request. Spans are per request and attempt, never per frame.

use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderMap, HeaderValue};
use opentelemetry::trace::{SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId, TraceState};
use opentelemetry::{Context, Value};
use skein_core::Random;
use skein_core::attr::SPAN_TARGET;
use skein_core::headers::TRACEPARENT;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::config::Sampling;

/// Decides for requests that bring no context.
#[derive(Debug)]
pub(crate) struct Sampler {
    sampling: Sampling,
    /// The second (upper half) and what was sampled in it (lower half).
    window: AtomicU64,
}

impl Sampler {
    pub(crate) fn new(sampling: Sampling) -> Self {
        Self { sampling, window: AtomicU64::new(0) }
    }

    fn sample(&self, now_ms: u64, rng: &mut impl Random) -> bool {
        let second = (now_ms / 1000) & 0xffff_ffff;
        let within = self.window.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |window| {
            let taken = if window >> 32 == second { window & 0xffff_ffff } else { 0 };
            (taken < u64::from(self.sampling.per_second)).then_some((second << 32) | (taken + 1))
        });
        within.is_ok() || (self.sampling.ratio > 0.0 && rng.fraction() < self.sampling.ratio)
    }
}

/// The trace of one request, or of one attempt of it.
#[derive(Debug, Clone)]
pub(crate) enum Trace {
    /// Not traced here; the Machine gets this context.
    Plain(HeaderValue),
    /// Traced: its spans are children of this one.
    Sampled(Span),
}

impl Trace {
    /// Begins the trace of a client's request.
    pub(crate) fn begin(
        headers: &HeaderMap,
        method: &str,
        sampler: &Sampler,
        now_ms: u64,
        rng: &mut impl Random,
    ) -> Self {
        let given = headers.get(TRACEPARENT).and_then(parse);
        let sampled = match &given {
            Some(context) => context.is_sampled(),
            None => sampler.sample(now_ms, rng),
        };
        if sampled {
            let span = tracing::info_span!(target: SPAN_TARGET, parent: None, "request", otel.name = method, otel.kind = "server");
            if adopt(&span, given.clone()) {
                return Self::Sampled(span);
            }
        }
        let kept = headers.get(TRACEPARENT).filter(|_| given.is_some());
        Self::Plain(kept.cloned().unwrap_or_else(|| unsampled(rng)))
    }

    /// Goes on with a trace that another node began; `None` when that node does not trace.
    pub(crate) fn resume(traceparent: &str) -> Option<Self> {
        let context = parse(&HeaderValue::from_str(traceparent).ok()?)?;
        let span = tracing::info_span!(target: SPAN_TARGET, parent: None, "backhaul", otel.kind = "server");
        adopt(&span, Some(context)).then_some(Self::Sampled(span))
    }

    /// A span below this one; nothing when the request is not traced.
    pub(crate) fn route(&self) -> Self {
        self.child(|parent| tracing::info_span!(target: SPAN_TARGET, parent: parent, "route", otel.kind = "internal"))
    }

    /// The span of a wait until a Machine has room.
    pub(crate) fn queue(&self) -> Self {
        self.child(|parent| tracing::info_span!(target: SPAN_TARGET, parent: parent, "queue", otel.kind = "internal"))
    }

    /// The span of a request's way to another node.
    pub(crate) fn backhaul(&self) -> Self {
        self.child(|parent| tracing::info_span!(target: SPAN_TARGET, parent: parent, "backhaul", otel.kind = "client"))
    }

    /// The span of a request to a Machine.
    pub(crate) fn machine(&self, method: &str) -> Self {
        self.child(|parent| {
            tracing::info_span!(target: SPAN_TARGET, parent: parent, "machine", otel.name = method, otel.kind = "client")
        })
    }

    fn child(&self, make: impl FnOnce(&Span) -> Span) -> Self {
        match self {
            Self::Plain(context) => Self::Plain(context.clone()),
            Self::Sampled(span) => Self::Sampled(make(span)),
        }
    }

    /// Adds an attribute; the value is only made when the request is traced.
    pub(crate) fn set<V: Into<Value>>(&self, key: &'static str, value: impl FnOnce() -> V) {
        if let Self::Sampled(span) = self {
            span.set_attribute(key, value());
        }
    }

    /// Marks the span as failed.
    pub(crate) fn fail(&self, why: &'static str) {
        if let Self::Sampled(span) = self {
            span.set_status(Status::error(why));
            span.set_attribute(skein_core::attr::ERROR_TYPE, why);
        }
    }

    /// The context that whoever comes next gets.
    pub(crate) fn header(&self) -> Option<HeaderValue> {
        match self {
            Self::Plain(context) => Some(context.clone()),
            Self::Sampled(span) => HeaderValue::from_str(&text(span)?).ok(),
        }
    }

    /// The trace's id; `None` when the request is not traced.
    pub(crate) fn id(&self) -> Option<skein_core::TraceId> {
        let Self::Sampled(span) = self else { return None };
        let context = span.context();
        let span = context.span();
        let context = span.span_context();
        context.is_valid().then(|| skein_core::TraceId(u128::from_be_bytes(context.trace_id().to_bytes())))
    }

    /// The context for another node; `None` when the request is not traced.
    pub(crate) fn traceparent(&self) -> Option<String> {
        match self {
            Self::Plain(_) => None,
            Self::Sampled(span) => text(span),
        }
    }
}

/// Puts a span under its parent; false when nobody collects it.
fn adopt(span: &Span, parent: Option<SpanContext>) -> bool {
    if span.is_disabled() {
        return false;
    }
    match parent {
        Some(parent) => span.set_parent(Context::new().with_remote_span_context(parent)).is_ok(),
        None => text(span).is_some(),
    }
}

fn text(span: &Span) -> Option<String> {
    let context = span.context();
    let span = context.span();
    let context = span.span_context();
    context.is_valid().then(|| {
        format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), context.trace_flags().to_u8())
    })
}

fn parse(value: &HeaderValue) -> Option<SpanContext> {
    let text = value.to_str().ok()?;
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let lower_hex = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let valid = version.len() == 2
        && version != "ff"
        && trace.len() == 32
        && span.len() == 16
        && flags.len() == 2
        && [version, trace, span, flags].into_iter().all(lower_hex)
        // Version 00 has exactly four parts; later ones may have more.
        && (version != "00" || parts.next().is_none());
    if !valid {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()? & 1),
        true,
        TraceState::default(),
    );
    context.is_valid().then_some(context)
}

/// A context that says: not sampled.
fn unsampled(rng: &mut impl Random) -> HeaderValue {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    hex(&mut text[3..19], rng.next_u64());
    hex(&mut text[19..35], rng.next_u64() | 1);
    hex(&mut text[36..52], rng.next_u64() | 1);
    HeaderValue::from_bytes(&text)
        .unwrap_or(HeaderValue::from_static("00-00000000000000000000000000000001-0000000000000001-00"))
}

/// Each request without a trace gets such a number: formatting it as text in general is twice as dear.
fn hex(digits: &mut [u8], mut number: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_core::random::Seed;

    fn context(text: &'static str) -> Option<SpanContext> {
        parse(&HeaderValue::from_static(text))
    }

    #[test]
    fn obs_1_a_w3c_context_is_read_and_nonsense_is_not() {
        let read = context("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap();
        assert!(read.is_sampled() && read.is_remote());
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
        ] {
            assert!(context(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_number_is_written_as_formatting_would() {
        for number in [0, 1, 0x0123_4567_89ab_cdef, u64::MAX] {
            let mut digits = [0; 16];
            hex(&mut digits, number);
            assert_eq!(std::str::from_utf8(&digits).unwrap(), format!("{number:016x}"));
        }
    }

    #[test]
    fn all_requests_up_to_the_rate_are_sampled_and_then_a_share() {
        let mut rng = Seed::new(1);
        let sampler = Sampler::new(Sampling { per_second: 3, ratio: 0.0 });
        let taken = (0..10).filter(|_| sampler.sample(5_000, &mut rng)).count();
        assert_eq!(taken, 3);
        assert!(sampler.sample(6_000, &mut rng), "a new second begins anew");
        let all = Sampler::new(Sampling { per_second: 0, ratio: 1.0 });
        assert!((0..10).all(|_| all.sample(1, &mut rng)));
        let none = Sampler::new(Sampling { per_second: 0, ratio: 0.0 });
        assert!(!(0..10).any(|_| none.sample(1, &mut rng)));
    }

    #[test]
    fn what_is_not_traced_keeps_the_clients_context_or_gets_one_that_says_so() {
        let mut rng = Seed::new(1);
        let sampler = Sampler::new(Sampling { per_second: 0, ratio: 0.0 });
        let mut headers = HeaderMap::new();
        let made = Trace::begin(&headers, "GET", &sampler, 0, &mut rng).header().unwrap();
        assert!(!parse(&made).unwrap().is_sampled());
        let given = HeaderValue::from_static("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00");
        headers.insert(TRACEPARENT, given.clone());
        assert_eq!(Trace::begin(&headers, "GET", &sampler, 0, &mut rng).header(), Some(given));
    }
}
