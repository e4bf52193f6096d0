//! One request is one trace, over nodes and replays (SPEC OBS-1).

use std::sync::{Arc, Mutex};

use opentelemetry::trace::{SpanKind, TracerProvider};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use skein_core::explain::Wanted;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;

use crate::backend::{Seen, Server, replay, request, send, text};
use crate::world::{HTTP, World, eventually};

#[derive(Debug, Clone, Default)]
struct Collected(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Collected {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap().extend(batch);
        Ok(())
    }
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

#[tokio::test]
async fn obs_1_a_replayed_request_is_one_trace_from_the_client_to_the_last_machine() {
    let collected = Collected::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(collected.clone()).build();
    let ours = filter_fn(|span| span.target() == skein_core::attr::SPAN_TARGET);
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test")).with_filter(ours);
    let _default = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));

    let near = Server::answering(|seen: &Seen| match seen.header("fly-replay-src") {
        None => replay("region=lhr"),
        Some(_) => text(200, "back?"),
    })
    .await;
    let far = Server::answering(|_| text(200, "far")).await;
    let mut world = World::new(&["iad", "lhr"]);
    let app = world.app("hello");
    world.machine(0, app, near.address, HTTP);
    world.machine(1, app, far.address, HTTP);
    world.publish();
    let edge = world.shared(0, 80).await;
    let ask = |sampled: &str| {
        let mut asked = request("POST", "/x", "body");
        let context = format!("00-{TRACE}-b7ad6b7169203331-{sampled}");
        asked.headers_mut().insert("traceparent", context.parse().unwrap());
        asked
    };

    assert_eq!(send(edge, ask("00")).await.text(), "far");
    assert_eq!(far.seen()[0].header("traceparent"), Some(&*format!("00-{TRACE}-b7ad6b7169203331-00")));
    assert!(collected.0.lock().unwrap().is_empty(), "the client decided against a trace");

    assert_eq!(send(edge, ask("01")).await.text(), "far");
    let all = || collected.0.lock().unwrap().clone();
    let named = |name: &str, kind: SpanKind| -> Vec<SpanData> {
        all().into_iter().filter(|span| span.name == name && span.span_kind == kind).collect()
    };
    eventually("all spans are there", || {
        named("POST", SpanKind::Server).len() == 1
            && named("POST", SpanKind::Client).len() == 2
            && named("backhaul", SpanKind::Client).len() == 1
            && named("backhaul", SpanKind::Server).len() == 1
            && named("route", SpanKind::Internal).len() >= 2
    })
    .await;
    assert!(all().iter().all(|span| span.span_context.trace_id().to_string() == TRACE));
    let root = &named("POST", SpanKind::Server)[0];
    assert_eq!(root.parent_span_id.to_string(), "b7ad6b7169203331");
    let root_id = root.span_context.span_id();
    let (out, into) = (&named("backhaul", SpanKind::Client)[0], &named("backhaul", SpanKind::Server)[0]);
    assert_eq!(out.parent_span_id, root_id);
    assert_eq!(into.parent_span_id, out.span_context.span_id());
    let to_machine = named("POST", SpanKind::Client);
    let (first, last) = (
        to_machine.iter().find(|span| span.parent_span_id == root_id).unwrap(),
        to_machine.iter().find(|span| span.parent_span_id == into.span_context.span_id()).unwrap(),
    );
    for (server, span) in [(&near, first), (&far, last)] {
        let context = format!("00-{TRACE}-{}-01", span.span_context.span_id());
        assert_eq!(server.seen()[1].header("traceparent"), Some(&*context));
    }
    let hop = |span: &SpanData| {
        span.attributes
            .iter()
            .any(|pair| pair.key.as_str() == "skein.replay.hop" && pair.value.as_str() == "1")
    };
    assert!(hop(out) && !hop(first), "the attempt after the replay names it");
    let passed_over = named("route", SpanKind::Internal).into_iter().flat_map(|span| span.attributes);
    let passed_over = passed_over.filter(|pair| pair.key.as_str() == "skein.route.passed_over");
    let passed_over: Vec<_> = passed_over.map(|pair| pair.value.to_string()).collect();
    assert_eq!(passed_over, ["1 further away", "1 outside the region asked for"]);
    let told = world.nodes[0].edge.explain(Wanted::Trace(TRACE.parse().unwrap())).unwrap();
    assert_eq!((told.steps.len(), told.trace_id.unwrap().to_string()), (3, TRACE.to_owned()));
    let has = |key: &str, value: &str| {
        root.attributes.iter().any(|pair| pair.key.as_str() == key && pair.value.as_str() == value)
    };
    assert!(
        has("http.response.status_code", "200") && has("skein.app.name", "hello"),
        "{:?}",
        root.attributes
    );
}
