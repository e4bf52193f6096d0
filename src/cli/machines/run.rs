//! `skein machine run`: one Machine outside any deploy.

use std::collections::BTreeMap;

use anyhow::Context as _;
use clap::Args;
use skein_core::AppName;
use skein_core::machine::{EXTERNAL_KEY, Init, MachineConfig, MachineJson, Restart, RestartPolicy};
use skein_machine::plan::USER_KEY;

use super::ports::{PortArg, services};
use super::{path, table};
use crate::cli::client::{Client, segment};
use crate::cli::ctx::Ctx;
use crate::cli::deploy::started;
use crate::cli::out;

/// The Machine.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The app; it must exist
    #[arg(short, long)]
    app: AppName,
    /// The region; chosen when it is not given
    #[arg(short, long)]
    region: Option<String>,
    /// A public port: port[:internal port][/tcp[:handler…]]
    #[arg(short, long = "port", value_name = "PORT")]
    ports: Vec<PortArg>,
    /// Its name
    #[arg(long)]
    name: Option<String>,
    /// A variable of its environment
    #[arg(short, long = "env", value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// A pair of its metadata
    #[arg(short, long = "metadata", value_name = "NAME=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,
    /// Who its process runs as: a name, a uid, or uid:gid
    #[arg(long, value_name = "USER", conflicts_with = "external")]
    user: Option<String>,
    /// When its process is started again: no, always or on-failure
    #[arg(long, value_parser = policy)]
    restart: Option<RestartPolicy>,
    /// It is made and not started
    #[arg(long)]
    skip_start: bool,
    /// A server that already runs, at host:port
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "command")]
    external: Option<String>,
    /// The image: skein/hello is the sample app
    #[arg(long, conflicts_with_all = ["command", "external"])]
    image: Option<String>,
    /// The process
    #[arg(last = true, required_unless_present_any = ["external", "image"])]
    command: Vec<String>,
}

/// `NAME=VALUE`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

fn policy(text: &str) -> Result<RestartPolicy, String> {
    match text {
        "no" | "never" => Ok(RestartPolicy::No),
        "always" => Ok(RestartPolicy::Always),
        "on-failure" => Ok(RestartPolicy::OnFailure),
        _ => Err("write no, always or on-failure".to_owned()),
    }
}

impl RunArgs {
    fn config(&self) -> MachineConfig {
        let mut metadata: BTreeMap<_, _> = self.metadata.iter().cloned().collect();
        if let Some(address) = &self.external {
            metadata.insert(EXTERNAL_KEY.to_owned(), address.clone());
        }
        if let Some(user) = &self.user {
            metadata.insert(USER_KEY.to_owned(), user.clone());
        }
        MachineConfig {
            image: self.image.clone().unwrap_or_default(),
            env: self.env.iter().cloned().collect(),
            init: Init { exec: self.command.clone(), ..Init::default() },
            metadata,
            services: services(&self.ports),
            restart: Restart { policy: self.restart, max_retries: None },
            ..MachineConfig::default()
        }
    }
}

pub(super) async fn run(args: RunArgs, client: &Client, ctx: &Ctx) -> anyhow::Result<()> {
    let body = serde_json::json!({
        "name": args.name, "region": args.region, "config": args.config(), "skip_launch": args.skip_start,
    });
    let made: MachineJson =
        client.post(&format!("/v1/apps/{}/machines", segment(args.app.as_str())), &body).await?;
    let path = path(&args.app, &made.id.to_string());
    if !args.skip_start {
        let told = || format!("Machine {} is made and does not run; see its node's log", made.id);
        started(client, &args.app, &made).await.with_context(told)?;
    }
    client.barrier().await?;
    let machine: MachineJson = client.get(&path).await?;
    if ctx.json { out::json(&machine) } else { table(&[(args.app, machine)]).print() }
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

    fn config(line: &[&str]) -> Result<MachineConfig, clap::Error> {
        Line::try_parse_from([&["run", "-a", "shop"], line].concat()).map(|line| line.args.config())
    }

    #[test]
    fn the_command_after_the_dashes_stands_in_init_exec_as_it_was_given() {
        let made = config(&["-p", "80:3000", "-e", "A=b=c", "--", "node", "-e", "x y"]).unwrap();
        assert_eq!(made.init.exec, ["node", "-e", "x y"]);
        assert_eq!(made.env["A"], "b=c");
        assert_eq!(made.services[0].internal_port, 3000);
    }

    #[test]
    fn a_server_that_already_runs_stands_in_the_metadata() {
        let made = config(&["--external", "127.0.0.1:3000", "--port", "80"]).unwrap();
        assert_eq!(made.metadata["skein_external"], "127.0.0.1:3000");
        assert!(config(&["--external", "127.0.0.1:3000", "--", "node"]).is_err());
    }

    #[test]
    fn something_to_run_is_needed() {
        assert!(config(&[]).is_err());
        assert!(config(&["--image", "skein/hello"]).is_ok());
        assert!(config(&["--restart", "sometimes", "--", "x"]).is_err());
        assert!(config(&["-e", "novalue", "--", "x"]).is_err());
    }
}
