//! One node of a testbed, as its launcher knows it.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use skein_core::api::BoundJson;

use crate::process::Process;
use crate::spec::NodeSpec;

/// What a node's process does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Life {
    /// It runs.
    Running,
    /// It was stopped by a signal and can be resumed.
    Paused,
    /// It ended: `exited with status 1`, `was killed by SIGKILL`.
    Gone(String),
}

/// A node, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// Its name and region.
    pub spec: NodeSpec,
    /// What it bound when it last started; `None` before that.
    pub bound: Option<BoundJson>,
    /// What its process does.
    pub life: Life,
    /// Counts its starts, from 1; 0 before the first.
    pub incarnation: u64,
    /// Whether it was seen by all others since it started, and is not about to end.
    pub ready: bool,
}

impl NodeView {
    /// The API of the node while its process runs.
    pub fn api(&self) -> Option<&str> {
        if self.life != Life::Running {
            return None;
        }
        Some(&self.bound.as_ref()?.api)
    }
}

/// `node.toml`: what a node is told at its start. The node refuses keys that it does not know.
#[derive(Debug, Serialize)]
pub(crate) struct NodeToml {
    pub(crate) name: String,
    pub(crate) region: String,
    pub(crate) data_dir: PathBuf,
    pub(crate) bootstrap: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) join: Option<String>,
    pub(crate) base_domain: String,
    pub(crate) latency: &'static str,
    pub(crate) exit_with_stdin: bool,
    pub(crate) otlp: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) trace_sample: Option<f64>,
    pub(crate) adopt_grace_ms: u64,
    pub(crate) drain_ms: u64,
    pub(crate) autostop_interval_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) log: Option<String>,
}

/// A node and its process, if any.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) spec: NodeSpec,
    pub(crate) dir: PathBuf,
    /// Starts and restarts of one node follow each other.
    pub(crate) turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) process: Option<Process>,
    pub(crate) bound: Option<BoundJson>,
    pub(crate) incarnation: u64,
    pub(crate) ready: bool,
}

impl Node {
    pub(crate) fn new(spec: NodeSpec, dir: PathBuf) -> Self {
        Self { spec, dir, turn: tokio::sync::Mutex::new(()), state: Mutex::new(State::default()) }
    }

    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let mut guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        f(&mut guard)
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("node.log")
    }

    pub(crate) fn view(&self) -> NodeView {
        self.with(|state| {
            let life = match &state.process {
                Some(process) => process.life().borrow().clone(),
                None => Life::Gone("was not started".into()),
            };
            let ready = state.ready && life == Life::Running;
            let (bound, incarnation) = (state.bound.clone(), state.incarnation);
            NodeView { spec: self.spec.clone(), bound, life, incarnation, ready }
        })
    }
}
