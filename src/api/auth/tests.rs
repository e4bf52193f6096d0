//! Grants beside their refusals (SPEC API-2).

use axum::http::{HeaderMap, Method, StatusCode, header};
use skein_core::facts::{Command, Proposal, Scope, State, Token};
use skein_core::{NetworkName, OrgId, TokenId};
use ulid::Ulid;

use super::{Caller, TokenText};

struct World {
    state: State,
    operator: TokenText,
    shop: TokenText,
    reader: TokenText,
}

const PERSONAL: OrgId = OrgId(Ulid(1));
const SHOP: OrgId = OrgId(Ulid(2));

fn apply(state: &mut State, request: u128, command: Command) {
    let (outcome, _) = state.apply(&Proposal { request: Ulid(request), now_ms: 1, command });
    outcome.unwrap();
}

fn token(text: &TokenText, scope: Scope, read_only: bool) -> Token {
    Token { id: text.id, hash: text.hash(), scope, read_only, name: "t".into(), created_ms: 0 }
}

fn world() -> World {
    let [operator, shop, reader] = [10, 11, 12].map(|id| TokenText::generate(TokenId(Ulid(id))));
    let settings = skein_core::facts::Settings {
        cluster: Ulid(9),
        base_domain: "localhost".into(),
        shared_v4: "203.0.113.1".parse().unwrap(),
        v4_pool: [198, 51, 100],
        v6_pool: "2001:db8::".parse().unwrap(),
        authority: vec![],
        authority_key: vec![],
    };
    let mut state = State::default();
    let first = token(&operator, Scope::Cluster, false);
    let slug = "personal".parse().unwrap();
    apply(&mut state, 1, Command::Init { settings, org: PERSONAL, slug, token: first });
    let slug = "shop".parse().unwrap();
    apply(&mut state, 2, Command::CreateOrg { id: SHOP, slug, name: "Shop".into() });
    for (request, text, read_only) in [(3, &shop, false), (4, &reader, true)] {
        apply(&mut state, request, Command::CreateToken { token: token(text, Scope::Org(SHOP), read_only) });
    }
    for (request, id, name, org) in [(5, 20, "hello", PERSONAL), (6, 21, "till", SHOP)] {
        let network = NetworkName::default_network();
        let id = skein_core::AppId(Ulid(id));
        apply(&mut state, request, Command::CreateApp { id, name: name.parse().unwrap(), org, network });
    }
    World { state, operator, shop, reader }
}

fn with(text: &str) -> HeaderMap {
    HeaderMap::from_iter([(header::AUTHORIZATION, text.parse().unwrap())])
}

#[test]
fn a_good_token_is_let_in_under_both_schemes_and_a_bad_one_gets_the_same_401_whatever_is_wrong() {
    let World { state, operator, .. } = world();
    for scheme in ["Bearer", "bearer", "FlyV1"] {
        let caller = Caller::of(&state, &with(&format!("{scheme} {operator}"))).unwrap();
        assert_eq!(caller.scope, Scope::Cluster);
    }
    let unknown = TokenText::generate(TokenId(Ulid(99)));
    let wrong_secret = TokenText::generate(operator.id);
    let mut bad = vec![HeaderMap::new(), with("Bearer"), with("Basic eDp5"), with("Bearer nonsense")];
    bad.extend([unknown, wrong_secret].map(|text| with(&format!("Bearer {text}"))));
    bad.push(with(&operator.to_string()));
    bad.push(with(&format!("Bearer {}", operator.to_string().to_uppercase())));
    for headers in bad {
        let error = Caller::of(&state, &headers).unwrap_err();
        assert_eq!(error.status, StatusCode::UNAUTHORIZED, "{headers:?}");
        assert_eq!(error.error, "Authenticate: token validation error");
    }
}

#[test]
fn a_revoked_token_is_refused_at_once() {
    let World { mut state, shop, .. } = world();
    let headers = with(&format!("Bearer {shop}"));
    assert!(Caller::of(&state, &headers).is_ok());
    apply(&mut state, 50, Command::RevokeToken { id: shop.id });
    assert_eq!(Caller::of(&state, &headers).unwrap_err().status, StatusCode::UNAUTHORIZED);
}

#[test]
fn a_token_of_an_organization_reaches_its_apps_and_no_others() {
    let World { state, operator, shop, .. } = world();
    let operator = Caller::of(&state, &with(&format!("Bearer {operator}"))).unwrap();
    let shop = Caller::of(&state, &with(&format!("Bearer {shop}"))).unwrap();
    for name in ["hello", "till"] {
        assert!(operator.app(&state, name).is_ok());
    }
    assert!(shop.app(&state, "till").is_ok());
    // 403 for the app itself, 404 for what is below it and for a free name.
    assert_eq!(shop.app(&state, "hello").unwrap_err().status, StatusCode::FORBIDDEN);
    assert_eq!(shop.below_app(&state, "hello").unwrap_err().status, StatusCode::NOT_FOUND);
    assert_eq!(shop.app(&state, "free-name").unwrap_err().status, StatusCode::NOT_FOUND);
    assert!(operator.operator().is_ok());
    assert_eq!(shop.operator().unwrap_err().status, StatusCode::FORBIDDEN);
}

#[test]
fn an_organization_is_found_by_slug_or_by_the_token_and_strangers_learn_nothing() {
    let World { state, operator, shop, .. } = world();
    let operator = Caller::of(&state, &with(&format!("Bearer {operator}"))).unwrap();
    let shop = Caller::of(&state, &with(&format!("Bearer {shop}"))).unwrap();
    assert_eq!(shop.org(&state, None).unwrap().id, SHOP);
    assert_eq!(operator.org(&state, Some("shop")).unwrap().id, SHOP);
    assert_eq!(operator.org(&state, None).unwrap_err().status, StatusCode::BAD_REQUEST);
    assert_eq!(operator.org(&state, Some("nobody")).unwrap_err().status, StatusCode::NOT_FOUND);
    let existing = shop.org(&state, Some("personal")).unwrap_err();
    assert_eq!(existing.status, StatusCode::FORBIDDEN);
    assert_eq!(existing, shop.org(&state, Some("nobody")).unwrap_err());
}

#[test]
fn a_read_only_token_may_read_and_nothing_else() {
    let World { state, reader, shop, .. } = world();
    let reader = Caller::of(&state, &with(&format!("Bearer {reader}"))).unwrap();
    let shop = Caller::of(&state, &with(&format!("Bearer {shop}"))).unwrap();
    assert!(reader.may(&Method::GET).is_ok() && reader.may(&Method::HEAD).is_ok());
    for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
        assert_eq!(reader.may(&method).unwrap_err().status, StatusCode::FORBIDDEN);
        assert!(shop.may(&method).is_ok());
    }
}

#[test]
fn a_token_reads_back_and_never_shows_its_secret_in_a_log() {
    let text = TokenText::generate(TokenId(Ulid(7)));
    assert_eq!(TokenText::parse(&text.to_string()).unwrap(), text);
    let shown = text.to_string();
    let secret = shown.rsplit('_').next().unwrap();
    assert_eq!(secret.len(), 64);
    assert!(!format!("{text:?}").contains(secret));
}

proptest::proptest! {
    #[test]
    fn any_text_is_a_token_or_none(text in "(skt_)?([0-9A-HJKMNP-TV-Z]{26}_)?([0-9a-f]{64}|.{0,80})") {
        if let Some(token) = TokenText::parse(&text) {
            proptest::prop_assert_eq!(TokenText::parse(&token.to_string()), Some(token));
        }
    }
}
