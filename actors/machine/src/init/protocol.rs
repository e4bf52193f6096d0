//! What a node and a machine-init say to each other: frames of a four-byte length (big endian) and
//! core's encoding.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use skein_core::codec::{self, CodecError};
use skein_core::restart::Exit;

/// The longest frame, in bytes. Environment and arguments of a process fit: the kernel allows 2 MiB.
pub const MAX_FRAME: usize = 4 << 20;
/// The most bytes of output in one frame.
pub const MAX_OUTPUT: usize = 32 << 10;

/// Who a process runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunAs {
    /// User id.
    pub uid: u32,
    /// Group id; it has no other groups.
    pub gid: u32,
}

/// What to execute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Program {
    /// Looked up in the process's own `PATH`, as its user.
    Named(String),
    /// This program itself, by init's open descriptor: its path need not be readable.
    Own,
}

/// A process to be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// What.
    pub program: Program,
    /// Its arguments without the zeroth.
    pub args: Vec<String>,
    /// Its whole environment.
    pub env: Vec<(String, String)>,
    /// Its working directory; `/` when its user may not enter it.
    pub dir: PathBuf,
    /// Its user; the node's own when `None`.
    pub run_as: Option<RunAs>,
    /// How long the Machine outlives its node, in milliseconds.
    pub adopt_grace_ms: u64,
    /// What a node must show to take the Machine over.
    pub secret: [u8; 32],
    /// Where init waits for that node.
    pub adopt_at: Option<PathBuf>,
}

/// From the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToInit {
    /// The first message.
    Launch(Box<Launch>),
    /// The first message of a node that takes the Machine over.
    Adopt([u8; 32]),
    /// A signal for the first process.
    Signal(i32),
    /// SIGKILL for all processes.
    Kill,
    /// All processes are stopped, and answered for with [`FromInit::Suspended`] or
    /// [`FromInit::NotSuspended`].
    Suspend,
    /// All processes go on, and are answered for with [`FromInit::Resumed`].
    Resume,
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// From init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromInit {
    /// The process runs.
    Started {
        /// Its process id.
        pid: i32,
    },
    /// The process could not be started.
    Refused {
        /// `errno`, when the kernel refused.
        errno: Option<i32>,
        /// What was tried and what came of it.
        text: String,
    },
    /// The process wrote.
    Output(Output, #[serde(with = "bytes_vec")] Vec<u8>),
    /// The first process ended and no other is left.
    Exited(Ended),
    /// No process runs, and all keep their memory.
    Suspended,
    /// Some process did not stop, so all run.
    NotSuspended,
    /// The processes run.
    Resumed,
}

/// [`Exit`] on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl From<Ended> for Exit {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Code(code) => Self::Code(code),
            Ended::Signal(signal) => Self::Signal(signal),
        }
    }
}

mod bytes_vec {
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(bytes)
            }
        }
        deserializer.deserialize_byte_buf(Visitor)
    }
}

/// A message as a frame.
pub fn frame<T: Serialize>(message: &T) -> Vec<u8> {
    let body = codec::encode(message);
    let mut bytes = Vec::with_capacity(4 + body.len());
    bytes.extend_from_slice(&(body.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

/// Takes the next whole message off `buffer`; `None` when more bytes are needed.
///
/// # Errors
/// [`CodecError`] when the other end does not speak this protocol; the buffer is of no use then.
pub fn take<T: serde::de::DeserializeOwned>(buffer: &mut Vec<u8>) -> Result<Option<T>, CodecError> {
    let Some(length) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    if length > MAX_FRAME {
        return Err(CodecError::Malformed(format!("a frame of {length} bytes is more than {MAX_FRAME}")));
    }
    if buffer.len() < 4 + length {
        return Ok(None);
    }
    let message = codec::decode(&buffer[4..4 + length])?;
    buffer.drain(..4 + length);
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn messages_round_trip_however_the_bytes_arrive(
            outputs in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..5), cut in 1usize..20,
        ) {
            let sent: Vec<_> = outputs.into_iter().map(|o| FromInit::Output(Output::Stderr, o)).collect();
            let bytes: Vec<u8> = sent.iter().flat_map(frame).collect();
            let (mut buffer, mut got) = (Vec::new(), Vec::new());
            for piece in bytes.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(message) = take::<FromInit>(&mut buffer).unwrap() { got.push(message); }
            }
            prop_assert_eq!(got, sent);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn any_bytes_give_messages_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut buffer = bytes;
            while let Ok(Some(message)) = take::<ToInit>(&mut buffer) {
                let mut again = frame(&message);
                prop_assert_eq!(take::<ToInit>(&mut again).unwrap(), Some(message));
            }
        }
    }
}
