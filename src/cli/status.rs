//! `skein status`: the cluster, or one app.

use clap::Args;
use skein_core::AppName;
use skein_core::api::{NodeJson, StatusJson};

use super::client::{Client, segment};
use super::ctx::Ctx;
use super::out::{self, Table};
use super::{ips, machines};

/// Of what.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// This app's Machines and addresses; without it the cluster's nodes
    #[arg(short, long)]
    app: Option<AppName>,
}

/// Runs it.
pub(crate) async fn run(args: StatusArgs, ctx: &Ctx) -> anyhow::Result<()> {
    let client = ctx.client()?;
    match args.app {
        Some(app) => of_app(&client, app, ctx).await,
        None => of_cluster(&client, ctx).await,
    }
}

async fn of_cluster(client: &Client, ctx: &Ctx) -> anyhow::Result<()> {
    let status: StatusJson = client.get("/skein/v1/status").await?;
    let nodes: Vec<NodeJson> = client.get("/skein/v1/nodes").await?;
    if ctx.json {
        return out::json(&serde_json::json!({ "status": status, "nodes": nodes }));
    }
    out::data(&format!(
        "skein {}, cluster {}, {} isolation, seen from {} in {}\n",
        status.version, status.cluster, status.isolation, status.node, status.region
    ))?;
    nodes_table(&nodes).print()
}

/// Nodes for people.
pub(crate) fn nodes_table(nodes: &[NodeJson]) -> Table {
    let mut table = Table::new(&["NODE", "REGION", "STATE", "MACHINES", "RTT", "REGISTRY", "API"]);
    for node in nodes {
        table.row([
            node.name.to_string(),
            node.region.to_string(),
            state(node).to_owned(),
            node.machines.to_string(),
            format!("{:.1} ms", node.rtt_ms),
            node.registry.clone(),
            format!("http://{}", node.api),
        ]);
    }
    table
}

fn state(node: &NodeJson) -> &'static str {
    match (node.alive, node.suspect, node.draining) {
        (false, _, _) => "dead",
        (true, true, _) => "suspect",
        (true, false, true) => "draining",
        (true, false, false) => "alive",
    }
}

async fn of_app(client: &Client, app: AppName, ctx: &Ctx) -> anyhow::Result<()> {
    let shown: serde_json::Value = client.get(&format!("/v1/apps/{}", segment(app.as_str()))).await?;
    let of_app = machines::list(client, &app).await?;
    let addresses = ips::list(client, &app).await?;
    if ctx.json {
        return out::json(&serde_json::json!({ "app": shown, "machines": of_app, "ips": addresses }));
    }
    let member = |name: &str| shown[name].as_str().unwrap_or_default().to_owned();
    let org = shown["organization"]["slug"].as_str().unwrap_or_default();
    let status = member("status");
    out::data(&format!("{app}: {status}, organization {org}, network {}\n", member("network")))?;
    let named: Vec<_> = of_app.into_iter().map(|machine| (app.clone(), machine)).collect();
    machines::table(&named).print()?;
    out::data("")?;
    ips::table(&addresses).print()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_told_by_the_worst_that_is_known_of_it() {
        let node = |alive, suspect, draining| NodeJson {
            number: skein_core::NodeNumber(1),
            name: "iad-1".parse().unwrap(),
            region: "iad".parse().unwrap(),
            alive,
            draining,
            suspect,
            registry: "leader".into(),
            machines: 2,
            rtt_ms: 0.04,
            api: "127.0.0.1:9".parse().unwrap(),
        };
        assert_eq!(state(&node(false, true, true)), "dead");
        assert_eq!(state(&node(true, true, true)), "suspect");
        assert_eq!(state(&node(true, false, true)), "draining");
        let lines = nodes_table(&[node(true, false, false)]).lines();
        assert_eq!(lines[0], "NODE   REGION  STATE  MACHINES  RTT     REGISTRY  API");
        assert_eq!(lines[1], "iad-1  iad     alive  2         0.0 ms  leader    http://127.0.0.1:9");
    }
}
