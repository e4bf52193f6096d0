//! `/skein/v1`: what Skein has beyond the Machines API, and `/metrics`.

mod accounts;
mod endpoints;
mod explain;
mod nodes;
mod view;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use skein_core::NodeName;

use super::ApiState;
use super::error::ApiError;

/// Routes below `/skein/v1`.
pub(super) fn router() -> Router<ApiState> {
    Router::new()
        .route("/status", get(view::status))
        .route("/nodes", get(view::nodes))
        .route("/machines", get(view::machines))
        .route("/explain/{id}", get(explain::explain))
        .route("/barrier", post(view::barrier))
        .route("/endpoints", post(endpoints::endpoints))
        .route("/orgs", get(accounts::orgs).post(accounts::create_org))
        .route("/tokens", get(accounts::tokens).post(accounts::create_token))
        .route("/tokens/{id}", delete(accounts::revoke_token))
        .route("/join_tokens", post(accounts::create_join_token))
        .route("/nodes/{name}/drain", post(nodes::drain))
        .route("/nodes/{name}/undrain", post(nodes::undrain))
        .route("/links", get(nodes::links).put(nodes::set_links))
}

/// 404 for a node that nobody knows, with those that are known.
fn no_node<'a>(wanted: &str, known: impl Iterator<Item = &'a NodeName>) -> ApiError {
    let known: Vec<&str> = known.map(NodeName::as_str).collect();
    let wanted: String = wanted.chars().take(80).collect();
    ApiError::new(
        StatusCode::NOT_FOUND,
        format!("there is no node {wanted:?}; the nodes are {}", known.join(", ")),
    )
}

/// `/metrics`, beside the two.
pub(super) fn metrics_router() -> Router<ApiState> {
    Router::new().route("/metrics", get(view::metrics))
}
