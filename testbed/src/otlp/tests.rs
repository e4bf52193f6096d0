use std::time::Duration;

use data_encoding::HEXLOWER;
use flate2::Compression;
use flate2::write::GzEncoder;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message as _;
use std::io::Write as _;

use super::{Collector, StoreLimits};

const REQUEST: &str = "01JNRQ9VVKJ7HZFMJWJB3M3RYN-iad";
const PATIENCE: Duration = Duration::from_secs(30);

fn text(key: &str, value: &str) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::StringValue(value.into())) });
    KeyValue { key: key.into(), value, ..KeyValue::default() }
}

fn message(trace: u8, spans: &[(u8, Option<u8>)]) -> ExportTraceServiceRequest {
    let span = |&(id, parent): &(u8, Option<u8>)| Span {
        trace_id: vec![trace; 16],
        span_id: vec![id; 8],
        parent_span_id: parent.map(|id| vec![id; 8]).unwrap_or_default(),
        name: "GET".into(),
        kind: 2,
        start_time_unix_nano: 1_000,
        end_time_unix_nano: 2_000,
        attributes: vec![text("skein.request.id", &format!("{REQUEST}{trace}"))],
        ..Span::default()
    };
    let resource = Resource {
        attributes: vec![text("service.name", "skein"), text("service.instance.id", "iad-1")],
        ..Resource::default()
    };
    let scope = ScopeSpans { spans: spans.iter().map(span).collect(), ..ScopeSpans::default() };
    let group =
        ResourceSpans { resource: Some(resource), scope_spans: vec![scope], ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![group] }
}

async fn collector(limits: StoreLimits) -> Collector {
    Collector::start(limits).await.unwrap()
}

fn post(collector: &Collector) -> reqwest::RequestBuilder {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    client.post(format!("{}/v1/traces", collector.http_url()))
}

async fn add(collector: &Collector, message: &ExportTraceServiceRequest) -> ExportTraceServiceResponse {
    let request = post(collector).header("content-type", "application/x-protobuf");
    let response = request.body(message.encode_to_vec()).send().await.unwrap();
    assert_eq!(response.status(), 200);
    ExportTraceServiceResponse::decode(response.bytes().await.unwrap()).unwrap()
}

/// SPEC OBS-1, OBS-4.
#[tokio::test]
async fn a_span_sent_by_grpc_is_found_by_trace_id_and_by_request_id() {
    let collector = collector(StoreLimits::default()).await;
    let mut client = TraceServiceClient::connect(collector.grpc_url()).await.unwrap();
    client = client.send_compressed(tonic::codec::CompressionEncoding::Gzip);
    client.export(message(7, &[(1, None)])).await.unwrap();
    let by_trace = collector.store().get(&HEXLOWER.encode(&[7; 16])).unwrap();
    assert_eq!(by_trace.spans[0].instance.as_deref(), Some("iad-1"));
    assert_eq!(by_trace.spans[0].kind, "server");
    assert_eq!(collector.store().get(&format!("{REQUEST}7")), Some(by_trace));
    assert_eq!(collector.store().get("other"), None);
}

#[tokio::test]
async fn protobuf_json_and_gzip_are_taken_over_http() {
    let collector = collector(StoreLimits::default()).await;
    assert_eq!(add(&collector, &message(1, &[(1, None)])).await.partial_success, None);

    let response = post(&collector).json(&message(2, &[(1, None)])).send().await.unwrap();
    assert_eq!(response.status(), 200);

    let mut zipped = GzEncoder::new(Vec::new(), Compression::default());
    zipped.write_all(&message(3, &[(1, None)]).encode_to_vec()).unwrap();
    let request = post(&collector).header("content-type", "application/x-protobuf");
    let request = request.header("content-encoding", "gzip").body(zipped.finish().unwrap());
    assert_eq!(request.send().await.unwrap().status(), 200);

    for trace in 1..=3 {
        assert!(collector.store().get(&HEXLOWER.encode(&[trace; 16])).is_some(), "trace {trace}");
    }
}

#[tokio::test]
async fn garbage_is_refused_and_the_collector_goes_on() {
    let collector = collector(StoreLimits::default()).await;
    let send = async |media: &str, body: &'static [u8]| {
        let request = post(&collector).header("content-type", media.to_owned()).body(body);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(send("application/x-protobuf", b"\xff\xff\xff").await, 400);
    assert_eq!(send("application/json", b"{").await, 400);
    assert_eq!(send("text/plain", b"hello").await, 415);
    let mut odd = message(4, &[(1, None), (2, Some(1))]);
    odd.resource_spans[0].scope_spans[0].spans[0].trace_id = vec![1, 2];
    let answer = add(&collector, &odd).await;
    assert_eq!(answer.partial_success.unwrap().rejected_spans, 1);
    assert_eq!(collector.store().get(&HEXLOWER.encode(&[4; 16])).unwrap().spans.len(), 1);
}

#[tokio::test]
async fn the_oldest_traces_go_when_the_store_is_full() {
    let limits = StoreLimits { traces: 2, spans: 100, spans_per_trace: 2 };
    let collector = collector(limits).await;
    for trace in 1..=3 {
        add(&collector, &message(trace, &[(1, None), (2, Some(1)), (3, Some(1))])).await;
    }
    assert_eq!(collector.store().get(&format!("{REQUEST}1")), None);
    let kept = collector.store().get(&format!("{REQUEST}3")).unwrap();
    assert_eq!((kept.spans.len(), kept.dropped_spans), (2, 1));
    add(&collector, &message(3, &[(1, None)])).await;
    assert_eq!(
        collector.store().get(&format!("{REQUEST}3")).unwrap().spans.len(),
        2,
        "sent twice, kept once"
    );
}

#[tokio::test]
async fn a_trace_settles_once_the_missing_parent_arrives() {
    let collector = collector(StoreLimits::default()).await;
    add(&collector, &message(5, &[(2, Some(1)), (4, Some(3))])).await;
    let store = collector.store().clone();
    let id = HEXLOWER.encode(&[5; 16]);
    let rest = message(5, &[(1, None), (3, Some(1))]);
    let (trace, _) = tokio::join!(store.settled(&id, PATIENCE), add(&collector, &rest));
    let trace = trace.unwrap();
    assert_eq!(trace.spans.len(), 4);
    assert_eq!(collector.store().settled("nobody", Duration::ZERO).await, None);
}
