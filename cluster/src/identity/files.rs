//! Small secret files: written whole or not at all, readable by their owner alone.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use data_encoding::BASE64;

/// A file that could not be read or written; the operator or the disk caused it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{action} {path}: {reason}")]
pub struct StoreError {
    /// What was tried.
    pub action: &'static str,
    /// The file.
    pub path: String,
    /// What the operating system said.
    pub reason: String,
}

fn failed(action: &'static str, path: &Path) -> impl Fn(std::io::Error) -> StoreError {
    move |error| StoreError { action, path: path.display().to_string(), reason: error.to_string() }
}

/// The file's bytes; `None` when there is none.
pub(super) fn read(dir: &Path, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    let path = dir.join(name);
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", &path)(error)),
    }
}

/// Replaces the file with mode 0600, durably.
pub(super) fn write(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    fs::create_dir_all(dir).map_err(failed("create", dir))?;
    let (path, draft) = (dir.join(name), dir.join(format!(".{name}.tmp")));
    // A draft that a crash left may have any mode.
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed("replace", &draft)(error)),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .map_err(failed("create", &draft))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed("write", &draft))?;
    fs::rename(&draft, &path).map_err(failed("rename to", &path))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", dir))
}

/// `bytes` as PEM (RFC 7468).
pub(super) fn pem(label: &str, bytes: &[u8]) -> String {
    let base64 = BASE64.encode(bytes);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in base64.as_bytes().chunks(64) {
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
