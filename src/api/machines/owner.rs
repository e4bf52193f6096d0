//! Whose a Machine is, and the way there.

use axum::body::to_bytes;
use axum::extract::{FromRequestParts, RawPathParams, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use skein_core::facts::App;
use skein_core::machine::{ImageRef, MachineJson};
use skein_core::snapshot::{MachineView, NodeView};
use skein_core::{AppId, MachineId, NodeNumber, sixpn};
use tokio::task::JoinSet;

use crate::api::auth::Caller;
use crate::api::body::ok;
use crate::api::error::ApiError;
use crate::api::forward::{self, Forwarded};
use crate::api::{ApiState, rfc3339};

/// The longest body of a call on a Machine, in bytes.
const MAX_BODY: usize = 2 << 20;

/// The Machine that a call is about: of this node when the call is not from another one.
#[derive(Debug, Clone)]
pub(crate) struct Owned {
    /// Its id.
    pub(crate) id: MachineId,
    /// Who called.
    pub(crate) caller: Caller,
}

impl Owned {
    /// The Machine as the API shows it.
    pub(crate) fn machine(&self, state: &ApiState) -> Result<MachineJson, ApiError> {
        Ok(state.node().machines.get(self.id)?)
    }
}

impl<S: Sync> FromRequestParts<S> for Owned {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        let owned = parts.extensions.get::<Self>().cloned();
        owned.ok_or_else(|| ApiError::internal("the call did not pass the search for its Machine"))
    }
}

/// Checks who calls, finds the Machine's node, and either lets the handler answer here or answers
/// what that node answers.
pub(super) async fn at_owner(
    State(state): State<ApiState>,
    params: RawPathParams,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let param = |name: &str| params.iter().find(|(key, _)| *key == name).map(|(_, value)| value);
    let (mut parts, body) = request.into_parts();
    let Ok(Forwarded(forwarded)) = Forwarded::from_request_parts(&mut parts, &state).await;
    let facts = state.facts();
    let caller = Caller::of(&facts, &parts.headers)?;
    caller.may(&parts.method)?;
    let app = caller.below_app(&facts, param("app").unwrap_or_default())?.clone();
    // What is no id is an id that does not exist (SPEC RUN-1).
    let id: MachineId =
        param("machine").and_then(|text| text.parse().ok()).ok_or_else(|| ApiError::not_found("machine"))?;

    if state.node().machines.app_of(id).is_some_and(|(of, _)| of == app.id) {
        parts.extensions.insert(Owned { id, caller });
        return Ok(next.run(Request::from_parts(parts, body)).await);
    }
    if forwarded {
        return Err(ApiError::not_found("machine"));
    }
    let owner = match known_owner(&state, app.id, id) {
        Some(owner) => owner,
        None => search(&state, &parts.headers, &app, id).await?,
    };
    let body = to_bytes(body, MAX_BODY)
        .await
        .map_err(|_| ApiError::new(axum::http::StatusCode::PAYLOAD_TOO_LARGE, "the body is too long"))?;
    let target = parts.uri.path_and_query().map_or_else(|| parts.uri.path().to_owned(), ToString::to_string);
    let read = parts.method.is_safe() && !parts.uri.path().ends_with("/wait");
    let timeout = if read { forward::READ } else { forward::WRITE };
    let call = forward::call(&state, &parts.headers, parts.method.as_str(), original(&parts, target), body);
    match forward::ask(&state, owner, call, timeout).await {
        Ok(answer) => Ok(forward::response(answer)),
        Err(error) if parts.method == Method::GET && parts.uri.path().ends_with(&id.to_string()) => {
            // Its node does not answer: what is known of it, marked as such.
            unreachable(&state, &app, id).map(|machine| ok(&machine)).ok_or(error)
        }
        Err(error) => Err(error),
    }
}

/// The target as the client sent it: nesting has cut the prefix off the URI.
fn original(parts: &Parts, cut: String) -> String {
    match parts.extensions.get::<axum::extract::OriginalUri>() {
        Some(axum::extract::OriginalUri(uri)) => {
            uri.path_and_query().map_or_else(|| uri.path().to_owned(), ToString::to_string)
        }
        None => cut,
    }
}

fn known_owner(state: &ApiState, app: AppId, id: MachineId) -> Option<NodeNumber> {
    let snapshot = state.node().reader.load();
    let view = snapshot.apps.get(&app)?;
    let alive = |node: &NodeNumber| snapshot.nodes.get(node).is_some_and(|node| node.alive);
    let claims = || view.machines.keys().filter(|(machine, _)| *machine == id).map(|(_, node)| *node);
    claims().find(alive).or_else(|| claims().next())
}

/// Asks every live node for a Machine that gossip has not told of: it may be younger than gossip.
async fn search(
    state: &ApiState,
    headers: &HeaderMap,
    app: &App,
    id: MachineId,
) -> Result<NodeNumber, ApiError> {
    let snapshot = state.node().reader.load();
    let own = state.node().number;
    let others = snapshot.nodes.iter().filter(|(number, node)| **number != own && node.alive);
    let mut asked = JoinSet::new();
    for (number, _) in others {
        let target = format!("/v1/apps/{}/machines/{id}", app.name);
        let call = forward::call(state, headers, "GET", target, Bytes::new());
        let (state, number) = (state.clone(), *number);
        asked.spawn(async move {
            let answer = forward::ask(&state, number, call, forward::READ).await.ok()?;
            (answer.status == 200).then_some(number)
        });
    }
    while let Some(answer) = asked.join_next().await {
        if let Ok(Some(owner)) = answer {
            return Ok(owner);
        }
    }
    Err(ApiError::not_found("machine"))
}

/// A Machine whose node does not answer.
fn unreachable(state: &ApiState, app: &App, id: MachineId) -> Option<MachineJson> {
    let snapshot = state.node().reader.load();
    let view = snapshot.apps.get(&app.id)?;
    let machine = view.machines.iter().find(|((machine, _), _)| *machine == id)?.1;
    Some(from_snapshot(app, machine, snapshot.nodes.get(&machine.node)?))
}

/// What the snapshot tells of a Machine: gossip carries neither its name nor its events.
pub(super) fn from_snapshot(app: &App, machine: &MachineView, node: &NodeView) -> MachineJson {
    let record = &machine.record;
    let config = machine.config.as_deref().cloned().unwrap_or_default();
    let versioned = record.version.0.timestamp_ms();
    MachineJson {
        id: record.id,
        name: String::new(),
        state: record.state,
        region: machine.region,
        instance_id: record.version,
        private_ip: sixpn::machine(app.network, machine.node, record.number).to_string(),
        image_ref: ImageRef::parse(&config.image),
        config,
        created_at: rfc3339(versioned),
        updated_at: rfc3339(record.changed_ms.max(versioned)),
        events: Vec::new(),
        checks: Vec::new(),
        host_status: "unreachable".to_owned(),
        cordoned: record.cordoned,
        node: Some(node.record.name.clone()),
        start_ms: record.start_ms,
        resume_ms: 0,
    }
}
