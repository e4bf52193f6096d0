//! What one node is told at its start: `node.toml`.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Deserializer, Serialize};
use skein_core::{NodeName, RegionCode};
use skein_edge::EdgeConfig;

/// Whether distances between regions are simulated (SPEC TB-4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Latency {
    /// RTT = 4 ms + km/75 between regions.
    Real,
    /// None is added.
    #[default]
    None,
}

/// A node's configuration. Unknown keys are refused: a misspelt key must not be ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// The node's name; made of the region and a number when absent. Needed with `bootstrap`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<NodeName>,
    /// Its region.
    pub region: RegionCode,
    /// Where its files are; made when missing. Losing it loses the node's identity.
    pub data_dir: PathBuf,
    /// Where its API listens; `127.0.0.1:0` by default: any free port.
    #[serde(default = "loopback")]
    pub api_bind: SocketAddr,
    /// Where its backhaul listens; `127.0.0.1:0` by default: any free port, the same one after a restart.
    #[serde(default = "loopback")]
    pub backhaul_bind: SocketAddr,
    /// Makes a new cluster with this node as its first.
    #[serde(default)]
    pub bootstrap: bool,
    /// A join token; used once, when the node has no identity yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<String>,
    /// Every app answers at `<app>.<base domain>`; used by `bootstrap` only. Default `localhost`.
    #[serde(default = "base_domain")]
    pub base_domain: String,
    /// Whether distances are simulated.
    #[serde(default)]
    pub latency: Latency,
    /// The node ends when its standard input does: a launcher holds the other end.
    #[serde(default)]
    pub exit_with_stdin: bool,
    /// Where spans go, one text or a list: OTLP over gRPC, for example `http://127.0.0.1:4317`, or over
    /// HTTP when the path is `/v1/traces`. Each collector gets every span; nowhere when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "one_or_more")]
    pub otlp: Vec<String>,
    /// Share of requests that are traced, 0 to 1. When absent: all up to 50 a second, 1 % of the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_sample: Option<f64>,
    /// How long Machines outlive a node that died, for it to come back, in milliseconds. Default
    /// 30,000; a testbed says 0.
    #[serde(default = "adopt_grace_ms")]
    pub adopt_grace_ms: u64,
    /// How long a SIGTERM waits for what is in flight, in milliseconds. Default 30,000.
    #[serde(default = "drain_ms")]
    pub drain_ms: u64,
    /// Time between two looks for Machines that autostop finds idle, and how long one runs at least, in
    /// milliseconds. Default 120,000; a testbed says 10,000 (SPEC AUTO-1).
    #[serde(default = "autostop_interval_ms")]
    pub autostop_interval_ms: NonZeroU32,
    /// The most Machines of an app in a region that stop at once. Default 1.
    #[serde(default = "autostop_batch")]
    pub autostop_batch: NonZeroU32,
    /// What is logged, as in `RUST_LOG`. Default `info`, without openraft, whose
    /// errors of peers that are away the registry tells itself, and only warnings of chitchat.
    #[serde(default = "log")]
    pub log: String,
    /// How log lines are written: `text` (default) or `json`.
    #[serde(default)]
    pub log_format: crate::telemetry::LogFormat,
    /// Limits of the proxy.
    #[serde(default, skip_serializing_if = "is_default")]
    pub edge: EdgeLimits,
}

/// Table `edge`: what differs from the proxy's own limits, which `docs/http.md` lists. None may be 0.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EdgeLimits {
    /// [`EdgeConfig::max_head`], at least 8,192.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_head_bytes: Option<NonZeroU32>,
    /// [`EdgeConfig::max_fields`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_fields: Option<NonZeroU32>,
    /// [`EdgeConfig::max_target`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_target_bytes: Option<NonZeroU32>,
    /// [`EdgeConfig::keep_alive`], in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_alive_ms: Option<NonZeroU32>,
    /// [`EdgeConfig::head_timeout`], in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_timeout_ms: Option<NonZeroU32>,
    /// [`EdgeConfig::body_timeout`], in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_timeout_ms: Option<NonZeroU32>,
    /// [`EdgeConfig::write_timeout`], in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_timeout_ms: Option<NonZeroU32>,
    /// [`EdgeConfig::route_timeout`], in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route_timeout_ms: Option<NonZeroU32>,
    /// The most requests that wait for one service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_max: Option<NonZeroU32>,
    /// The most requests that wait in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_max_all: Option<NonZeroU32>,
    /// [`EdgeConfig::queue_timeout`], in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_timeout_ms: Option<NonZeroU32>,
    /// [`EdgeConfig::connect_timeout`], in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_timeout_ms: Option<NonZeroU32>,
    /// [`EdgeConfig::upstream_idle`], in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_idle_ms: Option<NonZeroU32>,
    /// [`EdgeConfig::max_connections`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<NonZeroU32>,
    /// [`EdgeConfig::max_compressions`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_compressions: Option<NonZeroU32>,
    /// [`EdgeConfig::explained`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explained: Option<NonZeroU32>,
    /// [`EdgeConfig::replay_buffer`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay_buffer_bytes: Option<NonZeroU32>,
    /// [`EdgeConfig::replay_budget`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay_budget_bytes: Option<NonZeroU32>,
    /// [`skein_edge::Http2Limits::streams`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub h2_streams: Option<NonZeroU32>,
    /// [`skein_edge::Http2Limits::stream_window`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub h2_stream_window_bytes: Option<NonZeroU32>,
    /// [`skein_edge::Http2Limits::connection_window`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub h2_connection_window_bytes: Option<NonZeroU32>,
    /// [`skein_edge::Http2Limits::send_buffer`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub h2_send_buffer_bytes: Option<NonZeroU32>,
    /// [`skein_edge::Http2Limits::ping_after`], in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub h2_ping_after_ms: Option<NonZeroU32>,
    /// [`skein_edge::Http2Limits::ping_timeout`], in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub h2_ping_timeout_ms: Option<NonZeroU32>,
    /// [`skein_edge::Http2Limits::unseen_resets`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub h2_unseen_resets: Option<NonZeroU32>,
    /// [`skein_edge::Http2Limits::faulty_resets`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub h2_faulty_resets: Option<NonZeroU32>,
}

impl EdgeLimits {
    /// The proxy's configuration with these limits.
    pub fn apply(&self, mut config: EdgeConfig) -> EdgeConfig {
        let sizes = [
            (self.max_head_bytes, &mut config.max_head),
            (self.max_fields, &mut config.max_fields),
            (self.max_target_bytes, &mut config.max_target),
            (self.max_connections, &mut config.max_connections),
            (self.max_compressions, &mut config.max_compressions),
            (self.queue_max, &mut config.queue.service),
            (self.queue_max_all, &mut config.queue.all),
            (self.explained, &mut config.explained),
            (self.replay_buffer_bytes, &mut config.replay_buffer),
            (self.replay_budget_bytes, &mut config.replay_budget),
            (self.h2_send_buffer_bytes, &mut config.http2.send_buffer),
            (self.h2_unseen_resets, &mut config.http2.unseen_resets),
            (self.h2_faulty_resets, &mut config.http2.faulty_resets),
        ];
        for (limit, field) in sizes {
            *field = limit.map_or(*field, |limit| limit.get() as usize);
        }
        let times = [
            (self.keep_alive_ms, &mut config.keep_alive),
            (self.head_timeout_ms, &mut config.head_timeout),
            (self.body_timeout_ms, &mut config.body_timeout),
            (self.write_timeout_ms, &mut config.write_timeout),
            (self.route_timeout_ms, &mut config.route_timeout),
            (self.queue_timeout_ms, &mut config.queue_timeout),
            (self.connect_timeout_ms, &mut config.connect_timeout),
            (self.upstream_idle_ms, &mut config.upstream_idle),
            (self.h2_ping_after_ms, &mut config.http2.ping_after),
            (self.h2_ping_timeout_ms, &mut config.http2.ping_timeout),
        ];
        for (limit, field) in times {
            *field = limit.map_or(*field, |limit| Duration::from_millis(limit.get().into()));
        }
        let windows = [
            (self.h2_streams, &mut config.http2.streams),
            (self.h2_stream_window_bytes, &mut config.http2.stream_window),
            (self.h2_connection_window_bytes, &mut config.http2.connection_window),
        ];
        for (limit, field) in windows {
            *field = limit.map_or(*field, NonZeroU32::get);
        }
        config
    }
}

fn is_default(limits: &EdgeLimits) -> bool {
    *limits == EdgeLimits::default()
}

fn one_or_more<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a collector's URL, or a list of them")]
    enum Written {
        One(String),
        More(Vec<String>),
    }
    Ok(match Written::deserialize(deserializer)? {
        Written::One(url) => vec![url],
        Written::More(urls) => urls,
    })
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}
fn base_domain() -> String {
    "localhost".into()
}
fn adopt_grace_ms() -> u64 {
    30_000
}
fn drain_ms() -> u64 {
    30_000
}
fn autostop_interval_ms() -> NonZeroU32 {
    const { NonZeroU32::new(120_000).unwrap() }
}
fn autostop_batch() -> NonZeroU32 {
    NonZeroU32::MIN
}
fn log() -> String {
    "info,openraft=off,chitchat=warn".into()
}

impl NodeConfig {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// When it can't be read, is not TOML, or holds an unknown key or a wrong value; the message names
    /// file, line and key.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let config: Self = toml::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
        anyhow::ensure!(
            !config.bootstrap || config.join.is_none(),
            "{}: `bootstrap` and `join` exclude each other: a node makes a cluster or joins one",
            path.display()
        );
        anyhow::ensure!(
            config.trace_sample.is_none_or(|share| (0.0..=1.0).contains(&share)),
            "{}: `trace_sample` is a share from 0 to 1",
            path.display()
        );
        anyhow::ensure!(
            config.edge.max_head_bytes.is_none_or(|bytes| bytes.get() >= 8192),
            "{}: `edge.max_head_bytes` is at least 8192",
            path.display()
        );
        Ok(config)
    }

    /// [`NodeConfig::adopt_grace_ms`] as a duration.
    pub fn adopt_grace(&self) -> Duration {
        Duration::from_millis(self.adopt_grace_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> anyhow::Result<NodeConfig> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("node.toml");
        std::fs::write(&path, text)?;
        NodeConfig::load(&path)
    }

    #[test]
    fn a_short_file_gets_the_documented_defaults() {
        let config = load("region = \"iad\"\ndata_dir = \"/x\"\n").unwrap();
        assert_eq!(config.base_domain, "localhost");
        assert_eq!(config.adopt_grace(), Duration::from_secs(30));
        assert_eq!(config.latency, Latency::None);
        assert_eq!((config.autostop_interval_ms.get(), config.autostop_batch.get()), (120_000, 1));
    }

    /// INCIDENTS C26.
    #[test]
    fn autostop_is_as_quick_as_the_operator_says_and_never_without_end() {
        let keys = |keys: &str| load(&format!("region = \"iad\"\ndata_dir = \"/x\"\n{keys}"));
        let quick = keys("autostop_interval_ms = 5000\nautostop_batch = 50\n").unwrap();
        assert_eq!((quick.autostop_interval_ms.get(), quick.autostop_batch.get()), (5_000, 50));
        assert!(keys("autostop_interval_ms = 0\n").is_err() && keys("autostop_batch = 0\n").is_err());
    }

    /// SPEC HTTP-8: each key of the table in `docs/http.md` reaches the proxy.
    #[test]
    fn limits_of_the_proxy_are_keys_of_the_table_edge() {
        let keys = [
            ("max_head_bytes", 10_001),
            ("max_fields", 2),
            ("max_target_bytes", 3),
            ("keep_alive_ms", 4),
            ("head_timeout_ms", 5),
            ("body_timeout_ms", 6),
            ("write_timeout_ms", 7),
            ("route_timeout_ms", 8),
            ("connect_timeout_ms", 9),
            ("upstream_idle_ms", 10),
            ("max_connections", 11),
            ("max_compressions", 12),
            ("replay_buffer_bytes", 13),
            ("replay_budget_bytes", 14),
            ("h2_streams", 15),
            ("h2_stream_window_bytes", 16),
            ("h2_connection_window_bytes", 17),
            ("h2_send_buffer_bytes", 18),
            ("h2_ping_after_ms", 19),
            ("h2_ping_timeout_ms", 20),
            ("h2_unseen_resets", 21),
            ("h2_faulty_resets", 22),
            ("queue_max", 23),
            ("queue_max_all", 24),
            ("queue_timeout_ms", 25),
            ("explained", 26),
        ];
        let table = keys.map(|(key, value)| format!("{key} = {value}\n")).concat();
        let config = load(&format!("region = \"iad\"\ndata_dir = \"/x\"\n[edge]\n{table}")).unwrap();
        let new =
            || EdgeConfig::new(skein_core::NodeNumber(1), "iad-1".parse().unwrap(), "iad".parse().unwrap());
        let edge = config.edge.apply(new());
        let sizes = [edge.max_head, edge.max_fields, edge.max_target, edge.max_connections];
        assert_eq!(sizes, [10_001, 2, 3, 11]);
        assert_eq!([edge.max_compressions, edge.replay_buffer, edge.replay_budget], [12, 13, 14]);
        let times = [edge.keep_alive, edge.head_timeout, edge.body_timeout, edge.write_timeout];
        assert_eq!(times.map(|time| time.as_millis()), [4, 5, 6, 7]);
        let times = [edge.route_timeout, edge.connect_timeout, edge.upstream_idle];
        assert_eq!(times.map(|time| time.as_millis()), [8, 9, 10]);
        let queue = (edge.queue.service, edge.queue.all, edge.queue_timeout.as_millis());
        assert_eq!(queue, (23, 24, 25));
        let http2 = &edge.http2;
        assert_eq!([http2.streams, http2.stream_window, http2.connection_window], [15, 16, 17]);
        assert_eq!(edge.explained, 26);
        assert_eq!([http2.send_buffer, http2.unseen_resets, http2.faulty_resets], [18, 21, 22]);
        assert_eq!([http2.ping_after, http2.ping_timeout].map(|time| time.as_millis()), [19, 20]);
        let EdgeConfig { http2, .. } = new();
        let defaults = [
            new().max_head as u64,
            new().max_fields as u64,
            new().max_target as u64,
            new().keep_alive.as_millis() as u64,
            new().head_timeout.as_millis() as u64,
            new().body_timeout.as_millis() as u64,
            new().write_timeout.as_millis() as u64,
            new().route_timeout.as_millis() as u64,
            new().connect_timeout.as_millis() as u64,
            new().upstream_idle.as_millis() as u64,
            new().max_connections as u64,
            new().max_compressions as u64,
            new().replay_buffer as u64,
            new().replay_budget as u64,
            http2.streams.into(),
            http2.stream_window.into(),
            http2.connection_window.into(),
            http2.send_buffer as u64,
            http2.ping_after.as_millis() as u64,
            http2.ping_timeout.as_millis() as u64,
            http2.unseen_resets as u64,
            http2.faulty_resets as u64,
            new().queue.service as u64,
            new().queue.all as u64,
            new().queue_timeout.as_millis() as u64,
            new().explained as u64,
        ];
        for ((key, _), default) in keys.iter().zip(defaults) {
            let row = include_str!("../../docs/http.md").split(&format!("| `{key}` | ")).nth(1);
            let number =
                row.unwrap_or_else(|| panic!("{key} is not in the table")).split(' ').next().unwrap();
            assert_eq!(number.replace(',', "").parse(), Ok(default), "{key}");
        }
        let unchanged = EdgeLimits::default().apply(new());
        assert_eq!(format!("{unchanged:?}"), format!("{:?}", new()));
        let wrong = |table: &str| {
            let text = format!("region = \"iad\"\ndata_dir = \"/x\"\n[edge]\n{table}");
            format!("{:#}", load(&text).unwrap_err())
        };
        assert!(wrong("max_fields = 0").contains("nonzero"), "{}", wrong("max_fields = 0"));
        assert!(wrong("max_feilds = 1").contains("max_feilds"));
        assert!(wrong("max_head_bytes = 100").contains("at least 8192"));
    }

    #[test]
    fn collectors_are_one_text_or_a_list() {
        let otlp = |line: &str| {
            let config = load(&format!("region = \"iad\"\ndata_dir = \"/x\"\n{line}"));
            config.map(|config| config.otlp).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(otlp("").unwrap(), [] as [&str; 0]);
        assert_eq!(otlp("otlp = \"http://a:1\"").unwrap(), ["http://a:1"]);
        assert_eq!(otlp("otlp = [\"http://a:1\", \"http://b:2\"]").unwrap(), ["http://a:1", "http://b:2"]);
        assert!(otlp("otlp = 4317").unwrap_err().contains("a collector's URL, or a list"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text: &str| format!("{:#}", load(text).unwrap_err());
        assert!(error("region = \"iad\"\ndata_dir = \"/x\"\nregoin = 1").contains("regoin"));
        assert!(error("region = \"Iad!\"\ndata_dir = \"/x\"").contains("2 to 8 lower-case letters"));
        let both = "region = \"iad\"\ndata_dir = \"/x\"\nbootstrap = true\njoin = \"t\"";
        assert!(error(both).contains("exclude each other"));
        assert!(error("region = \"iad\"\ndata_dir = \"/x\"\ntrace_sample = 2.0").contains("0 to 1"));
    }
}
