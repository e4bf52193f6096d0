//! Configurations that are taken beside those that are refused.

use proptest::prelude::*;
use skein_core::machine::MachineConfig;

use super::prepare;

fn config(json: serde_json::Value) -> MachineConfig {
    serde_json::from_value(json).unwrap()
}

fn verdict(json: serde_json::Value) -> Result<MachineConfig, String> {
    let mut config = config(json);
    prepare(&mut config).map(|()| config).map_err(|error| error.to_string())
}

fn service(ports: serde_json::Value) -> serde_json::Value {
    serde_json::json!({"image": "skein/hello", "services": [{"internal_port": 8080, "ports": ports}]})
}

#[test]
fn the_image_is_never_empty_and_says_which_driver_runs_it() {
    let command = verdict(serde_json::json!({"init": {"exec": ["node", "server.js"]}})).unwrap();
    assert_eq!(command.image, "skein/command");
    let processes = verdict(serde_json::json!({"processes": [{"exec": ["sleep", "1"]}]})).unwrap();
    assert_eq!(processes.image, "skein/command");
    let external = verdict(serde_json::json!({"metadata": {"skein_external": "127.0.0.1:3000"}})).unwrap();
    assert_eq!(external.image, "skein/external");
    assert!(verdict(serde_json::json!({"image": "flyio/hellofly:latest"})).is_ok());
    assert_eq!(
        verdict(serde_json::json!({"image": "nginx", "init": {"cmd": ["nginx"]}})).unwrap().image,
        "nginx"
    );
}

#[test]
fn an_image_without_a_command_is_refused_with_the_next_step() {
    let refused = verdict(serde_json::json!({"image": "nginx"})).unwrap_err();
    assert!(refused.contains("init.exec") && refused.contains("skein/hello"), "{refused}");
    assert!(verdict(serde_json::json!({})).unwrap_err().contains("no command to run"));
    let external = verdict(serde_json::json!({"metadata": {"skein_external": "3000"}})).unwrap_err();
    assert!(external.contains("host:port"), "{external}");
}

#[test]
fn what_http_service_expands_to_is_taken() {
    let ports = serde_json::json!([
        {"port": 80, "handlers": ["http"], "force_https": true},
        {"port": 443, "handlers": ["http", "tls"]}
    ]);
    assert!(verdict(service(ports)).is_ok());
}

#[test]
fn nonsense_is_named_with_its_place() {
    let cases = [
        (serde_json::json!([{"port": 80, "handlers": ["donuts"]}]), "there is no handler \"donuts\""),
        (serde_json::json!([{"port": 80, "handlers": ["http", "pg_tls"]}]), "do not go together"),
        (serde_json::json!([{"port": 5432, "handlers": ["pg_tls"]}]), "pg_tls is not provided"),
        (serde_json::json!([{"port": 7}]), "without a handler are not provided"),
        (serde_json::json!([{"handlers": ["http"]}]), "give port"),
        (
            serde_json::json!([{"port": 80, "handlers": ["http"]}, {"start_port": 1, "end_port": 90, "handlers": ["http"]}]),
            "port 80 is claimed twice",
        ),
    ];
    for (ports, expected) in cases {
        let refused = verdict(service(ports)).unwrap_err();
        assert!(refused.starts_with("services[0].ports["), "{refused}");
        assert!(refused.contains(expected), "{refused}");
    }
    let https = serde_json::json!([{"port": 443, "handlers": ["tls"], "force_https": true}]);
    assert!(verdict(service(https)).unwrap_err().contains("force_https"));
    let port = serde_json::json!({"image": "skein/hello", "services": [{"internal_port": 0}]});
    assert!(verdict(port).unwrap_err().contains("services[0].internal_port"));
    let check = serde_json::json!({"image": "skein/hello", "checks": {"alive": {"type": "icmp"}}});
    assert!(verdict(check).unwrap_err().contains("checks.alive.type"));
}

proptest! {
    #[test]
    fn two_ports_are_taken_exactly_when_they_do_not_overlap(
        a in 1u16..60, more_a in 0u16..20, b in 1u16..60, more_b in 0u16..20,
    ) {
        let overlap = a <= b + more_b && b <= a + more_a;
        let range = |start: u16, more: u16| {
            serde_json::json!({"start_port": start, "end_port": start + more, "handlers": ["http"]})
        };
        prop_assert_eq!(verdict(service(serde_json::json!([range(a, more_a), range(b, more_b)]))).is_ok(), !overlap);
    }
}
