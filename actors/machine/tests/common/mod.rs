#![allow(
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    reason = "shared by test programs that use different parts of it"
)]
//! A node's Machines in a directory of their own.

use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use skein_cluster::store::Store;
use skein_cluster::{LocalReader, local};
use skein_core::machine::{MachineConfig, MachineJson, MachineState};
use skein_core::record::Record;
use skein_core::{AppId, MachineId, NetworkId, NodeNumber};
use skein_machine::{Create, Machines, MachinesConfig};
use tempfile::TempDir;

/// How long anything may take on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The program that is machine-init here.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_machine-init-test");

pub struct Node {
    pub machines: Machines,
    pub locals: LocalReader,
    pub dir: TempDir,
}

impl Node {
    pub async fn new() -> Self {
        Self::on(tempfile::tempdir().unwrap()).await
    }

    pub async fn on(dir: TempDir) -> Self {
        Self::with_grace(dir, Duration::ZERO).await
    }

    /// A node whose Machines outlive it for so long.
    pub async fn with_grace(dir: TempDir, adopt_grace: Duration) -> Self {
        Self::with(dir, adopt_grace, PATIENCE).await
    }

    /// A node that sends requests to what does not listen soon.
    pub async fn impatient() -> Self {
        Self::with(tempfile::tempdir().unwrap(), Duration::ZERO, Duration::from_millis(100)).await
    }

    async fn with(dir: TempDir, adopt_grace: Duration, listens_within: Duration) -> Self {
        let store = Store::open(&dir.path().join("machines.redb")).unwrap();
        let name = "iad-1".parse().unwrap();
        let config = MachinesConfig {
            exe: PROGRAM.into(),
            adopt_grace,
            listens_within,
            ..MachinesConfig::new(NodeNumber(1), name, "iad".parse().unwrap(), dir.path().to_owned(), store)
        };
        let (publisher, locals) = local::channel();
        Self { machines: Machines::start(config, publisher).await.unwrap(), locals, dir }
    }

    /// Ends the node as its program does, and keeps its directory.
    pub async fn end(self) -> TempDir {
        self.machines.shutdown(PATIENCE).await;
        self.dir
    }

    pub async fn create(&self, config: Value) -> MachineJson {
        self.machines.create(create(config)).await.unwrap()
    }

    /// Makes a Machine of a shell script.
    pub async fn script(&self, script: &str, more: Value) -> MachineJson {
        self.create(with(json!({"init": {"exec": ["/bin/sh", "-c", script]}}), more)).await
    }

    pub async fn reach(&self, id: MachineId, state: MachineState) -> MachineJson {
        match self.machines.wait(id, vec![state], None, PATIENCE).await {
            Ok(machine) => machine,
            Err(error) => panic!("{error}\n{:#?}\n{:#?}", self.machines.get(id), self.output(id)),
        }
    }

    pub fn output(&self, id: MachineId) -> Vec<String> {
        self.machines.logs(id).unwrap().into_iter().map(|line| line.line).collect()
    }

    /// Waits for a line of output that begins with `prefix`; what follows it.
    pub async fn says(&self, id: MachineId, prefix: &str) -> String {
        let mut found = None;
        eventually(|| {
            found = self.output(id).iter().find_map(|line| line.strip_prefix(prefix).map(str::to_owned));
            if found.is_some() { Ok(()) } else { Err(format!("no {prefix:?} in {:?}", self.output(id))) }
        })
        .await;
        found.unwrap()
    }

    /// Waits until the Machine's record fulfils a condition.
    pub async fn record(&self, id: MachineId, condition: impl Fn(&Record) -> bool) -> Record {
        let mut records = self.machines.records();
        let there = records.wait_for(|records| records.get(&id).is_some_and(&condition));
        match tokio::time::timeout(PATIENCE, there).await {
            Ok(records) => records.unwrap().get(&id).unwrap().clone(),
            Err(_) => panic!("the record stayed {:?}", self.machines.records().borrow().get(&id)),
        }
    }
}

pub fn create(config: Value) -> Create {
    let config: MachineConfig = serde_json::from_value(config).unwrap();
    Create {
        app: AppId(ulid::Ulid(7)),
        app_name: "an-app".parse().unwrap(),
        network: NetworkId(1),
        name: None,
        config,
        skip_launch: false,
        cordoned: false,
    }
}

/// One JSON object over another.
pub fn with(mut base: Value, more: Value) -> Value {
    base.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    base
}

/// A node in a process of its own, ended when the test is.
pub struct NodeProcess(Child);

impl NodeProcess {
    pub fn on(dir: &std::path::Path, grace: Duration) -> Self {
        let grace = grace.as_millis().to_string();
        let child =
            Command::new(PROGRAM).arg("node").arg(dir).arg(grace).stdin(Stdio::piped()).spawn().unwrap();
        Self(child)
    }

    /// Has it suspend a Machine, and waits until that is so.
    pub async fn suspend(&mut self, dir: &Path, id: MachineId) {
        writeln!(self.0.stdin.as_mut().unwrap(), "{id}").unwrap();
        let done = dir.join(format!("suspended-{id}"));
        eventually(|| if done.exists() { Ok(()) } else { Err("not suspended".into()) }).await;
    }

    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub async fn pids(file: &std::path::Path, count: usize) -> Vec<String> {
    let mut pids = Vec::new();
    eventually(|| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        pids = text.lines().map(str::to_owned).collect();
        if pids.len() >= count && text.ends_with('\n') { Ok(()) } else { Err(format!("only {pids:?}")) }
    })
    .await;
    pids
}

/// A file that any user may write to, gone with the test.
pub fn notes() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pids");
    std::fs::write(&file, "").unwrap();
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&file, Permissions::from_mode(0o666)).unwrap();
    (dir, file)
}

/// Waits until a condition holds; the last reason why it does not is in the failure.
pub async fn eventually(mut condition: impl FnMut() -> Result<(), String>) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let Err(why) = condition() else { return };
        assert!(tokio::time::Instant::now() < deadline, "{why}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a process runs; a zombie does not.
pub fn alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
    stat.is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.trim_start().starts_with('Z'))
}

pub async fn gone(pids: &[String]) {
    eventually(|| {
        let left: Vec<_> = pids.iter().filter(|pid| alive(pid)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("still there: {left:?}")) }
    })
    .await;
}

/// The `exit_event` of the newest exit.
pub fn exit(machine: &MachineJson) -> Value {
    let exits = machine.events.iter().filter_map(|event| event.request.as_ref()?.get("exit_event"));
    exits.into_iter().next().cloned().unwrap_or_else(|| panic!("no exit in {:#?}", machine.events))
}
