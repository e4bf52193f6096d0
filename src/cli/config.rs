//! `skein config`: reads a `fly.toml` without any cluster.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde::Serialize;
use skein_core::ProcessGroup;
use skein_core::config::{self, AppConfig, Diagnostic, Format, Loaded, Severity};

use super::ctx::Ctx;
use super::out;

/// Which file.
#[derive(Debug, Args)]
pub(crate) struct FileArg {
    /// The configuration
    #[arg(short, long, default_value = "fly.toml")]
    config: PathBuf,
}

/// What to do with a configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Says what is wrong with a configuration
    Validate(FileArg),
    /// Shows how a configuration is understood
    Show {
        #[command(flatten)]
        file: FileArg,
        /// The configuration of this process group's Machines instead
        #[arg(long, value_name = "GROUP")]
        machine: Option<ProcessGroup>,
    },
}

#[derive(Debug, Serialize)]
struct Verdict<'a> {
    valid: bool,
    app: Option<&'a str>,
    diagnostics: &'a [Diagnostic],
}

/// Runs it.
pub(crate) fn run(command: ConfigCommand, ctx: &Ctx) -> anyhow::Result<ExitCode> {
    match command {
        ConfigCommand::Validate(FileArg { config }) => {
            let loaded = load(&config)?;
            if ctx.json {
                let Loaded { app, diagnostics, .. } = &loaded;
                let valid = loaded.is_valid();
                out::json(&Verdict { valid, app: app.as_deref(), diagnostics })?;
            }
            if !loaded.is_valid() {
                return Ok(ExitCode::FAILURE);
            }
            out::note(&format!("{} is valid", config.display()));
            Ok(ExitCode::SUCCESS)
        }
        ConfigCommand::Show { file: FileArg { config }, machine } => {
            let app = valid(&config)?;
            match machine {
                Some(group) => match app.machine(&group) {
                    Some(machine) => out::json(&machine)?,
                    None => bail!("there is no process group {group}; there are {}", names(&app)),
                },
                None => out::json(&app)?,
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn names(app: &AppConfig) -> String {
    app.groups().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Reads a file and says on stderr what there is to say about it.
///
/// # Errors
/// When the file can't be read.
fn load(path: &Path) -> anyhow::Result<Loaded> {
    if let Some(other @ ("json" | "yaml" | "yml")) = path.extension().and_then(|ext| ext.to_str()) {
        bail!("{}: {other} is not read by this version; write it as TOML", path.display());
    }
    let bytes = fs::read(path).with_context(|| format!("read {}; -c names another file", path.display()))?;
    let loaded = config::load(&bytes, Format::Toml);
    let text = String::from_utf8_lossy(&bytes);
    let file = path.display().to_string();
    for diagnostic in &loaded.diagnostics {
        out::note(&diagnostic.render(&file, &text));
    }
    Ok(loaded)
}

/// Reads a file that must be valid.
///
/// # Errors
/// When it can't be read or is not valid; what is wrong was said on stderr.
pub(crate) fn valid(path: &Path) -> anyhow::Result<AppConfig> {
    let loaded = load(path)?;
    let errors = loaded.of(Severity::Error).count();
    loaded.config.with_context(|| format!("{} has {errors} error(s), see above", path.display()))
}
