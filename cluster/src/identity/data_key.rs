//! The data key: 32 bytes that every node of a cluster holds; secrets in the registry rest under it.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};

use crate::entropy;

/// The layout of sealed bytes: this byte, the nonce, the ciphertext, the tag.
const FORMAT: u8 = 1;

/// A key for AES-256-GCM. Its `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataKey([u8; 32]);

/// Sealed bytes that this key does not open: another key, another context, or damage.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the secret does not open: it was sealed under another key or for another purpose, or is damaged")]
pub struct OpenError;

impl std::fmt::Debug for DataKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DataKey(…)")
    }
}

impl DataKey {
    /// A new key.
    pub fn generate() -> Self {
        Self(entropy::secret())
    }

    /// The key of these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key's bytes: for a join's reply and nothing else.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// `plain` encrypted and authenticated; it opens only with the same `context`.
    ///
    /// # Panics
    /// Never: AES-256-GCM takes any input that fits memory.
    pub fn seal(&self, context: &str, plain: &[u8]) -> Vec<u8> {
        // Random nonces are safe here: a cluster seals far fewer than 2³² secrets.
        let nonce: [u8; NONCE_LEN] = entropy::secret();
        let mut bytes = plain.to_vec();
        self.cipher()
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(context.as_bytes()),
                &mut bytes,
            )
            .expect("invariant: a secret is far below the cipher's limit");
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + bytes.len());
        sealed.push(FORMAT);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(&bytes);
        sealed
    }

    /// What [`Self::seal`] was given.
    ///
    /// # Errors
    /// [`OpenError`]; it does not say which of its causes applies.
    pub fn open(&self, context: &str, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        let (&FORMAT, rest) = sealed.split_first().ok_or(OpenError)? else { return Err(OpenError) };
        let (nonce, body) = rest.split_first_chunk::<NONCE_LEN>().ok_or(OpenError)?;
        let mut bytes = body.to_vec();
        let plain = self
            .cipher()
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(context.as_bytes()), &mut bytes)
            .map_err(|_| OpenError)?
            .len();
        bytes.truncate(plain);
        Ok(bytes)
    }

    fn cipher(&self) -> LessSafeKey {
        let key = UnboundKey::new(&AES_256_GCM, &self.0).expect("invariant: the key has 32 bytes");
        LessSafeKey::new(key)
    }
}
