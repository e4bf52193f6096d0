//! A client's WebSocket that tells apart how it can end (RFC 6455), and its talk with the sample app's
//! `/ws`.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// The proxy closes so when a Machine or a node leaves (SPEC HTTP-11).
const SERVICE_RESTART: u16 = 1012;
const NORMAL: u16 = 1000;

const TEXT: u8 = 0x81;
const CLOSE: u8 = 0x88;

/// Between two messages.
const EVERY: Duration = Duration::from_millis(200);
/// Messages that may be on their way; more of them, and the echo does not come.
const UNHEARD: u64 = 100;

/// How a talk ended in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The client had enough.
    Stopped,
    /// It was closed with 1012: the client connects again.
    Restart,
}

pub(crate) struct WebSocket {
    stream: TcpStream,
    /// What came and was not looked at.
    came: Vec<u8>,
}

impl WebSocket {
    /// Upgrades a connection.
    ///
    /// # Errors
    /// What came instead of the upgrade.
    pub(crate) async fn upgrade(mut stream: TcpStream) -> Result<Self, String> {
        let ask = "GET /ws HTTP/1.1\r\nhost: hello.localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                   sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        stream.write_all(ask.as_bytes()).await.map_err(|error| error.to_string())?;
        let mut this = Self { stream, came: Vec::new() };
        loop {
            if let Some(end) = this.came.windows(4).position(|window| window == b"\r\n\r\n") {
                let head: Vec<u8> = this.came.drain(..end + 4).collect();
                let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
                // Section 1.3 has the answer to this key.
                let agreed =
                    head.starts_with("http/1.1 101 ") && head.contains("s3pplmbitxaq9kygzzhzrbk+xoo=");
                return if agreed { Ok(this) } else { Err(head) };
            }
            match this.stream.read_buf(&mut this.came).await {
                Ok(0) => return Err(format!("closed after {:?}", String::from_utf8_lossy(&this.came))),
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// Sends numbers and wants them back in order, until `stop` or a close; how many came back is
    /// counted in `heard`.
    ///
    /// # Errors
    /// When it ends in any other way, or something else comes back.
    pub(crate) async fn talk(mut self, stop: &CancellationToken, heard: &mut u64) -> Result<Ended, String> {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut sent, mut back, mut stopping) = (0u64, 0u64, false);
        loop {
            while let Some((first, payload)) = self.frame()? {
                match first {
                    TEXT if payload == back.to_string().as_bytes() && back < sent => {
                        back += 1;
                        *heard += 1;
                    }
                    CLOSE => return self.closed(&payload, stopping).await,
                    _ => {
                        let payload = String::from_utf8_lossy(&payload);
                        return Err(format!("{first:#x} {payload:?} came instead of {back} of {sent}"));
                    }
                }
            }
            tokio::select! {
                read = self.stream.read_buf(&mut self.came) => match read {
                    Ok(0) => return Err(format!("ended without a close frame after {back} of {sent}")),
                    Ok(_) => {}
                    Err(error) => return Err(format!("broke after {back} of {sent}: {error}")),
                },
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    self.say(CLOSE, &NORMAL.to_be_bytes()).await.map_err(|error| error.to_string())?;
                }
                _ = ticks.tick() => {
                    if sent - back > UNHEARD {
                        return Err(format!("only {back} of {sent} came back"));
                    }
                    if !stopping {
                        self.say(TEXT, sent.to_string().as_bytes()).await.map_err(|error| error.to_string())?;
                    }
                    sent += 1;
                }
            }
        }
    }

    /// A close frame came: it is answered (section 5.5.1), and then the other side ends the connection.
    async fn closed(mut self, payload: &[u8], stopping: bool) -> Result<Ended, String> {
        let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
        let ended = match code {
            Some(SERVICE_RESTART) => Ended::Restart,
            Some(NORMAL) if stopping => Ended::Stopped,
            _ => return Err(format!("closed with {code:?}")),
        };
        if !stopping {
            // Who has sent its close frame may be gone.
            let _gone = self.say(CLOSE, payload).await;
        }
        match self.stream.read_buf(&mut self.came).await {
            Ok(0) if self.came.is_empty() => Ok(ended),
            Ok(_) => Err(format!("{:?} came after the close frame {code:?}", self.came)),
            Err(error) => Err(format!("broke after the close frame {code:?}: {error}")),
        }
    }

    /// The next whole frame of what came: FIN and opcode, payload.
    fn frame(&mut self) -> Result<Option<(u8, Vec<u8>)>, String> {
        let [first, length @ ..126, ..] = self.came[..] else {
            return if self.came.len() < 2 {
                Ok(None)
            } else {
                Err(format!("no such frame: {:?}", self.came))
            };
        };
        let end = 2 + usize::from(length);
        if self.came.len() < end {
            return Ok(None);
        }
        let frame: Vec<u8> = self.came.drain(..end).collect();
        Ok(Some((first, frame[2..].to_vec())))
    }

    /// Sends a frame, masked as a client's must be.
    async fn say(&mut self, first: u8, payload: &[u8]) -> io::Result<()> {
        let mask = [0x5a, 0xa5, 0x3c, 0xc3];
        let length = u8::try_from(payload.len()).expect("short");
        let mut frame = vec![first, 0x80 | length];
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.stream.write_all(&frame).await
    }
}
