use super::*;

fn config(json: &str) -> MachineConfig {
    serde_json::from_str(json).unwrap()
}

fn line(json: &str) -> (Program, Vec<String>) {
    match Plan::of(&config(json)).unwrap() {
        Plan::Process { program, args, .. } => (program, args),
        Plan::External(address) => panic!("external {address}"),
    }
}

/// SPEC RUN-3.
#[test]
fn the_whole_command_wins_then_entry_point_and_command_then_the_process() {
    let named = |name: &str, args: &[&str]| {
        (Program::Named(name.into()), args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>())
    };
    let all = r#"{"init":{"exec":["a","1"],"cmd":["b"]},"processes":[{"exec":["c"]}]}"#;
    assert_eq!(line(all), named("a", &["1"]));
    assert_eq!(line(r#"{"init":{"entrypoint":["e"],"cmd":["b"]}}"#), named("e", &["b"]));
    assert_eq!(line(r#"{"processes":[{"exec":["c","2"]}]}"#), named("c", &["2"]));
    assert_eq!(line(r#"{"image":"skein/hello","init":{"cmd":["b"]}}"#), named("b", &[]));
}

/// SPEC RUN-3: without an engine, two images are the sample app and others are refused.
#[test]
fn the_sample_images_run_the_program_itself_and_unknown_ones_are_refused_with_a_next_step() {
    for image in ["skein/hello", "flyio/hellofly", "registry-1.docker.io/flyio/hellofly:latest"] {
        assert_eq!(line(&format!(r#"{{"image":"{image}"}}"#)), (Program::Own, vec!["hello".to_owned()]));
    }
    for image in ["nginx", "ghcr.io/a/b@sha256:00", "skein/command", ""] {
        let error = Plan::of(&config(&format!(r#"{{"image":"{image}"}}"#))).unwrap_err();
        assert_eq!(error.status(), 400);
        assert!(error.to_string().contains("init.exec"), "{error}");
    }
}

#[test]
fn an_external_address_needs_host_and_port() {
    let external =
        |address: &str| Plan::of(&config(&format!(r#"{{"metadata":{{"skein_external":"{address}"}}}}"#)));
    assert_eq!(external("127.0.0.1:3000").unwrap(), Plan::External("127.0.0.1:3000".into()));
    assert_eq!(external("db.local:5432").unwrap(), Plan::External("db.local:5432".into()));
    for bad in ["", "3000", ":3000", "host", "host:0", "host:99999"] {
        assert_eq!(external(bad).unwrap_err().status(), 400, "{bad}");
    }
}

#[test]
fn what_a_node_could_not_carry_out_is_refused_when_it_is_asked_for() {
    for bad in [
        r#"{"init":{"exec":[""]}}"#,
        r#"{"init":{"exec":["a"]},"env":{"A=B":"1"}}"#,
        r#"{"init":{"exec":["a","b\u0000"]}}"#,
        r#"{"init":{"exec":["a"]},"services":[{"internal_port":0}]}"#,
        r#"{"init":{"exec":["a"]},"services":[{"internal_port":1,"ports":[{"port":80,"handlers":["donuts"]}]}]}"#,
        r#"{"init":{"exec":["a"]},"stop_config":{"signal":"SIGDONUT"}}"#,
        r#"{"init":{"exec":["a"]},"metadata":{"skein_user":"no-such-user-here"}}"#,
        r#"{"init":{"exec":["a"]},"services":[{"internal_port":1,"checks":[{"type":"donut"}]}]}"#,
    ] {
        let error = validate(&config(bad)).unwrap_err();
        assert_eq!(error.status(), 400, "{bad}: {error}");
    }
    validate(&config(r#"{"init":{"exec":["a"]},"services":[{"internal_port":1}]}"#)).unwrap();
}

/// SPEC RUN-2, RUN-9: the platform's variables win over the app's.
#[test]
fn a_process_is_told_where_to_listen_and_who_it_is() {
    let config =
        config(r#"{"env":{"PORT":"1","FLY_REGION":"xxx","A":"b"},"services":[{"internal_port":8080}]}"#);
    let inherited = BTreeMap::from([("PATH".to_owned(), "/bin".to_owned())]);
    let process = BTreeMap::from([("A".to_owned(), "c".to_owned())]);
    let platform = [("FLY_REGION", "iad".to_owned())];
    let ports: Vec<(u16, u16)> = internal_ports(&config).into_iter().map(|port| (port, 20_001)).collect();
    let around = Surroundings { inherited: &inherited, platform: &platform, ports: &ports };
    let env = environment(&config, &process, around);
    let get = |key: &str| env.get(key).map(String::as_str);
    assert_eq!(get("PORT"), Some("20001"));
    assert_eq!(get("SKEIN_PORT_8080"), Some("20001"));
    assert_eq!(get("FLY_REGION"), Some("iad"));
    assert_eq!(get("A"), Some("c"));
    assert_eq!(get("HOME"), Some("/tmp"));
    assert_eq!(get("PATH"), Some("/bin"));
}

/// SPEC RUN-9: without it two of them would take the same default port.
#[test]
fn a_process_without_a_service_gets_a_port_all_the_same() {
    let config = config(r#"{"init":{"exec":["a"]}}"#);
    let ports: Vec<(u16, u16)> = internal_ports(&config).into_iter().map(|port| (port, 20_001)).collect();
    let nothing = BTreeMap::new();
    let env =
        environment(&config, &nothing, Surroundings { inherited: &nothing, platform: &[], ports: &ports });
    assert_eq!(env.get("PORT").map(String::as_str), Some("20001"));
    assert!(!env.keys().any(|key| key.starts_with("SKEIN_PORT_")), "{env:?}");
}
