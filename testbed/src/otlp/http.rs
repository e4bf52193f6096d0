//! OTLP over HTTP: protobuf and JSON, plain and gzip.

use std::io::Read as _;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;
use tokio::net::TcpListener;

use super::{MAX_MESSAGE, Store, convert};

pub(super) async fn serve(listener: TcpListener, store: Store) {
    let router = Router::new()
        .route("/v1/traces", post(export))
        .layer(DefaultBodyLimit::max(MAX_MESSAGE))
        .with_state(store);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the HTTP receiver of traces ended");
    }
}

enum Encoding {
    Protobuf,
    Json,
}

async fn export(State(store): State<Store>, headers: HeaderMap, body: Bytes) -> Response {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media = text(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim();
    let encoding = match media {
        "application/x-protobuf" => Encoding::Protobuf,
        "application/json" => Encoding::Json,
        _ => {
            let error = "send application/x-protobuf or application/json";
            return (StatusCode::UNSUPPORTED_MEDIA_TYPE, error).into_response();
        }
    };
    let body = match text(header::CONTENT_ENCODING) {
        "" | "identity" => body,
        "gzip" => match unzip(&body) {
            Ok(body) => body,
            Err(error) => return (StatusCode::BAD_REQUEST, format!("gzip: {error}")).into_response(),
        },
        _ => return (StatusCode::UNSUPPORTED_MEDIA_TYPE, "send it plain or as gzip").into_response(),
    };
    match encoding {
        Encoding::Protobuf => match ExportTraceServiceRequest::decode(body) {
            Ok(request) => {
                let (spans, rejected) = convert::spans(request);
                store.add(spans);
                let answer = convert::response(rejected).encode_to_vec();
                ([(header::CONTENT_TYPE, "application/x-protobuf")], answer).into_response()
            }
            Err(error) => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
        },
        Encoding::Json => match serde_json::from_slice::<ExportTraceServiceRequest>(&body) {
            Ok(request) => {
                let (spans, rejected) = convert::spans(request);
                store.add(spans);
                axum::Json(convert::response(rejected)).into_response()
            }
            Err(error) => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
        },
    }
}

fn unzip(body: &[u8]) -> std::io::Result<Bytes> {
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(body).take(MAX_MESSAGE as u64 + 1).read_to_end(&mut plain)?;
    if plain.len() > MAX_MESSAGE {
        return Err(std::io::Error::other(format!("it unfolds to more than {MAX_MESSAGE} bytes")));
    }
    Ok(plain.into())
}
