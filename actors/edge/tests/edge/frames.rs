//! HTTP/2 by hand: what no library sends.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const GOAWAY: u8 = 7;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// What came of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It got a response's head.
    Answered,
    /// RST_STREAM with this reason.
    Reset(u32),
    /// GOAWAY with this reason.
    GoneAway(u32),
    /// The connection closed without a word.
    Closed,
}

/// A frame's bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header block of literals without indexing; lengths up to 126.
pub fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in headers {
        bytes.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "one byte holds the length");
            bytes.push(text.len() as u8);
            bytes.extend(text.as_bytes());
        }
    }
    bytes
}

/// A client's connection after the preface and its settings.
pub struct Client(pub TcpStream);

impl Client {
    pub async fn connect(at: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(PREFACE).await.unwrap();
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        Self(stream)
    }

    /// Sends frames; who is cut off meanwhile reads why.
    pub async fn send(&mut self, frames: &[u8]) {
        let _cut_off = self.0.write_all(frames).await;
    }

    /// The next frame: kind, flags, stream, payload.
    pub async fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some((head[3], head[4], stream, payload))
    }

    /// Reads until something came of the stream.
    pub async fn end(&mut self, stream: u32) -> End {
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes[..4].try_into().unwrap());
        let ended = async {
            while let Some((kind, _, on, payload)) = self.next().await {
                match kind {
                    HEADERS if on == stream => return End::Answered,
                    RST_STREAM if on == stream => return End::Reset(number(&payload)),
                    GOAWAY if number(&payload[4..]) != 0 => return End::GoneAway(number(&payload[4..])),
                    _ => {}
                }
            }
            End::Closed
        };
        tokio::time::timeout(Duration::from_secs(20), ended).await.expect("nothing came of the stream")
    }
}
