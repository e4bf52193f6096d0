//! Who a node is: its key and certificate, the cluster's authority and the data key (SPEC CLU-1).
//!
//! A node's number is proved by its certificate, which the authority signed: the name
//! `n<number>.skein` and the public key. The private key never leaves the data directory.

mod authority;
mod data_key;
mod files;

use std::path::Path;

use ring::digest;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use skein_core::codec;
use skein_core::wire::JoinReply;
use skein_core::{NodeName, NodeNumber};

pub use authority::{Authority, AuthorityError, NodeKey, PeerIdentity, UnreadableCertificate};
pub use data_key::{DataKey, OpenError};
pub use files::StoreError;

const KEY_FILE: &str = "node.key";
const IDENTITY_FILE: &str = "identity";

/// Binds the sealed authority key to its purpose, so that no other secret can stand in for it.
const AUTHORITY_CONTEXT: &str = "skein authority key";

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

/// The name that node `number`'s certificate carries and its peers ask for.
pub fn certificate_name(number: NodeNumber) -> String {
    format!("n{}.skein", number.0)
}

/// Why a node has no usable identity; the operator or a damaged disk caused it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// A file of the data directory could not be read or written.
    #[error("the node's identity cannot be kept")]
    Store(#[from] StoreError),
    /// A file does not hold what this build wrote.
    #[error("{file} in the data directory is damaged: {reason}")]
    Damaged {
        /// The file's name.
        file: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The authority's part failed.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A reply to a join does not fit this node's key or the pinned authority; the member that
    /// answered caused it.
    #[error("the certificate received does not prove this node's identity: {0}")]
    Mismatch(String),
}

/// What the identity file holds, beside the key.
#[derive(Serialize, Deserialize)]
struct Stored {
    number: NodeNumber,
    name: NodeName,
    certificate: Vec<u8>,
    authority: Vec<u8>,
    data_key: DataKey,
    /// Only on the node that founded the cluster.
    sealed_authority_key: Option<Vec<u8>>,
}

/// A node's identity. Immutable; shared by everything that speaks for the node.
pub struct Identity {
    stored: Stored,
    key: NodeKey,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("number", &self.stored.number)
            .field("name", &self.stored.name)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// The identity that `data_dir` holds; `None` when the node never joined.
    ///
    /// # Errors
    /// [`IdentityError`] when files are there and cannot be used.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, IdentityError> {
        let Some(bytes) = files::read(data_dir, IDENTITY_FILE)? else { return Ok(None) };
        let stored: Stored = codec::decode(&bytes)
            .map_err(|error| IdentityError::Damaged { file: IDENTITY_FILE, reason: error.to_string() })?;
        let key = NodeKey::load(data_dir)?.ok_or_else(|| IdentityError::Damaged {
            file: KEY_FILE,
            reason: "it is missing, but the node has an identity".into(),
        })?;
        let identity = Self { stored, key };
        identity.check().map_err(|reason| IdentityError::Damaged { file: IDENTITY_FILE, reason })?;
        Ok(Some(identity))
    }

    /// Founds a cluster: makes the authority and the data key, and this node as number 1. Kept in
    /// `data_dir`; the sealed authority key is kept too until the registry holds it.
    ///
    /// # Errors
    /// [`IdentityError`] when it cannot be written.
    pub fn found(data_dir: &Path, name: NodeName) -> Result<Self, IdentityError> {
        let authority = Authority::generate()?;
        let data_key = DataKey::generate();
        let key = NodeKey::load_or_create(data_dir)?;
        let number = NodeNumber(1);
        let certificate = authority.sign(&key.request()?, number)?;
        let identity = Self {
            stored: Stored {
                number,
                name,
                certificate,
                authority: authority.certificate().to_vec(),
                sealed_authority_key: Some(authority.seal(&data_key)),
                data_key,
            },
            key,
        };
        identity.save(data_dir)?;
        Ok(identity)
    }

    /// The identity that a join gave to the node whose key is `key`. Nothing is written.
    ///
    /// # Errors
    /// [`IdentityError::Mismatch`] when the reply proves something else.
    pub fn from_reply(key: NodeKey, reply: &JoinReply) -> Result<Self, IdentityError> {
        let data_key = <[u8; 32]>::try_from(reply.data_key.as_slice())
            .map_err(|_| IdentityError::Mismatch(format!("a data key of {} bytes", reply.data_key.len())))?;
        let identity = Self {
            stored: Stored {
                number: reply.number,
                name: reply.name.clone(),
                certificate: reply.certificate.clone(),
                authority: reply.authority.clone(),
                data_key: DataKey::from_bytes(data_key),
                sealed_authority_key: None,
            },
            key,
        };
        identity.check().map_err(IdentityError::Mismatch)?;
        Ok(identity)
    }

    /// A member made by `authority` without a join or a directory: for tests and tools that hold the
    /// authority.
    ///
    /// # Errors
    /// [`IdentityError`] when signing fails.
    pub fn issue(
        authority: &Authority,
        data_key: &DataKey,
        number: NodeNumber,
        name: NodeName,
    ) -> Result<Self, IdentityError> {
        let key = NodeKey::generate()?;
        let certificate = authority.sign(&key.request()?, number)?;
        let stored = Stored {
            number,
            name,
            certificate,
            authority: authority.certificate().to_vec(),
            data_key: data_key.clone(),
            sealed_authority_key: None,
        };
        Ok(Self { stored, key })
    }

    /// Writes the identity into `data_dir`, readable by its owner alone.
    ///
    /// # Errors
    /// [`IdentityError::Store`].
    pub fn save(&self, data_dir: &Path) -> Result<(), IdentityError> {
        self.key.save(data_dir)?;
        Ok(files::write(data_dir, IDENTITY_FILE, &codec::encode(&self.stored))?)
    }

    fn check(&self) -> Result<(), String> {
        let peer = PeerIdentity::read(&self.stored.certificate, self.authority())
            .map_err(|error| error.to_string())?;
        if peer.number != self.stored.number {
            return Err(format!("it names node {}, not {}", peer.number, self.stored.number));
        }
        if peer.key != self.key.hash() {
            return Err("it is for another key".into());
        }
        Ok(())
    }

    /// The node's number.
    pub fn number(&self) -> NodeNumber {
        self.stored.number
    }

    /// The node's name.
    pub fn name(&self) -> &NodeName {
        &self.stored.name
    }

    /// SHA-256 of the node's public key (`SubjectPublicKeyInfo`, DER): `facts::Node::key`.
    pub fn key_hash(&self) -> [u8; 32] {
        self.key.hash()
    }

    /// The node's certificate, DER.
    pub fn certificate(&self) -> CertificateDer<'static> {
        CertificateDer::from(self.stored.certificate.clone())
    }

    /// The authority's certificate, DER.
    pub fn authority(&self) -> &[u8] {
        &self.stored.authority
    }

    /// The authority's certificate, PEM: what a client trusts (`ca.pem`).
    pub fn authority_pem(&self) -> String {
        files::pem("CERTIFICATE", &self.stored.authority)
    }

    /// SHA-256 of the authority's certificate: what join tokens pin.
    pub fn authority_sha256(&self) -> [u8; 32] {
        sha256(&self.stored.authority)
    }

    /// The key that secrets of the registry are encrypted under.
    pub fn data_key(&self) -> &DataKey {
        &self.stored.data_key
    }

    /// The authority's key, sealed under the data key, on the node that founded the cluster: what
    /// `facts::Settings::authority_key` gets.
    pub fn sealed_authority_key(&self) -> Option<&[u8]> {
        self.stored.sealed_authority_key.as_deref()
    }

    pub(crate) fn key(&self) -> &NodeKey {
        &self.key
    }
}

#[cfg(test)]
mod tests;
