//! Page-table memory against the number of sharers, as the kernel accounts it.

use std::fs;

use guest_link::record::Record;
use roundtable_programs::huge::{self, GIB, HUGE};
use roundtable_programs::mem::{FIXED, Map, NORESERVE, RW, SHARED, mmap, munmap};
use roundtable_programs::procfs::{self, Meminfo};
use roundtable_programs::sharing;

use crate::crew::Crew;
use crate::stage::{Stage, touch_one};

/// `PageTables`, in bytes.
pub fn table_bytes() -> u64 {
    Meminfo::read().get("PageTables") << 10
}

/// The kernel's own view, where it has one.
fn counters() -> Vec<(String, u64)> {
    let Ok(entries) = fs::read_dir(sharing::DIRECTORY) else { return Vec::new() };
    let mut counters: Vec<(String, u64)> = entries
        .flatten()
        // No counter: whoever reads it has all page tables checked, of thousands of processes here.
        .filter(|entry| entry.file_name() != "check")
        .filter_map(|entry| {
            let value = fs::read_to_string(entry.path()).ok()?.trim().parse().ok()?;
            Some((entry.file_name().into_string().ok()?, value))
        })
        .collect();
    counters.sort();
    counters
}

/// Reports the crew's page tables.
pub fn say(stage: &Stage, crew: &Crew, before: u64, file_bytes: u64, pages: usize, sharers: usize) {
    let growth = table_bytes().saturating_sub(before);
    let vmpte = crew.pids().last().map_or(0, |&pid| procfs::status(pid, "VmPTE") << 10);
    stage.say(&Record::Tables {
        file_bytes,
        pages: pages as u32,
        sharers: sharers as u32,
        growth,
        vmpte,
        counters: counters(),
    });
}

/// A sparse file of 1 TiB with one page in each of its 1,024 slots, all of it mapped by every process.
pub fn tebibyte(stage: &Stage, sharers: &[u32]) -> Result<(), String> {
    const SLOTS: usize = 1024;
    let bytes = SLOTS * GIB;
    let file = huge::file();
    file.truncate(bytes as u64).map_err(|error| format!("ftruncate to 1 TiB: {}", error.desc()))?;
    // Not all at the same place in their slots.
    let offset = |slot: usize| slot * GIB + slot % 512 * HUGE;
    for slot in 0..SLOTS {
        file.fallocate(0, offset(slot) as u64, HUGE as u64)
            .map_err(|error| format!("page {slot} of 1,024: {}", error.desc()))?;
    }
    let before = table_bytes();
    let home = Map::reserve(bytes, GIB);
    let mut crew = Crew::new();
    for &count in sharers {
        // Each of them maps for itself: what this process has mapped a fork would hand on.
        let grown = crew.grow(count as usize, || {
            let flags = SHARED | FIXED | NORESERVE;
            mmap(home.address, bytes, RW, flags, file.raw(), 0).expect("mmap of 1 TiB");
            (0..SLOTS).for_each(|slot| touch_one(home.address + offset(slot)));
        });
        if let Err(message) = grown {
            stage
                .note(&format!("no more than {} sharers of 1 TiB could be started: {message}", crew.count()));
            break;
        }
        say(stage, &crew, before, bytes as u64, SLOTS, count as usize);
    }
    crew.leave()?;
    munmap(home.address, bytes).map_err(|error| format!("munmap of 1 TiB: {}", error.desc()))
}
