//! The command line (SPEC API-3, DESIGN section 8): parses, calls the API, prints.
//!
//! It holds no decision about a cluster and reaches one through its API only; `up` and `down` start
//! and end a testbed, `node run` becomes a node.

mod apps;
mod chaos;
mod checks;
pub mod client;
mod config;
pub mod ctx;
pub mod deploy;
mod down;
mod endpoint;
mod explain;
mod ips;
mod machines;
mod node;
mod orgs;
pub mod out;
mod regions;
mod status;
mod tokens;
mod trace;
mod up;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

pub use ctx::Ctx;
use ctx::Environment;

/// Fly.io's networking on your own machines.
#[derive(Debug, Parser)]
#[command(name = "skein", version, propagate_version = true, subcommand_required = true)]
struct Cli {
    /// The testbed that is meant, when several run
    #[arg(long, global = true, value_name = "NAME")]
    cluster: Option<String>,
    /// Data as JSON on stdout
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Launches a cluster on this computer
    Up(Box<up::UpArgs>),
    /// Ends a cluster on this computer
    Down(down::DownArgs),
    /// Brings an app up, or up to date, from its fly.toml
    Deploy(Box<deploy::DeployArgs>),
    /// Shows the cluster's nodes, or an app
    Status(status::StatusArgs),
    /// Shows where on this computer a public address and port is reached
    Endpoint(endpoint::EndpointArgs),
    /// Machines: run, list, start, stop, suspend, restart, destroy, cordon, uncordon
    #[command(subcommand, visible_alias = "machine")]
    Machines(machines::MachinesCommand),
    /// Health checks: list
    #[command(subcommand, visible_alias = "check")]
    Checks(checks::ChecksCommand),
    /// Apps: create, list, destroy
    #[command(subcommand, visible_alias = "app")]
    Apps(apps::AppsCommand),
    /// Organizations: create, list
    #[command(subcommand, visible_alias = "org")]
    Orgs(orgs::OrgsCommand),
    /// API tokens: create, list, revoke
    #[command(subcommand, visible_alias = "token")]
    Tokens(tokens::TokensCommand),
    /// Public addresses of an app: list, allocate-v4, allocate-v6, release
    #[command(subcommand, visible_alias = "ip")]
    Ips(ips::IpsCommand),
    /// Nodes: run, list, token, drain, undrain, restart
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Reads a fly.toml: validate, show
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Lists the regions
    Regions,
    /// Draws a request's trace
    Trace(trace::TraceArgs),
    /// Tells what was decided for a request, and why
    Explain(explain::ExplainArgs),
    /// Faults: inject, heal, list
    Chaos(chaos::ChaosArgs),
}

/// The program: the process's arguments in, its exit code out.
pub fn main() -> ExitCode {
    // Both are Machines' processes: small, and without any of what follows.
    match std::env::args_os().nth(1).as_deref().and_then(|verb| verb.to_str()) {
        Some("machine-init") => return skein_machine::machine_init_main(),
        Some("hello") => return crate::hello::main(),
        _ => {}
    }
    let Cli { cluster, json, verb } = Cli::parse();
    let ctx = Ctx { json, cluster, environment: Environment::read(|name| std::env::var_os(name)) };
    match run(verb, &ctx) {
        Ok(code) => code,
        Err(error) => {
            out::error(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb, ctx: &Ctx) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Regions => regions::run(ctx).map(|()| ExitCode::SUCCESS),
        Verb::Config(command) => config::run(command, ctx),
        Verb::Up(args) => wide()?.block_on(up::run(*args, ctx)),
        Verb::Down(args) => wide()?.block_on(down::run(args, ctx)),
        Verb::Node(node::NodeCommand::Run(args)) => {
            let config = args.node_config()?;
            wide()?.block_on(crate::node::run(config)).map(|()| ExitCode::SUCCESS)
        }
        Verb::Trace(args) => narrow()?.block_on(trace::run(args, ctx)),
        Verb::Explain(args) => narrow()?.block_on(explain::run(args, ctx)),
        Verb::Chaos(args) => wide()?.block_on(chaos::run(args, ctx)),
        Verb::Deploy(_)
        | Verb::Status(_)
        | Verb::Endpoint(_)
        | Verb::Machines(_)
        | Verb::Checks(_)
        | Verb::Apps(_)
        | Verb::Orgs(_)
        | Verb::Tokens(_)
        | Verb::Ips(_)
        | Verb::Node(_) => narrow()?.block_on(call(verb, ctx)).map(|()| ExitCode::SUCCESS),
    }
}

/// Verbs that only call the API.
async fn call(verb: Verb, ctx: &Ctx) -> anyhow::Result<()> {
    match verb {
        Verb::Deploy(args) => deploy::run(*args, ctx).await,
        Verb::Status(args) => status::run(args, ctx).await,
        Verb::Endpoint(args) => endpoint::run(args, ctx).await,
        Verb::Machines(command) => machines::run(command, ctx).await,
        Verb::Checks(command) => checks::run(command, ctx).await,
        Verb::Apps(command) => apps::run(command, ctx).await,
        Verb::Orgs(command) => orgs::run(command, ctx).await,
        Verb::Tokens(command) => tokens::run(command, ctx).await,
        Verb::Ips(command) => ips::run(command, ctx).await,
        Verb::Node(command) => node::run(command, ctx).await,
        Verb::Up(_)
        | Verb::Down(_)
        | Verb::Config(_)
        | Verb::Regions
        | Verb::Trace(_)
        | Verb::Explain(_)
        | Verb::Chaos(_) => {
            anyhow::bail!("invariant: this verb is run elsewhere")
        }
    }
}

fn wide() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")
}

fn narrow() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")
}

#[cfg(test)]
mod tests;
