//! WebSockets with a real client and server (`websockets`, PyPI): messages of all sizes through two
//! hops, and how they end when their Machine or their edge does (SPEC HTTP-4, HTTP-11; C19).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::install;
use crate::support::process::{Owned, run};
use crate::support::{Cluster, SOON, eventually, skipped};

/// A client that talks and then stays until its connection is closed.
struct Waiting {
    process: Owned,
    said: PathBuf,
}

impl Waiting {
    fn start(python: &Path, client: &Path, edge: &str, said: PathBuf) -> Self {
        let mut command = Command::new(python);
        command.arg(client).args([edge, "wait"]).stdin(Stdio::null()).stderr(Stdio::inherit());
        let process = Owned::start(command.stdout(File::create(&said).unwrap()));
        Self { process, said }
    }

    fn until(&mut self, wanted: &str) {
        eventually(wanted, SOON * 4, || {
            let text = fs::read_to_string(&self.said).unwrap();
            let ended = self.process.0.try_wait().unwrap();
            assert!(text.contains(wanted) || ended.is_none(), "it ended with {ended:?} and said {text:?}");
            if text.contains(wanted) { Ok(()) } else { Err(text) }
        });
    }
}

#[test]
fn websockets_talk_through_two_hops_and_are_told_when_their_machine_or_edge_goes() {
    let cluster = Cluster::up(&["--regions", "iad,lhr", "--no-demo"]);
    let folder = cluster.home.path();
    let python = match install::python_packages(&["websockets==17.4"], &folder.join("venv")) {
        Ok(python) => python,
        Err(why) => return skipped("WebSockets", &why),
    };
    let server = install::python_program("ws_machine.py", folder);
    let client = install::python_program("ws_client.py", folder);
    cluster.skein(&["apps", "create", "talk"]).ok();
    let run_args = ["machine", "run", "-a", "talk", "--region", "lhr", "--port", "80:8080/tcp:http", "--"];
    let command = [python.to_str().unwrap(), server.to_str().unwrap()];
    cluster.skein(&[&run_args[..], &command].concat()).ok();
    cluster.skein(&["ips", "allocate-v6", "-a", "talk"]).ok();
    let edges = ["iad-1", "lhr-1"].map(|node| cluster.endpoint("talk", node).to_string());
    eventually("the Machine listens", SOON, || {
        let ran = run(Command::new(&python).arg(&client).arg(&edges[0]), SOON * 4);
        if ran.status.success() { Ok(()) } else { Err(ran.stderr) }
    });

    let mut waiting = edges.each_ref().map(|edge| {
        Waiting::start(&python, &client, edge, folder.join(format!("said-{}", edge.replace(':', "-"))))
    });
    waiting.iter_mut().for_each(|client| client.until("talked"));
    cluster.skein(&["node", "drain", "iad-1"]).ok();
    waiting[0].until("closed 1012");
    assert!(!fs::read_to_string(&waiting[1].said).unwrap().contains("closed"), "another edge's client stays");
    cluster.skein(&["node", "undrain", "iad-1"]).ok();

    let mut again = Waiting::start(&python, &client, &edges[0], folder.join("said-again"));
    again.until("talked");
    let id = cluster.machines_in("talk", "lhr")[0].clone();
    cluster.skein(&["machines", "stop", &id]).ok();
    again.until("closed 1012");
    waiting[1].until("closed 1012");
}
