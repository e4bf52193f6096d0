//! Where the proxy's own look at HTTP/1 heads sees one begin and end, and where hyper does (SPEC HTTP-8):
//! a head with two lengths that hyper took would be one that the Machine sees.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use skein_core::heads::Heads;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Gives one byte at a time, so that it is known how far hyper has read when it takes a head.
struct Drip {
    bytes: Vec<u8>,
    at: Arc<AtomicUsize>,
}

impl AsyncRead for Drip {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let at = self.at.load(Ordering::Relaxed);
        let Some(byte) = self.bytes.get(at) else { return Poll::Pending };
        buf.put_slice(&[*byte]);
        self.at.store(at + 1, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Drip {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Where hyper took a head's last byte, and the last of its body if that came whole, or one more.
#[derive(Debug, Clone, Copy)]
struct Taken {
    head: usize,
    end: Option<usize>,
}

/// The messages that hyper takes before it refuses something or leaves off.
fn taken(bytes: &[u8]) -> Vec<Taken> {
    let at = Arc::new(AtomicUsize::new(0));
    let messages = Mutex::new(Vec::new());
    let drip = Drip { bytes: bytes.to_vec(), at: Arc::clone(&at) };
    let service = hyper::service::service_fn(|request: Request<Incoming>| {
        messages.lock().unwrap().push(Taken { head: at.load(Ordering::Relaxed), end: None });
        let (messages, at) = (&messages, &at);
        async move {
            if request.into_body().collect().await.is_ok() {
                messages.lock().unwrap().last_mut().unwrap().end = Some(at.load(Ordering::Relaxed));
            }
            Ok::<_, Infallible>(Response::new(Empty::<bytes::Bytes>::new()))
        }
    });
    let mut served =
        pin!(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(drip), service));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut turns = 0;
    runtime.block_on(poll_fn(|cx| {
        // Bodies pass through a channel, one turn each.
        turns += 1;
        if served.as_mut().poll(cx).is_ready() || turns > 2 * bytes.len() + 8 {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }));
    messages.lock().unwrap().clone()
}

/// Lines of a head that hyper took which are lengths.
fn lengths(head: &[u8]) -> usize {
    let name = |line: &[u8]| line.split(|byte| *byte == b':').next().unwrap().to_ascii_lowercase();
    head.split(|byte| *byte == b'\n').filter(|line| name(line) == b"content-length").count()
}

fn piece() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(vec![
        "POST /a HTTP/1.1\r\n\r\n",
        "POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
        "POST /a HTTP/1.1\r\nContent-Length: 3\r\ncontent-length: 3\r\n\r\nabc",
        "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST /a HTTP/1.1\nConnection: keep-alive\nContent-Length: 40\n\n",
        "POST /a HTTP/1.1\r\n",
        "GET /a HTTP/1.0\r\nConnection: keep-alive\r\n",
        "Content-Length: 3\r\n",
        "CONTENT-LENGTH:3\n",
        "Content-Length: 0\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Cookie: a\r\n",
        "\r\n",
        "\n",
        "\r",
        "abc",
        "3\r\nabc\r\n",
        "3;content-length: 3\r\nabc\r\n",
        "14\r\nContent-Length: 3\r\n\n\r\n",
        "0\r\n\r\n",
        "0\r\n\n",
        "0\r\nX: y\r\n\r\n",
        "0\r\n",
    ]);
    prop_oneof![
        12 => known.prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(prop::sample::select(b"\r\n:; a0c\0".to_vec()), 0..3),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]
    #[test]
    fn http_8_a_second_length_is_found_in_the_head_that_hyper_would_take_and_in_no_other(
        pieces in prop::collection::vec(piece(), 1..14),
    ) {
        let bytes = pieces.concat();
        let messages = taken(&bytes);
        let mut heads = Heads::default();
        let found = heads.scan(&bytes);
        let mut begin = 0;
        for message in &messages {
            if lengths(&bytes[begin..message.head]) > 1 {
                let inside = found.is_some_and(|at| (begin..message.head).contains(&at));
                prop_assert!(inside, "found at {found:?}, not in {begin}..{}", message.head);
                return Ok(());
            }
            begin = message.end.unwrap_or(message.head);
            prop_assert!(found.is_none_or(|at| at >= begin), "found at {found:?}, not after {message:?}");
        }
    }
}

#[test]
fn http_8_how_far_hyper_reads_is_known() {
    let head = "POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n";
    let messages = taken(format!("{head}abc{head}abc").as_bytes());
    let ends: Vec<_> = messages.iter().map(|taken| (taken.head, taken.end)).collect();
    let length = head.len();
    assert_eq!(ends, [(length, Some(length + 4)), (2 * length + 3, Some(2 * length + 6))]);
    assert_eq!(lengths(head.as_bytes()), 2);
}
