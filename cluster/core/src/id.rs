//! Names and ids as types.
//!
//! Each parses with [`FromStr`], prints with `Display`, and the two round-trip. A value of one of
//! these types is valid by construction, also after deserialization.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::region::RegionCode;

/// Why a text is not a name or id of the wanted kind; the caller of an API or command sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {value:?} is not valid: {rule}")]
pub struct InvalidId {
    /// The kind of name or id that was expected.
    pub kind: &'static str,
    /// What was given, cut to 80 characters.
    pub value: String,
    /// The rule it breaks, in words.
    pub rule: &'static str,
}

impl InvalidId {
    fn new(kind: &'static str, value: &str, rule: &'static str) -> Self {
        Self { kind, value: value.chars().take(80).collect(), rule }
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(value: &str) -> Result<Self, InvalidId> {
                let valid: fn(&str) -> bool = $valid;
                if valid(value) {
                    Ok(Self(value.into()))
                } else {
                    Err(InvalidId::new($kind, value, $rule))
                }
            }
        }
        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(value: String) -> Result<Self, InvalidId> {
                value.parse()
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0.as_ref().to_owned()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

fn label(value: &str, max: usize) -> bool {
    !value.is_empty()
        && value.len() <= max
        && value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !value.starts_with('-')
        && !value.ends_with('-')
}

text_id!(
    /// An app's name, unique in the cluster; it is a DNS label (`<app>.internal`).
    AppName, "app name", "use 1 to 63 lower-case letters, digits and inner dashes",
    |v| label(v, 63)
);
text_id!(
    /// An organization's slug.
    OrgSlug, "organization", "use 1 to 63 lower-case letters, digits and inner dashes",
    |v| label(v, 63)
);
text_id!(
    /// The name of a network inside an organization (SPEC PN-5).
    NetworkName, "network name", "use 1 to 63 letters, digits and dashes, beginning with a letter",
    |v| v.len() <= 63
        && v.starts_with(|c: char| c.is_ascii_alphabetic())
        && v.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
);
text_id!(
    /// A node's name, unique in the cluster, for example `iad-1`.
    NodeName, "node name", "use 1 to 63 lower-case letters, digits and inner dashes",
    |v| label(v, 63)
);
text_id!(
    /// A process group of an app, for example `app` or `worker`.
    ProcessGroup, "process group", "use 1 to 63 letters, digits, dashes and underscores",
    |v| !v.is_empty()
        && v.len() <= 63
        && v.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
);

impl NetworkName {
    /// The network an app is on when none was named.
    pub fn default_network() -> Self {
        Self("default".into())
    }
}

impl ProcessGroup {
    /// The group of an app that names none (flyctl's default).
    pub fn app() -> Self {
        Self("app".into())
    }
}

/// A Machine's id: 14 lower-case hexadecimal digits, unique in the cluster (SPEC RUN-1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MachineId(u64);

impl MachineId {
    /// The id with the low 56 bits of `bits`.
    pub fn from_bits(bits: u64) -> Self {
        Self(bits & 0x00ff_ffff_ffff_ffff)
    }

    /// The 56 bits of the id.
    pub fn bits(self) -> u64 {
        self.0
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:014x}", self.0)
    }
}
impl fmt::Debug for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:014x}", self.0)
    }
}
impl FromStr for MachineId {
    type Err = InvalidId;
    fn from_str(value: &str) -> Result<Self, InvalidId> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let rule = "a Machine id is 14 lower-case hexadecimal digits";
        if value.len() != 14 || !value.bytes().all(hex) {
            return Err(InvalidId::new("Machine id", value, rule));
        }
        u64::from_str_radix(value, 16).map(Self).map_err(|_| InvalidId::new("Machine id", value, rule))
    }
}
impl TryFrom<String> for MachineId {
    type Error = InvalidId;
    fn try_from(value: String) -> Result<Self, InvalidId> {
        value.parse()
    }
}
impl From<MachineId> for String {
    fn from(value: MachineId) -> Self {
        value.to_string()
    }
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(value: &str) -> Result<Self, InvalidId> {
                value
                    .parse()
                    .map(Self)
                    .map_err(|_| InvalidId::new(stringify!($name), value, "a whole number is needed"))
            }
        }
    };
}
number_id!(
    /// A node's number: allotted by the registry from 1, never reused; the host part of 6PN
    /// addresses and the node's id in Raft.
    NodeNumber, u32
);
number_id!(
    /// A network's id: allotted by the registry from 1, never reused (SPEC PN-1).
    NetworkId, u32
);

macro_rules! ulid_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(pub Ulid);
        impl $name {
            /// An id made from the wall clock (milliseconds since 1970) and 80 random bits.
            pub fn generate(unix_ms: u64, rng: &mut impl crate::Random) -> Self {
                let random = (u128::from(rng.next_u64()) << 64) | u128::from(rng.next_u64());
                Self(Ulid::from_parts(unix_ms, random))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(value: &str) -> Result<Self, InvalidId> {
                Ulid::from_string(value)
                    .ok()
                    // The crate accepts lower case and overflow; ours must round-trip.
                    .filter(|ulid| ulid.to_string() == value)
                    .map(Self)
                    .ok_or_else(|| InvalidId::new($kind, value, "26 characters of Crockford's base 32 are needed"))
            }
        }
        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(value: String) -> Result<Self, InvalidId> {
                value.parse()
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    };
}
ulid_id!(
    /// An app's id; names are only looked up.
    AppId, "app id"
);
ulid_id!(
    /// An organization's id.
    OrgId, "organization id"
);
ulid_id!(
    /// An API token's public id; never the secret.
    TokenId, "token id"
);
ulid_id!(
    /// One version of a Machine's configuration (`instance_id` in the API).
    VersionId, "version id"
);

/// A request's id: `ULID-region`, as in `Fly-Request-Id` (SPEC HTTP-2). The region is the edge's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RequestId {
    /// Time and randomness.
    pub ulid: Ulid,
    /// The region of the edge that met the request first.
    pub region: RegionCode,
}

impl From<RequestId> for Arc<str> {
    fn from(id: RequestId) -> Self {
        // Each request makes one: formatting in general is several times as dear.
        let (mut text, mut ulid) = ([0; ulid::ULID_LEN + 1 + 8], [0; ulid::ULID_LEN]);
        let region = id.region.as_str().as_bytes();
        let end = ulid::ULID_LEN + 1 + region.len();
        text[..ulid::ULID_LEN].copy_from_slice(id.ulid.array_to_str(&mut ulid).as_bytes());
        text[ulid::ULID_LEN] = b'-';
        text[ulid::ULID_LEN + 1..end].copy_from_slice(region);
        // Both parts are ASCII.
        std::str::from_utf8(&text[..end]).unwrap_or_default().into()
    }
}
impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut buffer = [0; ulid::ULID_LEN];
        write!(f, "{}-{}", self.ulid.array_to_str(&mut buffer), self.region)
    }
}
impl From<RequestId> for String {
    fn from(id: RequestId) -> Self {
        id.to_string()
    }
}
impl TryFrom<String> for RequestId {
    type Error = InvalidId;
    fn try_from(value: String) -> Result<Self, InvalidId> {
        value.parse()
    }
}
impl FromStr for RequestId {
    type Err = InvalidId;
    fn from_str(value: &str) -> Result<Self, InvalidId> {
        let invalid = || InvalidId::new("request id", value, "it looks like 01JNRQ9VVKJ7HZFMJWJB3M3RYN-iad");
        let (ulid, region) = value.split_once('-').ok_or_else(invalid)?;
        let ulid = Ulid::from_string(ulid).ok().filter(|u| u.to_string() == ulid).ok_or_else(invalid)?;
        Ok(Self { ulid, region: region.parse().map_err(|_| invalid())? })
    }
}

/// A trace's id (W3C trace context): 32 lower-case hexadecimal digits, not all 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TraceId(pub u128);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
impl FromStr for TraceId {
    type Err = InvalidId;
    fn from_str(value: &str) -> Result<Self, InvalidId> {
        let digits = value.len() == 32
            && value.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        digits
            .then(|| u128::from_str_radix(value, 16).ok())
            .flatten()
            .filter(|number| *number != 0)
            .map(Self)
            .ok_or_else(|| InvalidId::new("trace id", value, "32 lower-case hexadecimal digits are needed"))
    }
}
impl From<TraceId> for String {
    fn from(id: TraceId) -> Self {
        id.to_string()
    }
}
impl TryFrom<String> for TraceId {
    type Error = InvalidId;
    fn try_from(value: String) -> Result<Self, InvalidId> {
        value.parse()
    }
}

/// The first 16 bytes of the SHA-256 of a Machine's configuration in its canonical JSON: what
/// gossip carries instead of the configuration.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ConfigHash(pub [u8; 16]);

impl fmt::Display for ConfigHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
impl fmt::Debug for ConfigHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl FromStr for ConfigHash {
    type Err = InvalidId;
    fn from_str(value: &str) -> Result<Self, InvalidId> {
        let invalid =
            || InvalidId::new("configuration hash", value, "32 lower-case hexadecimal digits are needed");
        let mut bytes = [0; 16];
        let digits = value.as_bytes();
        if digits.len() != 32 || digits.iter().any(u8::is_ascii_uppercase) {
            return Err(invalid());
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let text = std::str::from_utf8(pair).map_err(|_| invalid())?;
            if text.starts_with('+') {
                return Err(invalid());
            }
            *byte = u8::from_str_radix(text, 16).map_err(|_| invalid())?;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trips<T: FromStr<Err = InvalidId> + fmt::Display + PartialEq + fmt::Debug>(value: &str) {
        let parsed: T = value.parse().unwrap();
        assert_eq!(parsed.to_string(), value);
    }

    #[test]
    fn names_and_ids_print_what_they_were_parsed_from() {
        round_trips::<AppName>("my-app-2");
        round_trips::<NetworkName>("Blue-7");
        round_trips::<NodeName>("iad-1");
        round_trips::<MachineId>("0123456789abcd");
        round_trips::<AppId>("01JNRQ9VVKJ7HZFMJWJB3M3RYN");
        round_trips::<RequestId>("01JNRQ9VVKJ7HZFMJWJB3M3RYN-iad");
        round_trips::<TraceId>("0af7651916cd43dd8448eb211c80319c");
        round_trips::<ConfigHash>("000102030405060708090a0b0c0d0e0f");
    }

    #[test]
    fn what_breaks_a_rule_is_refused_with_the_rule() {
        for bad in ["", "A", "-a", "a-", "a_b", "a.b", &"a".repeat(64)] {
            assert!(bad.parse::<AppName>().is_err(), "{bad}");
        }
        assert!("7blue".parse::<NetworkName>().is_err());
        assert!("0123456789ABCD".parse::<MachineId>().is_err());
        let error = "x".parse::<MachineId>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "Machine id \"x\" is not valid: a Machine id is 14 lower-case hexadecimal digits"
        );
    }

    proptest! {
        #[test]
        fn every_machine_id_round_trips(bits: u64) {
            let id = MachineId::from_bits(bits);
            prop_assert_eq!(id.to_string().parse::<MachineId>().unwrap(), id);
            prop_assert_eq!(id.to_string().len(), 14);
        }

        #[test]
        fn no_text_makes_a_parser_panic_and_what_parses_round_trips(text in ".{0,80}") {
            if let Ok(id) = text.parse::<AppName>() { prop_assert_eq!(id.as_str(), &text); }
            if let Ok(id) = text.parse::<RequestId>() {
                prop_assert_eq!(id.to_string(), text.clone());
                prop_assert_eq!(&*Arc::<str>::from(id), &*text);
            }
            if let Ok(id) = text.parse::<ConfigHash>() { prop_assert_eq!(id.to_string(), text.clone()); }
            if let Ok(id) = text.parse::<VersionId>() { prop_assert_eq!(id.to_string(), text); }
        }
    }
}
