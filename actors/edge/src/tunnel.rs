//! Upgraded connections: WebSocket and whatever else a client and a Machine agree on (SPEC HTTP-4).
//!
//! The response's head goes out as usual; the connection's own task then passes the bytes, once hyper
//! has let go of it. Slot, passage and access line live as long as that.

use std::sync::atomic::Ordering;
use std::time::Duration;

use http::header::UPGRADE;
use http::{HeaderMap, HeaderValue, Response, Version, response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use skein_cluster::backhaul::{FrameReceiver, FrameSender};
use skein_core::MachineId;
use skein_core::headers;
use skein_core::machine::HttpOptions;

use crate::access::Access;
use crate::client_body::{ClientBody, Held};
use crate::connection::Connection;
use crate::relay::{Manner, Passed, Why, relay};
use crate::worker::MachineBody;

/// The Machine's end.
#[derive(Debug)]
pub(crate) enum Far {
    /// A Machine of this node.
    Here { machine: MachineId, body: Box<MachineBody>, upgrade: OnUpgrade },
    /// A Machine of another node: bytes follow on its stream.
    There { receiver: FrameReceiver, sender: FrameSender },
}

/// An upgraded connection that is to be passed on.
#[derive(Debug)]
pub(crate) struct Tunnel {
    client: Option<OnUpgrade>,
    far: Box<Far>,
    manner: Manner,
    access: Box<Access>,
    _held: Held,
}

/// Whether these headers say that the connection speaks WebSocket from here on.
pub(crate) fn is_websocket(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

impl Tunnel {
    /// The tunnel, and the response that begins it; `spoken` is the protocol that the Machine named.
    pub(crate) fn begin(
        client: Option<OnUpgrade>,
        far: Box<Far>,
        mut head: response::Parts,
        spoken: Option<HeaderValue>,
        options: Option<&HttpOptions>,
        access: Box<Access>,
        held: Held,
    ) -> (Box<Self>, Response<ClientBody>) {
        head.version = Version::HTTP_11;
        if let Some(protocol) = spoken {
            headers::set_upgrade(&mut head.headers, protocol);
        }
        let idle = options.and_then(|options| options.idle_timeout).map(Duration::from_secs);
        let manner = Manner { websocket: is_websocket(&head.headers), idle };
        let tunnel = Self { client, far, manner, access, _held: held };
        (Box::new(tunnel), Response::from_parts(head, ClientBody::empty()))
    }

    /// Passes the bytes. `leaving` ends when the node drains, `forced` at the latest moment.
    pub(crate) async fn run(
        mut self: Box<Self>,
        connection: &Connection,
        leaving: impl Future<Output = ()>,
        forced: impl Future<Output = ()>,
    ) {
        let Some(client) = self.client.take() else { return };
        let client = match client.await {
            Ok(client) => TokioIo::new(client),
            Err(error) => {
                tracing::debug!(%error, "the client left before its connection was upgraded");
                return;
            }
        };
        let passed = match *self.far {
            Far::Here { machine, body, upgrade } => {
                let Some((upstream, _permit)) = body.upgrade(upgrade).await else { return };
                let leaving = async {
                    tokio::select! {
                        () = leaving => {}
                        () = connection.core.worker.local().leaves(machine) => {}
                    }
                };
                let forced = async {
                    tokio::select! {
                        () = forced => {}
                        () = connection.core.worker.local().suspended(machine) => {}
                    }
                };
                relay(client, upstream, self.manner, leaving, forced).await
            }
            Far::There { receiver, sender } => {
                let upstream = tokio::io::join(receiver.into_raw(), sender.into_raw());
                relay(client, upstream, self.manner, leaving, forced).await
            }
        };
        let Passed { sent, why, .. } = passed;
        self.access.sent = sent;
        self.access.complete = matches!(why, Why::Done | Why::Leaving);
        if why == Why::Idle {
            self.access.code = Some("idle-timeout");
            connection.core.metrics.idle.fetch_add(1, Ordering::Relaxed);
        }
    }
}
