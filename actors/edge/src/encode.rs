//! A response's body, compressed on its way to the client (SPEC HTTP-5).
//!
//! What the Machine sent is given out as soon as it sends no more for the moment, so a slow stream
//! passes as it comes. A body that breaks off is never given the end of a whole one.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use async_compression::Level;
use async_compression::brotli::EncoderParams;
use async_compression::codecs::{BrotliEncoder, EncodeV2, GzipEncoder, ZlibEncoder, ZstdEncoder};
use async_compression::core::util::{PartialBuffer, WriteBuffer};
use async_compression::zstd::CParameter;
use bytes::{Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Method, response};
use http_body::Frame;
use skein_core::encoding::{self, Coding};

use crate::body::BodyError;
use crate::client_body::Answer;
use crate::core::Core;

/// Bytes by which the output grows.
const GROWTH: usize = 8 << 10;
/// Output of so many bytes goes out.
const PIECE: usize = 32 << 10;
/// Input of so many bytes is given out even if more is there: nothing hoards the thread or the bytes.
const MOST_INSIDE: usize = 256 << 10;

/// Memory of one encoder is a matter of these: a window and tables of 128 to 512 KiB. They are not what
/// compresses best, but what a proxy can do for every response.
fn encoder(coding: Coding) -> Box<dyn EncodeV2 + Send> {
    match coding {
        Coding::Zstd => {
            let small = [CParameter::window_log(17), CParameter::hash_log(16), CParameter::chain_log(15)];
            Box::new(ZstdEncoder::new_with_params(CParameter::quality(Level::Precise(3)), &small))
        }
        Coding::Brotli => {
            let params = EncoderParams::default().quality(Level::Precise(4)).window_size(17);
            Box::new(BrotliEncoder::new(params.size_hint(64 << 10)))
        }
        Coding::Gzip => Box::new(GzipEncoder::new(Level::Precise(4).into())),
        Coding::Deflate => Box::new(ZlibEncoder::new(Level::Precise(4).into())),
    }
}

/// A Machine's response as its client gets it: compressed if that can be, and if there is room. Also
/// says how many bytes the head promises.
pub(crate) fn answer(
    core: &Arc<Core>,
    method: &Method,
    asked: &HeaderMap,
    head: &mut response::Parts,
    answer: Answer,
    on: bool,
) -> (Answer, Option<u64>) {
    let promised = head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let length = if answer.is_end_stream() { Some(0) } else { promised };
    let coding = encoding::negotiate(method, asked, head.status, &mut head.headers, length, on);
    match coding.and_then(|coding| Some((coding, Room::take(core)?))) {
        None => (answer, promised),
        Some((coding, room)) => {
            encoding::apply(&mut head.headers, coding);
            (Encoded::answer(answer, coding, room), None)
        }
    }
}

/// One of the places for responses that are compressed at the same time.
#[derive(Debug)]
struct Room(Arc<Core>);

impl Room {
    /// A place, if one is free.
    fn take(core: &Arc<Core>) -> Option<Self> {
        let room = Self(Arc::clone(core));
        let before = core.compressions.fetch_add(1, Ordering::Relaxed);
        (before < core.config.max_compressions).then_some(room)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.0.compressions.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A body that is compressed as it comes.
pub(crate) struct Encoded {
    source: Answer,
    encoder: Box<dyn EncodeV2 + Send>,
    /// What the encoder gave and did not go out yet.
    out: BytesMut,
    /// Bytes that went into the encoder and did not all come out yet.
    inside: usize,
    trailers: Option<HeaderMap>,
    state: State,
    _room: Room,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// All data went out; trailers may follow.
    Ended,
    Done,
}

impl std::fmt::Debug for Encoded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoded")
            .field("source", &self.source)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Encoded {
    fn answer(source: Answer, coding: Coding, room: Room) -> Answer {
        Answer::Encoded(Box::new(Self {
            source,
            encoder: encoder(coding),
            out: BytesMut::new(),
            inside: 0,
            trailers: None,
            state: State::Open,
            _room: room,
        }))
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.state == State::Done
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            match self.state {
                State::Open => {}
                State::Ended => {
                    self.state = State::Done;
                    return Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
                }
                State::Done => return Poll::Ready(None),
            }
            let step = match self.source.poll_frame(cx) {
                Poll::Pending if self.inside == 0 => return Poll::Pending,
                Poll::Pending => self.flush(),
                Poll::Ready(None) => self.finish(None),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.encode(&data),
                    Err(frame) => self.finish(frame.into_trailers().ok()),
                },
                Poll::Ready(Some(Err(error))) => {
                    self.state = State::Done;
                    return Poll::Ready(Some(Err(error)));
                }
            };
            if let Err(error) = step {
                tracing::warn!(%error, "a response could not be compressed");
                self.state = State::Done;
                return Poll::Ready(Some(Err(BodyError::Encoder)));
            }
            if !self.out.is_empty() && (self.inside == 0 || self.out.len() >= PIECE) {
                return Poll::Ready(Some(Ok(Frame::data(self.out.split().freeze()))));
            }
        }
    }

    fn encode(&mut self, data: &[u8]) -> std::io::Result<()> {
        let mut input = PartialBuffer::new(data);
        while !input.unwritten().is_empty() {
            self.step(|encoder, out| encoder.encode(&mut input, out))?;
        }
        self.inside += data.len();
        if self.inside >= MOST_INSIDE { self.flush() } else { Ok(()) }
    }

    /// Brings out all that is inside.
    fn flush(&mut self) -> std::io::Result<()> {
        while !self.step(|encoder, out| encoder.flush(out))? {}
        self.inside = 0;
        Ok(())
    }

    fn finish(&mut self, trailers: Option<HeaderMap>) -> std::io::Result<()> {
        while !self.step(|encoder, out| encoder.finish(out))? {}
        self.inside = 0;
        self.trailers = trailers;
        self.state = State::Ended;
        Ok(())
    }

    /// Lets the encoder write some output.
    fn step<T>(
        &mut self,
        run: impl FnOnce(&mut (dyn EncodeV2 + Send), &mut WriteBuffer<'_>) -> std::io::Result<T>,
    ) -> std::io::Result<T> {
        let before = self.out.len();
        self.out.resize(before + GROWTH, 0);
        let mut room = WriteBuffer::new_initialized(&mut self.out[before..]);
        let done = run(self.encoder.as_mut(), &mut room);
        let written = room.written_len();
        self.out.truncate(before + written);
        done
    }
}
