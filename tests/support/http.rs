//! An HTTP/1.1 client that sends exactly what it is told, over a connection of its own, and shows
//! exactly what came back: no redirects, no pool, no headers but `host` and `connection`.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// A request that is being put together.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    to: SocketAddr,
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    patience: Duration,
}

/// What came back.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Names in lower case, in order.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    /// The first value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {self:?}: {}", self.text()))
    }

    /// A text field of the JSON body; empty when it is not there.
    #[track_caller]
    pub(crate) fn field(&self, name: &str) -> String {
        self.json()[name].as_str().unwrap_or_default().to_owned()
    }
}

impl Request {
    pub(crate) fn new(method: &str, to: SocketAddr, path: &str) -> Self {
        let (method, path) = (method.to_owned(), path.to_owned());
        let patience = Duration::from_secs(20);
        Self { to, method, path, headers: Vec::new(), body: Vec::new(), patience }
    }

    pub(crate) fn get(to: SocketAddr, path: &str) -> Self {
        Self::new("GET", to, path)
    }

    pub(crate) fn post(to: SocketAddr, path: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..Self::new("POST", to, path) }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// What it carries.
    pub(crate) fn body(self, body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..self }
    }

    /// How long each read and write may wait.
    pub(crate) fn patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Sends it.
    pub(crate) fn send(&self) -> io::Result<Reply> {
        let mut stream = TcpStream::connect_timeout(&self.to, self.patience)?;
        stream.set_read_timeout(Some(self.patience))?;
        stream.set_write_timeout(Some(self.patience))?;
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head.push_str(&format!("host: {}\r\n", self.to));
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !self.body.is_empty() || self.method == "POST" {
            head.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        head.push_str("connection: close\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        stream.write_all(&self.body)?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        parse(&bytes, self.method == "HEAD").ok_or_else(|| {
            io::Error::other(format!("not a whole response: {:?}", String::from_utf8_lossy(&bytes)))
        })
    }

    /// Sends it and wants an answer, whatever its status.
    #[track_caller]
    pub(crate) fn reply(&self) -> Reply {
        self.send().unwrap_or_else(|error| panic!("{self:?}: {error}"))
    }

    /// Sends it and wants 200.
    #[track_caller]
    pub(crate) fn ok(&self) -> Reply {
        let reply = self.reply();
        assert_eq!(reply.status, 200, "{self:?}: {reply:?}: {}", reply.text());
        reply
    }
}

/// `None` when a part is missing: a response that was cut short is no response.
fn parse(bytes: &[u8], head_only: bool) -> Option<Reply> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    };
    let headers: Vec<_> = lines.map(header).collect::<Option<_>>()?;
    let mut reply = Reply { status, headers, body: bytes[end + 4..].to_vec() };
    if head_only {
        return Some(reply);
    }
    if reply.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        reply.body = dechunk(&reply.body)?;
    } else if let Some(length) = reply.header("content-length") {
        let length = length.parse().ok()?;
        reply.body = reply.body.get(..length)?.to_vec();
    }
    Some(reply)
}

fn dechunk(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|window| window == b"\r\n")?;
        let size = std::str::from_utf8(&bytes[..end]).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        bytes = &bytes[end + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(bytes.get(..size)?);
        bytes = bytes.get(size + 2..)?;
    }
}
