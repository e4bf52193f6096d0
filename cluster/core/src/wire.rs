//! Backhaul's frames (DESIGN section 4).
//!
//! A stream opens with one [`Frame::Open`]. For a request or connection it carries a [`Preamble`];
//! then `Head` (HTTP only), then `Data`* and `Trailers`, or `Reset`; after `Upgraded` the rest of the
//! stream is raw bytes. Back come `Admitted` or `Refused`, then the same. `Trailers` (perhaps
//! empty) ends a message: a stream that ends without it was truncated.
//!
//! On the wire a frame is one byte of kind, four bytes of length (big endian) and the payload.

mod map;

use std::net::SocketAddr;

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use serde::{Deserialize, Serialize};

use crate::code::ErrorCode;
use crate::codec::{self, CodecError};
use crate::id::{AppId, ConfigHash, MachineId, NodeNumber};
use crate::region::RegionCode;

/// The ALPN of node-to-node connections; the number is the version of these frames.
pub const ALPN: &[u8] = b"skein/1";
/// The ALPN of joining (no client certificate yet).
pub const JOIN_ALPN: &[u8] = b"skein-join/1";
/// The longest payload of a frame, in bytes; longer ones end the stream.
pub const MAX_FRAME: usize = 16 << 20;
/// The longest payload of a `Data` frame that this build sends, in bytes.
pub const MAX_DATA: usize = 64 << 10;
/// `Data` up to this length is copied to where the frames before and after it are: one write for all.
pub const MAX_COPIED: usize = 4 << 10;
/// Bytes of kind and length before each payload.
pub const FRAME_HEADER: usize = 5;

/// What the opener of a stream wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Open {
    /// A request or a connection for a Machine.
    Request(Box<Preamble>),
    /// A question to this node; one `Answer` comes back.
    Ask(Ask),
    /// One gossip message that fits no datagram.
    Gossip(Vec<u8>),
}

/// What travels in a request's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// A head, then body frames.
    Http,
    /// Raw bytes both ways.
    Tcp,
}

/// Which Machine is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// Exactly this one.
    Machine(MachineId),
    /// Any of the app on that node.
    Any,
}

/// All that a worker must know before it reads a body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preamble {
    /// The app.
    pub app: AppId,
    /// The public port that was dialled: names the service.
    pub port: u16,
    /// What follows.
    pub protocol: Protocol,
    /// Which Machine.
    pub target: Target,
    /// Milliseconds left for the request.
    pub deadline_ms: u32,
    /// The node of the Machine, when the one that gets this is only to pass it on (SPEC LB-8).
    pub relay: Option<NodeNumber>,
    /// Nodes that passed it on so far: at most one.
    pub hops: u8,
    /// The edge that holds the client.
    pub edge: NodeNumber,
    /// Its region.
    pub edge_region: RegionCode,
    /// The client, as the edge saw it.
    pub client: SocketAddr,
    /// The public address and port that the client dialled.
    pub public: SocketAddr,
    /// The request's id (`Fly-Request-Id`).
    pub request_id: String,
    /// W3C trace context of the caller's span, when the request is traced.
    pub traceparent: Option<String>,
}

/// A head of an HTTP request. Header names are lower case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestHead {
    /// The method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// In the order received; a name may stand more than once.
    #[serde(with = "map")]
    pub headers: HeaderMap,
}

/// A head of an HTTP response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResponseHead {
    /// The status.
    pub status: u16,
    /// In the order received.
    #[serde(with = "map")]
    pub headers: HeaderMap,
    /// What was in flight at the Machine when it answered.
    pub load: u32,
    /// Whether it is all of the response: what comes is empty `Trailers`. Over HTTP/2 that is said with
    /// the head, and gRPC tells a status by it.
    pub whole: bool,
}

/// Why a worker did not take a request; nothing of it reached the Machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefuseReason {
    /// At its hard limit.
    Full,
    /// Not started.
    Stopped,
    /// Not on this node.
    Unknown,
    /// Cordoned.
    Cordoned,
    /// Its checks fail.
    Unhealthy,
    /// The app has no service on that port here.
    NoService,
    /// The node is draining.
    Draining,
    /// The Machine could not be reached.
    Connect(ErrorCode),
    /// Too many hops.
    Hops,
    /// The node that was to pass it on cannot reach the Machine's node.
    Unreachable,
}

/// A worker's refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Why.
    pub reason: RefuseReason,
    /// How long the worker has known it, in milliseconds.
    pub age_ms: u64,
    /// What is in flight at the Machine.
    pub load: u32,
}

/// A worker's word that the request goes to this Machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted {
    /// The Machine.
    pub machine: MachineId,
    /// What is in flight at it, this request included.
    pub load: u32,
}

/// Why a message was cut off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reset {
    /// The code for the client, if nothing was sent to it yet.
    pub code: ErrorCode,
    /// Whether any byte of the request may have reached the app.
    pub reached_app: bool,
}

/// A question from node to node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// A call of the API, to be answered by the node that owns the thing.
    Api(ApiCall),
    /// The configuration of that hash, as JSON; empty when unknown.
    Config(ConfigHash),
    /// A message of Raft or a proposal for its leader: the registry's own encoding.
    Registry(Vec<u8>),
    /// The node's own gossip version and applied registry index: a [`Seen`].
    Version,
    /// Answered once the node has seen all of these, or its patience ended.
    Barrier(Vec<Seen>),
    /// Nothing: measures the round trip.
    Ping,
    /// A Machine that refused this edge has room: whether anybody waits for it, as a `bool`.
    Room(Room),
    /// What the node's edge decided for a request, by the request's or its trace's id: a
    /// [`Story`](crate::explain::Story) as JSON of at most [`MAX_JSON`](crate::explain::MAX_JSON) bytes;
    /// empty when it knows none.
    Explain(String),
    /// An edge's demand for Machines of an app in the region of the node that is asked, which decides what
    /// is started there; nothing comes back. Good for a moment, and repeated while somebody waits.
    Demand {
        /// The app.
        app: AppId,
        /// The public port.
        port: u16,
        /// The region.
        region: RegionCode,
        /// Requests that wait at this edge for a start.
        waiting: u32,
        /// Requests that this edge has in flight at the app's Machines there.
        in_flight: u32,
    },
    /// Traffic wants this Machine of the node that is asked started.
    Start(MachineId),
    /// This Machine of the node that is asked seems to be one too many.
    Rest {
        /// The Machine.
        machine: MachineId,
        /// Whether it is to be suspended, if that is possible, rather than stopped.
        suspend: bool,
    },
}

/// A worker's hint that a slot is free (SPEC LB-4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// The app.
    pub app: AppId,
    /// The Machine.
    pub machine: MachineId,
    /// Which service of its configuration, by index.
    pub service: u16,
    /// What is in flight at it.
    pub load: u32,
}

/// How far a node has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The node.
    pub node: NodeNumber,
    /// Its gossip state's generation.
    pub generation: u64,
    /// Its gossip state's version.
    pub version: u64,
    /// The registry entry that it has applied.
    pub applied: u64,
}

/// An API call on its way to its owner; the token travels along and is checked again there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiCall {
    /// The method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Headers.
    pub headers: Vec<(String, Bytes)>,
    /// The body.
    pub body: Bytes,
}

/// What came of an [`ApiCall`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiAnswer {
    /// The status.
    pub status: u16,
    /// Headers.
    pub headers: Vec<(String, Bytes)>,
    /// The body.
    pub body: Bytes,
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// The first of a stream.
    Open(Open),
    /// A request's head.
    RequestHead(RequestHead),
    /// A response's head.
    ResponseHead(ResponseHead),
    /// Bytes of a body.
    Data(Bytes),
    /// The end of a message, with its trailers.
    Trailers(Vec<(String, Bytes)>),
    /// The end of a message that could not be completed.
    Reset(Reset),
    /// Raw bytes follow.
    Upgraded,
    /// The request was taken.
    Admitted(Admitted),
    /// The request was not taken.
    Refused(Refused),
    /// The answer to an [`Ask`]: the answer's own bytes, or why there is none.
    Answer(Result<Bytes, String>),
}

/// Why bytes are not a frame; the peer caused it, and its stream is reset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A kind that this build does not know.
    #[error("frame kind {0} is not known here")]
    Kind(u8),
    /// Longer than [`MAX_FRAME`].
    #[error("a frame of {0} bytes is more than {MAX_FRAME}")]
    TooLong(usize),
    /// The payload does not hold such a frame.
    #[error("malformed frame")]
    Payload(#[from] CodecError),
}

impl Frame {
    fn kind(&self) -> u8 {
        match self {
            Self::Open(_) => 0,
            Self::RequestHead(_) => 1,
            Self::ResponseHead(_) => 2,
            Self::Data(_) => 3,
            Self::Trailers(_) => 4,
            Self::Reset(_) => 5,
            Self::Upgraded => 6,
            Self::Admitted(_) => 7,
            Self::Refused(_) => 8,
            Self::Answer(_) => 9,
        }
    }

    /// Appends header and payload to `bytes`. Long `Data` is not copied: it comes back, to be sent next.
    pub fn encode(self, bytes: &mut Vec<u8>) -> Option<Bytes> {
        bytes.push(self.kind());
        bytes.extend_from_slice(&[0; FRAME_HEADER - 1]);
        let begin = bytes.len();
        let mut apart = None;
        match self {
            Self::Open(open) => codec::encode_to(&open, bytes),
            Self::RequestHead(head) => codec::encode_to(&head, bytes),
            Self::ResponseHead(head) => codec::encode_to(&head, bytes),
            Self::Data(data) if data.len() > MAX_COPIED => apart = Some(data),
            Self::Data(data) => bytes.extend_from_slice(&data),
            Self::Trailers(trailers) => codec::encode_to(&trailers, bytes),
            Self::Reset(reset) => codec::encode_to(&reset, bytes),
            Self::Upgraded => {}
            Self::Admitted(admitted) => codec::encode_to(&admitted, bytes),
            Self::Refused(refused) => codec::encode_to(&refused, bytes),
            Self::Answer(answer) => codec::encode_to(&answer, bytes),
        }
        let length = bytes.len() - begin + apart.as_ref().map_or(0, Bytes::len);
        bytes[begin + 1 - FRAME_HEADER..begin].copy_from_slice(&(length as u32).to_be_bytes());
        apart
    }

    /// Takes the next whole frame off `buffer`; `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`FrameError`]; the buffer is of no use after it.
    pub fn decode(buffer: &mut BytesMut) -> Result<Option<Self>, FrameError> {
        let Some(header) = buffer.first_chunk::<FRAME_HEADER>() else { return Ok(None) };
        let [kind, length @ ..] = *header;
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_FRAME {
            return Err(FrameError::TooLong(length));
        }
        if buffer.len() < FRAME_HEADER + length {
            return Ok(None);
        }
        buffer.advance(FRAME_HEADER);
        if kind == 3 {
            return Ok(Some(Self::Data(buffer.split_to(length).freeze())));
        }
        let payload = &buffer[..length];
        let frame = match kind {
            0 => Self::Open(codec::decode(payload)?),
            1 => Self::RequestHead(codec::decode(payload)?),
            2 => Self::ResponseHead(codec::decode(payload)?),
            4 => Self::Trailers(codec::decode(payload)?),
            5 => Self::Reset(codec::decode(payload)?),
            6 => Self::Upgraded,
            7 => Self::Admitted(codec::decode(payload)?),
            8 => Self::Refused(codec::decode(payload)?),
            9 => Self::Answer(codec::decode(payload)?),
            other => return Err(FrameError::Kind(other)),
        };
        buffer.advance(length);
        Ok(Some(frame))
    }
}

/// What a new node asks of a member (SPEC CLU-1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The join token's id.
    pub token: String,
    /// Its secret.
    pub secret: String,
    /// The wanted name; made from the region and a number when empty.
    pub name: Option<crate::NodeName>,
    /// Its region.
    pub region: RegionCode,
    /// Its certificate request, DER: the key never leaves the node.
    pub csr: Vec<u8>,
    /// Where its backhaul will listen.
    pub backhaul: SocketAddr,
}

/// Why a member did not admit a node; the text is for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum JoinRefusal {
    /// The same request would be refused again.
    #[error("{0}")]
    Final(String),
    /// The member could not have it decided now: its registry reached no majority or did not answer
    /// in time. The same request may be made again, here or at another member.
    #[error("{0}")]
    NotNow(String),
}

/// What a new node gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinReply {
    /// Its number.
    pub number: NodeNumber,
    /// Its name.
    pub name: crate::NodeName,
    /// Its certificate, DER.
    pub certificate: Vec<u8>,
    /// The authority's certificate, DER.
    pub authority: Vec<u8>,
    /// The key that secrets in the registry are encrypted under: 32 bytes.
    pub data_key: Vec<u8>,
    /// Nodes it may speak to at once.
    pub peers: Vec<(NodeNumber, SocketAddr)>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes_of(frame: Frame) -> BytesMut {
        let mut bytes = Vec::new();
        let apart = frame.encode(&mut bytes);
        bytes.extend(apart.into_iter().flatten());
        BytesMut::from(&bytes[..])
    }

    fn frames() -> Vec<Frame> {
        let preamble = Preamble {
            app: AppId(ulid::Ulid(9)),
            port: 443,
            protocol: Protocol::Http,
            target: Target::Machine(MachineId::from_bits(5)),
            deadline_ms: 60_000,
            relay: None,
            hops: 0,
            edge: NodeNumber(1),
            edge_region: "iad".parse().unwrap(),
            client: "203.0.113.9:5000".parse().unwrap(),
            public: "[2001:db8::1]:443".parse().unwrap(),
            request_id: "01JNRQ9VVKJ7HZFMJWJB3M3RYN-iad".into(),
            traceparent: None,
        };
        let trailers = vec![("a".to_owned(), Bytes::from_static(b"\xff"))];
        let mut headers = HeaderMap::new();
        headers.append("b", http::HeaderValue::from_bytes(b"\xff").unwrap());
        headers.append("a", http::HeaderValue::from_static("1"));
        headers.append("a", http::HeaderValue::from_static("2"));
        vec![
            Frame::Open(Open::Request(Box::new(preamble))),
            Frame::Open(Open::Ask(Ask::Ping)),
            Frame::Open(Open::Ask(Ask::Demand {
                app: AppId(ulid::Ulid(9)),
                port: 80,
                region: "iad".parse().unwrap(),
                waiting: 7,
                in_flight: 20,
            })),
            Frame::Open(Open::Ask(Ask::Start(MachineId::from_bits(5)))),
            Frame::Open(Open::Ask(Ask::Rest { machine: MachineId::from_bits(5), suspend: true })),
            Frame::RequestHead(RequestHead {
                method: "GET".into(),
                target: "/".into(),
                headers: headers.clone(),
            }),
            Frame::ResponseHead(ResponseHead { status: 200, headers, load: 3, whole: true }),
            Frame::Data(Bytes::from_static(b"hello")),
            Frame::Data(Bytes::from(vec![7; MAX_COPIED + 1])),
            Frame::Trailers(trailers),
            Frame::Reset(Reset { code: ErrorCode::PU04, reached_app: true }),
            Frame::Upgraded,
            Frame::Admitted(Admitted { machine: MachineId::from_bits(5), load: 1 }),
            Frame::Refused(Refused { reason: RefuseReason::Connect(ErrorCode::PC01), age_ms: 0, load: 0 }),
            Frame::Answer(Err("no".into())),
        ]
    }

    #[test]
    fn every_frame_round_trips_however_the_bytes_arrive() {
        for frame in frames() {
            let whole = bytes_of(frame.clone());
            let mut buffer = BytesMut::new();
            for byte in &whole[..whole.len() - 1] {
                buffer.extend_from_slice(&[*byte]);
                assert_eq!(Frame::decode(&mut buffer), Ok(None));
            }
            buffer.extend_from_slice(&whole[whole.len() - 1..]);
            assert_eq!(Frame::decode(&mut buffer), Ok(Some(frame)));
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_anything_is_allocated() {
        let mut buffer = BytesMut::from(&[3, 0xff, 0xff, 0xff, 0xff][..]);
        assert_eq!(Frame::decode(&mut buffer), Err(FrameError::TooLong(0xffff_ffff)));
    }

    proptest! {
        #[test]
        fn any_bytes_give_frames_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(frame)) = Frame::decode(&mut buffer) {
                let mut again = bytes_of(frame.clone());
                prop_assert_eq!(Frame::decode(&mut again), Ok(Some(frame)));
            }
        }
    }
}
