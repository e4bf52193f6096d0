//! A response's body on its way to the client, with all that lives as long as it does.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use skein_core::headers::clean_trailers;
use skein_core::load::InFlight;
use tokio::task::JoinHandle;

use crate::access::Access;
use crate::body::BodyError;
use crate::encode::Encoded;
use crate::frames::FrameBody;
use crate::trace::Trace;
use crate::tunnel::Far;
use crate::worker::MachineBody;

/// Where a response's body comes from.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The proxy itself.
    Own(Option<Bytes>),
    /// A Machine of this node.
    Machine(Box<MachineBody>),
    /// A Machine of another node.
    Frames(Box<FrameBody>),
    /// One of those, compressed.
    Encoded(Box<Encoded>),
    /// None: the connection is upgraded.
    Upgraded(Box<Far>),
}

impl Answer {
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Machine(body) => Pin::new(body.as_mut()).poll_frame(cx),
            Self::Frames(body) => Pin::new(body.as_mut()).poll_frame(cx),
            Self::Encoded(body) => body.poll_frame(cx),
            Self::Upgraded(_) => Poll::Ready(None),
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Machine(body) => body.is_end_stream(),
            Self::Frames(body) => body.is_end_stream(),
            Self::Encoded(body) => body.is_end_stream(),
            Self::Upgraded(_) => true,
        }
    }
}

/// A task that is stopped when its owner goes.
#[derive(Debug)]
pub(crate) struct Stopper(pub(crate) JoinHandle<()>);

impl Drop for Stopper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What an attempt holds until its response is complete.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) in_flight: Option<InFlight>,
    /// Sends the rest of the request's body to another node.
    pub(crate) _upload: Option<Stopper>,
    /// The span of the attempt.
    pub(crate) _trace: Option<Trace>,
}

/// The body that hyper sends to the client. An error in it closes the connection without a proper
/// end, so that the client sees the truncation.
#[derive(Debug)]
pub(crate) struct ClientBody {
    answer: Answer,
    /// Bytes that the head promises.
    promised: Option<u64>,
    /// `None` for the head of an upgraded connection, which goes on.
    access: Option<Box<Access>>,
    _held: Held,
}

impl ClientBody {
    pub(crate) fn new(answer: Answer, promised: Option<u64>, access: Box<Access>, held: Held) -> Self {
        Self { answer, promised, access: Some(access), _held: held }
    }

    /// Nothing, and nothing ends with it.
    pub(crate) fn empty() -> Self {
        Self { answer: Answer::Own(None), promised: None, access: None, _held: Held::default() }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let mut frame = ready!(this.answer.poll_frame(cx));
        let Some(access) = &mut this.access else { return Poll::Ready(frame) };
        match &mut frame {
            Some(Ok(frame)) => match (frame.data_ref().map(Bytes::len), frame.trailers_mut()) {
                (Some(data), _) => access.sent += data as u64,
                (None, Some(trailers)) => {
                    clean_trailers(trailers);
                    // Nothing comes after them, and nobody asks.
                    access.complete = true;
                }
                (None, None) => {}
            },
            Some(Err(_)) => {}
            None => access.complete = true,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.answer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.answer {
            Answer::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Answer::Machine(body) => body.size_hint(),
            Answer::Frames(_) | Answer::Encoded(_) | Answer::Upgraded(_) => SizeHint::default(),
        }
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        let is_end = self.is_end_stream();
        let Some(access) = &mut self.access else { return };
        // A body whose promised length was sent is not read further, nor one that no client reads.
        let all = self.promised.is_some_and(|promised| access.sent >= promised);
        let none = access.method == http::Method::HEAD || access.status == Some(304);
        access.complete |= all || none || is_end;
    }
}
