//! New Machines: where they go, and that the caller sees them at once.

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use skein_core::facts::App;
use skein_core::machine::{MachineConfig, MachineJson};
use skein_core::{MachineId, RegionCode};
use skein_machine::Create;

use super::leases;
use super::list::elsewhere;
use crate::api::auth::Caller;
use crate::api::body::{JsonBody, ok};
use crate::api::error::ApiError;
use crate::api::forward::{self, Forwarded};
use crate::api::place::place;
use crate::api::validate::prepare;
use crate::api::{ApiState, READ_YOUR_WRITES};

/// The variable of a configuration that names the app's primary region.
const PRIMARY_REGION: &str = "PRIMARY_REGION";

/// `CreateMachineRequest` of the reference.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct CreateMachine {
    name: Option<String>,
    region: Option<String>,
    config: Option<MachineConfig>,
    skip_launch: bool,
    skip_service_registration: bool,
    lease_ttl: Option<u64>,
}

/// A Machine with the nonce of the lease that its creator asked for.
#[derive(Debug, Serialize)]
struct Made {
    #[serde(flatten)]
    machine: MachineJson,
    #[serde(skip_serializing_if = "Option::is_none")]
    nonce: Option<String>,
}

pub(super) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Forwarded(forwarded): Forwarded,
    Path(app): Path<String>,
    headers: HeaderMap,
    JsonBody(mut body): JsonBody<CreateMachine>,
) -> Result<Response, ApiError> {
    let facts = state.facts();
    let app = caller.below_app(&facts, &app)?.clone();
    let config = body.config.as_mut().ok_or_else(|| ApiError::bad_request("config is needed"))?;
    prepare(config)?;
    let primary: Option<RegionCode> = config.env.get(PRIMARY_REGION).and_then(|region| region.parse().ok());
    let node = if forwarded {
        state.node().number
    } else {
        let otherwise: Vec<RegionCode> = primary.into_iter().chain([state.node().region]).collect();
        let wanted = body.region.as_deref().filter(|region| !region.is_empty());
        if let Some(name) = body.name.as_deref().filter(|name| !name.is_empty()) {
            name_is_free(&state, &app, &headers, name).await?;
        }
        place(&state.node().reader.load(), &state.node().regions, wanted, &otherwise)?
    };
    if node == state.node().number {
        let made = here(&state, caller, &app, body).await?;
        seen(&state, made.machine.id).await;
        return Ok(ok(&made));
    }
    let bytes = serde_json::to_vec(&body).map_err(|error| ApiError::internal(error.to_string()))?;
    let target = format!("/v1/apps/{}/machines", app.name);
    let call = forward::call(&state, &headers, "POST", target, Bytes::from(bytes));
    let answer = forward::ask(&state, node, call, forward::WRITE).await?;
    if let Ok(made) = forward::value::<MachineJson>(&answer) {
        seen(&state, made.id).await;
    }
    Ok(forward::response(answer))
}

/// Refuses a name that another Machine of the app has (`COMPAT` 3.1: 409). Two calls at the same
/// moment at different nodes may both pass: names of Machines are their nodes', not the registry's.
async fn name_is_free(state: &ApiState, app: &App, headers: &HeaderMap, name: &str) -> Result<(), ApiError> {
    let target = format!("/v1/apps/{}/machines", app.name);
    let mut machines = state.node().machines.list(Some(app.id));
    machines.extend(elsewhere(state, app, headers, &target).await);
    match machines.iter().find(|machine| machine.name == name && !machine.state.is_final()) {
        None => Ok(()),
        Some(taken) => Err(ApiError::conflict(format!(
            "unique machine name violation, machine ID {} already exists with name \"{name}\"",
            taken.id
        ))),
    }
}

async fn here(state: &ApiState, caller: Caller, app: &App, body: CreateMachine) -> Result<Made, ApiError> {
    let config = body.config.unwrap_or_default();
    let create = Create {
        app: app.id,
        app_name: app.name.clone(),
        network: app.network,
        name: body.name.filter(|name| !name.is_empty()),
        config,
        skip_launch: body.skip_launch,
        cordoned: body.skip_service_registration,
    };
    let machine = state.node().machines.create(create).await?;
    let lease = body.lease_ttl.filter(|ttl| *ttl > 0);
    let version = machine.instance_id.to_string();
    let lease = lease.map(|ttl| leases::take_new(state, machine.id, caller, ttl, String::new(), version));
    Ok(Made { machine, nonce: lease.transpose()?.map(|lease| lease.nonce) })
}

/// Waits until this node's own snapshot holds the Machine, so that whoever made it through this node
/// finds it (SPEC API-4). It is made all the same when that takes too long.
async fn seen(state: &ApiState, id: MachineId) {
    let reader = &state.node().reader;
    let mut versions = reader.watch();
    let known = async { while reader.load().machine(id).is_none() && versions.changed().await.is_ok() {} };
    if tokio::time::timeout(READ_YOUR_WRITES, known).await.is_err() {
        tracing::warn!(machine = %id, "a Machine was made and gossip has not told of it yet");
    }
}
