//! Programs from registries, in folders of the test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::cluster::open_to_all;
use crate::support::process::{program, run};

/// How long a registry may take.
const PATIENCE: Duration = Duration::from_secs(180);

/// Copies a Node.js project of this repository into `to` and installs what its lock file names.
pub(crate) fn node_project(from: &str, to: &Path) -> Result<(), String> {
    let npm = program("npm").ok_or("npm is not installed")?;
    program("node").ok_or("node is not installed")?;
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(from);
    fs::create_dir_all(to).unwrap();
    open_to_all(to);
    for entry in fs::read_dir(&from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    let ran = run(Command::new(npm).args(["ci", "--no-audit", "--no-fund"]).current_dir(to), PATIENCE);
    if ran.status.success() { Ok(()) } else { Err(format!("npm ci: {}", ran.stderr)) }
}

/// Packages from PyPI in a virtual environment of their own: its Python.
pub(crate) fn python_packages(packages: &[&str], to: &Path) -> Result<PathBuf, String> {
    // Machines run as nobody, who may not read a Python of somebody's own.
    let system = Some(PathBuf::from("/usr/bin/python3")).filter(|python| python.exists());
    let python = system.or_else(|| program("python3")).ok_or("python3 is not installed")?;
    let ran = run(Command::new(python).args(["-m", "venv"]).arg(to), PATIENCE);
    if !ran.status.success() {
        return Err(format!("python3 -m venv: {}{}", ran.stdout, ran.stderr));
    }
    let mut install = Command::new(to.join("bin/pip"));
    let ran = run(install.args(["install", "--quiet", "--only-binary", ":all:"]).args(packages), PATIENCE);
    if !ran.status.success() {
        return Err(format!("pip install {packages:?}: {}", ran.stderr));
    }
    Ok(to.join("bin/python"))
}

/// A program of `tests/acceptance/python` where Machines can read it.
pub(crate) fn python_program(name: &str, to: &Path) -> PathBuf {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/acceptance/python").join(name);
    let copy = to.join(name);
    fs::copy(program, &copy).unwrap();
    open_to_all(&copy);
    copy
}

/// A package from PyPI in a virtual environment of its own: the folder of its module.
pub(crate) fn python_package(package: &str, module: &str, to: &Path) -> Result<PathBuf, String> {
    python_packages(&[package], to)?;
    let versions = fs::read_dir(to.join("lib")).unwrap();
    let found = versions.map(|entry| entry.unwrap().path().join("site-packages").join(module));
    found.into_iter().find(|folder| folder.is_dir()).ok_or(format!("{package} brought no module {module}"))
}
