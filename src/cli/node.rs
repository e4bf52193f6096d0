//! `skein node`: nodes, and running one.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use skein_core::api::{CreateJoinToken, JoinTokenJson, NodeJson};
use skein_core::machine::GoDuration;
use skein_core::{NodeName, RegionCode};

use super::client::{Client, segment};
use super::ctx::Ctx;
use super::{out, status};
use crate::node::NodeConfig;
use crate::telemetry::collector_url;

/// What to do with nodes.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Runs a node in the foreground
    Run(Box<RunArgs>),
    /// Lists nodes
    #[command(visible_alias = "ls")]
    List,
    /// Makes a token with which nodes join, and shows it, once
    Token {
        /// How many nodes may join with it
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
        /// How long it is valid, for example 30m
        #[arg(long, default_value = "1h", value_parser = ttl)]
        ttl: GoDuration,
    },
    /// Gives a node nothing new and waits until what it has is done; its process stays
    Drain {
        /// The node
        name: NodeName,
    },
    /// Lets a drained node take requests again
    Undrain {
        /// The node
        name: NodeName,
    },
    /// Drains a node of a testbed and starts it again; starts a dead one
    Restart {
        /// The node
        name: NodeName,
    },
}

fn ttl(text: &str) -> Result<GoDuration, String> {
    let time: GoDuration = text.parse().map_err(|error| format!("{error}"))?;
    if time.0.as_secs() == 0 { Err("it would never be valid: write 1s or more".to_owned()) } else { Ok(time) }
}

/// How a node runs: by a file, or by these.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The node's configuration; everything else is in it then
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["join", "region", "name", "data_dir", "api", "backhaul", "bootstrap", "otlp"]
    )]
    config: Option<PathBuf>,
    /// Joins the cluster that made this token
    #[arg(long, value_name = "TOKEN")]
    join: Option<String>,
    /// The region
    #[arg(long, required_unless_present = "config")]
    region: Option<RegionCode>,
    /// The name; made of the region and a number when it is not given
    #[arg(long)]
    name: Option<NodeName>,
    /// Where its files are: its identity, its registry, its Machines
    #[arg(long, default_value = "skein-data")]
    data_dir: PathBuf,
    /// Where its API listens
    #[arg(long, default_value = "127.0.0.1:0")]
    api: SocketAddr,
    /// Where other nodes reach it
    #[arg(long, default_value = "127.0.0.1:0")]
    backhaul: SocketAddr,
    /// Makes a new cluster
    #[arg(long, conflicts_with = "join", requires = "name")]
    bootstrap: bool,
    /// Where its spans go: OTLP over gRPC, as to http://127.0.0.1:4317, or over HTTP where the URL ends in /v1/traces, as http://127.0.0.1:4318/v1/traces; may be repeated
    #[arg(long, value_name = "URL", value_parser = collector_url)]
    otlp: Vec<String>,
}

impl RunArgs {
    /// The configuration that the arguments mean.
    ///
    /// # Errors
    /// When the file can't be used, or the arguments do not fit together.
    pub(crate) fn node_config(self) -> anyhow::Result<NodeConfig> {
        if let Some(file) = &self.config {
            return NodeConfig::load(file);
        }
        let region = self.region.ok_or_else(|| anyhow::anyhow!("name a region with --region"))?;
        // Through the same reader as a file: defaults are its.
        let mut table = toml::Table::new();
        table.insert("region".into(), region.to_string().into());
        table.insert("data_dir".into(), self.data_dir.display().to_string().into());
        table.insert("api_bind".into(), self.api.to_string().into());
        table.insert("backhaul_bind".into(), self.backhaul.to_string().into());
        table.insert("bootstrap".into(), self.bootstrap.into());
        table.insert("otlp".into(), self.otlp.into());
        table.extend(self.name.map(|name| ("name".to_owned(), name.to_string().into())));
        table.extend(self.join.map(|token| ("join".to_owned(), token.into())));
        Ok(table.try_into()?)
    }
}

/// Runs all but `node run`.
pub(crate) async fn run(command: NodeCommand, ctx: &Ctx) -> anyhow::Result<()> {
    let client = ctx.client()?;
    match command {
        NodeCommand::Run(_) => anyhow::bail!("invariant: a node runs without a client"),
        NodeCommand::List => {
            let nodes: Vec<NodeJson> = client.get("/skein/v1/nodes").await?;
            if ctx.json { out::json(&nodes) } else { status::nodes_table(&nodes).print() }
        }
        NodeCommand::Token { uses, ttl } => {
            let body = CreateJoinToken { uses, ttl_seconds: ttl.0.as_secs() };
            let made: JoinTokenJson = client.post("/skein/v1/join_tokens", &body).await?;
            if ctx.json {
                return out::json(&made);
            }
            out::note("on the new node: skein node run --region REGION --join TOKEN");
            out::data(&made.token)
        }
        NodeCommand::Drain { name } => {
            drain(&client, &name).await?;
            client.barrier().await?;
            out::note(&format!("{name} is drained; `skein node undrain {name}` takes it back"));
            Ok(())
        }
        NodeCommand::Undrain { name } => {
            undrain(&client, &name).await?;
            out::note(&format!("{name} takes requests again"));
            Ok(())
        }
        NodeCommand::Restart { name } => restart(&client, &name).await,
    }
}

async fn drain(client: &Client, name: &NodeName) -> anyhow::Result<()> {
    let none = serde_json::json!({});
    let _answer: serde_json::Value =
        client.post(&format!("/skein/v1/nodes/{}/drain", segment(name.as_str())), &none).await?;
    Ok(())
}

async fn undrain(client: &Client, name: &NodeName) -> anyhow::Result<()> {
    let none = serde_json::json!({});
    let _answer: serde_json::Value =
        client.post(&format!("/skein/v1/nodes/{}/undrain", segment(name.as_str())), &none).await?;
    Ok(client.barrier().await?)
}

/// The testbed's launcher knows whether the process lives: what other nodes see lags behind.
async fn restart(client: &Client, name: &NodeName) -> anyhow::Result<()> {
    let none = serde_json::json!({});
    let path = format!("/skein/v1/testbed/nodes/{}/restart", segment(name.as_str()));
    let _answer: serde_json::Value = client.post(&path, &none).await?;
    out::note(&format!("{name} is back"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: RunArgs,
    }

    fn parse(line: &str) -> Result<NodeConfig, String> {
        let parsed = Line::try_parse_from(line.split(' ')).map_err(|error| error.to_string())?;
        parsed.args.node_config().map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_node_that_joins_needs_its_region_and_is_told_so() {
        let config = parse("run --join skein1.00 --region lhr").unwrap();
        assert_eq!((config.region.as_str(), config.join.as_deref()), ("lhr", Some("skein1.00")));
        for line in ["run --join skein1.00", "run", "run --bootstrap --name a"] {
            let error = parse(line).unwrap_err();
            assert!(error.contains("--region"), "{line}: {error}");
            let missing = error.split("Usage").next().unwrap_or_default();
            assert!(!missing.contains("--config"), "{line}: {error}");
        }
        assert!(parse("run --region lhr --bootstrap").unwrap_err().contains("--name"));
    }

    #[test]
    fn a_token_is_valid_for_a_while() {
        assert_eq!(ttl("30m").unwrap().0.as_secs(), 1800);
        assert!(ttl("0s").unwrap_err().contains("1s or more"));
        assert!(ttl("999ms").is_err());
        assert!(ttl("soon").is_err());
    }

    #[test]
    fn a_file_stands_for_all_of_them() {
        let missing = parse("run --config /no/such/node.toml").unwrap_err();
        assert!(missing.contains("/no/such/node.toml"), "{missing}");
        for more in ["--region lhr", "--join t", "--api 127.0.0.1:1", "--otlp http://a:1"] {
            let error = parse(&format!("run --config node.toml {more}")).unwrap_err();
            assert!(error.contains("cannot be used with"), "{more}: {error}");
        }
    }

    #[test]
    fn spans_go_to_every_collector_that_is_named() {
        let config = parse("run --region lhr --otlp http://a:4317 --otlp http://b:4318/v1/traces").unwrap();
        assert_eq!(config.otlp, ["http://a:4317", "http://b:4318/v1/traces"]);
        assert!(parse("run --region lhr --otlp a:4317").unwrap_err().contains("http://"));
        assert_eq!(parse("run --region lhr").unwrap().otlp, [] as [&str; 0]);
    }
}
