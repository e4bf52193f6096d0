//! `slowhttptest` in its three modes while others are served (SPEC HTTP-9).

use std::fs::File;
use std::process::{Command, Stdio};

use crate::support::process::{Owned, program};
use crate::support::{Cluster, Request, SOON, eventually, scale, skipped};

/// Connections of each mode.
const CONNECTIONS: &str = "200";

#[test]
fn slow_clients_hold_up_nobody() {
    let Some(slowhttptest) = program("slowhttptest") else {
        return skipped("slowhttptest", "slowhttptest is not installed");
    };
    let cluster = Cluster::up(&["--regions", "iad,lhr", "--trace-sample", "0"]);
    let edge = cluster.endpoint("hello", "iad-1");
    let seconds = (15.0 * scale()).round().to_string();
    let modes = [
        ("headers", &["-H", "-t", "GET"][..], "/"),
        ("body", &["-B", "-t", "POST"], "/echo"),
        ("read", &["-X", "-w", "1", "-y", "2", "-z", "1"], "/bytes/10000000"),
    ];
    let mut running = modes.map(|(name, mode, path)| {
        let out = cluster.home.path().join(format!("slow-{name}"));
        let mut command = Command::new(&slowhttptest);
        command.args(mode).args(["-c", CONNECTIONS, "-r", CONNECTIONS, "-i", "1", "-p", "5", "-l", &seconds]);
        command.args(["-u", &format!("http://{edge}{path}")]).stdin(Stdio::null()).stderr(Stdio::null());
        (name, Owned::start(command.stdout(File::create(&out).unwrap())), out)
    });
    let (mut served, mut slowest) = (0, std::time::Duration::ZERO);
    eventually("all have ended", SOON * 2 + std::time::Duration::from_secs(15).mul_f64(scale()), || {
        let began = crate::support::now();
        Request::get(edge, "/").ok();
        slowest = slowest.max(began.elapsed());
        served += 1;
        let ended = running.iter_mut().all(|(_, process, _)| process.0.try_wait().unwrap().is_some());
        if ended { Ok(()) } else { Err("still running") }
    });
    eprintln!("{served} requests served meanwhile, the slowest in {slowest:?}");
    for (name, _, out) in &running {
        let said = String::from_utf8_lossy(&std::fs::read(out).unwrap()).into_owned();
        assert!(said.contains("YES"), "{name}: slowhttptest thinks the service was unavailable: {said}");
    }
    assert!(served > 10, "{served}");
}
