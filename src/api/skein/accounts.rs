//! Organizations and tokens.

use std::net::SocketAddr;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use skein_cluster::clock;
use skein_cluster::entropy::{self, Entropy};
use skein_cluster::token::JoinTokenText;
use skein_core::api::{CreateJoinToken, CreateOrg, CreateToken, JoinTokenJson, OrgJson, TokenJson};
use skein_core::facts::{Command, JoinToken, Org, Scope, State as Facts, Token};
use skein_core::{NodeNumber, OrgId, TokenId};

use crate::api::auth::{Caller, TokenText};
use crate::api::body::{JsonBody, json, ok};
use crate::api::error::ApiError;
use crate::api::{ApiState, rfc3339};

/// The most members that a join token names.
const SEEDS: usize = 5;

fn shown_org(org: &Org) -> OrgJson {
    OrgJson { slug: org.slug.clone(), name: org.name.clone(), id: org.id.to_string() }
}

/// The organizations that the token reaches.
pub(super) async fn orgs(State(state): State<ApiState>, caller: Caller) -> Response {
    let facts = state.facts();
    ok(&facts.orgs().filter(|org| caller.sees(org.id)).map(|org| shown_org(org)).collect::<Vec<_>>())
}

pub(super) async fn create_org(
    State(state): State<ApiState>,
    caller: Caller,
    JsonBody(body): JsonBody<CreateOrg>,
) -> Result<Response, ApiError> {
    caller.operator()?;
    let CreateOrg { slug, name } = body;
    let name = if name.is_empty() { slug.to_string() } else { name };
    let id = OrgId::generate(clock::unix_ms(), &mut Entropy::default());
    state.propose(Command::CreateOrg { id, slug: slug.clone(), name: name.clone() }).await?;
    Ok(json(StatusCode::CREATED, &OrgJson { slug, name, id: id.to_string() }))
}

fn shown_token(facts: &Facts, token: &Token) -> TokenJson {
    let org = match token.scope {
        Scope::Cluster => None,
        Scope::Org(org) => facts.org(org).map(|org| org.slug.clone()),
    };
    TokenJson {
        id: token.id.to_string(),
        name: token.name.clone(),
        org,
        read_only: token.read_only,
        created_at: rfc3339(token.created_ms),
        token: None,
    }
}

/// Whether a caller may know of and end a token: its own scope's, and the operator all.
fn governs(caller: &Caller, token: &Token) -> bool {
    match token.scope {
        Scope::Cluster => caller.scope == Scope::Cluster,
        Scope::Org(org) => caller.sees(org),
    }
}

pub(super) async fn tokens(State(state): State<ApiState>, caller: Caller) -> Response {
    let facts = state.facts();
    let governed = facts.tokens().filter(|token| governs(&caller, token));
    ok(&governed.map(|token| shown_token(&facts, token)).collect::<Vec<_>>())
}

pub(super) async fn create_token(
    State(state): State<ApiState>,
    caller: Caller,
    JsonBody(body): JsonBody<CreateToken>,
) -> Result<Response, ApiError> {
    let scope = match body.org {
        Some(slug) => Scope::Org(caller.org(&state.facts(), Some(slug.as_str()))?.id),
        None => {
            caller.operator()?;
            Scope::Cluster
        }
    };
    let created_ms = clock::unix_ms();
    let text = TokenText::generate(TokenId::generate(created_ms, &mut Entropy::default()));
    let name = body.name.chars().take(80).collect();
    let token = Token { id: text.id, hash: text.hash(), scope, read_only: body.read_only, name, created_ms };
    state.propose(Command::CreateToken { token: token.clone() }).await?;
    let shown = TokenJson { token: Some(text.to_string()), ..shown_token(&state.facts(), &token) };
    Ok(json(StatusCode::CREATED, &shown))
}

pub(super) async fn revoke_token(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let facts = state.facts();
    let known = id.parse().ok().and_then(|id| facts.token(id)).filter(|token| governs(&caller, token));
    let id = known.ok_or_else(|| ApiError::not_found("token"))?.id;
    state.propose(Command::RevokeToken { id }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// A token with which nodes join: it names members, pins the authority and holds a secret.
pub(super) async fn create_join_token(
    State(state): State<ApiState>,
    caller: Caller,
    JsonBody(body): JsonBody<CreateJoinToken>,
) -> Result<Response, ApiError> {
    caller.operator()?;
    let CreateJoinToken { uses, ttl_seconds } = body;
    if uses == 0 || ttl_seconds == 0 {
        return Err(ApiError::bad_request("uses and ttl_seconds are at least 1"));
    }
    let (node, snapshot) = (state.node(), state.node().reader.load());
    let alive = |number| snapshot.nodes.get(&number).is_some_and(|node| node.alive);
    let own = (node.number, node.record.borrow().backhaul);
    let now_ms = clock::unix_ms();
    let text = JoinTokenText {
        seeds: seeds(own, &state.facts(), alive),
        authority_sha256: node.identity.authority_sha256(),
        id: TokenId::generate(now_ms, &mut Entropy::default()),
        secret: entropy::secret(),
    };
    let expires_ms = now_ms.saturating_add(ttl_seconds.saturating_mul(1000));
    let token = JoinToken { id: text.id, hash: text.hash(), expires_ms, uses_left: uses };
    state.propose(Command::CreateJoinToken { token }).await?;
    Ok(json(StatusCode::CREATED, &JoinTokenJson { token: text.to_string() }))
}

/// Where a new node asks: this node first, which knows the token already and whatever it knows of
/// itself so far, then others that live.
fn seeds(
    (own, backhaul): (NodeNumber, SocketAddr),
    facts: &Facts,
    alive: impl Fn(NodeNumber) -> bool,
) -> Vec<SocketAddr> {
    let others = facts.nodes().filter(|member| member.number != own && alive(member.number));
    std::iter::once(backhaul).chain(others.map(|member| member.backhaul)).take(SEEDS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_core::facts::{Fact, Node};

    #[test]
    fn a_join_token_names_this_node_even_before_it_knows_of_itself_and_then_who_lives() {
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let own = (NodeNumber(1), at(1));
        assert_eq!(seeds(own, &Facts::default(), |_| false), [at(1)]);
        let node = |number: u32| {
            Fact::Node(Node {
                number: NodeNumber(number),
                name: format!("iad-{number}").parse().unwrap(),
                region: "iad".parse().unwrap(),
                key: [number as u8; 32],
                backhaul: at(number as u16),
                joined_ms: 0,
            })
        };
        let facts = Facts::from_facts([1, 2, 3].map(node));
        assert_eq!(seeds(own, &facts, |number| number == NodeNumber(3)), [at(1), at(3)]);
    }

    fn token(scope: Scope) -> Token {
        let id = TokenId(ulid::Ulid(1));
        Token { id, hash: [0; 32], scope, read_only: false, name: String::new(), created_ms: 0 }
    }

    #[test]
    fn a_caller_governs_the_tokens_of_its_own_scope() {
        let [one, two] = [1, 2].map(|id| Scope::Org(OrgId(ulid::Ulid(id))));
        let caller = |scope| Caller { scope, read_only: false, token: TokenId(ulid::Ulid(9)) };
        for scope in [one, two, Scope::Cluster] {
            assert!(governs(&caller(Scope::Cluster), &token(scope)));
        }
        assert!(governs(&caller(one), &token(one)));
        assert!(!governs(&caller(one), &token(two)));
        assert!(!governs(&caller(one), &token(Scope::Cluster)), "the operator's is not an organization's");
    }
}
