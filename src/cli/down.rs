//! `skein down`: ends a cluster on this computer.

use std::process::ExitCode;

use clap::Args;
use skein_testbed::{ClusterName, Ended, Home};

use super::ctx::Ctx;
use super::out;

/// Which one.
#[derive(Debug, Args)]
pub(crate) struct DownArgs {
    /// The cluster's name; --cluster means the same
    #[arg(long)]
    name: Option<ClusterName>,
}

/// Runs it: an unknown name is no error.
pub(crate) async fn run(args: DownArgs, ctx: &Ctx) -> anyhow::Result<ExitCode> {
    let name = match (args.name, &ctx.cluster) {
        (Some(name), _) => name,
        (None, Some(name)) => name.parse()?,
        (None, None) => "default".parse()?,
    };
    let dir = Home::new(ctx.state_root()?).cluster(&name);
    out::note(&match skein_testbed::end(&dir).await? {
        Ended::Running => format!("cluster {name} is down"),
        Ended::Leftovers => format!("cluster {name} was not running; what it had left is removed"),
        Ended::Nothing => format!("there is no cluster {name}"),
    });
    Ok(ExitCode::SUCCESS)
}
