//! `skein machines`: Machines one by one.

mod ports;
mod run;

use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde::Serialize;
use skein_core::api::SeenMachineJson;
use skein_core::machine::{GoDuration, MachineJson};
use skein_core::{AppName, MachineId};

use super::apps;
use super::client::{CallError, Client, segment};
use super::ctx::Ctx;
use super::out::{self, Table};

pub(crate) use run::RunArgs;

/// How long a verb waits for the state that it asked for (DESIGN section 8).
const DEADLINE: Duration = Duration::from_secs(60);

/// What to do with Machines.
#[derive(Debug, Subcommand)]
pub(crate) enum MachinesCommand {
    /// Makes a Machine that runs a command
    Run(Box<RunArgs>),
    /// Lists Machines
    #[command(visible_alias = "ls")]
    List {
        /// Only of this app
        #[arg(short, long)]
        app: Option<AppName>,
    },
    /// Starts Machines; suspended ones go on where they were
    Start(Ids),
    /// Stops Machines
    Stop {
        #[command(flatten)]
        ids: Ids,
        /// The first signal instead of kill_signal
        #[arg(long)]
        signal: Option<String>,
        /// Time until SIGTERM instead of kill_timeout, for example 10s
        #[arg(long)]
        timeout: Option<GoDuration>,
    },
    /// Suspends Machines: their processes stay in memory until a start
    Suspend(Ids),
    /// Stops Machines and starts them again
    Restart(Ids),
    /// Destroys Machines
    Destroy {
        #[command(flatten)]
        ids: Ids,
        /// Also while they run
        #[arg(short, long)]
        force: bool,
    },
    /// Sends Machines nothing new
    Cordon(Ids),
    /// Sends Machines requests again
    Uncordon(Ids),
}

/// Machines by id.
#[derive(Debug, Args)]
pub(crate) struct Ids {
    /// The Machines' ids
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    /// Their app; found by the id when it is not given
    #[arg(short, long)]
    app: Option<AppName>,
}

/// Runs it.
pub(crate) async fn run(command: MachinesCommand, ctx: &Ctx) -> anyhow::Result<()> {
    let client = ctx.client()?;
    let none = serde_json::json!({});
    match command {
        MachinesCommand::Run(args) => run::run(*args, &client, ctx).await,
        MachinesCommand::List { app } => print_list(&client, app, ctx).await,
        MachinesCommand::Start(ids) => each(&client, ids, "start", &none, Some("started")).await,
        MachinesCommand::Stop { ids, signal, timeout } => {
            let body = serde_json::json!({ "signal": signal, "timeout": timeout });
            each(&client, ids, "stop", &body, Some("stopped")).await
        }
        MachinesCommand::Suspend(ids) => each(&client, ids, "suspend", &none, Some("suspended")).await,
        MachinesCommand::Restart(ids) => each(&client, ids, "restart", &none, Some("started")).await,
        MachinesCommand::Destroy { ids, force } => destroy(&client, ids, force).await,
        MachinesCommand::Cordon(ids) => {
            each(&client, ids, "cordon", &none, None).await?;
            Ok(client.barrier().await?)
        }
        MachinesCommand::Uncordon(ids) => {
            each(&client, ids, "uncordon", &none, None).await?;
            Ok(client.barrier().await?)
        }
    }
}

/// A Machine of an app, in the API's path.
pub(crate) fn path(app: &AppName, id: &str) -> String {
    format!("/v1/apps/{}/machines/{}", segment(app.as_str()), segment(id))
}

async fn each(
    client: &Client,
    ids: Ids,
    verb: &str,
    body: &impl Serialize,
    until: Option<&str>,
) -> anyhow::Result<()> {
    for id in &ids.ids {
        let path = path(&app_of(client, id, ids.app.as_ref()).await?, id);
        let _answer: serde_json::Value =
            client.post(&format!("{path}/{verb}"), body).await.with_context(|| format!("{verb} {id}"))?;
        match until {
            Some(state) => {
                wait(client, &path, state, DEADLINE).await.with_context(|| format!("{verb} {id}"))?;
                out::note(&format!("{id} is {state}"));
            }
            None => out::note(&format!("{id} is {verb}ed")),
        }
    }
    Ok(())
}

async fn destroy(client: &Client, ids: Ids, force: bool) -> anyhow::Result<()> {
    for id in &ids.ids {
        let path = path(&app_of(client, id, ids.app.as_ref()).await?, id);
        let query = if force { "?force=true" } else { "" };
        client.delete(&format!("{path}{query}")).await.with_context(|| format!("destroy {id}"))?;
        match wait(client, &path, "destroyed", DEADLINE).await {
            Err(CallError::Refused { status: 404, .. }) | Ok(()) => {}
            Err(error) => return Err(error).with_context(|| format!("destroy {id}")),
        }
        out::note(&format!("{id} is destroyed"));
    }
    Ok(())
}

/// The app that a Machine belongs to.
async fn app_of(client: &Client, id: &str, named: Option<&AppName>) -> anyhow::Result<AppName> {
    if let Some(app) = named {
        return Ok(app.clone());
    }
    // What is no id is an id that does not exist (SPEC RUN-1).
    let Ok(known) = id.parse::<MachineId>() else { bail!(no_machine(id)) };
    let seen: Vec<SeenMachineJson> = client.get(&format!("/skein/v1/machines?id={known}")).await?;
    seen.into_iter().find_map(|machine| machine.app).with_context(|| no_machine(id))
}

fn no_machine(id: &str) -> String {
    format!("there is no Machine {id}; `skein machines list` shows them")
}

/// Waits until the Machine at that path is in a state.
///
/// # Errors
/// [`CallError`]; 408 when it is not there in time.
pub(crate) async fn wait(
    client: &Client,
    path: &str,
    state: &str,
    deadline: Duration,
) -> Result<(), CallError> {
    let _answer: serde_json::Value =
        client.get(&format!("{path}/wait?state={state}&timeout={}", deadline.as_secs().max(1))).await?;
    Ok(())
}

/// The Machines of an app.
pub(crate) async fn list(client: &Client, app: &AppName) -> Result<Vec<MachineJson>, CallError> {
    client.get(&format!("/v1/apps/{}/machines", segment(app.as_str()))).await
}

/// The Machines of an app, or of all apps, each with its app.
pub(crate) async fn gather(
    client: &Client,
    app: Option<AppName>,
) -> anyhow::Result<Vec<(AppName, MachineJson)>> {
    let of_one = app.is_some();
    let names = match app {
        Some(app) => vec![app],
        None => apps::list(client, None).await?.into_iter().map(|app| app.name).collect(),
    };
    let mut all = Vec::new();
    for name in names {
        match list(client, &name).await {
            Ok(machines) => all.extend(machines.into_iter().map(|machine| (name.clone(), machine))),
            // The app went away between the two calls.
            Err(CallError::Refused { status: 404, .. }) if !of_one => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(all)
}

async fn print_list(client: &Client, app: Option<AppName>, ctx: &Ctx) -> anyhow::Result<()> {
    let all = gather(client, app).await?;
    if ctx.json {
        return out::json(&all.iter().map(|(_, machine)| machine).collect::<Vec<_>>());
    }
    table(&all).print()
}

/// Machines for people.
pub(crate) fn table(machines: &[(AppName, MachineJson)]) -> Table {
    let mut table = Table::new(&["ID", "APP", "GROUP", "REGION", "NODE", "STATE", "CHECKS", "IMAGE"]);
    for (app, machine) in machines {
        table.row([
            machine.id.to_string(),
            app.to_string(),
            machine.config.process_group().to_string(),
            machine.region.to_string(),
            machine.node.as_ref().map(ToString::to_string).unwrap_or_default(),
            state(machine),
            checks(machine),
            machine.config.image.clone(),
        ]);
    }
    table
}

fn state(machine: &MachineJson) -> String {
    let mut state = machine.state.to_string();
    if machine.cordoned {
        state.push_str(", cordoned");
    }
    if machine.host_status != "ok" {
        state.push_str(", ");
        state.push_str(&machine.host_status);
    }
    state
}

fn checks(machine: &MachineJson) -> String {
    let passing = machine.checks.iter().filter(|check| check.status == "passing").count();
    match machine.checks.len() {
        0 => String::new(),
        all => format!("{passing}/{all}"),
    }
}
