//! What an audit found, as it is shown and serialised.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::advice::pool::Need;
use super::advice::{Advice, Subject};
use super::answer::holders::Account;
use super::answer::limits::Limit;
use super::answer::tables::PageTables;
use super::cost::Cost;
use super::kernel_version::Kernel;
use super::pools::Pool;
use super::slots::{Evidence, Verdict};

/// The form of the JSON output; it grows when a field changes its meaning or goes away.
pub const SCHEMA: u32 = 3;

/// All of it. Sizes are in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// See [`SCHEMA`].
    pub schema: u32,
    /// The kernel and its bugs.
    pub kernel: Kernel,
    /// Bytes of a base page, which is also the size of a page table.
    pub base_page: u64,
    /// Bytes that one shared table maps.
    pub slot: u64,
    /// The pools of huge pages.
    pub pools: Vec<PoolReport>,
    /// What was seen and what was not.
    pub seen: Seen,
    /// Who has the page tables.
    pub page_tables: PageTables,
    /// Limits that are met.
    pub limits: Vec<Limit>,
    /// The estimates beside what the kernel says.
    pub check: Check,
    /// Files on huge pages.
    pub huge: Vec<FileReport>,
    /// Shared memory on base pages that would be better off on huge ones.
    pub base: Vec<FileReport>,
    /// What to do, that with the largest gain first.
    pub advice: Vec<Advice>,
}

/// A pool of huge pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PoolReport {
    /// What the kernel says of it.
    #[serde(flatten)]
    pub pool: Pool,
    /// Who has its pages.
    #[serde(flatten)]
    pub account: Account,
    /// How large it has to be.
    pub need: Need,
}

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// Processes with memory of their own.
    pub processes: u64,
    /// Those whose mappings may not be read.
    pub unreadable: u64,
    /// Those that ended while they were read.
    pub vanished: u64,
    /// Those that map huge or shared pages.
    pub mapping: u64,
    /// Of these, those that were looked into; the others are taken to be as those alike are.
    pub looked_into: u64,
    /// Whether the kernel tells in how many tables a page is.
    pub kpagecount: bool,
    /// Whether this is a PID namespace and not the whole host.
    pub in_container: bool,
    /// Whether /proc hides other users' processes (hidepid).
    pub others_hidden: bool,
    /// Whether this program runs as root.
    pub is_root: bool,
    /// Processes that there was no time to look at.
    pub skipped: u64,
    /// When the audit was made, in seconds since 1970.
    pub at_seconds: u64,
    /// How long it took.
    pub milliseconds: u64,
    /// Files and pieces of files read.
    pub reads: u64,
    /// Bytes read.
    pub bytes_read: u64,
}

impl Seen {
    /// Whether every process could be looked at.
    pub fn is_whole(&self) -> bool {
        self.unreadable == 0 && self.skipped == 0 && !self.in_container && !self.others_hidden
    }
}

/// The estimates beside what the kernel says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Page tables of the processes that were looked into, by their pages.
    pub estimate: u64,
    /// The same by `VmPTE`.
    pub vm_pte: u64,
    /// `VmPTE` of all processes together.
    pub vm_pte_all: u64,
    /// What of it counts shared tables again.
    pub counted_again: u64,
    /// `PageTables` of /proc/meminfo.
    pub page_tables: u64,
}

impl Check {
    /// What `PageTables` should be by the processes' `VmPTE`, less what counts shared tables again.
    pub fn expected_page_tables(&self) -> u64 {
        self.vm_pte_all.saturating_sub(self.counted_again)
    }
}

/// A file.
#[derive(Clone, Debug, Serialize)]
pub struct FileReport {
    /// Its name in an operator's words.
    pub name: String,
    /// The device that it lies on.
    pub device: String,
    /// Its number there.
    pub inode: u64,
    /// The IPC namespace of a SysV segment, whose number is only that namespace's; 0 for other files.
    pub ipc_namespace: u64,
    /// Whether another file has the same name: an older one that is deleted, or one on another mount.
    #[serde(skip)]
    pub is_ambiguous: bool,
    /// Bytes of a page.
    pub page_size: u64,
    /// Bytes from its start to the end of what is mapped.
    pub size: u64,
    /// Processes that map it.
    pub processes: u64,
    /// A few of them.
    pub some_pids: Vec<i32>,
    /// What they are called.
    pub names: BTreeSet<String>,
    /// Their units.
    pub units: BTreeSet<String>,
    /// Mappings of it.
    pub mappings: u64,
    /// Mappings whose process was looked into.
    pub looked_into: u64,
    /// All page tables of the processes that were looked into, of this file or not, in bytes.
    pub of_processes: OfProcesses,
    /// Slots of all its mappings, by what became of them.
    pub slots: BTreeMap<Verdict, u64>,
    /// By what that is backed.
    pub evidence: Evidence,
    /// Flags by which mappings differ that could share otherwise, in the kernel's letters.
    pub differing_flags: BTreeSet<String>,
    /// Page tables, in numbers of tables.
    pub tables: Cost,
    /// Page tables, in bytes.
    pub bytes: Bytes,
    /// Faults of its processes since their start, 0 if not asked for.
    #[serde(skip)]
    pub faults: u64,
    /// How these faults are spread: by process.
    #[serde(skip)]
    pub faults_by_pid: Vec<(i32, u64)>,
}

/// All page tables of some processes, by two ways that should agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OfProcesses {
    /// How many processes.
    pub processes: u64,
    /// By their pages.
    pub estimate: u64,
    /// By their `VmPTE`.
    pub vm_pte: u64,
}

/// [`Cost`] in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Bytes {
    /// As it is.
    pub now: u64,
    /// As it would be if no table were shared.
    pub unshared: u64,
    /// On huge pages, nothing shared.
    pub huge: u64,
    /// The best on this kernel.
    pub best_here: u64,
    /// With tables that the file owns, on huge pages.
    pub best_owned: u64,
    /// With tables that the file owns, on the pages that it has.
    pub owned_as_is: u64,
}

impl FileReport {
    /// Whom an advice about it is about.
    pub fn subject(&self) -> Subject {
        Subject {
            programs: self.names.clone(),
            processes: self.processes,
            some_pids: self.some_pids.clone(),
            units: self.units.clone(),
            file: self.name.clone(),
        }
    }

    /// Slots of a kind.
    pub fn slots(&self, verdict: Verdict) -> u64 {
        self.slots.get(&verdict).copied().unwrap_or(0)
    }

    /// Slots whose table others may use too: shared with them, or the file's.
    pub fn shared_slots(&self) -> u64 {
        self.slots(Verdict::Shared) + self.slots(Verdict::FileOwned)
    }
}
