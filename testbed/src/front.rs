//! The API front: one address that stays valid while any node lives (DESIGN section 8).
//!
//! `/skein/v1/testbed/…` is answered here; every other request goes to a live node, streamed both
//! ways. Always the same node while it lives, so that a read after a write sees it (SPEC API-4).

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use crate::error::TestbedError;
use crate::node::{Life, NodeView};
use crate::testbed::{Causes, Testbed};

/// The longest a caller may wait for a trace.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Serves while it is held.
#[derive(Debug)]
pub struct Front(#[expect(dead_code, reason = "aborts its tasks when it is dropped")] JoinSet<()>);

#[derive(Clone)]
struct Shared {
    testbed: Testbed,
    connections: TaskTracker,
}

impl Front {
    /// Serves `testbed` at [`Testbed::api_url`]; `more` are routes below `/skein/v1/testbed` that need
    /// the same token.
    ///
    /// # Errors
    /// When it is served already.
    pub fn serve(testbed: &Testbed, more: Router) -> Result<Self, TestbedError> {
        let listener = testbed.take_listener().ok_or(TestbedError::Ending)?;
        let router = router(testbed.clone(), more);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // Serving ends only with the task.
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the API front ended");
            }
        });
        Ok(Self(tasks))
    }
}

fn router(testbed: Testbed, more: Router) -> Router {
    let shared = Shared { testbed, connections: TaskTracker::new() };
    let own = Router::new()
        .route("/", get(describe))
        .route("/down", post(down))
        .route("/nodes/{name}/{verb}", post(order))
        .route("/traces/{id}", get(trace))
        .with_state(shared.clone())
        .merge(more)
        .fallback(async || refusal(StatusCode::NOT_FOUND, "the testbed's API has no such path"))
        .layer(middleware::from_fn_with_state(shared.clone(), operator_only));
    Router::new().fallback(forward).with_state(shared).nest("/skein/v1/testbed", own)
}

/// An error in the shape of the API's.
pub fn refusal(status: StatusCode, error: &str) -> Response {
    (status, Json(serde_json::json!({ "error": error }))).into_response()
}

impl IntoResponse for TestbedError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        refusal(status, &Causes(&self).to_string())
    }
}

async fn operator_only(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    if is_operator(request.headers(), shared.testbed.token()) {
        return next.run(request).await;
    }
    refusal(StatusCode::UNAUTHORIZED, "this needs the operator's token: `api.token` of cluster.json")
}

fn is_operator(headers: &HeaderMap, token: &str) -> bool {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let given = given.strip_prefix("Bearer ").unwrap_or_default().as_bytes();
    // Every byte is compared, so that the time taken tells nothing of the token.
    let different = given.iter().zip(token.as_bytes()).fold(0, |sum, (a, b)| sum | (a ^ b));
    given.len() == token.len() && different == 0
}

async fn describe(State(shared): State<Shared>) -> Response {
    Json(shared.testbed.describe()).into_response()
}

async fn down(State(shared): State<Shared>) -> Response {
    shared.testbed.ask_down();
    (StatusCode::ACCEPTED, Json(serde_json::json!({ "ok": true }))).into_response()
}

async fn order(State(shared): State<Shared>, Path((name, verb)): Path<(String, String)>) -> Response {
    let testbed = &shared.testbed;
    let done = match verb.as_str() {
        "restart" => testbed.restart(&name).await.map(drop),
        "kill" => testbed.kill(&name).await,
        "pause" => testbed.pause(&name).await,
        "resume" => testbed.resume(&name).await,
        _ => return refusal(StatusCode::NOT_FOUND, "a node can be restarted, killed, paused and resumed"),
    };
    match done {
        Ok(()) => {
            let node = testbed.nodes().into_iter().find(|node| node.spec.name.as_str() == name);
            Json(node.and_then(|node| node.bound)).into_response()
        }
        Err(error) => error.into_response(),
    }
}

#[derive(Deserialize)]
struct TraceQuery {
    #[serde(default)]
    wait_ms: u64,
}

async fn trace(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    Query(TraceQuery { wait_ms }): Query<TraceQuery>,
) -> Response {
    let patience = Duration::from_millis(wait_ms).min(LONGEST_WAIT);
    match shared.testbed.traces().settled(&id, patience).await {
        Some(trace) => Json(trace).into_response(),
        None => refusal(
            StatusCode::NOT_FOUND,
            &format!(
                "no trace of {} has been collected: it was not sampled (see `skein up --trace-sample 1`), \
                 is older than the newest {} traces, or never reached an edge",
                id.chars().take(80).collect::<String>(),
                shared.testbed.traces().limits().traces,
            ),
        ),
    }
}

/// Live nodes in the order in which they are asked: those that all others have seen first.
fn targets(nodes: &[NodeView]) -> Vec<(&NodeView, String)> {
    let with_address = |node: &&NodeView| node.api().is_some();
    let address = |node: &'_ NodeView| node.api().map(|api| api.trim_start_matches("http://").to_owned());
    let ready = nodes.iter().filter(|node| node.ready);
    let others = nodes.iter().filter(|node| !node.ready);
    ready.chain(others).filter(with_address).filter_map(|node| Some((node, address(node)?))).collect()
}

async fn forward(State(shared): State<Shared>, mut request: Request) -> Response {
    for name in [header::CONNECTION, header::PROXY_AUTHORIZATION, header::TE, header::UPGRADE] {
        request.headers_mut().remove(name);
    }
    let nodes = shared.testbed.nodes();
    // Without a body, a read can be sent again when a node dies under it.
    let again = (request.method() == Method::GET || request.method() == Method::HEAD)
        && http_body::Body::is_end_stream(request.body());
    let mut failure = None;
    for (node, address) in targets(&nodes) {
        let io = match TcpStream::connect(&address).await {
            Ok(stream) => TokioIo::new(stream),
            Err(error) => {
                failure = Some(format!("{}: {error}", node.spec.name));
                continue;
            }
        };
        if !again {
            return match send(&shared, io, request).await {
                Ok(response) => response,
                Err(error) => {
                    let error = format!("node {} did not answer: {}", node.spec.name, Causes(&error));
                    refusal(StatusCode::BAD_GATEWAY, &error)
                }
            };
        }
        let copy = copy(&request);
        match send(&shared, io, copy).await {
            Ok(response) => return response,
            Err(error) => failure = Some(format!("{}: {}", node.spec.name, Causes(&error))),
        }
    }
    refusal(StatusCode::SERVICE_UNAVAILABLE, &nobody(&nodes, failure))
}

fn copy(request: &Request) -> Request {
    let mut copy = Request::new(Body::new(Empty::new()));
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

async fn send(shared: &Shared, io: TokioIo<TcpStream>, request: Request) -> Result<Response, hyper::Error> {
    let (mut sender, connection) = http1::handshake(io).await?;
    shared.connections.spawn(async move {
        // The request and the body tell the same failure to those who wait for them.
        if let Err(error) = connection.await {
            tracing::debug!(error = %Causes(&error), "a connection to a node ended");
        }
    });
    let mut response = sender.send_request(request).await?;
    response.headers_mut().remove(header::CONNECTION);
    Ok(response.map(Body::new))
}

fn nobody(nodes: &[NodeView], failure: Option<String>) -> String {
    let states = nodes.iter().map(|node| match &node.life {
        Life::Running => format!("{} runs", node.spec.name),
        Life::Paused => format!("{} is paused", node.spec.name),
        Life::Gone(how) => format!("{} {how}", node.spec.name),
    });
    let states = states.collect::<Vec<_>>().join(", ");
    let failure = failure.map(|failure| format!(" (last failure: {failure})")).unwrap_or_default();
    let next = nodes.first().map(|node| format!("; skein node restart {}", node.spec.name));
    format!("no node answers: {states}{failure}{}", next.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn only_the_operators_token_opens_the_testbed() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            headers
        };
        assert!(is_operator(&with("Bearer skt_x"), "skt_x"));
        for bad in ["Bearer skt_y", "Bearer skt_", "Bearer skt_xx", "skt_x", "Bearer ", "Basic skt_x"] {
            assert!(!is_operator(&with(bad), "skt_x"), "{bad}");
        }
        assert!(!is_operator(&HeaderMap::new(), "skt_x"));
    }
}
