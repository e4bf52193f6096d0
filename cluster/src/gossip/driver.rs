//! The life that owns chitchat: writes this node's keys, looks at the state, pushes.

use std::sync::Arc;

use chitchat::{
    Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, NodeState, spawn_chitchat,
};
use skein_core::NodeNumber;
use skein_core::key::GossipKey;
use tokio::sync::{Mutex, mpsc};
use tokio::time::{self, Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::socket::{self, Opening};
use super::view::{View, number_of};
use super::{GossipTransport, Own, Seat, Shared, VersionReply, count, machine_key, node_key, push};
use crate::clock;
use crate::entropy::Entropy;

/// How many seeds that are not alive are tried at a tick.
const COURTED: usize = 3;

/// Why chitchat's life ended.
enum End {
    Stopped,
    /// It ended by itself: a fault of it or what a peer made it do.
    Broken(String),
    /// Others know a later generation of this node.
    Outlived(u64),
}

struct Driver<'s> {
    shared: Arc<Shared>,
    view: &'s mut View,
    rng: Entropy,
    generation: u64,
    /// The version of this node that was last pushed.
    pushed: u64,
    owed: &'s mut Vec<VersionReply>,
}

/// One life of chitchat: `Ok` when it was ended, else why it failed.
pub(super) async fn live(
    shared: Arc<Shared>,
    transport: Arc<dyn GossipTransport>,
    seat: Arc<Mutex<Seat>>,
    cancel: CancellationToken,
) -> Result<(), String> {
    let mut seat = seat.lock().await;
    let Seat { generation, lives, waiting, view, asked, owed } = &mut *seat;
    if *lives > 0 {
        *generation = generation.saturating_add(1);
        count(&shared.counters.restarts);
        shared.with_own(|own| own.changed = true);
    }
    *lives += 1;
    let waiting = waiting.take().unwrap_or_else(|| {
        let (sender, receiver) = mpsc::channel(shared.config.queue.max(1));
        shared.inbound.store(Arc::new(sender));
        receiver
    });
    let mut driver = Driver {
        view,
        rng: Entropy::default(),
        generation: *generation,
        pushed: 0,
        owed,
        shared: Arc::clone(&shared),
    };
    let opening = Opening::new(Arc::clone(&shared), transport, waiting);
    let chitchat = spawn_chitchat(driver.config(), Vec::new(), &opening).await;
    let chitchat = chitchat.map_err(|error| error.to_string())?;
    let end = driver.live(&chitchat, asked, &cancel).await;
    chitchat.abort();
    match end {
        End::Stopped => Ok(()),
        End::Broken(reason) => Err(format!("chitchat broke in generation {generation}: {reason}")),
        End::Outlived(by) => {
            *generation = (*generation).max(by);
            Err(format!(
                "others know generation {by} of this node: its clock went back, or another node has its identity"
            ))
        }
    }
}

impl Driver<'_> {
    fn config(&self) -> ChitchatConfig {
        let config = &self.shared.config;
        let address = socket::address(config.number);
        ChitchatConfig {
            chitchat_id: ChitchatId::new(config.number.to_string(), self.generation, address),
            cluster_id: config.cluster.to_string(),
            gossip_interval: config.tick,
            listen_addr: address,
            seed_nodes: Vec::new(),
            failure_detector_config: FailureDetectorConfig {
                initial_interval: config.tick,
                dead_node_grace_period: config.dead_grace,
                ..FailureDetectorConfig::default()
            },
            // A peer that was away for longer gets a node's state whole.
            marked_for_deletion_grace_period: config.dead_grace,
            catchup_callback: None,
            extra_liveness_predicate: None,
        }
    }

    async fn live(
        &mut self,
        chitchat: &ChitchatHandle,
        asked: &mut mpsc::Receiver<VersionReply>,
        cancel: &CancellationToken,
    ) -> End {
        let shared = Arc::clone(&self.shared);
        let mut live = chitchat.with_chitchat(|chitchat| chitchat.live_nodes_watcher()).await;
        let mut ticks = time::interval(shared.config.tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let broken = chitchat.termination_watcher();
        tokio::pin!(broken);
        let mut next_look = Instant::now();
        let mut due = true;
        loop {
            tokio::select! {
                () = shared.cancel.cancelled() => return End::Stopped,
                () = cancel.cancelled() => return End::Stopped,
                ended = &mut broken => {
                    return End::Broken(ended.err().map_or_else(|| "it ended".to_owned(), |error| error.to_string()));
                }
                () = time::sleep_until(next_look), if due => {}
                asking = asked.recv() => match asking {
                    Some(asking) => self.owed.push(asking),
                    None => return End::Stopped,
                },
                () = shared.wake.notified() => {
                    due = true;
                    continue;
                }
                changed = live.changed() => {
                    if changed.is_err() {
                        return End::Broken("its state is gone".to_owned());
                    }
                    due = true;
                    continue;
                }
                _ = ticks.tick() => {
                    shared.with_own(|own| own.changed = true);
                    self.court(chitchat, COURTED);
                    due = true;
                    continue;
                }
            }
            due = false;
            match self.look(chitchat).await {
                Ok(version) => {
                    for reply in self.owed.drain(..) {
                        // Whoever asked may have stopped waiting.
                        let _ = reply.send((self.generation, version));
                    }
                }
                Err(later) => return End::Outlived(later),
            }
            next_look = Instant::now() + shared.config.coalesce;
        }
    }

    /// Writes what is to be said, looks at the state, publishes and pushes: this node's version, or
    /// the later generation of it that others know.
    async fn look(&mut self, chitchat: &ChitchatHandle) -> Result<u64, u64> {
        let shared = Arc::clone(&self.shared);
        let (sightings, version, newest) = chitchat
            .with_chitchat(|chitchat| {
                shared.with_own(|own| own.write(chitchat.self_node_state()));
                let version = chitchat.self_node_state().max_version();
                let newest = newest_generation(chitchat, shared.config.number);
                (self.view.look(chitchat, &shared.counters), version, newest)
            })
            .await;
        if let Some(newest) = newest.filter(|newest| *newest > self.generation) {
            return Err(newest);
        }
        let (now, floor) = (Instant::now(), shared.config.alive_floor);
        let heard = shared.with_heard(|heard| {
            heard.retain(|_, at| now.duration_since(*at) < floor);
            heard.clone()
        });
        let outcome =
            self.view.apply(sightings, &heard, (now, clock::monotonic_ms()), floor, &shared.counters);
        if outcome.changed {
            shared.members.send_replace(self.view.members().clone());
        }
        self.spread(chitchat, version, outcome.learned);
        Ok(version)
    }

    fn spread(&mut self, chitchat: &ChitchatHandle, version: u64, learned: bool) {
        let shared = Arc::clone(&self.shared);
        let (seeds, new_seeds) =
            shared.with_own(|own| (own.seeds.clone(), std::mem::take(&mut own.new_seeds)));
        let changed = version > self.pushed;
        self.pushed = version;
        if changed || learned {
            let peers = self.view.peers(&seeds);
            let own = self.view.members().get(&shared.config.number).map(|facts| facts.record.region);
            let to_all = shared.config.push_to_all;
            let (chosen, counter) = if changed {
                (push::by_origin(&peers, own, to_all, &mut self.rng), &shared.counters.pushes)
            } else {
                (push::by_learner(&peers, own, to_all, &mut self.rng), &shared.counters.relays)
            };
            for peer in chosen {
                count(counter);
                exchange(chitchat, peer);
            }
        }
        if new_seeds {
            self.court(chitchat, shared.config.push_to_all);
        }
    }

    /// Tries some seeds that are not alive.
    fn court(&mut self, chitchat: &ChitchatHandle, at_most: usize) {
        let mut away: Vec<_> = self.shared.with_own(|own| own.seeds.iter().copied().collect());
        away.retain(|seed| !self.view.alive(*seed));
        for seed in push::sample(&mut away, at_most, &mut self.rng) {
            exchange(chitchat, seed);
        }
    }
}

impl Own {
    /// Makes chitchat's state of this node say exactly this.
    fn write(&mut self, state: &mut NodeState) {
        let Some(node) = &self.node else { return };
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let wanted = |key: &str| match key.parse() {
            Ok(GossipKey::Node) => true,
            Ok(GossipKey::Machine(id)) => self.machines.contains_key(&id),
            Err(_) => false,
        };
        let gone: Vec<_> =
            state.key_values().filter(|(key, _)| !wanted(key)).map(|(key, _)| key.to_owned()).collect();
        for key in gone {
            state.delete(&key);
        }
        for (id, text) in &self.machines {
            state.set(machine_key(*id), text);
        }
        // Last: a delta may be cut anywhere, and a node is listed once this key has come.
        state.set(node_key(), node);
    }
}

/// The newest generation of a node that chitchat has heard of.
fn newest_generation(chitchat: &Chitchat, number: NodeNumber) -> Option<u64> {
    let ids = chitchat.node_states().keys().filter(|id| number_of(id) == Some(number));
    ids.map(|id| id.generation_id).max()
}

/// Begins an exchange with a peer; what either lacks, it gets.
fn exchange(chitchat: &ChitchatHandle, peer: NodeNumber) {
    if let Err(error) = chitchat.gossip(socket::address(peer)) {
        // Its end is noticed by the task's main loop.
        tracing::debug!(%error, "chitchat takes no commands");
    }
}
