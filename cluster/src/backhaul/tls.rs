//! TLS 1.3 for backhaul: mutual, both ends signed by the cluster's authority, ring as the provider.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;
use skein_core::wire::{ALPN, JOIN_ALPN};

use crate::identity::Identity;

/// TLS that cannot be set up: the identity's key or certificates do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the node's identity does not work for TLS: {0}")]
pub struct TlsError(String);

pub(crate) fn unusable(error: impl std::fmt::Display) -> TlsError {
    TlsError(error.to_string())
}

/// The provider, passed explicitly: a library installs nothing process-wide.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(identity: &Identity) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(identity.authority().to_vec())).map_err(unusable)?;
    Ok(Arc::new(roots))
}

/// The node's certificate and the authority's: one who joins knows only the latter's hash.
fn chain(identity: &Identity) -> Vec<CertificateDer<'static>> {
    vec![identity.certificate(), CertificateDer::from(identity.authority().to_vec())]
}

/// Accepts nodes, and those who join: they have no certificate yet, so who has none gets no further
/// than the join protocol (`serve::admit`).
pub(super) fn server(identity: &Identity) -> Result<Arc<QuicServerConfig>, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(identity)?, provider())
        .allow_unauthenticated()
        .build()
        .map_err(unusable)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(unusable)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain(identity), identity.key().private())
        .map_err(unusable)?;
    config.alpn_protocols = vec![ALPN.to_vec(), JOIN_ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(Arc::new(QuicServerConfig::try_from(config).map_err(unusable)?))
}

/// Dials nodes: the name asked for is the number's, so another member cannot stand in for it.
pub(super) fn client(identity: &Identity) -> Result<Arc<QuicClientConfig>, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(unusable)?
        .with_root_certificates(roots(identity)?)
        .with_client_auth_cert(chain(identity), identity.key().private())
        .map_err(unusable)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(QuicClientConfig::try_from(config).map_err(unusable)?))
}
