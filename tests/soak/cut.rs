//! One edge is cut off from the node of an app's only Machine, and from nobody else (SPEC LB-8): others
//! pass its requests on, until the link is whole again.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::scale;
use crate::support::{Cluster, Reply, Request, SOON, eventually, now};

/// Cuts at scale 1.
const ROUNDS: f64 = 2.0;
/// Between two requests.
const EVERY: Duration = Duration::from_millis(50);
/// From the cut on, requests may fail for so long: four times what SPEC allows, since a busy machine
/// hears late of everything. What was measured is printed.
const LATE: Duration = Duration::from_secs(8);
/// Requests in a row that are answered by another way, before the link is healed.
const ENOUGH: usize = 40;

/// An answer, and when it was asked for.
type Answer = (Instant, Result<Reply, String>);

fn ask(edge: SocketAddr) -> Result<Reply, String> {
    let reply = Request::get(edge, "/").patience(SOON).send().map_err(|error| error.to_string())?;
    if reply.status == 200 { Ok(reply) } else { Err(reply.text()) }
}

#[test]
fn an_edge_that_is_cut_off_from_a_node_reaches_it_by_another_one_and_goes_back() {
    let rounds = (ROUNDS * scale()).ceil() as usize;
    let cluster = Cluster::up(&["--regions", "iad,lhr,nrt", "--no-demo"]);
    let config = cluster.home.path().join("fly.toml");
    let toml = "app = \"far\"\nprimary_region = \"lhr\"\n[build]\nimage = \"skein/hello\"\n[http_service]\n\
                auto_stop_machines = \"off\"\nauto_start_machines = false\n";
    std::fs::write(&config, toml).unwrap();
    cluster.skein(&["deploy", "-c", config.to_str().unwrap()]).ok();
    let edge = cluster.endpoint("far", "iad-1");
    eventually("it answers", SOON, || ask(edge));
    assert!(!is_relayed(&cluster, &ask(edge).unwrap()), "nothing is in the way yet");
    for round in 0..rounds {
        let cut = now();
        cluster.skein(&["chaos", "inject", "partition", "iad-1", "lhr-1"]).ok();
        let took = now().saturating_duration_since(cut);
        let answers = load(edge, cut + took + LATE);
        let failed = answers.iter().filter(|(_, answer)| answer.is_err());
        let last = failed.clone().map(|(asked, _)| asked.saturating_duration_since(cut)).max();
        eprintln!(
            "cut: round {round}: {} of {} requests failed, the last was sent {:.2} s after the cut (which took {:.2} s)",
            failed.clone().count(),
            answers.len(),
            last.unwrap_or_default().as_secs_f64(),
            took.as_secs_f64(),
        );
        if let Some((_, first)) = failed.clone().min_by_key(|(asked, _)| *asked) {
            eprintln!("cut: the first of them: {}", first.as_ref().unwrap_err());
        }
        let late: Vec<_> = failed.filter(|(asked, _)| *asked > cut + took + LATE).collect();
        assert!(late.is_empty(), "{} fail long after the cut, such as {:#?}", late.len(), late.first());
        let (_, newest) = answers.iter().max_by_key(|(asked, _)| *asked).unwrap();
        let newest = newest.as_ref().unwrap();
        assert!(is_relayed(&cluster, newest), "there is no other way");
        assert_eq!(newest.field("region"), "lhr");

        cluster.skein(&["chaos", "heal"]).ok();
        eventually("it goes straight again", SOON, || match ask(edge) {
            Ok(reply) if is_relayed(&cluster, &reply) => Err(format!("{reply:?}")),
            other => other.map(drop),
        });
    }
}

/// Asks at a steady pace, whatever became of those before, until `end` and some more.
fn load(edge: SocketAddr, end: Instant) -> Vec<Answer> {
    let answers = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let (began, mut number) = (now(), 0);
        while now() < end + EVERY * ENOUGH as u32 {
            let answers = &answers;
            scope.spawn(move || {
                let asked = now();
                let answer = ask(edge);
                answers.lock().unwrap().push((asked, answer));
            });
            number += 1;
            std::thread::sleep((began + EVERY * number).saturating_duration_since(now()));
        }
    });
    answers.into_inner().unwrap()
}

/// Whether the edge says that another node passed this request on.
fn is_relayed(cluster: &Cluster, reply: &Reply) -> bool {
    let id = reply.header("fly-request-id").expect("every response has one");
    let story: Value = cluster.json_of(&["explain", id, "--json"]);
    story["steps"].as_array().unwrap().iter().any(|step| step["step"] == "relayed")
}
