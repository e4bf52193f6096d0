//! How far peers are and which are suspect: written by transport, read by every decision from
//! atomics, without a lock (DESIGN section 3, SPEC CLU-4).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use imbl::OrdMap;
use skein_core::NodeNumber;
use skein_core::RegionCode;
use skein_core::region::Regions;
use skein_core::suspicion::{Proximity, SILENCE, is_suspect};
use tokio::sync::Notify;

use crate::clock;

/// The round trip to a node of which nothing is known, not even its region.
const UNKNOWN_RTT: Duration = Duration::from_millis(100);
/// The round trip is the least of this many samples: a busy machine delays some, never all.
const SAMPLES: usize = 4;

/// What transport knows of all peers.
#[derive(Debug)]
pub struct Peers {
    local: NodeNumber,
    region: RegionCode,
    regions: Arc<Regions>,
    vitals: ArcSwap<OrdMap<NodeNumber, Arc<Vitals>>>,
}

/// What transport knows of one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerReport {
    /// The peer.
    pub node: NodeNumber,
    /// The round trip, measured or guessed.
    pub rtt: Duration,
    /// Whether the round trip was measured.
    pub measured: bool,
    /// How long ago anything came from it; `None` when nothing ever did.
    pub heard_ago: Option<Duration>,
    /// Whether a connection is up.
    pub connected: bool,
    /// Whether it is suspect.
    pub suspect: bool,
}

impl Peers {
    pub(super) fn new(local: NodeNumber, region: RegionCode, regions: Arc<Regions>) -> Self {
        Self { local, region, regions, vitals: ArcSwap::default() }
    }

    /// The vitals of `node`, made when there are none; `region` gives the guess of its distance.
    pub(super) fn enter(&self, node: NodeNumber, region: Option<RegionCode>) -> Arc<Vitals> {
        let known = self.vitals.load().get(&node).cloned();
        let vitals = known.unwrap_or_else(|| {
            let fresh = Arc::new(Vitals::new(UNKNOWN_RTT));
            self.vitals.rcu(|all| {
                let mut all = OrdMap::clone(all);
                all.entry(node).or_insert_with(|| Arc::clone(&fresh));
                all
            });
            self.vitals.load().get(&node).cloned().unwrap_or(fresh)
        });
        if let Some(region) = region {
            vitals.guess(self.regions.simulated_rtt(self.region, region));
        }
        vitals
    }

    pub(super) fn forget(&self, node: NodeNumber) {
        self.vitals.rcu(|all| all.without(&node));
    }

    /// What is known of every peer, by number.
    pub fn report(&self) -> Vec<PeerReport> {
        let now = clock::now();
        self.vitals.load().iter().map(|(node, vitals)| vitals.report(*node, now)).collect()
    }

    /// Returns when `node` is suspect: for one who waits for it and could do something else. Pends
    /// for ever for a node that is not known.
    pub async fn until_suspect(&self, node: NodeNumber) {
        let Some(vitals) = self.vitals.load().get(&node).cloned() else {
            return std::future::pending().await;
        };
        loop {
            match vitals.suspect_in(clock::now()) {
                None => return,
                Some(wait) => tokio::time::sleep(wait).await,
            }
        }
    }
}

impl Proximity for Peers {
    fn rtt(&self, node: NodeNumber) -> Duration {
        if node == self.local {
            return Duration::ZERO;
        }
        self.vitals.load().get(&node).map_or(UNKNOWN_RTT, |vitals| vitals.rtt())
    }

    fn suspect(&self, node: NodeNumber) -> bool {
        node != self.local && self.vitals.load().get(&node).is_some_and(|vitals| vitals.suspect(clock::now()))
    }
}

/// One peer's signs of life. Times are microseconds since `epoch`, plus one; 0 is never.
#[derive(Debug)]
pub(super) struct Vitals {
    epoch: Instant,
    heard: AtomicU64,
    /// Since when something is owed by the peer: the oldest thing sent since it was last heard.
    owed: AtomicU64,
    used: AtomicU64,
    /// Microseconds; 0 before the first measurement.
    rtt: AtomicU64,
    guess: AtomicU64,
    samples: [AtomicU64; SAMPLES],
    next_sample: AtomicUsize,
    pub(super) connections: AtomicU32,
    /// Wakes whoever probes the peer when it came into use.
    pub(super) in_use: Notify,
}

impl Vitals {
    fn new(guess: Duration) -> Self {
        Self {
            epoch: clock::now(),
            heard: AtomicU64::new(0),
            owed: AtomicU64::new(0),
            used: AtomicU64::new(0),
            rtt: AtomicU64::new(0),
            guess: AtomicU64::new(guess.as_micros() as u64),
            samples: std::array::from_fn(|_| AtomicU64::new(u64::MAX)),
            next_sample: AtomicUsize::new(0),
            connections: AtomicU32::new(0),
            in_use: Notify::new(),
        }
    }

    fn stamp(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_micros() as u64 + 1
    }

    fn since(&self, stamp: u64, now: Instant) -> Option<Duration> {
        let stamp = stamp.checked_sub(1)?;
        Some(now.saturating_duration_since(self.epoch + Duration::from_micros(stamp)))
    }

    fn guess(&self, rtt: Duration) {
        self.guess.store(rtt.as_micros() as u64, Ordering::Relaxed);
    }

    /// Something authentic came from the peer.
    pub(super) fn heard(&self, now: Instant) {
        self.heard.store(self.stamp(now), Ordering::Relaxed);
        self.owed.store(0, Ordering::Relaxed);
    }

    /// Something was sent that a live peer answers within a round trip.
    pub(super) fn owes(&self, now: Instant) {
        let stamp = self.stamp(now);
        let _ = self.owed.compare_exchange(0, stamp, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Somebody uses the peer: it is probed more often for a while.
    pub(super) fn uses(&self, now: Instant) {
        let stamp = self.stamp(now);
        let before = self.used.swap(stamp, Ordering::Relaxed);
        if stamp.saturating_sub(before) > 200_000 {
            self.in_use.notify_one();
        }
    }

    pub(super) fn used_ago(&self, now: Instant) -> Option<Duration> {
        self.since(self.used.load(Ordering::Relaxed), now)
    }

    /// A round trip took this long.
    pub(super) fn measured(&self, rtt: Duration) {
        let slot = self.next_sample.fetch_add(1, Ordering::Relaxed) % SAMPLES;
        self.samples[slot].store((rtt.as_micros() as u64).max(1), Ordering::Relaxed);
        let least = self.samples.iter().map(|sample| sample.load(Ordering::Relaxed)).min();
        self.rtt.store(least.unwrap_or(0), Ordering::Relaxed);
    }

    pub(super) fn rtt(&self) -> Duration {
        let measured = self.rtt.load(Ordering::Relaxed);
        let micros = if measured == 0 { self.guess.load(Ordering::Relaxed) } else { measured };
        Duration::from_micros(micros)
    }

    pub(super) fn suspect(&self, now: Instant) -> bool {
        let owed = self.since(self.owed.load(Ordering::Relaxed), now);
        let heard = self.since(self.heard.load(Ordering::Relaxed), now);
        is_suspect(owed, heard.unwrap_or(Duration::MAX), self.rtt())
    }

    /// How long until it could be suspect at the earliest; `None` when it is.
    fn suspect_in(&self, now: Instant) -> Option<Duration> {
        if self.suspect(now) {
            return None;
        }
        let bound = SILENCE + self.rtt() + Duration::from_millis(1);
        let owed = self.since(self.owed.load(Ordering::Relaxed), now).unwrap_or_default();
        let heard = self.since(self.heard.load(Ordering::Relaxed), now).unwrap_or(bound);
        Some(bound.saturating_sub(owed.min(heard)).max(Duration::from_millis(1)))
    }

    fn report(&self, node: NodeNumber, now: Instant) -> PeerReport {
        PeerReport {
            node,
            rtt: self.rtt(),
            measured: self.rtt.load(Ordering::Relaxed) > 0,
            heard_ago: self.since(self.heard.load(Ordering::Relaxed), now),
            connected: self.connections.load(Ordering::Relaxed) > 0,
            suspect: self.suspect(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn vitals() -> (Vitals, Instant) {
        let vitals = Vitals::new(20 * MS);
        let start = vitals.epoch;
        (vitals, start)
    }

    #[test]
    fn a_peer_that_leaves_something_unanswered_becomes_suspect_and_is_cleared_when_heard() {
        let (vitals, start) = vitals();
        assert!(!vitals.suspect(start + 5_000 * MS), "an idle link says nothing");
        vitals.owes(start + 1_000 * MS);
        vitals.owes(start + 1_500 * MS);
        assert!(!vitals.suspect(start + 1_770 * MS));
        assert_eq!(vitals.suspect_in(start + 1_770 * MS), Some(MS));
        assert!(vitals.suspect(start + 1_771 * MS), "750 ms and a round trip after the oldest");
        assert_eq!(vitals.suspect_in(start + 1_771 * MS), None);
        vitals.heard(start + 1_800 * MS);
        assert!(!vitals.suspect(start + 9_000 * MS));
    }

    #[test]
    fn a_measured_round_trip_replaces_the_guess_and_one_slow_sample_does_not_count() {
        let (vitals, _) = vitals();
        assert_eq!(vitals.rtt(), 20 * MS);
        vitals.measured(80 * MS);
        vitals.measured(300 * MS);
        assert_eq!(vitals.rtt(), 80 * MS);
        for _ in 0..SAMPLES {
            vitals.measured(120 * MS);
        }
        assert_eq!(vitals.rtt(), 120 * MS, "a change of the path shows after {SAMPLES} samples");
    }

    #[test]
    fn nodes_that_were_never_measured_are_as_far_as_their_regions() {
        let regions = Arc::new(Regions::default());
        let (iad, nrt): (RegionCode, RegionCode) = ("iad".parse().unwrap(), "nrt".parse().unwrap());
        let peers = Peers::new(NodeNumber(1), iad, Arc::clone(&regions));
        peers.enter(NodeNumber(2), Some(nrt));
        assert_eq!(peers.rtt(NodeNumber(2)).as_millis(), regions.simulated_rtt(iad, nrt).as_millis());
        assert_eq!(peers.rtt(NodeNumber(1)), Duration::ZERO);
        assert!(!peers.suspect(NodeNumber(1)) && !peers.suspect(NodeNumber(2)));
        peers.forget(NodeNumber(2));
        assert_eq!(peers.rtt(NodeNumber(2)), UNKNOWN_RTT);
    }
}
