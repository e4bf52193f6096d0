//! Which cluster a command means (DESIGN section 8).
//!
//! In this order: `--cluster NAME`; `SKEIN_API_URL` with `SKEIN_API_TOKEN`; `FLY_FLAPS_BASE_URL` with
//! `FLY_API_TOKEN`; the only testbed that runs.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use nix::fcntl::{Flock, FlockArg};
use skein_core::api::ClusterJson;

use super::client::{Client, Target};

/// What every command gets.
#[derive(Debug, Clone, Default)]
pub struct Ctx {
    /// Data as JSON.
    pub json: bool,
    /// The testbed that was named.
    pub cluster: Option<String>,
    /// What the environment says.
    pub environment: Environment,
}

/// The part of the environment that the command line reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `SKEIN_HOME`.
    pub skein_home: Option<OsString>,
    /// `XDG_STATE_HOME`.
    pub state_home: Option<OsString>,
    /// `HOME`.
    pub home: Option<OsString>,
    /// `SKEIN_API_URL`, else `FLY_FLAPS_BASE_URL`.
    pub url: Option<String>,
    /// `SKEIN_API_TOKEN`, else `FLY_API_TOKEN`.
    pub token: Option<String>,
}

impl Environment {
    /// Reads it, through `get` as [`std::env::var_os`].
    pub fn read(get: impl Fn(&str) -> Option<OsString>) -> Self {
        let some = |name: &str| get(name).filter(|value| !value.is_empty());
        let text = |name: &str| some(name).and_then(|value| value.into_string().ok());
        Self {
            skein_home: some("SKEIN_HOME"),
            state_home: some("XDG_STATE_HOME"),
            home: some("HOME"),
            url: text("SKEIN_API_URL").or_else(|| text("FLY_FLAPS_BASE_URL")),
            token: text("SKEIN_API_TOKEN").or_else(|| text("FLY_API_TOKEN")),
        }
    }
}

impl Ctx {
    /// Where testbeds keep their state, one directory each.
    ///
    /// # Errors
    /// When neither `SKEIN_HOME`, `XDG_STATE_HOME` nor `HOME` is set.
    pub fn state_root(&self) -> anyhow::Result<PathBuf> {
        let Environment { skein_home, state_home, home, .. } = &self.environment;
        if let Some(dir) = skein_home {
            return Ok(dir.into());
        }
        if let Some(dir) = state_home {
            return Ok(Path::new(dir).join("skein"));
        }
        let home = home.as_ref().context("set SKEIN_HOME: there is no HOME to keep state under")?;
        Ok(Path::new(home).join(".local/state/skein"))
    }

    /// The testbed that `--cluster` names, or the only one that runs.
    ///
    /// # Errors
    /// When there is none, or more than one and none was named.
    pub fn testbed(&self) -> anyhow::Result<ClusterJson> {
        let root = self.state_root()?;
        let running = running(&root)?;
        let name = match (&self.cluster, running.as_slice()) {
            (Some(name), _) if running.contains(name) => name,
            (Some(name), _) => bail!("no cluster {name:?} is running; `skein up --name {name}` starts it"),
            (None, [only]) => only,
            (None, []) => bail!(
                "no cluster is running; start one with `skein up`, or set SKEIN_API_URL and SKEIN_API_TOKEN"
            ),
            (None, many) => {
                bail!("several clusters are running: name one with --cluster ({})", many.join(", "))
            }
        };
        let path = root.join(name).join("cluster.json");
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))
    }

    /// The API that the command means.
    ///
    /// # Errors
    /// As [`Ctx::testbed`]; or when a URL came without a token.
    pub fn target(&self) -> anyhow::Result<Target> {
        if self.cluster.is_none()
            && let Some(url) = &self.environment.url
        {
            let uri = url.trim().parse::<http::Uri>().ok();
            let usable =
                |uri: &http::Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some();
            if !uri.as_ref().is_some_and(usable) {
                bail!("SKEIN_API_URL is no URL: {url:?}; write for example http://127.0.0.1:4280");
            }
            let token = self.environment.token.as_deref();
            let token = token.with_context(|| format!("set SKEIN_API_TOKEN to a token for {url}"))?;
            return Ok(Target::new(url, token));
        }
        let testbed = self.testbed()?;
        Ok(Target::new(&testbed.api.url, &testbed.api.token))
    }

    /// A client of that API.
    ///
    /// # Errors
    /// As [`Ctx::target`].
    pub fn client(&self) -> anyhow::Result<Client> {
        Client::new(self.target()?)
    }
}

/// The testbeds below `root` that run: their daemon holds the lock of their directory.
///
/// # Errors
/// When `root` exists and can't be read.
pub fn running(root: &Path) -> anyhow::Result<Vec<String>> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", root.display())),
    };
    let mut names = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("read {}", root.display()))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(name) = name
            && path.join("cluster.json").exists()
            && is_locked(&path.join("lock"))
        {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn is_locked(path: &Path) -> bool {
    // Shared, so that two commands that look at once do not see each other's look.
    File::open(path).is_ok_and(|file| Flock::lock(file, FlockArg::LockSharedNonblock).is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        Environment::read(|name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        })
    }

    fn ctx(pairs: &[(&str, &str)], cluster: Option<&str>) -> Ctx {
        Ctx { json: false, cluster: cluster.map(str::to_owned), environment: environment(pairs) }
    }

    fn testbed(root: &Path, name: &str) -> Flock<File> {
        let dir = root.join(name);
        fs::create_dir_all(&dir).unwrap();
        let json = serde_json::json!({
            "name": name, "api": {"url": format!("http://{name}:1"), "token": "t"}, "dashboard": null,
            "otlp": {"grpc": "http://127.0.0.1:2", "http": "http://127.0.0.1:3"}, "ca": null,
            "isolation": "portable", "nodes": [],
        });
        fs::write(dir.join("cluster.json"), json.to_string()).unwrap();
        let file = File::create(dir.join("lock")).unwrap();
        Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap()
    }

    #[test]
    fn state_lives_where_the_environment_says() {
        let root = |pairs: &[(&str, &str)]| ctx(pairs, None).state_root();
        assert_eq!(root(&[("SKEIN_HOME", "/s"), ("HOME", "/h")]).unwrap(), Path::new("/s"));
        assert_eq!(root(&[("XDG_STATE_HOME", "/x"), ("HOME", "/h")]).unwrap(), Path::new("/x/skein"));
        assert_eq!(root(&[("HOME", "/h")]).unwrap(), Path::new("/h/.local/state/skein"));
        assert!(root(&[("HOME", "")]).is_err());
    }

    #[test]
    fn the_environment_names_an_api_skeins_own_variables_first() {
        let both =
            [("FLY_FLAPS_BASE_URL", "http://f:1"), ("FLY_API_TOKEN", "ft"), ("SKEIN_API_URL", "http://s:1/")];
        assert_eq!(ctx(&both, None).target().unwrap(), Target::new("http://s:1", "ft"));
        let fly = [("FLY_FLAPS_BASE_URL", "http://f:1"), ("FLY_API_TOKEN", "ft")];
        assert_eq!(ctx(&fly, None).target().unwrap(), Target::new("http://f:1", "ft"));
        let error = ctx(&[("SKEIN_API_URL", "http://s:1")], None).target().unwrap_err().to_string();
        assert!(error.contains("SKEIN_API_TOKEN"), "{error}");
        for wrong in ["notaurl", "127.0.0.1:4280", "ftp://s:1", "http://"] {
            let pairs = [("SKEIN_API_URL", wrong), ("SKEIN_API_TOKEN", "t")];
            let error = ctx(&pairs, None).target().unwrap_err().to_string();
            assert!(error.contains("no URL") && error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn a_testbed_is_found_by_name_or_when_it_is_the_only_one_that_runs() {
        let dir = tempfile::tempdir().unwrap();
        let home = [("SKEIN_HOME", dir.path().to_str().unwrap())];
        let error = ctx(&home, None).target().unwrap_err().to_string();
        assert!(error.contains("skein up"), "{error}");
        let one = testbed(dir.path(), "one");
        assert_eq!(ctx(&home, None).target().unwrap().url, "http://one:1");
        let two = testbed(dir.path(), "two");
        let error = ctx(&home, None).target().unwrap_err().to_string();
        assert!(error.contains("--cluster (one, two)"), "{error}");
        assert_eq!(ctx(&home, Some("two")).target().unwrap().url, "http://two:1");
        drop(one);
        assert_eq!(ctx(&home, None).target().unwrap().url, "http://two:1", "one has ended");
        let error = ctx(&home, Some("one")).target().unwrap_err().to_string();
        assert!(error.contains("skein up --name one"), "{error}");
        drop(two);
    }

    #[test]
    fn a_cluster_that_is_named_wins_over_the_environment() {
        let dir = tempfile::tempdir().unwrap();
        let _running = testbed(dir.path(), "mine");
        let pairs = [
            ("SKEIN_HOME", dir.path().to_str().unwrap()),
            ("SKEIN_API_URL", "http://s:1"),
            ("SKEIN_API_TOKEN", "t"),
        ];
        assert_eq!(ctx(&pairs, Some("mine")).target().unwrap().url, "http://mine:1");
    }
}
