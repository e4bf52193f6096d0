//! The Machines of an app: every node that has some is asked, those that do not answer are shown as
//! the snapshot has them.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::{OriginalUri, Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use skein_core::NodeNumber;
use skein_core::facts::App;
use skein_core::machine::{MachineJson, MachineState};
use skein_core::region::RegionCode;
use tokio::task::JoinSet;

use super::owner::from_snapshot;
use crate::api::ApiState;
use crate::api::auth::Caller;
use crate::api::body::{Params, ok};
use crate::api::error::ApiError;
use crate::api::forward::{self, Forwarded};

/// What a list is narrowed to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Filter {
    region: Option<RegionCode>,
    states: Vec<MachineState>,
    metadata: Vec<(String, String)>,
    deleted: bool,
}

impl Filter {
    fn parse(params: &Params) -> Result<Self, ApiError> {
        let region = params.get("region").map(str::parse).transpose();
        let states = params.all("state").flat_map(|list| list.split(',')).map(str::parse).collect();
        let states: Result<Vec<MachineState>, _> = states;
        Ok(Self {
            region: region.map_err(|error| ApiError::bad_request(format!("{error}")))?,
            states: states.map_err(|error| ApiError::bad_request(format!("{error}")))?,
            metadata: params
                .below("metadata.")
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
            deleted: params.flag("include_deleted"),
        })
    }

    fn takes(&self, machine: &MachineJson) -> bool {
        let config = &machine.config;
        self.region.is_none_or(|region| machine.region == region)
            && (self.states.is_empty() || self.states.contains(&machine.state))
            && self.metadata.iter().all(|(key, value)| config.metadata.get(key) == Some(value))
            && (self.deleted || machine.state != MachineState::Destroyed)
    }
}

pub(super) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    Forwarded(forwarded): Forwarded,
    Path(app): Path<String>,
    OriginalUri(uri): OriginalUri,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let facts = state.facts();
    let app = caller.below_app(&facts, &app)?;
    let filter = Filter::parse(&params)?;
    let mut machines = state.node().machines.list(Some(app.id));
    if !forwarded {
        let target = uri.path_and_query().map_or_else(|| uri.path().to_owned(), ToString::to_string);
        machines.extend(elsewhere(&state, app, &headers, &target).await);
    }
    machines.retain(|machine| filter.takes(machine));
    // As the Machines API: the newest version first.
    machines.sort_by(|a, b| (&b.created_at, b.id).cmp(&(&a.created_at, a.id)));
    Ok(ok(&machines))
}

/// The app's Machines on other nodes.
pub(super) async fn elsewhere(
    state: &ApiState,
    app: &App,
    headers: &HeaderMap,
    target: &str,
) -> Vec<MachineJson> {
    let snapshot = state.node().reader.load();
    let Some(view) = snapshot.apps.get(&app.id) else { return Vec::new() };
    let own = state.node().number;
    let nodes: BTreeSet<NodeNumber> =
        view.machines.keys().map(|(_, node)| *node).filter(|node| *node != own).collect();
    let mut asked = JoinSet::new();
    let alive = |node: &&NodeNumber| snapshot.nodes.get(*node).is_some_and(|node| node.alive);
    for node in nodes.iter().filter(alive).copied() {
        let call = forward::call(state, headers, "GET", target, Bytes::new());
        let state = state.clone();
        asked.spawn(async move {
            let answer = forward::ask(&state, node, call, forward::READ).await?;
            Ok::<_, ApiError>((node, forward::value::<Vec<MachineJson>>(&answer)?))
        });
    }
    let mut answered: BTreeMap<NodeNumber, Vec<MachineJson>> = BTreeMap::new();
    while let Some(answer) = asked.join_next().await {
        match answer {
            Ok(Ok((node, machines))) => drop(answered.insert(node, machines)),
            Ok(Err(error)) => {
                tracing::debug!(error = error.error, "a node's Machines are shown as last seen")
            }
            Err(error) => tracing::error!(%error, "asking a node for its Machines failed"),
        }
    }
    let silent = view.machines.iter().filter(|((_, node), _)| *node != own && !answered.contains_key(node));
    let silent = silent
        .filter_map(|((_, node), machine)| Some(from_snapshot(app, machine, snapshot.nodes.get(node)?)));
    let mut machines: Vec<MachineJson> = silent.collect();
    machines.extend(answered.into_values().flatten());
    machines
}

#[cfg(test)]
mod tests {
    use axum::extract::FromRequestParts;
    use axum::http::Request;

    use super::*;

    async fn filter(query: &str) -> Result<Filter, ApiError> {
        let (mut parts, ()) = Request::get(format!("/x?{query}")).body(()).unwrap().into_parts();
        Filter::parse(&Params::from_request_parts(&mut parts, &()).await.unwrap())
    }

    fn machine(region: &str, state: MachineState) -> MachineJson {
        serde_json::from_value(serde_json::json!({
            "id": "0123456789abcd", "name": "n", "state": state, "region": region,
            "instance_id": "01JNRQ9VVKJ7HZFMJWJB3M3RYN", "private_ip": "",
            "config": {"metadata": {"role": "web"}},
            "image_ref": {"registry": "", "repository": "", "tag": "", "digest": ""},
            "created_at": "", "updated_at": "", "events": [], "checks": [], "host_status": "ok",
        }))
        .unwrap()
    }

    #[tokio::test]
    async fn a_list_is_narrowed_by_region_state_and_metadata() {
        let running = machine("iad", MachineState::Started);
        for query in
            ["", "region=iad", "state=started", "state=stopped,started", "metadata.role=web", "summary=true"]
        {
            assert!(filter(query).await.unwrap().takes(&running), "{query}");
        }
        for query in ["region=lhr", "state=stopped", "metadata.role=worker"] {
            assert!(!filter(query).await.unwrap().takes(&running), "{query}");
        }
        assert_eq!(filter("state=donuts").await.unwrap_err().status.as_u16(), 400);
    }

    #[tokio::test]
    async fn destroyed_machines_are_shown_when_they_are_asked_for() {
        let gone = machine("iad", MachineState::Destroyed);
        assert!(!filter("").await.unwrap().takes(&gone));
        assert!(filter("include_deleted=true").await.unwrap().takes(&gone));
    }
}
