//! The rules of `COMPAT` section 4 that services, processes, checks and limits have; the
//! diagnostics; and that no input makes it panic.

mod bad;
mod formats;
mod kept;
mod rules;
mod shown;
mod sizes;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::machine::MachineConfig;

fn read(text: &str) -> Loaded {
    load(text, Format::Toml)
}

fn valid(text: &str) -> AppConfig {
    let loaded = read(text);
    let said: Vec<String> = loaded.of(Severity::Error).map(ToString::to_string).collect();
    loaded.config.unwrap_or_else(|| panic!("{said:#?}"))
}

fn machine(text: &str, group: &str) -> MachineConfig {
    valid(text).machine(&group.parse().unwrap()).unwrap()
}

/// `line:column: severity: key: message` of everything that is said.
fn said(text: &str) -> Vec<String> {
    read(text).diagnostics.iter().map(ToString::to_string).collect()
}

const EXPRESS: &str = r#"
app = "todo"
primary_region = "iad"
kill_signal = "SIGTERM"
kill_timeout = 10

[env]
NODE_ENV = "production"
RETRIES = 3
VERBOSE = true

[http_service]
internal_port = "3000"
force_https = true
auto_stop_machines = "suspend"
auto_start_machines = false
min_machines_running = 2

[http_service.concurrency]
type = "requests"
soft_limit = 10
hard_limit = 25

[[http_service.checks]]
interval = "10s"
timeout = 2000
grace_period = "5s"
method = "GET"
path = "/health"
headers = { X-Probe = 1 }
"#;

#[test]
fn an_http_service_expands_to_80_and_443() {
    let config = serde_json::to_value(machine(EXPRESS, "app")).unwrap();
    assert_eq!(
        config,
        json!({
            "env": {"NODE_ENV": "production", "RETRIES": "3", "VERBOSE": "true",
                    "FLY_PROCESS_GROUP": "app", "PRIMARY_REGION": "iad"},
            "init": {},
            "metadata": {"fly_platform_version": "v2", "fly_process_group": "app"},
            "restart": {},
            "stop_config": {"signal": "SIGTERM", "timeout": "10s"},
            "services": [{
                "protocol": "tcp",
                "internal_port": 3000,
                "autostop": "suspend",
                "autostart": false,
                "min_machines_running": 2,
                "concurrency": {"type": "requests", "soft_limit": 10, "hard_limit": 25},
                "ports": [
                    {"port": 80, "handlers": ["http"], "force_https": true},
                    {"port": 443, "handlers": ["http", "tls"]}
                ],
                "checks": [{"type": "http", "interval": "10s", "timeout": "2s", "grace_period": "5s",
                            "method": "GET", "path": "/health",
                            "headers": [{"name": "X-Probe", "values": ["1"]}]}]
            }]
        })
    );
    assert!(said(EXPRESS).is_empty());
}

#[test]
fn process_groups_get_their_own_services_checks_and_commands() {
    let text = r#"
[processes]
web = "node server.js --name 'a b'"
worker = "node worker.js"
cron = ""
[http_service]
processes = ["web"]
[[services]]
processes = ["worker", "web"]
internal_port = 9000
protocol = "tcp"
[[services.ports]]
port = "9000"
[[services.tcp_checks]]
interval = "15s"
[checks.alive]
type = "http"
port = 9000
method = "get"
processes = ["worker"]
[[restart]]
policy = "never"
processes = ["worker"]
[[vm]]
size = "shared-cpu-2x"
[[vm]]
memory = "1gb"
processes = ["worker"]
"#;
    let config = valid(text);
    let names: Vec<String> = config.groups().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["cron", "web", "worker"]);
    assert_eq!(config.default_group().as_str(), "cron", "no group is called app: the first by name");

    let web = machine(text, "web");
    assert_eq!(web.init.cmd, ["node", "server.js", "--name", "a b"]);
    assert_eq!(web.services.iter().map(|s| s.internal_port).collect::<Vec<_>>(), [8080, 9000]);
    assert_eq!(web.process_group().as_str(), "web");
    assert!(web.checks.is_empty());
    assert_eq!(web.restart.policy, None);
    let guest = web.guest.unwrap();
    assert_eq!((guest.cpus, guest.memory_mb), (Some(2), Some(512)));

    let worker = machine(text, "worker");
    assert_eq!(worker.services.len(), 1);
    assert_eq!(worker.services[0].checks[0].kind, "tcp");
    assert_eq!(worker.checks["alive"].method.as_deref(), Some("GET"));
    assert_eq!(worker.restart.policy, Some(crate::machine::RestartPolicy::No));
    assert_eq!(worker.guest.unwrap().memory_mb, Some(1024));

    assert!(machine(text, "cron").services.is_empty());
    assert!(machine(text, "cron").init.cmd.is_empty());
    assert_eq!(config.machine(&"nobody".parse().unwrap()), None);
}

#[test]
fn a_file_without_processes_has_the_group_app() {
    let config = machine("[http_service]\n[experimental]\ncmd = [\"run\", \"it\"]\n", "app");
    assert_eq!(config.services[0].internal_port, 8080, "the default of SVC-2");
    assert_eq!(config.init.cmd, ["run", "it"]);
    assert_eq!(valid("").machine(&crate::ProcessGroup::app()).unwrap().services, []);
}

#[test]
fn auto_stop_is_read_in_its_old_and_new_form() {
    use crate::machine::Autostop::{Off, Stop, Suspend};
    let forms =
        [("\"off\"", Off), ("false", Off), ("\"stop\"", Stop), ("true", Stop), ("\"suspend\"", Suspend)];
    for (form, means) in forms {
        let config = machine(&format!("[http_service]\nauto_stop_machines = {form}\n"), "app");
        assert_eq!(config.services[0].autostop, Some(means), "{form}");
    }
    assert_eq!(
        said("[http_service]\nauto_stop_machines = \"of\"\n"),
        [
            "2:22: error: http_service.auto_stop_machines: expected \"off\", \"stop\", \"suspend\", false or true, \
          found the string \"of\"; did you mean \"off\"?"
        ]
    );
}

#[test]
fn concurrency_is_read_in_its_old_form_and_refused_as_a_number() {
    let config = machine("[http_service]\nconcurrency = \"12,23\"\n", "app");
    let limits = config.services[0].concurrency.clone().unwrap();
    assert_eq!(
        (limits.kind.as_str(), limits.soft_limit, limits.hard_limit),
        ("requests", Some(12), Some(23))
    );
    assert!(!read("[http_service]\nconcurrency = 20\n").is_valid());
    assert!(
        said("[http_service.concurrency]\nsoft_limit = 30\nhard_limit = 20\n")[0].contains("counts as 20")
    );
    assert!(said("[http_service.concurrency]\ntype = \"donuts\"\n")[0].contains("counts as connections"));
}

#[test]
fn durations_without_a_unit_mean_what_their_key_says() {
    let config = valid(
        "kill_timeout = 3\n[deploy]\nwait_timeout = 5000000000\n[[http_service.checks]]\ninterval = 2500\n",
    );
    let seconds = |duration: Option<crate::machine::GoDuration>| duration.unwrap().0.as_secs_f64();
    assert_eq!(seconds(config.kill_timeout), 3.0);
    assert_eq!(seconds(config.deploy.wait_timeout), 5.0);
    assert_eq!(seconds(config.http_service.unwrap().checks[0].interval), 2.5);
}

#[test]
fn an_unknown_key_is_a_warning_that_names_the_nearest_one() {
    let text = "[http_service]\ninternal_prot = 3000\nzzzzzzzz = 1\n";
    assert_eq!(
        said(text),
        [
            "2:1: warning: http_service.internal_prot: unknown key, it has no effect; \
             did you mean `internal_port`?",
            "3:1: warning: http_service.zzzzzzzz: unknown key, it has no effect"
        ]
    );
    assert!(read(text).is_valid());
}

#[test]
fn sections_outside_networking_are_kept_and_reported_by_name() {
    let loaded = read("[[mounts]]\nsource = \"data\"\ndestination = \"/data\"\n");
    assert_eq!(loaded.of(Severity::Note).map(|d| d.key_path.as_str()).collect::<Vec<_>>(), ["mounts"]);
    assert_eq!(loaded.config.unwrap().kept["mounts"][0]["source"], "data");
}

#[test]
fn all_errors_of_a_file_come_at_once_in_its_order() {
    let text = "app = 5\nprimary_region = \"Ohio\"\n[http_service]\ninternal_port = 70000\n\
                force_https = \"yes\"\n[[services]]\nprotocol = \"sctp\"\n\
                [[services.ports]]\nport = 5432\nhandlers = [\"pgtls\"]\n";
    let said = said(text);
    let starts: Vec<&str> = said.iter().map(|text| text.split(' ').next().unwrap()).collect();
    assert_eq!(starts, ["1:7:", "2:18:", "4:17:", "5:15:", "7:12:", "10:12:"], "{said:#?}");
    assert!(said[5].contains("there is no handler \"pgtls\""), "{said:#?}");
}

#[test]
fn a_primary_region_that_does_not_exist_is_an_error_that_names_near_ones() {
    assert!(read("primary_region = \"lhr\"\n").is_valid());
    for wrong in ["lrh", "LHR", "zzz"] {
        let said = said(&format!("app = \"a\"\nprimary_region = \"{wrong}\"\n"));
        assert_eq!(said.len(), 1, "{said:#?}");
        assert!(said[0].starts_with("2:18: error: primary_region: there is no region"), "{said:#?}");
        assert!(wrong == "zzz" || said[0].contains("near ones are lhr"), "{said:#?}");
    }
}

/// SPEC CLU-8; `tomachine.toml` of flyctl's test data names `mia`.
#[test]
fn a_region_that_was_given_up_is_a_warning() {
    for code in ["mia", "scl", "sea", "bos"] {
        let text = format!("app = \"a\"\nprimary_region = \"{code}\"\n");
        let said = said(&text);
        let warning = format!("2:18: warning: primary_region: there is no region {code:?}; near ones are ");
        assert!(said.len() == 1 && said[0].starts_with(&warning), "{said:#?}");
        assert!(said[0].ends_with("or deploy with --regions"), "{said:#?}");
        assert_eq!(machine(&text, "app").env["PRIMARY_REGION"], code);
    }
}

#[test]
fn two_services_cannot_claim_one_port() {
    let service = |protocol: &str, port: &str| {
        format!("[[services]]\nprotocol = \"{protocol}\"\n[[services.ports]]\n{port}\n")
    };
    let clash =
        format!("{}{}", service("tcp", "port = 5000"), service("", "start_port = 4000\nend_port = 6000"));
    let errors = said(&clash);
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert!(
        errors[0].contains("services[1].ports[0].start_port: TCP port 5000 is taken by services[0]"),
        "{errors:#?}"
    );

    let apart = format!("{}{}", service("tcp", "port = 5000"), service("udp", "port = 5000"));
    assert!(read(&apart).is_valid(), "the protocol tells them apart");

    let http = format!("[http_service]\n{}", service("tcp", "port = 443"));
    assert!(said(&http)[0].contains("TCP port 443 is taken by http_service already"));
    assert!(said(&service("tcp", "start_port = 6000\nend_port = 4000"))[0].contains("runs backwards"));
}

#[test]
fn a_range_may_be_open_at_one_side() {
    let config = machine("[[services]]\n[[services.ports]]\nstart_port = 60000\n", "app");
    assert_eq!(config.services[0].ports[0].range(), 60000..=65535);
    let none = "[[services]]\n[[services.ports]]\nhandlers = []\n";
    assert!(
        said(none)[0].contains("has no effect")
            && machine(none, "app").services[0].ports[0].range().is_empty()
    );
}

#[test]
fn force_https_goes_only_with_the_http_handler() {
    let port = |handlers: &str| {
        format!("[[services]]\n[[services.ports]]\nport = 1\nhandlers = [{handlers}]\nforce_https = true\n")
    };
    assert!(read(&port("\"http\"")).is_valid());
    for handlers in ["", "\"tls\", \"http\"", "\"tls\""] {
        assert!(!read(&port(handlers)).is_valid(), "{handlers}");
    }
}

#[test]
fn with_processes_a_service_names_groups_that_exist() {
    let text = |groups: &str| format!("[processes]\nweb = \"run\"\n[http_service]\n{groups}\n");
    assert!(read(&text("processes = [\"web\"]")).is_valid());
    assert!(said(&text(""))[0].contains("a service needs `processes`"));
    assert!(
        said(&text("processes = [\"wbe\"]"))[0].ends_with("no process group \"wbe\"; did you mean \"web\"?")
    );
}

#[test]
fn old_forms_of_sections_mean_the_same() {
    let list = valid("[[processes]]\nname = \"web\"\ncommand = \"run\"\n");
    assert_eq!(list.processes, valid("[processes]\nweb = \"run\"\n").processes);
    let env = valid("[[env]]\nA = 1\n[[env]]\nA = \"2\"\nB = true\n").env;
    assert_eq!(env.into_iter().collect::<Vec<_>>(), [("A".into(), "2".into()), ("B".into(), "true".into())]);
    let single = valid("[services]\ninternal_port = 1\n[services.ports]\nport = 2\n");
    assert_eq!(single.services[0].ports[0].port, Some(2));
    assert!(valid("[[services]]\n").services.is_empty(), "an empty service is dropped");
    assert_eq!(valid("[compute]\ncpus = 2\n").vm[0].cpus, Some(2));
    let headers = "[[http_service.checks]]\nheaders = [{ name = \"A\", value = 1 }]\n";
    assert_eq!(valid(headers).http_service.unwrap().checks[0].headers["A"], "1");
}

#[test]
fn a_top_level_check_takes_its_port_from_the_http_service_of_its_group() {
    let check = "[checks.a]\ntype = \"tcp\"\n";
    assert!(said(check)[0].contains("needs a `port`"));
    let with = machine(&format!("{check}[http_service]\ninternal_port = 3000\n"), "app");
    assert_eq!(with.checks["a"].port, Some(3000));
    let other = "[processes]\napp = \"\"\nweb = \"\"\n[http_service]\nprocesses = [\"web\"]\n";
    assert!(!read(&format!("{other}{check}")).is_valid(), "the group app has no http_service");
}

#[test]
fn what_is_not_toml_is_shown_where_it_breaks_and_the_name_is_still_known() {
    let loaded = read("app = \"todo\"\nfoo = \n[env]\nA = \"open\n");
    assert!(loaded.config.is_none());
    assert_eq!(loaded.app.as_deref(), Some("todo"));
    assert!(loaded.diagnostics.iter().all(|d| d.message.starts_with("this is not TOML")));
    let lines: Vec<usize> = loaded.diagnostics.iter().map(|d| d.line).collect();
    assert_eq!(lines, [2, 4], "{:#?}", loaded.diagnostics);
}

#[test]
fn a_diagnostic_shows_the_line_with_the_place_marked() {
    let text = "app = \"ok\"\n  kill_timeout = \"1 minute\"\n";
    let shown = read(text).diagnostics[0].render("fly.toml", text);
    assert_eq!(
        shown,
        "fly.toml:2:18: error: kill_timeout: expected a duration such as \"15s\" or \"1m30s\", or a number \
         of seconds, found the string \"1 minute\"\n  |\n2 |   kill_timeout = \"1 minute\"\n  |                  ^^^^^^^^^^"
    );
}

#[test]
fn columns_count_characters_also_behind_others_than_ascii() {
    assert!(said("env = { \"Ü\" = \"ß\", X = [] }\n")[0].starts_with("1:24: error: env.X"));
}

#[test]
fn bytes_that_are_no_text_and_files_that_are_no_configuration_are_refused() {
    let loaded = load(b"app = \"a\"\n\xff", Format::Toml);
    assert_eq!((loaded.diagnostics[0].line, loaded.diagnostics[0].column), (2, 1));
    let huge = vec![b'a'; MAX_BYTES + 1];
    assert!(load(&huge, Format::Toml).diagnostics[0].message.contains("is this the right file?"));
}

#[test]
fn depth_is_bounded_in_keys_lists_and_tables() {
    let keys = format!("{}b = 1\n", "a.".repeat(100_000));
    let headers = format!("[{}b]\n", "\"=\".".repeat(100_000));
    let lists = format!("a = {}\n", "[".repeat(100_000));
    let tables = format!("a = {}\n", "{a.a.a.a = ".repeat(10_000));
    for text in [keys, headers, lists, tables] {
        assert!(!read(&text).is_valid());
    }
}

#[test]
fn a_flood_of_mistakes_is_counted_and_keeps_its_errors() {
    let mut text = "unknown_key_1 = 1\n".to_owned();
    for index in 2..5_000 {
        text.push_str(&format!("unknown_key_{index} = 1\n"));
    }
    text.push_str("app = 7\n");
    let loaded = read(&text);
    assert_eq!(loaded.diagnostics.len(), 101);
    assert_eq!(loaded.of(Severity::Error).count(), 1, "the error is not lost behind the warnings");
    assert!(loaded.diagnostics[100].message.starts_with("4900 more"), "{:?}", loaded.diagnostics[100]);
}

/// A file that uses most keys, for the round trip and as food for mutation.
const LARGE: &str = r#"
app = "big"
primary_region = "lhr"
kill_timeout = "1m30s"
[build]
image = "skein/hello"
dockerfile = "Dockerfile"
[deploy]
strategy = "bluegreen"
max_unavailable = 0.5
release_command = "migrate --all"
[env]
A = "b"
[processes]
app = "serve"
worker = "work 'hard'"
[http_service]
internal_port = 3000
auto_stop_machines = true
processes = ["app"]
[http_service.http_options]
compress = true
idle_timeout = "90s"
[http_service.http_options.response]
pristine = true
[http_service.http_options.response.headers]
X-A = ["1", "2"]
Server = false
[[http_service.http_options.replay_cache]]
path_prefix = "/u"
ttl_seconds = 60
type = "cookie"
name = "sid"
[http_service.tls_options]
alpn = ["h2", "http/1.1"]
[[services]]
internal_port = 5432
protocol = "tcp"
processes = ["worker"]
[[services.ports]]
port = 5432
handlers = ["pg_tls"]
[[services.ports]]
start_port = 10000
end_port = 10010
handlers = ["proxy_proto", "tls"]
[services.ports.proxy_proto_options]
version = "v2"
[[services.tcp_checks]]
interval = "15s"
[checks.up]
type = "http"
port = 3000
path = "/up?full=1"
[[restart]]
policy = "always"
retries = 5
[[vm]]
size = "performance-1x"
gpus = 1
[[statics]]
guest_path = "/public"
url_prefix = "/"
"#;

#[test]
fn the_normal_form_loads_to_the_same_value() {
    for text in [EXPRESS, LARGE, "", "[http_service]\nauto_stop_machines = false\n"] {
        let config = valid(text);
        let normal = ::toml::to_string(&config).unwrap();
        assert_eq!(valid(&normal), config, "{normal}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let loaded = load(&bytes, Format::Toml);
        prop_assert_eq!(loaded.config.is_none(), loaded.of(Severity::Error).next().is_some());
    }

    #[test]
    fn no_mutation_of_a_real_file_makes_it_panic(
        cuts in prop::collection::vec((0usize..2000, 0usize..40, "[\\[\\]{}=.,\"'#a-z0-9 \n_-]{0,12}"), 1..6),
    ) {
        let mut text: Vec<char> = LARGE.chars().collect();
        for (at, length, new) in cuts {
            let at = at.min(text.len());
            let end = (at + length).min(text.len());
            text.splice(at..end, new.chars());
        }
        let text: String = text.into_iter().collect();
        let loaded = load(&text, Format::Toml);
        prop_assert_eq!(loaded.config.is_none(), loaded.of(Severity::Error).next().is_some());
        for diagnostic in &loaded.diagnostics {
            // Rendering must hold for every place that is reported.
            prop_assert!(diagnostic.render("fly.toml", &text).contains(&diagnostic.message));
        }
        if let Some(config) = loaded.config {
            for group in config.groups() {
                prop_assert!(config.machine(&group).is_some());
            }
        }
    }

    #[test]
    fn ports_clash_exactly_when_ranges_of_one_protocol_meet(
        ranges in prop::collection::vec((1u16..60, 0u16..20, any::<bool>()), 1..6),
    ) {
        let mut text = String::new();
        for (start, length, udp) in &ranges {
            let protocol = if *udp { "udp" } else { "tcp" };
            let end = start + length;
            text.push_str(&format!(
                "[[services]]\nprotocol = \"{protocol}\"\n[[services.ports]]\nstart_port = {start}\nend_port = {end}\n"
            ));
        }
        let meets = ranges.iter().enumerate().any(|(i, a)| {
            ranges[..i].iter().any(|b| a.2 == b.2 && a.0 <= b.0 + b.1 && b.0 <= a.0 + a.1)
        });
        prop_assert_eq!(!read(&text).is_valid(), meets);
    }
}
