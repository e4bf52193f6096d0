//! Ways around a link that is cut (SPEC LB-8, complaint C12, incident X19).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use skein_cluster::clock;
use skein_core::fault::LinkRule;
use skein_core::wire::{Frame, Preamble, Protocol, RefuseReason, Target};
use skein_core::{MachineId, NodeNumber};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::backend::{Server, get, request, send, text};
use crate::world::{HTTP, World, eventually};

/// Cuts what two nodes send each other.
fn cut(world: &World, pairs: &[(usize, usize)]) {
    for (index, node) in world.nodes.iter().enumerate() {
        let others = pairs.iter().filter_map(|pair| match *pair {
            (a, b) if a == index => Some(b),
            (a, b) if b == index => Some(a),
            _ => None,
        });
        let rule = LinkRule { cut: true, ..LinkRule::default() };
        node.links.set_faults(others.map(|other| (world.nodes[other].number, rule)).collect());
    }
}

fn relayed(world: &World, node: usize) -> u64 {
    let metrics = world.nodes[node].edge.metrics();
    let line = metrics.lines().find(|line| line.starts_with("skein_edge_relayed_count{")).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Asks until a request is answered, for at most so many failures.
async fn answered(edge: SocketAddr, failures: usize) {
    for _ in 0..failures {
        if get(edge, "/").await.status == 200 {
            return;
        }
    }
    panic!("no request was answered");
}

#[tokio::test]
async fn lb_8_an_edge_that_cannot_reach_a_worker_relays_through_a_node_that_can_until_it_can_again() {
    let server = Server::answering(|seen| text(200, format!("{} bytes", seen.body.len()))).await;
    let mut world = World::new(&["iad", "lhr", "nrt"]);
    let app = world.app("hello");
    world.machine(2, app, server.address, HTTP);
    world.publish();
    let edge = world.shared(0, 80).await;
    assert_eq!((get(edge, "/").await.status, relayed(&world, 0)), (200, 0));
    cut(&world, &[(0, 2)]);
    // A GET that was under way is given up and tried again, so not even the first one fails.
    answered(edge, 1).await;
    assert!(relayed(&world, 0) >= 1);
    let before = relayed(&world, 0);
    for size in [10, 3_000_000] {
        let got = send(edge, request("POST", "/", vec![b'x'; size])).await;
        assert_eq!((got.status, got.text()), (200, format!("{size} bytes").as_str()));
    }
    assert_eq!(relayed(&world, 0), before + 2);
    cut(&world, &[]);
    let deadline = clock::now() + Duration::from_secs(30);
    loop {
        let before = relayed(&world, 0);
        assert_eq!(get(edge, "/").await.status, 200);
        if relayed(&world, 0) == before {
            break;
        }
        assert!(clock::now() < deadline, "healed, and still it goes around");
    }
}

#[tokio::test]
async fn lb_8_what_is_relayed_is_relayed_once_and_only_to_a_node_that_is_in_reach() {
    let server = Server::answering(|_| text(200, "hello")).await;
    let mut world =
        World::with(&["iad", "lhr", "nrt"], |config| config.route_timeout = Duration::from_secs(8));
    let app = world.app("hello");
    world.machine(2, app, server.address, HTTP);
    world.publish();
    let edge = world.shared(0, 80).await;
    assert_eq!(get(edge, "/").await.status, 200);
    let ask = async |relay: Option<NodeNumber>, hops: u8| -> Frame {
        let public = "203.0.113.1:80".parse().unwrap();
        let preamble = Preamble {
            app,
            port: 80,
            protocol: Protocol::Http,
            target: Target::Machine(MachineId::from_bits(1)),
            deadline_ms: 5_000,
            relay,
            hops,
            edge: NodeNumber(1),
            edge_region: "iad".parse().unwrap(),
            client: "192.0.2.1:9".parse().unwrap(),
            public,
            request_id: "one".to_owned(),
            traceparent: None,
        };
        let to = if relay.is_some() { NodeNumber(2) } else { NodeNumber(3) };
        let stream = world.nodes[0].backhaul.open(to, preamble).await.unwrap();
        let (_sender, mut receiver) = stream.split();
        receiver.next().await.unwrap().unwrap()
    };
    let reason = |frame: Frame| {
        let Frame::Refused(refused) = frame else { panic!("a refusal was expected: {frame:?}") };
        refused.reason
    };
    assert_eq!(reason(ask(Some(NodeNumber(3)), 1).await), RefuseReason::Hops, "passed on already");
    assert_eq!(reason(ask(None, 2).await), RefuseReason::Hops, "passed on twice");
    cut(&world, &[(0, 2), (1, 2)]);
    let mut codes = BTreeMap::new();
    for _ in 0..3 {
        let got = get(edge, "/").await;
        *codes.entry(got.header("skein-error").map(str::to_owned)).or_insert(0) += 1;
    }
    assert_eq!(codes, BTreeMap::from([(Some("PM02".to_owned()), 3)]));
    eventually("the one in between is asked, and says no", || relayed(&world, 0) > 0).await;
    assert_eq!(reason(ask(Some(NodeNumber(3)), 0).await), RefuseReason::Unreachable);
}

/// A raw connection goes around, too: one that is made while the link is cut, also the very first.
#[tokio::test]
async fn lb_8_a_raw_connection_goes_around_a_cut_link() {
    let server = Server::echoing().await;
    let mut world = World::new(&["iad", "lhr", "nrt"]);
    let app = world.app("hello");
    world.machine(2, app, server.address, r#"{"internal_port":7,"ports":[{"port":7}]}"#);
    let dedicated = world.dedicated(app);
    world.publish();
    let edge = world.map(0, dedicated, 7).await;
    for (links, ways) in [(vec![], 0), (vec![(0, 2)], 1), (vec![(0, 2)], 2)] {
        cut(&world, &links);
        let mut client = TcpStream::connect(edge).await.unwrap();
        client.write_u8(7).await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), 7, "{links:?}");
        assert_eq!(relayed(&world, 0), ways);
    }
}
