//! What a client speaks: HTTP/1 or, by prior knowledge, HTTP/2 (SPEC HTTP-1; RFC 9113 section 3.3).

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// What an HTTP/2 client sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes that are read at once: most heads are shorter.
const FIRST: usize = 1 << 10;

/// A version of HTTP with a framing of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speech {
    /// HTTP/1.0 and 1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Reads until it is clear what the client speaks; also gives back what was read. The caller limits
/// how long that may take.
///
/// # Errors
/// Those of the stream.
pub(crate) async fn listen<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<(Speech, Bytes)> {
    let mut first = BytesMut::with_capacity(FIRST);
    loop {
        let seen = first.len().min(PREFACE.len());
        if first[..seen] != PREFACE[..seen] {
            return Ok((Speech::Http1, first.freeze()));
        }
        if seen == PREFACE.len() {
            return Ok((Speech::Http2, first.freeze()));
        }
        if stream.read_buf(&mut first).await? == 0 {
            // Whoever reads on meets the same end.
            return Ok((Speech::Http1, first.freeze()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    async fn heard(bytes: &[u8], pieces: usize) -> (Speech, Bytes) {
        let (mut client, mut server) = tokio::io::duplex(pieces);
        let speaking = async {
            client.write_all(bytes).await.unwrap();
            drop(client);
        };
        // The listener stops reading once it knows: the rest of what is said fails.
        let (heard, ()) = tokio::join!(listen(&mut server), async {
            tokio::select! { () = speaking => {}, () = std::future::pending() => {} }
        });
        heard.unwrap()
    }

    #[tokio::test]
    async fn http_1_the_preface_is_known_however_it_arrives() {
        for pieces in [1, 7, 24, 100] {
            assert_eq!(heard(PREFACE, pieces).await, (Speech::Http2, Bytes::from_static(PREFACE)));
        }
        for other in [&b""[..], b"P", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\t"]
        {
            assert_eq!(heard(other, 1).await, (Speech::Http1, Bytes::copy_from_slice(other)));
        }
    }

    #[tokio::test]
    async fn http_1_the_first_byte_that_differs_is_enough() {
        let (mut client, mut server) = tokio::io::duplex(64);
        client.write_all(b"PO").await.unwrap();
        assert_eq!(listen(&mut server).await.unwrap(), (Speech::Http1, Bytes::from_static(b"PO")));
    }
}
