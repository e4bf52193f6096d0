//! The app that a new cluster runs: the sample app, or the user's.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use skein_core::AppName;
use skein_core::api::SeenMachineJson;
use skein_core::machine::MachineState;
use skein_testbed::{NodeSpec, Testbed};
use tokio::time::Instant;

use crate::cli::client::Client;
use crate::cli::deploy::{self, Deploy, Deployed, Placement};

/// How long the app's Machines may take to be routable at every node.
const ROUTABLE: Duration = Duration::from_secs(60);
/// One look at a node.
const CALL: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(25);

/// Writes the sample app's configuration (DESIGN section 8); returns where.
pub(super) fn write(testbed: &Testbed, nodes: &[NodeSpec]) -> anyhow::Result<PathBuf> {
    let first = nodes.first().context("invariant: a testbed has a node")?;
    let path = testbed.dir().path().join("nodes").join("hello.toml");
    std::fs::write(&path, text(first)).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

pub(super) fn text(first: &NodeSpec) -> String {
    format!(
        "app = \"hello\"\n\
         primary_region = \"{}\"\n\
         \n\
         [build]\n\
         image = \"skein/hello\"\n\
         \n\
         [http_service]\n\
         internal_port = 8080\n\
         force_https = false\n\
         auto_stop_machines = \"off\"\n\
         auto_start_machines = false\n\
         \n\
         [http_service.concurrency]\n\
         type = \"requests\"\n\
         \n\
         [[http_service.checks]]\n\
         path = \"/health\"\n\
         grace_period = \"1s\"\n\
         interval = \"2s\"\n\
         timeout = \"2s\"\n",
        first.region
    )
}

/// Deploys one Machine per node; returns when every node would route to each.
pub(super) async fn deploy(
    testbed: &Testbed,
    client: &Client,
    config: PathBuf,
    command: Vec<String>,
) -> anyhow::Result<AppName> {
    let deploy = Deploy {
        config,
        app: None,
        org: "personal".parse()?,
        placement: Placement::EachNode,
        external: None,
        command,
    };
    let Deployed { app, machines, .. } = deploy::deploy(client, deploy).await?;
    let deadline = Instant::now() + ROUTABLE;
    for node in testbed.nodes() {
        loop {
            let status = match node.api() {
                None => "it ended".to_owned(),
                Some(api) => {
                    let url = format!("{api}/skein/v1/machines");
                    match testbed.client().get::<Vec<SeenMachineJson>>(&url, CALL).await {
                        Ok(seen) => {
                            let seen: Vec<_> =
                                seen.iter().filter(|seen| seen.app.as_ref() == Some(&app)).collect();
                            let ready = seen.iter().filter(|seen| routable(seen)).count();
                            if ready >= machines.len() {
                                break;
                            }
                            format!("{ready} of {} are started, healthy and known there", machines.len())
                        }
                        Err(error) => error.to_string(),
                    }
                }
            };
            if Instant::now() >= deadline {
                bail!(
                    "node {} does not route to all Machines of {app} after {} s: {status}",
                    node.spec.name,
                    ROUTABLE.as_secs()
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(app)
}

fn routable(seen: &SeenMachineJson) -> bool {
    seen.state == MachineState::Started && seen.healthy && seen.configured && !seen.cordoned
}
