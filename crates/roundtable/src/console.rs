//! The console's log: all of it in a file, the last lines at hand.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// How much of the end is kept for messages.
const TAIL: usize = 16 << 10;

/// What a console printed.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    tail: VecDeque<u8>,
}

impl Log {
    /// An empty log in this file; its folder is made when missing.
    pub fn create(path: &Path) -> Result<Log> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        // Another run may still write the file that is there, and keeps it.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| path.display().to_string());
            }
            _ => {}
        }
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(true).open(path);
        let file = file.with_context(|| path.display().to_string())?;
        Ok(Log { path: path.to_path_buf(), file, tail: VecDeque::new() })
    }

    /// Adds what was printed.
    pub fn add(&mut self, bytes: &[u8]) -> Result<()> {
        self.tail.extend(bytes);
        let excess = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..excess);
        self.file.write_all(bytes).with_context(|| self.path.display().to_string())
    }

    /// All that was printed.
    pub fn contents(&mut self) -> Result<Vec<u8>> {
        let mut read = || {
            let mut bytes = Vec::new();
            self.file.seek(SeekFrom::Start(0))?;
            self.file.read_to_end(&mut bytes)?;
            std::io::Result::Ok(bytes)
        };
        read().with_context(|| self.path.display().to_string())
    }

    /// Where the whole log is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last lines, clean for a terminal or a file.
    pub fn last_lines(&self, count: usize) -> String {
        let text = printable(&self.tail.iter().copied().collect::<Vec<_>>());
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }
}

/// The text in a console's output: no control sequences, no carriage returns at line ends, only the last state of
/// a line that was drawn again and again.
pub fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = console::strip_ansi_codes(&text);
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let (line, end) = match line.strip_suffix('\n') {
            Some(line) => (line, "\n"),
            None => (line, ""),
        };
        let line = line.trim_end_matches('\r');
        let last = line.rsplit('\r').find(|part| !part.is_empty()).unwrap_or("");
        out.extend(last.chars().filter(|c| *c == '\t' || !c.is_control()));
        out.push_str(end);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_logs_of_one_name_do_not_mix() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("log");
        let mut first = Log::create(&path).unwrap();
        first.add(b"one").unwrap();
        let mut second = Log::create(&path).unwrap();
        second.add(b"two").unwrap();
        first.add(b", still").unwrap();
        assert_eq!(first.contents().unwrap(), b"one, still");
        assert_eq!(second.contents().unwrap(), b"two");
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
    }

    #[test]
    fn control_sequences_do_not_reach_the_terminal() {
        assert_eq!(printable(b"\x1bc\x1b[?7l\x1b[2Ja\tb\r\n\x1e\x07c"), "a\tb\nc");
        assert_eq!(printable(b"10 %\r20 %\r30 %\r\ndone\r\n"), "30 %\ndone\n");
    }

    #[test]
    fn the_last_lines_are_at_hand_and_all_of_them_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/console.log");
        let mut log = Log::create(&path).unwrap();
        let lines: Vec<_> = (0..5000).map(|number| format!("line {number}")).collect();
        for line in &lines {
            log.add(format!("{line}\r\n").as_bytes()).unwrap();
        }
        assert_eq!(log.last_lines(2), "line 4998\nline 4999");
        assert_eq!(std::fs::read_to_string(path).unwrap().lines().count(), 5000);
    }
}
