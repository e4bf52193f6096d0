//! The bodies that the sample app answers with, made while they are sent.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Interval, MissedTickBehavior};

/// A repeating text that compresses well; 64 KiB so that a chunk fills a socket buffer.
static LOREM: [u8; 65_536] = {
    let line = b"the quick brown fox jumps over the lazy dog 0123456789\n";
    let mut block = [0; 65_536];
    let mut at = 0;
    while at < block.len() {
        block[at] = line[at % line.len()];
        at += 1;
    }
    block
};

/// What an answer carries.
pub(super) enum HelloBody {
    /// All of it at once.
    Whole(Bytes),
    /// So many bytes of text.
    Text { left: u64 },
    /// The request's own body.
    Echo(Incoming),
    /// Server-sent events, numbered from 1, the first one at once.
    Events { sent: u64, count: Option<u64>, interval: Interval },
}

impl HelloBody {
    pub(super) fn events(count: Option<u64>, every: std::time::Duration) -> Self {
        let mut interval = tokio::time::interval(every);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self::Events { sent: 0, count, interval }
    }
}

impl Body for HelloBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let data = match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => return Poll::Ready(None),
            Self::Whole(bytes) => std::mem::take(bytes),
            Self::Text { left: 0 } => return Poll::Ready(None),
            Self::Text { left } => {
                let length = usize::try_from(*left).unwrap_or(usize::MAX).min(LOREM.len());
                *left -= length as u64;
                Bytes::from_static(&LOREM[..length])
            }
            Self::Echo(body) => return Pin::new(body).poll_frame(cx),
            Self::Events { sent, count, .. } if count.is_some_and(|count| *sent >= count) => {
                return Poll::Ready(None);
            }
            Self::Events { sent, interval, .. } => {
                if interval.poll_tick(cx).is_pending() {
                    return Poll::Pending;
                }
                *sent += 1;
                format!("id: {sent}\ndata: {{\"n\":{sent}}}\n\n").into()
            }
        };
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Text { left } => *left == 0,
            Self::Echo(body) => body.is_end_stream(),
            Self::Events { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Text { left } => SizeHint::with_exact(*left),
            Self::Echo(body) => body.size_hint(),
            Self::Events { .. } => SizeHint::default(),
        }
    }
}
