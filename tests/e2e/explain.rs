//! `skein explain`: what was decided for a request, asked at any node (SPEC OBS-5).

use std::io::Read;
use std::net::{SocketAddr, TcpListener};

use serde_json::{Value, json};

use crate::support::cluster::{Home, text};
use crate::support::process::run;
use crate::support::{Cluster, Reply, Request, SOON, eventually};

fn id(reply: &Reply) -> String {
    reply.header("fly-request-id").unwrap_or_else(|| panic!("no id: {reply:?}")).to_owned()
}

/// The kinds of a story's steps, in order.
fn steps(story: &Value) -> Vec<&str> {
    let steps = story["steps"].as_array().unwrap_or_else(|| panic!("{story}"));
    steps.iter().map(|step| step["step"].as_str().unwrap()).collect()
}

/// Asks the API of one node.
fn ask(cluster: &Cluster, node: &str, id: &str, token: Option<&str>) -> Reply {
    let to = text(&cluster.node(node)["api"]).trim_start_matches("http://").parse().unwrap();
    let request = Request::get(to, &format!("/skein/v1/explain/{id}"));
    match token {
        Some(token) => request.header("authorization", &format!("Bearer {token}")).reply(),
        None => request.reply(),
    }
}

#[test]
fn a_replayed_request_is_explained_at_every_node() {
    let cluster = Cluster::up(&["--regions", "iad,lhr,nrt", "--trace-sample", "1"]);
    let (near, primary) = (cluster.machines_in("hello", "nrt"), cluster.machines_in("hello", "iad"));
    let reply = Request::post(cluster.endpoint("hello", "nrt-1"), "/", "what I wrote").ok();
    let id = id(&reply);
    let story = cluster.json_of(&["explain", &id, "--json"]);
    assert_eq!((text(&story["request_id"]), text(&story["edge"])), (id.clone(), "nrt-1".to_owned()));
    assert_eq!((text(&story["app"]), text(&story["method"])), ("hello".to_owned(), "POST".to_owned()));
    assert_eq!(steps(&story), ["decided", "replayed", "decided"], "{story:#}");
    let chosen = |step: usize| &story["steps"][step]["machines"][0];
    assert_eq!((&chosen(0)["machine"], &chosen(0)["verdict"]), (&json!(near[0]), &json!("chosen")));
    assert_eq!(story["steps"][1]["machine"], json!(near[0]));
    assert_eq!(story["steps"][1]["to"], r#"region="iad""#);
    assert_eq!(chosen(2)["machine"], json!(primary[0]));
    assert_eq!((&story["ended"]["status"], &story["ended"]["machine"]), (&json!(200), &json!(primary[0])));

    let token = text(&cluster.json["api"]["token"]);
    for node in cluster.nodes() {
        assert_eq!(ask(&cluster, &node, &id, Some(&token)).json(), story, "{node}");
    }
    let trace = text(&story["trace_id"]);
    assert_eq!(cluster.json_of(&["explain", &trace, "--json"]), story, "by the trace's id");
    let told = cluster.skein(&["explain", &id]).ok();
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines[0], format!("request {id}: POST / for the app hello"), "{told}");
    assert!(lines[1].starts_with("at the edge nrt-1 (nrt), 20") && lines[1].ends_with(&trace), "{told}");
    assert!(lines[2].starts_with(&format!("  1. of 3 Machines, chose {} (nrt, ", near[0])), "{told}");
    for words in ["further away", "replay 1 to region=\"iad\"", "outside the region asked for"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let last = lines.last().unwrap();
    assert!(last.starts_with(&format!("  4. {} answered 200 (", primary[0])), "{told}");
}

/// A server that reads something and closes each connection without an answer.
fn closing() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let close = |stream: std::io::Result<std::net::TcpStream>| {
        // A client that went sends nothing: it is closed all the same.
        let _read = stream.and_then(|mut stream| stream.read(&mut [0; 4096]));
    };
    // It ends with the test's process.
    std::thread::spawn(move || listener.incoming().for_each(close));
    address
}

#[test]
fn a_request_that_was_tried_again_names_the_machine_that_failed_and_why() {
    let cluster = Cluster::up(&["--regions", "iad,lhr", "--no-demo"]);
    cluster.skein(&["apps", "create", "half"]).ok();
    let services =
        json!([{"protocol": "tcp", "internal_port": 8080, "ports": [{"port": 80, "handlers": ["http"]}]}]);
    let create = |region: &str, config: Value| {
        let body = json!({"region": region, "config": config}).to_string();
        let call = cluster.api("POST", "/v1/apps/half/machines").header("content-type", "application/json");
        text(&call.body(body).ok().json()["id"])
    };
    let outside = json!({"skein_external": closing().to_string()});
    let broken = create("lhr", json!({"image": "skein/external", "metadata": outside, "services": services}));
    let whole = create("iad", json!({"image": "skein/hello", "services": services}));
    cluster.skein(&["ips", "allocate-v6", "-a", "half"]).ok();
    let edge = cluster.endpoint("half", "lhr-1");
    let (reply, story) = eventually("both Machines are known", SOON, || {
        let reply = Request::get(edge, "/?y=z").reply();
        let story = cluster.json_of(&["explain", &id(&reply), "--json"]);
        if steps(&story) == ["decided", "failed", "decided"] { Ok((reply, story)) } else { Err(story) }
    });
    assert_eq!(reply.field("machine"), whole);
    let failed = &story["steps"][1];
    assert_eq!((&failed["machine"], &failed["code"]), (&json!(broken), &json!("PU02")));
    assert_eq!(failed["failure"], json!({"broken": {"code": "PU02", "reached_app": true}}));
    let second = &story["steps"][2]["machines"];
    assert_eq!((&second[0]["machine"], &second[0]["verdict"]), (&json!(whole), &json!("chosen")));
    assert_eq!(
        (&second[1]["machine"], &second[1]["verdict"]),
        (&json!(broken), &json!({"passed_over": "tried"}))
    );
    assert_eq!((&story["path"], &story["ended"]["machine"]), (&json!("/"), &json!(whole)));
    assert!(!story.to_string().contains("y=z"), "the query is not kept: {story}");

    // An error that the proxy answers names the way to its story.
    let refused = Request::post(edge, "/", "once").reply();
    assert_eq!((refused.status, refused.header("skein-error")), (502, Some("PU02")));
    let hint = format!("skein explain {}", id(&refused));
    assert!(refused.text().contains(&hint), "{}", refused.text());
    let args: Vec<&str> = hint.split(' ').skip(1).collect();
    let told = cluster.skein(&args).ok();
    for words in [
        format!("{broken} (lhr) failed: "),
        "the app may have seen".into(),
        "the edge itself answered 502 PU02".into(),
    ] {
        assert!(told.contains(&words), "{words}: {told}");
    }
}

#[test]
fn a_story_is_for_those_who_may_see_the_app() {
    let cluster = Cluster::up(&["--regions", "iad,lhr"]);
    cluster.skein(&["orgs", "create", "acme"]).ok();
    let theirs = text(&cluster.json_of(&["tokens", "create", "-o", "acme", "--json"])["token"]);
    let ours =
        text(&cluster.json_of(&["tokens", "create", "-o", "personal", "--read-only", "--json"])["token"]);
    let request = id(&cluster.get("hello", "lhr-1", "/"));
    let nobodys = Request::get(cluster.shared_endpoint("hello", "lhr-1"), "/").header("host", "no.localhost");
    let nobodys = id(&nobodys.reply());
    for request in [&request, &nobodys] {
        cluster.skein(&["explain", request, "--json"]).ok();
    }
    for node in cluster.nodes() {
        let status = |id: &str, token: Option<&str>| ask(&cluster, &node, id, token).status;
        assert_eq!(status(&request, None), 401, "{node}");
        assert_eq!(status(&request, Some("skt_nobody")), 401, "{node}");
        assert_eq!(status(&request, Some(&theirs)), 404, "{node}: another organization's");
        assert_eq!(status(&request, Some(&ours)), 200, "{node}");
        assert_eq!(status(&nobodys, Some(&ours)), 404, "{node}: it named no app of theirs");
    }
    let mut command = cluster.home.skein();
    command.env("SKEIN_API_URL", text(&cluster.json["api"]["url"])).env("SKEIN_API_TOKEN", &theirs);
    let said = run(command.args(["explain", &request]), SOON).refused();
    assert!(said.contains("no edge knows request"), "{said}");
}

#[test]
fn what_cannot_be_explained_is_said_with_the_reason() {
    let cluster = Cluster::up(&["--regions", "iad,lhr"]);
    let never = "01JNRQ9VVKJ7HZFMJWJB3M3RYN";
    let said = |id: &str| cluster.skein(&["explain", id]).refused();
    let unknown = said(&format!("{never}-lhr"));
    for words in ["no edge knows request", "asked: lhr-1", "newest 4096 requests", "has not ended yet"] {
        assert!(unknown.contains(words), "{words}: {unknown}");
    }
    let elsewhere = said(&format!("{never}-syd"));
    assert!(elsewhere.contains("no node is in syd") && elsewhere.contains("another cluster"), "{elsewhere}");
    let untraced = said("0af7651916cd43dd8448eb211c80319c");
    assert!(untraced.contains("was not traced") && untraced.contains("iad-1, lhr-1"), "{untraced}");
    for bad in ["hello", never, &format!("{never}-"), &"0".repeat(32), &"a".repeat(20_000)] {
        let said = said(bad);
        assert!(said.contains("neither a request id") && said.len() < 400, "{said}");
    }
    let token = text(&cluster.json["api"]["token"]);
    for bad in ["hello", never, "..", &"a".repeat(5_000)] {
        assert_eq!(ask(&cluster, "iad-1", bad, Some(&token)).status, 400, "{bad}");
    }
    assert_eq!(ask(&cluster, "iad-1", &format!("{never}-lhr?wait_ms=soon"), Some(&token)).status, 400);

    let request = id(&cluster.get("hello", "lhr-1", "/"));
    cluster.skein(&["explain", &request]).ok();
    cluster.kill("lhr-1");
    let gone = said(&request);
    assert!(gone.contains("lhr-1") && gone.contains("skein status"), "{gone}");
    let nowhere = Home::new();
    let lonely = run(nowhere.skein().args(["explain", &request]), SOON).refused();
    assert!(lonely.contains("skein up"), "{lonely}");
}
