//! Frames over one QUIC stream.
//!
//! A stream that ends without the frame that ends its message was cut short: [`StreamError::Truncated`],
//! never a silent end. A sender that is dropped before [`FrameSender::finish`] resets the stream.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};
use skein_core::NodeNumber;
use skein_core::wire::{Frame, FrameError, MAX_DATA, Open};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::peers::Vitals;
use crate::clock;

/// The stream's user gave up.
pub(super) const CANCELLED: VarInt = VarInt::from_u32(0x10);
/// The peer sent what is no frame, or not the frame that belongs there.
pub(super) const GARBAGE: VarInt = VarInt::from_u32(0x11);
/// The peer opened a stream and said nothing.
pub(super) const TOO_LATE: VarInt = VarInt::from_u32(0x12);

/// Chunks that are read of what nobody wants any more.
const REST: usize = 2;
/// What most heads need.
const FIRST_BYTES: usize = 1 << 10;

/// Why a stream broke.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The connection to the peer is gone; the reason is the transport's.
    #[error("the connection to the peer was lost: {0}")]
    Lost(String),
    /// The peer gave the stream up; the code is its reason.
    #[error("the peer reset the stream (code {0})")]
    Reset(u64),
    /// The peer's stream ended in the middle of a message.
    #[error("the peer's stream ended in the middle of a message")]
    Truncated,
    /// The peer sent what is no frame.
    #[error("the peer sent no valid frame")]
    Garbage(#[from] FrameError),
    /// The local side finished, reset or cut off this direction before.
    #[error("the stream is closed on this side")]
    Closed,
}

impl From<WriteError> for StreamError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stopped(code) => Self::Reset(code.into_inner()),
            WriteError::ConnectionLost(error) => Self::Lost(error.to_string()),
            WriteError::ClosedStream | WriteError::ZeroRttRejected => Self::Closed,
        }
    }
}

impl From<ReadError> for StreamError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reset(code) => Self::Reset(code.into_inner()),
            ReadError::ConnectionLost(error) => Self::Lost(error.to_string()),
            ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
                Self::Closed
            }
        }
    }
}

/// Counts a stream for as long as either half lives.
#[derive(Debug)]
pub(super) struct InFlight(Arc<AtomicUsize>);

impl InFlight {
    pub(super) fn new(count: &Arc<AtomicUsize>) -> Arc<Self> {
        count.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self(Arc::clone(count)))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream of frames both ways.
#[derive(Debug)]
pub struct FrameStream {
    /// The node at the other end.
    pub peer: NodeNumber,
    /// What is sent.
    pub send: FrameSender,
    /// What comes.
    pub recv: FrameReceiver,
}

impl FrameStream {
    pub(super) fn new(
        peer: NodeNumber,
        (send, recv): (SendStream, RecvStream),
        vitals: Arc<Vitals>,
        in_flight: Arc<InFlight>,
    ) -> Self {
        let sender = FrameSender { stream: Some(send), _in_flight: Arc::clone(&in_flight) };
        Self { peer, send: sender, recv: FrameReceiver::new(recv, vitals, in_flight) }
    }

    /// The halves, to be used apart.
    pub fn split(self) -> (FrameSender, FrameReceiver) {
        (self.send, self.recv)
    }
}

/// Sends frames.
#[derive(Debug)]
pub struct FrameSender {
    /// `None` once it was finished, reset, or a write broke.
    stream: Option<SendStream>,
    _in_flight: Arc<InFlight>,
}

impl FrameSender {
    /// Sends a frame; waits while the peer's windows are full. Longer data than [`MAX_DATA`] goes as
    /// several frames.
    ///
    /// Not cancel safe: dropped in the middle, the stream is reset, because half a frame was sent.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn send(&mut self, frame: Frame) -> Result<(), StreamError> {
        self.send_all([frame]).await
    }

    /// Sends frames in one write: cheaper than one by one.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn send_all(&mut self, frames: impl IntoIterator<Item = Frame>) -> Result<(), StreamError> {
        let (mut chunks, mut bytes) = (Vec::new(), Vec::with_capacity(FIRST_BYTES));
        for frame in frames {
            push_chunks(frame, &mut bytes, &mut chunks);
        }
        if !bytes.is_empty() {
            chunks.push(Bytes::from(bytes));
        }
        // Taken while writing: when this future is dropped half-way, the guard resets the stream.
        let mut writing = Writing(self.stream.take());
        let stream = writing.0.as_mut().ok_or(StreamError::Closed)?;
        stream.write_all_chunks(&mut chunks).await?;
        self.stream = writing.0.take();
        Ok(())
    }

    /// Says that nothing more comes. What was sent is still delivered.
    ///
    /// # Errors
    /// [`StreamError::Closed`] when it was closed before.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        let mut stream = self.stream.take().ok_or(StreamError::Closed)?;
        stream.finish().map_err(|_| StreamError::Closed)
    }

    /// Gives the stream up: what was not delivered yet is dropped, the peer sees
    /// [`StreamError::Reset`].
    pub fn reset(&mut self) {
        self.reset_with(CANCELLED);
    }

    pub(super) fn reset_with(&mut self, code: VarInt) {
        if let Some(mut stream) = self.stream.take() {
            // Only fails when it is closed already.
            let _ = stream.reset(code);
        }
    }

    /// Waits until the peer no longer takes what is sent: it stopped reading, or the connection is
    /// gone. Returns at once when this side closed the stream.
    pub async fn stopped(&mut self) -> StreamError {
        let Some(stream) = &self.stream else { return StreamError::Closed };
        match stream.stopped().await {
            Ok(Some(code)) => StreamError::Reset(code.into_inner()),
            Ok(None) => StreamError::Closed,
            Err(error) => WriteError::from(error).into(),
        }
    }

    /// Raw bytes from here on ([`Frame::Upgraded`] was sent). Shut it down to end it; dropped before,
    /// it resets the stream.
    pub fn into_raw(mut self) -> impl AsyncWrite + Send + Unpin + 'static {
        RawSender { stream: Writing(self.stream.take()), _in_flight: Arc::clone(&self._in_flight) }
    }

    pub(super) fn prioritize(&self, priority: i32) {
        if let Some(stream) = &self.stream {
            // Only fails when the stream is closed: then nothing is left to order.
            let _ = stream.set_priority(priority);
        }
    }
}

impl Drop for FrameSender {
    fn drop(&mut self) {
        self.reset();
    }
}

/// Adds a frame to `bytes`; before data that is not copied, those go to `chunks`.
fn push_chunks(mut frame: Frame, bytes: &mut Vec<u8>, chunks: &mut Vec<Bytes>) {
    if let Frame::Data(data) = &mut frame {
        while data.len() > MAX_DATA {
            push_chunks(Frame::Data(data.split_to(MAX_DATA)), bytes, chunks);
        }
    }
    if let Some(apart) = frame.encode(bytes) {
        chunks.push(Bytes::from(std::mem::take(bytes)));
        chunks.push(apart);
    }
}

/// Resets its stream unless it is taken out.
#[derive(Debug)]
struct Writing(Option<SendStream>);

impl Drop for Writing {
    fn drop(&mut self) {
        if let Some(mut stream) = self.0.take() {
            // Only fails when it is closed already.
            let _ = stream.reset(CANCELLED);
        }
    }
}

/// Receives frames.
#[derive(Debug)]
pub struct FrameReceiver {
    /// `None` once raw bytes were asked for.
    stream: Option<RecvStream>,
    buffer: BytesMut,
    state: Receiving,
    vitals: Arc<Vitals>,
    in_flight: Arc<InFlight>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Receiving {
    /// Frames are expected; `whole` when the last one may end the stream.
    Frames {
        whole: bool,
    },
    Ended,
    Broken(StreamError),
}

impl FrameReceiver {
    pub(super) fn new(stream: RecvStream, vitals: Arc<Vitals>, in_flight: Arc<InFlight>) -> Self {
        let state = Receiving::Frames { whole: false };
        Self { stream: Some(stream), buffer: BytesMut::new(), state, vitals, in_flight }
    }

    /// The next frame; `None` after the last one of a complete message. Cancel safe.
    ///
    /// # Errors
    /// [`StreamError`], and the same again when asked once more.
    pub async fn next(&mut self) -> Result<Option<Frame>, StreamError> {
        let result = self.advance().await;
        match &result {
            Ok(Some(frame)) => self.state = Receiving::Frames { whole: ends_message(frame) },
            Ok(None) => self.state = Receiving::Ended,
            Err(error) => {
                self.state = Receiving::Broken(error.clone());
                self.stop(if matches!(error, StreamError::Garbage(_)) { GARBAGE } else { CANCELLED });
            }
        }
        result
    }

    async fn advance(&mut self) -> Result<Option<Frame>, StreamError> {
        let whole = match &self.state {
            Receiving::Frames { whole } => *whole,
            Receiving::Ended => return Ok(None),
            Receiving::Broken(error) => return Err(error.clone()),
        };
        loop {
            if let Some(frame) = Frame::decode(&mut self.buffer)? {
                return Ok(Some(frame));
            }
            let stream = self.stream.as_mut().ok_or(StreamError::Closed)?;
            match stream.read_chunk(MAX_DATA, true).await? {
                Some(chunk) => {
                    self.vitals.signs.heard(clock::now());
                    self.buffer.extend_from_slice(&chunk.bytes);
                }
                None if whole && self.buffer.is_empty() => return Ok(None),
                None => return Err(StreamError::Truncated),
            }
        }
    }

    /// Tells the peer that nothing more of it is read.
    pub fn cancel(&mut self) {
        self.state = Receiving::Broken(StreamError::Closed);
        self.stop(CANCELLED);
    }

    /// Raw bytes from here on ([`Frame::Upgraded`] was received): what is buffered, then the rest.
    pub fn into_raw(mut self) -> impl AsyncRead + Send + Unpin + 'static {
        let stream = self.stream.take();
        let (buffer, vitals) = (std::mem::take(&mut self.buffer), Arc::clone(&self.vitals));
        RawReceiver { stream, buffer, vitals, _in_flight: Arc::clone(&self.in_flight) }
    }

    pub(super) fn stop(&mut self, code: VarInt) {
        if let Some(stream) = &mut self.stream {
            // Only fails when all of it was read or it was stopped before.
            let _ = stream.stop(code);
        }
    }
}

impl Drop for FrameReceiver {
    fn drop(&mut self) {
        // A stream that is dropped before its end was read tells the peer to stop, in a packet for each
        // request. Usually the end is there and only nobody looked.
        let Some(stream) = &mut self.stream else { return };
        let cx = &mut Context::from_waker(Waker::noop());
        for _ in 0..REST {
            match pin!(stream.read_chunk(MAX_DATA, true)).poll(cx) {
                Poll::Ready(Ok(Some(_))) => {}
                Poll::Ready(Ok(None) | Err(_)) | Poll::Pending => return,
            }
        }
    }
}

/// Whether a stream may end after this frame.
fn ends_message(frame: &Frame) -> bool {
    match frame {
        Frame::Trailers(_) | Frame::Reset(_) | Frame::Refused(_) | Frame::Answer(_) => true,
        Frame::Open(Open::Ask(_) | Open::Gossip(_)) => true,
        Frame::Open(Open::Request(_))
        | Frame::RequestHead(_)
        | Frame::ResponseHead(_)
        | Frame::Data(_)
        | Frame::Upgraded
        | Frame::Admitted(_) => false,
    }
}

struct RawSender {
    stream: Writing,
    _in_flight: Arc<InFlight>,
}

impl RawSender {
    fn stream(&mut self) -> io::Result<Pin<&mut SendStream>> {
        self.stream.0.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl AsyncWrite for RawSender {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(self.get_mut().stream()?, cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(self.get_mut().stream()?, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut().stream.0.take() {
            Some(mut stream) => Poll::Ready(stream.finish().map_err(io::Error::other)),
            None => Poll::Ready(Ok(())),
        }
    }
}

struct RawReceiver {
    stream: Option<RecvStream>,
    buffer: BytesMut,
    vitals: Arc<Vitals>,
    _in_flight: Arc<InFlight>,
}

impl AsyncRead for RawReceiver {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.buffer.is_empty() {
            let length = this.buffer.len().min(buf.remaining());
            buf.put_slice(&this.buffer[..length]);
            this.buffer.advance(length);
            return Poll::Ready(Ok(()));
        }
        let Some(stream) = &mut this.stream else { return Poll::Ready(Ok(())) };
        let before = buf.filled().len();
        let polled = AsyncRead::poll_read(Pin::new(stream), cx, buf);
        if buf.filled().len() > before {
            this.vitals.signs.heard(clock::now());
        }
        polled
    }
}
