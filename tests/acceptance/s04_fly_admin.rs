//! S4: `fly-admin` (npm) creates an app and Machines and takes them through their lives.

use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::install::node_project;
use crate::support::cluster::text;
use crate::support::process::run;
use crate::support::{Cluster, Request, SOON, eventually, skipped};

#[test]
fn s4_a_client_of_the_machines_api_drives_apps_and_machines() {
    let cluster = Cluster::up(&["--regions", "iad,lhr", "--no-demo"]);
    let folder = cluster.home.path().join("fly-admin");
    if let Err(reason) = node_project("tests/acceptance/fly-admin", &folder) {
        return skipped("S4", &reason);
    }
    let call = |step: &str| -> Value {
        let mut command = Command::new("node");
        command.args(["check.mjs", step]).current_dir(&folder);
        command.env("API_URL", text(&cluster.json["api"]["url"]));
        command.env("API_TOKEN", text(&cluster.json["api"]["token"]));
        let out = run(&mut command, Duration::from_secs(120)).ok();
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{step}: {error}: {out}"))
    };

    let made = call("create");
    let (first, second) = (text(&made["first"]), text(&made["second"]));
    assert_eq!(made["states"], serde_json::json!(["started", "started"]), "{made}");
    assert_eq!(made["lease"], true, "{made}");
    assert!(
        made["events"].as_array().is_some_and(|events| events.iter().any(|kind| kind == "start")),
        "{made}"
    );

    cluster.skein(&["ips", "allocate-v6", "-a", "crew"]).ok();
    let edge = cluster.endpoint("crew", "iad-1");
    let machine = || Request::get(edge, "/").ok().field("machine");
    eventually("the first Machine is nearest", SOON, || {
        if machine() == first { Ok(()) } else { Err(machine()) }
    });

    call("cordon");
    eventually(
        "a cordoned Machine is left",
        SOON,
        || if machine() == second { Ok(()) } else { Err(machine()) },
    );
    for _ in 0..20 {
        assert_eq!(machine(), second, "a cordoned Machine gets no new request");
    }
    call("uncordon");
    eventually(
        "an uncordoned one is used",
        SOON,
        || if machine() == first { Ok(()) } else { Err(machine()) },
    );

    let cycled = call("cycle");
    assert_eq!(cycled["states"], serde_json::json!(["stopped", "started"]), "{cycled}");
    let gone = call("destroy");
    assert_eq!(gone["left"], 0, "{gone}");
    assert_eq!(gone["app"], "404", "{gone}");
    assert!(fs::exists(folder.join("state.json")).unwrap());
}
