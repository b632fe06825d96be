//! What a measuring program says: one JSON object a line, marked so that it is found between other output.

use serde::{Deserialize, Serialize};

/// What a record's line begins with.
pub const MARK: &str = "record ";

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub enum Record {
    /// Which machine this is.
    Machine {
        /// The kernel's release, as uname tells it.
        release: String,
        /// CPUs that the program may use.
        cpus: u32,
        /// The protocol, where the kernel tells it.
        protocol: Option<String>,
    },
    /// How long a bystander's accesses took while another process did something to the same file.
    Bystander {
        /// What the bystander did.
        access: Access,
        /// What the other process did.
        disturbance: String,
        /// Further processes that had the file mapped and its table attached.
        sharers: u32,
        /// How often the disturbance was done.
        disturbances: u64,
        /// Accesses that overlapped it, which are those measured.
        accesses: u64,
        /// Faults that the bystander took during all its accesses.
        faults: u64,
        /// Their times.
        times: Times,
        /// Upper ends of buckets in nanoseconds, each with its number of accesses; empty ones are left out.
        histogram: Vec<(u64, u64)>,
    },
    /// What an operation cost while so many processes shared the file's table.
    Cost {
        /// The operation.
        operation: Operation,
        /// Processes that had the file mapped and its table attached, the acting one included.
        sharers: u32,
        /// How often it was measured.
        runs: u32,
        /// Nanoseconds: the median and the least.
        median: u64,
        /// As above.
        least: u64,
    },
    /// How a process came to see all present pages of a file.
    Attach {
        /// The case.
        case: AttachCase,
        /// Pages touched.
        pages: u32,
        /// Faults taken.
        faults: u64,
        /// Nanoseconds of mmap and all touches, the median of several processes.
        nanoseconds: u64,
    },
    /// Page-table memory.
    Tables {
        /// Bytes of the file.
        file_bytes: u64,
        /// Pages of it that are there, and were touched by every process.
        pages: u32,
        /// Processes that mapped all of it.
        sharers: u32,
        /// What `PageTables` in /proc/meminfo grew by, in bytes.
        growth: u64,
        /// VmPTE of one of them, in bytes.
        vmpte: u64,
        /// Counters of the kernel's own view of sharing, by name, where it has one.
        counters: Vec<(String, u64)>,
    },
    /// The length of a path, in instructions (under instruction counting) or nanoseconds.
    Path {
        /// What was done.
        path: String,
        /// For each time it was done.
        length: u64,
        /// Faults that were taken for each hundred.
        faults_percent: u64,
    },
    /// Something that a reader of the figures has to know.
    Note {
        /// It.
        text: String,
    },
    /// The last one: how many there were before it.
    End {
        /// As said.
        records: u32,
    },
}

/// What a bystander does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Loads a word of a page that the file has, after MADV_DONTNEED of its mapping.
    Present,
    /// Stores into a page that the file has not.
    Fresh,
}

/// What is paid for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Punching 64 MiB of present pages.
    Punch,
    /// Cutting 64 MiB of present pages off.
    Truncate,
    /// mprotect of the whole mapping.
    Mprotect,
    /// fork, until it returns in the parent.
    Fork,
    /// From fork until the child has touched every page.
    Start,
    /// From the child's exit until it was waited for.
    Exit,
    /// mmap and the touch of every present page.
    Attach,
    /// munmap.
    Detach,
    /// The fault of a load from a page that is there, in a shared mapping whose table is there. Not recorded: a [`Record::Path`] tells it.
    SharedFault,
    /// The same in a private mapping.
    PrivateFault,
    /// A system call that does nothing.
    Call,
    /// A signal to oneself.
    Signal,
    /// mprotect of a page, a store to it, the signal of that, and the mprotect that allows it.
    ProtectionFault,
}

impl Operation {
    /// All, in the order in which they are shown.
    pub const ALL: [Operation; 13] = [
        Operation::Punch,
        Operation::Truncate,
        Operation::Mprotect,
        Operation::Fork,
        Operation::Start,
        Operation::Exit,
        Operation::Attach,
        Operation::Detach,
        Operation::SharedFault,
        Operation::PrivateFault,
        Operation::Call,
        Operation::Signal,
        Operation::ProtectionFault,
    ];

    /// Its name for people.
    pub const fn name(self) -> &'static str {
        match self {
            Operation::Punch => "punching 64 MiB",
            Operation::Truncate => "truncating 64 MiB",
            Operation::Mprotect => "mprotect of 1 GiB",
            Operation::Fork => "fork",
            Operation::Start => "start of a sharer",
            Operation::Exit => "exit of a sharer",
            Operation::Attach => "attach of 1 GiB",
            Operation::Detach => "munmap of 1 GiB",
            Operation::SharedFault => "minor fault, shared mapping",
            Operation::PrivateFault => "minor fault, private mapping",
            Operation::Call => "system call (getppid)",
            Operation::Signal => "signal to oneself",
            Operation::ProtectionFault => "protection fault, its signal, mprotect",
        }
    }

    /// How often it is done between a beginning that is marked and its end.
    pub const fn turns(self) -> u64 {
        match self {
            Operation::SharedFault | Operation::PrivateFault => 63,
            Operation::Call => 1000,
            Operation::Signal => 200,
            Operation::ProtectionFault => 100,
            _ => 1,
        }
    }
}

/// How a file is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttachCase {
    /// A whole 1 GiB slot, as its partner maps it.
    Congruent,
    /// 1 GiB at another distance from the slot's start than the partner's.
    OtherPhase,
    /// 64 MiB of it.
    Part,
    /// A whole slot, private: nothing can be shared.
    Private,
}

/// A distribution in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// 50 in 100 were not longer.
    pub p50: u64,
    /// 99 in 100.
    pub p99: u64,
    /// 999 in 1,000.
    pub p999: u64,
    /// None was longer.
    pub max: u64,
}

impl Record {
    /// The line that says it.
    pub fn line(&self) -> String {
        let json = serde_json::to_string(self).expect("a record is plain data");
        format!("{MARK}{json}\n")
    }

    /// The record in a line, if it is one.
    pub fn parse(line: &str) -> Option<Record> {
        serde_json::from_str(line.trim_end().strip_prefix(MARK)?).ok()
    }
}

/// What every program pays, measured as a [`Record::Path`] of this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basic {
    /// fork(2) of a small process, the child's end, and waiting for it.
    ForkAndExit,
    /// The same with execve(2) of a small static program in between.
    ForkAndExec,
    /// mmap(2) of 1 MiB of a file in memory, a store to each page, munmap(2).
    MapFile,
    /// A store to a page of a file that is in memory but not in the table, for each page.
    FileFault,
    /// A store to a new page of anonymous memory, for each page.
    AnonymousFault,
    /// A store that is forbidden, the signal, mprotect(2) in its handler, and mprotect(2) back.
    ProtectionFault,
    /// A signal to oneself, and its handler.
    Signal,
    /// A byte to another process and back, by two pipes.
    Pipe,
    /// Of that, what is neither writing nor reading, for each direction.
    Switch,
}

impl Basic {
    /// All, in the order in which they are measured and shown.
    pub const ALL: [Basic; 9] = [
        Basic::ForkAndExit,
        Basic::ForkAndExec,
        Basic::MapFile,
        Basic::FileFault,
        Basic::AnonymousFault,
        Basic::ProtectionFault,
        Basic::Signal,
        Basic::Pipe,
        Basic::Switch,
    ];

    /// Its name in records and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Basic::ForkAndExit => "fork, exit and wait",
            Basic::ForkAndExec => "fork, execve, exit and wait",
            Basic::MapFile => "mmap, touch and munmap of 1 MiB",
            Basic::FileFault => "store to a file's page, not in the table",
            Basic::AnonymousFault => "store to a new anonymous page",
            Basic::ProtectionFault => "protection fault, its signal, mprotect",
            Basic::Signal => "signal to oneself",
            Basic::Pipe => "byte to a process and back, by pipes",
            Basic::Switch => "switch of processes",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_its_line() {
        let times = Times { p50: 1, p99: 2, p999: 3, max: 4 };
        for record in [
            Record::Bystander {
                access: Access::Present,
                disturbance: "punch".into(),
                sharers: 16,
                disturbances: 5,
                accesses: 7,
                faults: 0,
                times,
                histogram: vec![(100, 7)],
            },
            Record::Cost { operation: Operation::Punch, sharers: 1, runs: 3, median: 9, least: 8 },
            Record::End { records: 2 },
        ] {
            let line = record.line();
            assert_eq!(line.matches('\n').count(), 1);
            assert_eq!(Record::parse(&line), Some(record.clone()));
            assert_eq!(Record::parse(&line.replace('\n', "\r\n")), Some(record));
        }
    }

    #[test]
    fn other_lines_are_no_records() {
        for line in
            ["", "record", "record {}", "the record {\"record\":\"end\",\"records\":1}", "record {\"rec"]
        {
            assert_eq!(Record::parse(line), None, "{line:?}");
        }
    }
}
