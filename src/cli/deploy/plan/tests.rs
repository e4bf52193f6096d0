//! Deploys over small files.

use std::collections::{BTreeMap, BTreeSet};

use skein_core::config::{AppConfig, Format, load};
use skein_core::machine::{ImageRef, MachineJson, MachineState};
use skein_core::{MachineId, VersionId};

use super::{Action, Process, changes, configs, placeable, unpassed, wanted_addresses, why};
use crate::cli::ips::IpRow;

const HTTP: &str = "app = \"shop\"\nprimary_region = \"lhr\"\n[http_service]\ninternal_port = 3000\n";
const GROUPS: &str = "app = \"shop\"\n[processes]\nweb = \"node server.js\"\nworker = \"node work.js\"\n\
    [http_service]\ninternal_port = 3000\nprocesses = [\"web\"]\n";

fn file(text: &str) -> AppConfig {
    let loaded = load(text, Format::Toml);
    assert!(loaded.is_valid(), "{:?}", loaded.diagnostics);
    loaded.config.unwrap()
}

fn command() -> Process {
    Process::Command(vec!["node".into(), "server.js".into()])
}

fn machine(id: u64, group: &str, region: &str) -> MachineJson {
    let mut config = skein_core::machine::MachineConfig::default();
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    config.metadata = BTreeMap::from([pair("fly_process_group", group), pair("fly_platform_version", "v2")]);
    MachineJson {
        id: MachineId::from_bits(id),
        name: "quiet-river-1".into(),
        state: MachineState::Started,
        region: region.parse().unwrap(),
        instance_id: VersionId(ulid::Ulid(1)),
        private_ip: String::new(),
        config,
        image_ref: ImageRef::default(),
        created_at: String::new(),
        updated_at: String::new(),
        events: vec![],
        checks: vec![],
        host_status: "ok".into(),
        cordoned: false,
        node: None,
        start_ms: 0,
        resume_ms: 0,
    }
}

fn in_words(actions: &[Action]) -> Vec<String> {
    let word = |action: &Action| match action {
        Action::Create { group, region, .. } => {
            format!("create {group} {}", region.as_deref().unwrap_or("?"))
        }
        Action::Update { id, .. } => format!("update {}", id.bits()),
        Action::Destroy { id, .. } => format!("destroy {}", id.bits()),
    };
    actions.iter().map(word).collect()
}

fn some(regions: &[&str]) -> Vec<Option<String>> {
    regions.iter().map(|region| Some((*region).to_owned())).collect()
}

#[test]
fn a_command_is_the_process_of_groups_that_have_none_and_stands_in_init_exec() {
    let one = configs(&file(HTTP), &command()).unwrap();
    assert_eq!(one[&"app".parse().unwrap()].init.exec, ["node", "server.js"]);
    let two = configs(&file(GROUPS), &Process::Command(vec!["other".into()])).unwrap();
    assert_eq!(two[&"worker".parse().unwrap()].init.exec, ["node", "work.js"]);
    let external = configs(&file(HTTP), &Process::External("127.0.0.1:3000".into())).unwrap();
    let external = &external[&"app".parse().unwrap()];
    assert_eq!(external.metadata["skein_external"], "127.0.0.1:3000");
    assert!(external.init.exec.is_empty());
}

#[test]
fn a_file_with_nothing_to_run_is_refused_before_anything_is_made() {
    let error = format!("{:#}", configs(&file(HTTP), &Process::Configured).unwrap_err());
    assert!(error.contains("process group app") && error.contains("after --"), "{error}");
}

#[test]
fn the_first_deploy_allots_an_ipv6_and_with_http_the_shared_ipv4() {
    let of = |text: &str, have: &[IpRow]| {
        wanted_addresses(configs(&file(text), &command()).unwrap().values(), have)
    };
    assert_eq!(of(HTTP, &[]), ["v6", "shared_v4"]);
    assert_eq!(of("app = \"shop\"\n", &[]), [] as [&str; 0]);
    let tcp = "app = \"shop\"\n[[services]]\ninternal_port = 5432\nprotocol = \"tcp\"\n[[services.ports]]\nport = 5432\nhandlers = [\"http\"]\n";
    assert_eq!(of(tcp, &[]), ["v6"]);
    let have = IpRow {
        ip: "2001:db8::1".parse().unwrap(),
        region: "global".into(),
        service_name: String::new(),
        shared: false,
        created_at: String::new(),
        kind: "v6".into(),
    };
    assert_eq!(of(HTTP, &[have]), ["shared_v4"]);
}

#[test]
fn the_first_deploy_makes_one_machine_of_each_group_in_each_region() {
    let configs = configs(&file(GROUPS), &Process::Configured).unwrap();
    assert_eq!(
        in_words(&changes(&configs, &[], &some(&["iad", "lhr"]))),
        ["create web iad", "create web lhr", "create worker iad", "create worker lhr"]
    );
    assert_eq!(in_words(&changes(&configs, &[], &[None])), ["create web ?", "create worker ?"]);
}

#[test]
fn a_second_deploy_updates_what_is_there_and_makes_what_is_missing() {
    let configs = configs(&file(HTTP), &command()).unwrap();
    let existing = [machine(1, "app", "iad"), machine(2, "app", "lhr")];
    assert_eq!(in_words(&changes(&configs, &existing, &some(&["lhr"]))), ["update 1", "update 2"]);
    assert_eq!(
        in_words(&changes(&configs, &existing, &some(&["iad", "iad", "nrt"]))),
        ["update 1", "update 2", "create app iad", "create app nrt"]
    );
    assert_eq!(in_words(&changes(&configs, &existing, &[None])), ["update 1", "update 2"]);
}

#[test]
fn machines_of_a_group_that_is_gone_are_destroyed_and_those_made_by_hand_are_left_alone() {
    let configs = configs(&file(HTTP), &command()).unwrap();
    let mut by_hand = machine(3, "old", "iad");
    by_hand.config.metadata.remove("fly_platform_version");
    let existing = [machine(1, "app", "lhr"), machine(2, "old", "iad"), by_hand];
    assert_eq!(in_words(&changes(&configs, &existing, &some(&["lhr"]))), ["update 1", "destroy 2"]);
}

#[test]
fn only_checks_of_services_are_waited_for() {
    let mut running = machine(1, "app", "lhr");
    let check = |name: &str, status: &str| skein_core::machine::CheckStatus {
        name: name.into(),
        status: status.into(),
        output: String::new(),
        updated_at: String::new(),
    };
    running.checks = vec![check("alive", "critical"), check("servicecheck-00-http-3000", "passing")];
    assert!(unpassed(&running).is_none());
    running.checks.push(check("servicecheck-01-tcp-3000", "warning"));
    assert_eq!(unpassed(&running).unwrap().name, "servicecheck-01-tcp-3000");
}

#[test]
fn a_machine_that_does_not_start_says_why() {
    let mut stopped = machine(1, "app", "lhr");
    assert_eq!(why(&stopped), None);
    let event = serde_json::json!({
        "id": "e", "type": "exit", "status": "stopped", "source": "flyd", "timestamp": 1,
        "request": {"exit_event": {"exit_code": 3, "error": ""}},
    });
    stopped.events.push(serde_json::from_value(event).unwrap());
    assert_eq!(why(&stopped).unwrap(), "; its process exited with code 3");
}

#[test]
fn a_new_machine_needs_a_region_with_a_node_that_takes_it() {
    let configs = configs(&file(HTTP), &command()).unwrap();
    let open = ["iad", "lhr"].map(|region| region.parse().unwrap()).into();
    let place = |regions: &[&str], existing: &[MachineJson]| {
        let regions: Vec<_> = regions.iter().map(|region| Some((*region).to_owned())).collect();
        placeable(&changes(&configs, existing, &regions), &open).map_err(|error| error.to_string())
    };
    assert_eq!(place(&["iad", "lhr"], &[]), Ok(()));
    assert!(place(&["iad", "lrh"], &[]).unwrap_err().contains("near ones are lhr"));
    assert!(place(&["iad", "nrt"], &[]).unwrap_err().contains("there are nodes in iad, lhr"));
    assert_eq!(place(&["nrt"], &[machine(1, "app", "nrt")]), Ok(()), "what is there is only updated");
    let anywhere = changes(&configs, &[], &[None]);
    assert!(placeable(&anywhere, &open).is_ok());
    assert!(placeable(&anywhere, &BTreeSet::new()).unwrap_err().to_string().contains("skein status"));
}

#[test]
fn what_the_api_would_refuse_is_refused_before_it_is_asked() {
    let refused = |service: &str| {
        let text = format!("app = \"shop\"\n[[services]]\ninternal_port = 5353\n{service}");
        format!("{:#}", configs(&file(&text), &command()).unwrap_err())
    };
    assert!(refused("protocol = \"udp\"\n[[services.ports]]\nport = 53\n").contains("UDP"));
    assert!(refused("[[services.ports]]\nport = 443\nhandlers = [\"tls\"]\n").contains("tls"));
}
