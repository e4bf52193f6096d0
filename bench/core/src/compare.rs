//! Counts instructions of two builds and judges the difference.

use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use clap::ValueEnum as _;

use crate::work::Work;

/// Compares all pieces of work; whether none of them became dearer than `limit` percent.
///
/// # Errors
/// When valgrind or a build does not run.
#[expect(clippy::print_stdout, reason = "the table is this program's output")]
pub(crate) fn all(base: &Path, limit: f64, works: &[Work], planted: bool) -> anyhow::Result<bool> {
    let own = std::env::current_exe().context("find this program")?;
    let works = if works.is_empty() { Work::value_variants() } else { works };
    let mut cheap = true;
    println!("{:<10} {:>14} {:>14} {:>8}", "", "before", "now", "ratio");
    for work in works {
        let name = work.name();
        let now = each(&own, *work, planted)?;
        let Some(before) = knows(base, &name)?.then(|| each(base, *work, false)).transpose()? else {
            println!("{name:<10} {:>14} {now:>14.0} {:>8}", "-", "new");
            continue;
        };
        let verdict = Verdict::of(before, now, limit);
        println!("{name:<10} {before:>14.0} {now:>14.0} {:>8.3}{}", now / before, verdict.note());
        cheap &= verdict != Verdict::Dearer;
    }
    println!("instructions each, by valgrind's callgrind; more than {limit} % above fails");
    Ok(cheap)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Same,
    Cheaper,
    Dearer,
}

impl Verdict {
    fn of(before: f64, now: f64, limit: f64) -> Self {
        let growth = (now / before - 1.0) * 100.0;
        match growth {
            growth if growth > limit => Self::Dearer,
            growth if growth < -limit => Self::Cheaper,
            _ => Self::Same,
        }
    }

    fn note(self) -> &'static str {
        match self {
            Self::Same => "",
            Self::Cheaper => "  cheaper",
            Self::Dearer => "  DEARER",
        }
    }
}

/// Whether that build has such a piece of work.
fn knows(program: &Path, name: &str) -> anyhow::Result<bool> {
    let tried = Command::new(program).args(["run", name, "1"]).output();
    Ok(tried.with_context(|| format!("run {}", program.display()))?.status.success())
}

/// Instructions of one piece of work.
fn each(program: &Path, work: Work, planted: bool) -> anyhow::Result<f64> {
    let (few, many) = (work.times(), work.times() * 3);
    let less = count(program, &work.name(), few, planted)?;
    let more = count(program, &work.name(), many, planted)?;
    Ok(more.saturating_sub(less) as f64 / (many - few) as f64)
}

fn count(program: &Path, work: &str, times: u64, planted: bool) -> anyhow::Result<u64> {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(program);
    command.args(["run", work, &times.to_string()]).args(planted.then_some("--planted"));
    let output = command.output().context("run valgrind (Debian package valgrind)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{work} failed under valgrind:\n{said}");
    collected(&said).with_context(|| format!("valgrind counted nothing:\n{said}"))
}

/// The total that callgrind prints.
fn collected(said: &str) -> Option<u64> {
    said.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_found_in_what_callgrind_says() {
        let said = "==7== Events    : Ir\n==7== Collected : 251234\n==7==\n";
        assert_eq!(collected(said), Some(251_234));
        assert_eq!(collected("==7== error"), None);
    }

    #[test]
    fn growth_beyond_the_limit_is_dearer() {
        assert_eq!(Verdict::of(100.0, 104.9, 5.0), Verdict::Same);
        assert_eq!(Verdict::of(100.0, 105.2, 5.0), Verdict::Dearer);
        assert_eq!(Verdict::of(100.0, 94.0, 5.0), Verdict::Cheaper);
    }
}
