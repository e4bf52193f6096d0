//! Held requests at Machines below their soft limit: they share them, and no third one is woken
//! (SPEC LB-1, AUTO-2).

use std::sync::Mutex;
use std::time::Duration;

use serde_json::json;

use crate::scale;
use crate::servers::Servers;
use crate::support::{Cluster, Request, SOON, eventually, now};

/// Machines, and those of them that run.
const MACHINES: usize = 8;
const RUNNING: usize = 2;
const SOFT: usize = 20;
/// Requests in hand on average: more than half of what two take below their soft limits.
const TOGETHER: f64 = 30.0;
const HOLD: Duration = Duration::from_millis(500);
/// Seconds that are looked at, after the first five.
const SECONDS: f64 = 10.0;
const WARM_UP: f64 = 5.0;
/// The most that one may have in hand, beside one of the other: in each second, on average.
const MOST: f64 = 1.5;

#[test]
fn two_machines_below_their_soft_limit_share_held_requests_and_wake_no_third() {
    let seconds = (SECONDS * scale()).ceil();
    let cluster = Cluster::up(&["--regions", "iad:2", "--no-demo", "--trace-sample", "0"]);
    let servers = Servers::start(MACHINES, HOLD);
    let settings = json!({
        "autostart": true, "autostop": "off",
        "concurrency": {"type": "requests", "soft_limit": SOFT, "hard_limit": 35},
    });
    let ids = servers.deploy(&cluster, "held", "iad", &settings);
    let stopped: Vec<&str> = ids[RUNNING..].iter().map(String::as_str).collect();
    cluster.skein(&[&["machines", "stop"], &stopped[..]].concat()).ok();
    let edges: Vec<_> = cluster.nodes().iter().map(|node| cluster.endpoint("held", node)).collect();
    for edge in &edges {
        eventually("each edge knows where to go", SOON, || match Request::get(*edge, "/").send() {
            Ok(reply) if reply.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    let before: Vec<usize> = servers.counts().iter().map(|count| count.taken()).collect();

    let every = HOLD.div_f64(TOGETHER);
    let all = ((WARM_UP + seconds) / every.as_secs_f64()) as u32;
    let failed = Mutex::new(Vec::new());
    // Per second: looks, and what each of the two had in hand at them, summed.
    let mut looks = vec![(0u32, [0usize; RUNNING]); (WARM_UP + seconds) as usize];
    std::thread::scope(|scope| {
        let began = now();
        for number in 0..all {
            // Whatever became of those before: the load does not wait for the proxy.
            std::thread::sleep((began + every * number).saturating_duration_since(now()));
            let (edge, failed) = (edges[number as usize % edges.len()], &failed);
            scope.spawn(move || match Request::get(edge, "/").send() {
                Ok(reply) if reply.status == 200 => {}
                other => failed.lock().unwrap().push(format!("{other:?}")),
            });
            let second = now().saturating_duration_since(began).as_secs() as usize;
            if let Some((looked, sums)) = looks.get_mut(second) {
                *looked += 1;
                sums.iter_mut().zip(servers.counts()).for_each(|(sum, count)| *sum += count.now());
            }
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {all} failed: {:#?}", failed.len(), failed.first());
    let mut worst: f64 = 1.0;
    for (second, (looked, sums)) in looks.iter().enumerate().filter(|(_, (looked, _))| *looked > 0) {
        let [one, other] = sums.map(|sum| sum as f64 / f64::from(*looked));
        let ratio = one.max(other) / one.min(other);
        eprintln!("spread: second {second}: {one:.1} and {other:.1} in hand, {ratio:.2}");
        if second >= WARM_UP as usize {
            worst = worst.max(ratio);
        }
    }
    let most: Vec<usize> = servers.counts().iter().map(|count| count.most()).collect();
    eprintln!("spread: {all} requests, the worst second has {worst:.2}, the most at once are {most:?}");
    assert!(worst <= MOST, "{worst:.2}");
    assert!(most[..RUNNING].iter().all(|most| *most > 1), "both had work: {most:?}");
    for (count, before) in servers.counts().iter().zip(before).skip(RUNNING) {
        assert_eq!(count.taken(), before, "a stopped Machine gets nothing");
    }
    let machines = cluster.machines("held");
    let of = |id: &str| machines.iter().find(|machine| machine["id"] == *id).unwrap()["state"].clone();
    assert!(stopped.iter().all(|id| of(id) == "stopped"), "no third was started: {machines:?}");
}
