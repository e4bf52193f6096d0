//! The API that every node serves: the Machines API under `/v1` and what Skein has beyond it under
//! `/skein/v1` (SPEC API-1 to API-4).
//!
//! Handlers decide nothing about routing or Machines: they check who calls (`auth`), find who owns
//! the thing (`forward`) and hand over. A call that another node must answer travels there whole,
//! token included, and is checked again.

mod apps;
mod auth;
mod body;
mod error;
mod forward;
mod ips;
mod lease;
mod machines;
mod place;
mod platform;
mod skein;
mod validate;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, Uri};
use axum::middleware::{self, Next};
use axum::response::Response;
use skein_cluster::clock;
use skein_cluster::entropy::Entropy;
use skein_core::facts::{Command, Outcome, State as Facts};
use skein_core::machine::MachineConfig;
use skein_core::{RequestId, TokenId};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub use auth::TokenText;
use error::ApiError;
use lease::LeaseBook;
use validate::InvalidConfig;

use crate::node::NodeHandle;

/// How long a change may take to come back to this node's own snapshot before the answer goes out
/// all the same.
const READ_YOUR_WRITES: Duration = Duration::from_secs(2);

/// What handlers share.
#[derive(Clone)]
pub(crate) struct ApiState {
    node: Arc<NodeHandle>,
    // Held for a look at a small map, never across an await.
    leases: Arc<Mutex<LeaseBook>>,
}

impl ApiState {
    /// The node that answers.
    pub(crate) fn node(&self) -> &NodeHandle {
        &self.node
    }

    /// The newest facts that this node has applied.
    pub(crate) fn facts(&self) -> Arc<Facts> {
        self.node.registry.state()
    }

    /// Looks at or changes the leases of this node's Machines.
    pub(crate) fn leases<T>(&self, with: impl FnOnce(&mut LeaseBook) -> T) -> T {
        with(&mut self.leases.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes facts.
    pub(crate) async fn propose(&self, command: Command) -> Result<Outcome, ApiError> {
        let (outcome, _) = self.node.registry.propose(command).await?;
        Ok(outcome)
    }
}

/// Whether the API would make a Machine of that configuration.
///
/// # Errors
/// What it would refuse it for.
pub(crate) fn check_config(config: &MachineConfig) -> Result<(), InvalidConfig> {
    validate::prepare(&mut config.clone())
}

/// Milliseconds since 1970 as RFC 3339.
pub(crate) fn rfc3339(unix_ms: u64) -> String {
    let nanos = i128::from(unix_ms) * 1_000_000;
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    time.format(&Rfc3339).unwrap_or_default()
}

/// All routes of a node.
pub fn router(node: NodeHandle) -> Router {
    let state = ApiState { node: Arc::new(node), leases: Arc::default() };
    Router::new()
        .nest("/v1", machines_api(&state))
        .nest("/skein/v1", skein::router())
        .merge(skein::metrics_router())
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state(state.clone(), forward::catch_up))
        .layer(middleware::from_fn_with_state(state.clone(), name_request))
        .with_state(state)
}

fn machines_api(state: &ApiState) -> Router<ApiState> {
    Router::new()
        .merge(apps::router())
        .merge(ips::router())
        .merge(machines::router(state))
        .merge(platform::router())
}

/// Gives each call an id, as the Machines API does.
async fn name_request(State(state): State<ApiState>, request: Request, next: Next) -> Response {
    let token = TokenId::generate(clock::unix_ms(), &mut Entropy::default());
    let id = RequestId { ulid: token.0, region: state.node.region };
    let mut response = next.run(request).await;
    if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
        response.headers_mut().insert("fly-request-id", value);
    }
    response
}

async fn no_route(method: Method, uri: Uri) -> ApiError {
    ApiError::not_found(&format!("{method} {}", uri.path()))
}

async fn no_method(method: Method, uri: Uri) -> ApiError {
    let error = format!("{method} is not for {}", uri.path());
    ApiError::new(axum::http::StatusCode::METHOD_NOT_ALLOWED, error)
}

#[cfg(test)]
mod tests {
    use super::rfc3339;

    #[test]
    fn times_read_as_clients_of_the_machines_api_expect() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_718_745_212_345), "2024-06-18T21:13:32.345Z");
    }
}
