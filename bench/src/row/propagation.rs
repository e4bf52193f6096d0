//! Until every node has a Machine's change (SPEC CLU-4).
//!
//! Each node notes on its own clock when it learned of a record, and the record holds when it
//! changed: on one machine that is one clock, so nothing has to poll while a change travels.

use anyhow::Context as _;
use serde_json::Value;

use crate::Args;
use crate::figure::{Figure, quantile};
use crate::peer::skein::{Cluster, Cores};
use crate::report::{Better, Report, short};

pub(super) async fn run(args: &Args) -> anyhow::Result<Report> {
    let nodes = args.nodes.to_string();
    let flags = ["--nodes", nodes.as_str(), "--latency", "none", "--no-demo"];
    let cluster = Cluster::up(&args.skein, Cores::All, &flags)?;
    cluster.skein(&["apps", "create", "bench"])?;
    let region = cluster.json["nodes"][0]["region"].as_str().context("no node")?.to_owned();
    let machine = cluster
        .skein(&["machine", "run", "-a", "bench", "--region", &region, "--json", "--", "sleep", "3600"])?;
    let machine: Value = serde_json::from_str(&machine).context("read what `skein machine run` printed")?;
    let id = machine["id"].as_str().context("the Machine has no id")?.to_owned();
    let client = reqwest::Client::new();
    let api = cluster.json["nodes"][0]["api"].as_str().context("no API")?.to_owned();
    let mut delays = Vec::new();
    for change in 0..args.changes {
        let verb = if change % 2 == 0 { "cordon" } else { "uncordon" };
        let url = format!("{api}/v1/apps/bench/machines/{id}/{verb}");
        let answer = client.post(url).bearer_auth(cluster.token()).send().await?;
        anyhow::ensure!(answer.status().is_success(), "{verb}: {}", answer.status());
        delays.push(seen_everywhere(&client, &cluster, &id, verb == "cordon").await?);
    }
    let figure = Figure::new("skein", &cluster.version, &cluster.command, delays);
    let (p99, most) = (short(quantile(&figure.values, 0.99)), short(quantile(&figure.values, 1.0)));
    let settings = format!(
        "median of {} changes until the last of {} nodes has it, distances off; p99 {p99} ms, at most {most} ms; \
         goal: p99 at most 500 ms",
        args.changes, args.nodes
    );
    Ok(Report::new("propagation", "ms", Better::Lower, settings).with(vec![figure], vec![]))
}

/// Milliseconds from the change until the last node learned of it.
async fn seen_everywhere(
    client: &reqwest::Client,
    cluster: &Cluster,
    id: &str,
    cordoned: bool,
) -> anyhow::Result<f64> {
    let mut worst = 0f64;
    for node in cluster.nodes() {
        let url = format!("{}/skein/v1/machines", node["api"].as_str().context("no API")?);
        // The loop ends when the node has the change; how often it asks does not alter the figure.
        let mut asked = 0;
        loop {
            let machines: Vec<Value> =
                client.get(&url).bearer_auth(cluster.token()).send().await?.json().await?;
            let machine = machines.iter().find(|machine| machine["id"] == id);
            if let Some(machine) = machine
                && machine["cordoned"] == cordoned
            {
                let of = |key: &str| machine[key].as_f64().unwrap_or(f64::NAN);
                worst = worst.max(of("seen_ms") - of("changed_ms"));
                break;
            }
            asked += 1;
            anyhow::ensure!(asked < 2_000, "{} does not have the change", node["name"]);
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
    Ok(worst)
}
