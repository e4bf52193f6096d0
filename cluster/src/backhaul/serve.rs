//! What comes from the network: who is let in, and what becomes of its streams.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, ConnectionError, Incoming, RecvStream, SendStream};
use rustls_pki_types::CertificateDer;
use skein_core::wire::{ALPN, Ask, Frame, JOIN_ALPN, Open};
use tokio::sync::Semaphore;

use super::conn::{Conn, Probes};
use super::datagram::Datagram;
use super::peer::Peer;
use super::stream::{FrameReceiver, FrameStream, GARBAGE, InFlight, TOO_LATE};
use super::{STRANGER, Shared, count};
use crate::identity::{PeerIdentity, UnreadableCertificate};
use crate::{clock, join};

/// Handshakes at once; who comes beyond is refused.
const HANDSHAKES: usize = 1_024;
/// From this many on, a new client must first prove its address.
const UNPROVED: usize = 256;
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long a stream may be open before its first frame is whole: on a bad link it takes its time.
const FIRST_FRAME: Duration = Duration::from_secs(60);

/// Lets connections in until the endpoint closes.
pub(super) async fn accept(shared: Arc<Shared>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    while let Some(incoming) = shared.endpoint.accept().await {
        let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let crowded = handshakes.available_permits() < HANDSHAKES - UNPROVED;
        if crowded && incoming.may_retry() && !incoming.remote_address_validated() {
            // Cannot fail: just checked.
            let _ = incoming.retry();
            continue;
        }
        let within = Arc::clone(&shared);
        shared.spawn_on(shared.cores.next(), async move {
            admit(&within, incoming).await;
            drop(permit);
        });
    }
}

async fn admit(shared: &Arc<Shared>, incoming: Incoming) {
    let from = incoming.remote_address();
    let Ok(connecting) = incoming.accept() else { return };
    let connection = match tokio::time::timeout(HANDSHAKE, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(ConnectionError::TransportError(error))) => {
            return refuse(shared, from, &format!("the handshake failed: {error}"));
        }
        // Given up by the other end, or stalled: nothing was claimed, nothing is refused.
        Ok(Err(_)) | Err(_) => return,
    };
    let protocol = connection
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok())
        .and_then(|data| data.protocol);
    match protocol.as_deref() {
        Some(JOIN_ALPN) => {
            if let Some(handlers) = shared.handlers().await {
                join::answer(connection, &*handlers.joiner, &shared.counters).await;
            }
        }
        Some(ALPN) => match member(shared, &connection) {
            Ok(proved) => {
                let conn = Conn::new(connection, proved.key, proved.number);
                tracing::debug!(peer = %proved.number, %from, "backhaul connection accepted");
                shared.meet(proved.number).adopt(shared, Arc::new(conn));
            }
            Err(reason) => {
                connection.close(STRANGER, reason.as_bytes());
                refuse(shared, from, &reason);
            }
        },
        Some(_) | None => {
            connection.close(STRANGER, b"unknown protocol");
            refuse(shared, from, "it speaks no protocol of this version");
        }
    }
}

/// Who the other end is, if it may come in.
fn member(shared: &Shared, connection: &Connection) -> Result<PeerIdentity, String> {
    let proved = identity(connection).map_err(|error| error.to_string())?;
    if proved.number == shared.identity.number() {
        return Err(format!("it claims to be node {}, which is this node", proved.number));
    }
    if shared.fenced.load().contains(&proved.key) {
        return Err(format!("node {} was removed", proved.number));
    }
    let known = shared.peers.load().get(&proved.number).and_then(|peer| peer.registered_key());
    if known.is_some_and(|key| key != proved.key) {
        return Err(format!("node {} has another key in the registry", proved.number));
    }
    Ok(proved)
}

/// What the other end's certificate proves; TLS has verified its chain.
pub(super) fn identity(connection: &Connection) -> Result<PeerIdentity, UnreadableCertificate> {
    let chain = connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'_>>>().ok());
    let certificate = chain.as_ref().and_then(|chain| chain.first());
    PeerIdentity::of_verified(certificate.ok_or(UnreadableCertificate::Missing)?)
}

/// Counts a stranger, and logs one a second: strangers must not fill the disk.
pub(super) fn refuse(shared: &Shared, from: SocketAddr, reason: &str) {
    count(&shared.counters.strangers);
    let second = clock::unix_ms() / 1_000;
    let strangers = shared.counters.strangers.load(Ordering::Relaxed);
    if shared.counters.refusal_logged.swap(second, Ordering::Relaxed) == second {
        tracing::debug!(%from, %reason, strangers, "backhaul connection refused");
    } else {
        tracing::warn!(%from, %reason, strangers, "backhaul connection refused");
    }
}

/// Serves a connection until it is gone; the reason it is.
pub(super) async fn connection(shared: &Arc<Shared>, peer: &Arc<Peer>, conn: &Arc<Conn>) -> ConnectionError {
    let (connection, vitals) = (&conn.connection, &peer.vitals);
    let mut probes = Probes::new();
    let sleep = tokio::time::sleep_until(clock::now().into());
    tokio::pin!(sleep);
    loop {
        let pace = (shared.config.probe_busy, shared.probe_idle());
        let now = clock::now();
        let due = probes.next_due(conn, peer.is_current(conn), vitals, pace, now);
        if due.is_some_and(|due| due <= now) {
            probes.send(conn, vitals, now);
            continue;
        }
        // Without a probe due, whether one is needed is looked at again after the idle pace.
        let wake = due.unwrap_or(now + pace.1).into();
        if due.is_some_and(|_| sleep.deadline() != wake) || sleep.is_elapsed() {
            sleep.as_mut().reset(wake);
        }
        let event = tokio::select! {
            datagram = connection.read_datagram() => datagram.map(Event::Datagram),
            stream = connection.accept_bi() => stream.map(Event::Stream),
            stream = connection.accept_uni() => stream.map(Event::Gossip),
            () = vitals.in_use.notified() => Ok(Event::Tick),
            () = &mut sleep => Ok(Event::Tick),
        };
        match event {
            Ok(Event::Tick) => continue,
            Ok(Event::Datagram(bytes)) => datagram(shared, peer, conn, &mut probes, bytes).await,
            Ok(Event::Stream(halves)) => {
                let guard = InFlight::new(&conn.in_flight);
                let stream = FrameStream::new(peer.number, halves, Arc::clone(vitals), guard);
                shared.spawn_stream(bidirectional(Arc::clone(shared), stream));
            }
            Ok(Event::Gossip(half)) => {
                let guard = InFlight::new(&conn.in_flight);
                let receiver = FrameReceiver::new(half, Arc::clone(vitals), guard);
                shared.spawn_stream(gossip(Arc::clone(shared), Arc::clone(peer), receiver));
            }
            Err(error) => return error,
        }
        vitals.signs.heard(clock::now());
    }
}

enum Event {
    Tick,
    Datagram(Bytes),
    Stream((SendStream, RecvStream)),
    Gossip(RecvStream),
}

async fn datagram(shared: &Shared, peer: &Peer, conn: &Conn, probes: &mut Probes, bytes: Bytes) {
    match Datagram::decode(bytes) {
        Some(Datagram::Ping(number)) => {
            // Fails only with the connection.
            let _ = conn.connection.send_datagram(Datagram::Pong(number).encode());
        }
        Some(Datagram::Pong(number)) => probes.answered(number, &peer.vitals, clock::now()),
        Some(Datagram::Gossip(message)) => {
            if let Some(handlers) = shared.handlers.get() {
                handlers.inbound.gossip(peer.number, message);
            }
        }
        None => {
            count(&shared.counters.garbage);
            tracing::debug!(peer = %peer.number, "datagram of an unknown kind");
        }
    }
}

async fn bidirectional(shared: Arc<Shared>, mut stream: FrameStream) {
    let first = tokio::time::timeout(FIRST_FRAME, stream.recv.next()).await;
    let open = match first {
        Ok(Ok(Some(Frame::Open(open)))) => open,
        Ok(Ok(_) | Err(super::StreamError::Garbage(_))) => {
            count(&shared.counters.garbage);
            tracing::debug!(peer = %stream.peer, "stream does not begin with a valid frame");
            stream.recv.stop(GARBAGE);
            return stream.send.reset_with(GARBAGE);
        }
        Ok(Err(_)) => return,
        Err(_) => {
            stream.recv.stop(TOO_LATE);
            return stream.send.reset_with(TOO_LATE);
        }
    };
    let Some(handlers) = shared.handlers().await else { return };
    match open {
        Open::Request(preamble) => handlers.inbound.request(stream.peer, *preamble, stream).await,
        Open::Gossip(message) => handlers.inbound.gossip(stream.peer, message.into()),
        // It may take its time, which no request shall wait for.
        Open::Ask(ask) => shared.spawn_answer(answer(Arc::clone(&shared), stream, ask)),
    }
}

/// Answers a question.
async fn answer(shared: Arc<Shared>, mut stream: FrameStream, ask: Ask) {
    let Some(handlers) = shared.handlers().await else { return };
    let small = super::priority(&ask);
    let answer =
        if ask == Ask::Ping { Ok(Bytes::new()) } else { handlers.inbound.ask(stream.peer, ask).await };
    stream.send.prioritize(small);
    // The asker may be gone; then nobody wants the answer.
    if stream.send.send(Frame::Answer(answer)).await.is_ok() {
        let _ = stream.send.finish();
    }
}

async fn gossip(shared: Arc<Shared>, peer: Arc<Peer>, mut receiver: FrameReceiver) {
    match tokio::time::timeout(FIRST_FRAME, receiver.next()).await {
        Ok(Ok(Some(Frame::Open(Open::Gossip(message))))) => {
            if let Some(handlers) = shared.handlers().await {
                handlers.inbound.gossip(peer.number, message.into());
            }
        }
        Ok(Ok(_) | Err(super::StreamError::Garbage(_))) => {
            count(&shared.counters.garbage);
            receiver.stop(GARBAGE);
        }
        Ok(Err(_)) => {}
        Err(_) => receiver.stop(TOO_LATE),
    }
}
