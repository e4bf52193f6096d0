//! What Machines write (SPEC RUN-6): to the log, and the last of it in memory.

use std::collections::VecDeque;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use skein_cluster::clock;
use skein_core::{AppName, MachineId, RegionCode};

use crate::init::protocol::Output;

/// Lines kept in memory per Machine.
pub const KEPT_LINES: usize = 1_000;
/// The longest line; longer ones are cut into several.
pub(crate) const MAX_LINE: usize = 8 << 10;

/// Lines of standard error that tell why a process ended.
const LAST_LINES: usize = 2;
/// The most of them, in characters.
const LAST_CHARS: usize = 300;

/// A line that a Machine wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Milliseconds since 1970, when the node read it.
    pub at_ms: u64,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// The line without its end; bytes that are no UTF-8 are replaced.
    pub line: String,
}

/// The log of one Machine.
#[derive(Debug)]
pub(crate) struct MachineLog {
    app: AppName,
    machine: MachineId,
    region: RegionCode,
    lines: Mutex<VecDeque<LogLine>>,
}

impl MachineLog {
    pub(crate) fn new(app: AppName, machine: MachineId, region: RegionCode) -> Self {
        Self { app, machine, region, lines: Mutex::new(VecDeque::new()) }
    }

    /// The last lines, oldest first.
    pub(crate) fn lines(&self) -> Vec<LogLine> {
        self.with(|lines| lines.iter().cloned().collect())
    }

    /// A writer for one run's streams.
    pub(crate) fn writer(&self) -> Writer<'_> {
        Writer { log: self, partial: Default::default(), last: VecDeque::new() }
    }

    fn line(&self, output: Output, bytes: &[u8]) {
        let line = String::from_utf8_lossy(bytes.strip_suffix(b"\r").unwrap_or(bytes)).into_owned();
        let stream = match output {
            Output::Stdout => "stdout",
            Output::Stderr => "stderr",
        };
        tracing::info!(
            target: "machine", app = %self.app, machine = %self.machine, region = %self.region, stream, "{line}"
        );
        let line = LogLine { at_ms: clock::unix_ms(), stream: stream.to_owned(), line };
        self.with(|lines| {
            if lines.len() == KEPT_LINES {
                lines.pop_front();
            }
            lines.push_back(line);
        });
    }

    /// The one place that locks: for the time of a push or a copy.
    fn with<T>(&self, work: impl FnOnce(&mut VecDeque<LogLine>) -> T) -> T {
        work(&mut self.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

/// Cuts streams into lines.
pub(crate) struct Writer<'a> {
    log: &'a MachineLog,
    partial: [Vec<u8>; 2],
    /// The last lines of standard error that say something.
    last: VecDeque<String>,
}

impl Writer<'_> {
    pub(crate) fn write(&mut self, output: Output, mut bytes: &[u8]) {
        let partial = &mut self.partial[output as usize];
        while !bytes.is_empty() {
            let room = MAX_LINE - partial.len();
            let piece = &bytes[..bytes.len().min(room)];
            match piece.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    partial.extend_from_slice(&piece[..end]);
                    bytes = &bytes[end + 1..];
                    self.log.line(output, partial);
                    note(&mut self.last, output, partial);
                    partial.clear();
                }
                None => {
                    partial.extend_from_slice(piece);
                    bytes = &bytes[piece.len()..];
                    if partial.len() == MAX_LINE {
                        self.log.line(output, partial);
                        note(&mut self.last, output, partial);
                        partial.clear();
                    }
                }
            }
        }
    }
}

impl Writer<'_> {
    /// The process is gone; what it wrote last to its standard error, as one line. May be empty.
    pub(crate) fn end(mut self) -> String {
        self.flush();
        let mut said = String::new();
        for line in self.last.iter().rev() {
            let more = if said.is_empty() { line.clone() } else { format!("{line} / {said}") };
            if more.chars().count() > LAST_CHARS {
                if said.is_empty() {
                    said = more.chars().take(LAST_CHARS - 1).chain(['…']).collect();
                }
                break;
            }
            said = more;
        }
        said
    }

    /// Lines without an end are lines too once the process is gone.
    fn flush(&mut self) {
        for output in [Output::Stdout, Output::Stderr] {
            let rest = std::mem::take(&mut self.partial[output as usize]);
            if !rest.is_empty() {
                self.log.line(output, &rest);
                note(&mut self.last, output, &rest);
            }
        }
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Keeps a line for [`Writer::end`]; control characters would act on a terminal that shows it.
fn note(last: &mut VecDeque<String>, output: Output, line: &[u8]) {
    if output == Output::Stdout {
        return;
    }
    let line = String::from_utf8_lossy(line).replace(char::is_control, " ");
    let line = line.trim();
    if line.is_empty() {
        return;
    }
    if last.len() == LAST_LINES {
        last.pop_front();
    }
    last.push_back(line.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn log() -> MachineLog {
        MachineLog::new("a".parse().unwrap(), MachineId::from_bits(1), "iad".parse().unwrap())
    }

    fn texts(log: &MachineLog) -> Vec<String> {
        log.lines().into_iter().map(|line| line.line).collect()
    }

    #[test]
    fn a_long_line_is_cut_and_the_oldest_lines_go() {
        let log = log();
        log.writer().write(Output::Stdout, &vec![b'x'; MAX_LINE * 2 + 1]);
        assert_eq!(texts(&log).iter().map(String::len).collect::<Vec<_>>(), [MAX_LINE, MAX_LINE, 1]);
        let mut writer = log.writer();
        for number in 0..KEPT_LINES {
            writer.write(Output::Stderr, format!("{number}\n").as_bytes());
        }
        let lines = log.lines();
        assert_eq!(lines.len(), KEPT_LINES);
        assert_eq!((lines[0].line.as_str(), lines[0].stream.as_str()), ("0", "stderr"));
    }

    #[test]
    fn what_was_written_last_to_standard_error_is_short_and_safe_to_show() {
        let said = |bytes: &[u8]| {
            let log = log();
            let mut writer = log.writer();
            writer.write(Output::Stderr, bytes);
            writer.write(Output::Stdout, b"elsewhere\n");
            writer.end()
        };
        assert_eq!(said(b""), "");
        assert_eq!(said(b"one\n two \n\n\x1b[31mthree\r\n\n"), "two / [31mthree");
        let long = [&b"first\n"[..], &[b'x'; LAST_CHARS * 2]].concat();
        assert_eq!(said(&long), "x".repeat(LAST_CHARS - 1) + "…");
        let fits = [&b"first\n"[..], &[b'x'; LAST_CHARS]].concat();
        assert_eq!(said(&fits), "x".repeat(LAST_CHARS));
    }

    proptest! {
        #[test]
        fn lines_are_the_same_however_the_bytes_arrive(
            lines in proptest::collection::vec("[a-z]{0,9}", 1..8), cut in 1usize..7,
        ) {
            let log = log();
            let text = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
            let mut writer = log.writer();
            for piece in text.as_bytes().chunks(cut) { writer.write(Output::Stdout, piece); }
            prop_assert_eq!(texts(&log), lines);
        }
    }
}
