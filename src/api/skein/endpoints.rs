//! Where on this machine to connect to reach a public address and port at a node (DESIGN section 8).

use std::net::SocketAddr;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use skein_core::api::{EndpointJson, EndpointRequest};
use skein_core::facts::App;
use skein_core::region::{RegionCode, Regions};
use skein_core::snapshot::Snapshot;
use skein_core::suspicion::Proximity;
use skein_core::{NodeName, NodeNumber};
use tokio::task::JoinSet;

use crate::api::ApiState;
use crate::api::auth::AnyMethod;
use crate::api::body::{JsonBody, ok};
use crate::api::error::ApiError;
use crate::api::forward::{self, Forwarded};

pub(super) async fn endpoints(
    State(state): State<ApiState>,
    AnyMethod(caller): AnyMethod,
    Forwarded(forwarded): Forwarded,
    headers: HeaderMap,
    JsonBody(request): JsonBody<EndpointRequest>,
) -> Result<Response, ApiError> {
    let facts = state.facts();
    let app = caller.below_app(&facts, request.app.as_str())?;
    match request.protocol.as_deref() {
        None | Some("tcp") => {}
        Some("udp") => return Err(ApiError::not_provided("UDP endpoints are")),
        Some(other) => {
            return Err(ApiError::bad_request(format!("protocol {other:?} is neither tcp nor udp")));
        }
    }
    if request.port == 0 {
        return Err(ApiError::bad_request("a port from 1 to 65535 is needed"));
    }
    if facts.addresses_of(app.id).is_empty() {
        let name = &app.name;
        return Err(ApiError::unprocessable(format!(
            "app {name} has no public address; `skein ips allocate-v6 -a {name}` allots one"
        )));
    }
    if forwarded {
        return Ok(ok(&here(&state, app, request.port).await?));
    }
    let nodes = nodes(&state, &request)?;
    let one = nodes.len() == 1;
    let mut asked = JoinSet::new();
    for (number, name) in nodes.iter().cloned() {
        let (state, app, headers) = (state.clone(), app.clone(), headers.clone());
        let request = EndpointRequest { node: Some(name), from: None, ..request.clone() };
        asked.spawn(async move {
            let answer = match number == state.node().number {
                true => here(&state, &app, request.port).await,
                false => there(&state, number, &headers, &request).await,
            };
            (number, answer)
        });
    }
    let mut found = Vec::new();
    while let Some(answer) = asked.join_next().await {
        match answer {
            Ok((number, Ok(endpoints))) => found.push((number, endpoints)),
            Ok((_, Err(error))) if one => return Err(error),
            // One of many that died meanwhile: nobody could connect there.
            Ok((number, Err(error))) => {
                tracing::warn!(%number, error = error.error, "a node's endpoints are left out");
            }
            Err(error) => return Err(ApiError::internal(error.to_string())),
        }
    }
    let place = |number: &NodeNumber| nodes.iter().position(|(of, _)| of == number);
    found.sort_by_key(|(number, _)| place(number));
    Ok(ok(&found.into_iter().flat_map(|(_, endpoints)| endpoints).collect::<Vec<_>>()))
}

/// This node's part: its addresses in the documented order.
async fn here(state: &ApiState, app: &App, port: u16) -> Result<Vec<EndpointJson>, ApiError> {
    let node = state.node();
    let mut endpoints = Vec::new();
    for address in state.facts().addresses_of(app.id) {
        let connect = node.mappings.map(SocketAddr::new(address.ip, port)).await.map_err(|error| {
            ApiError::unavailable(format!("{}: port {port} of {}: {error:#}", node.name, address.ip))
        })?;
        let (node, region) = (node.name.clone(), node.region);
        endpoints.push(EndpointJson { node, region, public: address.ip, port, connect });
    }
    Ok(endpoints)
}

async fn there(
    state: &ApiState,
    node: NodeNumber,
    headers: &HeaderMap,
    request: &EndpointRequest,
) -> Result<Vec<EndpointJson>, ApiError> {
    let body = serde_json::to_vec(request).map_err(|error| ApiError::internal(error.to_string()))?;
    let call = forward::call(state, headers, "POST", "/skein/v1/endpoints", Bytes::from(body));
    forward::value(&forward::ask(state, node, call, forward::READ).await?)
}

/// The nodes that are meant, by number.
fn nodes(state: &ApiState, request: &EndpointRequest) -> Result<Vec<(NodeNumber, NodeName)>, ApiError> {
    let snapshot = state.node().reader.load();
    let named = |number: NodeNumber| Some((number, snapshot.nodes.get(&number)?.record.name.clone()));
    if let Some(wanted) = &request.node {
        let found = snapshot.nodes.values().find(|node| node.record.name == *wanted);
        let known = || snapshot.nodes.values().map(|node| &node.record.name);
        let found = found.ok_or_else(|| super::no_node(wanted.as_str(), known()))?;
        return Ok(named(found.record.number).into_iter().collect());
    }
    if let Some(from) = &request.from {
        let regions = &state.node().regions;
        let from = regions.find(from).map_err(|error| ApiError::bad_request(error.to_string()))?.code;
        let front = front(&snapshot, regions, from, &*state.node().peers);
        let front = front.ok_or_else(|| ApiError::unavailable("no node takes clients"))?;
        return Ok(named(front).into_iter().collect());
    }
    let alive = snapshot.nodes.iter().filter(|(_, node)| node.alive);
    Ok(alive.filter_map(|(number, _)| named(*number)).collect())
}

/// The anycast front's choice for a client in a region: of the live nodes that are not draining the
/// nearest, one that is not suspect if there is any (SPEC TB-5).
fn front(
    snapshot: &Snapshot,
    regions: &Regions,
    from: RegionCode,
    peers: &dyn Proximity,
) -> Option<NodeNumber> {
    let open = snapshot.nodes.iter().filter(|(_, node)| node.alive && !node.record.draining);
    let key = |number: NodeNumber, region: RegionCode| {
        (peers.suspect(number), regions.simulated_rtt(from, region), number)
    };
    open.map(|(number, node)| key(*number, node.record.region)).min().map(|(_, _, number)| number)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use skein_core::key::NodeRecord;
    use skein_core::snapshot::{Changes, NodeFacts, fold};

    use super::*;

    struct Suspects(Vec<u32>);
    impl Proximity for Suspects {
        fn rtt(&self, _node: NodeNumber) -> Duration {
            Duration::ZERO
        }
        fn suspect(&self, node: NodeNumber) -> bool {
            self.0.contains(&node.0)
        }
    }

    fn choice(rows: &[(u32, &str, bool)], from: &str, suspects: &[u32]) -> Option<u32> {
        let nodes = rows.iter().map(|&(number, region, draining)| {
            let record = NodeRecord {
                number: NodeNumber(number),
                name: format!("{region}-{number}").parse().unwrap(),
                region: region.parse().unwrap(),
                backhaul: "127.0.0.1:1".parse().unwrap(),
                api: "127.0.0.1:2".parse().unwrap(),
                draining,
                build: String::new(),
            };
            NodeFacts {
                record,
                generation: 1,
                version: 1,
                alive: true,
                confirmed: std::sync::Arc::default(),
                machines: imbl::OrdMap::new(),
            }
        });
        let snapshot = fold(&Snapshot::default(), Changes { nodes: nodes.collect(), ..Changes::default() });
        let suspects = Suspects(suspects.to_vec());
        front(&snapshot, &Regions::default(), from.parse().unwrap(), &suspects).map(|number| number.0)
    }

    #[test]
    fn the_front_sends_a_client_to_the_nearest_edge_and_withdraws_draining_and_suspect_ones() {
        let rows = [(1, "iad", false), (2, "lhr", false), (3, "nrt", false)];
        assert_eq!(choice(&rows, "cdg", &[]), Some(2));
        assert_eq!(choice(&rows, "syd", &[]), Some(3));
        assert_eq!(choice(&rows, "cdg", &[2]), Some(1));
        assert_eq!(choice(&rows, "cdg", &[1, 2, 3]), Some(2), "when all are suspect the nearest is tried");
        assert_eq!(choice(&[(1, "iad", true), (2, "lhr", false)], "iad", &[]), Some(2));
        assert_eq!(choice(&[(1, "iad", true)], "iad", &[]), None);
    }
}
