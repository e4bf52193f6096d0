//! What holds for any bytes, one function per parser; the targets only call them.

use bytes::{Bytes, BytesMut};
use skein_cluster::token::JoinTokenText;
use skein_core::codec;
use skein_core::config::{self, AppConfig, Format, Severity};
use skein_core::heads::Heads;
use skein_core::key::{GossipKey, NodeRecord};
use skein_core::machine::MachineConfig;
use skein_core::record::Record;
use skein_core::region::Regions;
use skein_core::replay;
use skein_core::wire::Frame;

/// What is said of a configuration stays short, however long it is.
const MAX_PAGE: usize = 200_000;
/// Process groups whose Machines are looked at; each is made from the whole file.
const GROUPS: usize = 4;

/// A configuration is a value or errors; what loads is the same again from its normal form, in every
/// format.
///
/// # Panics
/// When it is not so.
pub fn config(bytes: &[u8], format: Format) {
    let loaded = config::load(bytes, format);
    let text = String::from_utf8_lossy(bytes);
    assert_eq!(loaded.config.is_none(), loaded.of(Severity::Error).next().is_some());
    for diagnostic in &loaded.diagnostics {
        assert!(diagnostic.line > 0 && diagnostic.column > 0, "{diagnostic:?}");
        assert!(std::str::from_utf8(bytes).is_err() || text.get(diagnostic.span.clone()).is_some());
    }
    let page = config::render("fly.toml", &text, &loaded.diagnostics);
    assert!(page.len() < MAX_PAGE, "{} bytes are said", page.len());
    if let Some(config) = loaded.config {
        comes_back(&config, bytes.len());
        for group in config.groups().iter().take(GROUPS) {
            let machine = config.machine(group).expect("a group has Machines");
            let json = serde_json::to_string(&machine).expect("a Machine is JSON");
            let again: MachineConfig = serde_json::from_str(&json).expect("it is that of a Machine");
            assert_eq!(again, machine);
        }
        config.ip_type();
    }
}

fn comes_back(config: &AppConfig, length: usize) {
    let json = serde_json::to_string(config).expect("the normal form is JSON");
    let toml = toml::to_string(config).expect("the normal form is TOML");
    for (text, format) in [(&json, Format::Json), (&json, Format::Yaml), (&toml, Format::Toml)] {
        // Aliases of YAML may make it longer, up to a share of the text.
        assert!(text.len() <= 64 * length + (1 << 20), "{} bytes from {length}", text.len());
        if text.len() <= config::MAX_BYTES {
            let again = config::load(text, format);
            assert_eq!(again.config.as_ref(), Some(config), "{format:?} {:#?}\n{text}", again.diagnostics);
        }
    }
}

/// A `fly-replay` header is an instruction that names something, in no more bytes than it had, or an
/// error.
///
/// # Panics
/// When it is not so.
pub fn fly_replay(bytes: &[u8]) {
    let regions = Regions::default();
    if let Ok(replay) = replay::parse(bytes, &regions) {
        assert!(!replay.kind().is_empty());
        let any = "iad".parse().expect("a region");
        assert!(replay.regions.iter().all(|name| regions.matches(name, any).is_some()), "{replay:?}");
        let texts = [&replay.instance, &replay.app, &replay.state].into_iter().flatten();
        assert!(texts.chain(&replay.regions).map(String::len).sum::<usize>() <= bytes.len(), "{replay:?}");
    }
}

/// What a client of HTTP/1 sends is followed to the same place however it is cut.
///
/// # Panics
/// When it is not so.
pub fn heads(bytes: &[u8]) {
    let (mut whole, mut cut) = (Heads::default(), Heads::default());
    let found = whole.scan(bytes);
    let each = bytes.iter().enumerate();
    let found_cut =
        each.filter_map(|(at, byte)| cut.scan(std::slice::from_ref(byte)).map(|_| at)).collect::<Vec<_>>();
    assert_eq!(found_cut, Vec::from_iter(found));
    assert_eq!(whole, cut);
    assert!(found.is_none_or(|at| bytes[at] == b':'), "{found:?}");
}

/// Bytes of a stream are frames or an error, and a frame is the same again from its own bytes.
///
/// # Panics
/// When it is not so.
pub fn frames(bytes: &[u8]) {
    let mut buffer = BytesMut::from(bytes);
    while let Ok(Some(frame)) = Frame::decode(&mut buffer) {
        let (head, data) = frame.clone().encode();
        let mut whole = BytesMut::from(&head[..]);
        whole.extend_from_slice(&data.unwrap_or_else(Bytes::new));
        assert_eq!(Frame::decode(&mut whole), Ok(Some(frame)));
    }
}

/// What gossip carries, keys and both kinds of records, is a value or an error, and a value is the same
/// again from its own bytes.
///
/// # Panics
/// When it is not so.
pub fn record(bytes: &[u8]) {
    if let Ok(record) = Record::decode(bytes) {
        assert_eq!(Record::decode(&record.encode()).as_ref(), Ok(&record));
    }
    if let Ok(node) = codec::decode::<NodeRecord>(bytes) {
        assert_eq!(codec::decode(&codec::encode(&node)).as_ref(), Ok(&node));
    }
    if let Some(key) = std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<GossipKey>().ok()) {
        assert_eq!(key.to_string().parse().as_ref(), Ok(&key));
    }
}

/// A text is a join token or an error that does not repeat it, and a token is the same when printed.
///
/// # Panics
/// When it is not so.
pub fn join_token(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match text.parse::<JoinTokenText>() {
        Ok(token) => assert_eq!(token.to_string().parse::<JoinTokenText>().as_ref(), Ok(&token)),
        Err(error) => assert!(error.to_string().len() < 300, "{error}"),
    }
}
