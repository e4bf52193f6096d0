//! The sample app as a process: what it does with its environment, signals and `/crash`.

mod support;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use support::process::{Owned, signal};
use support::{Request, SOON, eventually};

/// A running `skein hello` on a port that the system chose.
fn start() -> (Owned, SocketAddr) {
    let mut command = Command::new(support::cluster::SKEIN);
    command.arg("hello").env("PORT", "0").env("FLY_REGION", "lhr").env("FLY_APP_NAME", "hello");
    let mut owned = Owned::start(command.stdin(Stdio::null()).stderr(Stdio::piped()));
    let mut line = String::new();
    BufReader::new(owned.0.stderr.take().expect("piped")).read_line(&mut line).expect("a line");
    let address = line.trim().rsplit(' ').next().and_then(|address| address.parse().ok());
    (owned, address.unwrap_or_else(|| panic!("no address in {line:?}")))
}

fn exit_code(child: &mut Child) -> Option<i32> {
    eventually("it ends", SOON, || child.try_wait().expect("wait").ok_or("still running")).code()
}

#[test]
fn it_serves_where_port_says_and_reads_its_environment() {
    let (_app, address) = start();
    assert!(address.ip().is_loopback());
    let reply = Request::get(address, "/").ok();
    assert_eq!((reply.field("app"), reply.field("region")), ("hello".into(), "lhr".into()));
}

#[test]
fn crash_ends_the_process_with_1_before_it_answers() {
    for method in ["GET", "POST", "DELETE"] {
        let (mut app, address) = start();
        assert!(Request::new(method, address, "/crash").send().is_err(), "{method} got an answer");
        assert_eq!(exit_code(&mut app.0), Some(1), "{method}");
    }
}

#[test]
fn a_signal_to_stop_ends_it_with_0() {
    for name in ["INT", "TERM"] {
        let (mut app, _) = start();
        signal(app.pid(), name);
        assert_eq!(exit_code(&mut app.0), Some(0), "{name}");
    }
}

#[test]
fn a_port_that_is_none_is_refused_with_the_next_step() {
    let mut command = Command::new(support::cluster::SKEIN);
    let ran = support::process::run(command.arg("hello").env("PORT", "many"), SOON);
    assert!(ran.refused().contains("PORT"));
}
