//! S1, what needs no TLS: curl over HTTP/1.1 and HTTP/2, and an app that wants HTTPS.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use serde_json::Value;

use crate::support::process::{program, run};
use crate::support::{Cluster, SOON, skipped};

const WRITE_OUT: &str = "\n%{http_version} %{http_code} %{redirect_url}";

/// What curl printed: the body, then [`WRITE_OUT`].
fn curl(args: &[&str], url: &str) -> (String, String) {
    let mut command = Command::new(program("curl").expect("curl was found before"));
    let out = run(command.args(["--silent", "--show-error", "-w", WRITE_OUT]).args(args).arg(url), SOON).ok();
    let (body, written) = out.rsplit_once('\n').expect("what -w says comes last");
    (body.to_owned(), written.to_owned())
}

/// An app whose port 80 sends everybody to HTTPS.
fn https_only(cluster: &Cluster) -> SocketAddr {
    let config = cluster.home.path().join("fly.toml");
    let toml = "app = \"secure\"\nprimary_region = \"lhr\"\n[build]\nimage = \"skein/hello\"\n\
                [http_service]\ninternal_port = 8080\nforce_https = true\n";
    fs::write(&config, toml).unwrap();
    cluster.skein(&["deploy", "-c", config.to_str().unwrap()]).ok();
    cluster.shared_endpoint("secure", "iad-1")
}

#[test]
fn s1_curl_speaks_both_versions_and_the_app_sees_http_1_1_and_who_asked() {
    if program("curl").is_none() {
        return skipped("S1", "curl is not installed");
    }
    let cluster = Cluster::up(&["--regions", "iad,lhr"]);
    let edge = cluster.endpoint("hello", "lhr-1");
    for (args, said, via) in [
        (&["--http1.1"][..], "1.1 200 ", "1.1 skein"),
        (&["--http1.0"], "1 200 ", "1.0 skein"),
        (&["--http2-prior-knowledge"], "2 200 ", "2 skein"),
    ] {
        let (body, written) = curl(args, &format!("http://{edge}/"));
        assert_eq!(written, said, "{args:?}: {body}");
        let seen: Value = serde_json::from_str(&body).unwrap();
        let header = |name: &str| seen["headers"][name].as_str().unwrap_or_default().to_owned();
        assert_eq!(header("fly-client-ip"), edge.ip().to_string());
        assert_eq!(header("fly-forwarded-port"), "80");
        assert_eq!(header("fly-region"), "lhr");
        assert_eq!(header("x-forwarded-proto"), "http");
        assert_eq!(header("via"), via);
        assert_eq!(header("host"), edge.to_string());
    }

    let secure = https_only(&cluster);
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let to = format!("http://secure.localhost:{}/a/path?and=query", secure.port());
        let resolve = format!("secure.localhost:{}:{}", secure.port(), secure.ip());
        let (_, written) = curl(&[version, "--resolve", &resolve], &to);
        assert!(written.ends_with(" 301 https://secure.localhost/a/path?and=query"), "{version}: {written}");
    }
}
