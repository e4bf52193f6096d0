//! quinn's socket with the rules of a [`LinkTable`] in front of it.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use skein_core::fault::{LinkRule, PacketVerdict};

use super::queue::{Late, Queue, queue};
use super::{LinkTable, canonical};
use crate::clock;
use crate::entropy::Entropy;

/// How long a throttled link may be behind; what comes later is dropped, as a full buffer does.
const MAX_BACKLOG: Duration = Duration::from_millis(250);

/// `socket` behind `table`, and the task that sends what is held back: it must be run.
pub(crate) fn shape(
    socket: Arc<dyn AsyncUdpSocket>,
    table: LinkTable,
    entropy: Entropy,
) -> (Arc<dyn AsyncUdpSocket>, impl Future<Output = ()> + Send + 'static) {
    let (queue, deliverer) = queue();
    let links = Mutex::new(Links { entropy, order: 0, states: BTreeMap::new() });
    let shaped = Shaped { inner: Arc::clone(&socket), table, queue, links };
    (Arc::new(shaped), deliverer.run(socket))
}

struct Shaped {
    inner: Arc<dyn AsyncUdpSocket>,
    table: LinkTable,
    queue: Queue,
    /// Only touched for destinations that have a rule.
    links: Mutex<Links>,
}

struct Links {
    entropy: Entropy,
    order: u64,
    states: BTreeMap<SocketAddr, LinkState>,
}

#[derive(Clone, Copy)]
struct LinkState {
    /// When the last packet that kept its place leaves: jitter alone does not reorder.
    last_due: Instant,
    /// When a throttled link is free again.
    free_at: Instant,
}

/// What becomes of one packet.
enum Fate {
    Drop,
    /// Nothing holds it back: it leaves with the caller's call.
    Now(u8),
    At(Instant, u8),
}

impl Links {
    fn fate(&mut self, destination: SocketAddr, size: usize, rule: &LinkRule, now: Instant) -> Fate {
        let PacketVerdict::Send { delay, copies } = rule.verdict(&mut self.entropy) else {
            return Fate::Drop;
        };
        let start = LinkState { last_due: now, free_at: now };
        let state = self.states.entry(destination).or_insert(start);
        let mut due = now + delay;
        if rule.rate > 0 {
            let free_at = state.free_at.max(now);
            if free_at - now > MAX_BACKLOG {
                return Fate::Drop;
            }
            state.free_at = free_at + Duration::from_secs_f64(size as f64 / rule.rate as f64);
            due += state.free_at - now;
        }
        let jumps_ahead = rule.reorder > 0.0 && delay.is_zero() && rule.delay_us + rule.jitter_us > 0;
        if !jumps_ahead {
            due = due.max(state.last_due);
            state.last_due = due;
        }
        if due <= now { Fate::Now(copies) } else { Fate::At(due, copies) }
    }
}

impl Shaped {
    fn send_shaped(&self, transmit: &Transmit<'_>, rule: &LinkRule) -> io::Result<()> {
        let alike = rule.loss == 0.0 && rule.duplicate == 0.0 && rule.reorder == 0.0 && rule.rate == 0;
        let (size, segment_size) = match transmit.segment_size {
            // Packets that share one fate stay one batch.
            Some(segment) if alike => (transmit.contents.len(), Some(segment)),
            Some(segment) => (segment, None),
            None => (transmit.contents.len(), None),
        };
        let counters = self.table.counters();
        for contents in transmit.contents.chunks(size.max(1)) {
            let now = clock::now();
            let destination = canonical(transmit.destination);
            let (fate, order) = {
                let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
                links.order += 1;
                (links.fate(destination, contents.len(), rule, now), links.order)
            };
            let (due, copies) = match fate {
                Fate::Drop => {
                    counters.dropped.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                // A full socket holds one packet back no longer than a delayed one.
                Fate::Now(copies) => (now, copies),
                Fate::At(due, copies) => (due, copies),
            };
            for _ in 0..copies {
                let packet = Transmit { contents, segment_size, ..transmit.clone() };
                if due <= now && self.inner.try_send(&packet).is_ok() {
                    continue;
                }
                counters.delayed.fetch_add(1, Ordering::Relaxed);
                let late = Late {
                    due,
                    order,
                    destination: packet.destination,
                    ecn: packet.ecn,
                    contents: contents.into(),
                    segment_size,
                    src_ip: packet.src_ip,
                };
                if !self.queue.push(late) {
                    counters.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
            counters.duplicated.fetch_add(u64::from(copies.saturating_sub(1)), Ordering::Relaxed);
        }
        Ok(())
    }
}

impl fmt::Debug for Shaped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shaped").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for Shaped {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match self.table.rule(transmit.destination) {
            None => self.inner.try_send(transmit),
            Some(rule) => self.send_shaped(transmit, &rule),
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}
