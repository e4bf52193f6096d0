//! `/v1/apps/{app}/ip_assignments` (`COMPAT` 3.1, SPEC PUB-1).

use std::net::IpAddr;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use serde::{Deserialize, Serialize};
use skein_core::facts::{Address, AddressKind, Command, Outcome};

use super::auth::Caller;
use super::body::{JsonBody, ok};
use super::error::ApiError;
use super::{ApiState, rfc3339};

/// Routes of addresses.
pub(super) fn router() -> Router<ApiState> {
    Router::new()
        .route("/apps/{app}/ip_assignments", get(list).post(allocate))
        .route("/apps/{app}/ip_assignments/{ip}", delete(release))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Wanted {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct IpJson {
    ip: IpAddr,
    region: &'static str,
    service_name: &'static str,
    shared: bool,
    created_at: String,
    #[serde(rename = "type")]
    kind: AddressKind,
    /// Only a private address has one.
    network: Option<()>,
}

impl From<&Address> for IpJson {
    fn from(address: &Address) -> Self {
        Self {
            ip: address.ip,
            region: "global",
            service_name: "",
            shared: address.kind == AddressKind::SharedV4,
            created_at: rfc3339(address.created_ms),
            kind: address.kind,
            network: None,
        }
    }
}

async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Path(app): Path<String>,
) -> Result<Response, ApiError> {
    let facts = state.facts();
    let app = caller.below_app(&facts, &app)?.id;
    let ips: Vec<IpJson> =
        facts.addresses_of(app).into_iter().map(|address| IpJson::from(&**address)).collect();
    Ok(ok(&serde_json::json!({ "ips": ips })))
}

fn kind(text: &str) -> Result<AddressKind, ApiError> {
    match text {
        "v4" => Ok(AddressKind::V4),
        "v6" => Ok(AddressKind::V6),
        "shared_v4" => Ok(AddressKind::SharedV4),
        "private_v6" => Err(ApiError::not_provided("private_v6 (Flycast) addresses are")),
        other => Err(ApiError::bad_request(format!(
            "type {other:?} is not known; one of v4, v6, shared_v4 is needed"
        ))),
    }
}

async fn allocate(
    State(state): State<ApiState>,
    caller: Caller,
    Path(app): Path<String>,
    JsonBody(wanted): JsonBody<Wanted>,
) -> Result<Response, ApiError> {
    let app = caller.below_app(&state.facts(), &app)?.id;
    let Outcome::Address(address) =
        state.propose(Command::Allocate { app, kind: kind(&wanted.kind)? }).await?
    else {
        return Err(ApiError::internal("the registry allotted no address and gave no reason"));
    };
    Ok(ok(&IpJson::from(&address)))
}

async fn release(
    State(state): State<ApiState>,
    caller: Caller,
    Path((app, ip)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let facts = state.facts();
    let app = caller.below_app(&facts, &app)?.id;
    let ip: IpAddr = ip.parse().map_err(|_| ApiError::not_found("ip address"))?;
    if !facts.addresses_of(app).iter().any(|address| address.ip == ip) {
        return Err(ApiError::not_found("ip address"));
    }
    state.propose(Command::Release { app, ip }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_the_shape_that_clients_read() {
        let address = Address {
            ip: "203.0.113.1".parse().unwrap(),
            app: skein_core::AppId(ulid::Ulid(1)),
            kind: AddressKind::SharedV4,
            created_ms: 0,
        };
        assert_eq!(
            serde_json::to_value(IpJson::from(&address)).unwrap(),
            serde_json::json!({
                "ip": "203.0.113.1", "region": "global", "service_name": "", "shared": true,
                "created_at": "1970-01-01T00:00:00Z", "type": "shared_v4", "network": null,
            })
        );
    }

    #[test]
    fn kinds_that_are_not_built_are_501_and_unknown_ones_400() {
        assert_eq!(kind("v6").unwrap(), AddressKind::V6);
        let private = kind("private_v6").unwrap_err();
        assert_eq!(private.status, StatusCode::NOT_IMPLEMENTED);
        assert!(private.error.contains("private_v6"));
        assert_eq!(kind("v5").unwrap_err().status, StatusCode::BAD_REQUEST);
        assert_eq!(kind("").unwrap_err().status, StatusCode::BAD_REQUEST);
    }
}
