//! A Machine: its states, its configuration in the Machines API's own JSON shape, its events.
//!
//! Source: `reference/openapi.json` (`fly.MachineConfig` and what it names) and
//! `machines/machine-states` of `superfly/docs`.

mod duration;
mod state;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use duration::{GoDuration, InvalidDuration};
pub use state::{MachineState, UnknownState};

use crate::id::{MachineId, VersionId};

/// What follows when a Machine has been idle (SPEC SVC-4): `false` off, `true` stop, `"suspend"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Autostop {
    /// Never stopped for idleness.
    #[default]
    Off,
    /// Stopped.
    Stop,
    /// Suspended.
    Suspend,
}

impl Serialize for Autostop {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_bool(false),
            Self::Stop => serializer.serialize_bool(true),
            Self::Suspend => serializer.serialize_str("suspend"),
        }
    }
}

impl<'de> Deserialize<'de> for Autostop {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Flag(bool),
            Name(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Flag(false) => Ok(Self::Off),
            Either::Flag(true) => Ok(Self::Stop),
            Either::Name(name) => match name.as_str() {
                "off" => Ok(Self::Off),
                "stop" => Ok(Self::Stop),
                "suspend" => Ok(Self::Suspend),
                other => Err(serde::de::Error::custom(format!(
                    "{other:?} is not an autostop setting; one of \"off\", \"stop\", \"suspend\", false, true is needed"
                ))),
            },
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// `fly.MachineConfig`. Keys that Skein does not act on are kept in `rest` and given back.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MachineConfig {
    /// Image reference; `skein/hello`, `skein/command` and `skein/external` are Skein's own.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// Environment of the process.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// What to run.
    pub init: Init,
    /// Sizes; reported to the process, not enforced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest: Option<Guest>,
    /// Free key-value pairs; `fly_process_group` names the process group.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// What the proxy serves.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_default")]
    pub services: Vec<Service>,
    /// Top-level checks: reported, never affect routing (SPEC CHK-2).
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_default")]
    pub checks: BTreeMap<String, Check>,
    /// What follows when the process exits.
    pub restart: Restart,
    /// Destroyed when its process exits.
    #[serde(skip_serializing_if = "is_default")]
    pub auto_destroy: bool,
    /// How to stop it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_config: Option<StopConfig>,
    /// Further processes; the first one's `exec` is run when `init` names nothing.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_default")]
    pub processes: Vec<Process>,
    /// What else the client sent.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

fn null_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// `fly.MachineInit`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Init {
    /// The whole command line; wins over the others.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_default")]
    pub exec: Vec<String>,
    /// Replaces the image's entry point.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_default")]
    pub entrypoint: Vec<String>,
    /// Replaces the image's command.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_default")]
    pub cmd: Vec<String>,
    /// What else the client sent.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// `fly.MachineProcess`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Process {
    /// The whole command line.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_default")]
    pub exec: Vec<String>,
    /// Environment added for this process.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_default")]
    pub env: BTreeMap<String, String>,
    /// What else the client sent.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// `fly.MachineGuest`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Guest {
    /// `shared` or `performance`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_kind: Option<String>,
    /// Cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Mebibytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    /// What else the client sent.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// `fly.MachineRestart`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Restart {
    /// When to start the process again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<RestartPolicy>,
    /// Restarts within five minutes before it is left stopped; 10 by default (SPEC RUN-4).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
}

/// When a process that exited is started again (SPEC RUN-4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Never.
    #[serde(alias = "never")]
    No,
    /// Whatever the exit code.
    Always,
    /// When the exit code is not 0.
    #[default]
    #[serde(alias = "on-fail", alias = "spot-price")]
    OnFailure,
}

/// `fly.StopConfig`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StopConfig {
    /// Signal name; SIGINT by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// Time between the signal and SIGTERM; 5 s by default, at most 300 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<GoDuration>,
}

/// `fly.MachineService`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Service {
    /// `tcp` or `udp`; empty counts as `tcp`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    /// Where the process listens.
    pub internal_port: u16,
    /// Public ports and their handlers.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_default")]
    pub ports: Vec<Port>,
    /// What idleness leads to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autostop: Option<Autostop>,
    /// Whether traffic starts a stopped Machine; true by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autostart: Option<bool>,
    /// Machines that autostop leaves running in the primary region.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_machines_running: Option<u32>,
    /// Limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
    /// Service checks: decide routing (SPEC CHK-1).
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_default")]
    pub checks: Vec<Check>,
    /// What else the client sent.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// `fly.MachineServiceConcurrency` (SPEC SVC-5).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Concurrency {
    /// `connections` (default) or `requests`.
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Never more in flight; none by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hard_limit: Option<u32>,
    /// Beyond it other Machines are preferred; min(20, hard) by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soft_limit: Option<u32>,
}

/// `fly.MachinePort`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Port {
    /// A single port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The first of a range.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_port: Option<u16>,
    /// The last of a range.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_port: Option<u16>,
    /// `http`, `tls`, `pg_tls`, `proxy_proto`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_default")]
    pub handlers: Vec<String>,
    /// Plain HTTP is answered with 301 to HTTPS.
    #[serde(skip_serializing_if = "is_default")]
    pub force_https: bool,
    /// HTTP settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_options: Option<HttpOptions>,
    /// What else the client sent.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

impl Port {
    /// The ports it claims; a missing start is 0, a missing end 65,535 (`COMPAT` 4, rule 10).
    #[expect(clippy::reversed_empty_ranges, reason = "a port without any number claims none")]
    pub fn range(&self) -> std::ops::RangeInclusive<u16> {
        match (self.port, self.start_port, self.end_port) {
            (Some(port), _, _) => port..=port,
            (None, None, None) => 1..=0,
            (None, start, end) => start.unwrap_or(0)..=end.unwrap_or(u16::MAX),
        }
    }
}

/// `fly.HTTPOptions`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpOptions {
    /// Whether the proxy compresses what the app did not; it does by default (SPEC HTTP-5).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compress: Option<bool>,
    /// Whether the process speaks HTTP/2 by prior knowledge (h2c) instead of HTTP/1.1.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_default")]
    pub h2_backend: bool,
    /// Seconds: a client's connection may be without a request, or an upgraded one without a byte, for
    /// so long (SPEC HTTP-6).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<u64>,
    /// Seconds that a client may take for the head of a request (SPEC HTTP-9). Over HTTP/1, and from a
    /// connection's first request on where its address is shared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers_read_timeout: Option<u64>,
    /// Changes to response headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<HttpResponseOptions>,
    /// What else the client sent.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// `fly.HTTPResponseOptions` (SPEC HTTP-3).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpResponseOptions {
    /// A string or list adds, `false` removes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Value>,
    /// Adds and changes none of the proxy's own headers.
    #[serde(skip_serializing_if = "is_default")]
    pub pristine: bool,
}

/// `fly.MachineServiceCheck` and `fly.MachineCheck` (SPEC CHK-3).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Check {
    /// `http` or `tcp`.
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// The port to probe; the service's internal port by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Time between probes; 15 s by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<GoDuration>,
    /// Time a probe may take; 2 s by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<GoDuration>,
    /// Time after a start during which failures do not count; 1 s by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_period: Option<GoDuration>,
    /// HTTP method; GET by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// HTTP path; `/` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// `http` or `https`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Headers to send.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_default")]
    pub headers: Vec<CheckHeader>,
    /// The name that an HTTPS server's certificate has to have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_server_name: Option<String>,
    /// Whether any certificate will do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_skip_verify: Option<bool>,
    /// What else the client sent.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// `fly.MachineHTTPHeader`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckHeader {
    /// Its name.
    pub name: String,
    /// Its values.
    pub values: Vec<String>,
}

/// The metadata key that names a Machine's process group (flyctl's).
pub const PROCESS_GROUP_KEY: &str = "fly_process_group";
/// The metadata key that holds the address of an external Machine.
pub const EXTERNAL_KEY: &str = "skein_external";

impl MachineConfig {
    /// The process group, `app` when metadata names none.
    pub fn process_group(&self) -> crate::ProcessGroup {
        self.metadata
            .get(PROCESS_GROUP_KEY)
            .and_then(|group| group.parse().ok())
            .unwrap_or_else(crate::ProcessGroup::app)
    }
}

/// The status of one check, as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckStatus {
    /// Its name, for example `servicecheck-00-http-8080`.
    pub name: String,
    /// `passing`, `warning` or `critical`.
    pub status: String,
    /// What the last probe saw.
    pub output: String,
    /// RFC 3339.
    pub updated_at: String,
}

/// One event of a Machine's life, as the API shows it; newest first there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineEvent {
    /// A ULID.
    pub id: String,
    /// `launch`, `start`, `stop`, `exit`, `update`, `destroy`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// The state that it led to.
    pub status: String,
    /// `flyd` for the platform, `user` for a call.
    pub source: String,
    /// Milliseconds since 1970.
    pub timestamp: u64,
    /// What caused it, for example the exit code.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub request: Option<Value>,
}

/// A Machine, as the API shows it (`Machine` of the reference).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineJson {
    /// Its id.
    pub id: MachineId,
    /// Its name; two words when the creator gave none.
    pub name: String,
    /// Its state.
    pub state: MachineState,
    /// Its region.
    pub region: crate::RegionCode,
    /// The version of its configuration.
    pub instance_id: VersionId,
    /// Its 6PN address.
    pub private_ip: String,
    /// Its configuration.
    pub config: MachineConfig,
    /// The image, taken apart.
    pub image_ref: ImageRef,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub updated_at: String,
    /// Newest first.
    pub events: Vec<MachineEvent>,
    /// All its checks.
    pub checks: Vec<CheckStatus>,
    /// `ok`, or `unreachable` when its node does not answer.
    pub host_status: String,
    /// Whether the proxy sends it nothing new.
    #[serde(default)]
    pub cordoned: bool,
    /// The node it is on; Skein's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<crate::NodeName>,
    /// How long its last start took until it was started and healthy, in milliseconds; 0 when it never
    /// was; Skein's own.
    #[serde(default)]
    pub start_ms: u32,
    /// The same of its last resumption after it was suspended; Skein's own.
    #[serde(default)]
    pub resume_ms: u32,
}

/// `ImageRef` of the reference.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageRef {
    /// Registry host.
    pub registry: String,
    /// Repository path.
    pub repository: String,
    /// Tag.
    pub tag: String,
    /// Digest; empty when unknown.
    pub digest: String,
}

impl ImageRef {
    /// Takes `[registry/]repository[:tag][@digest]` apart.
    pub fn parse(image: &str) -> Self {
        let (image, digest) = image.split_once('@').unwrap_or((image, ""));
        let (registry, rest) = match image.split_once('/') {
            Some((host, rest)) if host.contains('.') || host.contains(':') || host == "localhost" => {
                (host, rest)
            }
            _ => ("docker-hub-mirror.fly.io", image),
        };
        let (repository, tag) = rest.split_once(':').unwrap_or((rest, "latest"));
        Self {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            tag: tag.to_owned(),
            digest: digest.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn autostop_answers_what_clients_expect() {
        let read = |text: &str| serde_json::from_str::<Autostop>(text);
        assert_eq!(read("\"off\"").unwrap(), Autostop::Off);
        assert_eq!(read("true").unwrap(), Autostop::Stop);
        assert_eq!(serde_json::to_string(&Autostop::Stop).unwrap(), "true");
        assert_eq!(serde_json::to_string(&Autostop::Suspend).unwrap(), "\"suspend\"");
        assert!(read("\"donuts\"").is_err());
    }

    #[test]
    fn keys_that_skein_does_not_know_are_given_back() {
        let json = r#"{"image":"a","init":{"tty":true},"mounts":[{"path":"/data"}],"services":null}"#;
        let config: MachineConfig = serde_json::from_str(json).unwrap();
        let back = serde_json::to_value(&config).unwrap();
        assert_eq!(back["mounts"][0]["path"], "/data");
        assert_eq!(back["init"]["tty"], true);
    }
}
