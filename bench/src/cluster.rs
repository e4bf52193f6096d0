//! A testbed of the program under measurement, driven by its command line and API only.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;
use serde_json::Value;

/// A running testbed; ended when dropped.
pub(crate) struct Cluster {
    skein: PathBuf,
    home: PathBuf,
    name: String,
    /// What `skein up --detach --json` printed.
    pub(crate) json: Value,
}

impl Cluster {
    /// Starts a testbed with those flags of `skein up`.
    pub(crate) fn up(skein: &Path, name: &str, flags: &[&str]) -> anyhow::Result<Self> {
        let home = std::env::temp_dir().join(format!("skein-bench-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&home)?;
        let skein = skein.canonicalize().with_context(|| {
            format!("{} does not exist; build it with `cargo build --release`", skein.display())
        })?;
        let mut cluster = Self { skein, home, name: name.to_owned(), json: Value::Null };
        let mut args = vec!["up", "--name", name, "--detach", "--json"];
        args.extend(flags);
        let output = cluster.run(&args)?;
        cluster.json = serde_json::from_str(&output).context("read what `skein up` printed")?;
        Ok(cluster)
    }

    /// Runs one command of the program against this testbed and gives its standard output.
    pub(crate) fn skein(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut all = vec!["--cluster", self.name.as_str()];
        all.extend(args);
        self.run(&all)
    }

    fn run(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(&self.skein)
            .args(args)
            .env("SKEIN_HOME", &self.home)
            .stdin(Stdio::null())
            .output()
            .context("run skein")?;
        anyhow::ensure!(
            output.status.success(),
            "`skein {}` failed: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The process ids of the nodes.
    pub(crate) fn pids(&self) -> Vec<u64> {
        self.nodes().filter_map(|node| node["pid"].as_u64()).collect()
    }

    /// The nodes, as `skein up` named them.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Value> {
        self.json["nodes"].as_array().into_iter().flatten()
    }

    /// The operator's token.
    pub(crate) fn token(&self) -> &str {
        self.json["api"]["token"].as_str().unwrap_or_default()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.run(&["down", "--name", &self.name]) {
            eprintln!("{error:#}");
        }
        if let Err(error) = std::fs::remove_dir_all(&self.home) {
            eprintln!("remove {}: {error}", self.home.display());
        }
    }
}
