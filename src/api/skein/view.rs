//! What this node sees: itself, its peers, all Machines, its counters.

use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::{ConnectInfo, State};
use axum::http::{Extensions, HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use skein_core::api::{NodeJson, SeenMachineJson, StatusJson};
use skein_core::facts::Scope;
use skein_core::suspicion::Proximity;
use skein_core::{MachineId, NodeNumber};

use crate::api::ApiState;
use crate::api::auth::{AnyMethod, Caller};
use crate::api::body::{Params, done, ok};
use crate::api::error::ApiError;

/// How long a barrier waits for the nodes that are behind.
const BARRIER: Duration = Duration::from_secs(30);

pub(super) async fn status(State(state): State<ApiState>, _caller: Caller) -> Response {
    let (node, registry) = (state.node(), state.node().registry.status());
    let cluster = state.facts().settings().map(|settings| settings.cluster.to_string());
    ok(&StatusJson {
        node: node.name.clone(),
        region: node.region,
        cluster: cluster.unwrap_or_default(),
        isolation: node.isolation.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        snapshot: node.reader.load().version,
        applied: registry.applied,
        leader: registry.leader,
        voters: registry.voters,
    })
}

/// The nodes that were admitted and that gossip knows, by number.
pub(super) async fn nodes(State(state): State<ApiState>, _caller: Caller) -> Response {
    let (facts, snapshot) = (state.facts(), state.node().reader.load());
    let registry = state.node().registry.status();
    let role = |number: NodeNumber| match () {
        () if registry.leader == Some(number) => "leader",
        () if registry.voters.contains(&number) => "voter",
        () => "learner",
    };
    let admitted = snapshot.nodes.iter().filter(|(number, _)| facts.node(**number).is_some());
    let shown = admitted.map(|(number, view)| NodeJson {
        number: *number,
        name: view.record.name.clone(),
        region: view.record.region,
        alive: view.alive,
        draining: view.record.draining,
        suspect: state.node().peers.suspect(*number),
        registry: role(*number).to_owned(),
        machines: view.machines.len(),
        rtt_ms: state.node().peers.rtt(*number).as_secs_f64() * 1e3,
        api: view.record.api,
    });
    ok(&shown.collect::<Vec<_>>())
}

/// All Machines of this node's snapshot that the caller may see; `?id=` narrows it to one.
pub(super) async fn machines(
    State(state): State<ApiState>,
    caller: Caller,
    params: Params,
) -> Result<Response, ApiError> {
    let wanted: Option<MachineId> = params.get("id").map(str::parse).transpose().map_err(|error| {
        // An id that can't exist: nothing is found, but the caller may want to know why.
        ApiError::bad_request(format!("{error}"))
    })?;
    let (facts, snapshot) = (state.facts(), state.node().reader.load());
    let all = snapshot.nodes.values().flat_map(|node| node.machines.values());
    let shown = all.filter(|machine| wanted.is_none_or(|id| machine.record.id == id)).filter_map(|machine| {
        let app = facts.app(machine.record.app);
        let visible = app.map_or(caller.scope == Scope::Cluster, |app| caller.sees(app.org));
        visible.then(|| SeenMachineJson {
            id: machine.record.id,
            app: app.map(|app| app.name.clone()),
            node: machine.node,
            region: machine.region,
            state: machine.record.state,
            healthy: machine.record.healthy,
            cordoned: machine.record.cordoned,
            changed_ms: machine.record.changed_ms,
            seen_ms: machine.seen_ms,
            configured: machine.config.is_some(),
        })
    });
    Ok(ok(&shown.collect::<Vec<_>>()))
}

/// Answers once every live node has seen all that any of them knew when this began.
pub(super) async fn barrier(
    State(state): State<ApiState>,
    AnyMethod(_caller): AnyMethod,
) -> Result<Response, ApiError> {
    state.node().barrier(BARRIER).await.map_err(|error| ApiError::too_late(format!("{error:#}")))?;
    Ok(done())
}

/// Counters as Prometheus text; on loopback without a token (DESIGN section 8).
pub(super) async fn metrics(
    State(state): State<ApiState>,
    extensions: Extensions,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let peer = extensions.get::<ConnectInfo<SocketAddr>>();
    if !peer.is_some_and(|ConnectInfo(peer)| peer.ip().is_loopback()) {
        Caller::of(&state.facts(), &headers)?.operator()?;
    }
    let mut response = state.node().edge.metrics().into_response();
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    Ok(response)
}
