//! One connection with a peer, and the probes on it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use quinn::Connection;
use skein_core::NodeNumber;

use super::datagram::Datagram;
use super::peers::Vitals;
use crate::clock;

/// Probes in flight that are remembered.
const REMEMBERED: usize = 16;
/// The first probes of a connection go out fast: the distance is then known.
const FIRST_PROBES: u64 = 4;
/// How long after its last use a peer counts as in use.
const IN_USE: Duration = Duration::from_secs(2);

pub(super) struct Conn {
    pub(super) connection: Connection,
    /// SHA-256 of the peer's public key.
    pub(super) key: [u8; 32],
    pub(super) dialled_by: NodeNumber,
    pub(super) since: Instant,
    /// Streams that either end opened and this end still holds.
    pub(super) in_flight: Arc<AtomicUsize>,
}

impl Conn {
    pub(super) fn new(connection: Connection, key: [u8; 32], dialled_by: NodeNumber) -> Self {
        Self { connection, key, dialled_by, since: clock::now(), in_flight: Arc::default() }
    }

    pub(super) fn id(&self) -> usize {
        self.connection.stable_id()
    }
}

/// When to probe, and what became of probes: they tell the round trip and whether the peer lives.
pub(super) struct Probes {
    next_number: u64,
    last: Option<Instant>,
    sent: VecDeque<(u64, Instant)>,
}

impl Probes {
    pub(super) fn new() -> Self {
        Self { next_number: 0, last: None, sent: VecDeque::new() }
    }

    /// When the next probe is due; `None` when the connection is not needed and may die of silence.
    pub(super) fn next_due(
        &self,
        conn: &Conn,
        current: bool,
        vitals: &Vitals,
        (busy, idle): (Duration, Duration),
        now: Instant,
    ) -> Option<Instant> {
        let streams = conn.in_flight.load(Ordering::Relaxed) > 0;
        if !current && !streams {
            return None;
        }
        let Some(last) = self.last else { return Some(now) };
        let used = vitals.signs.used_ago(now).is_some_and(|ago| ago < IN_USE);
        let hurry = streams || used || !self.sent.is_empty() || self.next_number < FIRST_PROBES;
        Some(last + if hurry { busy } else { idle })
    }

    pub(super) fn send(&mut self, conn: &Conn, vitals: &Vitals, now: Instant) {
        self.last = Some(now);
        self.sent.push_back((self.next_number, now));
        if self.sent.len() > REMEMBERED {
            self.sent.pop_front();
        }
        vitals.signs.owes(now);
        // Fails only with the connection, which whoever drives it notices.
        let _ = conn.connection.send_datagram(Datagram::Ping(self.next_number).encode());
        self.next_number += 1;
    }

    /// An answer: older probes are not waited for any longer.
    pub(super) fn answered(&mut self, number: u64, vitals: &Vitals, now: Instant) {
        if let Some(place) = self.sent.iter().position(|(sent, _)| *sent == number)
            && let Some((_, at)) = self.sent.drain(..=place).next_back()
        {
            vitals.signs.measured(now.saturating_duration_since(at));
        }
    }
}
