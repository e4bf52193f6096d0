//! How a node comes to its identity: it has one, founds a cluster, or joins one.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Context as _;
use skein_cluster::clock;
use skein_cluster::entropy::Entropy;
use skein_cluster::identity::Identity;
use skein_cluster::join::{self, JoinArgs};
use skein_cluster::registry::RaftRegistry;
use skein_core::facts::{Command, Scope, Settings, Token};
use skein_core::{OrgId, TokenId};

use super::config::NodeConfig;
use super::files;
use crate::api::TokenText;

/// The file that holds the operator's token, at the node that founded the cluster.
pub const OPERATOR_TOKEN: &str = "operator.token";

/// The first network of TEST-NET-3 (RFC 5737), its first address shared.
const V4_POOL: [u8; 3] = [203, 0, 113];
/// A network of the documentation prefix (RFC 3849).
const V6_POOL: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x5ce1, 0, 0, 0, 0, 0);

/// How a node came to its identity.
pub(super) struct Found {
    /// The identity.
    pub(super) identity: Identity,
    /// Whether the node founds its cluster: now, or it is to finish what a crash interrupted.
    pub(super) founding: bool,
    /// Whether it joined now: only then may its registry be empty.
    pub(super) fresh: bool,
}

/// The identity of the node.
pub(super) async fn identity(config: &NodeConfig, backhaul: SocketAddr) -> anyhow::Result<Found> {
    let data_dir = &config.data_dir;
    if let Some(identity) = Identity::load(data_dir)? {
        return Ok(Found { identity, founding: config.bootstrap, fresh: false });
    }
    if config.bootstrap {
        let name = config.name.clone().context("a node that founds a cluster needs a `name`")?;
        return Ok(Found { identity: Identity::found(data_dir, name)?, founding: true, fresh: true });
    }
    let token = config.join.as_deref().with_context(|| {
        format!(
            "{} holds no identity: give `join` a token from `skein node token`, or `bootstrap = true` for a new cluster",
            data_dir.display()
        )
    })?;
    let args =
        JoinArgs { data_dir: data_dir.clone(), name: config.name.clone(), region: config.region, backhaul };
    let (identity, _) = join::join(token, args).await?;
    identity.save(data_dir)?;
    Ok(Found { identity, founding: false, fresh: true })
}

/// Founds the cluster's registry, or finishes what a crash interrupted: each step is done once.
pub(super) async fn registry(
    registry: &RaftRegistry,
    identity: &Identity,
    config: &NodeConfig,
    backhaul: SocketAddr,
) -> anyhow::Result<()> {
    let mut commands = Vec::new();
    if registry.state().settings().is_none() {
        let mut rng = Entropy::default();
        let now_ms = clock::unix_ms();
        let operator = TokenText::generate(TokenId::generate(now_ms, &mut rng));
        // Written first: a cluster whose operator has no token could not be used.
        files::write_bytes(&config.data_dir.join(OPERATOR_TOKEN), operator.to_string().as_bytes())?;
        let settings = Settings {
            cluster: OrgId::generate(now_ms, &mut rng).0,
            base_domain: config.base_domain.clone(),
            shared_v4: Ipv4Addr::new(V4_POOL[0], V4_POOL[1], V4_POOL[2], 1),
            v4_pool: V4_POOL,
            v6_pool: V6_POOL,
            authority: identity.authority().to_vec(),
            authority_key: identity
                .sealed_authority_key()
                .context("the founding node has lost the authority's key")?
                .to_vec(),
        };
        let token = Token {
            id: operator.id,
            hash: operator.hash(),
            scope: Scope::Cluster,
            read_only: false,
            name: "operator".into(),
            created_ms: now_ms,
        };
        let slug = "personal".parse()?;
        commands.push(Command::Init { settings, org: OrgId::generate(now_ms, &mut rng), slug, token });
    }
    if registry.state().node(identity.number()).is_none() {
        commands.push(Command::AddFirstNode {
            name: identity.name().clone(),
            region: config.region,
            key: identity.key_hash(),
            backhaul,
        });
    }
    Ok(registry.bootstrap(commands).await?)
}
