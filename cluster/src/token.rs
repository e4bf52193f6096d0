//! The text of a join token: what an operator copies from one machine to another (SPEC CLU-1).
//!
//! `skein1.` and the hexadecimal of the codec's bytes. It names members to ask, pins the authority by
//! its SHA-256, and carries a secret whose hash the registry knows.

use std::net::SocketAddr;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use skein_core::TokenId;
use skein_core::codec::{self, CodecError};
use skein_core::wire::JoinRequest;

use crate::identity::sha256;

const PREFIX: &str = "skein1.";

/// What a join token says.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTokenText {
    /// Members to ask, in this order.
    pub seeds: Vec<SocketAddr>,
    /// SHA-256 of the authority's certificate: the only one that is believed.
    pub authority_sha256: [u8; 32],
    /// The token's id in the registry.
    pub id: TokenId,
    /// Its secret.
    pub secret: [u8; 32],
}

/// Why a text is not a join token; who typed it caused it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// It does not look like one.
    #[error("this is not a join token: one begins with {PREFIX:?}; make one with `skein node token`")]
    Prefix,
    /// It was cut short or mistyped, or another version of Skein made it.
    #[error("the join token is damaged ({0}); copy it whole, or make a new one with `skein node token`")]
    Damaged(String),
    /// It names nobody to ask.
    #[error("the join token names no member to ask; make a new one with `skein node token`")]
    NoSeeds,
}

impl std::fmt::Debug for JoinTokenText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinTokenText")
            .field("seeds", &self.seeds)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Display for JoinTokenText {
    /// The whole text, secret included: for the one who made the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{PREFIX}{}", HEXLOWER.encode(&codec::encode(self)))
    }
}

impl std::str::FromStr for JoinTokenText {
    type Err = InvalidToken;
    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let hex = text.trim().strip_prefix(PREFIX).ok_or(InvalidToken::Prefix)?;
        let bytes = HEXLOWER.decode(hex.as_bytes()).map_err(|e| InvalidToken::Damaged(e.to_string()))?;
        let token: Self = codec::decode(&bytes).map_err(|error| match error {
            // It quotes what it read, which may be the secret.
            CodecError::Malformed(_) => InvalidToken::Damaged("malformed".to_owned()),
            other @ (CodecError::Empty | CodecError::Version(_) | CodecError::TrailingBytes(_)) => {
                InvalidToken::Damaged(other.to_string())
            }
        })?;
        if token.seeds.is_empty() {
            return Err(InvalidToken::NoSeeds);
        }
        Ok(token)
    }
}

impl JoinTokenText {
    /// SHA-256 of the secret: `facts::JoinToken::hash`.
    pub fn hash(&self) -> [u8; 32] {
        sha256(&self.secret)
    }

    /// The id and secret as [`JoinRequest`] carries them.
    pub(crate) fn credentials(&self) -> (String, String) {
        (self.id.to_string(), HEXLOWER.encode(&self.secret))
    }
}

/// The token's id and the hash of its secret, out of a request to join: what
/// `facts::Command::AddNode` wants. `None` when they are not of that form.
pub fn presented(request: &JoinRequest) -> Option<(TokenId, [u8; 32])> {
    let id = request.token.parse().ok()?;
    let secret = HEXLOWER.decode(request.secret.as_bytes()).ok().filter(|secret| secret.len() == 32)?;
    Some((id, sha256(&secret)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token(seeds: Vec<SocketAddr>) -> JoinTokenText {
        JoinTokenText { seeds, authority_sha256: [7; 32], id: TokenId(ulid::Ulid(5)), secret: [9; 32] }
    }

    #[test]
    fn a_token_reads_back_what_it_was_made_of() {
        let token = token(vec!["127.0.0.1:4000".parse().unwrap(), "[::1]:4001".parse().unwrap()]);
        assert_eq!(format!(" {token}\n").parse::<JoinTokenText>().unwrap(), token);
        assert!(!format!("{token:?}").contains("09, 9") && !format!("{token:?}").contains("secret"));
    }

    #[test]
    fn other_texts_are_refused_with_the_next_step() {
        assert_eq!("hello".parse::<JoinTokenText>(), Err(InvalidToken::Prefix));
        let whole = token(vec!["127.0.0.1:1".parse().unwrap()]).to_string();
        let cut = whole[..whole.len() - 6].parse::<JoinTokenText>().unwrap_err();
        assert!(cut.to_string().contains("skein node token"), "{cut}");
        assert_eq!(token(vec![]).to_string().parse::<JoinTokenText>(), Err(InvalidToken::NoSeeds));
    }

    /// Found by fuzzing: a length that is one letter off makes the secret a part of the id.
    #[test]
    fn an_error_does_not_repeat_what_it_read() {
        let whole = token(vec!["127.0.0.1:1".parse().unwrap()]).to_string();
        let id = HEXLOWER.encode(TokenId(ulid::Ulid(5)).to_string().as_bytes());
        let (before, behind) = whole.split_once(&format!("1a{id}")).expect("26 letters");
        let error = format!("{before}24{id}{behind}").parse::<JoinTokenText>().unwrap_err();
        assert_eq!(error, InvalidToken::Damaged("malformed".to_owned()));
    }

    #[test]
    fn the_registry_finds_the_hash_of_what_was_presented() {
        let token = token(vec![]);
        let (id, secret) = token.credentials();
        let request = |secret: &str| JoinRequest {
            token: id.clone(),
            secret: secret.into(),
            name: None,
            region: "iad".parse().unwrap(),
            csr: vec![],
            backhaul: "127.0.0.1:1".parse().unwrap(),
        };
        assert_eq!(presented(&request(&secret)), Some((token.id, token.hash())));
        assert_eq!(presented(&request("zz")), None);
        assert_eq!(presented(&request(&secret[2..])), None);
    }

    proptest! {
        #[test]
        fn any_text_is_a_token_or_an_error(
            text in "(skein1\\.)?.{0,80}",
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            for text in [text, format!("{PREFIX}{}", HEXLOWER.encode(&bytes)), format!("{PREFIX}01{}", HEXLOWER.encode(&bytes))] {
                match text.parse::<JoinTokenText>() {
                    Ok(token) => prop_assert_eq!(token.to_string().parse(), Ok(token)),
                    Err(error) => prop_assert!(error.to_string().len() < 300, "{}", error),
                }
            }
        }
    }
}
