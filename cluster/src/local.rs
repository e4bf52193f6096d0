//! The Machines of this node, as their actor publishes them for the proxy.
//!
//! A value is immutable; a change of state swaps it. The slots are shared between versions of a
//! value, so what is in flight stays counted.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use imbl::OrdMap;
use skein_core::load::Slots;
use skein_core::machine::{MachineConfig, MachineState};
use skein_core::{AppId, MachineId};
use tokio::sync::Notify;

/// Where a Machine's process is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// Portable mode: the process was told by `PORT` and `SKEIN_PORT_<internal port>` to listen on
    /// these loopback addresses, by internal port.
    Loopback(BTreeMap<u16, SocketAddr>),
    /// A server that already runs, whatever the internal port.
    External(SocketAddr),
}

impl Upstream {
    /// The address behind an internal port.
    pub fn address(&self, internal_port: u16) -> Option<SocketAddr> {
        match self {
            Self::Loopback(ports) => ports.get(&internal_port).copied(),
            Self::External(address) => Some(*address),
        }
    }
}

/// A Machine of this node.
#[derive(Debug, Clone)]
pub struct LocalMachine {
    /// Its id.
    pub id: MachineId,
    /// Its app.
    pub app: AppId,
    /// Its configuration.
    pub config: Arc<MachineConfig>,
    /// Its state.
    pub state: MachineState,
    /// Whether its service checks pass.
    pub healthy: bool,
    /// Whether it gets nothing new.
    pub cordoned: bool,
    /// When state, health or cordon last changed.
    pub since: Instant,
    /// Where its process is reached.
    pub upstream: Upstream,
    /// One per service of the configuration, in its order.
    pub slots: Vec<Arc<Slots>>,
}

type Machines = OrdMap<MachineId, Arc<LocalMachine>>;

/// Loads the Machines of this node.
#[derive(Debug, Clone)]
pub struct LocalReader(Arc<Published>);

/// Publishes the Machines of this node; there is one per node.
#[derive(Debug)]
pub struct LocalPublisher(Arc<Published>);

#[derive(Debug, Default)]
struct Published {
    machines: ArcSwap<Machines>,
    changed: Notify,
}

/// A publisher of no Machines and its reader.
pub fn channel() -> (LocalPublisher, LocalReader) {
    let current = Arc::new(Published::default());
    (LocalPublisher(Arc::clone(&current)), LocalReader(current))
}

impl LocalPublisher {
    /// Replaces the Machines for all later loads.
    pub fn publish(&self, machines: Machines) {
        self.0.machines.store(Arc::new(machines));
        self.0.changed.notify_waiters();
    }
}

impl LocalReader {
    /// The Machines now.
    pub fn load(&self) -> Arc<Machines> {
        self.0.machines.load_full()
    }

    /// Waits until a Machine is not started any more: it stops, is suspended, or is gone.
    pub async fn leaves(&self, id: MachineId) {
        self.until(id, |machine| machine.is_none_or(|machine| machine.state != MachineState::Started)).await;
    }

    /// Waits until a Machine is suspended: a connection to it leads nowhere then, and does not end.
    pub async fn suspended(&self, id: MachineId) {
        self.until(id, |machine| machine.is_some_and(|machine| machine.state == MachineState::Suspended))
            .await;
    }

    async fn until(&self, id: MachineId, there: impl Fn(Option<&Arc<LocalMachine>>) -> bool) {
        loop {
            let mut changed = pin!(self.0.changed.notified());
            // From here on a change is noticed, also one before the first poll.
            changed.as_mut().enable();
            if there(self.load().get(&id)) {
                return;
            }
            changed.await;
        }
    }
}
