use clap::Parser;
use skein_core::api::{ApiJson, BoundJson, ClusterJson, EndpointJson, OtlpJson};
use skein_core::config::{Format, load};

use super::{App, UpArgs, daemon, demo, report};
use crate::cli::Ctx;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: UpArgs,
}

fn parse(line: &[&str]) -> Result<UpArgs, clap::Error> {
    Line::try_parse_from(std::iter::once("up").chain(line.iter().copied())).map(|line| line.args)
}

#[test]
fn without_arguments_three_regions_with_their_distances_and_the_sample_app() {
    let args = parse(&[]).unwrap();
    let (nodes, app) = args.check().unwrap();
    let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["iad-1", "lhr-1", "nrt-1"]);
    assert_eq!(app, App::Hello);
    assert_eq!(args.latency, super::Latency::Real);
    assert_eq!(parse(&["--no-demo"]).unwrap().check().unwrap().1, App::None);
}

#[test]
fn arguments_that_can_not_be_meant_are_refused_with_the_next_step() {
    let error = |line: &[&str]| format!("{:#}", parse(line).unwrap().check().unwrap_err());
    assert!(error(&["--regions", "iad,lhx"]).contains("lhr"), "near regions are named");
    assert!(error(&["--isolation", "netns"]).contains("--isolation portable"));
    assert!(error(&["--nodes", "0"]).contains("1 to 200"));
    assert!(error(&["--config", "/nonexistent/fly.toml"]).contains("/nonexistent/fly.toml"));
    for bad in [
        &["--name", "../x"][..],
        &["--nodes", "3", "--regions", "iad"],
        &["--trace-sample", "2"],
        &["--latency", "some"],
        &["--otlp", "a:4317"],
        &["--", "node", "server.js"],
    ] {
        assert!(parse(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_primary_region_without_a_node_is_no_error_and_is_told() {
    let own = |primary: Option<&str>| App::Own {
        config: "fly.toml".into(),
        command: Vec::new(),
        primary: primary.map(|region| region.parse().unwrap()),
    };
    let nodes = parse(&["--regions", "lhr,iad"]).unwrap().check().unwrap().0;
    assert_eq!(own(Some("iad")).warning(&nodes), None);
    assert_eq!(own(None).warning(&nodes), None);
    assert_eq!(App::Hello.warning(&nodes), None);
    let told = own(Some("nrt")).warning(&nodes).unwrap();
    assert!(told.contains("fly.toml") && told.contains("nrt"), "{told}");
}

#[test]
fn the_daemon_gets_the_same_arguments() {
    for line in [
        &["--detach"][..],
        &["--detach", "--name", "ci", "--nodes", "5", "--latency", "none", "--trace-sample", "0.25"],
        &["--regions", "iad:2,lhr", "--isolation", "portable", "--no-demo"],
        &["--otlp", "http://a:4317", "--otlp", "http://b:4318/v1/traces"],
        &["--config", "/a/fly.toml", "--detach", "--", "node", "--detach", "server.js"],
    ] {
        let args = parse(line).unwrap();
        let words = daemon::arguments(&args).unwrap();
        let again = Line::try_parse_from(words).unwrap().args;
        assert_eq!(again, UpArgs { detach: false, daemon: true, ..args }, "{line:?}");
    }
}

#[test]
fn the_sample_app_is_what_the_design_says() {
    let nodes = parse(&["--regions", "lhr,iad"]).unwrap().check().unwrap().0;
    let loaded = load(demo::text(&nodes[0]), Format::Toml);
    assert!(loaded.is_valid(), "{:?}", loaded.diagnostics);
    assert!(loaded.diagnostics.is_empty(), "{:?}", loaded.diagnostics);
    let file = loaded.config.unwrap();
    assert_eq!(file.primary_region.unwrap().as_str(), "lhr");
    let machine = file.machine(&"app".parse().unwrap()).unwrap();
    assert_eq!(machine.image, "skein/hello");
    let ports: Vec<u16> = machine.services[0].ports.iter().map(|port| *port.range().start()).collect();
    assert_eq!(ports, [80, 443]);
}

fn cluster() -> ClusterJson {
    let node = |name: &str| BoundJson {
        name: name.parse().unwrap(),
        region: name[..3].parse().unwrap(),
        pid: 7,
        api: "http://127.0.0.1:1".into(),
        metrics: "http://127.0.0.1:1/metrics".into(),
        dns: None,
        wireguard: None,
        data_dir: "/x".into(),
    };
    ClusterJson {
        name: "ci".into(),
        api: ApiJson { url: "http://127.0.0.1:2".into(), token: "skt_x".into() },
        dashboard: None,
        otlp: OtlpJson { grpc: "http://127.0.0.1:3".into(), http: "http://127.0.0.1:4".into() },
        ca: None,
        isolation: "portable".into(),
        nodes: vec![node("iad-1"), node("nrt-1")],
    }
}

#[test]
fn the_table_ends_with_commands_that_can_be_pasted() {
    let endpoint = |node: &str, port: u16| EndpointJson {
        node: node.parse().unwrap(),
        region: node[..3].parse().unwrap(),
        public: "2001:db8::1".parse().unwrap(),
        port: 80,
        connect: ([127, 0, 0, 1], port).into(),
    };
    let lines = report::lines(
        &cluster(),
        Some("hello.localhost"),
        &[endpoint("iad-1", 4001), endpoint("nrt-1", 4002)],
        "./target/debug/skein",
    );
    let text = lines.join("\n");
    for wanted in [
        "nrt-1  nrt     7        http://127.0.0.1:1  http://127.0.0.1:4002",
        "  curl -H 'Host: hello.localhost' http://127.0.0.1:4001/",
        "  curl -X POST -H 'Host: hello.localhost' http://127.0.0.1:4002/",
        "  ./target/debug/skein --cluster ci chaos inject kill nrt-1",
        "  ./target/debug/skein down --name ci",
    ] {
        assert!(text.contains(wanted), "{wanted:?} is not in\n{text}");
    }
}

/// DESIGN section 8: the keys of `up --detach --json`; those that are not built are null.
#[test]
fn the_description_has_every_key_that_scripts_rely_on() {
    let json = serde_json::to_value(cluster()).unwrap();
    for key in ["name", "api", "dashboard", "otlp", "ca", "isolation", "nodes"] {
        assert!(json.get(key).is_some(), "{key}");
    }
    assert!(json["dashboard"].is_null() && json["ca"].is_null());
    for key in ["name", "region", "pid", "api", "metrics", "dns", "wireguard", "data_dir"] {
        assert!(json["nodes"][0].get(key).is_some(), "{key}");
    }
}

#[tokio::test]
async fn a_second_up_of_a_name_is_one_clear_error() {
    let home = tempfile::tempdir().unwrap();
    let mut ctx = Ctx::default();
    ctx.environment.skein_home = Some(home.path().into());
    let _held = skein_testbed::Home::new(home.path()).cluster(&"default".parse().unwrap()).lock().unwrap();
    let error = super::run(parse(&["--detach"]).unwrap(), &ctx).await.unwrap_err().to_string();
    assert!(error.contains("already running") && error.contains("skein down --name default"), "{error}");
}
