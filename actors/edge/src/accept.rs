//! Accepts connections for one public address and hands each to its chain's connections. No message
//! passes per connection: a task of the listener spawns a task of the handler.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use skein_core::service::HandlerChain;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connection::{self, Ends};
use crate::core::Core;
use crate::gathered::Gathered;
use crate::hosts;
use crate::raw;

/// Wait after the system refused to accept (no descriptors left), so that the loop does not spin.
const REFUSED_WAIT: Duration = Duration::from_millis(50);

/// The connections of one (listener, chain, core): what its handler owns.
#[derive(Debug)]
pub(crate) struct Connections {
    core: Arc<Core>,
    chain: HandlerChain,
    tasks: TaskTracker,
    /// Cancelled when the handler stops: its connections end with it.
    ended: CancellationToken,
}

impl Connections {
    pub(crate) fn new(core: Arc<Core>, chain: HandlerChain) -> Arc<Self> {
        Arc::new(Self { core, chain, tasks: TaskTracker::new(), ended: CancellationToken::new() })
    }

    /// Ends all connections.
    pub(crate) fn end(&self) {
        self.ended.cancel();
    }

    fn take(&self, ends: Ends, stream: TcpStream, room: tokio::sync::OwnedSemaphorePermit) {
        let (core, ended, chain) = (Arc::clone(&self.core), self.ended.clone(), self.chain);
        self.tasks.spawn(async move {
            let _room = room;
            match chain {
                HandlerChain::Http => {
                    // Only delays small writes if it fails.
                    let _slower = stream.set_nodelay(true);
                    connection::http(core, ends, Gathered::new(stream), None, &ended).await;
                }
                HandlerChain::Raw => {
                    let passage = core.gate.enter();
                    tokio::select! {
                        biased;
                        () = ended.cancelled() => {}
                        () = raw::connection(&core, ends, stream, &passage) => {}
                    }
                }
                HandlerChain::TlsHttp
                | HandlerChain::Tls
                | HandlerChain::PgTls
                | HandlerChain::ProxyProto
                | HandlerChain::TlsProxyProto => {}
            }
        });
    }
}

/// What one accepting task needs.
#[derive(Debug, Clone)]
pub(crate) struct Accepting {
    pub(crate) core: Arc<Core>,
    /// The public address that connections here stand for.
    pub(crate) public: SocketAddr,
    /// One per chain that this build serves.
    pub(crate) handlers: Vec<Arc<Connections>>,
    /// Room for connections of the listener.
    pub(crate) room: Arc<Semaphore>,
    /// Where it runs.
    pub(crate) runtime: Handle,
}

/// Accepts until it is dropped.
pub(crate) async fn accept(accepting: Accepting, socket: TcpListener) {
    let Accepting { core, public, handlers, room, .. } = accepting;
    let mut known: Option<(u64, Option<HandlerChain>)> = None;
    let mut told: Option<HandlerChain> = None;
    loop {
        let (stream, client) = match socket.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%public, %error, "a connection could not be accepted");
                tokio::time::sleep(REFUSED_WAIT).await;
                continue;
            }
        };
        let snapshot = core.reader.load();
        let chain = match known {
            Some((version, chain)) if version == snapshot.version => chain,
            _ => {
                let chain = hosts::chain(&snapshot, public);
                known = Some((snapshot.version, chain));
                chain
            }
        };
        // SPEC PUB-4: nothing listens there, so it is closed at once.
        let handler = chain.and_then(|chain| handlers.iter().find(|handler| handler.chain == chain));
        let Some(handler) = handler else {
            core.metrics.closed_at_once.fetch_add(1, Ordering::Relaxed);
            if let Some(chain) = chain.filter(|chain| told != Some(*chain)) {
                tracing::warn!(%public, ?chain, "this build does not serve these handlers; connections are closed");
                told = Some(chain);
            }
            continue;
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            core.metrics.closed_at_once.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%public, limit = core.config.max_connections, "too many connections; one was closed");
            continue;
        };
        handler.take(Ends { client, public }, stream, permit);
    }
}
