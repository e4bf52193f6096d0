//! What the Machines of a node are given.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use skein_cluster::store::{Store, StoreError};
use skein_core::machine::MachineConfig;
use skein_core::{AppId, AppName, NetworkId, NodeName, NodeNumber, RegionCode};

/// How long a process may take to accept connections: half of a request's time for routing.
const LISTENS_WITHIN: Duration = Duration::from_secs(30);

/// What the Machines of a node need. `PATH` and the like come from whoever reads the environment.
#[derive(Debug)]
pub struct MachinesConfig {
    /// The node's number: part of the Machines' 6PN addresses.
    pub node: NodeNumber,
    /// Its name.
    pub node_name: NodeName,
    /// Its region.
    pub region: RegionCode,
    /// The program that is `skein machine-init` and the sample app: `/proc/self/exe`. Opened once;
    /// the path need not stay.
    pub exe: PathBuf,
    /// Where configurations are kept.
    pub store: Store,
    /// The node's directory; sockets for a later node are made in it.
    pub data_dir: PathBuf,
    /// How long a Machine outlives its node (SPEC RUN-7); zero in a testbed.
    pub adopt_grace: Duration,
    /// How long a process may take to accept connections before it is sent some all the same (SPEC
    /// AUTO-5); 30 s. With less, slow apps are asked too early; with more, whoever asks one that listens
    /// elsewhere learns of it too late.
    pub listens_within: Duration,
    /// `PATH`, `LANG` and `TZ` of the node, as far as they are set; processes get them (SPEC RUN-9).
    pub inherited: BTreeMap<String, String>,
    /// Where processes start; `/` where their user may not enter it.
    pub working_dir: PathBuf,
}

impl MachinesConfig {
    /// The configuration of a node that runs this program: environment and working directory are
    /// read here, once; Machines do not outlive the node.
    pub fn new(
        node: NodeNumber,
        node_name: NodeName,
        region: RegionCode,
        data_dir: PathBuf,
        store: Store,
    ) -> Self {
        let inherited = ["PATH", "LANG", "TZ"].into_iter().filter_map(|key| {
            // A value that is no UTF-8 can't be handed on.
            Some((key.to_owned(), std::env::var_os(key)?.into_string().ok()?))
        });
        Self {
            node,
            node_name,
            region,
            exe: "/proc/self/exe".into(),
            store,
            data_dir,
            adopt_grace: Duration::ZERO,
            listens_within: LISTENS_WITHIN,
            inherited: inherited.collect(),
            working_dir: std::env::current_dir().unwrap_or_else(|_| "/".into()),
        }
    }
}

/// A Machine to be made.
#[derive(Debug, Clone)]
pub struct Create {
    /// Its app.
    pub app: AppId,
    /// The app's name, for the process.
    pub app_name: AppName,
    /// The app's network.
    pub network: NetworkId,
    /// Its name; two words when `None`.
    pub name: Option<String>,
    /// Its configuration.
    pub config: MachineConfig,
    /// It is not started.
    pub skip_launch: bool,
    /// The proxy sends it nothing until it is uncordoned.
    pub cordoned: bool,
}

/// Why a node's Machines could not be brought up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The program could not be opened, or a thread not be made.
    #[error("the program for machine-init could not be prepared")]
    Program(#[from] std::io::Error),
    /// The store could not be read.
    #[error("the store of Machines could not be read")]
    Store(#[from] StoreError),
    /// The runtime is shutting down.
    #[error("the supervisor of Machines did not start: {0}")]
    Supervisor(String),
}
