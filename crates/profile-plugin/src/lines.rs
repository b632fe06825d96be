//! Cache lines of the kernel that several CPUs write, in operations that are marked.
//!
//! A line that only one CPU writes stays in its cache. One that several write moves between them, one at a time: that is what an operation
//! costs on a machine with many CPUs beyond its instructions.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use guest_link::profile::{END_OF_ROUND, Mark};

/// The binary logarithm of a cache line's bytes.
const LINE_SHIFT: u32 = 6;

/// A line, as one kind of operation writes it.
#[derive(Default)]
struct Line {
    cpus: BTreeSet<u32>,
    /// Operations in which it is written.
    operations: u64,
    /// The places in the code that are the first to write it in an operation, with how often.
    places: BTreeMap<u64, u64>,
}

/// All operations of one kind.
#[derive(Default)]
struct Operation {
    count: u64,
    lines: BTreeMap<u64, Line>,
}

/// An operation that a CPU is at.
struct Current {
    operation: usize,
    /// The lines that it has written, with the first place.
    lines: BTreeMap<u64, u64>,
}

/// What was seen of a machine so far.
#[derive(Default)]
pub struct Lines {
    current: BTreeMap<u32, Current>,
    operations: BTreeMap<usize, Operation>,
    rounds: u64,
    out: String,
}

impl Lines {
    /// A CPU stores: to a physical address, by an instruction.
    pub fn store(&mut self, cpu: u32, address: u64, place: u64) {
        if let Some(current) = self.current.get_mut(&cpu) {
            current.lines.entry(address >> LINE_SHIFT).or_insert(place);
        }
    }

    /// A CPU meets a mark.
    pub fn mark(&mut self, cpu: u32, mark: Mark) {
        if mark.operation == END_OF_ROUND {
            self.end_round();
        } else if mark.begins {
            self.current.insert(cpu, Current { operation: mark.operation, lines: BTreeMap::new() });
        } else if let Some(current) = self.current.remove(&cpu) {
            let operation = self.operations.entry(current.operation).or_default();
            operation.count += 1;
            for (line, place) in current.lines {
                let line = operation.lines.entry(line).or_default();
                line.cpus.insert(cpu);
                line.operations += 1;
                *line.places.entry(place).or_default() += 1;
            }
        }
    }

    /// Writes a line for each kind of operation, `round`, its number, the round's, and how many there were; and one for each cache line
    /// that several CPUs wrote in it, with the CPUs, the operations, and the place (hexadecimal) that was most often the first.
    fn end_round(&mut self) {
        for (number, operation) in std::mem::take(&mut self.operations) {
            let _ = writeln!(self.out, "round {} {number} {}", self.rounds, operation.count);
            for (address, line) in operation.lines.iter().filter(|(_, line)| line.cpus.len() > 1) {
                let place =
                    line.places.iter().max_by_key(|(_, count)| **count).map_or(0, |(place, _)| *place);
                let _ = writeln!(
                    self.out,
                    "line {:x} {} {} {place:x}",
                    address << LINE_SHIFT,
                    line.cpus.len(),
                    line.operations
                );
            }
        }
        self.current.clear();
        self.rounds += 1;
    }

    /// What was written.
    pub fn lines(&self) -> String {
        self.out.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0x1_0000_0000;

    fn mark(operation: usize, begins: bool) -> Mark {
        Mark { operation, begins }
    }

    /// Lines that two CPUs share when they store to these addresses in one operation each.
    fn shared(addresses: [u64; 2]) -> usize {
        let mut lines = Lines::default();
        for (cpu, address) in (0..).zip(addresses) {
            lines.mark(cpu, mark(2, true));
            lines.store(cpu, address, 1);
            lines.mark(cpu, mark(2, false));
        }
        lines.mark(0, mark(END_OF_ROUND, false));
        lines.lines().lines().filter(|line| line.starts_with("line ")).count()
    }

    #[test]
    fn two_cpus_share_a_line_that_both_write() {
        assert_eq!(shared([BASE, BASE]), 1);
        // Different words of one line: false sharing costs the same.
        assert_eq!(shared([BASE, BASE + 56]), 1);
        assert_eq!(shared([BASE, BASE + 64]), 0);
    }

    #[test]
    fn a_line_of_several_cpus_is_told_with_its_writers() {
        let mut lines = Lines::default();
        for cpu in 0..3 {
            lines.store(cpu, BASE, 1);
            lines.mark(cpu, mark(2, true));
            // Its own, twice; one of all; one of two.
            lines.store(cpu, BASE + 0x1000 * u64::from(cpu), 2);
            lines.store(cpu, BASE + 0x1000 * u64::from(cpu) + 8, 2);
            lines.store(cpu, BASE + 0x8010, 3);
            lines.store(cpu, BASE + 0x8000, 4);
            if cpu > 0 {
                lines.store(cpu, BASE + 0x9000, 5);
            }
        }
        for cpu in 0..3 {
            lines.mark(cpu, mark(2, false));
            lines.store(cpu, BASE + 0xa000, 7);
        }
        assert_eq!(lines.lines(), "");
        lines.mark(0, mark(END_OF_ROUND, false));
        let expected = "round 0 2 3\nline 100008000 3 3 3\nline 100009000 2 2 5\n";
        assert_eq!(lines.lines(), expected);
        lines.mark(0, mark(END_OF_ROUND, false));
        assert_eq!(lines.lines(), expected);
    }
}
