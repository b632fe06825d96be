//! What a recording has as text: where a process has pages, and in how many tables the first of each range is.

use std::fmt::Write;

use procfs::process::Process;

use super::collect::{self, Missing};
use super::maps;
use super::pagemap::Range;
use super::source::Source;

/// The name of a process's ranges.
pub const RANGES: &str = "pagemap.txt";
/// A process's mappings could not be read where it was recorded.
pub const DENIED: &str = "denied";

/// The ranges of a process that have pages, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<Recorded>);

/// A range with pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Where it is, and what kind of pages it has.
    pub range: Range,
    /// In how many tables its first page is, where that was to be learnt.
    pub mapcount: Option<u64>,
}

impl Ranges {
    /// Reads a process's; none are recorded of one that ended meanwhile.
    pub fn open(source: &Source, handle: &Process) -> Result<Ranges, Missing> {
        let mut text = Vec::new();
        collect::read(source, handle, RANGES, &mut text)?;
        Ok(Ranges(text.split(|&byte| byte == b'\n').filter_map(parse).collect()))
    }

    /// Adds one behind the others.
    pub fn push(&mut self, recorded: Recorded) {
        self.0.push(recorded);
    }

    /// Those that begin in a part of the address space.
    pub fn within(&self, start: u64, end: u64) -> impl Iterator<Item = Range> {
        self.between(start, end).map(|recorded| recorded.range)
    }

    fn between(&self, start: u64, end: u64) -> impl Iterator<Item = &Recorded> {
        self.0.iter().filter(move |recorded| start <= recorded.range.start && recorded.range.start < end)
    }

    /// The first page in a part of the address space of which it is known, and in how many tables it is.
    pub fn mapcount(&self, start: u64, end: u64) -> Option<(u64, u64)> {
        self.between(start, end).find_map(|recorded| Some((recorded.range.start, recorded.mapcount?)))
    }

    /// One line for each range: `START-END huge|base file|anonymous TABLES`.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for Recorded { range, mapcount } in &self.0 {
            let size = if range.huge { "huge" } else { "base" };
            let kind = if range.file { "file" } else { "anonymous" };
            let count = mapcount.map_or("-".into(), |count| count.to_string());
            let _ = writeln!(out, "{:x}-{:x} {size} {kind} {count}", range.start, range.end);
        }
        out
    }
}

fn parse(line: &[u8]) -> Option<Recorded> {
    let fields: Vec<&str> = std::str::from_utf8(line).ok()?.split(' ').collect();
    let [range, size, kind, count] = fields[..] else { return None };
    let (start, end) = range.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    let range =
        Range { start: address(start)?, end: address(end)?, huge: size == "huge", file: kind == "file" };
    (range.start < range.end).then_some(Recorded { range, mapcount: maps::number(count.as_bytes()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_broken_lines_are_left_out() {
        let range = Range { start: 1 << 30, end: 2 << 30, huge: true, file: true };
        let ranges = Ranges(vec![
            Recorded { range, mapcount: Some(3) },
            Recorded {
                range: Range { start: 2 << 30, end: 3 << 30, huge: false, file: false },
                mapcount: None,
            },
        ]);
        let text = ranges.text() + "x\n5-4 base file 1\n-1 base file 1\n4-5 base\n\u{fffd}";
        assert_eq!(Ranges(text.as_bytes().split(|&byte| byte == b'\n').filter_map(parse).collect()), ranges);
        assert_eq!(ranges.mapcount(0, 4 << 30), Some((1 << 30, 3)));
        assert_eq!(ranges.mapcount(2 << 30, 4 << 30), None, "not known there");
        assert_eq!(ranges.within(0, 2 << 30).count(), 1);
    }
}
