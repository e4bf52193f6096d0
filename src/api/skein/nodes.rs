//! Draining nodes, and the rules of a node's links.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::{OriginalUri, Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use skein_cluster::clock;
use skein_core::NodeNumber;
use skein_core::api::{LinkJson, LinksJson};

use crate::api::ApiState;
use crate::api::auth::Caller;
use crate::api::body::{JsonBody, done, ok};
use crate::api::error::ApiError;
use crate::api::forward;

/// How long a drain may take.
const DRAIN: Duration = Duration::from_secs(60);
/// How much of it is given to the other nodes to see it.
const SEEN: Duration = Duration::from_secs(10);

fn number(state: &ApiState, name: &str) -> Result<NodeNumber, ApiError> {
    let facts = state.facts();
    let found = facts.nodes().find(|node| node.name.as_str() == name);
    let number = found.map(|node| node.number);
    number.ok_or_else(|| super::no_node(name, facts.nodes().map(|node| &node.name)))
}

/// Answers once the other nodes send nothing more to the node and it has nothing in flight; its
/// process stays. A node that cannot be asked holds the drain up for a while and no longer.
pub(super) async fn drain(
    State(state): State<ApiState>,
    caller: Caller,
    Path(name): Path<String>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    caller.operator()?;
    let to = number(&state, &name)?;
    if to != state.node().number {
        let call = forward::call(&state, &headers, "POST", uri.path(), Bytes::new());
        return Ok(forward::response(forward::ask(&state, to, call, forward::WRITE).await?));
    }
    let node = state.node();
    let deadline = clock::now() + DRAIN;
    if let Err(error) = node.announce_drain(SEEN).await {
        tracing::warn!(error = format!("{error:#}"), "drains although not every node knows it");
    }
    if !node.is_draining() {
        return Err(ApiError::conflict(format!("{name} was undrained meanwhile")));
    }
    let left = deadline.saturating_duration_since(clock::now());
    node.drain(left).await.map_err(|error| ApiError::too_late(format!("{name}: {error:#}")))?;
    Ok(done())
}

pub(super) async fn undrain(
    State(state): State<ApiState>,
    caller: Caller,
    Path(name): Path<String>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    caller.operator()?;
    let to = number(&state, &name)?;
    if to != state.node().number {
        let call = forward::call(&state, &headers, "POST", uri.path(), Bytes::new());
        return Ok(forward::response(forward::ask(&state, to, call, forward::WRITE).await?));
    }
    state.node().undrain();
    Ok(done())
}

fn shown(state: &ApiState) -> LinksJson {
    let rules = state.node().links.chaos().into_iter();
    LinksJson { rules: rules.map(|(peer, rule)| LinkJson { peer, rule }).collect() }
}

/// What chaos adds to this node's links.
pub(super) async fn links(State(state): State<ApiState>, caller: Caller) -> Result<Response, ApiError> {
    caller.operator()?;
    Ok(ok(&shown(&state)))
}

pub(super) async fn set_links(
    State(state): State<ApiState>,
    caller: Caller,
    JsonBody(body): JsonBody<LinksJson>,
) -> Result<Response, ApiError> {
    caller.operator()?;
    let mut rules = BTreeMap::new();
    for LinkJson { peer, rule } in body.rules {
        let shares = [rule.loss, rule.duplicate, rule.reorder];
        if shares.iter().any(|share| !(0.0..=1.0).contains(share)) {
            return Err(ApiError::bad_request(format!(
                "{peer}: loss, duplicate and reorder are from 0 to 1"
            )));
        }
        if rules.insert(peer.clone(), rule).is_some() {
            return Err(ApiError::bad_request(format!("{peer} has two rules")));
        }
    }
    state.node().links.set_chaos(rules);
    Ok(ok(&shown(&state)))
}
