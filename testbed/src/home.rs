//! Where testbeds keep their state: one directory each, with a lock that its daemon holds.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use skein_core::NodeName;
use skein_core::api::ClusterJson;

/// A testbed's name: 1 to 40 lower-case letters, digits and inner dashes; it names a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClusterName(String);

/// Why a text is not a testbed's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cluster name {0:?} is not valid: use 1 to 40 lower-case letters, digits and inner dashes")]
pub struct InvalidName(String);

impl ClusterName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl FromStr for ClusterName {
    type Err = InvalidName;
    fn from_str(value: &str) -> Result<Self, InvalidName> {
        let letters = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let valid = (1..=40).contains(&value.len())
            && value.bytes().all(letters)
            && !value.starts_with('-')
            && !value.ends_with('-');
        if valid { Ok(Self(value.to_owned())) } else { Err(InvalidName(value.chars().take(80).collect())) }
    }
}
impl std::fmt::Display for ClusterName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The directory that holds all testbeds of a user.
#[derive(Debug, Clone)]
pub struct Home(PathBuf);

impl Home {
    /// Testbeds below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    /// The directory of the testbed of that name, whether it exists or not.
    pub fn cluster(&self, name: &ClusterName) -> ClusterDir {
        ClusterDir { name: name.clone(), path: self.0.join(name.as_str()) }
    }
}

/// The directory of one testbed.
#[derive(Debug, Clone)]
pub struct ClusterDir {
    name: ClusterName,
    path: PathBuf,
}

/// Why a testbed's directory can't be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another daemon holds it.
    #[error(
        "cluster {name} is already running{}; end it with `skein down --name {name}`, \
         or give this one another --name",
        pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    Held {
        /// The testbed's name.
        name: ClusterName,
        /// The daemon.
        pid: Option<i32>,
    },
    /// The directory can't be used.
    #[error("use {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Held while the testbed's daemon lives; the kernel gives it up with the process.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "gives the lock up when it is dropped")] Flock<File>);

impl ClusterDir {
    /// The testbed's name.
    pub fn name(&self) -> &ClusterName {
        &self.name
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the description of the running testbed is.
    pub fn cluster_json(&self) -> PathBuf {
        self.path.join("cluster.json")
    }

    /// What a daemon in the background writes to.
    pub fn daemon_log(&self) -> PathBuf {
        self.path.join("daemon.log")
    }

    /// A node's data directory.
    pub fn node(&self, name: &NodeName) -> PathBuf {
        self.path.join("nodes").join(name.as_str())
    }

    /// The nodes that left a directory here.
    pub(crate) fn node_dirs(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path.join("nodes")).into_iter().flatten().flatten();
        let mut dirs: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        dirs.sort_unstable();
        dirs
    }

    fn lock_path(&self) -> PathBuf {
        self.path.join("lock")
    }

    /// Makes the directory, readable by its owner only.
    ///
    /// # Errors
    /// [`LockError::Io`].
    pub fn create(&self) -> Result<(), LockError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.path);
        made.map_err(|source| LockError::Io { path: self.path.clone(), source })
    }

    /// Takes the directory for this process.
    ///
    /// # Errors
    /// [`LockError::Held`] when a daemon has it, [`LockError::Io`] when it can't be used.
    pub fn lock(&self) -> Result<Lock, LockError> {
        let path = self.lock_path();
        let io = |source| LockError::Io { path: self.lock_path(), source };
        // A reader that looks whether the lock is held has it for a moment; a daemon has it for long.
        for _ in 0..10 {
            self.create()?;
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(io)?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(mut lock) => {
                    // An ending daemon removes the file it holds: a lock on that is none.
                    let held = lock.metadata().map_err(io)?.ino();
                    if fs::metadata(&path).is_ok_and(|now| now.ino() == held) {
                        lock.set_len(0).map_err(io)?;
                        lock.rewind().map_err(io)?;
                        writeln!(lock, "{}", std::process::id()).map_err(io)?;
                        return Ok(Lock(lock));
                    }
                }
                Err((_, nix::errno::Errno::EWOULDBLOCK)) => std::thread::sleep(Duration::from_millis(20)),
                Err((_, errno)) => return Err(io(errno.into())),
            }
        }
        Err(LockError::Held { name: self.name.clone(), pid: self.holder().flatten() })
    }

    /// `None` when no daemon holds the directory; else its process, if it has said which.
    pub fn holder(&self) -> Option<Option<i32>> {
        let mut file = File::open(self.lock_path()).ok()?;
        let mut text = String::new();
        // A daemon that has just begun has not written it yet.
        let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_) => None,
            Err(_) => Some(pid),
        }
    }

    /// The description of the testbed, as its daemon last wrote it; `None` when there is none.
    ///
    /// # Errors
    /// When it is there and can't be read.
    pub fn read(&self) -> io::Result<Option<ClusterJson>> {
        match fs::read(self.cluster_json()) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the description, whole or not at all.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) fn write(&self, cluster: &ClusterJson, _held: &Lock) -> io::Result<()> {
        replace(&self.cluster_json(), &serde_json::to_vec_pretty(cluster)?)
    }

    /// Removes what an earlier daemon left when it was killed; its log stays.
    ///
    /// # Errors
    /// When it can't be removed.
    pub fn clear(&self, _held: &Lock) -> io::Result<()> {
        gone(fs::remove_file(self.cluster_json()))?;
        gone(fs::remove_dir_all(self.path.join("nodes")))
    }

    /// Removes the directory; the lock goes last.
    ///
    /// # Errors
    /// When it can't be removed.
    pub fn remove(&self, held: Lock) -> io::Result<()> {
        self.clear(&held)?;
        gone(fs::remove_file(self.daemon_log()))?;
        gone(fs::remove_file(self.lock_path()))?;
        // Another `up` may have begun in it already.
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => gone(Err(error)),
            _ => Ok(()),
        }
    }
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Writes a file that only its owner may read, whole or not at all.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(home: &tempfile::TempDir) -> ClusterDir {
        Home::new(home.path().join("deep")).cluster(&"default".parse().unwrap())
    }

    #[test]
    fn a_second_up_of_a_name_is_refused_with_the_next_step_until_the_first_ends() {
        let home = tempfile::tempdir().unwrap();
        let dir = dir(&home);
        assert_eq!(dir.holder(), None);
        let lock = dir.lock().unwrap();
        assert_eq!(dir.holder(), Some(Some(std::process::id() as i32)));
        let error = dir.lock().unwrap_err().to_string();
        assert!(error.contains("already running") && error.contains("skein down --name default"), "{error}");
        drop(lock);
        assert_eq!(dir.holder(), None);
        dir.lock().unwrap();
    }

    #[test]
    fn removing_leaves_nothing_and_the_name_is_free_again() {
        let home = tempfile::tempdir().unwrap();
        let dir = dir(&home);
        let lock = dir.lock().unwrap();
        fs::create_dir_all(dir.node(&"iad-1".parse().unwrap())).unwrap();
        fs::write(dir.daemon_log(), "x").unwrap();
        dir.remove(lock).unwrap();
        assert!(!dir.path().exists());
        dir.lock().unwrap();
    }

    #[test]
    fn another_name_is_another_lock() {
        let home = tempfile::tempdir().unwrap();
        let _held = dir(&home).lock().unwrap();
        Home::new(home.path().join("deep")).cluster(&"other".parse().unwrap()).lock().unwrap();
    }

    #[test]
    fn a_name_never_leaves_its_directory() {
        for bad in ["", ".", "..", "a/b", "A", "-a", "a-", "a b", &"a".repeat(41)] {
            assert!(bad.parse::<ClusterName>().is_err(), "{bad}");
        }
        assert_eq!("ci-7".parse::<ClusterName>().unwrap().as_str(), "ci-7");
    }
}
