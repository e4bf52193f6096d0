//! `skein config`: reads a `fly.toml` without any cluster.

use std::fs::File;
use std::io::Read as _;
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
        /// The configuration of this process group's Machines instead, as JSON
        #[arg(long, value_name = "GROUP")]
        machine: Option<ProcessGroup>,
        /// As TOML, which is what people get without --json
        #[arg(long, conflicts_with_all = ["machine", "json"])]
        toml: bool,
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
        ConfigCommand::Show { file: FileArg { config }, machine, toml: _ } => {
            let app = valid(&config)?;
            match machine {
                Some(group) => match app.machine(&group) {
                    Some(machine) => out::json(&machine)?,
                    None => bail!("there is no process group {group}; there are {}", names(&app)),
                },
                None if ctx.json => out::json(&app)?,
                None => out::data(toml::to_string(&app).context("write it as TOML")?.trim_end())?,
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
    let reading = || format!("read {}; -c names another file", path.display());
    let mut bytes = Vec::new();
    // One byte more than is taken tells a file that is too long, however long it is.
    let most = config::MAX_BYTES as u64 + 1;
    File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes)).with_context(reading)?;
    let loaded = config::load(&bytes, Format::of(path));
    if !loaded.diagnostics.is_empty() {
        let text = String::from_utf8_lossy(&bytes);
        let page = config::render(&path.display().to_string(), &text, &loaded.diagnostics);
        out::note(page.trim_end());
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

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    /// SPEC SVC-1.
    #[test]
    fn the_files_name_says_its_format_and_all_mean_the_same() {
        let (_a, toml) = file("fly.toml", "app = \"web\"\n[http_service]\ninternal_port = 8080\n");
        let (_b, json) = file("fly.json", r#"{"app": "web", "http_service": {"internal_port": 8080}}"#);
        let (_c, yaml) = file("fly.yaml", "app: web\nhttp_service:\n  internal_port: 8080\n");
        let expected = valid(&toml).unwrap();
        assert_eq!(valid(&json).unwrap(), expected);
        assert_eq!(valid(&yaml).unwrap(), expected);
    }

    #[test]
    fn a_file_of_any_length_is_read_no_further_than_it_counts() {
        let (_dir, path) = file("fly.toml", &"#".repeat(3 * config::MAX_BYTES));
        let loaded = load(&path).unwrap();
        assert!(!loaded.is_valid());
        let said = &loaded.diagnostics[0].message;
        assert!(said.starts_with(&format!("the file has more than {} bytes", config::MAX_BYTES)), "{said}");
    }
}
