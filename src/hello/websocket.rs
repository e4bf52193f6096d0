//! `/ws`: a WebSocket that says what it hears (RFC 6455).

use data_encoding::BASE64;
use hyper::Method;
use hyper::header::{CONNECTION, HeaderMap, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use hyper::http::request::Parts;
use ring::digest;
use tokio::io::{self, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

/// The longest frame.
const MAX_FRAME: u64 = 1 << 20;

const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Codes of section 7.4.1.
const GOING_AWAY: u16 = 1001;
const PROTOCOL_ERROR: u16 = 1002;
const TOO_BIG: u16 = 1009;

/// The `Sec-WebSocket-Accept` for a request that asks for a WebSocket of version 13 (section 4.2).
pub(super) fn accept(parts: &Parts) -> Option<String> {
    let asked = parts.method == Method::GET
        && lists(&parts.headers, UPGRADE.as_str(), "websocket")
        && lists(&parts.headers, CONNECTION.as_str(), "upgrade")
        && lists(&parts.headers, SEC_WEBSOCKET_VERSION.as_str(), "13");
    let key = parts.headers.get(SEC_WEBSOCKET_KEY).filter(|_| asked)?;
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    Some(BASE64.encode(hash.finish().as_ref()))
}

fn lists(headers: &HeaderMap, name: &str, wanted: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case(wanted))
}

/// A frame, its mask undone.
struct Frame {
    /// FIN, the reserved bits and the opcode.
    first: u8,
    payload: Vec<u8>,
}

enum Heard {
    Frame(Frame),
    /// What it was is not to be answered: the connection ends with this code.
    Refused(u16),
}

/// Sends every frame back until the other side closes, or `stopped`.
///
/// # Errors
/// When the other side breaks off.
pub(super) async fn echo(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    mut stopped: watch::Receiver<bool>,
) -> io::Result<()> {
    loop {
        let heard = tokio::select! {
            heard = hear(&mut stream) => heard?,
            _ = stopped.wait_for(|stopped| *stopped) => Heard::Refused(GOING_AWAY),
        };
        let Frame { first, payload } = match heard {
            Heard::Frame(frame) => frame,
            Heard::Refused(code) => return say(&mut stream, 0x80 | CLOSE, &code.to_be_bytes()).await,
        };
        match first & 0x0f {
            CLOSE => return say(&mut stream, first, &payload).await,
            PING => say(&mut stream, 0x80 | PONG, &payload).await?,
            PONG => {}
            _ => say(&mut stream, first, &payload).await?,
        }
    }
}

async fn hear(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Heard> {
    let [first, second] = [stream.read_u8().await?, stream.read_u8().await?];
    if second & 0x80 == 0 {
        // Section 5.1: a client masks.
        return Ok(Heard::Refused(PROTOCOL_ERROR));
    }
    let length = match second & 0x7f {
        126 => u64::from(stream.read_u16().await?),
        127 => stream.read_u64().await?,
        short => u64::from(short),
    };
    if length > MAX_FRAME {
        return Ok(Heard::Refused(TOO_BIG));
    }
    let mut mask = [0; 4];
    stream.read_exact(&mut mask).await?;
    let mut payload = vec![0; usize::try_from(length).unwrap_or(0)];
    stream.read_exact(&mut payload).await?;
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    Ok(Heard::Frame(Frame { first, payload }))
}

async fn say(stream: &mut (impl AsyncWrite + Unpin), first: u8, payload: &[u8]) -> io::Result<()> {
    let mut frame = Vec::with_capacity(payload.len() + 10);
    frame.push(first);
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(short @ ..126), _) => frame.push(short),
        (_, Ok(middle)) => {
            frame.push(126);
            frame.extend(middle.to_be_bytes());
        }
        _ => {
            frame.push(127);
            frame.extend((payload.len() as u64).to_be_bytes());
        }
    }
    frame.extend(payload);
    stream.write_all(&frame).await?;
    stream.flush().await
}
