//! What the command line prints: data on stdout, messages for people on stderr. Nothing else in the
//! program writes to either.

use std::io::{self, ErrorKind, Write};

use anyhow::Context as _;
use serde::Serialize;

/// Writes a line of data. Somebody who stops reading (`| head`) is no error.
///
/// # Errors
/// When stdout can't be written.
pub fn data(line: &str) -> anyhow::Result<()> {
    finish(writeln!(io::stdout().lock(), "{line}"))
}

/// Writes a value as JSON.
///
/// # Errors
/// When stdout can't be written.
pub fn json(value: &(impl Serialize + ?Sized)) -> anyhow::Result<()> {
    data(&serde_json::to_string_pretty(value).context("write JSON")?)
}

/// Writes a message for people. That stderr is closed is nobody's business.
pub fn note(message: &str) {
    writeln!(io::stderr().lock(), "{message}").unwrap_or_default();
}

/// Writes an error with its causes, one line each.
pub fn error(error: &anyhow::Error) {
    note(&format!("error: {}", chain(error)));
}

fn chain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Some causes repeat what wraps them.
        if !text.ends_with(&cause) {
            text = format!("{text}\n  because: {cause}");
        }
    }
    text
}

fn finish(written: io::Result<()>) -> anyhow::Result<()> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.context("write to stdout"),
    }
}

/// Rows under headings, in columns as wide as their longest cell.
#[derive(Debug, Clone)]
pub struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; a missing cell is empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Whether it has no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The lines, headings first.
    pub fn lines(&self) -> Vec<String> {
        let headings: Vec<String> = self.headings.iter().map(|heading| (*heading).to_owned()).collect();
        let all: Vec<&Vec<String>> = std::iter::once(&headings).chain(&self.rows).collect();
        let cell = |row: &Vec<String>, column: usize| row.get(column).map_or("", String::as_str).to_owned();
        let width = |column| all.iter().map(|row| cell(row, column).chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..headings.len()).map(width).collect();
        let line = |row: &&Vec<String>| {
            let cells =
                widths.iter().enumerate().map(|(column, &width)| format!("{:width$}", cell(row, column)));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        all.iter().map(line).collect()
    }

    /// Writes it as data.
    ///
    /// # Errors
    /// When stdout can't be written.
    pub fn print(&self) -> anyhow::Result<()> {
        data(&self.lines().join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_longest_cell_and_lines_end_without_blanks() {
        let mut table = Table::new(&["NODE", "REGION", "STATE"]);
        table.row(["iad-1", "iad", "alive"]);
        table.row(["a-much-longer-name", "lhr"]);
        assert_eq!(
            table.lines(),
            [
                "NODE                REGION  STATE",
                "iad-1               iad     alive",
                "a-much-longer-name  lhr",
            ]
        );
    }

    #[test]
    fn letters_count_as_people_count_them() {
        let mut table = Table::new(&["CITY", "CODE"]);
        table.row(["São Paulo", "gru"]);
        assert_eq!(table.lines(), ["CITY       CODE", "São Paulo  gru"]);
    }

    #[test]
    fn an_error_is_told_with_its_causes_and_none_twice() {
        let error = anyhow::anyhow!("connection refused").context("call http://127.0.0.1:1/v1/apps");
        assert_eq!(chain(&error), "call http://127.0.0.1:1/v1/apps\n  because: connection refused");
        let repeated = anyhow::anyhow!("refused").context("call: refused");
        assert_eq!(chain(&repeated), "call: refused");
    }
}
