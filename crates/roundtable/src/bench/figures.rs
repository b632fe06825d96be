//! Reading figures out of a subject's records.

use guest_link::record::{Access, AttachCase, Operation, Record, Times};

use super::Measured;

/// What a record is about, for the progress line.
pub fn headline(record: &Record) -> String {
    match record {
        Record::Machine { release, .. } => format!("Linux ABI {release}"),
        Record::Bystander { disturbance, sharers, .. } => {
            format!("bystander of {disturbance}, {sharers} sharers")
        }
        Record::Cost { operation, sharers, .. } => {
            format!("cost of {}, {sharers} sharers", operation.name())
        }
        Record::Attach { .. } => "attach".to_string(),
        Record::Tables { sharers, .. } => format!("page tables, {sharers} sharers"),
        Record::Path { path, .. } => path.clone(),
        Record::Note { text } => text.clone(),
        Record::End { .. } => "done".to_string(),
    }
}

/// A bystander's case.
pub struct Case<'a> {
    pub access: Access,
    pub disturbance: &'a str,
    pub sharers: u32,
    pub times: Times,
    pub accesses: u64,
    pub faults: u64,
    pub histogram: &'a [(u64, u64)],
}

fn costs(records: &[Record], wanted: Operation) -> Vec<(u32, u64)> {
    let cost = |record: &Record| match *record {
        Record::Cost { operation, sharers, least, .. } if operation == wanted => Some((sharers, least)),
        _ => None,
    };
    records.iter().filter_map(cost).collect()
}

impl Measured {
    /// The least nanoseconds of an operation, by sharers: what it takes when nothing else has the CPU.
    pub fn costs(&self, wanted: Operation) -> Vec<(u32, u64)> {
        costs(&self.records, wanted)
    }

    /// The instructions of an operation beside so many sharers.
    pub fn counted(&self, wanted: Operation, sharers: u32) -> Option<u64> {
        let all = costs(&self.counted, wanted);
        all.into_iter().find_map(|(with, cost)| (with == sharers).then_some(cost))
    }

    /// As above, for one number of sharers.
    pub fn cost(&self, operation: Operation, sharers: u32) -> Option<u64> {
        self.costs(operation).into_iter().find(|&(count, _)| count == sharers).map(|(_, cost)| cost)
    }

    /// Faults and nanoseconds.
    pub fn attach(&self, wanted: AttachCase) -> Option<(u64, u64)> {
        self.records.iter().find_map(|record| match *record {
            Record::Attach { case, faults, nanoseconds, .. } if case == wanted => Some((faults, nanoseconds)),
            _ => None,
        })
    }

    /// Growth of page tables in bytes by sharers, for a file of this size.
    pub fn tables(&self, bytes: u64) -> Vec<(u32, u64)> {
        let growth = |record: &Record| match *record {
            Record::Tables { file_bytes, sharers, growth, .. } if file_bytes == bytes => {
                Some((sharers, growth))
            }
            _ => None,
        };
        self.records.iter().filter_map(growth).collect()
    }

    /// A path's length in instructions, and how often in a hundred it faulted.
    pub fn path(&self, wanted: &str) -> Option<(u64, u64)> {
        self.records.iter().find_map(|record| match record {
            Record::Path { path, length, faults_percent } if path == wanted => {
                Some((*length, *faults_percent))
            }
            _ => None,
        })
    }

    /// All that bystanders met.
    pub fn cases(&self) -> impl Iterator<Item = Case<'_>> {
        self.records.iter().filter_map(|record| match record {
            Record::Bystander {
                access, disturbance, sharers, accesses, faults, times, histogram, ..
            } => Some(Case {
                access: *access,
                disturbance,
                sharers: *sharers,
                times: *times,
                accesses: *accesses,
                faults: *faults,
                histogram,
            }),
            _ => None,
        })
    }

    /// One of these.
    pub fn case(&self, access: Access, disturbance: &str, sharers: u32) -> Option<Case<'_>> {
        self.cases()
            .find(|case| case.access == access && case.disturbance == disturbance && case.sharers == sharers)
    }

    /// The longest access of a bystander during a disturbance, whatever the number of sharers.
    pub fn longest(&self, access: Access, disturbance: &str) -> Option<u64> {
        let cases = self.cases().filter(|case| case.access == access && case.disturbance == disturbance);
        cases.filter(|case| case.accesses > 0).map(|case| case.times.max).max()
    }
}

/// Nanoseconds for people.
pub fn time(nanoseconds: u64) -> String {
    match nanoseconds {
        0..1_000 => format!("{nanoseconds} ns"),
        1_000..1_000_000 => format!("{:.1} us", nanoseconds as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} ms", nanoseconds as f64 / 1e6),
        _ => format!("{:.2} s", nanoseconds as f64 / 1e9),
    }
}

/// Bytes for people.
pub fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_written_with_a_fitting_unit() {
        assert_eq!(time(999), "999 ns");
        assert_eq!(time(1_500), "1.5 us");
        assert_eq!(time(2_010_000_000), "2.01 s");
        assert_eq!(bytes(43 << 10), "43.0 KiB");
        assert_eq!(bytes(39 << 30), "39.00 GiB");
    }
}
