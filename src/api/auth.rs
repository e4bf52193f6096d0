//! Who calls, and what they may touch (SPEC API-2).
//!
//! A token reads `skt_<id>_<64 hex digits>`; the registry keeps the SHA-256 of the 32 secret bytes.
//! Whatever is wrong with a token, the answer is the same 401.

use std::fmt;
use std::hint::black_box;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use data_encoding::HEXLOWER;
use ring::digest;
use skein_core::facts::{App, Org, Scope, State, Token};
use skein_core::{OrgId, TokenId};

use super::ApiState;
use super::error::ApiError;

/// An API token as its holder has it.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenText {
    /// Its public id.
    pub id: TokenId,
    /// Its secret.
    secret: [u8; 32],
}

impl TokenText {
    /// A token of that id with a new secret.
    pub fn generate(id: TokenId) -> Self {
        Self { id, secret: skein_cluster::entropy::secret() }
    }

    /// The token that `text` spells; `None` when it spells none.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, secret) = text.strip_prefix("skt_")?.split_once('_')?;
        let secret = HEXLOWER.decode(secret.as_bytes()).ok()?;
        Some(Self { id: id.parse().ok()?, secret: secret.try_into().ok()? })
    }

    /// What the registry keeps of it.
    pub fn hash(&self) -> [u8; 32] {
        sha256(&self.secret)
    }
}

impl fmt::Display for TokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "skt_{}_{}", self.id, HEXLOWER.encode(&self.secret))
    }
}

impl fmt::Debug for TokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "skt_{}_…", self.id)
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

/// Takes the same time wherever the two differ.
fn equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
    black_box(a.iter().zip(b).fold(0, |differ, (a, b)| black_box(differ | (a ^ b)))) == 0
}

/// Whoever made a call: the token it came with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller {
    /// What the token may touch.
    pub(crate) scope: Scope,
    /// It may only read.
    pub(crate) read_only: bool,
    /// The token's public id.
    pub(crate) token: TokenId,
}

impl Caller {
    /// The caller that the headers prove, by the facts of `state`.
    pub(crate) fn of(state: &State, headers: &HeaderMap) -> Result<Self, ApiError> {
        let text = bearer(headers).ok_or_else(ApiError::unauthenticated)?;
        let given = TokenText::parse(text).ok_or_else(ApiError::unauthenticated)?;
        let known: &Token = state.token(given.id).ok_or_else(ApiError::unauthenticated)?;
        if !equal(&given.hash(), &known.hash) {
            return Err(ApiError::unauthenticated());
        }
        Ok(Self { scope: known.scope, read_only: known.read_only, token: known.id })
    }

    /// Whether it may use that method at all.
    pub(crate) fn may(&self, method: &Method) -> Result<(), ApiError> {
        if self.read_only && !method.is_safe() {
            return Err(ApiError::forbidden("this token may only read; use one made without --read-only"));
        }
        Ok(())
    }

    /// Whether it sees what belongs to an organization.
    pub(crate) fn sees(&self, org: OrgId) -> bool {
        match self.scope {
            Scope::Cluster => true,
            Scope::Org(own) => own == org,
        }
    }

    /// Whether it is the operator's.
    pub(crate) fn operator(&self) -> Result<(), ApiError> {
        match self.scope {
            Scope::Cluster => Ok(()),
            Scope::Org(_) => Err(ApiError::forbidden("this needs a token for the whole cluster")),
        }
    }

    /// The organization of that slug; without a slug the token's own.
    pub(crate) fn org<'a>(&self, state: &'a State, slug: Option<&str>) -> Result<&'a Org, ApiError> {
        let found = match (slug, self.scope) {
            (Some(slug), _) => state.org_by_slug(slug),
            (None, Scope::Org(own)) => state.org(own),
            (None, Scope::Cluster) => return Err(ApiError::bad_request("org_slug is needed")),
        };
        match (found, self.scope) {
            (Some(org), _) if self.sees(org.id) => Ok(org),
            (_, Scope::Cluster) => Err(ApiError::not_found("organization")),
            // Whether it exists is not told.
            (_, Scope::Org(_)) => Err(ApiError::forbidden("this token belongs to another organization")),
        }
    }

    /// An app by name. One of another organization is 403, so that a client can tell a free name
    /// from a taken one.
    pub(crate) fn app<'a>(&self, state: &'a State, name: &str) -> Result<&'a App, ApiError> {
        let app = state.app_by_name(name).ok_or_else(|| ApiError::not_found("app"))?;
        if self.sees(app.org) {
            Ok(app)
        } else {
            Err(ApiError::forbidden("this app belongs to another organization"))
        }
    }

    /// An app by name, for what is below it: one of another organization is 404.
    pub(crate) fn below_app<'a>(&self, state: &'a State, name: &str) -> Result<&'a App, ApiError> {
        self.app(state, name).map_err(|_| ApiError::not_found("app"))
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.trim().split_once(' ')?;
    let known = scheme.eq_ignore_ascii_case("bearer") || scheme.eq_ignore_ascii_case("flyv1");
    known.then(|| token.trim())
}

impl FromRequestParts<ApiState> for Caller {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, ApiError> {
        let caller = Self::of(&state.facts(), &parts.headers)?;
        caller.may(&parts.method)?;
        Ok(caller)
    }
}

/// A caller of something that only reads although its method is POST.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AnyMethod(pub(crate) Caller);

impl FromRequestParts<ApiState> for AnyMethod {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, ApiError> {
        Ok(Self(Caller::of(&state.facts(), &parts.headers)?))
    }
}

#[cfg(test)]
mod tests;
