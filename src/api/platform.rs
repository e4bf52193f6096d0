//! The rest of `/v1`: the platform's regions, and what this version does not provide, by name.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use axum::routing::{any, get};
use serde::Serialize;
use serde_json::Value;

use super::ApiState;
use super::auth::Caller;
use super::body::ok;
use super::error::ApiError;

/// Parts of the Machines API that are not built, by their path.
const NOT_PROVIDED: [&str; 17] = [
    "/apps/{app}/certificates",
    "/apps/{app}/certificates/{*rest}",
    "/apps/{app}/deploy_token",
    "/apps/{app}/network_policies",
    "/apps/{app}/network_policies/{*rest}",
    "/apps/{app}/secretkeys",
    "/apps/{app}/secretkeys/{*rest}",
    "/apps/{app}/secrets",
    "/apps/{app}/secrets/{*rest}",
    "/apps/{app}/volumes/{*rest}",
    "/orgs/{org}/machines",
    "/orgs/{org}/volumes",
    "/platform/placements",
    "/tokens/authenticate",
    "/tokens/authorize",
    "/tokens/kms",
    "/tokens/oidc",
];

/// These routes.
pub(super) fn router() -> Router<ApiState> {
    let router = Router::new()
        .route("/platform/regions", get(regions))
        .route("/apps/{app}/volumes", get(no_volumes).post(no_new_volume));
    NOT_PROVIDED.into_iter().fold(router, |router, path| router.route(path, any(not_provided)))
}

#[derive(Debug, Serialize)]
struct Listed {
    #[serde(rename = "Regions")]
    regions: Vec<Region>,
    #[serde(rename = "Nearest")]
    nearest: String,
}

#[derive(Debug, Serialize)]
struct Region {
    code: String,
    name: String,
    latitude: f64,
    longitude: f64,
    gateway_available: bool,
    requires_paid_plan: bool,
    deprecated: bool,
}

async fn regions(State(state): State<ApiState>, _caller: Caller) -> Response {
    let regions = state.node().regions.iter().map(|region| Region {
        code: region.code.to_string(),
        name: region.name.clone(),
        latitude: region.latitude,
        longitude: region.longitude,
        gateway_available: region.gateway,
        requires_paid_plan: false,
        deprecated: false,
    });
    ok(&Listed { regions: regions.collect(), nearest: state.node().region.to_string() })
}

/// There are none, and none can be made.
async fn no_volumes(_caller: Caller) -> Response {
    ok(&Vec::<Value>::new())
}

async fn no_new_volume(_caller: Caller) -> ApiError {
    ApiError::new(StatusCode::NOT_IMPLEMENTED, "volumes are not provided")
}

async fn not_provided(_caller: Caller, uri: Uri) -> ApiError {
    ApiError::not_provided(&format!("{} is", uri.path()))
}
