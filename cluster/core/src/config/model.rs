//! The configuration of an app, typed. What it serializes to is the normal form of the file: it
//! loads to the same value.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::machine::{Autostop, GoDuration, HttpOptions, Port};
use crate::{AppName, ProcessGroup, RegionCode};

fn is_false(flag: &bool) -> bool {
    !flag
}

/// A `fly.toml`.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct AppConfig {
    /// The app; may be named on the command line instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// Where its first Machines run, and where writes go by convention.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary_region: Option<RegionCode>,
    /// The signal that asks a Machine to stop; SIGINT by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kill_signal: Option<String>,
    /// Time between that signal and the next; 5 s by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kill_timeout: Option<GoDuration>,
    /// What is built or run.
    #[serde(skip_serializing_if = "Build::is_empty")]
    pub build: Build,
    /// Overrides of the image's command.
    #[serde(skip_serializing_if = "Experimental::is_empty")]
    pub experimental: Experimental,
    /// How it is deployed.
    #[serde(skip_serializing_if = "Deploy::is_empty")]
    pub deploy: Deploy,
    /// Environment of every Machine.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Command line of each process group; empty means the image's own command.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub processes: BTreeMap<ProcessGroup, String>,
    /// The short form of a service on ports 80 and 443.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_service: Option<HttpService>,
    /// The long form of services.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<ServiceSection>,
    /// Checks that are reported and never decide routing.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub checks: BTreeMap<String, TopLevelCheck>,
    /// What follows when a process exits; the last section that matches a group counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub restart: Vec<RestartSection>,
    /// Sizes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vm: Vec<VmSection>,
    /// Sections that have no effect in Skein, by their key.
    #[serde(flatten)]
    pub kept: BTreeMap<String, Value>,
}

/// `[build]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Build {
    /// The image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Keys that have no effect in Skein.
    #[serde(flatten)]
    pub kept: BTreeMap<String, Value>,
}

impl Build {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// `[experimental]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Experimental {
    /// The command of groups that have none of their own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Replaces the image's entry point.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Replaces everything.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exec: Vec<String>,
    /// Keys that have no effect in Skein.
    #[serde(flatten)]
    pub kept: BTreeMap<String, Value>,
}

impl Experimental {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// `[deploy]` (SPEC SVC-9).
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Deploy {
    /// `rolling` (default), `immediate`, `canary` or `bluegreen`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strategy: Option<String>,
    /// A share below 1, a number of Machines from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<f64>,
    /// Time that one Machine may take to become healthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_timeout: Option<GoDuration>,
    /// What runs once before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release_command: Option<String>,
    /// Keys that have no effect in Skein.
    #[serde(flatten)]
    pub kept: BTreeMap<String, Value>,
}

impl Deploy {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What both forms of a service have.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct ServiceSettings {
    /// Where the process listens; 8080 by default.
    pub internal_port: u16,
    /// What idleness leads to.
    #[serde(rename = "auto_stop_machines", skip_serializing_if = "Option::is_none")]
    pub autostop: Option<Autostop>,
    /// Whether traffic starts a stopped Machine; true by default.
    #[serde(rename = "auto_start_machines", skip_serializing_if = "Option::is_none")]
    pub autostart: Option<bool>,
    /// Machines that autostop leaves running in the primary region.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_machines_running: Option<u32>,
    /// The process groups it belongs to; the default group when there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<ProcessGroup>,
    /// Limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
}

/// `concurrency` of a service (SPEC SVC-5); the Machines API's own type.
pub type Concurrency = crate::machine::Concurrency;

/// `[http_service]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct HttpService {
    /// What every service has.
    #[serde(flatten)]
    pub settings: ServiceSettings,
    /// Plain HTTP is answered with 301 to HTTPS.
    #[serde(skip_serializing_if = "is_false")]
    pub force_https: bool,
    /// HTTP settings of both ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_options: Option<HttpOptions>,
    /// TLS settings of port 443.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_options: Option<Value>,
    /// HTTP checks; they decide routing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Probe>,
    /// Keys that have no effect in Skein.
    #[serde(flatten)]
    pub kept: BTreeMap<String, Value>,
}

/// `[[services]]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct ServiceSection {
    /// `tcp`, `udp`, or empty, which counts as `tcp`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    /// What every service has.
    #[serde(flatten)]
    pub settings: ServiceSettings,
    /// Public ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// TCP checks; they decide routing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tcp_checks: Vec<Probe>,
    /// HTTP checks; they decide routing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub http_checks: Vec<Probe>,
    /// Keys that have no effect in Skein.
    #[serde(flatten)]
    pub kept: BTreeMap<String, Value>,
}

/// How and how often something is checked.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Probe {
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
    /// Whether any certificate is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_skip_verify: Option<bool>,
    /// The name that the certificate must have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_server_name: Option<String>,
    /// Headers to send.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

/// `[checks.<name>]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct TopLevelCheck {
    /// `http` or `tcp`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The port to probe; the internal port of `http_service` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// How and how often.
    #[serde(flatten)]
    pub probe: Probe,
    /// The process groups it belongs to; the default group when there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<ProcessGroup>,
}

/// `[[restart]]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct RestartSection {
    /// `always`, `on-failure` or `never`.
    pub policy: String,
    /// Restarts within five minutes before it is left stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    /// The process groups it belongs to; the default group when there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<ProcessGroup>,
}

/// `[[vm]]`: sizes, reported to the process and not enforced.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct VmSection {
    /// A preset, for example `shared-cpu-1x`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// `shared` or `performance`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_kind: Option<String>,
    /// Cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Mebibytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    /// The process groups it belongs to; all when there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<ProcessGroup>,
    /// Keys that have no effect in Skein.
    #[serde(flatten)]
    pub kept: BTreeMap<String, Value>,
}
