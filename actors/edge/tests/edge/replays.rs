//! fly-replay (SPEC RPL-1, RPL-3, RPL-4, RPL-5, RPL-8, RPL-9, RPL-11).

use bytes::Bytes;
use skein_core::machine::MachineState;

use crate::backend::{Seen, Server, get, replay, request, send, text};
use crate::world::{HTTP, World};

/// Answers `instruction` unless the request was replayed already.
async fn once(instruction: &'static str, name: &'static str) -> Server {
    Server::answering(move |seen: &Seen| match seen.header("fly-replay-src") {
        None if !instruction.is_empty() => replay(instruction),
        _ => text(200, name),
    })
    .await
}

/// Two nodes with a Machine each; the nearer one answers `instruction`.
async fn pair(instruction: &'static str) -> (World, Server, Server) {
    let (near, far) = (once(instruction, "near").await, once("", "far").await);
    let mut world = World::new(&["iad", "lhr"]);
    let app = world.app("hello");
    world.machine(0, app, near.address, HTTP);
    world.machine(1, app, far.address, HTTP);
    world.publish();
    (world, near, far)
}

/// SPEC RPL-1, RPL-4, RPL-11.
#[tokio::test]
async fn rpl_4_the_whole_request_goes_to_the_named_region_and_no_instruction_leaks() {
    let (world, near, far) = pair("region=lhr;state=captured_write").await;
    let edge = world.shared(0, 80).await;
    let mut asked = request("POST", "/orders?id=7", "body of the order");
    asked.headers_mut().insert("x-mine", "kept".parse().unwrap());
    let got = send(edge, asked).await;
    assert_eq!((got.status, got.text()), (200, "far"));
    assert!(got.headers.keys().all(|name| !name.as_str().starts_with("fly-replay")), "{:?}", got.headers);
    let (first, second) = (&near.seen()[0], &far.seen()[0]);
    for seen in [first, second] {
        assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/orders?id=7"));
        assert_eq!(seen.body, Bytes::from_static(b"body of the order"));
        assert_eq!(seen.header("x-mine"), Some("kept"));
        assert_eq!(seen.header("fly-region"), Some("iad"), "the edge's region, on each hop");
    }
    assert_eq!(first.header("fly-replay-src"), None);
    let src = second.header("fly-replay-src").unwrap();
    assert!(src.starts_with("instance=00000000000001;region=iad;t="), "{src}");
    assert!(src.ends_with(";state=captured_write"), "{src}");
    assert_eq!(first.header("fly-request-id"), second.header("fly-request-id"));
}

#[tokio::test]
async fn rpl_1_a_replay_names_a_region_a_machine_or_anything_elsewhere() {
    for instruction in
        ["region=lhr", "region=\"nrt,lhr\"", "region=eu", "instance=00000000000002", "elsewhere=true"]
    {
        let (world, _near, _far) = pair(instruction).await;
        let got = get(world.shared(0, 80).await, "/").await;
        assert_eq!((got.status, got.text()), (200, "far"), "{instruction}");
    }
}

#[tokio::test]
async fn rpl_1_what_is_invalid_or_names_nothing_that_exists_is_told_by_its_code() {
    for (instruction, status, code) in [
        ("region=zzz", 502, "PA03"),
        ("donuts=1", 502, "PA03"),
        ("region=nrt", 503, "PR01"),
        ("instance=no-such-machine", 502, "PR02"),
        ("app=nobody", 502, "PA05"),
    ] {
        let (world, near, far) = pair(instruction).await;
        let got = get(world.shared(0, 80).await, "/").await;
        assert_eq!((got.status, got.header("skein-error")), (status, Some(code)), "{instruction}");
        assert_eq!((near.seen().len(), far.seen().len()), (1, 0), "{instruction}");
        assert_eq!(got.header("fly-replay"), None);
    }
}

/// SPEC RPL-8: the grant beside its refusals.
#[tokio::test]
async fn rpl_8_another_app_of_the_same_network_takes_the_replay_and_no_other_does() {
    for (name, status, answer) in
        [("friend", 200, None), ("stranger", 502, Some("PA05")), ("apart", 502, Some("PA04"))]
    {
        let other = once("", "other").await;
        let near = Server::answering(move |_| replay(&format!("app={name}"))).await;
        let mut world = World::new(&["iad"]);
        let app = world.app("hello");
        world.machine(0, app, near.address, HTTP);
        for (name, org, network) in
            [("friend", 1, "default"), ("stranger", 2, "default"), ("apart", 1, "another")]
        {
            let app = world.app_of(name, org, network);
            world.machine(0, app, other.address, HTTP);
        }
        world.publish();
        let got = get(world.shared(0, 80).await, "/").await;
        assert_eq!((got.status, got.header("skein-error")), (status, answer), "{name}");
        assert_eq!(other.seen().len(), usize::from(status == 200), "{name}");
    }
}

/// SPEC RPL-5.
#[tokio::test]
async fn rpl_5_ten_replays_are_followed_and_the_eleventh_is_pa02() {
    let server = Server::answering(|_| replay("region=any")).await;
    let mut world = World::new(&["iad"]);
    let app = world.app("hello");
    world.machine(0, app, server.address, HTTP);
    world.publish();
    let got = get(world.shared(0, 80).await, "/").await;
    assert_eq!((got.status, got.header("skein-error")), (502, Some("PA02")));
    assert_eq!(server.seen().len(), 11);
}

/// SPEC RPL-5: at the limit and one byte over it, with a known and with an unknown length.
#[tokio::test]
async fn rpl_5_a_body_at_the_limit_is_replayed_and_one_byte_more_is_pa01() {
    for chunked in [false, true] {
        let (world, _near, far) = pair("region=lhr").await;
        let edge = world.shared(0, 80).await;
        for (length, status) in [(1 << 20, 200), ((1 << 20) + 1, 413)] {
            let body = Bytes::from(vec![b'x'; length]);
            let mut asked = request("POST", "/", body.clone());
            if chunked {
                asked.headers_mut().insert("transfer-encoding", "chunked".parse().unwrap());
            }
            let got = send(edge, asked).await;
            assert_eq!(got.status, status, "{length} bytes, chunked {chunked}: {}", got.text());
            if status == 413 {
                assert_eq!(got.header("skein-error"), Some("PA01"));
                assert!(got.text().contains("1048576"), "{}", got.text());
            }
        }
        assert_eq!(far.seen().len(), 1);
        assert_eq!(far.seen()[0].body.len(), 1 << 20);
        let left = || world.nodes[0].edge.counts().replay_budget_left == 256 << 20;
        crate::world::eventually("the budget is given back", left).await;
    }
}

#[tokio::test]
async fn rpl_5_a_spent_budget_lets_bodies_flow_and_a_replay_names_it() {
    let near = once("region=lhr", "near").await;
    let plain = once("", "plain").await;
    let mut world = World::with(&["iad"], |config| config.replay_budget = 10);
    for (name, server) in [("hello", &near), ("plain", &plain)] {
        let app = world.app(name);
        world.machine(0, app, server.address, HTTP);
    }
    world.publish();
    let edge = world.shared(0, 80).await;
    let got = send(edge, request("POST", "/", "eleven byte")).await;
    assert_eq!((got.status, got.header("skein-error")), (413, Some("PA01")));
    assert!(got.text().contains("(budget)"), "{}", got.text());
    let mut asked = request("POST", "/", "eleven byte");
    asked.headers_mut().insert("host", "plain.localhost".parse().unwrap());
    assert_eq!(send(edge, asked).await.status, 200);
    assert_eq!(plain.seen()[0].body, "eleven byte");
}

/// SPEC RPL-9.
#[tokio::test]
async fn rpl_9_a_preferred_region_is_tried_first_and_is_no_demand() {
    let (mut world, _near, far) = pair("").await;
    let edge = world.shared(0, 80).await;
    let ask = || {
        let mut asked = request("GET", "/", "");
        asked.headers_mut().insert("fly-prefer-region", "lhr".parse().unwrap());
        asked
    };
    assert_eq!(send(edge, ask()).await.text(), "far");
    assert_eq!(get(edge, "/").await.text(), "near");
    world.change(skein_core::MachineId::from_bits(2), |machine| machine.state = MachineState::Stopped);
    world.publish();
    assert_eq!(send(edge, ask()).await.text(), "near");
    assert_eq!(far.seen().len(), 1);
}
