//! Logs and traces of a node (SPEC OBS-1, OBS-3; STYLE: one place names attributes, `core::attr`).
//!
//! Logs go to standard error, as text or JSON. Spans with the target [`skein_core::attr::SPAN_TARGET`] go to
//! an OTLP collector; the proxy creates them for sampled requests only, so an unsampled request pays
//! for none of this.

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::Context as _;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider};
use serde::{Deserialize, Serialize};
use skein_core::attr::SPAN_TARGET;
use tracing_subscriber::filter::{EnvFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, fmt};

/// How long the end of a node waits for its last spans to be sent.
const FLUSH: Duration = Duration::from_secs(2);
/// How long a span waits for others that are sent with it: people wait for their traces.
const BATCH: Duration = Duration::from_millis(200);
/// Spans that wait at most; more are dropped and counted by the exporter, never waited for. Enough
/// for a collector that is silent for the exporter's ten seconds, at 50 traces of 8 spans a second.
/// The queue takes all its room at once, some 360 bytes a span and collector.
const QUEUE: usize = 4_096;

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs: one object a line.
    Json,
}

/// What a node says of itself, and where.
#[derive(Debug, Clone)]
pub struct TelemetryConfig {
    /// What is logged, as in `RUST_LOG`.
    pub log: String,
    /// How lines are written.
    pub log_format: LogFormat,
    /// The node's name: `service.instance.id`.
    pub node: String,
    /// Its region: `cloud.region`.
    pub region: String,
    /// Where spans go: OTLP over gRPC, or over HTTP when the path is `/v1/traces`; nowhere when empty.
    pub otlp: Vec<String>,
}

/// Keeps the exporter; [`Telemetry::shutdown`] sends what is left.
#[derive(Debug)]
pub struct Telemetry(Option<SdkTracerProvider>);

/// Installs the process's subscriber. Called once, by the program, never by a library.
///
/// # Errors
/// When the filter or the collector's address is not valid, or a subscriber is installed already.
pub fn init(config: &TelemetryConfig) -> anyhow::Result<Telemetry> {
    let filter = EnvFilter::try_new(&config.log)
        .with_context(|| format!("`log` is not a filter: {:?}; write for example \"info\"", config.log))?;
    // Exported spans are no log lines: they would repeat the access log.
    let no_spans = Targets::new()
        .with_default(tracing::Level::TRACE)
        .with_target(SPAN_TARGET, tracing::level_filters::LevelFilter::OFF);
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match config.log_format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let logs = lines.with_filter(filter).with_filter(no_spans);
    let provider = if config.otlp.is_empty() { None } else { Some(provider(config)?) };
    let spans = provider.as_ref().map(spans);
    tracing_subscriber::registry().with(logs).with(spans).try_init().context("install the subscriber")?;
    Ok(Telemetry(provider))
}

/// Exports the spans that were made for it, and no other.
fn spans<S>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("skein"))
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_filter(Targets::new().with_target(SPAN_TARGET, tracing::Level::TRACE))
}

/// The URL of a collector, as `--otlp` takes it.
///
/// # Errors
/// What is wrong with it, in words.
pub fn collector_url(text: &str) -> Result<String, String> {
    let uri = text.parse::<http::Uri>().ok();
    match uri
        .filter(|uri| uri.scheme_str() == Some("http") && uri.host().is_some_and(|host| !host.is_empty()))
    {
        Some(_) => Ok(text.to_owned()),
        None => Err("write http://HOST:PORT; https is not provided".to_owned()),
    }
}

/// Sends spans to every collector, each with a queue of its own: one that is away costs the others none.
fn provider(config: &TelemetryConfig) -> anyhow::Result<SdkTracerProvider> {
    let resource = Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", "skein"),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", config.node.clone()),
            KeyValue::new("cloud.region", config.region.clone()),
        ])
        .build();
    // Sampling is decided where a request is met; whatever becomes a span is sent.
    let mut provider = SdkTracerProvider::builder().with_sampler(Sampler::AlwaysOn).with_resource(resource);
    for endpoint in &config.otlp {
        provider = provider.with_span_processor(batches(endpoint)?);
    }
    Ok(provider.build())
}

fn batches(endpoint: &str) -> anyhow::Result<BatchSpanProcessor> {
    let exporter = if endpoint.ends_with("/v1/traces") {
        let endpoint = endpoint.to_owned();
        // The HTTP client blocks and may neither be made nor used on a runtime's thread; the batch
        // exporter has a thread of its own.
        std::thread::spawn(move || {
            opentelemetry_otlp::SpanExporter::builder().with_http().with_endpoint(endpoint).build()
        })
        .join()
        .map_err(|_| anyhow::anyhow!("the exporter's thread panicked"))?
    } else {
        opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()
    }
    .with_context(|| {
        format!(
            "`otlp` is not a collector's address: {endpoint:?}; write for example \"http://127.0.0.1:4317\""
        )
    })?;
    let batches =
        BatchConfigBuilder::default().with_scheduled_delay(BATCH).with_max_queue_size(QUEUE).build();
    Ok(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build())
}

impl Telemetry {
    /// Sends the spans that are left, for at most two seconds.
    pub fn shutdown(self) {
        if let Some(provider) = self.0
            && let Err(error) = provider.shutdown_with_timeout(FLUSH)
        {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

#[cfg(test)]
mod tests;
