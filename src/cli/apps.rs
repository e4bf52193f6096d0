//! `skein apps`: apps of the organizations that the token reaches.

use clap::Subcommand;
use serde::{Deserialize, Serialize};
use skein_core::api::OrgJson;
use skein_core::{AppName, NetworkName, OrgSlug};

use super::client::{Client, segment};
use super::ctx::Ctx;
use super::out::{self, Table};

/// What to do with apps.
#[derive(Debug, Subcommand)]
pub(crate) enum AppsCommand {
    /// Makes an app
    Create {
        /// Its name, unique in the cluster
        name: AppName,
        /// Its organization
        #[arg(short, long, default_value = "personal")]
        org: OrgSlug,
        /// Its network in the organization; made if there is none of that name
        #[arg(long, default_value = "default")]
        network: NetworkName,
    },
    /// Lists apps
    #[command(visible_alias = "ls")]
    List {
        /// Only of this organization
        #[arg(short, long)]
        org: Option<OrgSlug>,
    },
    /// Destroys an app with its Machines and addresses
    Destroy {
        /// Its name
        name: AppName,
    },
}

/// An app, as `GET /v1/apps` lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AppRow {
    /// Its id.
    pub(crate) id: String,
    /// Its name.
    pub(crate) name: AppName,
    /// Its Machines.
    pub(crate) machine_count: usize,
    /// Its network.
    pub(crate) network: String,
    /// Its organization.
    #[serde(default)]
    pub(crate) org: String,
}

/// Runs it.
pub(crate) async fn run(command: AppsCommand, ctx: &Ctx) -> anyhow::Result<()> {
    let client = ctx.client()?;
    match command {
        AppsCommand::Create { name, org, network } => {
            let made = create(&client, &name, &org, &network).await?;
            client.barrier().await?;
            if ctx.json {
                return out::json(&made);
            }
            out::note(&format!("app {name} is made; bring it up with `skein deploy -a {name} -c fly.toml`"));
            Ok(())
        }
        AppsCommand::List { org } => {
            let apps = list(&client, org.as_ref()).await?;
            if ctx.json {
                return out::json(&apps);
            }
            let mut table = Table::new(&["NAME", "ORG", "NETWORK", "MACHINES"]);
            for app in apps {
                table.row([app.name.to_string(), app.org, app.network, app.machine_count.to_string()]);
            }
            table.print()
        }
        AppsCommand::Destroy { name } => {
            client.delete(&format!("/v1/apps/{}", segment(name.as_str()))).await?;
            client.barrier().await?;
            out::note(&format!("app {name} is destroyed"));
            Ok(())
        }
    }
}

/// Makes an app: what the API answered.
pub(crate) async fn create(
    client: &Client,
    name: &AppName,
    org: &OrgSlug,
    network: &NetworkName,
) -> anyhow::Result<serde_json::Value> {
    let body = serde_json::json!({ "name": name, "org_slug": org, "network": network });
    Ok(client.post("/v1/apps", &body).await?)
}

/// The apps of an organization, or of all that the token reaches.
pub(crate) async fn list(client: &Client, org: Option<&OrgSlug>) -> anyhow::Result<Vec<AppRow>> {
    #[derive(Deserialize)]
    struct Listed {
        apps: Vec<AppRow>,
    }
    let orgs = match org {
        Some(org) => vec![org.clone()],
        None => {
            let orgs: Vec<OrgJson> = client.get("/skein/v1/orgs").await?;
            orgs.into_iter().map(|org| org.slug).collect()
        }
    };
    let mut apps = Vec::new();
    for org in orgs {
        let listed: Listed = client.get(&format!("/v1/apps?org_slug={}", segment(org.as_str()))).await?;
        apps.extend(listed.apps.into_iter().map(|app| AppRow { org: org.to_string(), ..app }));
    }
    Ok(apps)
}
