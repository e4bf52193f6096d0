//! Where requests are answered (SPEC LB-1, LB-3, RPL-4, RPL-9, RPL-11).

use serde_json::Value;

use crate::support::cluster::text;
use crate::support::{Cluster, Reply, Request, SOON, eventually};

const REGIONS: [&str; 3] = ["iad", "lhr", "nrt"];

#[test]
fn every_region_answers_its_own_clients_and_the_nearest_other_stands_in() {
    let cluster = Cluster::up(&["--regions", "iad:2,lhr,nrt"]);
    assert_eq!(cluster.nodes(), ["iad-1", "iad-2", "lhr-1", "nrt-1"]);
    for node in cluster.nodes() {
        let region = &node[..3];
        let reply = cluster.get("hello", &node, "/");
        assert_eq!(reply.field("region"), region, "the edge {node} answers from its own region");
        assert_eq!(reply.field("edge_region"), region);
        assert_eq!(reply.field("app"), "hello");
        assert!(reply.header("fly-request-id").is_some_and(|id| id.ends_with(&format!("-{region}"))));
        assert_eq!(reply.header("fly-request-id"), Some(reply.field("request_id").as_str()));
    }

    // By distance: London is nearer to Virginia than to Tokyo, and Tokyo to London than to Virginia.
    for (stopped, nearest) in [("lhr", "iad"), ("nrt", "lhr")] {
        let id = &cluster.machines_in("hello", stopped)[0];
        cluster.skein(&["machines", "stop", id]).ok();
        let endpoint = cluster.endpoint("hello", &format!("{stopped}-1"));
        let answer = || Request::get(endpoint, "/").ok().field("region");
        eventually("the edge has heard of the stop", SOON, || expect(answer(), nearest));
        cluster.skein(&["machines", "start", id]).ok();
        eventually("its own Machine answers again", SOON, || expect(answer(), stopped));
    }
}

#[test]
fn a_write_far_from_the_primary_region_is_replayed_there() {
    let cluster = Cluster::up(&["--regions", "iad,lhr,nrt"]);
    let replica = cluster.machines_in("hello", "nrt")[0].clone();
    let primary = cluster.machines_in("hello", "iad")[0].clone();
    let endpoint = cluster.endpoint("hello", "nrt-1");
    let reply = Request::post(endpoint, "/", "what I wrote").ok();
    assert_eq!(reply.field("machine"), primary);
    assert_eq!(reply.field("region"), "iad");
    assert_eq!(reply.field("edge_region"), "nrt", "the edge stays the client's own");
    let source = text(&reply.json()["headers"]["fly-replay-src"]);
    assert!(source.contains(&format!("instance={replica}")), "{source}");
    assert!(source.contains("region=nrt"), "{source}");
    no_instruction_leaks(&reply);

    let local = Request::post(cluster.endpoint("hello", "iad-1"), "/", "here").ok();
    assert_eq!(local.json()["headers"].get("fly-replay-src"), None, "no replay where none is needed");
}

#[test]
fn an_instruction_of_the_app_is_followed_to_region_instance_and_elsewhere() {
    let cluster = Cluster::up(&["--regions", "iad,lhr,nrt"]);
    let endpoint = cluster.endpoint("hello", "iad-1");
    let far = cluster.machines_in("hello", "nrt")[0].clone();
    let replay = |to: &str| {
        let reply = Request::get(endpoint, &format!("/replay?to={to}")).ok();
        no_instruction_leaks(&reply);
        reply.json()
    };
    assert_eq!(replay("region%3Dlhr")["region"], "lhr");
    assert_eq!(replay(&format!("instance%3D{far}"))["machine"], *far);
    let elsewhere = replay("elsewhere%3Dtrue");
    assert_ne!(elsewhere["region"], "iad", "its only Machine there gave the instruction");
    let with_state = replay("region%3Dlhr%3Bstate%3Dkept");
    assert!(header(&with_state, "fly-replay-src").contains("state=kept"), "{with_state}");
    assert!(header(&with_state, "fly-replay-src").contains("region=iad"), "{with_state}");

    let nowhere = Request::get(endpoint, "/replay?to=app%3Dno-such-app").reply();
    assert!(nowhere.status >= 400, "{nowhere:?}");
    assert!(nowhere.header("skein-error").is_some(), "the proxy says whose error it is: {nowhere:?}");
    no_instruction_leaks(&nowhere);
}

#[test]
fn a_client_may_prefer_a_region_and_bodies_pass_both_ways() {
    let cluster = Cluster::up(&["--regions", "iad,lhr"]);
    let endpoint = cluster.endpoint("hello", "iad-1");
    for region in &REGIONS[..2] {
        let reply = Request::get(endpoint, "/").header("fly-prefer-region", region).ok();
        assert_eq!(reply.field("region"), *region);
    }
    let large: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let far = Request::post(endpoint, "/echo", large.clone()).header("fly-prefer-region", "lhr").ok();
    assert!(far.body == large, "{} bytes of {} came back", far.body.len(), large.len());
    let down = Request::get(endpoint, "/bytes/5000000").header("fly-prefer-region", "lhr").ok();
    assert_eq!(down.body.len(), 5_000_000);
    let none = Request::new("HEAD", endpoint, "/").reply();
    assert_eq!((none.status, none.body.len()), (200, 0));
}

#[test]
fn on_a_shared_address_the_host_decides_and_on_an_own_one_the_address() {
    let cluster = Cluster::up(&["--regions", "iad"]);
    let shared = cluster.shared_endpoint("hello", "iad-1");
    let by_name = Request::get(shared, "/").header("host", "hello.localhost").ok();
    assert_eq!(by_name.field("app"), "hello");
    assert_eq!(text(&by_name.json()["headers"]["host"]), "hello.localhost", "the app sees the client's host");
    for host in ["nobody.localhost", "hello.example.com", "localhost"] {
        let refused = Request::get(shared, "/").header("host", host).reply();
        assert!((400..500).contains(&refused.status), "{host}: {refused:?}");
        assert!(refused.header("skein-error").is_some(), "{host}: {refused:?}");
    }
    let own = cluster.endpoint("hello", "iad-1");
    assert_eq!(Request::get(own, "/").header("host", "anything.example.com").ok().field("app"), "hello");
}

fn expect(got: String, wanted: &str) -> Result<(), String> {
    if got == wanted { Ok(()) } else { Err(got) }
}

fn header(json: &Value, name: &str) -> String {
    json["headers"][name].as_str().unwrap_or_default().to_owned()
}

/// SPEC RPL-11.
#[track_caller]
fn no_instruction_leaks(reply: &Reply) {
    let leaked: Vec<_> = reply.headers.iter().filter(|(name, _)| name.starts_with("fly-replay")).collect();
    assert!(leaked.is_empty(), "{leaked:?}");
}

/// SPEC OBS-1: `--otlp` names one more collector; here it is that of another testbed.
#[test]
fn traces_go_to_a_collector_of_the_users_own_as_well() {
    let theirs = Cluster::up(&["--regions", "iad", "--no-demo"]);
    let url = text(&theirs.json["otlp"]["grpc"]);
    let cluster = Cluster::up(&["--regions", "iad", "--trace-sample", "1", "--otlp", &url]);
    let reply = cluster.get("hello", "iad-1", "/");
    let request = reply.header("fly-request-id").unwrap();
    for collector in [&cluster, &theirs] {
        let trace = collector.json_of(&["trace", request, "--json"]);
        assert!(!trace["spans"].as_array().unwrap().is_empty(), "{trace}");
    }
}
