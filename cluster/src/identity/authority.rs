//! The cluster's certificate authority, the keys it certifies, and what a certificate proves.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use skein_core::NodeNumber;
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::GeneralName;

use super::{AUTHORITY_CONTEXT, DataKey, IdentityError, KEY_FILE, certificate_name, files, sha256};
use crate::clock;

/// How long the authority lives.
const AUTHORITY_YEARS: i64 = 30;
/// How long a node's certificate lives.
const NODE_YEARS: i64 = 10;

/// Why the authority could not sign or be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// The certificate request is not one, or its signature is wrong: who asks does not hold the key.
    #[error("the certificate request is not valid: {0}")]
    Request(String),
    /// The registry's authority key does not open under this node's data key.
    #[error("the authority's key does not open under this node's data key")]
    Sealed(#[from] super::OpenError),
    /// A key or certificate of the authority cannot be used.
    #[error("the authority's key or certificate cannot be used: {0}")]
    Unusable(String),
}

fn unusable(error: rcgen::Error) -> AuthorityError {
    AuthorityError::Unusable(error.to_string())
}

/// Signs nodes' certificates. Only nodes that hold the data key can open it.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority(…)")
    }
}

impl Authority {
    /// A new authority.
    ///
    /// # Errors
    /// [`AuthorityError::Unusable`] when the key cannot be made.
    pub fn generate() -> Result<Self, AuthorityError> {
        let key = KeyPair::generate().map_err(unusable)?;
        let mut params = params(AUTHORITY_YEARS, "Skein authority")?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(unusable)?.der().clone();
        Ok(Self { certificate, issuer: Issuer::new(params, key) })
    }

    /// The authority that the registry holds: `facts::Settings::authority` and `authority_key`.
    ///
    /// # Errors
    /// [`AuthorityError`] when the key does not open or does not belong to the certificate.
    pub fn open(certificate: &[u8], sealed_key: &[u8], data_key: &DataKey) -> Result<Self, AuthorityError> {
        let pkcs8 = data_key.open(AUTHORITY_CONTEXT, sealed_key)?;
        let key = key_pair(&pkcs8).map_err(unusable)?;
        let certificate = CertificateDer::from(certificate.to_vec());
        let (_, certified) =
            parse(&certificate).map_err(|error| AuthorityError::Unusable(error.to_string()))?;
        if certified != sha256(&key.subject_public_key_info()) {
            return Err(AuthorityError::Unusable("the key is not the certificate's".into()));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(unusable)?;
        Ok(Self { certificate, issuer })
    }

    /// The authority's private key (PKCS#8), sealed: what the registry keeps.
    pub fn seal(&self, data_key: &DataKey) -> Vec<u8> {
        data_key.seal(AUTHORITY_CONTEXT, self.issuer.key().serialized_der())
    }

    /// The authority's certificate, DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// A certificate for node `number`, DER. Of the request only the key counts; its signature proves
    /// that the asker holds it.
    ///
    /// # Errors
    /// [`AuthorityError::Request`] when the asker caused it.
    pub fn sign(&self, request: &[u8], number: NodeNumber) -> Result<Vec<u8>, AuthorityError> {
        let invalid = |error: rcgen::Error| AuthorityError::Request(error.to_string());
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))
            .map_err(invalid)?;
        let name = certificate_name(number);
        let mut params = params(NODE_YEARS, &name)?;
        params.subject_alt_names = vec![SanType::DnsName(name.try_into().map_err(unusable)?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&request.public_key, &self.issuer).map_err(unusable)?;
        Ok(certificate.der().to_vec())
    }

    /// SHA-256 of the key in a certificate request: what the registry keeps of a node.
    ///
    /// # Errors
    /// [`AuthorityError::Request`] when it is not a request signed by its key.
    pub fn request_key(request: &[u8]) -> Result<[u8; 32], AuthorityError> {
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))
            .map_err(|error| AuthorityError::Request(error.to_string()))?;
        Ok(sha256(&request.public_key.subject_public_key_info()))
    }
}

fn params(years: i64, name: &str) -> Result<CertificateParams, AuthorityError> {
    let now = OffsetDateTime::from_unix_timestamp((clock::unix_ms() / 1000) as i64)
        .map_err(|error| AuthorityError::Unusable(error.to_string()))?;
    let mut params = CertificateParams::default();
    // Nodes whose clocks are behind must accept it too.
    params.not_before = now - Duration::days(1);
    params.not_after = now + Duration::days(365 * years);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

fn key_pair(pkcs8: &[u8]) -> Result<KeyPair, rcgen::Error> {
    KeyPair::try_from(pkcs8)
}

/// A node's private key.
pub struct NodeKey(KeyPair);

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeKey(…)")
    }
}

impl NodeKey {
    /// A new key, not kept anywhere.
    ///
    /// # Errors
    /// [`AuthorityError::Unusable`] when it cannot be made.
    pub fn generate() -> Result<Self, AuthorityError> {
        Ok(Self(KeyPair::generate().map_err(unusable)?))
    }

    /// The key in `data_dir`; a new one is written there first when there is none. A join that is
    /// repeated after a crash so uses the same key.
    ///
    /// # Errors
    /// [`IdentityError`] when the file is damaged or cannot be written.
    pub fn load_or_create(data_dir: &Path) -> Result<Self, IdentityError> {
        if let Some(key) = Self::load(data_dir)? {
            return Ok(key);
        }
        let key = Self::generate()?;
        key.save(data_dir)?;
        Ok(key)
    }

    pub(super) fn load(data_dir: &Path) -> Result<Option<Self>, IdentityError> {
        let Some(pem) = files::read(data_dir, KEY_FILE)? else { return Ok(None) };
        let damaged = |reason: String| IdentityError::Damaged { file: KEY_FILE, reason };
        let der = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|error| damaged(error.to_string()))?;
        let key = key_pair(der.secret_pkcs8_der()).map_err(|error| damaged(error.to_string()))?;
        Ok(Some(Self(key)))
    }

    pub(super) fn save(&self, data_dir: &Path) -> Result<(), IdentityError> {
        let pem = files::pem("PRIVATE KEY", self.0.serialized_der());
        Ok(files::write(data_dir, KEY_FILE, pem.as_bytes())?)
    }

    /// A certificate request for this key, DER.
    ///
    /// # Errors
    /// [`AuthorityError::Unusable`] when the key cannot sign.
    pub fn request(&self) -> Result<Vec<u8>, AuthorityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        Ok(params.serialize_request(&self.0).map_err(unusable)?.der().to_vec())
    }

    /// SHA-256 of the public key.
    pub fn hash(&self) -> [u8; 32] {
        sha256(&self.0.subject_public_key_info())
    }

    /// The private key for TLS.
    pub(crate) fn private(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.serialized_der().to_vec()))
    }

    /// A secret that only this key's holder can derive, for one purpose.
    pub(crate) fn derive(&self, purpose: &str) -> [u8; 32] {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, self.0.serialized_der());
        let mut bytes = [0; 32];
        bytes.copy_from_slice(ring::hmac::sign(&key, purpose.as_bytes()).as_ref());
        bytes
    }
}

/// What a node's certificate proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The node.
    pub number: NodeNumber,
    /// SHA-256 of its public key.
    pub key: [u8; 32],
}

/// A certificate that proves no node of this cluster; who presented it caused it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnreadableCertificate {
    /// There is none.
    #[error("it has no certificate")]
    Missing,
    /// Not X.509.
    #[error("it is not a certificate")]
    NotX509,
    /// It does not name one node.
    #[error("it does not name a node")]
    NoNumber,
    /// Another authority signed it.
    #[error("this cluster's authority did not sign it")]
    Stranger,
}

/// The node that a certificate names, if it names one, and its key's hash.
fn parse(certificate: &[u8]) -> Result<(Option<NodeNumber>, [u8; 32]), UnreadableCertificate> {
    let (rest, x509) =
        x509_parser::parse_x509_certificate(certificate).map_err(|_| UnreadableCertificate::NotX509)?;
    if !rest.is_empty() {
        return Err(UnreadableCertificate::NotX509);
    }
    let alternatives = x509.subject_alternative_name().map_err(|_| UnreadableCertificate::NotX509)?;
    let names = alternatives.iter().flat_map(|alternatives| &alternatives.value.general_names);
    let mut numbers = names.filter_map(|name| {
        let GeneralName::DNSName(name) = name else { return None };
        number_of(name)
    });
    let number = numbers.next().filter(|_| numbers.next().is_none());
    Ok((number, sha256(x509.tbs_certificate.subject_pki.raw)))
}

fn number_of(name: &str) -> Option<NodeNumber> {
    let number = NodeNumber(name.strip_prefix('n')?.strip_suffix(".skein")?.parse().ok()?);
    (certificate_name(number) == name).then_some(number)
}

impl PeerIdentity {
    /// What a certificate says whose chain and signature were verified by TLS before.
    ///
    /// # Errors
    /// [`UnreadableCertificate`].
    pub fn of_verified(certificate: &[u8]) -> Result<Self, UnreadableCertificate> {
        let (number, key) = parse(certificate)?;
        Ok(Self { number: number.ok_or(UnreadableCertificate::NoNumber)?, key })
    }

    /// What a certificate says, once its signature by `authority` (DER) was verified here.
    ///
    /// # Errors
    /// [`UnreadableCertificate`].
    pub fn read(certificate: &[u8], authority: &[u8]) -> Result<Self, UnreadableCertificate> {
        let identity = Self::of_verified(certificate)?;
        let (_, leaf) =
            x509_parser::parse_x509_certificate(certificate).map_err(|_| UnreadableCertificate::NotX509)?;
        let (_, root) =
            x509_parser::parse_x509_certificate(authority).map_err(|_| UnreadableCertificate::Stranger)?;
        leaf.verify_signature(Some(root.public_key())).map_err(|_| UnreadableCertificate::Stranger)?;
        Ok(identity)
    }
}
