//! Carrying out one probe of a check.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::check::{Failure, Kind};

/// The most bytes of a response's body that are read for the check's output.
const MAX_BODY: usize = 4 << 10;

/// Probes `address` once, within `timeout`.
pub(crate) async fn probe(kind: &Kind, address: SocketAddr, timeout: Duration) -> Result<String, Failure> {
    let late = |_| Failure::Bad(format!("no answer within {} ms", timeout.as_millis()));
    tokio::time::timeout(timeout, once(kind, address)).await.map_err(late)?
}

async fn once(kind: &Kind, address: SocketAddr) -> Result<String, Failure> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| Failure::NotListening(format!("connect to {address}: {error}")))?;
    let Kind::Http { method, path, headers } = kind else {
        return Ok(format!("connect to {address}: ok"));
    };
    let bad = |what: &str| Failure::Bad(format!("{method} {path}: {what}"));
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| bad(&error.to_string()))?;
    // Dropped with this future, which ends the connection.
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    let mut request = http::Request::builder()
        .method(method.as_str())
        .uri(path.as_str())
        .header(http::header::USER_AGENT, "skein-check");
    if !headers.iter().any(|header| header.name.eq_ignore_ascii_case("host")) {
        request = request.header(http::header::HOST, address.to_string());
    }
    for header in headers {
        for value in &header.values {
            request = request.header(&header.name, value);
        }
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| bad(&error.to_string()))?;
    let response = sender.send_request(request).await.map_err(|error| bad(&error.to_string()))?;
    let status = response.status();
    // The body is only shown; one that is long or breaks off changes no verdict.
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await.map(|body| body.to_bytes());
    let body = body.map(|body| String::from_utf8_lossy(&body).into_owned()).unwrap_or_default();
    if status.is_success() { Ok(format!("{status}: {body}")) } else { Err(bad(&format!("{status}: {body}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// A server that answers each connection with these bytes.
    async fn server(answer: &'static str) -> (SocketAddr, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 1024];
                let read = stream.read(&mut head).await.unwrap_or(0);
                assert!(read == 0 || head.starts_with(b"GET /up"), "{:?}", &head[..read]);
                stream.write_all(answer.as_bytes()).await.unwrap_or(());
            }
        });
        (address, tasks)
    }

    fn http() -> Kind {
        Kind::Http { method: "GET".into(), path: "/up".into(), headers: vec![] }
    }

    const PATIENCE: Duration = Duration::from_secs(10);

    /// SPEC CHK-3: 2xx only, redirects fail.
    #[tokio::test]
    async fn only_a_status_of_2xx_passes() {
        let (ok, _ok) = server("HTTP/1.1 204 No Content\r\n\r\n").await;
        assert!(probe(&http(), ok, PATIENCE).await.is_ok());
        for answer in [
            "HTTP/1.1 301 Moved\r\nlocation: /\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n",
            "garbage",
        ] {
            let (address, _server) = server(answer).await;
            assert!(matches!(probe(&http(), address, PATIENCE).await, Err(Failure::Bad(_))), "{answer}");
        }
    }

    #[tokio::test]
    async fn nobody_listening_is_told_apart_and_silence_ends_in_time() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let silent = listener.local_addr().unwrap();
        assert!(probe(&Kind::Tcp, silent, PATIENCE).await.is_ok());
        let short = Duration::from_millis(50);
        assert!(matches!(probe(&http(), silent, short).await, Err(Failure::Bad(_))));
        drop(listener);
        assert!(matches!(probe(&Kind::Tcp, silent, PATIENCE).await, Err(Failure::NotListening(_))));
    }
}
