//! Parts of a node that carry changes from one place to another.

use std::sync::Arc;

use imbl::OrdMap;
use skein_cluster::backhaul::{Backhaul, PeerAddress};
use skein_cluster::gossip::{Gossip, Membership as _};
use skein_cluster::registry::{RaftRegistry, Registry as _};
use skein_core::NodeNumber;
use skein_core::facts::State;
use skein_core::key::NodeRecord;
use skein_machine::Machines;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::links::LinkRules;

/// Hands the registry's nodes, and the keys of removed ones, to backhaul, the links and gossip.
pub(super) fn apply_nodes(
    state: &State,
    own: NodeNumber,
    backhaul: &Backhaul,
    links: &LinkRules,
    gossip: &Gossip,
) {
    let others = || state.nodes().filter(|node| node.number != own);
    let peers: OrdMap<NodeNumber, PeerAddress> = others()
        .map(|node| {
            let address = PeerAddress {
                addr: node.backhaul,
                name: node.name.clone(),
                region: node.region,
                key: node.key,
            };
            (node.number, address)
        })
        .collect();
    // A removed node's certificate is still good: it is shut out before it is forgotten, so that it
    // is not met again as one that the registry does not tell of yet.
    backhaul.set_fenced(state.fenced().iter().copied().collect());
    backhaul.set_peers(&peers);
    links.follow(state, own);
    gossip.set_seeds(others().map(|node| node.number).collect());
}

/// Follows the registry's nodes until cancelled.
pub(super) async fn nodes(
    registry: RaftRegistry,
    own: NodeNumber,
    backhaul: Backhaul,
    links: Arc<LinkRules>,
    gossip: Gossip,
    cancel: CancellationToken,
) {
    let mut states = registry.watch();
    loop {
        let (_, state) = states.borrow_and_update().clone();
        apply_nodes(&state, own, &backhaul, &links, &gossip);
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = states.changed() => if changed.is_err() { return },
        }
    }
}

/// Hands this node's Machines to gossip until cancelled.
pub(super) async fn machines(machines: Machines, gossip: Gossip, cancel: CancellationToken) {
    let mut records = machines.records();
    loop {
        let current = records.borrow_and_update().clone();
        if let Err(error) = gossip.set_machines(&current) {
            tracing::error!(%error, "a Machine's record can't be gossiped");
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = records.changed() => if changed.is_err() { return },
        }
    }
}

/// Hands what this node says of itself to gossip until cancelled.
pub(super) async fn record(
    mut record: watch::Receiver<NodeRecord>,
    gossip: Gossip,
    cancel: CancellationToken,
) {
    loop {
        let current = record.borrow_and_update().clone();
        if let Err(error) = gossip.set_node(&current) {
            tracing::error!(%error, "this node's record can't be gossiped");
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = record.changed() => if changed.is_err() { return },
        }
    }
}

/// Destroys this node's Machines of apps that are destroyed, until cancelled. It goes by the change:
/// an app that was known and is gone. That an app is not known says nothing by itself: a node may be
/// behind.
pub(super) async fn destroyed_apps(machines: Machines, registry: RaftRegistry, cancel: CancellationToken) {
    let mut states = registry.watch();
    let mut before = states.borrow_and_update().1.clone();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = states.changed() => if changed.is_err() { return },
        }
        let now = states.borrow_and_update().1.clone();
        let gone: Vec<_> = before.apps().filter(|app| now.app(app.id).is_none()).cloned().collect();
        for app in gone {
            for machine in machines.list(Some(app.id)) {
                match machines.destroy(machine.id, true).await {
                    Ok(()) => {
                        tracing::info!(machine = %machine.id, app = %app.name, "destroyed with its app")
                    }
                    Err(error) => {
                        tracing::error!(machine = %machine.id, app = %app.name, %error, "not destroyed with its app");
                    }
                }
            }
        }
        before = now;
    }
}

#[cfg(test)]
mod tests;
