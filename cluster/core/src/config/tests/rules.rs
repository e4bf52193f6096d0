//! The rules of `COMPAT` section 4, each by its number.

use serde_json::json;

use super::*;
use crate::machine::GoDuration;

fn seconds(duration: Option<GoDuration>) -> Option<f64> {
    duration.map(|duration| duration.0.as_secs_f64())
}

#[test]
fn rule_1_http_options_stand_on_both_ports_tls_options_and_no_force_https_on_443() {
    let text = "[[services]]\ninternal_port = 1\n[[services.ports]]\nport = 22\n\
                [http_service]\nforce_https = true\n[http_service.http_options]\ncompress = true\n\
                [http_service.tls_options]\nalpn = [\"h2\"]\n";
    let services = serde_json::to_value(machine(text, "app").services).unwrap();
    assert_eq!(services[0]["protocol"], "tcp", "http_service comes first, wherever the file has it");
    assert_eq!(
        services[0]["ports"],
        json!([
            {"port": 80, "handlers": ["http"], "force_https": true, "http_options": {"compress": true}},
            {"port": 443, "handlers": ["http", "tls"], "http_options": {"compress": true},
             "tls_options": {"alpn": ["h2"]}}
        ])
    );
    assert_eq!(services[1]["ports"], json!([{"port": 22}]));
}

#[test]
fn rule_2_a_protocol_has_no_default_and_ports_may_be_texts() {
    let text = "[[services]]\ninternal_port = \"8080\"\n[[services.ports]]\nport = \"80\"\n\
                [[services.ports]]\nstart_port = \"90\"\nend_port = \"95\"\n";
    let service = machine(text, "app").services.remove(0);
    assert_eq!((service.protocol.as_str(), service.internal_port), ("", 8080));
    assert_eq!((service.ports[0].range(), service.ports[1].range()), (80..=80, 90..=95));
    for wrong in ["\"eighty\"", "\"\"", "\"70000\"", "0", "-1", "80.5", "true", "[80]", "1_000_000"] {
        let text = format!("[[services]]\n[[services.ports]]\nport = {wrong}\n");
        let said = said(&text);
        assert!(said.iter().any(|s| s.contains("expected a port from 1 to 65535")), "{wrong}: {said:#?}");
    }
}

#[test]
fn rule_2_a_whole_number_may_be_written_as_any_number() {
    for (text, format) in [
        (
            "kill_timeout = 3.0\n[http_service]\ninternal_port = 3e3\nmin_machines_running = 2.0\n",
            Format::Toml,
        ),
        (
            r#"{"kill_timeout": 3.0, "http_service": {"internal_port": 3e3, "min_machines_running": 2.0}}"#,
            Format::Json,
        ),
        ("kill_timeout: 3.0\nhttp_service: {internal_port: 3e3, min_machines_running: 2.0}\n", Format::Yaml),
    ] {
        let config = load(text, format).config.unwrap_or_else(|| panic!("{text}"));
        let http = config.http_service.unwrap().settings;
        assert_eq!((http.internal_port, http.min_machines_running), (3000, Some(2)), "{text}");
        assert_eq!(seconds(config.kill_timeout), Some(3.0), "{text}");
    }
    for wrong in ["2.5", "-1.0", "1e300", "nan"] {
        assert!(!read(&format!("[http_service]\nmin_machines_running = {wrong}\n")).is_valid(), "{wrong}");
    }
}

#[test]
fn rule_3_a_concurrency_text_is_soft_and_hard_and_a_number_is_refused() {
    let with = |value: &str| format!("app = \"a\"\n[[services]]\nconcurrency = {value}\n");
    let limits = machine(&with("\"12,23\""), "app").services[0].concurrency.clone().unwrap();
    let json = json!({"type": "requests", "soft_limit": 12, "hard_limit": 23});
    assert_eq!(serde_json::to_value(limits).unwrap(), json);
    for wrong in ["20", "\"20\"", "\"a,b\"", "\"1,2,3\"", "[1, 2]", "true"] {
        let loaded = read(&with(wrong));
        assert!(!loaded.is_valid(), "{wrong}");
        assert_eq!(loaded.app.as_deref(), Some("a"), "rule 11: the name is known");
    }
    let donuts = machine(&with("{ type = \"donuts\", soft_limit = 4 }"), "app").services[0].clone();
    assert_eq!(donuts.concurrency.unwrap().kind, "donuts", "passed through");
}

#[test]
fn rule_4_anything_else_than_the_five_forms_of_auto_stop_is_invalid() {
    for wrong in ["\"true\"", "\"Off\"", "\"\"", "1", "\"never\"", "[]", "{}"] {
        assert!(!read(&format!("[[services]]\nauto_stop_machines = {wrong}\n")).is_valid(), "{wrong}");
    }
}

#[test]
fn rule_5_a_bare_number_means_what_its_key_says_and_texts_are_in_gos_syntax() {
    let probe = |value: &str| {
        let text =
            format!("[[services]]\nports = {{ port = 1 }}\n[[services.tcp_checks]]\ninterval = {value}\n");
        seconds(valid(&text).services[0].tcp_checks[0].interval)
    };
    assert_eq!(probe("10000"), Some(10.0), "milliseconds");
    assert_eq!(probe("\"1m21s\""), Some(81.0));
    assert_eq!(probe("\"1500ms\""), Some(1.5));
    assert_eq!(probe("\"\""), None, "an empty text counts as absent");
    let top = |key: &str| {
        let text = format!("[checks.a]\ntype = \"tcp\"\nport = 1\n{key} = 2500\n");
        let config = valid(&text);
        let probe = &config.checks["a"].probe;
        [probe.interval, probe.timeout, probe.grace_period].map(seconds)
    };
    assert_eq!(top("interval"), [Some(2.5), None, None]);
    assert_eq!(top("timeout"), [None, Some(2.5), None]);
    assert_eq!(top("grace_period"), [None, None, Some(2.5)]);

    assert_eq!(seconds(valid("kill_timeout = 3\n").kill_timeout), Some(3.0), "seconds");
    assert_eq!(seconds(valid("kill_timeout = \"\"\n").kill_timeout), None);
    let old = "[experimental]\nkill_timeout = 3\n";
    assert_eq!(seconds(valid(old).kill_timeout), Some(3.0), "seconds in its old place too");
    let both = format!("kill_timeout = \"9s\"\n{old}");
    assert_eq!(seconds(valid(&both).kill_timeout), Some(9.0));
    assert!(said(&both)[0].starts_with("3:16: warning: experimental.kill_timeout: the `kill_timeout` at"));

    assert_eq!(seconds(valid("[deploy]\nwait_timeout = 5_000_000_000\n").deploy.wait_timeout), Some(5.0));
    assert!(!read("[deploy]\nwait_timeout = \"\"\n").is_valid(), "only checks and kill_timeout may be empty");
    for wrong in ["\"5\"", "\"5 s\"", "\"s\"", "-1", "true", "[]"] {
        assert!(!read(&format!("kill_timeout = {wrong}\n")).is_valid(), "{wrong}");
    }
}

/// SPEC SVC-7.
#[test]
fn rule_5_a_bare_number_is_seconds_in_timeouts_of_http_and_in_cached_replays() {
    let option = |key: &str, value: &str| {
        let text = format!(
            "[http_service]\n[http_service.http_options]\n{key} = {value}\n\
             replay_cache = [{{ path_prefix = \"/\", type = \"cookie\", name = \"a\", ttl_seconds = {value} }}]\n"
        );
        let options = machine(&text, "app").services[0].ports[1].http_options.clone().unwrap();
        let options = serde_json::to_value(options).unwrap();
        (
            options[key].clone(),
            options["replay_cache"][0]["ttl_seconds"].clone(),
            read(&text).diagnostics.len(),
        )
    };
    for key in ["idle_timeout", "headers_read_timeout"] {
        for (value, seconds, warnings) in [
            ("600", 600, 0),
            ("\"90s\"", 90, 0),
            ("\"1h\"", 3600, 0),
            ("10.0", 10, 0),
            ("\"1500ms\"", 2, 1),
            ("\"1ms\"", 1, 1),
            ("9", 9, 1),
        ] {
            assert_eq!(option(key, value), (json!(seconds), json!(seconds), warnings), "{key} {value}");
        }
    }
    let short = "[http_service.http_options]\nreplay_cache = { path_prefix = \"/\", type = \"cookie\", ttl_seconds = 5 }\n";
    assert!(
        said(short)[0].ends_with("ttl_seconds: 5s is below 10s, the least there is"),
        "{:#?}",
        said(short)
    );
}

#[test]
fn signals_are_those_of_the_api_and_of_the_documentation() {
    for signal in ["SIGINT", "SIGTERM", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGHUP", "SIGSTOP"] {
        assert_eq!(valid(&format!("kill_signal = \"{signal}\"\n")).kill_signal.as_deref(), Some(signal));
    }
    for wrong in ["\"SIGTREM\"", "\"TERM\"", "15"] {
        assert!(!read(&format!("kill_signal = {wrong}\n")).is_valid(), "{wrong}");
    }
}

#[test]
fn rule_5_durations_that_the_platform_clamps_are_warned_about_and_grace_may_be_zero() {
    let said = |key: &str, value: &str| {
        let text = format!("[http_service]\n[[http_service.checks]]\n{key} = \"{value}\"\n");
        assert!(read(&text).is_valid());
        super::said(&text)
    };
    for (key, value, means) in [
        ("interval", "0s", Some("1s")),
        ("interval", "999ms", Some("1s")),
        ("interval", "1s", None),
        ("timeout", "1m", None),
        ("timeout", "61s", Some("1m0s")),
        ("grace_period", "0s", None),
        ("grace_period", "1ms", Some("1s")),
        ("grace_period", "2m", Some("1m0s")),
    ] {
        let said = said(key, value);
        match means {
            Some(means) => {
                assert!(
                    said[0].contains("warning") && said[0].contains(&format!("counts as {means}")),
                    "{said:?}"
                );
            }
            None => assert!(said.is_empty(), "{key} {value}: {said:?}"),
        }
    }
}

#[test]
fn rule_6_sections_may_be_a_table_or_a_list_and_have_synonyms() {
    let kept = |text: &str| valid(text).kept;
    for key in ["mount", "mounts"] {
        for brackets in [format!("[{key}]"), format!("[[{key}]]")] {
            let text = format!("{brackets}\nsource = \"data\"\ninitial_size = 200\n");
            let expected = json!([{"source": "data", "initial_size": "200"}]);
            assert_eq!(kept(&text)["mounts"], expected, "{brackets}");
        }
    }
    let metrics = json!([{"port": 9999, "path": "/metrics"}]);
    for section in ["[metrics]", "[[metrics]]", "[metric]", "[[metric]]"] {
        assert_eq!(kept(&format!("{section}\nport = 9999\npath = \"/metrics\"\n"))["metrics"], metrics);
    }
    let old = "[experimental]\nmetrics_port = 9999\nmetrics_path = \"/metrics\"\n";
    assert_eq!(kept(old)["metrics"], metrics);
    assert_eq!(
        kept(&format!("{old}[metrics]\nport = 1\n"))["metrics"],
        json!([{"port": 1}]),
        "the new place wins"
    );

    let sizes = valid("[vm]\ncpus = 1\n[[compute]]\ncpus = 2\n[computes]\ncpus = 3\n").vm;
    let cpus: Vec<Option<u32>> = sizes.iter().map(|vm| vm.cpus).collect();
    assert_eq!(cpus, [Some(2), Some(3), Some(1)], "all of them, in flyctl's order");
    assert_eq!(valid("[build]\nbuild_target = \"x\"\n").build.kept["build-target"], "x");
    assert_eq!(valid("[build]\nbuild-target = \"x\"\n").build.kept["build-target"], "x");

    let text = "[services]\n[services.ports]\nport = 1\n[services.tcp_checks]\ninterval = \"2s\"\n";
    assert_eq!(valid(text).services[0].tcp_checks.len(), 1);
    assert!(valid("[[services]]\n[[services]]\ninternal_port = 1\n").services.len() == 1, "empty ones drop");
    for wrong in ["mounts = 1", "vm = [\"a\"]", "services = \"web\"", "metrics = [1]"] {
        assert!(!read(wrong).is_valid(), "{wrong}");
    }
}

#[test]
fn rule_6_the_last_size_that_names_a_group_counts() {
    let text = "[processes]\na = \"\"\nb = \"\"\n[[vm]]\ncpus = 1\n[[vm]]\ncpus = 2\nprocesses = [\"a\"]\n\
                [[vm]]\ncpus = 3\nprocesses = [\"a\"]\n";
    assert_eq!(machine(text, "a").guest.unwrap().cpus, Some(3));
    assert_eq!(machine(text, "b").guest.unwrap().cpus, Some(1));
}

#[test]
fn rule_7_processes_may_be_a_list_and_an_empty_one_counts_as_absent() {
    let names =
        |text: &str| -> Vec<String> { valid(text).groups().iter().map(ToString::to_string).collect() };
    for empty in ["[[processes]]\n", "processes = []\n", "[processes]\n"] {
        assert_eq!(names(empty), ["app"], "{empty}");
        assert!(valid(empty).processes.is_empty());
        assert!(read(&format!("{empty}[http_service]\n")).is_valid());
    }
    let list = "[[processes]]\nname = \"web\"\ncommand = \"./web\"\n[[processes]]\nname = \"bare\"\n";
    assert_eq!(names(list), ["bare", "web"]);
    assert_eq!(machine(list, "web").init.cmd, ["./web"]);
    assert!(machine(list, "bare").init.cmd.is_empty(), "no command is the image's own");
    let twice =
        "[[processes]]\nname = \"a\"\ncommand = \"x\"\n[[processes]]\nname = \"a\"\ncommand = \"y\"\n";
    assert_eq!(machine(twice, "a").init.cmd, ["y"]);
    let number = "[[processes]]\nname = 7\ncommand = 8\n";
    assert_eq!(machine(number, "7").init.cmd, ["8"], "numbers count as their texts");
    assert!(said(twice)[0].contains("warning") && said(twice)[0].contains("is there twice"));
    assert!(!read("[[processes]]\ncommand = \"x\"\n").is_valid(), "a process without a name");
    assert!(!read("[processes]\nweb = 1\n").is_valid());
}

#[test]
fn rule_7_env_values_become_texts_as_go_writes_them() {
    let env = valid(
        "[[env]]\nA = 1\nB = true\nC = 1.0\nD = 1e6\nDD = 123456.0\nE = 0.00001\nF = -2.5e-7\nG = inf\nH = nan\nI = 0x1F\n\
         J = 1979-05-27\n[[env]]\nA = \"later\"\n",
    )
    .env;
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let expected = [
        ("A", "later"),
        ("B", "true"),
        ("C", "1"),
        ("D", "1e+06"),
        ("DD", "123456"),
        ("E", "1e-05"),
        ("F", "-2.5e-07"),
        ("G", "+Inf"),
        ("H", "NaN"),
        ("I", "31"),
        ("J", "1979-05-27"),
    ];
    assert_eq!(env, expected);
    for wrong in ["env = 1", "env = [1]", "env = { A = [] }", "env = { \"A=B\" = 1 }", "env = { \"\" = 1 }"] {
        assert!(!read(wrong).is_valid(), "{wrong}");
    }
}

#[test]
fn rule_8_check_headers_may_be_a_table_or_a_list_with_any_plain_values() {
    let headers = |value: &str| {
        let text = format!("[[http_service.checks]]\nheaders = {value}\n");
        let headers = machine(&text, "app").services[0].checks[0].headers.clone();
        serde_json::to_value(headers).unwrap()
    };
    let two = json!([{"name": "A", "values": ["1"]}, {"name": "B", "values": ["true"]}]);
    assert_eq!(headers("{ A = 1, B = true }"), two);
    assert_eq!(headers("[{ name = \"A\", value = 1 }, { name = \"B\", value = true }]"), two);
    assert_eq!(headers("[{ name = \"A\" }]"), json!([{"name": "A", "values": [""]}]));
    assert_eq!(headers("[]"), json!([]));
    for wrong in ["[{ value = 1 }]", "[\"A: 1\"]", "\"A: 1\"", "{ A = [1] }"] {
        assert!(!read(&format!("[[http_service.checks]]\nheaders = {wrong}\n")).is_valid(), "{wrong}");
    }
}

#[test]
fn rule_8_top_level_checks_may_be_a_list_and_need_a_type_and_a_port() {
    let table = "[checks.pg]\ntype = \"http\"\nport = 5500\nmethod = \"head\"\nheaders = []\n";
    let list = "[[checks]]\nname = \"pg\"\ntype = \"http\"\nport = 5500\nmethod = \"head\"\n";
    assert_eq!(valid(table).checks, valid(list).checks);
    assert_eq!(machine(table, "app").checks["pg"].method.as_deref(), Some("HEAD"), "upper case");
    assert!(!read("[[checks]]\ntype = \"tcp\"\nport = 1\n").is_valid(), "a list needs names");
    for wrong in ["", "type = \"script\"", "type = 1"] {
        assert!(!read(&format!("[checks.a]\nport = 1\n{wrong}\n")).is_valid(), "{wrong}");
    }
    let service = "[[services]]\nports = { port = 1 }\n[[services.http_checks]]\nmethod = \"get\"\n";
    let check = &machine(service, "app").services[0].checks[0];
    assert_eq!(check.method.as_deref(), Some("get"), "flyctl changes only top-level ones");
}

#[test]
fn rule_9_a_section_without_groups_belongs_to_the_default_group() {
    let text = |first: &str| {
        format!("[processes]\n{first} = \"\"\nzz = \"\"\n[checks.a]\ntype = \"tcp\"\nport = 1\n")
    };
    for first in ["app", "bb"] {
        assert_eq!(machine(&text(first), first).checks.len(), 1, "{first}");
        assert!(machine(&text(first), "zz").checks.is_empty());
    }
    // `app` is the default also when others come before it.
    assert!(machine(&text("app").replace("zz", "aa"), "aa").checks.is_empty());
}

#[test]
fn rule_9_services_need_groups_that_exist_and_should_have_ports() {
    let service = |keys: &str| format!("[processes]\nweb = \"\"\n[[services]]\ninternal_port = 1\n{keys}\n");
    let missing = read(&service("ports = { port = 1 }"));
    let errors: Vec<&str> = missing.of(Severity::Error).map(|d| d.key_path.as_str()).collect();
    assert_eq!(errors, ["services[0]"]);
    let unknown = read(&service("ports = { port = 1 }\nprocesses = [\"web\", \"wob\"]"));
    let errors: Vec<&str> = unknown.of(Severity::Error).map(|d| d.key_path.as_str()).collect();
    assert_eq!(errors, ["services[0].processes[1]"]);
    let portless = read(&service("processes = [\"web\"]"));
    assert!(portless.is_valid());
    assert_eq!(portless.of(Severity::Warning).count(), 1);
}

#[test]
fn rule_10_a_range_without_a_side_goes_to_the_end() {
    let range = |keys: &str| {
        let text = format!("[[services]]\n[[services.ports]]\n{keys}\n");
        machine(&text, "app").services[0].ports[0].range()
    };
    assert_eq!(range("start_port = 60000"), 60000..=65535);
    assert_eq!(range("end_port = 100"), 0..=100);
}

#[test]
fn rule_10_the_address_is_shared_only_for_plain_http_and_https() {
    let of = |protocol: &str, port: &str| {
        let text = format!("[[services]]\nprotocol = \"{protocol}\"\n[[services.ports]]\n{port}\n");
        valid(&text).ip_type()
    };
    for shared in [
        "port = 80\nhandlers = [\"http\"]",
        "port = 443\nhandlers = [\"http\", \"tls\"]",
        "port = \"443\"\nhandlers = [\"tls\", \"http\"]",
    ] {
        assert_eq!(of("tcp", shared), IpType::Shared, "{shared}");
        assert_eq!(of("TCP", shared), IpType::Shared, "{shared}");
        assert_eq!(of("udp", &shared.replace("handlers", "#")), IpType::Dedicated);
    }
    for own in [
        "port = 80",
        "port = 443\nhandlers = [\"tls\"]",
        "port = 443\nhandlers = [\"http\"]",
        "port = 8080\nhandlers = [\"http\"]",
        "start_port = 80\nend_port = 81\nhandlers = [\"http\"]",
        "start_port = 1",
        "end_port = 79",
    ] {
        assert_eq!(of("tcp", own), IpType::Dedicated, "{own}");
    }
    assert_eq!(valid("[http_service]\n").ip_type(), IpType::Shared, "only [[services]] are looked at");
    assert_eq!(valid("").ip_type(), IpType::Shared);
    assert_eq!(of("", "port = 22"), IpType::Shared, "nor those without a protocol, as in flyctl");
}

#[test]
fn commands_that_are_one_text_are_one_word() {
    let init =
        machine("[experimental]\ncmd = \"run it\"\nexec = \"/e\"\nentrypoint = [\"a\", \"b\"]\n", "app").init;
    assert_eq!(
        (init.cmd, init.exec, init.entrypoint),
        (vec!["run it".into()], vec!["/e".into()], vec!["a".into(), "b".into()])
    );
}

#[test]
fn options_without_what_they_belong_to_load_and_are_warned_about() {
    for text in [
        "[services.ports.http_options]\nidle_timeout = 600\n",
        "[services.ports.proxy_proto_options]\nversion = \"v2\"\n",
        "[[http_service.http_options.replay_cache]]\npath_prefix = \"a.example/api\"\n",
    ] {
        let loaded = read(text);
        assert!(loaded.is_valid(), "{text}: {:#?}", loaded.diagnostics);
        assert!(loaded.of(Severity::Warning).any(|d| d.message.contains("has no effect")), "{text}");
        assert_eq!(loaded.config.unwrap().ip_type(), IpType::Shared);
    }
}

#[test]
fn an_unknown_key_is_near_also_with_a_word_too_many_or_too_few() {
    for (text, near) in [
        ("[[http_service.http_checks]]\n", "checks"),
        ("[http_service]\nstop_machines = true\n", "auto_stop_machines"),
        ("[[services]]\nchecks = []\n", "tcp_checks"),
        ("primary-region = \"iad\"\n", "primary_region"),
    ] {
        let said = said(text);
        let hint = format!("unknown key, it has no effect; did you mean `{near}`?");
        assert!(said.iter().any(|said| said.ends_with(&hint)), "{text}: {said:#?}");
    }
}
