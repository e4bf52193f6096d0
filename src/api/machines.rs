//! `/v1/apps/{app}/machines` (`COMPAT` 3.1).
//!
//! What concerns one Machine is answered by its node: [`owner::at_owner`] sends a call there before
//! its handler runs, so the handlers in [`verbs`] and [`leases`] know this node's Machines only.

mod create;
mod leases;
mod list;
mod owner;
mod verbs;

use axum::Router;
use axum::middleware;
use axum::routing::{any, get, post};

use super::ApiState;

/// Routes of Machines.
pub(super) fn router(state: &ApiState) -> Router<ApiState> {
    const ONE: &str = "/apps/{app}/machines/{machine}";
    let below = |rest: &str| format!("{ONE}/{rest}");
    let of_one = Router::new()
        .route(ONE, get(verbs::show).post(verbs::update).delete(verbs::destroy))
        .route(&below("start"), post(verbs::start))
        .route(&below("stop"), post(verbs::stop))
        .route(&below("restart"), post(verbs::restart))
        .route(&below("signal"), post(verbs::signal))
        .route(&below("cordon"), post(verbs::cordon))
        .route(&below("uncordon"), post(verbs::uncordon))
        .route(&below("wait"), get(verbs::wait))
        .route(&below("events"), get(verbs::events))
        .route(&below("lease"), get(leases::show).post(leases::take).delete(leases::release))
        .route(&below("suspend"), post(verbs::suspend))
        .route(&below("exec"), any(verbs::not_provided))
        .route(&below("memory"), any(verbs::not_provided))
        .route(&below("memory/reclaim"), any(verbs::not_provided))
        .route(&below("metadata"), any(verbs::not_provided))
        .route(&below("metadata/{key}"), any(verbs::not_provided))
        .route(&below("ps"), any(verbs::not_provided))
        .route(&below("versions"), any(verbs::not_provided))
        .route_layer(middleware::from_fn_with_state(state.clone(), owner::at_owner));
    Router::new().route("/apps/{app}/machines", get(list::list).post(create::create)).merge(of_one)
}
