//! `fly.toml`: read with positions, checked as a compiler checks, expanded into Machine
//! configurations (SPEC SVC, `COMPAT` section 4).
//!
//! ```text
//!  bytes ─▶ tree with spans ─▶ AppConfig + every diagnostic ─▶ MachineConfig per process group
//!  toml.rs, json.rs, yaml.rs    tree.rs         read.rs, check.rs                    expand.rs
//! ```
//!
//! Only the first step knows a format. Any bytes give a value or diagnostics, never a panic, in
//! time and memory linear in the input.

mod address;
mod check;
mod diagnostic;
mod expand;
mod item;
mod json;
mod kept;
mod model;
mod read;
mod render;
mod size;
mod toml;
mod tree;
mod words;
mod yaml;

#[cfg(test)]
mod tests;

pub use address::IpType;
pub use diagnostic::{Diagnostic, Severity};
pub use model::{
    AppConfig, Build, Concurrency, Deploy, Experimental, HttpService, Probe, RestartSection, ServiceSection,
    ServiceSettings, TopLevelCheck, VmSection,
};
pub use render::render;
pub use words::{UnbalancedWords, split_words};

use std::ffi::OsStr;
use std::path::Path;

use diagnostic::Report;

/// The longest configuration that is read, in bytes: far beyond any real one.
pub const MAX_BYTES: usize = 1 << 20;

/// The format of a configuration's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `fly.toml`.
    Toml,
    /// `fly.json`.
    Json,
    /// `fly.yaml`.
    Yaml,
}

impl Format {
    /// The format that a file's name says: `.json`, `.yaml` or `.yml`, else TOML.
    pub fn of(path: &Path) -> Self {
        match path.extension().and_then(OsStr::to_str) {
            Some("json") => Self::Json,
            Some("yaml" | "yml") => Self::Yaml,
            _ => Self::Toml,
        }
    }
}

/// What a text was read as.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The configuration; `None` when a diagnostic is an error.
    pub config: Option<AppConfig>,
    /// The app's name as the text says it, also when the rest is invalid (`COMPAT` 4, rule 11).
    pub app: Option<String>,
    /// Everything there is to say, in the order of the text.
    pub diagnostics: Vec<Diagnostic>,
}

impl Loaded {
    /// Whether it can be deployed.
    pub fn is_valid(&self) -> bool {
        self.config.is_some()
    }

    /// The diagnostics of one severity, in the order of the text.
    pub fn of(&self, severity: Severity) -> impl Iterator<Item = &Diagnostic> {
        self.diagnostics.iter().filter(move |diagnostic| diagnostic.severity == severity)
    }
}

/// Reads a configuration: all of its errors at once, each with its place.
pub fn load(text: impl AsRef<[u8]>, format: Format) -> Loaded {
    let bytes = text.as_ref();
    if bytes.len() > MAX_BYTES {
        // How many more is not known to whoever stopped reading there.
        let message = format!(
            "the file has more than {MAX_BYTES} bytes, the most that a configuration has: is this the right file?"
        );
        return Loaded { config: None, app: None, diagnostics: vec![Diagnostic::at_start(message)] };
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let valid = std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
            let mut report = Report::new(valid);
            let end = valid.len();
            report.error(end..end, "", "this byte is not UTF-8 text; save the file as UTF-8".into());
            return Loaded { config: None, app: None, diagnostics: report.finish() };
        }
    };
    let mut report = Report::new(text);
    let root = match format {
        Format::Toml => toml::parse(text, &mut report),
        Format::Json => json::parse(text, &mut report),
        Format::Yaml => yaml::parse(text, &mut report),
    };
    let app = root.text_of("app");
    // A tree recovered from broken syntax would only give errors that follow from the first ones.
    if report.has_errors() {
        return Loaded { config: None, app, diagnostics: report.finish() };
    }
    let (config, places) = read::app(&root, &mut report);
    check::check(&config, &places, &mut report);
    let valid = !report.has_errors();
    Loaded { config: valid.then_some(config), app, diagnostics: report.finish() }
}
