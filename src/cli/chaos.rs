//! `skein chaos`: faults of a testbed, in words (SPEC CH-1, CH-2).

use std::process::ExitCode;

use anyhow::anyhow;
use clap::{Args, Subcommand};
use http::Method;
use serde_json::json;
use skein_chaos::{ActiveJson, Fault, InjectJson};

use super::client::segment;
use super::ctx::Ctx;
use super::out::{self, Table};

/// Where faults are, in the testbed's API.
const FAULTS: &str = "/skein/v1/testbed/faults";

/// What to do with faults.
#[derive(Debug, Args)]
pub(crate) struct ChaosArgs {
    #[command(subcommand)]
    command: ChaosCommand,
}

#[derive(Debug, Subcommand)]
enum ChaosCommand {
    /// Makes something go wrong
    #[command(after_help = "What can go wrong:\n\
        \x20 kill NODE                        SIGKILL; healed by starting it again\n\
        \x20 pause NODE                       SIGSTOP; healed by SIGCONT\n\
        \x20 restart NODE                     drains, ends and starts it\n\
        \x20 drain NODE                       healed by taking it back into service\n\
        \x20 partition PLACE [PLACE]          nothing passes; without a second place: to everyone\n\
        \x20 latency PLACE PLACE 200ms        each packet takes longer, each way; with --jitter 20ms by up to so much more\n\
        \x20 loss PLACE PLACE 10%             packets are lost\n\
        \x20 duplicate PLACE PLACE 10%        packets arrive twice\n\
        \x20 reorder PLACE PLACE 10%          packets overtake others\n\
        \x20 rate PLACE PLACE 1mbit           the link carries at most so much\n\n\
        PLACE is a node, a region or `everyone`.")]
    Inject(InjectArgs),
    /// Lists active faults
    #[command(visible_alias = "ls")]
    List,
    /// Ends a fault, or all of them
    Heal {
        /// The id that `chaos list` shows, or `all`
        #[arg(default_value = "all")]
        id: String,
    },
}

#[derive(Debug, Args)]
struct InjectArgs {
    /// The fault, for example: latency iad lhr 200ms
    #[arg(required = true, value_name = "WORDS")]
    words: Vec<String>,
    /// Only packets from the first place to the second
    #[arg(long)]
    one_way: bool,
    /// Up to so much more latency, at random
    #[arg(long, value_name = "TIME")]
    jitter: Option<String>,
    /// Heals by itself after this time, for example 10s
    #[arg(long = "for", value_name = "TIME", value_parser = heal_after)]
    heal_after: Option<std::time::Duration>,
}

fn heal_after(text: &str) -> Result<std::time::Duration, String> {
    let time = skein_chaos::duration(text)?;
    if time.as_millis() == 0 { Err("it would heal at once: write 1ms or more".to_owned()) } else { Ok(time) }
}

impl InjectArgs {
    fn inject(self) -> anyhow::Result<InjectJson> {
        let mut words = self.words.join(" ");
        if let Some(jitter) = self.jitter {
            words.push_str(&format!(" --jitter {jitter}"));
        }
        if self.one_way {
            words.push_str(" --one-way");
        }
        let fault: Fault = words.parse().map_err(|error| anyhow!("{error}"))?;
        if matches!(fault, Fault::Restart { .. }) && self.heal_after.is_some() {
            return Err(anyhow!("a restart is over when it is done: leave --for out"));
        }
        Ok(InjectJson { fault, for_ms: self.heal_after.map(|time| time.as_millis() as u64) })
    }
}

/// Runs it.
pub(crate) async fn run(args: ChaosArgs, ctx: &Ctx) -> anyhow::Result<ExitCode> {
    match args.command {
        ChaosCommand::Inject(args) => {
            let inject = args.inject()?;
            let active: ActiveJson = ctx.client()?.post(FAULTS, &inject).await?;
            if ctx.json {
                out::json(&active)?;
            } else if active.active {
                let ActiveJson { id, text, .. } = &active;
                out::note(&format!("{id}: {text}; `skein chaos heal {id}` ends it"));
            } else {
                out::note(&format!("{}: done", active.text));
            }
        }
        ChaosCommand::List => list(ctx).await?,
        ChaosCommand::Heal { id } => {
            let path = if id == "all" { FAULTS.to_owned() } else { format!("{FAULTS}/{}", segment(&id)) };
            let healed: serde_json::Value = ctx.client()?.call(Method::DELETE, &path, None::<&()>).await?;
            let healed: Vec<ActiveJson> = if healed.is_array() {
                serde_json::from_value(healed)?
            } else {
                vec![serde_json::from_value(healed)?]
            };
            if ctx.json {
                return out::json(&healed).map(|()| ExitCode::SUCCESS);
            }
            for fault in &healed {
                out::note(&format!("{} healed: {}", fault.id, fault.text));
            }
            if healed.is_empty() {
                out::note("there was nothing to heal");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(ctx: &Ctx) -> anyhow::Result<()> {
    // Without a cluster there is still a list to show, without faults.
    let client = match ctx.client() {
        Ok(client) => Some(client),
        Err(error) if ctx.cluster.is_some() || ctx.environment.url.is_some() => return Err(error),
        Err(_) => None,
    };
    let faults: Vec<ActiveJson> = match client {
        Some(client) => client.get(FAULTS).await?,
        None => Vec::new(),
    };
    if ctx.json {
        // No scenario is built in.
        return out::json(&json!({ "scenarios": [], "faults": faults }));
    }
    if faults.is_empty() {
        out::note("no fault is active; `skein chaos inject --help` shows what can go wrong");
        return Ok(());
    }
    let mut table = Table::new(&["ID", "FAULT", "HEALS IN"]);
    for fault in faults {
        let heals = fault.heals_in_ms.map(|ms| format!("{:.1} s", ms as f64 / 1e3)).unwrap_or_default();
        table.row([fault.id, fault.text, heals]);
    }
    table.print()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Words {
        #[command(flatten)]
        args: ChaosArgs,
    }

    fn inject(line: &str) -> anyhow::Result<InjectJson> {
        match Words::try_parse_from(line.split(' '))?.args.command {
            ChaosCommand::Inject(args) => args.inject(),
            ChaosCommand::List | ChaosCommand::Heal { .. } => Err(anyhow!("not inject")),
        }
    }

    #[test]
    fn the_command_line_says_faults_as_they_are_written() {
        for (line, text, for_ms) in [
            ("chaos inject kill iad-1", "kill iad-1", None),
            ("chaos inject partition iad lhr --one-way", "partition iad lhr --one-way", None),
            ("chaos inject latency iad lhr 200ms --jitter 20ms", "latency iad lhr 200ms --jitter 20ms", None),
            ("chaos inject loss iad lhr 10%", "loss iad lhr 10%", None),
            ("chaos inject pause nrt-1 --for 10s", "pause nrt-1", Some(10_000)),
        ] {
            let inject = inject(line).unwrap();
            assert_eq!((inject.fault.to_string(), inject.for_ms), (text.to_owned(), for_ms));
        }
    }

    #[test]
    fn what_is_no_fault_is_refused_with_the_form() {
        let error = |line: &str| inject(line).unwrap_err().to_string();
        assert!(error("chaos inject explode iad-1").contains("kill NODE"));
        assert!(error("chaos inject pause nrt-1 --for soon").contains("1.5s"));
        assert!(error("chaos inject pause nrt-1 --for 0s").contains("1ms or more"));
        assert!(error("chaos inject restart nrt-1 --for 10s").contains("--for"));
    }
}
