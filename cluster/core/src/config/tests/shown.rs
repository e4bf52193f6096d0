//! Diagnostics as people see them.

use super::*;

#[test]
fn all_errors_of_a_file_are_shown_at_once_with_their_lines_and_the_sum() {
    let text = "app = \"ok\"\n[http_service]\n\tinternal_prot = 3000\n  auto_stop_machines = \"of\"\n\
                [[services]]\nprotocol = \"tpc\"\nports = { port = 22, handlers = [\"htp\"] }\n[[mounts]]\nsource = \"a\"\n";
    let expected = "\
fly.toml:3:2: warning: http_service.internal_prot: unknown key, it has no effect; did you mean `internal_port`?
  |
3 |  internal_prot = 3000
  |  ^^^^^^^^^^^^^
fly.toml:4:24: error: http_service.auto_stop_machines: expected \"off\", \"stop\", \"suspend\", false or true, \
found the string \"of\"; did you mean \"off\"?
  |
4 |   auto_stop_machines = \"of\"
  |                        ^^^^
fly.toml:6:12: error: services[0].protocol: expected \"tcp\" or \"udp\", found \"tpc\"; did you mean \"tcp\"?
  |
6 | protocol = \"tpc\"
  |            ^^^^^
fly.toml:7:33: error: services[0].ports.handlers: there is no handler \"htp\"; the handlers are http, tls, \
pg_tls and proxy_proto; did you mean \"http\"?
  |
7 | ports = { port = 22, handlers = [\"htp\"] }
  |                                 ^^^^^^^
fly.toml:8:1: note: mounts: this is kept and has no effect in Skein
  |
8 | [[mounts]]
  | ^^^^^^^^^^
fly.toml: 3 errors, 1 warning, 1 note
";
    let page = render("fly.toml", text, &read(text).diagnostics);
    assert_eq!(page, expected, "{page}");
}

#[test]
fn one_is_shown_as_in_the_page_and_nothing_is_shown_of_nothing() {
    let text = "app = 1\nprimary_region = 2\n\n[env]\nA = []\n";
    let loaded = read(text);
    let each: String = loaded.diagnostics.iter().map(|d| d.render("f", text) + "\n").collect();
    assert_eq!(render("f", text, &loaded.diagnostics), each + "f: 3 errors\n");
    assert_eq!(render("f", "", &read("").diagnostics), "");
}

#[test]
fn a_long_line_is_cut_around_the_place_and_says_so() {
    let text = format!("env = {{ A = \"{}\", B = [], C = \"{}\" }}\n", "ü".repeat(300), "x".repeat(300));
    let shown = read(&text).diagnostics[0].render("f", &text);
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[2].starts_with("1 | …ü") && lines[2].ends_with("x…"), "{shown}");
    let at = lines[3].find('^').unwrap();
    let marked: String = lines[2].chars().skip(at).take(2).collect();
    assert_eq!(marked, "[]", "{shown}");
}

#[test]
fn a_file_cannot_write_to_the_terminal() {
    let text = "app = \"\u{202e}\u{1b}[31m\" # \u{200b}\r\n";
    let shown = render("f", text, &read("app = 1 # x\r\n").diagnostics);
    assert!(
        shown.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}' && c != '\u{200b}'),
        "{shown:?}"
    );
    let said = read("app = \"\u{1b}[31m\"\n\"\u{1b}k\" = 1\n");
    assert!(said.diagnostics.len() >= 2);
    for diagnostic in said.diagnostics {
        let line = diagnostic.to_string();
        assert!(line.chars().all(|c| !c.is_control()), "{line:?}");
    }
}
