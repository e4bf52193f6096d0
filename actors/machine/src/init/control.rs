//! Init's end of the socket to its node.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use skein_core::codec::CodecError;

use super::protocol::{self, FromInit, ToInit};

/// Bytes waiting for the node before the Machine's output is no longer read: then the Machine waits
/// in its own writes, as at any full pipe.
const HIGH_WATER: usize = 256 << 10;

pub(super) struct Control {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Control {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, input: Vec::new(), output: Vec::new() })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    pub(super) fn wants_write(&self) -> bool {
        !self.output.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.output.len() >= HIGH_WATER
    }

    /// Bytes that wait for the node.
    pub(super) fn queued(&self) -> usize {
        self.output.len()
    }

    pub(super) fn queue(&mut self, message: &FromInit) {
        self.output.extend_from_slice(&protocol::frame(message));
    }

    /// Writes what can be written without waiting; `false` when the node is gone.
    pub(super) fn flush(&mut self) -> bool {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return false,
                Ok(written) => drop(self.output.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(_) => return false,
            }
        }
        true
    }

    /// Reads what is there; `false` when the node is gone.
    pub(super) fn fill(&mut self) -> bool {
        let mut buffer = [0; 8 << 10];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(read) => self.input.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(_) => return false,
            }
        }
    }

    /// The next whole message.
    pub(super) fn next(&mut self) -> Result<Option<ToInit>, CodecError> {
        protocol::take(&mut self.input)
    }
}
