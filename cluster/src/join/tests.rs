use std::sync::Mutex;

use skein_core::{NodeNumber, TokenId};

use super::*;
use crate::backhaul::{Backhaul, BackhaulConfig, FrameStream, Inbound};
use crate::identity::Authority;
use crate::link::LinkTable;
use crate::token::presented;
use crate::{BoxFuture, clock};

struct Nothing;

impl Inbound for Nothing {
    fn request(
        &self,
        _: NodeNumber,
        _: skein_core::wire::Preamble,
        _: FrameStream,
    ) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
    fn ask(
        &self,
        _: NodeNumber,
        _: skein_core::wire::Ask,
    ) -> BoxFuture<'static, Result<bytes::Bytes, String>> {
        Box::pin(std::future::ready(Err("nothing is answered here".into())))
    }
    fn gossip(&self, _: NodeNumber, _: bytes::Bytes) {}
}

/// Admits by the rules of the registry, without one.
struct Gate {
    founder: Arc<Identity>,
    token: JoinTokenText,
    uses: Mutex<u32>,
    expires_ms: u64,
    /// Requests that it cannot decide on first.
    undecided: Mutex<u32>,
    /// Requests that it never answers, before those.
    silent: Mutex<u32>,
}

impl Joiner for Gate {
    fn join(
        &self,
        request: JoinRequest,
        _: SocketAddr,
    ) -> BoxFuture<'static, Result<JoinReply, JoinRefusal>> {
        let mut silent = self.silent.lock().unwrap();
        if let Some(left) = silent.checked_sub(1) {
            *silent = left;
            return Box::pin(std::future::pending());
        }
        let mut undecided = self.undecided.lock().unwrap();
        if let Some(left) = undecided.checked_sub(1) {
            *undecided = left;
            let reason = format!("no majority, {left} more times");
            return Box::pin(std::future::ready(Err(JoinRefusal::NotNow(reason))));
        }
        let admit = || {
            if presented(&request) != Some((self.token.id, self.token.hash())) {
                return Err("the join token is not valid".to_owned());
            }
            if clock::unix_ms() >= self.expires_ms {
                return Err("the join token has expired".to_owned());
            }
            let mut uses = self.uses.lock().unwrap();
            *uses = uses.checked_sub(1).ok_or("the join token has been used up")?;
            let founder = &self.founder;
            let sealed = founder.sealed_authority_key().unwrap();
            let authority = Authority::open(founder.authority(), sealed, founder.data_key()).unwrap();
            Ok(JoinReply {
                number: NodeNumber(2),
                name: request.name.clone().unwrap_or_else(|| "iad-2".parse().unwrap()),
                certificate: authority.sign(&request.csr, NodeNumber(2)).map_err(|e| e.to_string())?,
                authority: founder.authority().to_vec(),
                data_key: founder.data_key().expose().to_vec(),
                peers: vec![(NodeNumber(1), "127.0.0.1:1".parse().unwrap())],
            })
        };
        Box::pin(std::future::ready(admit().map_err(JoinRefusal::Final)))
    }
}

struct Member {
    backhaul: Backhaul,
    token: JoinTokenText,
    founder: Arc<Identity>,
    _dir: tempfile::TempDir,
}

fn member(uses: u32, expires_ms: u64) -> Member {
    undecided_member(uses, expires_ms, 0)
}

fn undecided_member(uses: u32, expires_ms: u64, undecided: u32) -> Member {
    member_that(uses, expires_ms, undecided, 0)
}

fn member_that(uses: u32, expires_ms: u64, undecided: u32, silent: u32) -> Member {
    let dir = tempfile::tempdir().unwrap();
    let founder = Arc::new(Identity::found(dir.path(), "iad-1".parse().unwrap()).unwrap());
    let config = BackhaulConfig::new("127.0.0.1:0".parse().unwrap(), "iad".parse().unwrap());
    let backhaul =
        Backhaul::bind(config, Arc::clone(&founder), LinkTable::default(), Arc::default()).unwrap();
    let token = JoinTokenText {
        seeds: vec![backhaul.local_addr()],
        authority_sha256: founder.authority_sha256(),
        id: TokenId(ulid::Ulid(5)),
        secret: crate::entropy::secret(),
    };
    let gate = Gate {
        founder: Arc::clone(&founder),
        token: token.clone(),
        uses: Mutex::new(uses),
        expires_ms,
        undecided: Mutex::new(undecided),
        silent: Mutex::new(silent),
    };
    backhaul.serve(Arc::new(Nothing), Arc::new(gate));
    Member { backhaul, token, founder, _dir: dir }
}

fn args(dir: &tempfile::TempDir) -> JoinArgs {
    JoinArgs {
        data_dir: dir.path().to_owned(),
        name: None,
        region: "iad".parse().unwrap(),
        backhaul: "127.0.0.1:4000".parse().unwrap(),
    }
}

async fn refusal(token: &JoinTokenText) -> JoinError {
    let dir = tempfile::tempdir().unwrap();
    let error = join(&token.to_string(), args(&dir)).await.unwrap_err();
    assert!(Identity::load(dir.path()).unwrap().is_none(), "nothing is kept of a refused join");
    error
}

#[tokio::test]
async fn a_node_with_the_token_joins_keeps_its_identity_and_a_used_token_joins_nobody() {
    let member = member(1, u64::MAX);
    let dir = tempfile::tempdir().unwrap();
    let (identity, reply) = join(&member.token.to_string(), args(&dir)).await.unwrap();
    assert_eq!((identity.number(), identity.name().as_str()), (NodeNumber(2), "iad-2"));
    assert_eq!(identity.data_key(), member.founder.data_key());
    assert_eq!(reply.peers.len(), 1);
    let kept = Identity::load(dir.path()).unwrap().unwrap();
    assert_eq!(kept.key_hash(), identity.key_hash());
    assert_eq!(refusal(&member.token).await, JoinError::Refused("the join token has been used up".into()));
    let counts = member.backhaul.counts();
    assert_eq!((counts.joined, counts.joins_refused, counts.strangers), (1, 1, 0));
}

#[tokio::test]
async fn a_wrong_secret_and_an_expired_token_are_refused_in_the_clusters_words() {
    let member = member(9, 1_000);
    assert_eq!(refusal(&member.token).await, JoinError::Refused("the join token has expired".into()));
    let wrong = JoinTokenText { secret: [0; 32], ..member.token.clone() };
    let error = refusal(&wrong).await;
    assert_eq!(error, JoinError::Refused("the join token is not valid".into()));
    assert_eq!(error.to_string(), "the cluster refused the join: the join token is not valid");
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(join("skein1", args(&dir)).await.unwrap_err(), JoinError::Token(InvalidToken::Prefix));
    assert_eq!(member.backhaul.counts().joined, 0);
}

#[tokio::test]
async fn the_secret_is_told_to_the_pinned_authoritys_members_only_and_further_seeds_are_asked() {
    let (impostor, member) = (member(9, u64::MAX), member(9, u64::MAX));
    let lured = JoinTokenText { seeds: vec![impostor.backhaul.local_addr()], ..member.token.clone() };
    let error = refusal(&lured).await;
    assert!(matches!(&error, JoinError::Unreachable(failures) if failures.len() == 1), "{error}");
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    let counts = impostor.backhaul.counts();
    assert_eq!((counts.joined, counts.joins_refused), (0, 0));

    let seeds = vec![impostor.backhaul.local_addr(), member.backhaul.local_addr()];
    let dir = tempfile::tempdir().unwrap();
    let token = JoinTokenText { seeds, ..member.token.clone() };
    join(&token.to_string(), args(&dir)).await.unwrap();
}

#[tokio::test]
async fn a_guest_that_sends_garbage_is_told_so_and_gets_no_second_stream() {
    let member = member(9, u64::MAX);
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let config = client_config(member.token.authority_sha256).unwrap();
    let connection =
        endpoint.connect_with(config, member.backhaul.local_addr(), "join.skein").unwrap().await.unwrap();
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(b"garbage").await.unwrap();
    send.finish().unwrap();
    let bytes = receive.read_to_end(LIMIT).await.unwrap();
    let answer: Answer = codec::decode(&bytes).unwrap();
    let error = answer.unwrap_err();
    assert!(matches!(&error, JoinRefusal::Final(reason) if reason.contains("cannot be read")), "{error}");
    assert_eq!(member.backhaul.counts().joins_refused, 1);
}

fn retries(within: Duration) -> Retries {
    Retries {
        first: Duration::from_millis(5),
        longest: Duration::from_millis(20),
        within,
        ..Retries::default()
    }
}

#[tokio::test]
async fn a_member_without_a_majority_is_asked_again_until_it_decides() {
    let member = undecided_member(1, u64::MAX, 3);
    let dir = tempfile::tempdir().unwrap();
    let (identity, _) =
        join_within(&member.token.to_string(), args(&dir), &retries(Duration::from_secs(60))).await.unwrap();
    assert_eq!(identity.number(), NodeNumber(2));
    let counts = member.backhaul.counts();
    assert_eq!((counts.joined, counts.joins_refused), (1, 3));

    // A refusal that is final ends it, also after ones that were not.
    let used = undecided_member(0, u64::MAX, 2);
    let dir = tempfile::tempdir().unwrap();
    let again = join_within(&used.token.to_string(), args(&dir), &retries(Duration::from_secs(60))).await;
    assert_eq!(again.unwrap_err(), JoinError::Refused("the join token has been used up".into()));
    assert_eq!(used.backhaul.counts().joins_refused, 3);
}

#[tokio::test]
async fn a_member_that_does_not_answer_in_time_is_asked_again() {
    let member = member_that(1, u64::MAX, 0, 1);
    let dir = tempfile::tempdir().unwrap();
    let retries = Retries { patience: Duration::from_secs(2), ..retries(Duration::from_secs(60)) };
    join_within(&member.token.to_string(), args(&dir), &retries).await.unwrap();
    assert_eq!(member.backhaul.counts().joined, 1);
}

#[tokio::test]
async fn a_join_that_nobody_decides_ends_in_time_with_the_last_reason() {
    let member = undecided_member(1, u64::MAX, u32::MAX);
    let dir = tempfile::tempdir().unwrap();
    let within = retries(Duration::from_millis(300));
    let error = join_within(&member.token.to_string(), args(&dir), &within).await.unwrap_err();
    assert!(matches!(&error, JoinError::Undecided(reason) if reason.contains("no majority")), "{error}");
    assert!(Identity::load(dir.path()).unwrap().is_none(), "nothing is kept of it");
}

#[tokio::test]
async fn a_seed_that_cannot_decide_does_not_keep_the_next_one_from_being_asked() {
    let member = member(9, u64::MAX);
    let dir = tempfile::tempdir().unwrap();
    // The first seed proves the pinned authority, as the member of a minority does.
    let twin = Backhaul::bind(
        BackhaulConfig::new("127.0.0.1:0".parse().unwrap(), "iad".parse().unwrap()),
        Arc::clone(&member.founder),
        LinkTable::default(),
        Arc::default(),
    )
    .unwrap();
    let gate = Gate {
        founder: Arc::clone(&member.founder),
        token: member.token.clone(),
        uses: Mutex::new(9),
        expires_ms: u64::MAX,
        undecided: Mutex::new(u32::MAX),
        silent: Mutex::new(0),
    };
    twin.serve(Arc::new(Nothing), Arc::new(gate));
    let seeds = vec![twin.local_addr(), member.backhaul.local_addr()];
    let token = JoinTokenText { seeds, ..member.token.clone() };
    join(&token.to_string(), args(&dir)).await.unwrap();
    assert_eq!((twin.counts().joins_refused, member.backhaul.counts().joined), (1, 1));
}
