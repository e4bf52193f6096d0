//! A connection to a Machine that is driven by whoever holds it.
//!
//! hyper splits a connection into a handle and a future that moves its bytes, meant to be a task. A
//! task costs a proxy two switches per request each way. Here the holder of the handle polls the
//! future itself: when it sends, when it waits for the head, when it reads the body. Unused
//! connections are polled by nobody; [`Driven::is_open`] looks what happened meanwhile.
//!
//! The two halves wake each other while one task polls both; a [`Bell`] keeps that from waking the task
//! again.

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::SendRequest;
use tokio_util::task::TaskTracker;

use crate::bell::Bell;
use crate::body::RequestBody;

/// Moves a connection's bytes until it ends or is upgraded.
pub(crate) type Drive = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// Turns of one poll; then other tasks of the thread have theirs. hyper and tokio yield by waking
/// themselves, which would never end here.
const TURNS: usize = 16;

/// A connection to a Machine and the way into it.
pub(crate) struct Driven {
    sender: SendRequest<RequestBody>,
    /// `None` once the connection has ended, or a task drives it.
    drive: Option<Drive>,
    address: SocketAddr,
    bell: Arc<Bell>,
    /// Rings the bell.
    waker: Waker,
}

impl std::fmt::Debug for Driven {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driven").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Driven {
    pub(crate) fn new(sender: SendRequest<RequestBody>, drive: Drive, address: SocketAddr) -> Self {
        let (bell, waker) = Bell::new();
        Self { sender, drive: Some(drive), address, bell, waker }
    }

    /// Where it goes.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it may carry a request: the last exchange is complete, and the Machine neither closed
    /// it nor sent bytes unasked. Never waits. One that a task drives is used up.
    pub(crate) fn is_open(&mut self) -> bool {
        // Whoever waited has its answer.
        self.bell.forget();
        for _ in 0..TURNS {
            let rung = self.bell.answer();
            let Some(drive) = &mut self.drive else { return false };
            if !rung && self.sender.is_ready() {
                return true;
            }
            if let Poll::Ready(ended) = drive.as_mut().poll(&mut Context::from_waker(&self.waker)) {
                self.drive = None;
                log(self.address, ended);
                return false;
            }
            if !self.bell.rang() {
                return self.sender.is_ready();
            }
        }
        false
    }

    /// Sends a request and waits for the response's head.
    ///
    /// # Errors
    /// As [`SendRequest::try_send_request`].
    pub(crate) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        self.bell.forget();
        let mut answer = pin!(self.sender.try_send_request(request));
        let (drive, bell, waker, address) = (&mut self.drive, &self.bell, &self.waker, self.address);
        std::future::poll_fn(|cx| turn(drive, bell, waker, address, cx, |cx| answer.as_mut().poll(cx))).await
    }

    /// The next frame of the response's body.
    pub(crate) fn poll_body(
        &mut self,
        incoming: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let (drive, bell, waker, address) = (&mut self.drive, &self.bell, &self.waker, self.address);
        turn(drive, bell, waker, address, cx, |cx| Pin::new(&mut *incoming).poll_frame(cx))
    }

    /// Moves bytes until the connection ends or changes its protocol.
    pub(crate) async fn let_go(mut self) {
        if let Some(drive) = self.drive.take() {
            log(self.address, drive.await);
        }
    }

    /// Lets a task move the bytes from now on: the request is still on its way while the response is
    /// read, and a reader that waits must not hold the writer.
    pub(crate) fn detach(&mut self, tasks: &TaskTracker) {
        if let Some(drive) = self.drive.take() {
            let address = self.address;
            tasks.spawn(async move { log(address, drive.await) });
        }
    }
}

/// Polls what is waited for and the connection in turns, until neither moves the other.
fn turn<T>(
    drive: &mut Option<Drive>,
    bell: &Bell,
    waker: &Waker,
    address: SocketAddr,
    cx: &mut Context<'_>,
    mut wanted: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Poll<T> {
    for _ in 0..TURNS {
        bell.answer();
        let mut inner = Context::from_waker(waker);
        if let Poll::Ready(value) = wanted(&mut inner) {
            return Poll::Ready(value);
        }
        let Some(moving) = drive else {
            // A task drives it, or its end has told `wanted` already.
            return wanted(cx);
        };
        if let Poll::Ready(ended) = moving.as_mut().poll(&mut inner) {
            *drive = None;
            log(address, ended);
            continue;
        }
        if bell.wait(cx) {
            return Poll::Pending;
        }
        bell.forget();
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

fn log(address: SocketAddr, ended: hyper::Result<()>) {
    if let Err(error) = ended {
        // The request on it met the same error and answers for it.
        tracing::debug!(%address, %error, "connection to a Machine ended");
    }
}
