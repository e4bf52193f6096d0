//! Machines that rest while nobody needs them, and wake for a request (SPEC section 6).

use crate::support::cluster::text;
use crate::support::{Cluster, Request, SOON, eventually};

/// An app whose Machine stops when it is idle, in one region.
fn deploy(cluster: &Cluster, name: &str, settings: &str, regions: &str) -> String {
    let config = cluster.home.path().join(format!("{name}.toml"));
    std::fs::write(
        &config,
        format!(
            "app = \"{name}\"\nprimary_region = \"iad\"\n[build]\nimage = \"skein/hello\"\n[http_service]\n{settings}"
        ),
    )
    .unwrap();
    cluster.skein(&["deploy", "-c", config.to_str().unwrap(), "--regions", regions]).ok();
    cluster.machines(name)[0]["id"].as_str().unwrap().to_owned()
}

fn state(cluster: &Cluster, app: &str, id: &str) -> String {
    let machines = cluster.machines(app);
    text(&machines.iter().find(|machine| machine["id"] == id).unwrap()["state"])
}

/// SPEC AUTO-1, AUTO-2, AUTO-5.
#[test]
fn an_idle_machine_stops_and_the_next_request_wakes_it_and_is_answered() {
    let cluster = Cluster::up(&["--regions", "iad,lhr", "--no-demo"]);
    let id = deploy(&cluster, "sleepy", "auto_stop_machines = \"stop\"\n", "iad");
    let (near, far) = (cluster.endpoint("sleepy", "iad-1"), cluster.endpoint("sleepy", "lhr-1"));
    assert_eq!(Request::get(near, "/").ok().field("machine"), id);
    let rests = || {
        eventually("it stops", SOON * 2, || match state(&cluster, "sleepy", &id) {
            state if state == "stopped" => Ok(()),
            state => Err(state),
        });
    };
    rests();
    assert_eq!(Request::get(near, "/").ok().field("machine"), id, "it is woken, and answers");
    assert_eq!(state(&cluster, "sleepy", &id), "started");
    rests();
    let answer = Request::get(far, "/").ok();
    assert_eq!((answer.field("machine"), answer.field("edge_region")), (id, "lhr".to_owned()));
}

/// SPEC AUTO-3.
#[test]
fn without_autostart_a_stopped_machine_stays_stopped_and_the_request_is_refused() {
    let cluster = Cluster::up(&["--regions", "iad", "--no-demo"]);
    let id = deploy(&cluster, "manual", "auto_start_machines = false\n", "iad");
    let edge = cluster.endpoint("manual", "iad-1");
    cluster.skein(&["machines", "stop", &id]).ok();
    eventually("it is refused", SOON, || match Request::get(edge, "/").send() {
        Ok(reply) if reply.status == 503 => {
            let code = reply.header("skein-error").map(str::to_owned);
            assert_eq!((code.as_deref(), reply.header("retry-after").is_some()), (Some("PR01"), true));
            Ok(())
        }
        other => Err(format!("{other:?}")),
    });
    assert_eq!(state(&cluster, "manual", &id), "stopped");
    // By hand it starts, and serves.
    cluster.skein(&["machines", "start", &id]).ok();
    eventually("it serves", SOON, || match Request::get(edge, "/").send() {
        Ok(reply) if reply.status == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    });
}
