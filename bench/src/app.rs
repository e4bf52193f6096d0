//! The app behind every program: HTTP/1.1 with keep-alive, the same 100 bytes for every request.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// The body of every answer.
pub(crate) const BODY: &[u8; 100] = &[b'x'; 100];
/// A request for this path is answered with an instruction, unless it was replayed already.
pub(crate) const REPLAYED: &str = "/replayed";
/// The region that the instruction names.
pub(crate) const REPLAY_REGION: &str = "lhr";

/// Runs until it is dropped.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl App {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((stream, _)) => drop(connections.spawn(serve(stream))),
                        // Whoever waits for an answer finds out.
                        Err(error) => return eprintln!("the app can't accept: {error}"),
                    },
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self { address, _tasks: tasks })
    }
}

async fn serve(mut stream: TcpStream) {
    let answer =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n", BODY.len());
    let answer = [answer.as_bytes(), BODY].concat();
    let replay =
        format!("HTTP/1.1 200 OK\r\nfly-replay: region={REPLAY_REGION}\r\ncontent-length: 0\r\n\r\n");
    let mut read = Vec::with_capacity(8 << 10);
    // A proxy that closes its connection, or breaks it, is done with it.
    while stream.set_nodelay(true).is_ok() && matches!(stream.read_buf(&mut read).await, Ok(1..)) {
        while let Some(end) = head_end(&read) {
            let again = wants_replay(&read[..end]);
            let written = stream.write_all(if again { replay.as_bytes() } else { &answer }).await;
            if written.is_err() {
                return;
            }
            read.drain(..end);
        }
    }
}

fn wants_replay(head: &[u8]) -> bool {
    let path = head.split(|byte| *byte == b' ').nth(1);
    path == Some(REPLAYED.as_bytes())
        && !head.windows(15).any(|window| window.eq_ignore_ascii_case(b"fly-replay-src:"))
}

/// Where a head ends, if it is whole.
pub(crate) fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_request_for_the_path_is_to_be_replayed() {
        assert!(wants_replay(b"GET /replayed HTTP/1.1\r\nhost: a\r\n\r\n"));
        assert!(!wants_replay(b"GET /replayed HTTP/1.1\r\nFly-Replay-Src: instance=a\r\n\r\n"));
        assert!(!wants_replay(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"));
    }
}
