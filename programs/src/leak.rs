//! Whether the machine's counters return to where they were.

use std::time::Duration;

use crate::huge::{self, Counters};
use crate::procfs::{self, Meminfo};
use crate::sys::{is_linux, settles};

/// What free memory may differ by, in kB. Ours gives all back. Linux keeps pages of what it has freed in its slabs and
/// per-CPU lists (measured on 6.12: 13 MiB after 3,000 forks, 22 MiB after five stacks of 8 MiB), so there only large
/// leaks show.
fn free_tolerance() -> u64 {
    if is_linux() { 32 << 10 } else { 4 << 10 }
}

/// What page tables may differ by, in kB: those of processes that have nothing to do with us.
pub const TABLE_TOLERANCE: u64 = 512;

#[derive(Clone, Copy, Debug)]
pub struct Baseline {
    pub pool: Counters,
    pub free_kb: u64,
    pub tables_kb: u64,
    pub processes: usize,
}

/// Processes that run a program: kernel threads come and go.
fn processes() -> usize {
    std::fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()))
        .filter(|entry| std::fs::read_link(entry.path().join("exe")).is_ok())
        .count()
}

impl Baseline {
    pub fn take() -> Baseline {
        let meminfo = Meminfo::read();
        Baseline {
            pool: huge::counters(),
            free_kb: meminfo.get("MemFree"),
            tables_kb: meminfo.get("PageTables"),
            processes: processes(),
        }
    }

    fn returned(&self, now: &Baseline) -> bool {
        now.pool == self.pool
            && now.processes <= self.processes
            && now.tables_kb <= self.tables_kb + TABLE_TOLERANCE
            && now.free_kb + free_tolerance() >= self.free_kb
    }

    /// Expects all to be as it was, after a moment in which the kernel frees what it has to.
    #[track_caller]
    pub fn check(&self) {
        if let Some(leak) = self.leak() {
            panic!("{leak}");
        }
    }

    /// What did not return, after such a moment.
    pub fn leak(&self) -> Option<String> {
        settles(Duration::from_secs(10), || self.returned(&Baseline::take()));
        // What may be dropped is no leak.
        if Meminfo::read().get("MemFree") + free_tolerance() < self.free_kb {
            let _ = procfs::write("/proc/sys/vm/drop_caches", 3);
        }
        let now = Baseline::take();
        (!self.returned(&now)).then(|| format!("something leaked: {self:?}, then {now:?}"))
    }
}
