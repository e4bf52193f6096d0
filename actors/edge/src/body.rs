//! Bodies of requests on their way to a Machine.
//!
//! A body is kept while it is sent, up to a limit and within the node's budget, so that a refusal,
//! a failed attempt or a replay can send it again (SPEC RPL-5, LB-6). Before a worker has admitted
//! the request only bytes that are kept are sent: a refusal never loses one.
//!
//! The lock is held for one poll of the client's connection, by one reader at a time.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use skein_core::headers::clean_trailers;
use tokio::time::{Sleep, sleep};

use crate::connection::Connection;
use crate::frames::FrameBody;

/// Why a body ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    /// The client went away or broke the protocol.
    #[error("the client's body ended too early")]
    Client,
    /// The Machine or its node went away.
    #[error("the Machine's body ended too early")]
    Upstream,
    /// The body could not be compressed.
    #[error("the body could not be compressed")]
    Encoder,
    /// Another attempt reads the body.
    #[error("another attempt took over")]
    Superseded,
}

/// What the end of a body over HTTP/2 means: without END_STREAM it was reset, for whatever reason, and
/// the body is not whole. hyper takes a reset with NO_ERROR for an end.
pub(crate) fn whole(
    frame: Option<Result<Frame<Bytes>, hyper::Error>>,
    incoming: &Incoming,
    broken: BodyError,
) -> Option<Result<Frame<Bytes>, BodyError>> {
    match frame {
        None if !incoming.is_end_stream() => Some(Err(broken)),
        frame => frame.map(|frame| frame.map_err(|_| broken)),
    }
}

/// A client's body.
#[derive(Debug)]
pub(crate) struct ClientStream {
    incoming: Incoming,
    http2: bool,
}

impl ClientStream {
    pub(crate) fn new(incoming: Incoming, version: Version) -> Self {
        Self { incoming, http2: version == Version::HTTP_2 }
    }
}

impl Body for ClientStream {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        Poll::Ready(if self.http2 {
            whole(frame, &self.incoming, BodyError::Client)
        } else {
            frame.map(|frame| frame.map_err(|_| BodyError::Client))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// Bytes that all kept bodies of a node may take together.
#[derive(Debug)]
pub(crate) struct Budget(AtomicUsize);

impl Budget {
    pub(crate) fn new(bytes: usize) -> Self {
        Self(AtomicUsize::new(bytes))
    }

    fn take(&self, bytes: usize) -> bool {
        self.0.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }

    fn give(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Bytes that are left.
    pub(crate) fn left(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a body can't be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotKept {
    /// It is longer than the limit of one request.
    Limit,
    /// The node's budget was spent.
    Budget,
    /// The client's side of it failed.
    Client,
}

/// A request's body, kept so that it can be sent more than once. `B` is the client's body.
#[derive(Debug)]
pub(crate) struct KeptBody<B = ClientStream>(Arc<Kept<B>>);

#[derive(Debug)]
struct Kept<B> {
    state: Mutex<State<B>>,
    budget: Arc<Budget>,
    limit: usize,
    /// The exact length, if the client gave it.
    length: Option<u64>,
}

#[derive(Debug)]
struct State<B> {
    source: B,
    /// What is kept, in order; `read` of it went to the current reader.
    chunks: VecDeque<Bytes>,
    read: usize,
    /// Bytes in `chunks`, taken from the budget.
    kept: usize,
    /// A chunk that could not be kept and waits until the request is admitted.
    stash: Option<(Bytes, NotKept)>,
    trailers: Option<HeaderMap>,
    ended: bool,
    /// Whether new chunks are kept.
    keeping: bool,
    /// Set once a byte went out that is not kept.
    lost: Option<NotKept>,
    admitted: bool,
    generation: u64,
    waker: Option<Waker>,
    /// While the client is to hurry.
    wanted: Option<Wanted>,
    /// Nothing came of it for too long.
    late: bool,
}

/// Who sees to it that a body is not waited for too long.
#[derive(Debug)]
enum Wanted {
    /// Its connection, which has no other request.
    ByConnection(Arc<Connection>),
    /// Itself: among many requests it is not known for which one nothing comes.
    Alone { limit: Duration, timer: Option<Pin<Box<Sleep>>> },
}

impl Drop for Wanted {
    fn drop(&mut self) {
        if let Self::ByConnection(connection) = self {
            connection.watch.satisfied();
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> State<B> {
    /// The next of it, or that nothing came for too long.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.source).poll_frame(cx);
        if let Some(Wanted::Alone { limit, timer }) = &mut self.wanted {
            if polled.is_ready() {
                *timer = None;
            } else if timer.get_or_insert_with(|| Box::pin(sleep(*limit))).as_mut().poll(cx).is_ready() {
                (self.wanted, self.late) = (None, true);
                return Poll::Ready(Some(Err(BodyError::Client)));
            }
        }
        polled.map(|frame| frame.map(|frame| frame.map_err(|_| BodyError::Client)))
    }

    /// Takes note of a chunk.
    fn came(&mut self, data: Bytes) -> Bytes {
        if self.source.is_end_stream() {
            self.wanted = None;
        }
        data
    }

    /// No more comes of it.
    fn end(&mut self) {
        self.ended = true;
        self.wanted = None;
    }
}

/// One reading of a [`KeptBody`], from its beginning.
#[derive(Debug)]
pub(crate) struct KeptReader<B = ClientStream> {
    body: Arc<Kept<B>>,
    generation: u64,
    done: bool,
}

impl<B: Body<Data = Bytes> + Unpin> KeptBody<B> {
    pub(crate) fn new(source: B, limit: usize, budget: Arc<Budget>) -> Self {
        let length = source.size_hint().exact();
        // A body that says it is too long is never kept: that would only spend the budget.
        let too_long = length.is_some_and(|length| length > limit as u64);
        let state = State {
            source,
            chunks: VecDeque::new(),
            read: 0,
            kept: 0,
            stash: None,
            trailers: None,
            ended: false,
            keeping: !too_long,
            lost: None,
            admitted: false,
            generation: 0,
            waker: None,
            wanted: None,
            late: false,
        };
        Self(Arc::new(Kept { state: Mutex::new(state), budget, limit, length }))
    }

    /// The client is cut off when it does not send the body, until there is a response (SPEC HTTP-9).
    pub(crate) fn hurry(&self, connection: &Arc<Connection>, version: Version) {
        let wanted = if version == Version::HTTP_2 {
            Wanted::Alone { limit: connection.core.config.body_timeout, timer: None }
        } else {
            connection.watch.want();
            Wanted::ByConnection(Arc::clone(connection))
        };
        self.0.with(|state| state.wanted = Some(wanted));
    }

    /// Starts the next reading; earlier readers get an error.
    pub(crate) fn reader(&self) -> KeptReader<B> {
        self.0.with(|state| {
            state.generation += 1;
            state.read = 0;
            state.admitted = false;
            state.waker = None;
            KeptReader { body: Arc::clone(&self.0), generation: state.generation, done: false }
        })
    }

    /// A worker took the request: bytes that are not kept may flow.
    pub(crate) fn admit(&self) {
        let waker = self.0.with(|state| {
            state.admitted = true;
            state.waker.take()
        });
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// A response without instruction is there: nothing is sent again, what was sent is let go.
    pub(crate) fn settle(&self) {
        let freed = self.0.with(|state| {
            state.keeping = false;
            state.wanted = None;
            let sent: Vec<Bytes> = state.chunks.drain(..state.read).collect();
            state.read = 0;
            let freed = sent.iter().map(Bytes::len).sum();
            state.kept -= freed;
            freed
        });
        self.0.budget.give(freed);
    }

    /// Whether all that was sent so far can be sent again.
    pub(crate) fn is_replayable(&self) -> bool {
        self.0.with(|state| state.lost.is_none())
    }

    /// Whether the client broke the protocol, or left.
    pub(crate) fn is_broken(&self) -> bool {
        self.0.with(|state| state.lost == Some(NotKept::Client))
    }

    /// Whether nothing came of it for too long.
    pub(crate) fn is_late(&self) -> bool {
        self.0.with(|state| state.late)
    }

    /// Reads on and throws away, at most `limit` bytes.
    pub(crate) async fn discard(&self, limit: usize) {
        drop(self.reader());
        let mut read = 0;
        std::future::poll_fn(|cx| {
            self.0.with(|state| {
                while read < limit && !state.ended {
                    match std::task::ready!(state.poll_source(cx)) {
                        Some(Ok(frame)) => read += frame.data_ref().map_or(0, Bytes::len),
                        Some(Err(_)) | None => state.end(),
                    }
                }
                state.lost = Some(NotKept::Client);
                Poll::Ready(())
            })
        })
        .await;
    }

    /// Reads the rest of the client's body, so that the whole of it can be replayed.
    ///
    /// # Errors
    /// [`NotKept`] when it is longer than the limit, the budget is spent, or the client failed.
    pub(crate) async fn complete(&self) -> Result<(), NotKept> {
        if self.0.length.is_some_and(|length| length > self.0.limit as u64) {
            return Err(NotKept::Limit);
        }
        // The reader of the attempt that answered must not take what is read here.
        drop(self.reader());
        std::future::poll_fn(|cx| self.0.poll_complete(cx)).await
    }
}

impl<B> Kept<B> {
    fn with<T>(&self, f: impl FnOnce(&mut State<B>) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<B: Body<Data = Bytes> + Unpin> Kept<B> {
    fn poll_complete(&self, cx: &mut Context<'_>) -> Poll<Result<(), NotKept>> {
        self.with(|state| {
            loop {
                if let Some(why) = state.lost.or(state.stash.as_ref().map(|(_, why)| *why)) {
                    return Poll::Ready(Err(why));
                }
                if state.ended {
                    return Poll::Ready(Ok(()));
                }
                match std::task::ready!(state.poll_source(cx)) {
                    None => state.end(),
                    Some(Err(_)) => {
                        state.lost = Some(NotKept::Client);
                        return Poll::Ready(Err(NotKept::Client));
                    }
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => match self.keep_next(state, data) {
                            Ok(()) => {}
                            Err(why) => return Poll::Ready(Err(why)),
                        },
                        Err(frame) => state.trailers = Some(trailers(frame)),
                    },
                }
            }
        })
    }

    fn keep_next(&self, state: &mut State<B>, data: Bytes) -> Result<(), NotKept> {
        let data = state.came(data);
        self.keep(state, &data)
    }

    /// Adds a chunk to what is kept.
    fn keep(&self, state: &mut State<B>, data: &Bytes) -> Result<(), NotKept> {
        if !state.keeping || state.kept + data.len() > self.limit {
            return Err(NotKept::Limit);
        }
        if !self.budget.take(data.len()) {
            return Err(NotKept::Budget);
        }
        state.kept += data.len();
        state.chunks.push_back(data.clone());
        Ok(())
    }

    /// Gives up keeping because of a chunk that goes out without being kept.
    fn lose(&self, state: &mut State<B>, why: NotKept) {
        if state.keeping {
            state.keeping = false;
            self.budget.give(std::mem::take(&mut state.kept));
            state.chunks.clear();
            state.read = 0;
        }
        state.lost = Some(why);
    }

    fn poll_read(
        &self,
        generation: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.with(|state| {
            if state.generation != generation {
                return Poll::Ready(Some(Err(BodyError::Superseded)));
            }
            if let Some(chunk) = state.chunks.get(state.read).cloned() {
                if state.keeping {
                    state.read += 1;
                } else {
                    state.chunks.pop_front();
                    state.kept -= chunk.len();
                    state.lost = state.lost.or(Some(NotKept::Limit));
                    self.budget.give(chunk.len());
                }
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
            if !state.admitted && (state.stash.is_some() || !state.keeping) {
                state.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            if let Some((chunk, why)) = state.stash.take() {
                self.lose(state, why);
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
            if state.ended {
                return Poll::Ready(state.trailers.clone().map(|trailers| Ok(Frame::trailers(trailers))));
            }
            let frame = match std::task::ready!(state.poll_source(cx)) {
                None => {
                    state.end();
                    return Poll::Ready(None);
                }
                Some(Err(_)) => {
                    state.lost = Some(NotKept::Client);
                    return Poll::Ready(Some(Err(BodyError::Client)));
                }
                Some(Ok(frame)) => frame,
            };
            let data = match frame.into_data() {
                Ok(data) => state.came(data),
                Err(frame) => {
                    let trailers = trailers(frame);
                    state.trailers = Some(trailers.clone());
                    state.end();
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
            };
            match self.keep(state, &data) {
                Ok(()) => state.read += 1,
                Err(why) if state.admitted => self.lose(state, why),
                Err(why) => {
                    state.stash = Some((data, why));
                    state.waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
            Poll::Ready(Some(Ok(Frame::data(data))))
        })
    }
}

/// A client's trailers, without what must not come so late.
fn trailers(frame: Frame<Bytes>) -> HeaderMap {
    let mut trailers = frame.into_trailers().unwrap_or_default();
    clean_trailers(&mut trailers);
    trailers
}

impl<B> Drop for Kept<B> {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.budget.give(state.kept);
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for KeptReader<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.done {
            return Poll::Ready(None);
        }
        let frame = std::task::ready!(self.body.poll_read(self.generation, cx));
        self.done = !matches!(&frame, Some(Ok(frame)) if frame.is_data());
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.done
    }

    fn size_hint(&self) -> SizeHint {
        self.body.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// What a connection to a Machine sends as a request's body.
#[derive(Debug)]
pub(crate) struct RequestBody {
    source: Source,
    /// Set when the connection is done with the body: only then the connection may be used again.
    done: Option<Arc<AtomicBool>>,
}

#[derive(Debug)]
enum Source {
    Empty,
    Kept(KeptReader),
    Frames(Box<FrameBody>),
}

impl RequestBody {
    pub(crate) fn empty() -> Self {
        Self { source: Source::Empty, done: None }
    }

    pub(crate) fn kept(reader: KeptReader) -> Self {
        Self { source: Source::Kept(reader), done: Some(Arc::default()) }
    }

    pub(crate) fn frames(body: FrameBody) -> Self {
        Self { source: Source::Frames(Box::new(body)), done: Some(Arc::default()) }
    }

    /// Becomes true when the connection has let go of the body; `None` when there is none.
    pub(crate) fn done(&self) -> Option<Arc<AtomicBool>> {
        self.done.clone()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(done) = &self.done {
            done.store(true, Ordering::Release);
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.source {
            Source::Empty => Poll::Ready(None),
            Source::Kept(reader) => Pin::new(reader).poll_frame(cx),
            Source::Frames(frames) => Pin::new(frames.as_mut()).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Kept(reader) => reader.is_end_stream(),
            Source::Frames(frames) => frames.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Kept(reader) => reader.size_hint(),
            Source::Frames(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests;
