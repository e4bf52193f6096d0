use skein_core::attr;
use skein_testbed::{Collector, Store, StoreLimits};

use super::*;

fn config(log: &str) -> TelemetryConfig {
    TelemetryConfig {
        log: log.into(),
        log_format: LogFormat::Text,
        node: "iad-1".into(),
        region: "iad".into(),
        otlp: Vec::new(),
    }
}

#[test]
fn a_wrong_filter_is_an_error_that_shows_it() {
    let error = init(&config("skein=nonsense")).unwrap_err();
    assert!(format!("{error:#}").contains("skein=nonsense"), "{error:#}");
}

#[tokio::test]
async fn a_wrong_address_of_a_collector_is_an_error_that_shows_it() {
    let config = TelemetryConfig { otlp: vec!["not an address".into()], ..config("info") };
    let error = provider(&config).unwrap_err();
    assert!(format!("{error:#}").contains("not an address"), "{error:#}");
}

#[test]
fn a_collector_is_named_by_a_url_that_spans_can_go_to() {
    for good in ["http://127.0.0.1:4317", "http://collector:4318/v1/traces", "http://[::1]:4317"] {
        assert_eq!(collector_url(good).unwrap(), good);
    }
    for bad in ["", "127.0.0.1:4317", "collector", "https://collector:4317", "grpc://a:1"] {
        assert!(collector_url(bad).unwrap_err().contains("http://HOST:PORT"), "{bad}");
    }
}

/// Makes two spans, one for export and one not, through exporters to `endpoints`.
async fn export(endpoints: Vec<String>) {
    let provider = provider(&TelemetryConfig { otlp: endpoints, ..config("info") }).unwrap();
    let subscriber = tracing_subscriber::registry().with(spans(&provider));
    tracing::subscriber::with_default(subscriber, || {
        let request = tracing::info_span!(
            target: "skein::trace", "GET", otel.kind = "server",
            { attr::REQUEST_ID } = "01JNRQ9VVKJ7HZFMJWJB3M3RYN-iad",
        );
        request.in_scope(|| {
            tracing::info_span!("not for export").in_scope(|| {
                tracing::info_span!(target: "skein::trace", "route", { attr::ROUTE_REASON } = "nearest")
                    .in_scope(|| {});
            });
        });
    });
    // It blocks, as at the end of a node; the exporter needs the runtime meanwhile.
    tokio::task::spawn_blocking(move || Telemetry(Some(provider)).shutdown()).await.unwrap();
}

fn received(store: &Store) {
    let trace = store.get("01JNRQ9VVKJ7HZFMJWJB3M3RYN-iad").expect("the spans arrive before the end");
    let mut names: Vec<&str> = trace.spans.iter().map(|span| span.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["GET", "route"]);
    assert!(trace.is_connected(), "{trace:?}");
    let span = trace.spans.iter().find(|span| span.name == "GET").unwrap();
    assert_eq!((span.kind.as_str(), span.service.as_str()), ("server", "skein"));
    assert_eq!((span.instance.as_deref(), span.region.as_deref()), (Some("iad-1"), Some("iad")));
    assert!(!span.attributes.contains_key("target"), "only the attributes of core::attr: {span:?}");
}

/// SPEC OBS-1: OTLP over gRPC; the end of a node sends what is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marked_spans_reach_a_collector_over_grpc() {
    let collector = Collector::start(StoreLimits::default()).await.unwrap();
    export(vec![collector.grpc_url()]).await;
    received(collector.store());
}

/// SPEC OBS-1: OTLP over HTTP.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marked_spans_reach_a_collector_over_http() {
    let collector = Collector::start(StoreLimits::default()).await.unwrap();
    export(vec![format!("{}/v1/traces", collector.http_url())]).await;
    received(collector.store());
}

/// SPEC OBS-1: one collector more takes nothing from another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_collector_gets_every_span() {
    let [one, two] = [
        Collector::start(StoreLimits::default()).await.unwrap(),
        Collector::start(StoreLimits::default()).await.unwrap(),
    ];
    export(vec![one.grpc_url(), format!("{}/v1/traces", two.http_url())]).await;
    received(one.store());
    received(two.store());
}
