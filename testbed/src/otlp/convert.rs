//! From OTLP's messages to the spans that are kept.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{Span, Status};
use serde_json::json;

use crate::trace::{EventJson, SpanJson};

/// A span and the trace that it belongs to.
pub(super) struct Received {
    pub(super) trace: String,
    pub(super) span: SpanJson,
}

/// The spans of a message, and how many were not valid.
pub(super) fn spans(request: ExportTraceServiceRequest) -> (Vec<Received>, i64) {
    let (mut kept, mut rejected) = (Vec::new(), 0);
    for group in request.resource_spans {
        let resource = attributes(group.resource.map(|resource| resource.attributes).unwrap_or_default());
        for span in group.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            match convert(span, &resource) {
                Some(received) => kept.push(received),
                None => rejected += 1,
            }
        }
    }
    (kept, rejected)
}

/// What is answered: nothing, or how many spans were refused.
pub(super) fn response(rejected: i64) -> ExportTraceServiceResponse {
    let partial_success = (rejected > 0).then(|| ExportTracePartialSuccess {
        rejected_spans: rejected,
        error_message: "a trace id has 16 bytes, a span id 8, and neither is zero".into(),
    });
    ExportTraceServiceResponse { partial_success }
}

fn convert(span: Span, resource: &BTreeMap<String, serde_json::Value>) -> Option<Received> {
    let trace = id(&span.trace_id, 16)?;
    let text = |name: &str| resource.get(name).and_then(|value| value.as_str()).map(str::to_owned);
    let events = span.events.into_iter().map(|event| EventJson {
        name: event.name,
        unix_ns: event.time_unix_nano,
        attributes: attributes(event.attributes),
    });
    let kind = match SpanKind::try_from(span.kind).unwrap_or(SpanKind::Unspecified) {
        SpanKind::Unspecified | SpanKind::Internal => "internal",
        SpanKind::Server => "server",
        SpanKind::Client => "client",
        SpanKind::Producer => "producer",
        SpanKind::Consumer => "consumer",
    };
    let span = SpanJson {
        span_id: id(&span.span_id, 8)?,
        parent_span_id: id(&span.parent_span_id, 8),
        name: span.name,
        kind: kind.into(),
        service: text("service.name").unwrap_or_default(),
        instance: text("service.instance.id"),
        region: text("cloud.region"),
        start_unix_ns: span.start_time_unix_nano,
        end_unix_ns: span.end_time_unix_nano,
        error: error(span.status),
        attributes: attributes(span.attributes),
        events: events.collect(),
    };
    Some(Received { trace, span })
}

fn id(bytes: &[u8], length: usize) -> Option<String> {
    (bytes.len() == length && bytes.iter().any(|byte| *byte != 0)).then(|| HEXLOWER.encode(bytes))
}

fn error(status: Option<Status>) -> Option<String> {
    let status = status.filter(|status| status.code == StatusCode::Error as i32)?;
    Some(status.message)
}

fn attributes(pairs: Vec<KeyValue>) -> BTreeMap<String, serde_json::Value> {
    pairs.into_iter().map(|pair| (pair.key, json(pair.value))).collect()
}

fn json(value: Option<AnyValue>) -> serde_json::Value {
    match value.and_then(|value| value.value) {
        None => serde_json::Value::Null,
        Some(Value::StringValue(text)) => json!(text),
        Some(Value::BoolValue(value)) => json!(value),
        Some(Value::IntValue(value)) => json!(value),
        Some(Value::DoubleValue(value)) => json!(value),
        Some(Value::BytesValue(bytes)) => json!(HEXLOWER.encode(&bytes)),
        Some(Value::ArrayValue(array)) => {
            array.values.into_iter().map(|value| json(Some(value))).collect::<Vec<_>>().into()
        }
        Some(Value::KvlistValue(list)) => list
            .values
            .into_iter()
            .map(|pair| (pair.key, json(pair.value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        Some(Value::StringValueStrindex(index)) => json!(index),
    }
}
