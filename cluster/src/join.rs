//! Joining a cluster (SPEC CLU-1): the token pins the authority, the key never leaves the new node.
//!
//! One stream on a connection of its own protocol: the request as one codec message, back one codec
//! message with the certificate or the reason why not.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint, VarInt};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use skein_core::wire::{JOIN_ALPN, JoinRefusal, JoinReply, JoinRequest};
use skein_core::{NodeName, Random as _, RegionCode, codec};

use crate::backhaul::tls::{provider, unusable};
use crate::backhaul::{Counters, JOINED, Joiner, TlsError};
use crate::clock;
use crate::entropy::Entropy;
use crate::identity::{Identity, IdentityError, NodeKey, sha256};
use crate::token::{InvalidToken, JoinTokenText};

/// The most bytes of a request or reply.
const LIMIT: usize = 256 << 10;
/// How long one member may take: its registry must agree.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a member may take to answer the handshake.
const DIAL: Duration = Duration::from_secs(4);
/// How long one who joins may take to send its request or take its answer.
const GUEST: Duration = Duration::from_secs(5);

/// What a new node says of itself.
#[derive(Debug, Clone)]
pub struct JoinArgs {
    /// Where its key and identity are kept.
    pub data_dir: PathBuf,
    /// The wanted name; the cluster makes one when `None`.
    pub name: Option<NodeName>,
    /// Its region.
    pub region: RegionCode,
    /// Where its backhaul listens.
    pub backhaul: SocketAddr,
}

/// Why a node did not join.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// The text is no join token; who typed it caused it.
    #[error(transparent)]
    Token(#[from] InvalidToken),
    /// The cluster said no: the token is wrong, expired or used up, or the name is taken.
    #[error("the cluster refused the join: {0}")]
    Refused(String),
    /// Members answered, but for as long as was asked none could have the join decided; the last one's
    /// reason. The node may have been admitted: joining again with the same key is safe.
    #[error("the cluster could not decide on the join: {0}")]
    Undecided(String),
    /// No member could be asked.
    #[error("no member of the cluster could be asked to join: {}", .0.join("; "))]
    Unreachable(Vec<String>),
    /// What was received or is stored does not fit.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Asks the members that the token names, one after the other, and keeps the identity that the first
/// to admit it gives. While one answers that its registry cannot decide, all are asked again, for a
/// minute at most. The node's key is written before anyone is asked.
///
/// # Errors
/// [`JoinError`]. A member's refusal is final; a member that cannot be reached is not.
pub async fn join(token: &str, args: JoinArgs) -> Result<(Identity, JoinReply), JoinError> {
    join_within(token, args, &Retries::default()).await
}

/// How often members that cannot decide now are asked again.
#[derive(Debug)]
struct Retries {
    /// The pause after the first round; doubled after each.
    first: Duration,
    /// The longest pause.
    longest: Duration,
    /// All rounds but the first end within this time of the first one's start.
    within: Duration,
    /// How long one member may take: its registry must agree.
    patience: Duration,
}

impl Default for Retries {
    fn default() -> Self {
        // A registry that lost its leader has another within some two seconds.
        Self {
            first: Duration::from_millis(250),
            longest: Duration::from_secs(4),
            within: Duration::from_secs(60),
            patience: PATIENCE,
        }
    }
}

async fn join_within(
    token: &str,
    args: JoinArgs,
    retries: &Retries,
) -> Result<(Identity, JoinReply), JoinError> {
    let token: JoinTokenText = token.parse()?;
    let key = NodeKey::load_or_create(&args.data_dir)?;
    let (id, secret) = token.credentials();
    let request = JoinRequest {
        token: id,
        secret,
        name: args.name,
        region: args.region,
        csr: key.request().map_err(IdentityError::from)?,
        backhaul: args.backhaul,
    };
    let reply = ask_until_decided(&token, &request, retries).await?;
    if sha256(&reply.authority) != token.authority_sha256 {
        let reason = "another authority than the token's".to_owned();
        return Err(IdentityError::Mismatch(reason).into());
    }
    let identity = Identity::from_reply(key, &reply)?;
    identity.save(&args.data_dir)?;
    Ok((identity, reply))
}

async fn ask_until_decided(
    token: &JoinTokenText,
    request: &JoinRequest,
    retries: &Retries,
) -> Result<JoinReply, JoinError> {
    let deadline = clock::now() + retries.within;
    let mut entropy = Entropy::default();
    let mut longest = retries.first;
    let mut decided = ask_seeds(token, request, retries.patience).await;
    while let Err(JoinError::Undecided(reason)) = &decided {
        // Nodes that join together must not ask together for ever.
        let pause = longest.mul_f64(0.5 + entropy.fraction() / 2.0);
        longest = (longest * 2).min(retries.longest);
        tracing::warn!(reason, again_in = ?pause, "the join is not decided yet");
        let again = async {
            tokio::time::sleep(pause).await;
            ask_seeds(token, request, retries.patience).await
        };
        match tokio::time::timeout_at(deadline.into(), again).await {
            Ok(answer) => decided = answer,
            Err(_) => break,
        }
    }
    decided
}

async fn ask_seeds(
    token: &JoinTokenText,
    request: &JoinRequest,
    patience: Duration,
) -> Result<JoinReply, JoinError> {
    let config = client_config(token.authority_sha256)?;
    let mut failures = Vec::new();
    let mut undecided = None;
    for seed in &token.seeds {
        match tokio::time::timeout(patience, ask(*seed, config.clone(), request)).await {
            Ok(Ok(Ok(reply))) => return Ok(reply),
            Ok(Ok(Err(JoinRefusal::Final(reason)))) => return Err(JoinError::Refused(reason)),
            Ok(Ok(Err(JoinRefusal::NotNow(reason)))) => undecided = Some(reason),
            Ok(Err(failure)) => failures.push(format!("{seed}: {failure}")),
            // It may have admitted the node all the same: asking again spends no further use.
            Err(_) => undecided = Some(format!("{seed}: no answer in {patience:?}")),
        }
    }
    Err(undecided.map_or(JoinError::Unreachable(failures), JoinError::Undecided))
}

type Answer = Result<JoinReply, JoinRefusal>;

async fn ask(seed: SocketAddr, config: quinn::ClientConfig, request: &JoinRequest) -> Result<Answer, String> {
    let any: SocketAddr = match seed {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let endpoint = Endpoint::client(any).map_err(|error| error.to_string())?;
    let connecting = endpoint.connect_with(config, seed, "join.skein").map_err(|error| error.to_string())?;
    let connection = tokio::time::timeout(DIAL, connecting)
        .await
        .map_err(|_| format!("no answer in {} s", DIAL.as_secs()))?
        .map_err(|error| error.to_string())?;
    let answer = exchange(&connection, request).await;
    connection.close(JOINED, b"");
    endpoint.wait_idle().await;
    match answer {
        Ok(bytes) => codec::decode(&bytes).map_err(|error| error.to_string()),
        // A member that was reached and then lost may be overloaded; it may have admitted the node.
        Err(lost) => Ok(Err(JoinRefusal::NotNow(format!("{seed}: {lost}")))),
    }
}

async fn exchange(connection: &Connection, request: &JoinRequest) -> Result<Vec<u8>, String> {
    let (mut send, mut receive) = connection.open_bi().await.map_err(|error| error.to_string())?;
    send.write_all(&codec::encode(request)).await.map_err(|error| error.to_string())?;
    send.finish().map_err(|error| error.to_string())?;
    receive.read_to_end(LIMIT).await.map_err(|error| error.to_string())
}

/// Answers one who joins, then closes the connection.
pub(crate) async fn answer(connection: Connection, joiner: &dyn Joiner, counters: &Counters) {
    // A guest has no certificate: it gets one stream and little else.
    connection.set_max_concurrent_uni_streams(VarInt::from_u32(0));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(1));
    let from = connection.remote_address();
    let asked = tokio::time::timeout(GUEST, async {
        let (send, mut receive) = connection.accept_bi().await.ok()?;
        let bytes = receive.read_to_end(LIMIT).await.ok()?;
        Some((send, codec::decode::<JoinRequest>(&bytes)))
    });
    let Ok(Some((mut send, request))) = asked.await else {
        return connection.close(JOINED, b"no request");
    };
    let answer = match request {
        Ok(request) => joiner.join(request, from).await,
        Err(error) => Err(JoinRefusal::Final(format!("the request cannot be read: {error}"))),
    };
    let counter = if answer.is_ok() { &counters.joined } else { &counters.joins_refused };
    counter.fetch_add(1, Ordering::Relaxed);
    let delivered = async {
        send.write_all(&codec::encode(&answer)).await.ok()?;
        send.finish().ok()?;
        // The guest closes once it has the answer.
        connection.closed().await;
        Some(())
    };
    if tokio::time::timeout(GUEST, delivered).await.is_err() {
        connection.close(JOINED, b"");
    }
}

fn client_config(authority_sha256: [u8; 32]) -> Result<quinn::ClientConfig, TlsError> {
    let verifier = Pinned { authority_sha256, provider: provider() };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![JOIN_ALPN.to_vec()];
    Ok(quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).map_err(unusable)?)))
}

/// Believes a certificate that was signed by the authority of that hash, whatever its name: which
/// member answers does not matter.
#[derive(Debug)]
struct Pinned {
    authority_sha256: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates
            .iter()
            .find(|certificate| sha256(certificate) == self.authority_sha256)
            .ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &roots,
            &[],
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("QUIC has no TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
