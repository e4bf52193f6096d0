//! A client's HTTP/1.1 connection that tells apart how it can end.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Why a request got no whole and good answer.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The other side had closed the connection in order before the request reached it.
    Closed,
    /// It took the request, and closed the connection in order without a byte of a response.
    Unanswered,
    /// The connection broke, before a byte of a response.
    Reset(#[expect(dead_code, reason = "shown")] io::Error),
    /// The response ended early.
    Cut(#[expect(dead_code, reason = "shown")] String),
    /// It is whole and not what was asked for.
    Wrong(#[expect(dead_code, reason = "shown")] String),
}

pub(crate) struct Connection(TcpStream);

impl Connection {
    pub(crate) async fn open(to: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }

    /// For another protocol, before it carried a request.
    pub(crate) fn into_stream(self) -> TcpStream {
        self.0
    }

    /// Whether it is open still, after it was left alone.
    ///
    /// # Errors
    /// When it broke, or bytes came that nobody asked for.
    pub(crate) fn look(&self) -> Result<bool, Broken> {
        let mut byte = [0];
        match self.0.try_read(&mut byte) {
            Ok(0) => Ok(false),
            Ok(_) => Err(Broken::Wrong(format!("{byte:?} came unasked"))),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(Broken::Reset(error)),
        }
    }

    /// `GET` of the sample app, with a number that has to come back where headers are shown; says
    /// whether the response is the last one here.
    pub(crate) async fn get(&mut self, path: &str, number: u64) -> Result<bool, Broken> {
        let head = format!("GET {path} HTTP/1.1\r\nhost: hello.localhost\r\nx-number: {number}\r\n\r\n");
        self.0.write_all(head.as_bytes()).await.map_err(Broken::Reset)?;
        let mut got = Vec::with_capacity(2048);
        let end = loop {
            if let Some(end) = got.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            self.more(&mut got).await?;
        };
        let head = String::from_utf8_lossy(&got[..end]).to_ascii_lowercase();
        let header = |name: &str| {
            let mut lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
            lines.find(|(key, _)| *key == name).map(|(_, value)| value.trim())
        };
        let Some(length) = header("content-length").and_then(|length| length.parse::<usize>().ok()) else {
            return Err(Broken::Wrong(format!("no length: {head}")));
        };
        while got.len() < end + length {
            self.more(&mut got).await?;
        }
        let body = String::from_utf8_lossy(&got[end..]);
        let asked = match path.strip_prefix("/bytes/") {
            Some(count) => length.to_string() == count,
            None => body.contains(&format!("\"x-number\":\"{number}\"")),
        };
        let good = head.starts_with("http/1.1 200 ") && asked;
        if !good || got.len() > end + length {
            return Err(Broken::Wrong(format!("{head}{body}")));
        }
        Ok(header("connection") == Some("close"))
    }

    async fn more(&mut self, got: &mut Vec<u8>) -> Result<(), Broken> {
        match self.0.read_buf(got).await {
            Ok(0) if got.is_empty() => Err(self.closed().await),
            Err(error) if got.is_empty() => Err(Broken::Reset(error)),
            Ok(0) => Err(Broken::Cut(String::from_utf8_lossy(got).into_owned())),
            Err(error) => Err(Broken::Cut(format!("{error}: {}", String::from_utf8_lossy(got)))),
            Ok(_) => Ok(()),
        }
    }

    /// Whether the request was heard before the connection was closed: what reaches a closed socket is
    /// answered with a reset, which shows as this one's error.
    async fn closed(&self) -> Broken {
        let reset = async {
            while !matches!(SockRef::from(&self.0).take_error(), Ok(Some(_)) | Err(_)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        match tokio::time::timeout(Duration::from_secs(1), reset).await {
            Ok(()) => Broken::Closed,
            Err(_) => Broken::Unanswered,
        }
    }
}
