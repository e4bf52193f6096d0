//! Five edges send to one Machine at once, more than it may have (SPEC LB-4, LB-5): it never has more than
//! its hard limit, nobody is refused for good, and who waits does not go to and fro.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::scale;
use crate::servers::Servers;
use crate::support::{Cluster, Request, SOON, eventually, now};

const EDGES: usize = 5;
const HARD: usize = 10;
const HOLD: Duration = Duration::from_millis(200);
/// Clients of each edge, which ask again as soon as they are answered: four times what has room.
const CLIENTS: usize = 8;
/// Requests of each client at scale 1.
const EACH: f64 = 10.0;
/// Requests whose stories are read; each asks a node.
const TOLD: usize = 50;
/// Times that a request may go there and back without room, on average.
const HOPS: usize = 2;

#[test]
fn a_machine_that_five_edges_fill_never_has_more_than_its_hard_limit_and_all_are_answered() {
    let each = (EACH * scale()).ceil() as usize;
    let cluster = Cluster::up(&["--regions", "iad:5", "--no-demo", "--trace-sample", "0"]);
    let servers = Servers::start(1, HOLD);
    let settings = json!({"concurrency": {"type": "requests", "soft_limit": HARD, "hard_limit": HARD}});
    servers.deploy(&cluster, "narrow", "iad", &settings);
    let edges: Vec<_> = cluster.nodes().iter().map(|node| cluster.endpoint("narrow", node)).collect();
    assert_eq!(edges.len(), EDGES);
    for edge in &edges {
        eventually("each edge knows where to go", SOON, || match Request::get(*edge, "/").send() {
            Ok(reply) if reply.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    let count = &servers.counts()[0];
    let (failed, took, ids) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let waited = AtomicUsize::new(0);
    let began = now();
    std::thread::scope(|scope| {
        for edge in edges.iter().flat_map(|edge| [*edge; CLIENTS]) {
            let (failed, took, ids, waited) = (&failed, &took, &ids, &waited);
            scope.spawn(move || {
                for _ in 0..each {
                    let asked = now();
                    match Request::get(edge, "/").patience(SOON * 4).send() {
                        Ok(reply) if reply.status == 200 => {
                            let time = now().saturating_duration_since(asked);
                            waited.fetch_add(usize::from(time > 2 * HOLD), Ordering::Relaxed);
                            took.lock().unwrap().push(time.as_secs_f64() * 1e3);
                            ids.lock().unwrap().extend(reply.header("fly-request-id").map(str::to_owned));
                        }
                        other => failed.lock().unwrap().push(format!("{other:?}")),
                    }
                }
            });
        }
    });
    let all = EDGES * CLIENTS * each;
    let seconds = now().saturating_duration_since(began).as_secs_f64();
    let (failed, mut took, ids) =
        (failed.into_inner().unwrap(), took.into_inner().unwrap(), ids.into_inner().unwrap());
    took.sort_by(f64::total_cmp);
    let quantile = |share: f64| took.get((took.len() as f64 * share) as usize).or(took.last()).copied();
    let full = HARD as f64 / HOLD.as_secs_f64();
    eprintln!(
        "herd: {all} requests in {seconds:.1} s, {:.0} % of what the Machine can; the most at once {}; p50 {:.0} ms, p99 {:.0} ms; {} waited",
        100.0 * all as f64 / seconds / full,
        count.most(),
        quantile(0.5).unwrap_or_default(),
        quantile(0.99).unwrap_or_default(),
        waited.load(Ordering::Relaxed),
    );
    assert!(failed.is_empty(), "{} of {all} failed, such as {:#?}", failed.len(), failed.first());
    assert_eq!(count.most(), HARD, "it was full, and never fuller");
    assert!(waited.load(Ordering::Relaxed) > 0, "some waited");
    refusals(&cluster, &ids);
}

/// How often the Machine's node refused the newest of these requests, as the edges tell it.
fn refusals(cluster: &Cluster, ids: &[String]) {
    let newest: Vec<_> = ids.iter().rev().take(TOLD).collect();
    let refused = newest.iter().map(|id| {
        let story: Value = cluster.json_of(&["explain", id, "--json"]);
        story["steps"].as_array().unwrap().iter().filter(|step| step["step"] == "failed").count()
    });
    let refused: Vec<usize> = refused.collect();
    let (sum, most) = (refused.iter().sum::<usize>(), refused.iter().max().unwrap());
    eprintln!("herd: {sum} refusals of {} requests, {most} of one at most", refused.len());
    assert!(sum <= HOPS * refused.len(), "each learns where there is room, it need not try: {refused:?}");
}
