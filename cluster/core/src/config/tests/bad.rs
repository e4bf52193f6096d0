//! Input that nobody should write, and what is said about it.

use std::time::{Duration, Instant};

use super::*;

/// The first error of a text, and how many there are.
fn first(text: impl AsRef<[u8]>, format: Format) -> (String, usize) {
    let loaded = load(text, format);
    assert!(loaded.config.is_none());
    let errors: Vec<String> = loaded.of(Severity::Error).map(ToString::to_string).collect();
    (errors[0].clone(), errors.len())
}

#[test]
fn bytes_that_are_not_utf_8_are_shown_at_their_place() {
    let utf16: Vec<u8> = "app = 1".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (bytes, place) in [
        (b"app = \"\xfc\"\n".to_vec(), "1:8:"),
        (b"app = \"a\"\n# caf\xe9\n".to_vec(), "2:6:"),
        (b"\xff\xfea\0".to_vec(), "1:1:"),
        (b"app = \"\xe2\x82".to_vec(), "1:8:"),
        (b"app = \"\xed\xa0\x80\"".to_vec(), "1:8:"),
        ([&b"\xff"[..], &utf16].concat(), "1:1:"),
    ] {
        for format in [Format::Toml, Format::Json, Format::Yaml] {
            let (said, count) = first(&bytes, format);
            assert!(said.starts_with(place) && said.contains("not UTF-8") && count == 1, "{said}");
        }
    }
    let utf16: Vec<u8> = "app = 1".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert!(!load(utf16, Format::Toml).is_valid(), "UTF-16 of plain text is UTF-8 with zeros");
}

#[test]
fn what_is_there_twice_is_refused() {
    for (text, line) in [
        ("app = \"a\"\napp = \"b\"\n", 2),
        ("[env]\nA = 1\n[env]\nB = 2\n", 3),
        ("[env]\nA = 1\n[[env]]\nB = 2\n", 3),
        ("[[services]]\n[services]\n", 2),
        ("[http_service]\ninternal_port = 1\n[http_service.internal_port]\n", 3),
        ("env.A = 1\n[env]\nB = 2\n", 2),
        ("env = { A = 1, A = 2 }\n", 1),
        ("[checks.a]\ntype = \"tcp\"\nport = 1\n[checks.a]\ntype = \"tcp\"\nport = 2\n", 4),
    ] {
        let loaded = read(text);
        assert!(!loaded.is_valid(), "{text}");
        assert_eq!(loaded.diagnostics[0].line, line, "{text}: {:#?}", loaded.diagnostics);
    }
}

#[test]
fn ranges_that_meet_or_run_backwards_are_named_with_both_places() {
    let ports = |list: &[&str]| {
        let mut text = String::from("[[services]]\n");
        for keys in list {
            text.push_str(&format!("[[services.ports]]\n{keys}\n"));
        }
        said(&text)
    };
    let range = |start: u32, end: u32| format!("start_port = {start}\nend_port = {end}");
    for (list, message) in [
        (
            vec![range(1, 10), range(10, 20)],
            "TCP port 10 is taken by services[0].ports[0].start_port already",
        ),
        (vec![range(1, 100), "port = 50".into()], "TCP port 50 is taken"),
        (vec!["port = 50".into(), range(1, 100)], "is taken by services[0].ports[0].port already"),
        (vec!["start_port = 9".into(), "end_port = 9".into()], "TCP port 9 is taken"),
        (vec!["port = 5".into(), "port = \"5\"".into()], "TCP port 5 is taken"),
        (vec![range(10, 9)], "the range runs backwards: 10 to 9"),
        (vec![range(1, 70_000)], "expected a port from 1 to 65535"),
        (vec!["port = 1\nend_port = 2".into()], "either `port` or a range, not both"),
        (vec!["handlers = [\"tls\"]".into()], "warning: services[0].ports[0]: without `port`"),
    ] {
        let keys: Vec<&str> = list.iter().map(String::as_str).collect();
        let said = ports(&keys);
        assert!(said.iter().any(|said| said.contains(message)), "{list:?}: {said:#?}");
    }
    assert!(ports(&[&range(1, 10), &range(11, 20), "port = 21"]).is_empty());
}

#[test]
fn the_elided_snippets_of_documentation_are_refused_at_their_dots() {
    for (text, line) in [
        ("[http_service]\n  internal_port = 8080\n  ...\n", 3),
        ("...\n[http_service]\n", 1),
        ("app = ...\n", 1),
        ("[[services]]\n…\n", 2),
        ("[env]\nA = \"b\"\n[...]\n", 3),
        ("env = { A = 1, ... }\n", 1),
        ("processes = [\"app\", ...]\n", 1),
    ] {
        let loaded = read(text);
        assert!(loaded.config.is_none(), "{text}");
        assert_eq!(loaded.diagnostics[0].line, line, "{text}: {:#?}", loaded.diagnostics);
        let dots = if text.contains("...") {
            "if the dots stand for something left out"
        } else {
            "this is not TOML"
        };
        assert!(loaded.diagnostics[0].message.contains(dots), "{:#?}", loaded.diagnostics);
        assert_eq!(
            loaded.diagnostics.len(),
            1,
            "what follows from the first is not said: {:#?}",
            loaded.diagnostics
        );
    }
    assert!(!load("app: a\nhttp_service:\n  internal_port: 1\n  ...\n  x\n", Format::Yaml).is_valid());
    assert!(!load("{\"app\": \"a\", ...}", Format::Json).is_valid());
}

#[test]
fn sections_that_are_something_else_are_named() {
    for key in [
        "build",
        "deploy",
        "env",
        "experimental",
        "processes",
        "http_service",
        "services",
        "checks",
        "restart",
        "vm",
        "mounts",
        "metrics",
    ] {
        for value in ["1", "\"text\"", "true", "[1]", "1979-05-27"] {
            // flyctl reads no other than these either.
            let loaded = read(&format!("{key} = {value}\n"));
            let error = loaded.of(Severity::Error).next();
            assert!(
                error.is_some_and(|e| e.key_path.starts_with(key)),
                "{key} = {value}: {:#?}",
                loaded.diagnostics
            );
        }
        assert!(read(&format!("[{key}]\n")).is_valid() || key == "restart", "an empty {key}");
    }
    assert!(!read("http_service = []\n").is_valid());
}

/// How large the texts are: a square reading of one takes minutes.
const SIZE: usize = MAX_BYTES / 4;

/// Texts of nearly this size, each of which is hard for some part.
fn heavy() -> Vec<(&'static str, Format, String)> {
    let fill = |unit: &str| unit.repeat((SIZE - 200) / unit.len());
    let ports: String =
        (0..SIZE / 40).map(|i| format!("[[services.ports]]\nport = {}\n", i % 65_535 + 1)).collect();
    let keys: String = (0..SIZE / 20).map(|i| format!("key{i} = {i}\n")).collect();
    let groups: String = (0..SIZE / 22).map(|i| format!("g{i} = \"run\"\n")).collect();
    vec![
        ("ports", Format::Toml, format!("[[services]]\n{ports}")),
        ("a list of ports", Format::Toml, format!("[[services]]\nports = [{}]\n", fill("{port=80},"))),
        ("services", Format::Toml, fill("[[services]]\ninternal_port = 1\n")),
        ("empty services", Format::Toml, fill("[[services]]\n")),
        ("keys", Format::Toml, keys),
        ("groups", Format::Toml, format!("[processes]\n{groups}[http_service]\nprocesses = [\"nobody\"]\n")),
        (
            "unknown groups",
            Format::Toml,
            format!("[processes]\na = \"\"\n[http_service]\nprocesses = [{}]\n", fill("\"b\",")),
        ),
        ("one text", Format::Toml, format!("app = \"{}\"\n", fill("x"))),
        ("one line of words", Format::Toml, format!("[processes]\napp = \"{}\"\n", fill("a 'b' "))),
        ("one key", Format::Toml, format!("{} = 1\n", fill("x"))),
        ("broken lines", Format::Toml, fill("=\n")),
        ("open strings", Format::Toml, fill("a = \"\n")),
        ("commas", Format::Toml, format!("a = [{}", fill(","))),
        ("open lists", Format::Toml, format!("a = {}", fill("["))),
        ("open headers", Format::Toml, fill("[a.b\n")),
        ("lines", Format::Toml, fill("\n")),
        ("one character", Format::Toml, fill("ü")),
        (
            "one handler",
            Format::Toml,
            format!("[[services]]\nports = {{ port = 1, handlers = [\"{}\"] }}\n", fill("h")),
        ),
        ("open lists", Format::Json, fill("[")),
        ("open tables", Format::Json, fill("{\"a\":")),
        ("keys", Format::Json, format!("{{{}\"b\":1}}", fill("\"a\":1,"))),
        ("backslashes", Format::Json, format!("{{\"{}", fill("\\"))),
        ("digits", Format::Json, format!("{{\"a\":{}}}", fill("1"))),
        ("nulls", Format::Json, format!("{{\"env\":[{}null]}}", fill("null,"))),
        ("open lists", Format::Yaml, fill("[")),
        ("list signs", Format::Yaml, fill("- ")),
        ("key signs", Format::Yaml, fill("? ")),
        ("anchors", Format::Yaml, fill("&a ")),
        ("tags", Format::Yaml, fill("!a ")),
        ("items", Format::Yaml, format!("env:\n{}", fill("- a: b\n"))),
        ("keys", Format::Yaml, (0..SIZE / 20).map(|i| format!("key{i}: {i}\n")).collect()),
        ("texts", Format::Yaml, format!("a: \"{}\"", fill("x y\\n"))),
        ("aliases", Format::Yaml, format!("a: &a b\nc: [{}]\n", fill("*a, "))),
        ("deeper lines", Format::Yaml, (0..700).map(|i| format!("{}a:\n", " ".repeat(i))).collect()),
        ("documents", Format::Yaml, fill("---\n")),
        ("one word", Format::Yaml, fill("x")),
        ("words", Format::Yaml, fill("x\n")),
        ("one character", Format::Yaml, fill("ü")),
    ]
}

#[test]
#[allow(clippy::disallowed_methods, reason = "it measures the reading, nothing depends on the time")]
fn long_files_are_read_in_time_and_say_little() {
    for (name, format, text) in heavy() {
        assert!(text.len() <= SIZE, "{format:?} {name}: {}", text.len());
        let start = Instant::now();
        let loaded = load(&text, format);
        let page = render("f", &text, &loaded.diagnostics);
        let took = start.elapsed();
        assert!(loaded.diagnostics.len() <= 101, "{format:?} {name}");
        assert!(page.len() < 200_000, "{format:?} {name}: {}", page.len());
        // Far above what a linear reading takes in a debug build, far below what a square one does.
        assert!(took < Duration::from_secs(20), "{format:?} {name} took {took:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes_give_a_value_or_errors_in_every_format(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for format in [Format::Toml, Format::Json, Format::Yaml] {
            let loaded = load(&bytes, format);
            prop_assert_eq!(loaded.config.is_none(), loaded.of(Severity::Error).next().is_some());
            render("f", &String::from_utf8_lossy(&bytes), &loaded.diagnostics);
        }
    }

    #[test]
    fn any_text_of_their_signs_gives_a_value_or_errors(
        text in "([\\[\\]{}:,&*!|>'\"%@`#?=<~.\\-+ \\n\\t\\r\\\\a01ü\u{feff}]|---|<<|\\.\\.\\.|app|env|services){0,80}",
    ) {
        for format in [Format::Toml, Format::Json, Format::Yaml] {
            let loaded = load(&text, format);
            prop_assert_eq!(loaded.config.is_none(), loaded.of(Severity::Error).next().is_some());
            for diagnostic in &loaded.diagnostics {
                prop_assert!(text.get(diagnostic.span.clone()).is_some(), "{:?} {:?}", format, diagnostic);
            }
        }
    }

    #[test]
    fn a_changed_file_that_still_loads_loads_from_its_normal_form_too(
        yaml in any::<bool>(),
        cuts in prop::collection::vec((0usize..2000, 0usize..12, "[\\[\\]{}=.:,\"'#a-z0-9 \n_-]{0,8}"), 1..4),
    ) {
        let (source, format) = if yaml { (formats::YAML, Format::Yaml) } else { (LARGE, Format::Toml) };
        let mut text: Vec<char> = source.chars().collect();
        for (at, length, new) in cuts {
            let at = at % (text.len() + 1);
            let end = (at + length).min(text.len());
            text.splice(at..end, new.chars());
        }
        let text: String = text.into_iter().collect();
        if let Some(config) = load(&text, format).config {
            let normal = serde_json::to_string(&config).unwrap();
            for format in [Format::Json, Format::Yaml] {
                let again = load(&normal, format);
                prop_assert_eq!(again.config.as_ref(), Some(&config), "{:?} {:#?}", format, again.diagnostics);
            }
            {
                let normal = ::toml::to_string(&config).unwrap();
                let again = read(&normal);
                prop_assert_eq!(again.config.as_ref(), Some(&config), "{}", normal);
            }
        }
    }
}
