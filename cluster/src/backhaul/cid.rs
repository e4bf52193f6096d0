//! Connection ids and resets that a node recognizes over its restarts.
//!
//! Packets of connections that died with an earlier process get a stateless reset (RFC 9000 section
//! 10.3), so a peer notices a restart within a round trip instead of its idle timeout.

use std::sync::Arc;

use quinn::EndpointConfig;
use quinn::crypto::HmacKey;
use quinn_proto::HashedConnectionIdGenerator;
use ring::hmac;

use crate::identity::Identity;

/// The endpoint's configuration for this identity.
pub(super) fn endpoint(identity: &Identity) -> EndpointConfig {
    let reset = identity.key().derive("skein stateless reset");
    let reset: Arc<dyn HmacKey> = Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &reset));
    let ids = identity.key().derive("skein connection id");
    let [first, ..] = ids.as_chunks::<8>().0 else { unreachable!("32 bytes hold four times eight") };
    let ids = u64::from_le_bytes(*first);
    let mut config = EndpointConfig::new(reset);
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
    config
}
