//! Follows the requests of an HTTP/1 connection byte by byte, for what the HTTP library keeps to itself: it
//! takes a `Content-Length` that is said twice, with the same value, for one (SPEC HTTP-8).
//!
//! Where a message ends is where the library sees its end: it refuses what is malformed and closes the
//! connection, so what is made of that, and of all that comes after it, does not matter.

use memchr::memchr;

/// What a field says of its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Length,
    Coding,
    Upgrade,
}

impl Field {
    const fn name(self) -> &'static [u8] {
        match self {
            Self::Length => b"content-length",
            Self::Coding => b"transfer-encoding",
            Self::Upgrade => b"upgrade",
        }
    }
}

/// Where in a message the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before a head, where line ends are skipped.
    Between,
    /// At the begin of one of its lines.
    Line,
    /// So many bytes of this name have been seen on the line.
    Name(Field, u8),
    /// In the value of `Content-Length`.
    Digits,
    /// In what is left of a line.
    Rest,
    /// After a carriage return that stands for the empty line.
    Blank,
    /// So many bytes before the end of a body without chunks.
    Body(u64),
    /// After some digits of a chunk's size.
    Size(u64),
    /// In what follows the size on its line.
    Extension(u64),
    /// So many bytes before the next chunk's size.
    Chunk(u64),
    /// At the begin of a line of trailers; none of them ends at a line feed alone.
    Trailer,
    /// In a line of trailers.
    TrailerRest,
    /// After its carriage return.
    TrailerEnd,
    /// After that of the empty line.
    TrailersEnd,
    /// Nothing is looked at any more.
    Over,
}

/// Follows what a client sends on one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heads {
    place: Place,
    /// `Content-Length` of the head that is read, or was read last.
    length: u64,
    has_length: bool,
    is_chunked: bool,
    names_upgrade: bool,
    asked_to_upgrade: bool,
    complete: u32,
}

impl Default for Heads {
    fn default() -> Self {
        Self {
            place: Place::Between,
            length: 0,
            has_length: false,
            is_chunked: false,
            names_upgrade: false,
            asked_to_upgrade: false,
            complete: 0,
        }
    }
}

impl Heads {
    /// Heads that have come whole, wrapping.
    #[must_use]
    pub fn complete(&self) -> u32 {
        self.complete
    }

    /// Whether any of those named a protocol to go on with: what comes after it may be no HTTP.
    #[must_use]
    pub fn asked_to_upgrade(&self) -> bool {
        self.asked_to_upgrade
    }

    /// Takes the next bytes of the connection, however they are cut. Gives the place among them of the
    /// colon after the second `Content-Length` of a head, once: nothing is looked at after it.
    pub fn scan(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some((&byte, rest)) = bytes.get(at..).and_then(<[u8]>::split_first) {
            let length = rest.len() + 1;
            let (place, taken) = match self.place {
                Place::Between => match byte {
                    b'\r' | b'\n' => (Place::Between, 1),
                    _ => {
                        (self.length, self.has_length) = (0, false);
                        (self.is_chunked, self.names_upgrade) = (false, false);
                        (Place::Line, 0)
                    }
                },
                Place::Line => match byte {
                    b'c' | b'C' => (Place::Name(Field::Length, 1), 1),
                    b't' | b'T' => (Place::Name(Field::Coding, 1), 1),
                    b'u' | b'U' => (Place::Name(Field::Upgrade, 1), 1),
                    b'\n' => (self.head(), 1),
                    b'\r' => (Place::Blank, 1),
                    _ => (Place::Rest, 1),
                },
                Place::Name(field, known) => match field.name().get(usize::from(known)) {
                    Some(letter) if byte.to_ascii_lowercase() == *letter => {
                        (Place::Name(field, known + 1), 1)
                    }
                    None if byte == b':' && field == Field::Length && self.has_length => {
                        self.place = Place::Over;
                        return Some(at);
                    }
                    None if byte == b':' => (self.field(field), 1),
                    _ => (Place::Rest, 0),
                },
                Place::Digits => match byte {
                    b'0'..=b'9' => {
                        self.length = self.length.wrapping_mul(10).wrapping_add(u64::from(byte - b'0'));
                        (Place::Digits, 1)
                    }
                    b'\n' => (Place::Line, 1),
                    _ => (Place::Digits, 1),
                },
                Place::Rest => match memchr(b'\n', &bytes[at..]) {
                    Some(end) => (Place::Line, end + 1),
                    None => (Place::Rest, length),
                },
                Place::Blank => (self.head(), 1),
                Place::Body(left) => match pass(left, length) {
                    (0, taken) => (Place::Between, taken),
                    (left, taken) => (Place::Body(left), taken),
                },
                Place::Size(size) => match char::from(byte).to_digit(16) {
                    Some(digit) => (Place::Size(size.wrapping_mul(16).wrapping_add(digit.into())), 1),
                    None => (Place::Extension(size), 0),
                },
                Place::Extension(size) => match (memchr(b'\n', &bytes[at..]), size) {
                    (None, _) => (Place::Extension(size), length),
                    (Some(end), 0) => (Place::Trailer, end + 1),
                    // A line end follows the data.
                    (Some(end), _) => (Place::Chunk(size.saturating_add(2)), end + 1),
                },
                Place::Chunk(left) => match pass(left, length) {
                    (0, taken) => (Place::Size(0), taken),
                    (left, taken) => (Place::Chunk(left), taken),
                },
                Place::Trailer if byte == b'\r' => (Place::TrailersEnd, 1),
                Place::Trailer => (Place::TrailerRest, 1),
                Place::TrailerRest => match memchr(b'\r', &bytes[at..]) {
                    Some(end) => (Place::TrailerEnd, end + 1),
                    None => (Place::TrailerRest, length),
                },
                Place::TrailerEnd => (Place::Trailer, 1),
                Place::TrailersEnd => (Place::Between, 1),
                Place::Over => return None,
            };
            self.place = place;
            at += taken;
        }
        None
    }

    fn field(&mut self, field: Field) -> Place {
        match field {
            Field::Length => {
                self.has_length = true;
                return Place::Digits;
            }
            Field::Coding => self.is_chunked = true,
            Field::Upgrade => self.names_upgrade = true,
        }
        Place::Rest
    }

    /// A head is complete.
    fn head(&mut self) -> Place {
        self.complete = self.complete.wrapping_add(1);
        self.asked_to_upgrade |= self.names_upgrade;
        match self.length {
            // Any other coding than chunks is refused.
            _ if self.is_chunked => Place::Size(0),
            0 => Place::Between,
            length => Place::Body(length),
        }
    }
}

/// What is left after `there` bytes of `left`, and how many those are.
fn pass(left: u64, there: usize) -> (u64, usize) {
    let taken = usize::try_from(left).map_or(there, |left| left.min(there));
    (left - taken as u64, taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The text up to the colon that is refused.
    fn refused(text: &str) -> Option<&str> {
        Heads::default().scan(text.as_bytes()).map(|at| &text[..at])
    }

    const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\n";

    #[test]
    fn http_8_the_second_length_of_a_head_is_found_in_whatever_letters() {
        for (second, is_found) in [
            ("Content-Length", true),
            ("content-length", true),
            ("CONTENT-lengtH", true),
            ("content-lengt", false),
            ("content-lengths", false),
            ("xcontent-length", false),
            ("content-length ", false),
        ] {
            let before = format!("{POST}Content-Length: 3\r\nX: y\r\n{second}");
            let found = refused(&format!("{before}: 3\r\n\r\nabc")).map(str::len);
            assert_eq!(found, is_found.then_some(before.len()), "{second}");
            let bare = before.replace('\r', "");
            let found = refused(&format!("{bare}: 3\n\nabc")).map(str::len);
            assert_eq!(found, is_found.then_some(bare.len()), "{second}, lines with a line feed alone");
        }
    }

    #[test]
    fn http_8_lengths_of_other_messages_and_of_bodies_are_none_of_this_head() {
        let twice = "Content-Length: 3\r\nContent-Length: 3\r\n";
        let body = format!("{POST}Content-Length: {}\r\n\r\n{twice}", twice.len());
        let chunk = format!("{POST}Transfer-Encoding: chunked\r\n\r\n{:x};a=b\r\n{twice}\r\n", twice.len());
        let chunks = format!("{chunk}1\r\na\r\n0\r\n{twice}\r\n");
        let each = format!("{POST}Content-Length: 3\r\n\r\nabc");
        for good in [&body, &chunks, &each, &format!("{body}\r\n\r\n{chunks}{each}{body}{each}{chunks}")] {
            assert_eq!(refused(good), None, "{good}");
            let bad = format!("{good}{POST}Content-Length: 3\r\nContent-Length");
            assert_eq!(refused(&format!("{bad}: 3\r\n\r\nabc")), Some(&*bad));
        }
    }

    #[test]
    fn http_8_a_line_feed_alone_ends_no_trailers() {
        // Whoever takes the empty line for their end takes the next head for the body of another one.
        let hidden = format!("X: y\r\n\r\n{POST}Content-Length: 3\r\nContent-Length");
        let text =
            format!("{POST}Transfer-Encoding: chunked\r\n\r\n0\r\n\nContent-Length: 500\n\n{hidden}: 3");
        assert!(refused(&text).is_some_and(|before| before.ends_with(&hidden)), "{:?}", refused(&text));
    }

    #[test]
    fn http_4_heads_are_counted_and_a_wish_to_upgrade_is_remembered() {
        let mut heads = Heads::default();
        assert_eq!(heads.scan(POST.as_bytes()), None);
        assert_eq!(heads.scan(b"Upgrade-Insecure-Requests: 1\r\n"), None);
        assert_eq!((heads.complete(), heads.asked_to_upgrade()), (0, false));
        assert_eq!(heads.scan(b"\r\n\r\nGET / HTTP/1.1\r\nupgradE: x\r\n\r"), None);
        assert_eq!((heads.complete(), heads.asked_to_upgrade()), (1, false));
        assert_eq!(heads.scan(b"\nGET / HTTP/1.1\r\n\r\n"), None);
        assert_eq!((heads.complete(), heads.asked_to_upgrade()), (3, true));
    }

    #[test]
    fn a_connection_pays_little_for_it() {
        assert!(size_of::<Heads>() <= 32, "{} bytes", size_of::<Heads>());
    }

    fn piece() -> impl Strategy<Value = Vec<u8>> {
        let known = prop::sample::select(vec![
            "POST / HTTP/1.1\r\n",
            "Content-Length: 3\r\n",
            "content-length:5\n",
            "Transfer-Encoding: chunked\r\n",
            "Upgrade: x\r\n",
            "\r\n",
            "\n",
            "\r",
            "abc",
            "3\r\nabc\r\n",
            "0\r\n",
        ]);
        prop_oneof![
            8 => known.prop_map(|text| text.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 0..4),
        ]
    }

    proptest! {
        #[test]
        fn http_8_how_the_bytes_are_cut_changes_nothing(
            pieces in prop::collection::vec(piece(), 0..30),
            cuts in prop::collection::vec(1..40usize, 1..20),
        ) {
            let bytes = pieces.concat();
            let mut whole = Heads::default();
            let found = whole.scan(&bytes);
            let (mut cut, mut at, mut found_cut) = (Heads::default(), 0, None);
            for size in cuts.iter().cycle() {
                let end = bytes.len().min(at + size);
                if let Some(inside) = cut.scan(&bytes[at..end]) {
                    prop_assert!(found_cut.replace(at + inside).is_none(), "found twice");
                }
                at = end;
                if at == bytes.len() {
                    break;
                }
            }
            prop_assert_eq!(found_cut, found);
            prop_assert_eq!(cut, whole);
        }
    }
}
