//! Calls that another node must answer (SPEC API-4): sent whole over backhaul, answered there by the
//! same routes, and never sent on from there.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use skein_cluster::registry::Registry as _;
use skein_core::NodeNumber;
use skein_core::codec;
use skein_core::wire::{ApiAnswer, ApiCall, Ask};

use super::ApiState;
use super::error::ApiError;

/// Marks a call that came from another node: it is answered here or not at all.
const FORWARDED: HeaderName = HeaderName::from_static("skein-forwarded");
/// The registry entry that the sending node had applied: what it knows must be known here, too.
const APPLIED: HeaderName = HeaderName::from_static("skein-applied");
/// The nonce of a Machine's lease.
pub(crate) const LEASE_NONCE: HeaderName = HeaderName::from_static("fly-machine-lease-nonce");
/// The longest wait for the registry to come as far as the sending node's.
const CATCH_UP: Duration = Duration::from_secs(5);
/// How long a node may take to answer a question.
pub(crate) const READ: Duration = Duration::from_secs(2);
/// How long a node may take to do something to a Machine.
pub(crate) const WRITE: Duration = Duration::from_secs(70);

/// Whether the call came from another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Forwarded(pub(crate) bool);

impl<S: Sync> FromRequestParts<S> for Forwarded {
    type Rejection = std::convert::Infallible;
    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Self::Rejection> {
        Ok(Self(parts.headers.contains_key(FORWARDED)))
    }
}

/// Waits until this node knows the facts that the sending node acted on.
pub(crate) async fn catch_up(State(state): State<ApiState>, request: Request, next: Next) -> Response {
    let wanted = request.headers().get(APPLIED).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if let Some(wanted) = wanted {
        let mut facts = state.node().registry.watch();
        let known = facts.wait_for(|(applied, _)| *applied >= wanted);
        if tokio::time::timeout(CATCH_UP, known).await.is_err() {
            tracing::warn!(wanted, "a call is answered before its facts arrived");
        }
    }
    next.run(request).await
}

/// A call to make at another node, in the name of whoever made this one.
pub(crate) fn call(
    state: &ApiState,
    headers: &HeaderMap,
    method: &str,
    target: impl Into<String>,
    body: Bytes,
) -> ApiCall {
    let passed = [header::AUTHORIZATION, header::CONTENT_TYPE, LEASE_NONCE];
    let passed = passed.into_iter().filter_map(|name| {
        let value = headers.get(&name)?;
        Some((name.as_str().to_owned(), Bytes::copy_from_slice(value.as_bytes())))
    });
    let own = [
        (FORWARDED.as_str().to_owned(), state.node().number.to_string().into()),
        (APPLIED.as_str().to_owned(), state.node().registry.applied().to_string().into()),
    ];
    ApiCall { method: method.to_owned(), target: target.into(), headers: passed.chain(own).collect(), body }
}

/// Makes a call at a node.
///
/// # Errors
/// 503 that names the node when it does not answer within `timeout`.
pub(crate) async fn ask(
    state: &ApiState,
    to: NodeNumber,
    call: ApiCall,
    timeout: Duration,
) -> Result<ApiAnswer, ApiError> {
    let silent = |why: String| {
        let name = state.facts().node(to).map_or_else(|| format!("node {to}"), |node| node.name.to_string());
        ApiError::unavailable(format!("{name} does not answer: {why}; see `skein status`"))
    };
    let answer = state.node().backhaul.ask(to, Ask::Api(call), timeout).await;
    let answer = answer.map_err(|error| silent(error.to_string()))?;
    codec::decode(&answer).map_err(|error| silent(error.to_string()))
}

/// The answer of another node as this node's own.
pub(crate) fn response(answer: ApiAnswer) -> Response {
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let kept = [header::CONTENT_TYPE, header::RETRY_AFTER];
    for (name, value) in answer.headers {
        let pair = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(&value));
        if let (Ok(name), Ok(value)) = pair
            && kept.contains(&name)
        {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// The JSON of a good answer.
///
/// # Errors
/// The refusal that it holds, or 503 when it can't be read.
pub(crate) fn value<T: serde::de::DeserializeOwned>(answer: &ApiAnswer) -> Result<T, ApiError> {
    #[derive(serde::Deserialize)]
    struct Refused {
        error: String,
    }
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_GATEWAY);
    if !status.is_success() {
        let error = serde_json::from_slice::<Refused>(&answer.body)
            .map_or_else(|_| format!("the node answered {status}"), |refused| refused.error);
        return Err(ApiError::new(status, error));
    }
    serde_json::from_slice(&answer.body)
        .map_err(|error| ApiError::unavailable(format!("a node's answer can't be read: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &'static str) -> ApiAnswer {
        let header =
            |name: &str, value: &'static str| (name.to_owned(), Bytes::from_static(value.as_bytes()));
        let headers = vec![
            header("content-type", "application/json; charset=utf-8"),
            header("content-length", "999"),
            header("fly-request-id", "theirs"),
        ];
        ApiAnswer { status, headers, body: Bytes::from_static(body.as_bytes()) }
    }

    #[test]
    fn an_answer_keeps_status_type_and_body_and_loses_what_was_only_for_the_way() {
        let response = response(answer(404, "{}"));
        assert_eq!(response.status(), 404);
        assert_eq!(response.headers()["content-type"], "application/json; charset=utf-8");
        assert_eq!(response.headers().len(), 1);
    }

    #[test]
    fn a_refusal_of_the_other_node_is_told_in_its_words() {
        assert_eq!(value::<Vec<u8>>(&answer(200, "[1,2]")).unwrap(), [1, 2]);
        let refused = value::<Vec<u8>>(&answer(409, r#"{"error":"lease held"}"#)).unwrap_err();
        assert_eq!((refused.status.as_u16(), refused.error.as_str()), (409, "lease held"));
        assert_eq!(value::<Vec<u8>>(&answer(200, "<html>")).unwrap_err().status, 503);
    }
}
