//! A client's stream: its bytes are counted, what was read of it ahead comes first, and a head that hyper
//! would take though it is to be refused reaches hyper as one that it refuses.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use skein_core::heads::Heads;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connection::Connection;

/// A stream whose bytes are counted for its connection.
#[derive(Debug)]
pub(crate) struct Counted<S> {
    stream: S,
    connection: Arc<Connection>,
    /// Read ahead, and to be read again.
    ahead: Bytes,
    /// While it is HTTP/1.
    heads: Option<Heads>,
}

/// No name of a field has it, so hyper answers such a head with 400 and closes the connection.
const NO_LETTER: u8 = 0;

impl<S> Counted<S> {
    pub(crate) fn new(stream: S, connection: Arc<Connection>) -> Self {
        Self { stream, connection, ahead: Bytes::new(), heads: None }
    }

    /// Gives back what was read ahead.
    pub(crate) fn unread(&mut self, ahead: Bytes) {
        self.ahead = ahead;
    }

    /// What is read from here on is HTTP/1.
    pub(crate) fn watch_heads(&mut self) {
        self.heads = Some(Heads::default());
    }

    /// Looks at bytes on their way to hyper.
    ///
    /// # Errors
    /// When they may be none of HTTP, so that none may be altered.
    fn look(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let Some(heads) = &mut self.heads else { return Ok(()) };
        if self.connection.is_upgraded() {
            self.heads = None;
            return Ok(());
        }
        let Some(colon) = heads.scan(bytes) else { return Ok(()) };
        self.connection.repeats_length();
        if heads.asked_to_upgrade() && self.connection.watch.ended() != heads.complete() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "Content-Length is repeated"));
        }
        bytes[colon] = NO_LETTER;
        Ok(())
    }

    fn count(&self, written: &Poll<io::Result<usize>>) {
        self.connection.sent(match written {
            Poll::Pending => None,
            Poll::Ready(sent) => Some(sent.as_ref().copied().unwrap_or(0)),
        });
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if self.ahead.is_empty() {
            let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
            self.connection.received(buf.filled().len() - before);
            ready!(polled)?;
        } else {
            let length = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead[..length]);
            self.ahead.advance(length);
        }
        Poll::Ready(self.look(&mut buf.filled_mut()[before..]))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.count(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.count(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
