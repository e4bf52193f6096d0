//! `skein deploy`: a `fly.toml` into running Machines.

mod plan;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use skein_core::api::{EndpointRequest, NodeJson};
use skein_core::machine::{MachineConfig, MachineJson, MachineState};
use skein_core::{AppName, NetworkName, OrgSlug, ProcessGroup};
use tokio::task::JoinSet;

use self::plan::{Action, Process, changes, configs, placeable, wanted_addresses};
use super::client::{CallError, Client, segment};
use super::ctx::Ctx;
use super::ips::IpRow;
use super::{apps, config, endpoint, ips, machines, out};

/// How long a Machine may take to start.
const START: Duration = Duration::from_secs(60);
/// How long a Machine must have run to count as running.
const SETTLED: Duration = Duration::from_secs(1);
/// The time between two looks at a Machine's checks.
const POLL: Duration = Duration::from_millis(200);
/// The states of a Machine whose process has ended or never ran, as `wait` takes them.
const ENDED: &str = "state=restarting&state=stopped&state=failed&state=launch_failed&state=destroyed";
/// What is said of a Machine in one of them.
const AT_ONCE: &str = "it ended as soon as it was started";

/// What to deploy, and where.
#[derive(Debug, Args)]
pub(crate) struct DeployArgs {
    /// The configuration
    #[arg(short, long, default_value = "fly.toml")]
    config: PathBuf,
    /// The app instead of the one that the configuration names; made when there is none
    #[arg(short, long)]
    app: Option<AppName>,
    /// The organization of an app that is made
    #[arg(short, long, default_value = "personal")]
    org: OrgSlug,
    /// One Machine per process group in each of these instead of in the primary region
    #[arg(long, value_delimiter = ',')]
    regions: Vec<String>,
    /// A server that already runs, at host:port, instead of a process
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "command")]
    external: Option<String>,
    /// A private address instead of public ones
    #[arg(long)]
    flycast: bool,
    /// The Machine's process, when the configuration has no [processes]
    #[arg(last = true)]
    command: Vec<String>,
}

/// Where Machines are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// One per process group in the primary region.
    Primary,
    /// One per process group in each.
    Regions(Vec<String>),
    /// One per process group for each node.
    EachNode,
}

/// A deploy.
#[derive(Debug, Clone)]
pub struct Deploy {
    /// The configuration's file.
    pub config: PathBuf,
    /// The app, when it is not the file's.
    pub app: Option<AppName>,
    /// The organization of an app that is made.
    pub org: OrgSlug,
    /// Where.
    pub placement: Placement,
    /// A server that already runs.
    pub external: Option<String>,
    /// The process; empty when the file or `external` says.
    pub command: Vec<String>,
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Deployed {
    /// The app.
    pub app: AppName,
    /// Its Machines.
    pub machines: Vec<MachineJson>,
    /// Its addresses.
    pub ips: Vec<IpRow>,
}

/// The state that a wait came to.
#[derive(Debug, Deserialize)]
struct Waited {
    state: MachineState,
}

/// Runs it.
pub(crate) async fn run(args: DeployArgs, ctx: &Ctx) -> anyhow::Result<()> {
    if args.flycast {
        bail!("--flycast: private addresses are not provided by this version of Skein");
    }
    let placement = match args.regions {
        regions if regions.is_empty() => Placement::Primary,
        regions => Placement::Regions(regions),
    };
    let DeployArgs { config, app, org, external, command, .. } = args;
    let client = ctx.client()?;
    let deployed = deploy(&client, Deploy { config, app, org, placement, external, command }).await?;
    if ctx.json {
        return out::json(&deployed);
    }
    report(&client, &deployed).await
}

/// Deploys: returns when the Machines are started and every live node knows of them.
///
/// # Errors
/// When the file is not valid, the API refuses, or a Machine does not start.
pub async fn deploy(client: &Client, deploy: Deploy) -> anyhow::Result<Deployed> {
    let file = config::valid(&deploy.config)?;
    let app = match deploy.app.or_else(|| file.app.clone()) {
        Some(app) => app,
        None => bail!("{} names no app; name one with -a", deploy.config.display()),
    };
    let process = match (deploy.external, deploy.command) {
        (Some(address), _) => Process::External(address),
        (None, command) if command.is_empty() => Process::Configured,
        (None, command) => Process::Command(command),
    };
    // Whatever can be known beforehand is found before anything is changed.
    let configs = configs(&file, &process)?;
    let existing: Option<Vec<MachineJson>> =
        client.find(&format!("/v1/apps/{}/machines", segment(app.as_str()))).await?;
    let existing = existing.unwrap_or_default();
    let nodes: Vec<NodeJson> = client.get("/skein/v1/nodes").await?;
    let open = || nodes.iter().filter(|node| node.alive && !node.draining).map(|node| node.region);
    let regions: Vec<Option<String>> = match deploy.placement {
        Placement::Primary => vec![file.primary_region.map(|region| region.to_string())],
        Placement::Regions(regions) => regions.into_iter().map(Some).collect(),
        Placement::EachNode => open().map(|region| Some(region.to_string())).collect(),
    };
    let actions = changes(&configs, &existing, &regions);
    placeable(&actions, &open().collect())?;

    ensure_app(client, &app, &deploy.org).await?;
    if existing.is_empty() {
        let have = ips::list(client, &app).await?;
        for kind in wanted_addresses(configs.values(), &have) {
            ips::allocate(client, &app, kind).await?;
        }
    }
    let mut made = Vec::new();
    for action in actions {
        made.extend(perform(client, &app, action).await?);
    }
    let mut starting = JoinSet::new();
    for machine in made {
        let (client, app) = (client.clone(), app.clone());
        starting.spawn(async move { started(&client, &app, &machine).await });
    }
    while let Some(outcome) = starting.join_next().await {
        outcome.context("wait for a Machine")??;
    }
    client.barrier().await?;
    let machines = machines::list(client, &app).await?;
    let ips = ips::list(client, &app).await?;
    Ok(Deployed { app, machines, ips })
}

async fn ensure_app(client: &Client, app: &AppName, org: &OrgSlug) -> anyhow::Result<()> {
    let found: Option<serde_json::Value> =
        client.find(&format!("/v1/apps/{}", segment(app.as_str()))).await?;
    if found.is_none() {
        apps::create(client, app, org, &NetworkName::default_network()).await?;
        out::note(&format!("app {app} is made in organization {org}"));
    }
    Ok(())
}

/// Performs one step: the Machine that must now start.
async fn perform(client: &Client, app: &AppName, action: Action) -> anyhow::Result<Option<MachineJson>> {
    match action {
        Action::Create { group, region, config } => {
            let body = serde_json::json!({ "region": region, "config": config });
            let path = format!("/v1/apps/{}/machines", segment(app.as_str()));
            let machine: MachineJson = client
                .post(&path, &body)
                .await
                .with_context(|| format!("make a Machine of group {group}"))?;
            out::note(&format!("Machine {} of group {group} is made in {}", machine.id, machine.region));
            Ok(Some(machine))
        }
        Action::Update { id, config } => {
            let machine: MachineJson = client
                .post(&machines::path(app, &id.to_string()), &serde_json::json!({ "config": config }))
                .await
                .with_context(|| format!("update Machine {id}"))?;
            out::note(&format!("Machine {id} is updated"));
            Ok(Some(machine))
        }
        Action::Destroy { id, group } => {
            let path = format!("{}?force=true", machines::path(app, &id.to_string()));
            client.delete(&path).await.with_context(|| format!("destroy Machine {id}"))?;
            out::note(&format!("Machine {id} is destroyed: there is no group {group} any more"));
            Ok(None)
        }
    }
}

/// Waits until a Machine of that version runs, its checks pass, and it has not ended at once.
///
/// # Errors
/// When it ended, when a check does not pass, or when the API refuses; the message says which.
pub(crate) async fn started(client: &Client, app: &AppName, machine: &MachineJson) -> anyhow::Result<()> {
    let path = machines::path(app, &machine.id.to_string());
    let version = machine.instance_id;
    let until =
        |states: &str, seconds: u64| format!("{path}/wait?{states}&version={version}&timeout={seconds}");
    // A command that ends at once may have ended before anybody looks.
    let called: Result<Waited, _> =
        client.get(&until(&format!("state=started&{ENDED}"), START.as_secs())).await;
    match called {
        Ok(Waited { state: MachineState::Started }) => {}
        Ok(Waited { state: MachineState::Failed | MachineState::LaunchFailed }) => {
            // Why it could not be started is told to whoever waits for just that.
            let told = client.get::<serde_json::Value>(&until("state=started", SETTLED.as_secs())).await;
            let why = told.err().map_or_else(|| AT_ONCE.to_owned(), |error| error.to_string());
            return Err(failed(client, &path, &why).await);
        }
        Ok(_) => return Err(failed(client, &path, AT_ONCE).await),
        Err(CallError::Refused { status: 408 | 412, error, .. }) => {
            return Err(failed(client, &path, &error).await);
        }
        Err(error) => return Err(error).with_context(|| format!("wait for Machine {}", machine.id)),
    }
    // A command that ends at once was started, too. This wait is well when nothing comes of it.
    match client.get::<serde_json::Value>(&until(ENDED, SETTLED.as_secs())).await {
        Err(CallError::Refused { status: 408, .. }) => passing(client, &path).await,
        Err(CallError::Refused { status: 412, error, .. }) => Err(failed(client, &path, &error).await),
        Err(error) => Err(error).with_context(|| format!("wait for Machine {}", machine.id)),
        Ok(_) => Err(failed(client, &path, AT_ONCE).await),
    }
}

/// Waits until the checks that decide routing pass.
async fn passing(client: &Client, path: &str) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + START;
    loop {
        let machine: MachineJson = client.get(path).await?;
        let Some(check) = plan::unpassed(&machine) else { return Ok(()) };
        if tokio::time::Instant::now() > deadline {
            let (id, region) = (machine.id, machine.region);
            bail!("check {} of Machine {id} in {region} does not pass: {}", check.name, check.output);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The error for a Machine that does not run.
async fn failed(client: &Client, path: &str, error: &str) -> anyhow::Error {
    match client.get::<MachineJson>(path).await {
        Ok(now) => {
            let why = plan::why(&now).unwrap_or_default();
            anyhow::anyhow!("Machine {} in {} does not run: {error}{why}", now.id, now.region)
        }
        Err(gone) => anyhow::Error::from(gone).context(error.to_owned()),
    }
}

async fn report(client: &Client, deployed: &Deployed) -> anyhow::Result<()> {
    let Deployed { app, machines: made, ips } = deployed;
    let named: Vec<_> = made.iter().map(|machine| (app.clone(), machine.clone())).collect();
    machines::table(&named).print()?;
    if ips.is_empty() {
        out::note("it has no public address; `skein ips allocate-v6` allots one");
        return Ok(());
    }
    out::data("")?;
    ips::table(ips).print()?;
    let serves_80 = |config: &MachineConfig| config.tcp_service(80).is_some();
    if made.iter().any(|machine| serves_80(&machine.config)) {
        let request = EndpointRequest { app: app.clone(), port: 80, node: None, from: None, protocol: None };
        let first = endpoint::endpoints(client, &request).await?.into_iter().next();
        if let Some(first) = first {
            out::note(&format!("\ntry it: curl -H 'Host: {app}.localhost' http://{}/", first.connect));
        }
    }
    Ok(())
}

/// Configurations by process group.
type Configs = std::collections::BTreeMap<ProcessGroup, MachineConfig>;
