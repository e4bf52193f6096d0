//! A real OTLP receiver: traces over gRPC and HTTP, kept in memory within bounds (SPEC OBS-4).

mod convert;
mod grpc;
mod http;
mod store;

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub use store::{Store, StoreLimits};

/// The longest message that is taken, in bytes, after decompression.
const MAX_MESSAGE: usize = 16 << 20;

/// Receives while it is held.
#[derive(Debug)]
pub struct Collector {
    store: Store,
    grpc: SocketAddr,
    http: SocketAddr,
    tasks: Mutex<JoinSet<()>>,
}

/// Why no collector can be started.
#[derive(Debug, thiserror::Error)]
#[error("listen on loopback for traces")]
pub struct CollectorError(#[from] std::io::Error);

impl Collector {
    /// Listens on two free ports of loopback.
    ///
    /// # Errors
    /// When it can't listen.
    pub async fn start(limits: StoreLimits) -> Result<Self, CollectorError> {
        let store = Store::new(limits);
        let (grpc, http) =
            (TcpListener::bind(("127.0.0.1", 0)).await?, TcpListener::bind(("127.0.0.1", 0)).await?);
        let (grpc_address, http_address) = (grpc.local_addr()?, http.local_addr()?);
        let mut tasks = JoinSet::new();
        tasks.spawn(grpc::serve(grpc, store.clone()));
        tasks.spawn(http::serve(http, store.clone()));
        Ok(Self { store, grpc: grpc_address, http: http_address, tasks: Mutex::new(tasks) })
    }

    /// What was received.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Where OTLP over gRPC is taken: `http://127.0.0.1:…`.
    pub fn grpc_url(&self) -> String {
        format!("http://{}", self.grpc)
    }

    /// Where OTLP over HTTP is taken, at `/v1/traces` below this.
    pub fn http_url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// Stops listening; returns when the ports are free.
    pub async fn stop(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
    }
}

#[cfg(test)]
mod tests;
