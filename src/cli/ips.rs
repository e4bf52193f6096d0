//! `skein ips`: public addresses of an app (SPEC PUB-1).

use std::net::IpAddr;

use clap::Subcommand;
use serde::{Deserialize, Serialize};
use skein_core::AppName;

use super::client::{Client, segment};
use super::ctx::Ctx;
use super::out::{self, Table};

/// What to do with addresses.
#[derive(Debug, Subcommand)]
pub(crate) enum IpsCommand {
    /// Lists the addresses of an app
    #[command(visible_alias = "ls")]
    List {
        /// The app
        #[arg(short, long)]
        app: AppName,
    },
    /// Allots a dedicated IPv4, or the shared one
    AllocateV4 {
        /// The app
        #[arg(short, long)]
        app: AppName,
        /// The shared address: apps on it are told apart by host name
        #[arg(long)]
        shared: bool,
    },
    /// Allots a dedicated IPv6
    AllocateV6 {
        /// The app
        #[arg(short, long)]
        app: AppName,
    },
    /// Gives addresses back
    Release {
        /// The app
        #[arg(short, long)]
        app: AppName,
        /// The addresses
        #[arg(required = true)]
        ips: Vec<IpAddr>,
    },
}

/// An address, as `GET …/ip_assignments` lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpRow {
    /// The address.
    pub ip: IpAddr,
    /// Always `global`.
    pub region: String,
    /// Always empty.
    pub service_name: String,
    /// Whether other apps have it too.
    pub shared: bool,
    /// RFC 3339.
    pub created_at: String,
    /// `v4`, `v6` or `shared_v4`.
    #[serde(rename = "type")]
    pub kind: String,
}

/// Runs it.
pub(crate) async fn run(command: IpsCommand, ctx: &Ctx) -> anyhow::Result<()> {
    let client = ctx.client()?;
    match command {
        IpsCommand::List { app } => {
            let ips = list(&client, &app).await?;
            if ctx.json {
                return out::json(&ips);
            }
            table(&ips).print()
        }
        IpsCommand::AllocateV4 { app, shared } => {
            allotted(&client, ctx, &app, if shared { "shared_v4" } else { "v4" }).await
        }
        IpsCommand::AllocateV6 { app } => allotted(&client, ctx, &app, "v6").await,
        IpsCommand::Release { app, ips } => {
            for ip in ips {
                client.delete(&format!("{}/{}", path(&app), segment(&ip.to_string()))).await?;
                out::note(&format!("{ip} is released"));
            }
            Ok(client.barrier().await?)
        }
    }
}

async fn allotted(client: &Client, ctx: &Ctx, app: &AppName, kind: &str) -> anyhow::Result<()> {
    let ip = allocate(client, app, kind).await?;
    client.barrier().await?;
    if ctx.json { out::json(&ip) } else { table(&[ip]).print() }
}

fn path(app: &AppName) -> String {
    format!("/v1/apps/{}/ip_assignments", segment(app.as_str()))
}

/// The addresses of an app.
pub(crate) async fn list(client: &Client, app: &AppName) -> anyhow::Result<Vec<IpRow>> {
    #[derive(Deserialize)]
    struct Listed {
        ips: Vec<IpRow>,
    }
    Ok(client.get::<Listed>(&path(app)).await?.ips)
}

/// Allots an address of that kind.
pub(crate) async fn allocate(client: &Client, app: &AppName, kind: &str) -> anyhow::Result<IpRow> {
    Ok(client.post(&path(app), &serde_json::json!({ "type": kind })).await?)
}

/// Addresses for people.
pub(crate) fn table(ips: &[IpRow]) -> Table {
    let mut table = Table::new(&["IP", "TYPE", "REGION", "CREATED"]);
    for ip in ips {
        table.row([ip.ip.to_string(), ip.kind.clone(), ip.region.clone(), ip.created_at.clone()]);
    }
    table
}
