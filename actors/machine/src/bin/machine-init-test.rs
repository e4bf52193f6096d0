//! The tests' own program: machine-init, as `skein machine-init` is; a sample app; and a node that
//! can be killed. Never installed.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use skein_cluster::local;
use skein_cluster::store::Store;
use skein_core::NodeNumber;
use skein_core::machine::MachineState;
use skein_machine::{Machines, MachinesConfig};
use tokio::io::AsyncBufReadExt as _;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["machine-init", ..] => skein_machine::machine_init_main(),
        ["hello"] => hello(),
        ["node", dir, grace_ms] => match grace_ms.parse() {
            Ok(grace_ms) => node(Path::new(dir), Duration::from_millis(grace_ms)),
            Err(_) => ExitCode::from(64),
        },
        _ => ExitCode::from(64),
    }
}

/// Answers every request with 200, or 500 while the file named by `FAIL` exists, or by turns with `FLAP`.
/// Listens once the file named by `AFTER` exists; with `MUTE` it never answers.
fn hello() -> ExitCode {
    let env = |key: &str| std::env::var_os(key).and_then(|value| value.into_string().ok());
    let port = env("PORT").and_then(|port| port.parse::<u16>().ok()).unwrap_or(0);
    while env("AFTER").is_some_and(|file| !Path::new(&file).exists()) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) else { return ExitCode::from(2) };
    let fail = env("FAIL").map(PathBuf::from);
    let (flaps, mute) = (env("FLAP").is_some(), env("MUTE").is_some());
    let (mut turn, mut kept) = (0, Vec::new());
    for mut stream in listener.incoming().flatten() {
        if mute {
            kept.push(stream);
            continue;
        }
        let failing = fail.as_ref().is_some_and(|file| file.exists()) || (flaps && turn % 2 == 1);
        let status = if failing { 500 } else { 200 };
        let mut line = String::new();
        // A client that is gone is no reason to end.
        if BufReader::new(&stream).read_line(&mut line).is_ok_and(|read| read > 0) {
            turn += 1;
        }
        let _ = write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    }
    ExitCode::SUCCESS
}

/// Brings the Machines of a directory back and lives until it is killed. A Machine whose id is written to
/// it is suspended; a file tells when.
fn node(dir: &Path, adopt_grace: Duration) -> ExitCode {
    let Ok(runtime) = tokio::runtime::Runtime::new() else { return ExitCode::FAILURE };
    runtime.block_on(async {
        let Ok(store) = Store::open(&dir.join("machines.redb")) else { return ExitCode::from(3) };
        let (Ok(name), Ok(region)) = ("iad-1".parse(), "iad".parse()) else { return ExitCode::FAILURE };
        let config = MachinesConfig {
            adopt_grace,
            ..MachinesConfig::new(NodeNumber(1), name, region, dir.to_owned(), store)
        };
        let (publisher, _reader) = local::channel();
        let Ok(machines) = Machines::start(config, publisher).await else { return ExitCode::from(4) };
        let mut lines = tokio::io::BufReader::new(tokio::io::stdin()).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let Ok(id) = line.parse() else { return ExitCode::from(64) };
            let wait = |state| machines.wait(id, vec![state], None, Duration::from_secs(60));
            let suspended = async {
                wait(MachineState::Started).await?;
                machines.suspend(id).await?;
                wait(MachineState::Suspended).await
            };
            let done = dir.join(format!("suspended-{id}"));
            if suspended.await.is_err() || std::fs::write(done, "").is_err() {
                return ExitCode::from(5);
            }
        }
        std::future::pending().await
    })
}
