//! One peer: its connections, dialling it, and what waits for it.
//!
//! Both ends may dial at once. Each end then keeps both connections and sends on the one that the
//! lower number dialled, so they agree; the other carries what it had and then dies of silence. Any
//! later connection is newer knowledge (the peer restarted, or lost the old one) and takes over.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use quinn::{ConnectionError, VarInt};
use skein_core::wire::{Frame, Open};
use skein_core::{NodeNumber, Random};
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::conn::Conn;
use super::datagram::{Datagram, HEADER};
use super::peers::Vitals;
use super::stream::{FrameStream, InFlight, StreamError};
use super::{OpenError, PeerAddress, REMOVED, REPLACED, Shared, count, serve};
use crate::clock;
use crate::entropy::Entropy;
use crate::identity::certificate_name;

/// Gossip messages kept for a peer that is being dialled.
const KEPT: usize = 2;
/// Gossip messages on their way to a peer by stream at once; more are dropped.
const LARGE: usize = 8;
/// Connections of both directions within this time of each other were dialled at once.
const AT_ONCE: Duration = Duration::from_secs(1);
/// The higher number leaves the first dial to the lower one for this long.
const COURTESY: Duration = Duration::from_millis(500);
/// Between dials of a peer that cannot be reached: doubles up to the most.
const LEAST_PAUSE: Duration = Duration::from_millis(200);
const MOST_PAUSE: Duration = Duration::from_secs(2);

pub(super) struct Peer {
    pub(super) number: NodeNumber,
    pub(super) vitals: Arc<Vitals>,
    /// `None` while only its certificate tells of it.
    address: ArcSwapOption<PeerAddress>,
    /// What is sent goes here.
    current: ArcSwapOption<Conn>,
    conns: Mutex<Vec<Arc<Conn>>>,
    /// Counts finished dials; the text is why the last one failed.
    dials: watch::Sender<(u64, Option<String>)>,
    dialling: AtomicBool,
    /// A connection came or went.
    changed: Notify,
    kept: Mutex<VecDeque<Bytes>>,
    large: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Peer {
    pub(super) fn new(number: NodeNumber, vitals: Arc<Vitals>, stop: &CancellationToken) -> Self {
        Self {
            number,
            vitals,
            address: ArcSwapOption::empty(),
            current: ArcSwapOption::empty(),
            conns: Mutex::new(Vec::new()),
            dials: watch::channel((0, None)).0,
            dialling: AtomicBool::new(false),
            changed: Notify::new(),
            kept: Mutex::new(VecDeque::new()),
            large: Arc::new(Semaphore::new(LARGE)),
            stop: stop.child_token(),
        }
    }

    pub(super) fn is_registered(&self) -> bool {
        self.address.load().is_some()
    }

    /// The key that the registry knows for it.
    pub(super) fn registered_key(&self) -> Option<[u8; 32]> {
        self.address.load().as_ref().map(|address| address.key)
    }

    /// Takes what the registry knows; whether that is the first of it. Connections of another key are
    /// closed.
    pub(super) fn register(&self, address: PeerAddress) -> bool {
        let key = address.key;
        let first = self.address.swap(Some(Arc::new(address))).is_none();
        self.close_where(super::STRANGER, |conn| conn.key != key);
        first
    }

    /// The node is no member any more.
    pub(super) fn remove(&self) {
        self.stop.cancel();
        self.close_where(REMOVED, |_| true);
    }

    pub(super) fn close_where(&self, code: VarInt, which: impl Fn(&Conn) -> bool) {
        for conn in self.conns().iter().filter(|conn| which(conn)) {
            conn.connection.close(code, b"no longer a member with this key");
        }
    }

    pub(super) fn conns(&self) -> Vec<Arc<Conn>> {
        self.with_conns(|conns| conns.clone())
    }

    fn with_conns<R>(&self, change: impl FnOnce(&mut Vec<Arc<Conn>>) -> R) -> R {
        change(&mut self.conns.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn is_current(&self, conn: &Conn) -> bool {
        self.current.load().as_ref().is_some_and(|current| current.id() == conn.id())
    }

    /// Takes a connection whose other end is proved to be this peer, and serves it until it is gone.
    pub(super) fn adopt(self: &Arc<Self>, shared: &Arc<Shared>, conn: Arc<Conn>) {
        self.with_conns(|conns| {
            // Nobody dials while it has a connection, so an older one of the same dialler is dead.
            for older in conns.iter().filter(|older| older.dialled_by == conn.dialled_by) {
                older.connection.close(REPLACED, b"a newer connection took its place");
            }
            conns.push(Arc::clone(&conn));
            self.current.store(preferred(conns));
        });
        self.vitals.connections.fetch_add(1, Ordering::Relaxed);
        self.vitals.signs.heard(clock::now());
        self.changed.notify_waiters();
        shared.share_windows();
        for message in self.take_kept() {
            self.send_gossip(shared, message);
        }
        let (peer, within) = (Arc::clone(self), Arc::clone(shared));
        shared.spawn_on(&shared.cores.here(), async move {
            let reason = serve::connection(&within, &peer, &conn).await;
            if peer.drop_conn(&within, &conn) {
                count(&within.counters.lost);
                tracing::info!(peer = %peer.number, %reason, "backhaul connection lost");
            } else {
                tracing::debug!(peer = %peer.number, %reason, "spare backhaul connection ended");
            }
        });
    }

    /// Whether it was the one that is sent on.
    fn drop_conn(&self, shared: &Shared, gone: &Conn) -> bool {
        let was_current = self.with_conns(|conns| {
            let was_current = self.is_current(gone);
            conns.retain(|conn| conn.id() != gone.id());
            self.prefer_others(conns, gone);
            was_current
        });
        self.vitals.connections.fetch_sub(1, Ordering::Relaxed);
        self.changed.notify_waiters();
        shared.share_windows();
        was_current
    }

    /// A stream on the current connection; dials when there is none.
    pub(super) async fn open(self: &Arc<Self>, shared: &Arc<Shared>) -> Result<FrameStream, OpenError> {
        let now = clock::now();
        self.vitals.uses(now);
        self.vitals.signs.owes(now);
        let mut again = true;
        loop {
            let conn = self.connect(shared).await?;
            let in_flight = InFlight::new(&conn.in_flight);
            match conn.connection.open_bi().await {
                Ok(halves) => {
                    return Ok(FrameStream::new(self.number, halves, Arc::clone(&self.vitals), in_flight));
                }
                // It died unnoticed: nothing was sent, so another one may serve.
                Err(_) if std::mem::take(&mut again) => self.forget(&conn),
                Err(error) => return Err(StreamError::Lost(error.to_string()).into()),
            }
        }
    }

    /// Stops sending on a connection that broke, before its task has noticed.
    fn forget(&self, broken: &Conn) {
        self.with_conns(|conns| self.prefer_others(conns, broken));
    }

    fn prefer_others(&self, conns: &[Arc<Conn>], gone: &Conn) {
        if gone.connection.close_reason() == Some(ConnectionError::Reset) {
            // The peer restarted: what was dialled at the same time as this one is dead too.
            for twin in conns.iter().filter(|conn| dialled_at_once(conn, gone)) {
                twin.connection.close(REPLACED, b"the peer restarted");
            }
        }
        self.current.store(preferred(conns));
    }

    async fn connect(self: &Arc<Self>, shared: &Arc<Shared>) -> Result<Arc<Conn>, OpenError> {
        if let Some(conn) = self.current.load_full() {
            return Ok(conn);
        }
        let mut dials = self.dials.subscribe();
        let before = dials.borrow_and_update().0;
        loop {
            let changed = self.changed.notified();
            if let Some(conn) = self.current.load_full() {
                return Ok(conn);
            }
            self.dial(shared);
            tokio::select! {
                () = changed => {}
                () = self.stop.cancelled() => return Err(OpenError::Unknown(self.number)),
                _ = dials.changed() => {
                    let (finished, error) = dials.borrow_and_update().clone();
                    if let Some(reason) = error.filter(|_| finished > before) {
                        if self.current.load().is_some() {
                            continue;
                        }
                        return Err(OpenError::Unreachable { node: self.number, reason });
                    }
                }
            }
        }
    }

    /// Begins to dial unless somebody does.
    fn dial(self: &Arc<Self>, shared: &Arc<Shared>) {
        if self.dialling.swap(true, Ordering::AcqRel) {
            return;
        }
        let (peer, within) = (Arc::clone(self), Arc::clone(shared));
        shared.spawn_on(shared.cores.next(), async move {
            let dialled = tokio::select! {
                dialled = peer.dial_once(&within) => dialled,
                () = peer.stop.cancelled() => Err("it is no member any more".into()),
            };
            if let Err(reason) = &dialled {
                count(&within.counters.failed_dials);
                tracing::debug!(peer = %peer.number, %reason, "backhaul dial failed");
            }
            peer.dialling.store(false, Ordering::Release);
            peer.dials.send_modify(|(finished, error)| {
                *finished += 1;
                *error = dialled.err();
            });
        });
    }

    async fn dial_once(self: &Arc<Self>, shared: &Arc<Shared>) -> Result<(), String> {
        let address = self.address.load_full().ok_or("its address is not known yet")?;
        self.vitals.signs.owes(clock::now());
        let name = certificate_name(self.number);
        let connecting = shared
            .endpoint
            .connect_with(shared.client.clone(), address.addr, &name)
            .map_err(|error| error.to_string())?;
        let connection = tokio::time::timeout(shared.config.dial_timeout, connecting)
            .await
            .map_err(|_| format!("no answer from {} in time", address.addr))?
            .map_err(|error| error.to_string())?;
        let proved = serve::identity(&connection).map_err(|error| error.to_string())?;
        let expected = self.registered_key();
        if proved.number != self.number || expected.is_some_and(|key| key != proved.key) {
            connection.close(super::STRANGER, b"another key than the registry's");
            serve::refuse(shared, address.addr, "it answers with another key than the registry's");
            return Err("it answers with another key than the registry's".into());
        }
        let conn = Conn::new(connection, proved.key, shared.identity.number());
        self.adopt(shared, Arc::new(conn));
        Ok(())
    }

    /// Keeps a connection up, for as long as the peer is a member: the life of a link.
    pub(super) async fn keep(
        self: Arc<Self>,
        shared: Arc<Shared>,
        cancel: CancellationToken,
    ) -> Result<(), String> {
        let kept = async {
            let mut entropy = Entropy::default();
            if shared.identity.number() > self.number {
                let changed = self.changed.notified();
                if self.current.load().is_none() {
                    // Timing out is the usual case of a dead peer.
                    let _ = tokio::time::timeout(COURTESY, changed).await;
                }
            }
            let mut pause = LEAST_PAUSE;
            loop {
                let began = clock::now();
                if self.connect(&shared).await.is_ok() {
                    self.until_disconnected().await;
                }
                // A peer that takes connections and drops them at once is not hammered.
                let lasted = clock::now().saturating_duration_since(began);
                pause = if lasted > MOST_PAUSE { LEAST_PAUSE } else { (pause * 2).min(MOST_PAUSE) };
                tokio::time::sleep(pause.mul_f64(0.5 + entropy.fraction() / 2.0)).await;
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => Ok(()),
            () = cancel.cancelled() => Ok(()),
            () = kept => Err("it ended by itself".to_owned()),
        }
    }

    async fn until_disconnected(&self) {
        loop {
            let changed = self.changed.notified();
            if self.current.load().is_none() {
                return;
            }
            changed.await;
        }
    }

    /// See [`super::Backhaul::send_gossip`].
    pub(super) fn send_gossip(self: &Arc<Self>, shared: &Arc<Shared>, message: Bytes) {
        let Some(conn) = self.current.load_full() else {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.push_back(message);
            if kept.len() > KEPT {
                kept.pop_front();
                count(&shared.counters.gossip_dropped);
            }
            drop(kept);
            self.dial(shared);
            return;
        };
        let fits = conn.connection.max_datagram_size().is_some_and(|most| HEADER + message.len() <= most);
        let datagram = || Datagram::Gossip(message.clone()).encode();
        if fits && conn.connection.send_datagram(datagram()).is_ok() {
            return;
        }
        let Ok(permit) = Arc::clone(&self.large).try_acquire_owned() else {
            count(&shared.counters.gossip_dropped);
            return;
        };
        shared.spawn(async move {
            let _permit = permit;
            // Lost with its connection, as a datagram would be: gossip repeats itself.
            if let Ok(mut stream) = conn.connection.open_uni().await {
                let _ = stream.set_priority(2);
                let mut bytes = Vec::new();
                // Only data comes apart.
                let _none = Frame::Open(Open::Gossip(message.to_vec())).encode(&mut bytes);
                if stream.write_chunk(bytes.into()).await.is_ok() {
                    let _ = stream.finish();
                }
            }
        });
    }

    fn take_kept(&self) -> VecDeque<Bytes> {
        std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The connection to send on: the newest, except that of two dialled at once the lower number's
/// counts.
fn preferred(conns: &[Arc<Conn>]) -> Option<Arc<Conn>> {
    let alive = conns.iter().filter(|conn| conn.connection.close_reason().is_none());
    alive.cloned().reduce(|older, newer| {
        let lower = older.dialled_by < newer.dialled_by;
        if lower && dialled_at_once(&older, &newer) { older } else { newer }
    })
}

fn dialled_at_once(a: &Conn, b: &Conn) -> bool {
    let apart = a.since.max(b.since).saturating_duration_since(a.since.min(b.since));
    apart < AT_ONCE + a.connection.rtt()
}
