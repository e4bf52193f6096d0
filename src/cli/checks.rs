//! `skein checks`: what the nodes of Machines see when they probe them (SPEC CHK-4).

use clap::Subcommand;
use serde::Serialize;
use skein_core::machine::MachineJson;
use skein_core::{AppName, MachineId, NodeName, RegionCode};

use super::ctx::Ctx;
use super::machines;
use super::out::{self, Table};

/// The longest output of a check in a table; JSON has the whole.
const SHOWN: usize = 80;

/// What to do with checks.
#[derive(Debug, Subcommand)]
pub(crate) enum ChecksCommand {
    /// Lists the checks of Machines, wherever their nodes are
    #[command(visible_alias = "ls")]
    List {
        /// Only of this app
        #[arg(short, long)]
        app: Option<AppName>,
    },
}

/// A check of a Machine.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    app: &'a AppName,
    machine: MachineId,
    region: RegionCode,
    node: Option<&'a NodeName>,
    name: &'a str,
    status: &'a str,
    output: &'a str,
    updated_at: &'a str,
}

/// Runs it.
pub(crate) async fn run(command: ChecksCommand, ctx: &Ctx) -> anyhow::Result<()> {
    let ChecksCommand::List { app } = command;
    let all = machines::gather(&ctx.client()?, app).await?;
    let checks: Vec<Shown<'_>> = all.iter().flat_map(|(app, machine)| of(app, machine)).collect();
    for (_, machine) in all.iter().filter(|(_, machine)| machine.host_status != "ok") {
        out::note(&format!(
            "the node of Machine {} does not answer, so its checks are not known",
            machine.id
        ));
    }
    if ctx.json { out::json(&checks) } else { table(&checks).print() }
}

fn of<'a>(app: &'a AppName, machine: &'a MachineJson) -> impl Iterator<Item = Shown<'a>> {
    machine.checks.iter().map(move |check| Shown {
        app,
        machine: machine.id,
        region: machine.region,
        node: machine.node.as_ref(),
        name: &check.name,
        status: &check.status,
        output: &check.output,
        updated_at: &check.updated_at,
    })
}

fn table(checks: &[Shown<'_>]) -> Table {
    let mut table = Table::new(&["MACHINE", "APP", "REGION", "NAME", "STATUS", "LAST UPDATED", "OUTPUT"]);
    for check in checks {
        table.row([
            check.machine.to_string(),
            check.app.to_string(),
            check.region.to_string(),
            check.name.to_owned(),
            check.status.to_owned(),
            check.updated_at.to_owned(),
            line(check.output),
        ]);
    }
    table
}

/// What an app answered, as one line that a terminal takes for text.
fn line(output: &str) -> String {
    let printable = output.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut line: String = printable.clone().take(SHOWN).collect();
    if printable.count() > SHOWN {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_one_short_line_without_control_characters() {
        assert_eq!(line("200 OK: fine\n"), "200 OK: fine");
        assert_eq!(line("a\x1b[31m\r\nb"), "a [31m  b");
        assert_eq!(line(&"é".repeat(SHOWN + 1)), format!("{}…", "é".repeat(SHOWN)));
    }
}
