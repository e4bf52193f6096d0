//! Connections to Machines.

pub(crate) mod connect;
pub(crate) mod driven;
pub(crate) mod lane;
pub(crate) mod pool;

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use tokio_util::task::TaskTracker;

use crate::body::{BodyError, whole};
use crate::upstream::driven::Driven;
use crate::upstream::lane::Ride;

/// A way to a Machine for one request.
#[derive(Debug)]
pub(crate) enum Line {
    /// A connection of its own that speaks HTTP/1.1.
    Own(Driven),
    /// A place on one that speaks HTTP/2.
    Lane(Ride),
}

impl Line {
    pub(crate) fn address(&self) -> SocketAddr {
        match self {
            Self::Own(connection) => connection.address(),
            Self::Lane(ride) => ride.address(),
        }
    }

    /// The next frame of the response's body.
    pub(crate) fn poll_body(
        &mut self,
        incoming: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Own(connection) => connection
                .poll_body(incoming, cx)
                .map(|frame| frame.map(|frame| frame.map_err(|_| BodyError::Upstream))),
            Self::Lane(_) => {
                let frame = std::task::ready!(Pin::new(&mut *incoming).poll_frame(cx));
                Poll::Ready(whole(frame, incoming, BodyError::Upstream))
            }
        }
    }

    /// As [`Driven::detach`]; HTTP/2 needs no such thing.
    pub(crate) fn detach(&mut self, tasks: &TaskTracker) {
        match self {
            Self::Own(connection) => connection.detach(tasks),
            Self::Lane(_) => {}
        }
    }
}
