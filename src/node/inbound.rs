//! What other nodes ask of this one.

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request};
use skein_cluster::BoxFuture;
use skein_cluster::backhaul::{FrameStream, Inbound};
use skein_cluster::barrier::{self, wait_until_seen};
use skein_core::autostop::start::Demand;
use skein_core::explain::Wanted;
use skein_core::id::InvalidId;
use skein_core::wire::{ApiAnswer, ApiCall, Ask, Preamble};
use skein_core::{NodeNumber, codec};
use tokio::time::Instant;
use tower::ServiceExt as _;

use super::handle::NodeHandle;

/// The longest answer of an API call that is carried to another node, in bytes.
const MAX_ANSWER: usize = 8 << 20;
/// Answers peers from the node's parts.
#[derive(Clone)]
pub struct NodeInbound {
    /// The node.
    pub node: NodeHandle,
    /// Its API: calls that were made at another node are answered by the same routes.
    pub router: Router,
}

impl Inbound for NodeInbound {
    fn request(&self, peer: NodeNumber, preamble: Preamble, stream: FrameStream) -> BoxFuture<'static, ()> {
        let edge = self.node.edge.clone();
        Box::pin(async move { edge.serve_request(peer, preamble, stream).await })
    }

    fn ask(&self, peer: NodeNumber, ask: Ask) -> BoxFuture<'static, Result<Bytes, String>> {
        let this = self.clone();
        Box::pin(async move {
            match ask {
                Ask::Api(call) => this.api(call).await,
                Ask::Config(hash) => Ok(this.node.machines.config_json(hash).unwrap_or_default()),
                Ask::Registry(message) => this.node.registry.handle(peer, message.into()).await,
                Ask::Version => {
                    let seen = this.node.own_seen().await.map_err(|error| error.to_string())?;
                    Ok(codec::encode(&seen).into())
                }
                Ask::Barrier(wanted) => {
                    let deadline = Instant::now() + barrier::PATIENCE;
                    wait_until_seen(&this.node.reader, &wanted, deadline)
                        .await
                        .map_err(|lacks| lacks.to_string())?;
                    Ok(Bytes::new())
                }
                Ask::Ping => Ok(Bytes::new()),
                Ask::Room(room) => Ok(codec::encode(&this.node.edge.room(&room)).into()),
                Ask::Explain(id) => {
                    let wanted: Wanted = id.parse().map_err(|error: InvalidId| error.to_string())?;
                    let Some(story) = this.node.edge.explain(wanted) else { return Ok(Bytes::new()) };
                    serde_json::to_vec(&story).map(Bytes::from).map_err(|error| error.to_string())
                }
                Ask::Demand { app, port, region, waiting, in_flight } => {
                    let demand = Demand { waiting, in_flight };
                    this.node.autostop.told(peer, (app, port, region), demand);
                    Ok(Bytes::new())
                }
                Ask::Start(machine) => this.node.autostop.start(machine).await,
                Ask::Rest { machine, suspend } => this.node.autostop.rest(machine, suspend).await,
            }
        })
    }

    fn gossip(&self, peer: NodeNumber, message: Bytes) {
        self.node.gossip.inbound(peer, message);
    }
}

impl NodeInbound {
    async fn api(&self, call: ApiCall) -> Result<Bytes, String> {
        let mut request = Request::builder().method(call.method.as_str()).uri(&call.target);
        for (name, value) in &call.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|error| error.to_string())?;
            let value = HeaderValue::from_bytes(value).map_err(|error| error.to_string())?;
            request = request.header(name, value);
        }
        let request = request.body(Body::from(call.body)).map_err(|error| error.to_string())?;
        let Ok(response) = self.router.clone().oneshot(request).await;
        let (head, body) = response.into_parts();
        let body = axum::body::to_bytes(body, MAX_ANSWER).await.map_err(|error| error.to_string())?;
        let headers = head
            .headers
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), Bytes::copy_from_slice(value.as_bytes())))
            .collect();
        let answer = ApiAnswer { status: head.status.as_u16(), headers, body };
        Ok(codec::encode(&answer).into())
    }
}
