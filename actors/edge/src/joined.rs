//! Small writes in one piece.
//!
//! hyper hands over head and body as two buffers. Gathering them costs the kernel more than copying a
//! few hundred bytes does; only what is long is gathered.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Up to so many bytes are copied.
const SMALL: usize = 2048;

/// A stream whose small vectored writes are joined.
#[derive(Debug)]
pub(crate) struct Joined<S>(pub(crate) S);

impl<S: AsyncRead + Unpin> AsyncRead for Joined<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Joined<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = bufs.iter().map(|buf| buf.len()).sum();
        if length > SMALL {
            return Pin::new(&mut self.0).poll_write_vectored(cx, bufs);
        }
        let mut joined = [0; SMALL];
        let mut end = 0;
        for buf in bufs {
            joined[end..end + buf.len()].copy_from_slice(buf);
            end += buf.len();
        }
        Pin::new(&mut self.0).poll_write(cx, &joined[..length])
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    /// Notes each write; takes a hundred bytes of a vectored one at most.
    #[derive(Debug, Default)]
    struct Notes(Vec<(bool, Vec<u8>)>);

    impl AsyncWrite for Notes {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.0.push((false, buf.to_vec()));
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let bytes = bufs.iter().flat_map(|buf| buf.iter().copied()).take(100).collect::<Vec<u8>>();
            let length = bytes.len();
            self.0.push((true, bytes));
            Poll::Ready(Ok(length))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn small_buffers_are_one_write_and_long_ones_are_gathered() {
        let mut stream = Joined(Notes::default());
        let small = [IoSlice::new(b"head"), IoSlice::new(b""), IoSlice::new(b"body")];
        assert_eq!(stream.write_vectored(&small).await.unwrap(), 8);
        let (most, more) = ([1; SMALL - 4], [1; SMALL - 3]);
        let fits = [IoSlice::new(b"head"), IoSlice::new(&most)];
        assert_eq!(stream.write_vectored(&fits).await.unwrap(), SMALL);
        let long = [IoSlice::new(b"head"), IoSlice::new(&more)];
        assert_eq!(stream.write_vectored(&long).await.unwrap(), 100);
        let seen: Vec<_> = stream.0.0.iter().map(|(gathered, bytes)| (*gathered, bytes.len())).collect();
        assert_eq!(seen, [(false, 8), (false, SMALL), (true, 100)]);
        assert_eq!(stream.0.0[0].1, b"headbody");
    }
}
