//! What a client speaks: HTTP/1 or, by prior knowledge, HTTP/2 (SPEC HTTP-1; RFC 9113 section 3.3).

use std::io;

use bytes::{Bytes, BytesMut};
use memchr::memchr;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// What an HTTP/2 client sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What comes before the number of a version.
const VERSION: &[u8] = b" HTTP/";
/// Bytes that are read at once: most heads are shorter. A first line that is longer is left to hyper.
const FIRST: usize = 1 << 10;

/// A version of HTTP with a framing of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speech {
    /// HTTP/1.0 and 1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// What a client said first.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Heard {
    /// What it speaks; `None` for what is no HTTP that anybody could answer.
    pub(crate) speech: Option<Speech>,
    /// What was read.
    pub(crate) first: Bytes,
}

/// Reads until it is clear what the client speaks: to the end of its first line, at most 1 KiB of it. The
/// caller limits how long that may take.
///
/// # Errors
/// Those of the stream.
pub(crate) async fn listen<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Heard> {
    let mut first = BytesMut::with_capacity(FIRST);
    loop {
        let speech = judge(&first);
        // At the end, whoever reads on meets the same end.
        if speech != Judgement::Open || stream.read_buf(&mut first).await? == 0 {
            let speech = match speech {
                Judgement::Speech(speech) => Some(speech),
                Judgement::Open => Some(Speech::Http1),
                Judgement::Noise => None,
            };
            return Ok(Heard { speech, first: first.freeze() });
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judgement {
    /// More is needed.
    Open,
    Speech(Speech),
    /// No HTTP.
    Noise,
}

fn judge(first: &[u8]) -> Judgement {
    let seen = first.len().min(PREFACE.len());
    if first[..seen] == PREFACE[..seen] {
        return if seen == PREFACE.len() { Judgement::Speech(Speech::Http2) } else { Judgement::Open };
    }
    // Empty lines before a request are skipped.
    let Some(begin) = first.iter().position(|byte| !matches!(byte, b'\r' | b'\n')) else {
        return if first.len() < FIRST { Judgement::Open } else { Judgement::Speech(Speech::Http1) };
    };
    let line = &first[begin..];
    // Such as TLS: no line may ever end.
    if !matches!(line[0], b' '..=b'~') {
        return Judgement::Noise;
    }
    match memchr(b'\n', line) {
        Some(end) if is_request(&line[..end]) => Judgement::Speech(Speech::Http1),
        Some(_) => Judgement::Noise,
        None if first.len() < FIRST => Judgement::Open,
        None => Judgement::Speech(Speech::Http1),
    }
}

/// Whether somebody meant this line for a request: it names HTTP, in whatever version. HTTP/0.9 does not,
/// and who speaks that, or none, would not know an answer of HTTP/1.
fn is_request(line: &[u8]) -> bool {
    line.windows(VERSION.len()).any(|part| part.eq_ignore_ascii_case(VERSION))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    const HTTP1: Option<Speech> = Some(Speech::Http1);
    const HTTP2: Option<Speech> = Some(Speech::Http2);

    /// What is heard of these bytes and an end after them.
    async fn heard(bytes: &[u8], pieces: usize) -> Heard {
        let (mut client, mut server) = tokio::io::duplex(pieces);
        let speaking = async {
            client.write_all(bytes).await.unwrap();
            drop(client);
            std::future::pending().await
        };
        // The listener stops reading once it knows.
        tokio::select! { heard = listen(&mut server) => heard.unwrap(), () = speaking => unreachable!() }
    }

    #[tokio::test]
    async fn http_1_what_is_spoken_is_known_however_it_arrives() {
        for pieces in [1, 7, 24, 100] {
            let preface = Heard { speech: HTTP2, first: Bytes::from_static(PREFACE) };
            assert_eq!(heard(PREFACE, pieces).await, preface);
            for (said, speech) in [
                (&b""[..], HTTP1),
                (b"P", HTTP1),
                (b"GET /", HTTP1),
                (b"\r\n", HTTP1),
                (b"GET / HTTP/1.1\r\n", HTTP1),
                (b"\r\n\nGET / HTTP/1.1\n", HTTP1),
                (b"GET / HTTP/5.6\r\n", HTTP1),
                (b"ge{ / http/1.11 \r\n", HTTP1),
                (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", HTTP1),
                (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\t", HTTP1),
                (b"INVALID CONNECTION PREFACE\r\n\r\n", None),
                (b"GET /\r\n", None),
                (b"GET / ICE/1.0\r\n", None),
                (b"HTTP/1.1 200 OK\r\n", None),
                (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", None),
                (b"\n\0", None),
            ] {
                let heard = heard(said, pieces).await;
                assert_eq!(heard.speech, speech, "{}", said.escape_ascii());
                assert!(
                    said.starts_with(&heard.first) && (speech.is_none() || heard.first.len() == said.len())
                );
            }
        }
    }

    #[tokio::test]
    async fn http_1_the_first_line_is_enough_and_so_is_its_first_kibibyte() {
        let endless = [b"GET /".to_vec(), vec![b'a'; 2000]].concat();
        for (said, speech) in [
            (&b"PO / HTTP/1.0\nX: "[..], HTTP1),
            (b"PO /\n", None),
            (b"\x16", None),
            (&endless, HTTP1),
            (&[b'\n'; 2000], HTTP1),
        ] {
            // The client goes on listening.
            let (mut client, mut server) = tokio::io::duplex(4096);
            client.write_all(said).await.unwrap();
            let heard = listen(&mut server).await.unwrap();
            assert_eq!(heard.speech, speech, "{}", said.escape_ascii());
            assert!(heard.first.len() <= FIRST, "{}", heard.first.len());
        }
    }
}
