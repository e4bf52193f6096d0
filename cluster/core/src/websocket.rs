//! Where a WebSocket's frames begin and end (RFC 6455 section 5.2).
//!
//! A relay passes a WebSocket's bytes unchanged and looks at nothing but frame headers, so that it can
//! put a close frame between two frames when the Machine or the node goes away (SPEC HTTP-11). Any
//! bytes are frames of some kind here: what is no WebSocket is for its ends to find out.

/// The status code of a service that restarts (IANA registry of RFC 6455 section 7.4).
pub const SERVICE_RESTART: u16 = 1012;
/// The status code of an end that goes away (RFC 6455 section 7.4.1).
pub const GOING_AWAY: u16 = 1001;

/// Bytes of the longest header.
const MAX_HEADER: usize = 14;
/// The opcode of a close frame.
const CLOSE: u8 = 8;

/// Follows the frames of one direction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frames {
    /// The header's bytes so far; none between two frames.
    header: [u8; MAX_HEADER],
    have: usize,
    /// Bytes that are left of the payload, once the header is complete.
    payload: Option<u64>,
    closed: bool,
}

impl Frames {
    /// Whether all that was taken ends with a whole frame.
    pub fn is_between(&self) -> bool {
        self.have == 0
    }

    /// Whether a whole close frame was taken: nothing may follow it.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Takes bytes up to the end of the frame that they begin in, at most; answers how many. That is 0
    /// only for no bytes.
    pub fn take(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        let mut left = match self.payload {
            Some(left) => left,
            None => loop {
                let Some(byte) = bytes.get(taken) else { return taken };
                self.header[self.have] = *byte;
                self.have += 1;
                taken += 1;
                if let Some(length) = self.length() {
                    break length;
                }
            },
        };
        let rest = bytes.len() - taken;
        let here = usize::try_from(left).unwrap_or(usize::MAX).min(rest);
        taken += here;
        left -= here as u64;
        self.payload = Some(left);
        if left == 0 {
            self.closed |= self.header[0] & 0x0f == CLOSE;
            (self.have, self.payload) = (0, None);
        }
        taken
    }

    /// Takes all of the bytes.
    pub fn take_all(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = &bytes[self.take(bytes)..];
        }
    }

    /// The payload's length, once the header is complete.
    fn length(&self) -> Option<u64> {
        if self.have < 2 {
            return None;
        }
        let (masked, short) = (self.header[1] & 0x80 != 0, self.header[1] & 0x7f);
        let extended = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if self.have < 2 + extended + if masked { 4 } else { 0 } {
            return None;
        }
        let number =
            self.header[2..2 + extended].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        Some(if extended == 0 { u64::from(short) } else { number })
    }
}

/// A close frame with a status code; masked for a server, which takes no other.
pub fn close_frame(code: u16, mask: Option<[u8; 4]>) -> Vec<u8> {
    let code = code.to_be_bytes();
    let mut frame = vec![0x80 | CLOSE, code.len() as u8];
    match mask {
        None => frame.extend(code),
        Some(mask) => {
            frame[1] |= 0x80;
            frame.extend(mask);
            frame.extend(code.iter().zip(mask).map(|(byte, mask)| byte ^ mask));
        }
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A frame as its sender would write it.
    fn frame(opcode: u8, masked: bool, payload: &[u8]) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut bytes = vec![0x80 | opcode];
        match payload.len() {
            short @ 0..=125 => bytes.push(mask | short as u8),
            middle @ 126..=0xffff => {
                bytes.push(mask | 126);
                bytes.extend((middle as u16).to_be_bytes());
            }
            long => {
                bytes.push(mask | 127);
                bytes.extend((long as u64).to_be_bytes());
            }
        }
        if masked {
            bytes.extend([1, 2, 3, 4]);
        }
        bytes.extend(payload);
        bytes
    }

    /// RFC 6455 section 5.7, and a frame of 64 KiB.
    #[test]
    fn frames_of_every_length_end_where_they_end() {
        for length in [0, 1, 125, 126, 127, 0xffff, 0x10000] {
            for masked in [false, true] {
                let bytes = frame(2, masked, &vec![8; length]);
                let mut frames = Frames::default();
                let twice = [&bytes[..], &bytes].concat();
                assert_eq!(frames.take(&twice), bytes.len(), "{length} {masked}");
                assert!(frames.is_between() && !frames.is_closed());
                frames.take_all(&bytes[..bytes.len() - 1]);
                assert!(!frames.is_between(), "{length} {masked}");
                assert_eq!(frames.take(&twice[bytes.len() - 1..]), 1);
                assert!(frames.is_between());
            }
        }
    }

    #[test]
    fn a_close_frame_is_known_by_its_end_and_masked_for_a_server() {
        assert_eq!(close_frame(SERVICE_RESTART, None), [0x88, 2, 0x03, 0xf4]);
        let masked = close_frame(SERVICE_RESTART, Some([9, 8, 7, 6]));
        assert_eq!(masked, [0x88, 0x82, 9, 8, 7, 6, 0x03 ^ 9, 0xf4 ^ 8]);
        for close in [close_frame(GOING_AWAY, None), masked] {
            let mut frames = Frames::default();
            frames.take_all(&close[..close.len() - 1]);
            assert!(!frames.is_closed());
            frames.take_all(&close[close.len() - 1..]);
            assert!(frames.is_closed() && frames.is_between());
        }
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_bytes_arrive(
            parts in proptest::collection::vec((0u8..16, any::<bool>(), proptest::collection::vec(any::<u8>(), 0..300)), 1..6),
            cuts in proptest::collection::vec(1usize..40, 1..200),
        ) {
            let bytes: Vec<u8> = parts.iter().flat_map(|(opcode, masked, load)| frame(*opcode, *masked, load)).collect();
            let mut frames = Frames::default();
            let (mut rest, mut cuts) = (&bytes[..], cuts.into_iter().cycle());
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(cuts.next().unwrap_or(1).min(rest.len()));
                frames.take_all(piece);
                rest = after;
            }
            prop_assert!(frames.is_between());
            prop_assert_eq!(frames.is_closed(), parts.iter().any(|(opcode, ..)| *opcode == CLOSE));
        }

        #[test]
        fn any_bytes_are_taken_and_one_by_one_they_are_the_same(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let (mut at_once, mut singly) = (Frames::default(), Frames::default());
            at_once.take_all(&bytes);
            for byte in &bytes {
                prop_assert_eq!(singly.take(std::slice::from_ref(byte)), 1);
            }
            // What is left of an earlier header does not count.
            prop_assert_eq!((at_once.is_between(), at_once.is_closed()), (singly.is_between(), singly.is_closed()));
        }
    }
}
