use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use skein_cluster::Tasks;
use skein_cluster::clock;
use skein_cluster::identity::{Identity, NodeKey};
use skein_cluster::registry::{RaftTransport, RegistryConfig};
use skein_core::facts::{JoinToken, Scope, Settings, Token};
use skein_core::{NodeNumber, OrgId, TokenId};
use ulid::Ulid;

use super::*;

/// A registry of one node speaks to nobody.
struct Alone;

impl RaftTransport for Alone {
    fn call(
        &self,
        to: NodeNumber,
        _: Bytes,
        _: Duration,
    ) -> skein_cluster::BoxFuture<'static, Result<Bytes, String>> {
        Box::pin(async move { Err(format!("node {to} is not there")) })
    }
    fn reachable(&self, _: NodeNumber) -> bool {
        false
    }
}

struct Founder {
    admission: Admission,
    identity: Identity,
    dir: tempfile::TempDir,
}

async fn founder() -> Founder {
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity::found(dir.path(), "iad-1".parse().unwrap()).unwrap();
    let config = RegistryConfig::new(NodeNumber(1), dir.path().join("registry"));
    let registry = RaftRegistry::open(config, Arc::new(Alone), &Tasks::current()).await.unwrap();
    let admission = Admission { registry, data_key: identity.data_key().clone() };
    Founder { admission, identity, dir }
}

const SECRET: [u8; 32] = [9; 32];

impl Founder {
    async fn found(&self, uses_left: u32) {
        let token = |id| TokenId(Ulid(id));
        let settings = Settings {
            cluster: Ulid(1),
            base_domain: "localhost".into(),
            shared_v4: [203, 0, 113, 1].into(),
            v4_pool: [203, 0, 113],
            v6_pool: "2001:db8::".parse().unwrap(),
            authority: self.identity.authority().to_vec(),
            authority_key: self.identity.sealed_authority_key().unwrap().to_vec(),
        };
        let operator = Token {
            id: token(1),
            hash: [0; 32],
            scope: Scope::Cluster,
            read_only: false,
            name: String::new(),
            created_ms: 0,
        };
        let hash = skein_cluster::identity::sha256(&SECRET);
        let join = JoinToken { id: token(5), hash, expires_ms: clock::unix_ms() + 600_000, uses_left };
        let commands = vec![
            Command::Init {
                settings,
                org: OrgId(Ulid(1)),
                slug: "personal".parse().unwrap(),
                token: operator,
            },
            Command::AddFirstNode {
                name: "iad-1".parse().unwrap(),
                region: "iad".parse().unwrap(),
                key: self.identity.key_hash(),
                backhaul: "127.0.0.1:1".parse().unwrap(),
            },
            Command::CreateJoinToken { token: join },
        ];
        self.admission.registry.bootstrap(commands).await.unwrap();
    }

    async fn join(&self, key: &NodeKey, secret: [u8; 32]) -> Result<JoinReply, JoinRefusal> {
        let request = JoinRequest {
            token: TokenId(Ulid(5)).to_string(),
            secret: data_encoding::HEXLOWER.encode(&secret),
            name: None,
            region: "iad".parse().unwrap(),
            csr: key.request().unwrap(),
            backhaul: "127.0.0.1:2".parse().unwrap(),
        };
        self.admission.join(request, "127.0.0.1:3".parse().unwrap()).await
    }

    async fn close(self) {
        self.admission.registry.shutdown().await;
        self.dir.close().unwrap();
    }
}

/// SPEC CLU-1: the answer to a join may get lost.
#[tokio::test]
async fn a_join_that_is_repeated_gives_the_same_node_again_also_when_the_token_is_used_up() {
    let founder = founder().await;
    founder.found(1).await;
    let key = NodeKey::generate().unwrap();
    let first = founder.join(&key, SECRET).await.unwrap();
    assert_eq!((first.number, first.name.as_str()), (NodeNumber(2), "iad-2"));
    let again = founder.join(&key, SECRET).await.unwrap();
    assert_eq!((again.number, &again.name), (first.number, &first.name));
    Identity::from_reply(key, &again).unwrap();

    let other = NodeKey::generate().unwrap();
    let used = founder.join(&other, SECRET).await.unwrap_err();
    assert_eq!(used, JoinRefusal::Final(Refusal::JoinTokenUsed.to_string()));
    let wrong = founder.join(&other, [0; 32]).await.unwrap_err();
    assert_eq!(wrong, JoinRefusal::Final(Refusal::JoinTokenInvalid.to_string()));
    founder.close().await;
}

#[tokio::test]
async fn what_cannot_be_decided_now_may_be_asked_again() {
    let founder = founder().await;
    let key = NodeKey::generate().unwrap();
    let unknown = founder.join(&key, SECRET).await.unwrap_err();
    assert!(matches!(unknown, JoinRefusal::NotNow(_)), "{unknown:?}");
    founder.found(1).await;
    founder.join(&key, SECRET).await.unwrap();
    // A registry that has stopped decides nothing more; another member's may.
    founder.admission.registry.shutdown().await;
    let stopped = founder.join(&key, SECRET).await.unwrap_err();
    assert!(matches!(stopped, JoinRefusal::NotNow(_)), "{stopped:?}");
    founder.close().await;
}

#[test]
fn only_the_facts_refusal_is_final() {
    let minority = ProposeError::NoMajority { reached: 1, voters: 3 };
    assert_eq!(not_proposed(minority.clone()), JoinRefusal::NotNow(minority.to_string()));
    assert_eq!(not_proposed(ProposeError::Timeout), JoinRefusal::NotNow(ProposeError::Timeout.to_string()));
    let taken = Refusal::NameTaken("iad-1".into());
    assert_eq!(not_proposed(taken.clone().into()), JoinRefusal::Final(taken.to_string()));
}
