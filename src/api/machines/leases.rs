//! Leases of this node's Machines.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use skein_cluster::{clock, entropy};
use skein_core::MachineId;

use super::owner::Owned;
use crate::api::ApiState;
use crate::api::auth::Caller;
use crate::api::body::{JsonBody, Params, done, json, ok};
use crate::api::error::ApiError;
use crate::api::forward::LEASE_NONCE;
use crate::api::lease::{Lease, LeaseError};

/// How long a lease is when nobody says, in seconds.
const TTL: u64 = 30;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TakeLease {
    ttl: Option<u64>,
    description: Option<String>,
}

/// What clients read a lease out of.
#[derive(Debug, Serialize)]
struct Envelope<'a> {
    status: &'static str,
    data: &'a Lease,
}

impl From<LeaseError> for ApiError {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Held(_) => Self::conflict(error.to_string()),
            LeaseError::None => Self::not_found("lease"),
        }
    }
}

fn now() -> u64 {
    clock::unix_ms() / 1000
}

fn nonce(headers: &HeaderMap) -> Option<&str> {
    headers.get(LEASE_NONCE)?.to_str().ok()
}

/// Refuses a change while somebody else holds the Machine's lease.
pub(super) fn check(state: &ApiState, id: MachineId, headers: &HeaderMap) -> Result<(), ApiError> {
    Ok(state.leases(|leases| leases.allows(id, nonce(headers), now()))?)
}

/// Takes a lease of a Machine that has none.
pub(super) fn take_new(
    state: &ApiState,
    id: MachineId,
    caller: Caller,
    ttl: u64,
    description: String,
    version: String,
) -> Result<Lease, ApiError> {
    Ok(state.leases(|leases| leases.take(id, None, ttl, now(), || new(caller, description, version)))?)
}

fn new(caller: Caller, description: String, version: String) -> Lease {
    let nonce = HEXLOWER.encode(&entropy::secret::<8>());
    Lease { nonce, expires_at: 0, owner: caller.token.to_string(), description, version }
}

pub(super) async fn show(State(state): State<ApiState>, owned: Owned) -> Result<Response, ApiError> {
    owned.machine(&state)?;
    let lease = state.leases(|leases| leases.get(owned.id, now()).cloned());
    let lease = lease.ok_or_else(|| ApiError::not_found("lease"))?;
    Ok(ok(&Envelope { status: "success", data: &lease }))
}

pub(super) async fn take(
    State(state): State<ApiState>,
    owned: Owned,
    params: Params,
    headers: HeaderMap,
    JsonBody(body): JsonBody<TakeLease>,
) -> Result<Response, ApiError> {
    let machine = owned.machine(&state)?;
    let in_query = params.get("ttl").map(str::parse::<u64>).transpose();
    let in_query = in_query.map_err(|_| ApiError::bad_request("ttl is a number of seconds"))?;
    let ttl = in_query.or(body.ttl).unwrap_or(TTL);
    let (description, version) = (body.description.unwrap_or_default(), machine.instance_id.to_string());
    let new = || new(owned.caller, description, version);
    let lease = state.leases(|leases| leases.take(owned.id, nonce(&headers), ttl, now(), new))?;
    Ok(json(StatusCode::CREATED, &Envelope { status: "success", data: &lease }))
}

pub(super) async fn release(
    State(state): State<ApiState>,
    owned: Owned,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    state.leases(|leases| leases.release(owned.id, nonce(&headers), now()))?;
    Ok(done())
}
