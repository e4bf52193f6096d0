//! Apps and Machines from the command line (DESIGN section 8, `COMPAT` 3).

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::support::cluster::text;
use crate::support::process::{program, with_env};
use crate::support::{Cluster, Request, SOON, eventually, skipped};

#[test]
fn a_machine_runs_any_command_and_goes_through_its_states() {
    let Some(node) = program("node") else { return skipped("machine run", "node is not installed") };
    let cluster = Cluster::up(&["--regions", "iad,lhr", "--no-demo"]);
    cluster.skein(&["apps", "create", "files"]).ok();
    let serve =
        "require('http').createServer((_, res) => res.end('hi')).listen(process.env.PORT, '127.0.0.1')";
    let node = node.to_str().unwrap();
    let run = ["machine", "run", "-a", "files", "--region", "lhr", "--port", "80:8080/tcp:http", "--"];
    cluster.skein(&[&run[..], &[node, "-e", serve]].concat()).ok();
    cluster.skein(&["ips", "allocate-v6", "-a", "files"]).ok();
    let machines = cluster.machines("files");
    assert_eq!(machines.len(), 1);
    let machine = &machines[0];
    assert_eq!(machine["config"]["image"], "skein/command");
    assert_eq!(machine["config"]["init"]["exec"], json!([node, "-e", serve]));
    assert_eq!(machine["region"], "lhr");
    let id = text(&machine["id"]);

    let edge = cluster.endpoint("files", "iad-1");
    eventually("it answers from the other region", SOON, || match Request::get(edge, "/").send() {
        Ok(reply) if reply.status == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    for (verb, state) in [("stop", "stopped"), ("start", "started")] {
        cluster.skein(&["machines", verb, &id]).ok();
        assert_eq!(cluster.machines("files")[0]["state"], state, "{verb} returns when the state is reached");
    }
    cluster.skein(&["machines", "stop", &id]).ok();
    assert!(with_env("FLY_MACHINE_ID", &id).is_empty(), "a stopped Machine has no process");
    cluster.skein(&["machines", "destroy", &id]).ok();
    assert_eq!(cluster.machines("files").len(), 0);
    cluster.skein(&["apps", "destroy", "files"]).ok();
    cluster.skein(&["machines", "list", "-a", "files", "--json"]).refused();
}

/// COMPAT 3.1: 409, whichever node is asked and wherever the other Machine is.
#[test]
fn a_machines_name_is_given_once_in_an_app() {
    let cluster = Cluster::up(&["--regions", "iad,lhr", "--no-demo"]);
    cluster.skein(&["apps", "create", "named"]).ok();
    let create = |region: &str, name: &str| {
        let body = json!({"name": name, "region": region, "config": {"image": "skein/hello"}}).to_string();
        let call = cluster.api("POST", "/v1/apps/named/machines");
        call.header("content-type", "application/json").body(body).reply()
    };
    let first = create("lhr", "one");
    assert_eq!(first.status, 200, "{}", first.text());
    let again = create("iad", "one");
    assert_eq!(again.status, 409, "{}", again.text());
    assert!(again.text().contains("unique machine name violation"), "{}", again.text());
    assert_eq!(create("iad", "two").status, 200);
    let id = cluster.machines_in("named", "lhr")[0].clone();
    cluster.skein(&["machines", "destroy", "--force", &id]).ok();
    assert_eq!(create("iad", "one").status, 200, "a destroyed Machine's name is free");
}

#[test]
fn a_cordoned_machine_gets_nothing_new_until_it_is_uncordoned() {
    let cluster = Cluster::up(&["--regions", "iad,lhr"]);
    let id = cluster.machines_in("hello", "lhr")[0].clone();
    let edge = cluster.endpoint("hello", "lhr-1");
    let region = || Request::get(edge, "/").ok().field("region");
    assert_eq!(region(), "lhr");
    cluster.skein(&["machines", "cordon", &id]).ok();
    eventually("nothing goes there", SOON, || if region() == "iad" { Ok(()) } else { Err("still there") });
    cluster.skein(&["machines", "uncordon", &id]).ok();
    eventually("it is used again", SOON, || if region() == "lhr" { Ok(()) } else { Err("not yet") });
}

#[test]
fn deploy_makes_one_machine_per_group_and_a_second_one_updates_them() {
    let cluster = Cluster::up(&["--regions", "iad,lhr", "--no-demo"]);
    let config = cluster.home.path().join("fly.toml");
    let write = |greeting: &str| {
        let toml = format!(
            "app = \"groups\"\nprimary_region = \"lhr\"\n[build]\nimage = \"skein/hello\"\n\
             [env]\nGREETING = \"{greeting}\"\n[processes]\nweb = \"\"\nidle = \"sleep 100000\"\n\
             [http_service]\nprocesses = [\"web\"]\n"
        );
        fs::write(&config, toml).unwrap();
    };
    let path = config.to_str().unwrap();
    write("hi");
    cluster.skein(&["deploy", "-c", path]).ok();
    let mut first = cluster.machines("groups");
    first.sort_by_key(|machine| machine["config"]["metadata"]["fly_process_group"].to_string());
    let groups: Vec<String> =
        first.iter().map(|m| text(&m["config"]["metadata"]["fly_process_group"])).collect();
    assert_eq!(groups, ["idle", "web"]);
    assert!(first.iter().all(|machine| machine["region"] == "lhr"), "without --regions: the primary region");
    assert_eq!(first[0]["config"]["init"]["exec"], json!(["sleep", "100000"]));
    assert_eq!(first[1]["config"]["services"][0]["ports"][1]["handlers"], json!(["http", "tls"]));
    assert_eq!(cluster.get("groups", "iad-1", "/").field("region"), "lhr");

    write("hello again");
    cluster.skein(&["deploy", "-c", path]).ok();
    let mut second = cluster.machines("groups");
    second.sort_by_key(|machine| machine["config"]["metadata"]["fly_process_group"].to_string());
    for (old, new) in first.iter().zip(&second) {
        assert_eq!(old["id"], new["id"], "updated, not replaced");
        assert_eq!(new["config"]["env"]["GREETING"], "hello again");
        assert_ne!(old["instance_id"], new["instance_id"]);
    }
}

/// What a file says of its groups is what the API shows of their Machines, and nothing else.
#[test]
fn three_groups_two_services_and_checks_are_in_the_machines_as_written() {
    let cluster = Cluster::up(&["--regions", "iad", "--no-demo"]);
    let config = cluster.home.path().join("fly.toml");
    let toml = r#"
app = "three"
primary_region = "iad"
kill_signal = "SIGTERM"
kill_timeout = 7
[build]
image = "skein/hello"
[env]
COLOUR = "blue"
[processes]
web = ""
api = ""
idle = "sleep 100000"
[http_service]
internal_port = "8080"
force_https = true
auto_stop_machines = "off"
processes = ["web"]
[http_service.concurrency]
type = "requests"
soft_limit = 10
hard_limit = 20
[[http_service.checks]]
path = "/health"
interval = "2s"
timeout = 1000
grace_period = "1s"
[[services]]
internal_port = 9000
processes = ["api"]
[[services.ports]]
port = 8081
handlers = ["http"]
[[services.tcp_checks]]
interval = "5s"
[checks.alive]
type = "tcp"
port = 9000
processes = ["api"]
"#;
    fs::write(&config, toml).unwrap();
    cluster.skein(&["deploy", "-c", config.to_str().unwrap()]).ok();
    let machines = cluster.machines("three");
    let group = |name: &str| {
        let of = |m: &&Value| m["config"]["metadata"]["fly_process_group"] == name;
        machines
            .iter()
            .find(of)
            .map(|m| m["config"].clone())
            .unwrap_or_else(|| panic!("no Machine of {name}"))
    };
    assert_eq!(machines.len(), 3);
    let (web, api, idle) = (group("web"), group("api"), group("idle"));
    for config in [&web, &api, &idle] {
        assert_eq!(config["env"]["COLOUR"], "blue");
        assert_eq!(config["env"]["PRIMARY_REGION"], "iad");
        assert_eq!(config["stop_config"], json!({"signal": "SIGTERM", "timeout": "7s"}));
    }
    assert_eq!(
        web["services"],
        json!([{
            "protocol": "tcp", "internal_port": 8080, "autostop": false,
            "concurrency": {"type": "requests", "soft_limit": 10, "hard_limit": 20},
            "ports": [
                {"port": 80, "handlers": ["http"], "force_https": true},
                {"port": 443, "handlers": ["http", "tls"]},
            ],
            "checks": [{"type": "http", "path": "/health", "interval": "2s", "timeout": "1s", "grace_period": "1s"}],
        }])
    );
    assert_eq!(
        api["services"],
        json!([{
            "internal_port": 9000, "ports": [{"port": 8081, "handlers": ["http"]}],
            "checks": [{"type": "tcp", "interval": "5s"}],
        }])
    );
    assert_eq!(api["checks"], json!({"alive": {"type": "tcp", "port": 9000}}));
    assert!(web.get("checks").is_none() && idle.get("checks").is_none() && idle.get("services").is_none());
    assert_eq!(idle["init"]["exec"], json!(["sleep", "100000"]));
}

#[test]
fn a_server_that_runs_already_can_stand_behind_the_proxy() {
    let Some(node) = program("node") else { return skipped("external", "node is not installed") };
    let cluster = Cluster::up(&["--regions", "iad", "--no-demo"]);
    let log = cluster.home.path().join("server.log");
    let out = fs::File::create(&log).unwrap();
    let serve = "const s = require('http').createServer((_, res) => res.end('it was here before'));\
                 s.listen(0, '127.0.0.1', () => console.log(s.address().port))";
    let mut command = std::process::Command::new(node);
    command.args(["-e", serve]).stdout(out.try_clone().unwrap()).stderr(out);
    let _server = crate::support::process::Owned::start(&mut command);
    let port = eventually("the server says its port", SOON, || {
        let said = fs::read_to_string(&log).unwrap();
        said.trim().parse::<u16>().map_err(|_| said)
    });
    let config = cluster.home.path().join("fly.toml");
    fs::write(&config, "app = \"outside\"\nprimary_region = \"iad\"\n[http_service]\n").unwrap();
    let address = format!("127.0.0.1:{port}");
    cluster.skein(&["deploy", "-c", config.to_str().unwrap(), "--external", &address]).ok();
    let machine = &cluster.machines("outside")[0];
    assert_eq!(machine["config"]["image"], "skein/external");
    assert_eq!(machine["config"]["metadata"]["skein_external"], address);
    assert_eq!(cluster.get("outside", "iad-1", "/").text(), "it was here before");
}

#[test]
fn a_token_of_one_organization_sees_nothing_of_another() {
    let cluster = Cluster::up(&["--regions", "iad"]);
    cluster.skein(&["orgs", "create", "acme"]).ok();
    cluster.skein(&["apps", "create", "theirs", "-o", "acme"]).ok();
    let made = cluster.json_of(&["tokens", "create", "-o", "acme", "--read-only", "--json"]);
    let token = text(&made["token"]);
    let to = text(&cluster.json["api"]["url"]).trim_start_matches("http://").parse().unwrap();
    let call = |method: &str, path: &str, token: &str| {
        let request = Request::new(method, to, path).header("authorization", &format!("Bearer {token}"));
        request.reply().status
    };
    assert_eq!(call("GET", "/v1/apps/theirs", &token), 200);
    assert_eq!(call("GET", "/v1/apps/theirs/machines", &token), 200);
    assert_eq!(call("GET", "/v1/apps/hello", &token), 403, "the app of another organization");
    assert_eq!(call("GET", "/v1/apps/hello/machines", &token), 404, "and nothing below it");
    assert_eq!(call("DELETE", "/v1/apps/theirs", &token), 403, "it may only read");
    assert_eq!(call("GET", "/v1/apps/theirs", "skt_nobody"), 401);
}

#[test]
fn a_drained_node_leaves_routing_and_a_restart_clears_the_drain() {
    let cluster = Cluster::up(&["--regions", "iad,lhr"]);
    let edge = cluster.endpoint("hello", "iad-1");
    let region = || Request::get(edge, "/").header("fly-prefer-region", "lhr").ok().field("region");
    assert_eq!(region(), "lhr");
    cluster.api("POST", "/skein/v1/nodes/lhr-1/drain").ok();
    // The drain returns when every node knows of it: there is nothing left to wait for.
    assert_eq!(region(), "iad");
    let url = text(&cluster.node("iad-1")["api"]);
    let to = url.trim_start_matches("http://").parse().unwrap();
    let bearer = format!("Bearer {}", text(&cluster.json["api"]["token"]));
    let nodes = Request::new("GET", to, "/skein/v1/nodes").header("authorization", &bearer).ok().json();
    let draining = |name: &str| {
        let nodes = nodes.as_array().unwrap();
        nodes.iter().find(|node| node["name"] == name).unwrap()["draining"].clone()
    };
    assert_eq!((draining("lhr-1"), draining("iad-1")), (json!(true), json!(false)));
    cluster.skein(&["node", "drain", "lhr-1"]).ok();
    assert_eq!(region(), "iad", "a drain may be repeated");
    assert!(crate::support::process::alive(cluster.pid("lhr-1")), "drain leaves the process running");
    cluster.skein(&["node", "restart", "lhr-1"]).ok();
    eventually("it is used again", SOON, || if region() == "lhr" { Ok(()) } else { Err("not yet") });
}

/// SPEC HTTP-11: clients that stay with the node's own edge lose nothing.
#[test]
fn a_node_is_drained_and_undrained_under_load_without_a_failed_request() {
    let cluster = Cluster::up(&["--regions", "iad,lhr"]);
    let edge = cluster.endpoint("hello", "lhr-1");
    let get = || Request::get(edge, "/").reply();
    assert_eq!(get().field("region"), "lhr");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = Stop(&done);
        let load = || {
            let mut statuses = Vec::new();
            while !done.load(Ordering::Relaxed) {
                statuses.push(get().status);
            }
            statuses
        };
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(load)).collect();
        cluster.api("POST", "/skein/v1/nodes/lhr-1/drain").ok();
        let drained = get();
        assert_eq!((drained.status, drained.field("region").as_str()), (200, "iad"));
        cluster.api("POST", "/skein/v1/nodes/lhr-1/undrain").ok();
        eventually("its Machines are used again", SOON, || match get().field("region").as_str() {
            "lhr" => Ok(()),
            other => Err(other.to_owned()),
        });
        drop(stop);
        for client in clients {
            let statuses = client.join().unwrap();
            assert!(!statuses.is_empty() && statuses.iter().all(|status| *status == 200), "{statuses:?}");
        }
    });
}

/// Ends the load, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
