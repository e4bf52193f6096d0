//! Bodies as frames of backhaul, both ways.
//!
//! `Trailers`, perhaps empty, end a body; a stream that ends without them was truncated, and that
//! stays visible on the other side.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame as BodyFrame};
use skein_cluster::backhaul::{FrameReceiver, FrameSender, StreamError};
use skein_core::wire::{Frame, MAX_DATA};
use tokio_util::sync::ReusableBoxFuture;

use crate::body::BodyError;

type Received = (FrameReceiver, Result<Option<Frame>, StreamError>);

/// A body that arrives as frames.
pub(crate) struct FrameBody {
    next: ReusableBoxFuture<'static, Received>,
    done: bool,
}

impl std::fmt::Debug for FrameBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameBody").field("done", &self.done).finish_non_exhaustive()
    }
}

async fn receive(mut receiver: FrameReceiver) -> Received {
    let frame = receiver.next().await;
    (receiver, frame)
}

impl FrameBody {
    pub(crate) fn new(receiver: FrameReceiver) -> Self {
        Self { next: ReusableBoxFuture::new(receive(receiver)), done: false }
    }
}

impl Body for FrameBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<BodyFrame<Bytes>, BodyError>>> {
        loop {
            if self.done {
                return Poll::Ready(None);
            }
            let (receiver, frame) = ready!(self.next.poll(cx));
            match frame {
                Ok(Some(Frame::Data(data))) => {
                    self.next.set(receive(receiver));
                    if !data.is_empty() {
                        return Poll::Ready(Some(Ok(BodyFrame::data(data))));
                    }
                }
                Ok(Some(Frame::Trailers(trailers))) => {
                    self.done = true;
                    if !trailers.is_empty() {
                        return Poll::Ready(Some(Ok(BodyFrame::trailers(to_map(&trailers)))));
                    }
                }
                // A reset, a frame that has no place here, or an end without trailers.
                Ok(_) | Err(_) => {
                    self.done = true;
                    return Poll::Ready(Some(Err(BodyError::Upstream)));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.done
    }
}

/// Why a body could not be sent as frames.
#[derive(Debug)]
pub(crate) enum PumpError {
    /// The body failed.
    Body,
    /// The stream failed.
    Stream(StreamError),
}

/// Sends some frames and a whole body, in frames of at most 64 KiB; waits while the other side is slow.
/// What is there at once goes out in one write.
pub(crate) async fn pump<B>(
    first: impl IntoIterator<Item = Frame>,
    mut body: B,
    sender: &mut FrameSender,
) -> Result<(), PumpError>
where
    B: Body<Data = Bytes, Error = BodyError> + Unpin,
{
    let mut waiting: Vec<Frame> = first.into_iter().collect();
    let mut bytes = 0;
    let trailers = loop {
        let frame = match ready_frame(&mut body).await {
            Some(frame) => frame,
            None => {
                if !waiting.is_empty() {
                    sender.send_all(waiting.drain(..)).await.map_err(PumpError::Stream)?;
                    bytes = 0;
                }
                // A body may be silent for long: a reader that is gone must not hold it until the next frame.
                tokio::select! {
                    biased;
                    frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)) => frame,
                    error = sender.stopped() => return Err(PumpError::Stream(error)),
                }
            }
        };
        match frame {
            None => break Vec::new(),
            Some(Err(_)) => {
                sender.send_all(waiting).await.map_err(PumpError::Stream)?;
                return Err(PumpError::Body);
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    bytes += data.len();
                    waiting.push(Frame::Data(data));
                    if bytes >= MAX_DATA {
                        sender.send_all(waiting.drain(..)).await.map_err(PumpError::Stream)?;
                        bytes = 0;
                    }
                }
                Err(frame) => break to_pairs(&frame.into_trailers().unwrap_or_default()),
            },
        }
    };
    waiting.push(Frame::Trailers(trailers));
    sender.send_all(waiting).await.map_err(PumpError::Stream)?;
    // A stream that was closed meanwhile has delivered what was sent, or its reader is gone.
    let _closed = sender.finish();
    Ok(())
}

/// The body's next frame, if it is there already.
async fn ready_frame<B: Body + Unpin>(body: &mut B) -> Option<Option<Result<BodyFrame<B::Data>, B::Error>>> {
    std::future::poll_fn(|cx| match Pin::new(&mut *body).poll_frame(cx) {
        Poll::Ready(frame) => Poll::Ready(Some(frame)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Headers as frames carry them.
pub(crate) fn to_pairs(headers: &HeaderMap) -> Vec<(String, Bytes)> {
    let pair = |(name, value): (&HeaderName, &HeaderValue)| {
        (name.as_str().to_owned(), Bytes::copy_from_slice(value.as_bytes()))
    };
    headers.iter().map(pair).collect()
}

/// Headers that frames carried; names and values that HTTP does not allow are left out.
pub(crate) fn to_map(pairs: &[(String, Bytes)]) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(pairs.len() + 4);
    for (name, value) in pairs {
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_maybe_shared(value.clone()))
        {
            headers.append(name, value);
        }
    }
    headers
}
