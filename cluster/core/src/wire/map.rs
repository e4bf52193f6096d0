//! Headers on the wire: a list of names and values, as a `Vec<(String, Bytes)>` would be, without the
//! copies that making one costs.
//!
//! Names and values that HTTP does not allow are left out when they are read.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::de::{DeserializeSeed, Error, SeqAccess, Visitor};
use serde::ser::SerializeSeq as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Names that are reserved for at once; a longer list grows as it comes.
const RESERVED: usize = 32;

struct Value<'a>(&'a HeaderValue);

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0.as_bytes())
    }
}

pub(super) fn serialize<S: Serializer>(headers: &HeaderMap, serializer: S) -> Result<S::Ok, S::Error> {
    let mut list = serializer.serialize_seq(Some(headers.len()))?;
    for (name, value) in headers {
        list.serialize_element(&(name.as_str(), Value(value)))?;
    }
    list.end()
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<HeaderMap, D::Error> {
    deserializer.deserialize_seq(List)
}

struct List;

impl<'de> Visitor<'de> for List {
    type Value = HeaderMap;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of headers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<HeaderMap, A::Error> {
        // A claimed length is not believed further than this.
        let mut headers = HeaderMap::with_capacity(list.size_hint().unwrap_or_default().min(RESERVED));
        while let Some(Pair(name, value)) = list.next_element()? {
            if let (Some(name), Some(value)) = (name, value) {
                // A map that is full takes no more; the longest frame may hold that many.
                headers.try_append(name, value).map_err(A::Error::custom)?;
            }
        }
        Ok(headers)
    }
}

struct Pair(Option<HeaderName>, Option<HeaderValue>);

impl<'de> Deserialize<'de> for Pair {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_tuple(2, PairVisitor)
    }
}

struct PairVisitor;

impl<'de> Visitor<'de> for PairVisitor {
    type Value = Pair;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name and a value")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<Pair, A::Error> {
        let missing = || A::Error::custom("half a header");
        let name = pair.next_element_seed(Text)?.ok_or_else(missing)?;
        let value = pair.next_element_seed(Octets)?.ok_or_else(missing)?;
        Ok(Pair(name, value))
    }
}

struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Option<HeaderName>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Text {
    type Value = Option<HeaderName>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(HeaderName::from_bytes(name.as_bytes()).ok())
    }
}

struct Octets;

impl<'de> DeserializeSeed<'de> for Octets {
    type Value = Option<HeaderValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_bytes(self)
    }
}

impl Visitor<'_> for Octets {
    type Value = Option<HeaderValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bytes<E: Error>(self, value: &[u8]) -> Result<Self::Value, E> {
        Ok(HeaderValue::from_bytes(value).ok())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::codec;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Head(#[serde(with = "super")] HeaderMap);

    #[test]
    fn the_bytes_are_those_of_a_list_of_pairs() {
        let mut headers = HeaderMap::new();
        headers.append("host", HeaderValue::from_static("a"));
        headers.append("x-own", HeaderValue::from_bytes(b"\xff").unwrap());
        let pair = |name: &str, value: &'static [u8]| (name.to_owned(), Bytes::from_static(value));
        let pairs = vec![pair("host", b"a"), pair("x-own", b"\xff")];
        assert_eq!(codec::encode(&Head(headers)), codec::encode(&pairs));
    }

    #[test]
    fn what_http_does_not_allow_is_left_out() {
        let pair = |name: &str, value: &'static [u8]| (name.to_owned(), Bytes::from_static(value));
        let pairs = vec![pair("a b", b"1"), pair("a", b"1\n2"), pair("a", b"3"), pair("", b"4")];
        let Head(read) = codec::decode(&codec::encode(&pairs)).unwrap();
        assert_eq!(read.len(), 1);
        assert_eq!(read["a"], "3");
    }
}
