//! `/v1/apps` (`COMPAT` 3.1).

use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use serde::{Deserialize, Serialize};
use skein_cluster::clock;
use skein_cluster::entropy::Entropy;
use skein_core::facts::{App, Command, Outcome, State as Facts};
use skein_core::snapshot::Snapshot;
use skein_core::{AppId, AppName, NetworkName};

use super::ApiState;
use super::auth::Caller;
use super::body::{JsonBody, Params, json, ok};
use super::error::ApiError;

/// How long the destruction of an app waits for its Machines to be gone.
const MACHINES_END: Duration = Duration::from_secs(10);

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
    let Outcome::App(app) = state.propose(Command::CreateApp { id, name, org, network }).await? else {
        return Err(ApiError::internal("the registry made no app and gave no reason"));
    };
    let made = serde_json::json!({ "id": app.id.to_string(), "created_at": app.created_ms });
    Ok(json(StatusCode::CREATED, &made))
}

/// Destroys the app; its nodes then destroy its Machines, those that are away once they are back.
/// The answer waits a while for the nodes that are there.
async fn destroy(
    State(state): State<ApiState>,
    caller: Caller,
    Path(app): Path<String>,
) -> Result<Response, ApiError> {
    let id = caller.app(&state.facts(), &app)?.id;
    state.propose(Command::DestroyApp { id }).await?;
    let reader = &state.node().reader;
    let mut versions = reader.watch();
    let empty = async { while runs_somewhere(&reader.load(), id) && versions.changed().await.is_ok() {} };
    if tokio::time::timeout(MACHINES_END, empty).await.is_err() {
        tracing::warn!(app, "the app is destroyed, and some of its Machines are not yet");
    }
    Ok(json(StatusCode::ACCEPTED, &serde_json::json!({ "ok": true })))
}

/// Whether a live node has a Machine of the app.
fn runs_somewhere(snapshot: &Snapshot, app: AppId) -> bool {
    let mut alive = snapshot.nodes.values().filter(|node| node.alive);
    alive.any(|node| node.machines.values().any(|machine| machine.record.app == app))
}
