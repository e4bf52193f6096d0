//! JSON and YAML mean what TOML means, with their own places.

use std::path::Path;

use super::*;

fn said_of(text: &str, format: Format) -> Vec<String> {
    load(text, format).diagnostics.iter().map(ToString::to_string).collect()
}

#[test]
fn a_files_name_says_its_format() {
    for (name, format) in [
        ("fly.toml", Format::Toml),
        ("a/fly.json", Format::Json),
        ("fly.yaml", Format::Yaml),
        ("fly.yml", Format::Yaml),
        ("fly", Format::Toml),
    ] {
        assert_eq!(Format::of(Path::new(name)), format, "{name}");
    }
}

#[test]
fn the_normal_form_loads_to_the_same_value_in_every_format() {
    for text in [EXPRESS, LARGE, ""] {
        let config = valid(text);
        let json = serde_json::to_string_pretty(&config).unwrap();
        // JSON is YAML too.
        for format in [Format::Json, Format::Yaml] {
            let loaded = load(&json, format);
            assert_eq!(loaded.config.as_ref(), Some(&config), "{format:?} {:#?}", loaded.diagnostics);
        }
    }
}

#[test]
fn the_normal_form_is_toml_also_with_kept_keys_of_any_kind() {
    let text = "console_command = \"sh\"\nswap_size_mb = 512\nuser_data = { a = [1, { b = inf }], c = nan, d = 1979-05-27 }\n\
                [env]\nA = 1\n[build]\nbuilder = \"x\"\n[build.args]\nB = \"2\"\n[build.settings]\nc = -inf\nd = 2.0\ne = 2e300\n\
                [[statics]]\nguest_path = \"/a\"\n[experimental]\nenable_consul = true\n";
    let config = valid(text);
    let normal = ::toml::to_string(&config).unwrap();
    assert_eq!(valid(&normal), config, "{normal}");
    let json = serde_json::to_string(&config).unwrap();
    for format in [Format::Json, Format::Yaml] {
        assert_eq!(load(&json, format).config.as_ref(), Some(&config), "{format:?} {json}");
    }
}

pub(super) const YAML: &str = r#"
# a file as flyctl writes it
app: todo
primary_region: iad
kill_timeout: 10
env:
  NODE_ENV: production
  PORT: 8080
  ANSWER: "42"
  EMPTY:
  YES: yes
processes:
  web: |
    node server.js
  worker: >-
    node
    worker.js
http_service:
  internal_port: "3000"
  auto_stop_machines: suspend
  processes: [web]
  concurrency: {type: requests, soft_limit: 10, hard_limit: 25}
  checks:
    - &probe
      interval: 10s
      timeout: 2000
      path: /health
    - <<: *probe
      path: /deep
services:
  - protocol: tcp
    processes:
    - worker
    ports:
    - port: 5432
      handlers: [pg_tls]
"#;

#[test]
fn yaml_is_read_with_its_scalars_blocks_anchors_and_merges() {
    let loaded = load(YAML, Format::Yaml);
    let config = loaded.config.unwrap_or_else(|| panic!("{:#?}", loaded.diagnostics));
    assert_eq!(config.kill_timeout.unwrap().0.as_secs(), 10);
    let env: Vec<(&str, &str)> = config.env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(env, [("ANSWER", "42"), ("NODE_ENV", "production"), ("PORT", "8080"), ("YES", "yes")]);
    let web = config.machine(&"web".parse().unwrap()).unwrap();
    assert_eq!(web.init.cmd, ["node", "server.js"]);
    assert_eq!(web.services[0].internal_port, 3000);
    let checks = &web.services[0].checks;
    assert_eq!((checks[0].path.as_deref(), checks[1].path.as_deref()), (Some("/health"), Some("/deep")));
    assert_eq!(checks[0].interval, checks[1].interval);
    let worker = config.machine(&"worker".parse().unwrap()).unwrap();
    assert_eq!(worker.init.cmd, ["node", "worker.js"]);
    assert_eq!(worker.services[0].ports[0].port, Some(5432));
}

#[test]
fn mistakes_are_shown_at_their_place_in_every_format() {
    let json = "{\n  \"app\": \"ü\",\n  \"http_service\": {\"internal_prot\": 1, \"force_https\": \"yes\"},\n  \"kill_timeout\": []\n}";
    let expected = [
        "2:10: error: app: ",
        "3:20: warning: http_service.internal_prot: unknown key",
        "3:55: error: http_service.force_https: expected true or false, found the string \"yes\"",
        "4:19: error: kill_timeout: expected a duration",
    ];
    let said = said_of(json, Format::Json);
    assert_eq!(said.len(), expected.len(), "{said:#?}");
    assert!(said.iter().zip(expected).all(|(said, start)| said.starts_with(start)), "{said:#?}");

    let yaml = "app: ü\nhttp_service:\n  internal_prot: 1\n  force_https: \"yes\"\nkill_timeout: [ü, 1]\n";
    let expected = [
        "1:6: error: app: ",
        "3:3: warning: http_service.internal_prot: unknown key",
        "4:16: error: http_service.force_https: expected true or false, found the string \"yes\"",
        "5:15: error: kill_timeout: expected a duration",
    ];
    let said = said_of(yaml, Format::Yaml);
    assert_eq!(said.len(), expected.len(), "{said:#?}");
    assert!(said.iter().zip(expected).all(|(said, start)| said.starts_with(start)), "{said:#?}");
    let shown = load(yaml, Format::Yaml).diagnostics[3].render("fly.yaml", yaml);
    assert!(shown.ends_with("5 | kill_timeout: [ü, 1]\n  |               ^^^^^^"), "{shown}");
}

#[test]
fn what_is_not_json_is_refused_where_it_breaks_and_the_name_is_still_known() {
    for (text, place, message) in [
        ("", "1:1:", "expected a value, found the end"),
        ("{\"app\": \"a\",}", "1:13:", "expected a key in double quotes, found '}'"),
        ("{\"app\": \"a\" \"b\": 1}", "1:13:", "expected \",\" or \"}\""),
        ("{\"app\": \"a\", \"b\" 1}", "1:18:", "expected \":\""),
        ("{\"app\": \"a\", b: 1}", "1:14:", "expected a key"),
        ("{\"app\": \"a\", \"b\": tru}", "1:19:", "expected a value"),
        ("{\"app\": \"a\", \"b\": 01}", "1:19:", "not a number"),
        ("{\"app\": \"a\", \"b\": \"\\x\"}", "1:19:", "escape"),
        ("{\"app\": \"a\", \"b\": \"open\n\"}", "1:24:", "closing quote"),
        ("{\"app\": \"a\"} // ", "1:14:", "expected the end of the file, found '/'"),
        ("{\"app\": \"a\", \"env\": [1, null]}", "1:25:", "null has no place"),
        ("[]", "1:1:", "expected a table, found a list"),
        ("{...}", "1:2:", "expected a key"),
    ] {
        let loaded = load(text, Format::Json);
        let said = said_of(text, Format::Json);
        assert!(
            !loaded.is_valid() && said[0].starts_with(place) && said[0].contains(message),
            "{text}: {said:#?}"
        );
        assert_eq!(loaded.app.is_some(), text.contains("app"), "{text}");
    }
    let twice = load("{\"app\": \"a\", \"app\": \"b\", \"env\": null}", Format::Json);
    assert_eq!(twice.app.as_deref(), Some("b"), "the last counts");
    assert!(twice.is_valid() && twice.of(Severity::Warning).count() == 1);
    assert_eq!(valid("").http_service, None);
    let port = load("{\"http_service\": {\"internal_port\": 3.0e3}}", Format::Json).config.unwrap();
    assert_eq!(port.http_service.unwrap().settings.internal_port, 3000, "a whole number however written");
}

#[test]
fn what_is_not_yaml_is_refused_where_it_breaks() {
    for (text, line, message) in [
        ("app: a\nenv: [1\n", 3, "this is not YAML"),
        ("app: a\n\tenv: 1\n", 1, "this is not YAML"),
        ("app: a\nenv: *nobody\n", 2, "this is not YAML"),
        ("app: a\napp: b\n", 2, "the key \"app\" is there twice"),
        ("app: a\n? [b]\n: 1\n", 2, "a key is one text"),
        ("app: a\nenv:\n  - \n", 3, "no place in a list"),
        ("app: a\nenv: &e\n  A: *e\n", 3, ""),
        ("app: a\nenv: {<<: 1}\n", 2, "`<<` merges"),
        ("app: a\nenv: {<<: [1]}\n", 2, "`<<` merges"),
        ("- app: a\n", 1, "expected a table, found a list"),
        ("just text", 1, "expected a table, found the string"),
    ] {
        let loaded = load(text, Format::Yaml);
        let said = said_of(text, Format::Yaml);
        assert!(!loaded.is_valid(), "{text}");
        let first = &loaded.diagnostics[0];
        assert!(first.line == line && first.message.contains(message), "{text}: {said:#?}");
    }
    assert!(load("# nothing\n", Format::Yaml).is_valid());
    let two = load("app: a\n---\napp: 7\n", Format::Yaml);
    assert!(two.is_valid() && two.of(Severity::Warning).count() == 1, "{:#?}", two.diagnostics);
}

#[test]
fn plain_scalars_of_yaml_mean_what_go_reads() {
    for (text, means) in [
        ("0x1F", "31"),
        ("0o17", "15"),
        ("017", "15"),
        ("0b11", "3"),
        ("1_000", "1000"),
        ("-5", "-5"),
        ("089", "89"),
        ("1.0", "1"),
        ("2.5", "2.5"),
        ("1e3", "1000"),
        (".inf", "+Inf"),
        ("True", "true"),
        ("on", "on"),
        ("1.2.3.4", "1.2.3.4"),
        ("10:30", "10:30"),
        ("infinity", "infinity"),
        ("-", "-"),
        ("2024-01-01", "2024-01-01"),
        ("!!str 17", "17"),
        ("!!str true", "true"),
        ("'007'", "007"),
    ] {
        let loaded = load(format!("env: {{A: {text} }}\n"), Format::Yaml);
        let env = loaded.config.map(|config| config.env["A"].clone());
        if text == "-" {
            assert_eq!(env, None, "a list item inside of a table");
        } else {
            assert_eq!(env.as_deref(), Some(means), "{text}");
        }
    }
}

#[test]
fn aliases_cannot_make_a_small_file_large() {
    let mut laughs = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 9].join(", ");
        laughs.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    let loaded = load(&laughs, Format::Yaml);
    assert!(!loaded.is_valid());
    let said = said_of(&laughs, Format::Yaml);
    assert!(said.iter().any(|said| said.contains("the aliases of this file make it too large")), "{said:#?}");

    let wide = format!("x: &x {:?}\nenv:\n{}", "y".repeat(10_000), "  - A: *x\n".repeat(50_000));
    assert!(!load(&wide, Format::Yaml).is_valid());

    // A use that people have fits.
    let mut many =
        "x: &x {interval: 10s, path: /health, headers: {A: b}}\nhttp_service:\n  checks:\n".to_owned();
    many.push_str(&"  - *x\n".repeat(100));
    let config = load(&many, Format::Yaml).config.unwrap();
    assert_eq!(config.http_service.unwrap().checks.len(), 100);
}
