use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

#[test]
fn a_founder_finds_its_identity_again_and_only_the_owner_may_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    assert!(Identity::load(&data_dir).unwrap().is_none());
    let made = Identity::found(&data_dir, name("iad-1")).unwrap();
    let found = Identity::load(&data_dir).unwrap().unwrap();
    assert_eq!(found.number(), NodeNumber(1));
    assert_eq!(found.name(), &name("iad-1"));
    assert_eq!(found.key_hash(), made.key_hash());
    assert_eq!(found.authority_sha256(), made.authority_sha256());
    for entry in fs::read_dir(&data_dir).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
    }
    let shown = format!("{found:?} {:?} {:?}", found.data_key(), found.key());
    assert!(!shown.contains("key: KeyPair") && shown.contains("DataKey(…)"), "{shown}");
}

#[test]
fn the_sealed_authority_signs_for_those_who_hold_the_data_key_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let founder = Identity::found(dir.path(), name("iad-1")).unwrap();
    let sealed = founder.sealed_authority_key().unwrap();
    let authority = Authority::open(founder.authority(), sealed, founder.data_key()).unwrap();
    let member = Identity::issue(&authority, founder.data_key(), NodeNumber(2), name("lhr-1")).unwrap();
    let proved = PeerIdentity::read(&member.certificate(), founder.authority()).unwrap();
    assert_eq!(proved, PeerIdentity { number: NodeNumber(2), key: member.key_hash() });

    let refused = Authority::open(founder.authority(), sealed, &DataKey::generate()).unwrap_err();
    assert_eq!(refused, AuthorityError::Sealed(OpenError));
    let other = Authority::generate().unwrap();
    let mixed = Authority::open(other.certificate(), sealed, founder.data_key()).unwrap_err();
    assert!(matches!(mixed, AuthorityError::Unusable(_)), "{mixed}");
    assert_eq!(
        PeerIdentity::read(&member.certificate(), other.certificate()),
        Err(UnreadableCertificate::Stranger)
    );
}

#[test]
fn a_request_must_be_signed_by_its_key_and_gets_the_number_it_was_given_not_one_it_wants() {
    let authority = Authority::generate().unwrap();
    let key = NodeKey::generate().unwrap();
    let request = key.request().unwrap();
    assert_eq!(Authority::request_key(&request).unwrap(), key.hash());
    let certificate = authority.sign(&request, NodeNumber(7)).unwrap();
    assert_eq!(PeerIdentity::of_verified(&certificate).unwrap().number, NodeNumber(7));

    let mut forged = request;
    let last = forged.len() - 1;
    forged[last] ^= 1;
    assert!(matches!(authority.sign(&forged, NodeNumber(7)), Err(AuthorityError::Request(_))));
    assert!(matches!(authority.sign(b"hello", NodeNumber(7)), Err(AuthorityError::Request(_))));
}

#[test]
fn a_reply_for_another_key_or_number_is_refused() {
    let authority = Authority::generate().unwrap();
    let key = NodeKey::generate().unwrap();
    let reply = |number: u32, request: &[u8]| JoinReply {
        number: NodeNumber(number),
        name: name("iad-2"),
        certificate: authority.sign(request, NodeNumber(2)).unwrap(),
        authority: authority.certificate().to_vec(),
        data_key: vec![1; 32],
        peers: vec![],
    };
    let request = key.request().unwrap();
    let other = NodeKey::generate().unwrap().request().unwrap();
    assert!(matches!(Identity::from_reply(key, &reply(2, &other)), Err(IdentityError::Mismatch(_))));
    let dir = tempfile::tempdir().unwrap();
    let key = NodeKey::load_or_create(dir.path()).unwrap();
    let mine = key.request().unwrap();
    assert!(matches!(Identity::from_reply(key, &reply(3, &mine)), Err(IdentityError::Mismatch(_))));
    let key = NodeKey::load_or_create(dir.path()).unwrap();
    let identity = Identity::from_reply(key, &reply(2, &mine)).unwrap();
    identity.save(dir.path()).unwrap();
    assert_eq!(Identity::load(dir.path()).unwrap().unwrap().number(), NodeNumber(2));
    drop(request);
}

#[test]
fn damaged_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    Identity::found(dir.path(), name("iad-1")).unwrap();
    fs::write(dir.path().join(KEY_FILE), "garbage").unwrap();
    let error = Identity::load(dir.path()).unwrap_err();
    assert!(matches!(error, IdentityError::Damaged { file: KEY_FILE, .. }), "{error}");
    fs::write(dir.path().join(IDENTITY_FILE), [1, 2, 3]).unwrap();
    let error = Identity::load(dir.path()).unwrap_err();
    assert!(error.to_string().contains("identity"), "{error}");
    NodeKey::load_or_create(dir.path()).unwrap_err();
}

#[test]
fn sealed_secrets_open_with_the_same_key_and_purpose_only() {
    let key = DataKey::generate();
    let sealed = key.seal("a", b"secret");
    assert_eq!(key.open("a", &sealed).unwrap(), b"secret");
    assert_ne!(sealed, key.seal("a", b"secret"), "each has its own nonce");
    assert_eq!(key.open("b", &sealed), Err(OpenError));
    assert_eq!(DataKey::generate().open("a", &sealed), Err(OpenError));
    for cut in 0..sealed.len() {
        assert_eq!(key.open("a", &sealed[..cut]), Err(OpenError));
    }
}
