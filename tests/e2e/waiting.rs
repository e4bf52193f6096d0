//! Machines that wait, and what is known of those that run (SPEC AUTO-3, AUTO-5, CHK-1 to CHK-4).

use std::fs;

use serde_json::{Value, json};

use crate::support::cluster::text;
use crate::support::process::with_env;
use crate::support::{Cluster, Request, SOON, eventually};

/// Whether the kernel runs it no more, and keeps it.
fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.trim_start().starts_with('T')
}

#[test]
fn a_suspended_machine_gets_nothing_and_goes_on_with_all_that_it_knew() {
    let cluster = Cluster::up(&["--regions", "iad,lhr", "--no-demo"]);
    let config = cluster.home.path().join("fly.toml");
    // Without a check: one of its processes is to remember that it is ill, and to be asked all the same.
    // Requests are not to start it meanwhile.
    let toml = "app = \"kept\"\nprimary_region = \"iad\"\n[build]\nimage = \"skein/hello\"\n[http_service]\n\
                auto_start_machines = false\n";
    fs::write(&config, toml).unwrap();
    cluster.skein(&["deploy", "-c", config.to_str().unwrap(), "--regions", "iad,lhr"]).ok();
    let id = cluster.machines_in("kept", "iad")[0].clone();
    let edge = cluster.endpoint("kept", "iad-1");
    let state = || -> String {
        let machines = cluster.machines("kept");
        text(&machines.iter().find(|machine| machine["id"] == id.as_str()).unwrap()["state"])
    };
    let health = || Request::get(edge, "/health").reply();
    assert_eq!(health().status, 200);
    // What its process remembers, and only its process.
    Request::post(edge, "/health?fail=true", "").reply();
    assert_eq!(health().status, 500);
    let processes = with_env("FLY_MACHINE_ID", &id);
    assert!(!processes.is_empty());

    cluster.skein(&["machines", "suspend", &id]).ok();
    assert_eq!(state(), "suspended", "it returns when the state is reached");
    assert!(processes.iter().all(|pid| is_stopped(*pid)), "{processes:?}");
    let wait = cluster.api("GET", &format!("/v1/apps/kept/machines/{id}/wait?state=suspended&timeout=5"));
    assert_eq!(wait.ok().field("state"), "suspended");
    // The kernel accepts connections for it; nobody may take that for an answer.
    eventually("requests go elsewhere", SOON, || match Request::get(edge, "/").send() {
        Ok(reply) if reply.status == 200 && reply.field("region") == "lhr" => Ok(()),
        other => Err(format!("{other:?}")),
    });

    cluster.skein(&["machines", "start", &id]).ok();
    assert_eq!(state(), "started");
    assert_eq!(with_env("FLY_MACHINE_ID", &id), processes, "the same processes");
    eventually("it is used again, with what it knew", SOON, || match health().status {
        500 => Ok(()),
        other => Err(other),
    });
    let machine = cluster.api("GET", &format!("/v1/apps/kept/machines/{id}")).ok().json();
    assert!(machine["start_ms"].as_u64() > Some(0) && machine["resume_ms"].as_u64() > Some(0), "{machine}");

    // A stop discards it.
    cluster.skein(&["machines", "suspend", &id]).ok();
    cluster.skein(&["machines", "stop", &id]).ok();
    assert!(with_env("FLY_MACHINE_ID", &id).is_empty());
    let said = cluster.skein(&["machines", "suspend", &id]).refused();
    assert!(said.contains("unable to suspend machine from current state: 'stopped'"), "{said}");
    cluster.skein(&["machines", "start", &id]).ok();
    eventually("it knows nothing", SOON, || match health() {
        reply if reply.status == 200 => Ok(()),
        reply => Err(reply.status),
    });
}

#[test]
fn checks_are_listed_from_everywhere_and_decide_who_is_asked() {
    let cluster = Cluster::up(&["--regions", "iad,lhr", "--no-demo"]);
    let config = cluster.home.path().join("fly.toml");
    let toml = r#"
app = "checked"
primary_region = "iad"
[build]
image = "skein/hello"
[http_service]
[[http_service.checks]]
path = "/health"
interval = "1s"
grace_period = "1s"
[checks.never]
type = "tcp"
port = 9
interval = "2s"
"#;
    fs::write(&config, toml).unwrap();
    // No deploy: it would wait for the check that never passes.
    cluster.skein(&["apps", "create", "checked"]).ok();
    cluster.skein(&["ips", "allocate-v6", "-a", "checked"]).ok();
    let shown = ["config", "show", "-c", config.to_str().unwrap(), "--machine", "app", "--json"];
    let machine = cluster.json_of(&shown);
    for region in ["iad", "lhr"] {
        let body = json!({ "region": region, "config": machine }).to_string();
        let create = cluster.api("POST", "/v1/apps/checked/machines");
        create.header("content-type", "application/json").body(body).ok();
    }
    let listed = || cluster.json_of(&["checks", "list", "-a", "checked", "--json"]);
    let statuses = || -> Vec<[String; 3]> {
        let list = listed();
        let of = |check: &Value| ["region", "name", "status"].map(|key| text(&check[key]));
        let mut all: Vec<_> = list.as_array().unwrap().iter().map(of).collect();
        all.sort();
        all
    };
    let expected = |here: &str| {
        let row = |region: &str, name: &str, status: &str| [region, name, status].map(str::to_owned);
        vec![
            row("iad", "never", "critical"),
            row("iad", "servicecheck-00-http-8080", here),
            row("lhr", "never", "critical"),
            row("lhr", "servicecheck-00-http-8080", "passing"),
        ]
    };
    let reach = |here: &str| {
        eventually("the checks of both nodes", SOON, || {
            let now = statuses();
            if now == expected(here) { Ok(()) } else { Err(now) }
        });
    };
    reach("passing");
    let edge = cluster.endpoint("checked", "iad-1");
    let served_in = |region: &str| {
        eventually("the right one is asked", SOON, || match Request::get(edge, "/").send() {
            Ok(reply) if reply.status == 200 && reply.field("region") == region => Ok(()),
            other => Err(format!("{other:?}")),
        });
    };
    // A top-level check decides nothing; a service's own does.
    served_in("iad");
    Request::post(edge, "/health?fail=true", "").reply();
    reach("critical");
    served_in("lhr");
    let list = listed();
    let failing = list.as_array().unwrap().iter().find(|check| check["status"] == "critical").unwrap();
    assert!(!text(&failing["output"]).is_empty() && text(&failing["updated_at"]).ends_with('Z'), "{failing}");
    let said = cluster.skein(&["checks", "list"]).ok();
    assert!(said.contains("STATUS") && said.contains("servicecheck-00-http-8080"), "{said}");
    let machines = cluster.machines("checked");
    assert!(machines.iter().all(|machine| machine["state"] == "started"), "never restarted: {machines:?}");
}
