//! Where on this machine a public address and port is reached (DESIGN section 8): mapped on the first
//! request for it, and for the cluster's life: a restarted node listens where it listened before.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use skein_edge::Edge;
use tokio::sync::Mutex;

use super::files;

/// The mappings of this node's edge, kept in `mappings.json`.
#[derive(Debug)]
pub struct Mappings {
    edge: Edge,
    path: PathBuf,
    // Held while a listener is made, so that two requests for one address make one listener.
    known: Mutex<BTreeMap<SocketAddr, SocketAddr>>,
}

impl Mappings {
    /// Makes the listeners of the last life again. One whose port is taken meanwhile is moved, which
    /// is logged.
    ///
    /// # Errors
    /// When the file can't be read or a listener can't be made at all.
    pub async fn restore(edge: Edge, path: PathBuf) -> anyhow::Result<Self> {
        let saved: BTreeMap<SocketAddr, SocketAddr> = files::read(&path)?.unwrap_or_default();
        let mappings = Self { edge, path, known: Mutex::new(BTreeMap::new()) };
        for (public, connect) in saved {
            let bound = match mappings.edge.map(public, Some(connect)).await {
                Ok(bound) => bound,
                Err(error) => {
                    tracing::warn!(%public, %connect, %error, "the mapping's port is taken; it moves");
                    mappings.edge.map(public, None).await?
                }
            };
            mappings.known.lock().await.insert(public, bound);
        }
        Ok(mappings)
    }

    /// Where `public` is reached; the listener is made when there is none.
    ///
    /// # Errors
    /// When no listener can be made, or the file can't be written.
    pub async fn map(&self, public: SocketAddr) -> anyhow::Result<SocketAddr> {
        let mut known = self.known.lock().await;
        if let Some(connect) = known.get(&public) {
            return Ok(*connect);
        }
        let connect = self.edge.map(public, None).await?;
        known.insert(public, connect);
        files::write(&self.path, &*known)?;
        Ok(connect)
    }
}
