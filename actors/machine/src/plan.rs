//! What a configuration runs (SPEC RUN-3, RUN-9): drivers `command`, `hello` and `external`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use skein_core::machine::{EXTERNAL_KEY, ImageRef, MachineConfig};
use skein_core::service::HandlerChain;

use crate::check;
use crate::error::MachineError;
use crate::init::protocol::{Program, RunAs};
use crate::life::Settings;

/// The metadata key that names the user a command runs as: a name, a uid, or `uid:gid`.
pub const USER_KEY: &str = "skein_user";
/// Who a root node's Machines run as unless they say otherwise (SPEC RUN-9).
pub const NOBODY: RunAs = RunAs { uid: 65534, gid: 65534 };

/// The driver and what it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// A process.
    Process {
        /// What is executed.
        program: Program,
        /// Its arguments.
        args: Vec<String>,
        /// Environment of this process alone.
        env: BTreeMap<String, String>,
        /// The user that the configuration names.
        user: Option<String>,
    },
    /// A server that already runs: `host:port`.
    External(String),
}

impl Plan {
    /// The plan of a configuration.
    ///
    /// # Errors
    /// [`MachineError::Invalid`] with the next step, when nothing can be run.
    pub fn of(config: &MachineConfig) -> Result<Self, MachineError> {
        if let Some(address) = config.metadata.get(EXTERNAL_KEY) {
            let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
            if port.and_then(|port| port.parse::<u16>().ok()).is_none_or(|port| port == 0) {
                return Err(MachineError::Invalid(format!(
                    "metadata.{EXTERNAL_KEY} is {address:?}; it has to be host:port, for example 127.0.0.1:3000"
                )));
            }
            return Ok(Self::External(address.clone()));
        }
        let image = ImageRef::parse(&config.image).repository;
        let process = config.processes.first();
        let user = process
            .and_then(|process| process.rest.get("user")?.as_str())
            .or_else(|| config.metadata.get(USER_KEY).map(String::as_str))
            .filter(|user| !user.is_empty())
            .map(str::to_owned);
        let env = process.map(|process| process.env.clone()).unwrap_or_default();
        let (program, args) = match command(config) {
            Some((name, args)) => (Program::Named(name), args),
            None if image == "skein/hello" || image == "flyio/hellofly" => {
                (Program::Own, vec!["hello".to_owned()])
            }
            None if image == "skein/command" || image.is_empty() => {
                return Err(MachineError::Invalid(
                    "there is no command to run; give one after -- (init.exec in the API), or the image skein/hello"
                        .into(),
                ));
            }
            None => {
                return Err(MachineError::Invalid(format!(
                    "image {image:?} can't be run: this node has no container engine; give the command to run after -- \
                     (init.exec in the API), or use the image skein/hello, or --external host:port for a server that already runs"
                )));
            }
        };
        Ok(Self::Process { program, args, env, user })
    }
}

/// The command line: `init.exec`, else entry point and command, else the first process.
fn command(config: &MachineConfig) -> Option<(String, Vec<String>)> {
    let init = &config.init;
    let entry = [init.entrypoint.as_slice(), init.cmd.as_slice()].concat();
    let process = config.processes.first().map(|process| process.exec.clone()).unwrap_or_default();
    let line = [init.exec.clone(), entry, process].into_iter().find(|line| !line.is_empty())?;
    let (name, args) = line.split_first()?;
    Some((name.clone(), args.to_vec()))
}

/// Checks all of a configuration that a Machine's own node acts on.
///
/// # Errors
/// [`MachineError::Invalid`] or [`MachineError::NotProvided`], naming the key.
pub fn validate(config: &MachineConfig) -> Result<(Plan, Settings), MachineError> {
    let plan = Plan::of(config)?;
    let settings = Settings::of(config).map_err(MachineError::Invalid)?;
    for service in &config.services {
        if service.internal_port == 0 && matches!(plan, Plan::Process { .. }) {
            return Err(MachineError::Invalid(
                "services.internal_port is 0; name the port the app listens on".into(),
            ));
        }
        for port in &service.ports {
            HandlerChain::parse(&port.handlers).map_err(|error| MachineError::Invalid(error.to_string()))?;
        }
    }
    check::specs(config)?;
    if let Plan::Process { program, args, env, user } = &plan {
        let name = match program {
            Program::Named(name) if name.is_empty() => {
                return Err(MachineError::Invalid("the command's name is empty".into()));
            }
            Program::Named(name) => name.as_str(),
            Program::Own => "",
        };
        let words = args.iter().map(String::as_str).chain([name]);
        let pairs = config.env.iter().chain(env);
        if words.chain(pairs.clone().flat_map(|(k, v)| [k.as_str(), v.as_str()])).any(|s| s.contains('\0')) {
            return Err(MachineError::Invalid("a zero byte stands in the command or its environment".into()));
        }
        if let Some((key, _)) = pairs.clone().find(|(key, _)| key.is_empty() || key.contains('=')) {
            return Err(MachineError::Invalid(format!("{key:?} can't name an environment variable")));
        }
        run_as(user.as_deref())?;
    }
    Ok((plan, settings))
}

/// Who a process runs as: `None` leaves it the node's own user.
///
/// # Errors
/// [`MachineError::Invalid`] when there is no such user, or only a root node could become it.
pub fn run_as(user: Option<&str>) -> Result<Option<RunAs>, MachineError> {
    let me = nix::unistd::geteuid();
    let Some(user) = user else { return Ok(me.is_root().then_some(NOBODY)) };
    let wanted = find(user).ok_or_else(|| {
        MachineError::Invalid(format!("there is no user {user:?} here; name one, or a uid, or uid:gid"))
    })?;
    if me.is_root() {
        return Ok(Some(wanted));
    }
    if wanted.uid == me.as_raw() {
        return Ok(None);
    }
    Err(MachineError::Invalid(format!(
        "the node runs as uid {me} and can't start processes as {user:?}; run the node as root or leave the user out"
    )))
}

fn find(user: &str) -> Option<RunAs> {
    if let Some((uid, gid)) = user.split_once(':') {
        return Some(RunAs { uid: uid.parse().ok()?, gid: gid.parse().ok()? });
    }
    if let Ok(uid) = user.parse::<u32>() {
        let known = nix::unistd::User::from_uid(uid.into()).ok().flatten();
        return Some(RunAs { uid, gid: known.map_or(uid, |user| user.gid.as_raw()) });
    }
    let user = nix::unistd::User::from_name(user).ok().flatten()?;
    Some(RunAs { uid: user.uid.as_raw(), gid: user.gid.as_raw() })
}

/// Stands for a port inside the Machine where its process listens although no service or check says so.
pub const UNNAMED: u16 = 0;

/// The ports inside the Machine that its process may listen on, the first TCP service's first;
/// [`UNNAMED`] alone when there are none. Never empty.
pub fn internal_ports(config: &MachineConfig) -> Vec<u16> {
    let mut seen = BTreeSet::new();
    let services =
        config.services.iter().filter(|service| service.is_tcp()).map(|service| service.internal_port);
    let checked = config.services.iter().flat_map(|service| &service.checks).filter_map(|check| check.port);
    let reported = config.checks.values().filter_map(|check| check.port);
    let named = services.chain(checked).chain(reported);
    let ports: Vec<u16> = named.filter(|port| *port != UNNAMED && seen.insert(*port)).collect();
    if ports.is_empty() { vec![UNNAMED] } else { ports }
}

/// The ports inside the Machine where its process is to accept connections of its services.
pub fn tcp_ports(config: &MachineConfig) -> Vec<u16> {
    let tcp = config.services.iter().filter(|service| service.is_tcp());
    let ports: BTreeSet<u16> = tcp.map(|service| service.internal_port).collect();
    ports.into_iter().filter(|port| *port != UNNAMED).collect()
}

/// What a process gets besides its own environment.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// `PATH`, `LANG` and `TZ` of the node.
    pub inherited: &'a BTreeMap<String, String>,
    /// SPEC RUN-2: name and value.
    pub platform: &'a [(&'static str, String)],
    /// Internal port (or [`UNNAMED`]) and the loopback port that stands for it.
    pub ports: &'a [(u16, u16)],
}

/// The whole environment of a process: the platform's own variables win, for in portable mode only
/// they tell where to listen.
pub fn environment(
    config: &MachineConfig,
    process: &BTreeMap<String, String>,
    around: Surroundings<'_>,
) -> BTreeMap<String, String> {
    let mut env = around.inherited.clone();
    env.insert("HOME".into(), "/tmp".into());
    env.extend(config.env.clone());
    env.extend(process.clone());
    env.extend(around.platform.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    for (index, (internal, loopback)) in around.ports.iter().enumerate() {
        if index == 0 {
            env.insert("PORT".into(), loopback.to_string());
        }
        if *internal != UNNAMED {
            env.insert(format!("SKEIN_PORT_{internal}"), loopback.to_string());
        }
    }
    env
}

/// The directory a process starts in: the node's own, `/` when that is gone.
pub fn working_dir(dir: &Path) -> &Path {
    if dir.is_absolute() { dir } else { Path::new("/") }
}

#[cfg(test)]
mod tests;
