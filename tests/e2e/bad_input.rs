//! Bad input: one clear error with the next step, an exit code, and the cluster goes on.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use crate::support::cluster::{Home, text};
use crate::support::process::run;
use crate::support::{Cluster, Request, SOON, eventually};

#[test]
fn a_region_that_does_not_exist_is_named_with_its_neighbours() {
    let home = Home::new();
    for (regions, wrong) in [("iad,lrh", "lrh"), ("IAD", "IAD"), ("iad:0", "iad:0"), ("", "region")] {
        let said = home.up(Path::new("/"), &["--regions", regions], &[]).refused();
        assert!(said.contains(wrong), "{regions:?}: {said}");
    }
    let said = home.up(Path::new("/"), &["--regions", "lrh"], &[]).refused();
    assert!(said.contains("lhr"), "an unknown region names near ones: {said}");
    let state = home.path().join("state").join(&home.name);
    assert!(!state.join("cluster.json").exists(), "nothing was started");
}

#[test]
fn a_file_that_cannot_be_deployed_is_refused_at_its_line() {
    let home = Home::new();
    let file = home.path().join("fly.toml");
    for (toml, place, word) in [
        ("app = \"a\"\n[http_service\n", "2:", "TOML"),
        ("app = \"a\"\n[http_service]\ninternal_port = \"many\"\n", "3:17", "internal_port"),
        ("app = \"a\"\n[[services]]\n[[services.ports]]\nport = 80\nhandlers = [\"htpt\"]\n", "5:", "htpt"),
        ("app = \"a\"\n[http_service]\n[[services]]\n[[services.ports]]\nport = 443\n", "5:", "443"),
        ("app = \"a\"\nprimary_region = \"lrh\"\n", "2:18", "near ones are lhr"),
    ] {
        fs::write(&file, toml).unwrap();
        let path = file.to_str().unwrap();
        let validated = home.run(&["config", "validate", "-c", path]).refused();
        let upped = home.up(home.path(), &["--regions", "iad", "--config", path], &["sleep", "1"]).refused();
        for said in [validated, upped] {
            assert!(said.contains(&format!("fly.toml:{place}")), "{said}");
            assert!(said.contains(word), "{said}");
        }
    }
    let missing = home.up(home.path(), &["--config", "no/such/fly.toml"], &["sleep", "1"]).refused();
    assert!(missing.contains("no/such/fly.toml"), "{missing}");
}

#[test]
fn a_command_that_does_not_exist_or_exits_at_once_is_an_error_that_says_so() {
    let cluster = Cluster::up(&["--regions", "iad"]);
    cluster.skein(&["apps", "create", "broken"]).ok();
    for command in ["/no/such/program", "false"] {
        let said =
            cluster.skein(&["machine", "run", "-a", "broken", "--region", "iad", "--", command]).refused();
        assert!(said.contains(command) || said.contains("exit"), "{said}");
    }
    let said = cluster.skein(&["machine", "run", "-a", "broken", "--region", "iad", "--", "true"]).refused();
    assert!(
        said.contains("it ended as soon as it was started; its process exited with code 0"),
        "success is an end, too: {said}"
    );
    assert_eq!(cluster.get("hello", "iad-1", "/").status, 200, "the cluster goes on");

    let home = Home::new();
    let file = home.path().join("fly.toml");
    fs::write(&file, "app = \"broken\"\nprimary_region = \"nrt\"\n[http_service]\n").unwrap();
    let said =
        home.up(home.path(), &["--regions", "iad", "--config", "fly.toml"], &["/no/such/program"]).refused();
    assert!(said.contains("/no/such/program"), "{said}");
    assert!(said.contains("primary_region is nrt"), "a warning, no error: {said}");
}

#[test]
fn a_deploy_that_is_refused_has_changed_nothing() {
    let cluster = Cluster::up(&["--regions", "iad", "--no-demo"]);
    let file = cluster.home.path().join("fly.toml");
    let path = file.to_str().unwrap();
    let good = "app = \"shop\"\nprimary_region = \"iad\"\n[build]\nimage = \"skein/hello\"\n";
    let service = "[[services]]\ninternal_port = 8080\n";
    let udp = format!("{good}{service}protocol = \"udp\"\n[[services.ports]]\nport = 53\n");
    let tls = format!("{good}{service}[[services.ports]]\nport = 443\nhandlers = [\"tls\"]\n");
    let far = good.replace("iad", "nrt");
    let refused = [
        (good, vec!["--regions", "iad,lrh"], "lhr"),
        (good, vec!["--regions", "iad,nrt"], "there are nodes in iad"),
        (far.as_str(), vec![], "there are nodes in iad"),
        (udp.as_str(), vec![], "UDP"),
        (tls.as_str(), vec![], "tls"),
    ];
    let refuse_all = || {
        for (toml, more, word) in &refused {
            fs::write(&file, format!("{toml}[env]\nRELEASE = \"2\"\n")).unwrap();
            let said = cluster.skein(&[&["deploy", "-c", path], more.as_slice()].concat()).refused();
            assert!(said.contains(word), "{more:?}: {said}");
        }
    };
    refuse_all();
    assert_eq!(cluster.json_of(&["apps", "list", "--json"]), serde_json::json!([]), "no app was made");

    fs::write(&file, good).unwrap();
    cluster.skein(&["deploy", "-c", path]).ok();
    let versions = || -> Vec<String> {
        cluster.machines("shop").iter().map(|machine| text(&machine["instance_id"])).collect()
    };
    let before = versions();
    refuse_all();
    assert_eq!(versions(), before, "no Machine was touched");
}

#[test]
fn names_and_ids_that_do_not_exist_are_refused_by_name() {
    let cluster = Cluster::up(&["--regions", "iad"]);
    for (args, word) in [
        (vec!["endpoint", "nobody", "--json"], "nobody"),
        (vec!["endpoint", "nobody"], "skein apps list"),
        (vec!["status", "-a", "nobody"], "no app nobody"),
        (vec!["endpoint", "hello", "--node", "mars-1", "--json"], "\"mars-1\"; the nodes are iad-1"),
        (vec!["node", "drain", "mars-1"], "\"mars-1\"; the nodes are iad-1"),
        (vec!["machines", "stop", "00000000000000"], "00000000000000"),
        (vec!["machine", "run", "-a", "hello", "--region", "zzz", "--", "true"], "zzz"),
        (vec!["node", "restart", "mars-1"], "mars-1"),
        (vec!["apps", "create", "Not_A_Name"], "Not_A_Name"),
        (vec!["apps", "create", "hello"], "hello"),
        (vec!["trace", "01JNRQ9VVKJ7HZFMJWJB3M3RYN-iad"], "01JNRQ9VVKJ7HZFMJWJB3M3RYN"),
        (vec!["no-such-verb"], "no-such-verb"),
    ] {
        let said = cluster.skein(&args).refused();
        assert!(said.contains(word), "{args:?}: {said}");
    }
    let nobody = run(cluster.home.skein().args(["--cluster", "nobody", "apps", "list"]), SOON).refused();
    assert!(nobody.contains("nobody"), "{nobody}");
}

/// `node.toml` of a node that joins.
fn joiner(folder: &Path, name: &str, api: &str, token: &str) -> std::path::PathBuf {
    let data = folder.join(name);
    fs::create_dir(&data).unwrap();
    let file = data.join("node.toml");
    let toml = format!(
        "name = \"{name}\"\nregion = \"lhr\"\ndata_dir = \"{}\"\napi_bind = \"{api}\"\njoin = \"{token}\"\n\
         adopt_grace_ms = 0\nexit_with_stdin = false\n",
        data.display()
    );
    fs::write(&file, toml).unwrap();
    file
}

#[test]
fn a_join_token_works_once_and_a_false_one_never() {
    let cluster = Cluster::up(&["--regions", "iad", "--latency", "none"]);
    let token = cluster.skein(&["node", "token", "--uses", "1"]).ok().trim().to_owned();
    let folder = cluster.home.path();
    let start = |name: &str, token: &str| {
        let mut command = cluster.home.skein();
        command.args(["node", "run", "--config"]).arg(joiner(folder, name, "127.0.0.1:0", token));
        command
    };
    let log = fs::File::create(folder.join("lhr-1.log")).unwrap();
    let mut first = start("lhr-1", &token);
    first.stdin(std::process::Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    let _first = crate::support::process::Owned::start(&mut first);
    eventually("the node has joined", SOON, || {
        let bound = fs::read_to_string(folder.join("lhr-1/bound.json"));
        bound.map_err(|_| fs::read_to_string(folder.join("lhr-1.log")))
    });

    let reused = run(&mut start("lhr-2", &token), SOON).refused();
    assert!(reused.contains("token"), "{reused}");
    let short = &token[..token.len() - 2];
    let mut other = token.clone();
    other.replace_range(token.len() - 2.., if token.ends_with("00") { "11" } else { "00" });
    for (name, wrong) in [("lhr-3", "skein1.00"), ("lhr-4", short), ("lhr-5", other.as_str()), ("lhr-6", "")]
    {
        let said = run(&mut start(name, wrong), SOON).refused();
        assert!(said.contains("token"), "{wrong:?}: {said}");
    }
    let expired = cluster.skein(&["node", "token", "--ttl", "1s"]).ok().trim().to_owned();
    eventually("the token expires", SOON, || {
        // Too early it would join; a name that is taken keeps it from doing so.
        let said = run(&mut start_named(&cluster, "iad-1", &expired), SOON).refused();
        if said.contains("expired") { Ok(()) } else { Err(said) }
    });
    assert_eq!(cluster.get("hello", "iad-1", "/").status, 200);
}

/// A fresh folder for each try.
fn start_named(cluster: &Cluster, name: &str, token: &str) -> std::process::Command {
    let folder = tempfile::tempdir_in(cluster.home.path()).unwrap().keep();
    let mut command = cluster.home.skein();
    command.args(["node", "run", "--config"]).arg(joiner(&folder, name, "127.0.0.1:0", token));
    command
}

#[test]
fn a_port_in_use_is_named() {
    let cluster = Cluster::up(&["--regions", "iad", "--no-demo"]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let token = cluster.skein(&["node", "token"]).ok().trim().to_owned();
    let mut command = cluster.home.skein();
    command.args(["node", "run", "--config"]).arg(joiner(cluster.home.path(), "lhr-1", &address, &token));
    let said = run(&mut command, SOON).refused();
    assert!(said.contains(&address), "{said}");
    assert!(said.contains("api_bind") && said.contains("--api"), "{said}");
}

#[test]
fn garbage_on_every_socket_harms_nobody() {
    let cluster = Cluster::up(&["--regions", "iad,lhr"]);
    let url = |value: &serde_json::Value| -> SocketAddr {
        let text = text(value);
        let text = text.trim_start_matches("http://");
        text.split('/').next().unwrap().parse().unwrap_or_else(|_| panic!("{text}"))
    };
    let mut tcp = vec![url(&cluster.json["api"]["url"])];
    tcp.extend(["grpc", "http"].map(|key| url(&cluster.json["otlp"][key])));
    for node in cluster.nodes() {
        tcp.push(url(&cluster.node(&node)["api"]));
        tcp.push(url(&cluster.node(&node)["metrics"]));
        tcp.push(cluster.endpoint("hello", &node));
    }
    let udp: Vec<SocketAddr> = cluster.nodes().iter().filter_map(|node| backhaul(&cluster, node)).collect();
    assert_eq!(udp.len(), 2, "each node's backhaul has a socket");

    let mut noise = 0x2545_f491_4f6c_dd1du64;
    let mut garbage = |length: usize| -> Vec<u8> {
        (0..length)
            .map(|_| {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                noise as u8
            })
            .collect()
    };
    let heads: [&[u8]; 6] = [
        b"\r\n\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\nhost: \xff\xfe\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 18446744073709551616\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x99\xff",
    ];
    for address in &tcp {
        for head in heads {
            throw(*address, head);
        }
        throw(*address, &garbage(70_000));
        throw(*address, &[b'a'; 300_000]);
    }
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for address in &udp {
        for length in [0, 1, 20, 1200, 1200, 9000] {
            socket.send_to(&garbage(length), address).unwrap();
        }
    }

    for node in cluster.nodes() {
        assert_eq!(cluster.get("hello", &node, "/").field("region"), node[..3]);
        let to = url(&cluster.node(&node)["metrics"]);
        Request::get(to, "/metrics").ok();
    }
    assert_eq!(cluster.machines("hello").len(), 2);
}

/// Where a node's backhaul listens, from its own files.
fn backhaul(cluster: &Cluster, node: &str) -> Option<SocketAddr> {
    let ports = fs::read_to_string(cluster.data_dir(node).join("ports.json")).ok()?;
    let ports: serde_json::Value = serde_json::from_str(&ports).ok()?;
    Some(SocketAddr::from(([127, 0, 0, 1], u16::try_from(ports["backhaul"].as_u64()?).ok()?)))
}

/// Sends bytes and reads what comes, as long as something comes; the other end may break it off.
fn throw(to: SocketAddr, bytes: &[u8]) {
    let mut stream = TcpStream::connect(to).unwrap_or_else(|error| panic!("{to}: {error}"));
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let _may_break_off = stream.write_all(bytes);
    let mut answer = [0; 4096];
    let _may_be_silent = stream.read(&mut answer);
}
