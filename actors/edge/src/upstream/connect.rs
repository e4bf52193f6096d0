//! Makes connections to Machines.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use skein_core::code::ErrorCode;
use tokio::net::TcpStream;

use crate::gathered::Gathered;
use crate::upstream::driven::Driven;

/// A TCP connection to a Machine.
///
/// # Errors
/// The code that names what happened.
pub(crate) async fn tcp(address: SocketAddr, timeout: Duration) -> Result<TcpStream, ErrorCode> {
    let stream = tokio::time::timeout(timeout, TcpStream::connect(address))
        .await
        .map_err(|_| ErrorCode::PC05)?
        .map_err(|error| code(&error))?;
    // Only delays small writes if it fails.
    let _slower = stream.set_nodelay(true);
    Ok(stream)
}

/// A connection that speaks HTTP/1.1.
///
/// # Errors
/// The code that names what happened.
pub(crate) async fn http1(
    address: SocketAddr,
    timeout: Duration,
    max_head: usize,
) -> Result<Driven, ErrorCode> {
    let stream = tcp(address, timeout).await?;
    let (sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(max_head.max(8192))
        .max_header_size(max_head)
        .handshake(TokioIo::new(Gathered::new(stream)))
        .await
        .map_err(|_| ErrorCode::PC06)?;
    Ok(Driven::new(sender, Box::pin(connection.with_upgrades()), address))
}

fn code(error: &std::io::Error) -> ErrorCode {
    #[expect(clippy::wildcard_enum_match_arm, reason = "io::ErrorKind is open")]
    match error.kind() {
        ErrorKind::ConnectionRefused => ErrorCode::PC01,
        ErrorKind::ConnectionReset => ErrorCode::PC03,
        ErrorKind::ConnectionAborted => ErrorCode::PC04,
        ErrorKind::TimedOut => ErrorCode::PC05,
        _ => ErrorCode::PC06,
    }
}
