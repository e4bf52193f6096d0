//! `/v1/apps` (`COMPAT` 3.1).

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::get;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use skein_cluster::clock;
use skein_cluster::entropy::Entropy;
use skein_core::facts::{App, Command, Outcome, State as Facts};
use skein_core::snapshot::Snapshot;
use skein_core::{AppId, AppName, NetworkName};
use tokio::task::JoinSet;

use super::auth::Caller;
use super::body::{JsonBody, Params, json, ok};
use super::error::ApiError;
use super::{ApiState, forward, machines};

/// Routes of apps.
pub(super) fn router() -> Router<ApiState> {
    Router::new().route("/apps", get(list).post(create)).route("/apps/{app}", get(show).delete(destroy))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CreateApp {
    #[serde(alias = "app_name")]
    name: Option<String>,
    org_slug: Option<String>,
    network: Option<String>,
}

#[derive(Debug, Serialize)]
struct AppJson {
    id: String,
    name: AppName,
    status: &'static str,
    machine_count: usize,
    volume_count: usize,
    network: String,
    organization: OrgInfo,
}

#[derive(Debug, Serialize)]
struct OrgInfo {
    name: String,
    slug: String,
}

#[derive(Debug, Serialize)]
struct AppList {
    total_apps: usize,
    apps: Vec<AppJson>,
}

fn shown(facts: &Facts, snapshot: &Snapshot, app: &App) -> AppJson {
    let machines = snapshot.apps.get(&app.id).map_or(0, |view| view.machines.len());
    let org = facts.org(app.org);
    AppJson {
        id: app.id.to_string(),
        name: app.name.clone(),
        status: if machines == 0 { "pending" } else { "deployed" },
        machine_count: machines,
        volume_count: 0,
        network: facts.network(app.network).map(|network| network.name.to_string()).unwrap_or_default(),
        organization: OrgInfo {
            name: org.map(|org| org.name.clone()).unwrap_or_default(),
            slug: org.map(|org| org.slug.to_string()).unwrap_or_default(),
        },
    }
}

async fn list(State(state): State<ApiState>, caller: Caller, params: Params) -> Result<Response, ApiError> {
    let (facts, snapshot) = (state.facts(), state.node().reader.load());
    let org = caller.org(&facts, params.get("org_slug"))?.id;
    let of_org = facts.apps().filter(|app| app.org == org);
    let apps: Vec<AppJson> = of_org.map(|app| shown(&facts, &snapshot, app)).collect();
    Ok(ok(&AppList { total_apps: apps.len(), apps }))
}

async fn show(
    State(state): State<ApiState>,
    caller: Caller,
    Path(app): Path<String>,
) -> Result<Response, ApiError> {
    let (facts, snapshot) = (state.facts(), state.node().reader.load());
    Ok(ok(&shown(&facts, &snapshot, caller.app(&facts, &app)?)))
}

async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    JsonBody(body): JsonBody<CreateApp>,
) -> Result<Response, ApiError> {
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let name = given(body.name).ok_or_else(|| ApiError::bad_request("name is needed"))?;
    let name: AppName = name.parse().map_err(|error| ApiError::unprocessable(format!("{error}")))?;
    let network = match given(body.network) {
        Some(network) => network.parse().map_err(|error| ApiError::unprocessable(format!("{error}")))?,
        None => NetworkName::default_network(),
    };
    let org = caller.org(&state.facts(), given(body.org_slug).as_deref())?.id;
    let id = AppId::generate(clock::unix_ms(), &mut Entropy::default());
    match state.propose(Command::CreateApp { id, name, org, network }).await? {
        Outcome::App(app) => Ok(json(
            StatusCode::CREATED,
            &serde_json::json!({ "id": app.id.to_string(), "created_at": app.created_ms }),
        )),
        other => Err(ApiError::internal(format!("the registry made {other:?} instead of an app"))),
    }
}

/// Destroys the app's Machines, then the app. A node that is away destroys its Machines of the app
/// when it is back and learns that the app is gone.
async fn destroy(
    State(state): State<ApiState>,
    caller: Caller,
    Path(app): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let facts = state.facts();
    let app = caller.app(&facts, &app)?.clone();
    let status = state.node().registry.status();
    if status.reached * 2 <= status.voters.len() {
        // Checked first: no Machine is destroyed for an app that can't be.
        return Err(ApiError::no_majority(status.reached, status.voters.len()));
    }
    let mut ends = JoinSet::new();
    let snapshot = state.node().reader.load();
    let alive = |node| snapshot.nodes.get(&node).is_some_and(|node| node.alive);
    for (node, id) in machines::of_app(&state, app.id) {
        if !alive(node) && node != state.node().number {
            continue;
        }
        let target = format!("/v1/apps/{}/machines/{id}?force=true", app.name);
        let call = forward::call(&state, &headers, "DELETE", target, Bytes::new());
        let state = state.clone();
        ends.spawn(async move {
            if node == state.node().number {
                return machines::destroy_here(&state, id).await;
            }
            match forward::ask(&state, node, call, forward::WRITE).await {
                Ok(answer) if answer.status == 404 => Ok(()),
                Ok(answer) => forward::value::<serde_json::Value>(&answer).map(drop),
                Err(error) => Err(error),
            }
        });
    }
    let mut failed = Vec::new();
    while let Some(end) = ends.join_next().await {
        match end {
            Ok(Ok(())) => {}
            Ok(Err(error)) => failed.push(error.error),
            Err(error) => failed.push(error.to_string()),
        }
    }
    if let Some(first) = failed.first() {
        let error = format!("{} of the app's Machines are not destroyed: {first}", failed.len());
        return Err(ApiError::unavailable(error));
    }
    state.propose(Command::DestroyApp { id: app.id }).await?;
    Ok(json(StatusCode::ACCEPTED, &serde_json::json!({ "ok": true })))
}
