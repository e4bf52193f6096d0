//! `skein endpoint`: where on this machine to connect (DESIGN section 8).

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use skein_core::api::{EndpointJson, EndpointRequest};
use skein_core::{AppName, NodeName};

use super::client::{CallError, Client};
use super::ctx::Ctx;
use super::out::{self, Table};

/// Which public address and port, at which node.
#[derive(Debug, Args)]
pub(crate) struct EndpointArgs {
    /// The app
    #[arg(required_unless_present = "app_option")]
    app: Option<AppName>,
    /// The app, as other verbs take it
    #[arg(short, long = "app", conflicts_with = "app")]
    app_option: Option<AppName>,
    /// The public port
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Only at this node
    #[arg(long, conflicts_with = "from")]
    node: Option<NodeName>,
    /// At the node that the anycast front chooses for a client in this region
    #[arg(long)]
    from: Option<String>,
    /// The protocol
    #[arg(long, value_enum, default_value_t = Protocol::Tcp)]
    protocol: Protocol,
}

/// A protocol of the transport layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

/// Runs it.
pub(crate) async fn run(args: EndpointArgs, ctx: &Ctx) -> anyhow::Result<()> {
    let EndpointArgs { app, app_option, port, node, from, protocol } = args;
    let Some(app) = app.or(app_option) else { anyhow::bail!("name an app") };
    let protocol = match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    let request = EndpointRequest { app, port, node, from, protocol: Some(protocol.to_owned()) };
    let endpoints = endpoints(&ctx.client()?, &request).await?;
    if ctx.json {
        return out::json(&endpoints);
    }
    let mut table = Table::new(&["NODE", "REGION", "PUBLIC", "PORT", "CONNECT"]);
    for EndpointJson { node, region, public, port, connect } in endpoints {
        table.row([
            node.to_string(),
            region.to_string(),
            public.to_string(),
            port.to_string(),
            connect.to_string(),
        ]);
    }
    table.print()
}

/// Where to connect.
pub(crate) async fn endpoints(
    client: &Client,
    request: &EndpointRequest,
) -> anyhow::Result<Vec<EndpointJson>> {
    let called: Result<_, CallError> = client.post("/skein/v1/endpoints", request).await;
    let called = called.map_err(|error| error.about(request.app.as_str()));
    called.with_context(|| format!("find where {} answers", request.app))
}
