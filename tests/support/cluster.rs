//! A testbed of the test's own, with a state folder of its own; it ends with the test.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::http::{Reply, Request};
use super::process::{self, Ran, run};
use super::{SOON, eventually};

/// How long `up` may take on a busy machine with two cores.
pub(crate) const UP: Duration = Duration::from_secs(120);

/// The built program.
pub(crate) const SKEIN: &str = env!("CARGO_BIN_EXE_skein");

/// A folder and a name that no other test has.
pub(crate) struct Home {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) name: String,
}

impl Home {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = tempfile::Builder::new().prefix("skein-test-").tempdir().expect("a temporary folder");
        open_to_all(folder.path());
        Self { folder, name: format!("test-{}-{number}", std::process::id()) }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// `skein` with this state folder, and nothing of the caller's that would change what it does.
    pub(crate) fn skein(&self) -> Command {
        let mut command = Command::new(SKEIN);
        for name in ["SKEIN_API_URL", "SKEIN_API_TOKEN", "FLY_FLAPS_BASE_URL", "FLY_API_TOKEN", "RUST_LOG"] {
            command.env_remove(name);
        }
        command.env("SKEIN_HOME", self.path().join("state"));
        command
    }

    /// Runs `skein` with these arguments to its end.
    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        run(self.skein().args(args), UP)
    }

    /// `skein up` in a folder; `args` and `command` are added.
    #[track_caller]
    pub(crate) fn up(&self, folder: &Path, args: &[&str], command: &[&str]) -> Ran {
        let mut up = self.skein();
        up.current_dir(folder).args(["up", "--name", &self.name, "--detach", "--json"]).args(args);
        if !command.is_empty() {
            up.arg("--").args(command);
        }
        run(&mut up, UP)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Whatever became of the test: nothing may outlive it. An unknown name is fine.
        let down = std::panic::catch_unwind(AssertUnwindSafe(|| self.run(&["down", "--name", &self.name])));
        let ended = matches!(&down, Ok(ran) if ran.status.success());
        if !ended && !std::thread::panicking() {
            panic!("skein down: {down:?}");
        }
    }
}

/// Machines run as nobody when the tests run as root.
pub(crate) fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(path, mode).expect("change the mode of a folder of our own");
}

/// A running testbed.
pub(crate) struct Cluster {
    pub(crate) home: Home,
    /// What `up --detach --json` printed.
    pub(crate) json: Value,
}

impl Cluster {
    /// `skein up --detach --json` with these arguments.
    #[track_caller]
    pub(crate) fn up(args: &[&str]) -> Self {
        Self::up_in(Home::new(), Path::new("/"), args, &[])
    }

    /// The same, in a folder, with the command of its Machines.
    #[track_caller]
    pub(crate) fn up_in(home: Home, folder: &Path, args: &[&str], command: &[&str]) -> Self {
        let out = home.up(folder, args, command).ok();
        let json = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"));
        Self { home, json }
    }

    pub(crate) fn name(&self) -> &str {
        &self.home.name
    }

    /// Runs `skein --cluster <this> …` to its end.
    #[track_caller]
    pub(crate) fn skein(&self, args: &[&str]) -> Ran {
        let mut command = self.home.skein();
        run(command.args(["--cluster", self.name()]).args(args), UP)
    }

    /// The JSON that a verb prints.
    #[track_caller]
    pub(crate) fn json_of(&self, args: &[&str]) -> Value {
        let out = self.skein(args).ok();
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{args:?}: {error}: {out}"))
    }

    pub(crate) fn nodes(&self) -> Vec<String> {
        let nodes = self.json["nodes"].as_array().expect("nodes");
        nodes.iter().map(|node| text(&node["name"])).collect()
    }

    /// What `up` said of a node.
    #[track_caller]
    pub(crate) fn node(&self, name: &str) -> &Value {
        let nodes = self.json["nodes"].as_array().expect("nodes");
        nodes.iter().find(|node| node["name"] == name).unwrap_or_else(|| panic!("no node {name}: {nodes:?}"))
    }

    #[track_caller]
    pub(crate) fn pid(&self, node: &str) -> u32 {
        u32::try_from(self.node(node)["pid"].as_u64().expect("a pid")).expect("a pid")
    }

    /// The launcher: the parent of every node.
    #[track_caller]
    pub(crate) fn launcher(&self) -> u32 {
        process::parent(self.pid(&self.nodes()[0])).expect("the launcher lives")
    }

    /// Kills a node as a power cut would, and waits until it is gone.
    #[track_caller]
    pub(crate) fn kill(&self, node: &str) {
        let pid = self.pid(node);
        process::signal(pid, "KILL");
        eventually("the node is gone", SOON, || if process::alive(pid) { Err(pid) } else { Ok(()) });
    }

    /// Where to connect to reach port 80 of an app's own address at a node: any `Host` will do there
    /// (SPEC PUB-7).
    #[track_caller]
    pub(crate) fn endpoint(&self, app: &str, node: &str) -> SocketAddr {
        own_address(&self.json_of(&["endpoint", app, "--node", node, "--json"]))
    }

    /// Where to connect to reach port 80 of an app's shared address at a node: the `Host` decides.
    #[track_caller]
    pub(crate) fn shared_endpoint(&self, app: &str, node: &str) -> SocketAddr {
        let list = self.json_of(&["endpoint", app, "--node", node, "--json"]);
        let first = &list.as_array().unwrap_or_else(|| panic!("{list}"))[0];
        assert!(!text(&first["public"]).contains(':'), "shared IPv4 comes before IPv6: {list}");
        text(&first["connect"]).parse().expect("an address and port")
    }

    /// `GET path` of an app at a node; 200 is wanted.
    #[track_caller]
    pub(crate) fn get(&self, app: &str, node: &str, path: &str) -> Reply {
        Request::get(self.endpoint(app, node), path).ok()
    }

    /// The Machines of an app, as the API shows them.
    #[track_caller]
    pub(crate) fn machines(&self, app: &str) -> Vec<Value> {
        let list = self.json_of(&["machines", "list", "-a", app, "--json"]);
        list.as_array().unwrap_or_else(|| panic!("{list}")).clone()
    }

    /// The ids of an app's Machines in a region.
    #[track_caller]
    pub(crate) fn machines_in(&self, app: &str, region: &str) -> Vec<String> {
        let machines = self.machines(app);
        machines.iter().filter(|m| m["region"] == region).map(|m| text(&m["id"])).collect()
    }

    /// A call of the API.
    pub(crate) fn api(&self, method: &str, path: &str) -> Request {
        let url = text(&self.json["api"]["url"]);
        let to = url.trim_start_matches("http://").parse().expect("http://ip:port");
        let token = text(&self.json["api"]["token"]);
        Request::new(method, to, path).header("authorization", &format!("Bearer {token}"))
    }

    /// The folder of a node's files.
    #[track_caller]
    pub(crate) fn data_dir(&self, node: &str) -> PathBuf {
        text(&self.node(node)["data_dir"]).into()
    }
}

/// The dedicated address, IPv6, in what `skein endpoint --json` printed.
#[track_caller]
pub(crate) fn own_address(list: &Value) -> SocketAddr {
    let mut entries = list.as_array().unwrap_or_else(|| panic!("{list}")).iter();
    let own = entries.find(|entry| text(&entry["public"]).contains(':'));
    text(&own.unwrap_or_else(|| panic!("no IPv6: {list}"))["connect"]).parse().expect("an address and port")
}

/// A JSON text.
#[track_caller]
pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}")).to_owned()
}
