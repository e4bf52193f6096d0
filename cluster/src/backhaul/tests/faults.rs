//! Links that fail, peers that die and return (SPEC CLU-4, CH-1, TB-4).

use std::collections::BTreeMap;

use skein_core::fault::LinkRule;
use skein_core::suspicion::{Proximity, SILENCE};

use super::super::*;
use super::bench::*;

fn rule(peer: u32, rule: LinkRule) -> BTreeMap<NodeNumber, LinkRule> {
    BTreeMap::from([(number(peer), rule)])
}

fn cut() -> LinkRule {
    LinkRule { cut: true, ..LinkRule::default() }
}

#[tokio::test]
async fn both_ends_that_dial_at_once_agree_on_one_connection() {
    for _ in 0..5 {
        let (_cluster, [a, b]) = Cluster::of();
        let (one, two) = tokio::join!(a.echo(2, "x"), b.echo(1, "x"));
        assert_eq!((one.unwrap(), two.unwrap()), ("\u{1}x".into(), "\u{2}x".into()));
        let current = |node: &Node, to: u32| {
            let peer = node.backhaul.0.peers.load().get(&number(to)).cloned().unwrap();
            node.conns(to).iter().find(|conn| peer.is_current(conn)).map(|conn| conn.dialled_by)
        };
        eventually(|| (current(&a, 2), current(&b, 1)), |(x, y)| x.is_some() && x == y).await;
    }
}

#[tokio::test]
async fn a_cut_link_makes_the_peer_suspect_and_healing_needs_no_hand() {
    let (_cluster, [a, b]) = Cluster::of();
    a.connected(2).await;
    b.connected(1).await;
    let peers = a.backhaul.proximity();
    let began = clock::now();
    // One way only: b still hears a.
    b.links.set_faults(rule(1, cut()));
    let lost = a.backhaul.ask(number(2), Ask::Ping, Duration::from_millis(100)).await;
    assert_eq!(lost, Err(AskError::Timeout(number(2))));
    tokio::time::timeout(PATIENCE, peers.until_suspect(number(2))).await.expect("it becomes suspect");
    assert!(peers.suspect(number(2)));
    assert!(clock::now() - began >= SILENCE, "not before 750 ms of silence");
    b.links.set_faults(BTreeMap::new());
    a.connected(2).await;
    assert_eq!(a.echo(2, "healed").await.unwrap(), "\u{1}healed");
}

#[tokio::test]
async fn a_link_that_stays_cut_loses_its_streams_and_comes_back() {
    let mut cluster = Cluster::new();
    let [one, two] = [1, 2].map(|node| cluster.identity(node));
    let quick = |config: &mut BackhaulConfig| config.idle_timeout = Duration::from_millis(700);
    let (a, mut b) = (cluster.start(one, quick), cluster.start(two, quick));
    a.backhaul.set_peers(&cluster.peers);
    b.backhaul.set_peers(&cluster.peers);
    let mut stream = a.backhaul.open(number(2), preamble()).await.unwrap();
    let _theirs = b.seen.requests.recv().await.unwrap();
    a.links.set_faults(rule(2, cut()));
    b.links.set_faults(rule(1, cut()));
    let broken = tokio::time::timeout(PATIENCE, stream.recv.next()).await.expect("it is noticed");
    assert_eq!(broken, Err(StreamError::Lost("timed out".into())));
    eventually(|| a.report(2), |report| !report.connected && report.suspect).await;
    a.links.set_faults(BTreeMap::new());
    b.links.set_faults(BTreeMap::new());
    a.connected(2).await;
    b.connected(1).await;
    assert_eq!(a.echo(2, "healed").await.unwrap(), "\u{1}healed");
}

#[tokio::test]
async fn the_round_trip_follows_the_link() {
    let (_cluster, [a, b]) = Cluster::of();
    a.connected(2).await;
    eventually(|| a.report(2).rtt, |rtt| *rtt < Duration::from_millis(40)).await;
    let delay = LinkRule { delay_us: 40_000, ..LinkRule::default() };
    a.links.set_distances(rule(2, delay));
    b.links.set_distances(rule(1, delay));
    let far = Duration::from_millis(80);
    eventually(|| (a.report(2).rtt, b.report(1).rtt), |(x, y)| *x >= far && *y >= far).await;
    assert!(!a.report(2).suspect);
    let began = clock::now();
    a.echo(2, "from afar").await.unwrap();
    assert!(clock::now() - began >= far);
}

#[tokio::test]
async fn a_node_in_another_region_is_as_far_as_its_region_until_it_is_measured() {
    let mut cluster = Cluster::new();
    let [one, two] = [1, 2].map(|node| cluster.identity(node));
    let a = cluster.start(one, |_| {});
    let _b = cluster.start(two, |config| config.region = "nrt".parse().unwrap());
    // Nothing passes, so nothing is measured.
    a.links.set_faults(rule(2, cut()));
    a.backhaul.set_peers(&cluster.peers);
    let (iad, nrt) = ("iad".parse().unwrap(), "nrt".parse().unwrap());
    let report = a.report(2);
    assert!(!report.measured && report.rtt == Regions::default().simulated_rtt(iad, nrt), "{report:?}");
}

#[tokio::test]
async fn a_dead_peer_becomes_suspect_though_nobody_asks_it() {
    let (_cluster, [a, b]) = Cluster::of();
    a.connected(2).await;
    // What kill -9 looks like: not even a goodbye leaves.
    b.links.set_faults(rule(1, cut()));
    b.backhaul.close(Duration::ZERO).await;
    eventually(|| a.report(2), |report| report.suspect && !report.connected).await;
    let error = a.backhaul.open(number(2), Preamble { deadline_ms: 100, ..preamble() }).await.unwrap_err();
    assert!(matches!(error, OpenError::Timeout(_) | OpenError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn a_peer_that_restarts_at_its_address_is_found_long_before_the_idle_timeout() {
    let mut cluster = Cluster::new();
    let [one, two] = [1, 2].map(|node| cluster.identity(node));
    // Only a reset or the peer's own dial can end the old connection in time.
    let patient = |config: &mut BackhaulConfig| config.idle_timeout = 10 * PATIENCE;
    let a = cluster.start(one, patient);
    let b = cluster.start(Arc::clone(&two), patient);
    a.backhaul.set_peers(&cluster.peers);
    b.backhaul.set_peers(&cluster.peers);
    a.connected(2).await;
    b.connected(1).await;
    let mut stream = a.backhaul.open(number(2), preamble()).await.unwrap();
    let old = b.backhaul.local_addr();
    b.links.set_faults(rule(1, cut()));
    b.backhaul.close(Duration::ZERO).await;
    drop(b);
    eventually(|| std::net::UdpSocket::bind(old).is_ok(), |free| *free).await;
    let b = cluster.start(two, |config| config.bind = old);
    let broken = tokio::time::timeout(PATIENCE, stream.recv.next()).await.expect("the old one is noticed");
    assert_eq!(broken, Err(StreamError::Lost("reset by peer".into())));
    assert_eq!(a.echo(2, "again").await.unwrap(), "\u{1}again");
    b.backhaul.set_peers(&cluster.peers);
    assert_eq!(b.echo(1, "again").await.unwrap(), "\u{2}again");
}

#[tokio::test]
async fn a_node_that_goes_away_says_so() {
    let (_cluster, [a, b]) = Cluster::of();
    let mut stream = a.backhaul.open(number(2), preamble()).await.unwrap();
    b.connected(1).await;
    b.backhaul.close(PATIENCE).await;
    let error = stream.recv.next().await.unwrap_err();
    assert!(matches!(&error, StreamError::Lost(reason) if reason.contains("going away")), "{error}");
    let refused = b.echo(1, "x").await;
    assert!(refused.is_err(), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_link_costs_time_but_no_answer() {
    let (_cluster, [a, b]) = Cluster::of();
    let bad = LinkRule {
        delay_us: 10_000,
        jitter_us: 5_000,
        loss: 0.1,
        duplicate: 0.05,
        reorder: 0.05,
        ..LinkRule::default()
    };
    a.links.set_faults(rule(2, bad));
    b.links.set_faults(rule(1, bad));
    let mut asking = tokio::task::JoinSet::new();
    for question in 0..100u8 {
        let (to, asker) = if question % 2 == 0 { (2, &a) } else { (1, &b) };
        let backhaul = asker.backhaul.clone();
        asking.spawn(async move {
            let text = vec![question; 2_000];
            backhaul.ask(number(to), Ask::Registry(text.clone()), PATIENCE).await.map(|answer| {
                assert_eq!(answer[1..], text);
            })
        });
    }
    for answer in asking.join_all().await {
        answer.unwrap();
    }
    let counts = a.links.counts();
    assert!(counts.dropped > 0 && counts.delayed > 0 && counts.duplicated > 0, "{counts:?}");
}
