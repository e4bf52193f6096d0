//! Packets that a rule holds back, sent when they are due.

use std::cmp::{Ordering as Order, Reverse};
use std::collections::BinaryHeap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use quinn::udp::{EcnCodepoint, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::sync::mpsc;

use crate::clock;

/// The most bytes held back at once; further packets are dropped, as a router's full queue does.
const MAX_BYTES: usize = 64 << 20;

/// Packets to one destination that are sent together.
#[derive(Debug)]
pub(super) struct Late {
    pub(super) due: Instant,
    /// Breaks ties: packets that are due together leave in the order they came.
    pub(super) order: u64,
    pub(super) destination: SocketAddr,
    pub(super) ecn: Option<EcnCodepoint>,
    pub(super) contents: Box<[u8]>,
    pub(super) segment_size: Option<usize>,
    pub(super) src_ip: Option<IpAddr>,
}

impl PartialEq for Late {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Order::Equal
    }
}
impl Eq for Late {}
impl PartialOrd for Late {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}
impl Ord for Late {
    fn cmp(&self, other: &Self) -> Order {
        (self.due, self.order).cmp(&(other.due, other.order))
    }
}

/// Where packets are put to wait.
#[derive(Debug)]
pub(super) struct Queue {
    sender: mpsc::UnboundedSender<Late>,
    bytes: Arc<AtomicUsize>,
}

/// The other end: whoever runs [`Deliverer::run`] sends them.
#[derive(Debug)]
pub(super) struct Deliverer {
    receiver: mpsc::UnboundedReceiver<Late>,
    bytes: Arc<AtomicUsize>,
}

pub(super) fn queue() -> (Queue, Deliverer) {
    // Bounded by bytes, not by packets: batches differ a hundredfold in size.
    let (sender, receiver) = mpsc::unbounded_channel();
    let bytes = Arc::new(AtomicUsize::new(0));
    (Queue { sender, bytes: Arc::clone(&bytes) }, Deliverer { receiver, bytes })
}

impl Queue {
    /// Whether there was room.
    pub(super) fn push(&self, late: Late) -> bool {
        let size = late.contents.len();
        if self.bytes.fetch_add(size, Ordering::Relaxed) + size > MAX_BYTES || self.sender.send(late).is_err()
        {
            self.bytes.fetch_sub(size, Ordering::Relaxed);
            return false;
        }
        true
    }
}

impl Deliverer {
    /// Sends each packet when it is due, until the queue is dropped.
    pub(super) async fn run(mut self, socket: Arc<dyn AsyncUdpSocket>) {
        let mut poller = Arc::clone(&socket).create_io_poller();
        let mut waiting = BinaryHeap::new();
        let mut arrived = Vec::new();
        loop {
            let now = clock::now();
            while let Some(Reverse(late)) = waiting.peek() {
                let late: &Late = late;
                if late.due > now {
                    break;
                }
                if let Some(Reverse(late)) = waiting.pop() {
                    self.bytes.fetch_sub(late.contents.len(), Ordering::Relaxed);
                    send(&*socket, &mut poller, &late).await;
                }
            }
            let next = waiting.peek().map_or(now + Duration::from_secs(3_600), |Reverse(late)| late.due);
            tokio::select! {
                taken = self.receiver.recv_many(&mut arrived, 256) => {
                    if taken == 0 {
                        return;
                    }
                    waiting.extend(arrived.drain(..).map(Reverse));
                }
                () = tokio::time::sleep_until(next.into()) => {}
            }
        }
    }
}

async fn send(socket: &dyn AsyncUdpSocket, poller: &mut std::pin::Pin<Box<dyn UdpPoller>>, late: &Late) {
    let transmit = Transmit {
        destination: late.destination,
        ecn: late.ecn,
        contents: &late.contents,
        segment_size: late.segment_size,
        src_ip: late.src_ip,
    };
    loop {
        match socket.try_send(&transmit) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if std::future::poll_fn(|cx| poller.as_mut().poll_writable(cx)).await.is_err() {
                    return;
                }
            }
            // A packet that the network refuses is lost, which QUIC expects.
            Ok(()) | Err(_) => return,
        }
    }
}
