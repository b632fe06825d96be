//! A sparse file of 1 TiB with a page in each of its 1,024 slots, mapped by many: what its tables cost, measured.
//!
//! Ten thousand processes would have 39 GiB of tables of their own for it.

use std::time::{Duration, Instant};

use roundtable_programs::harness::skip;
use roundtable_programs::huge::{self, GIB, HUGE, file, stamp};
use roundtable_programs::leak::Baseline;
use roundtable_programs::mem::{Map, NORESERVE, RW, SHARED};
use roundtable_programs::procfs::Meminfo;
use roundtable_programs::shared::Shared;
use roundtable_programs::sharing::{self, counter};
use roundtable_programs::{sys, tests};

tests! { hundreds: 120, ten_thousand: 900 }

const SLOTS: usize = 1024;
/// Tables of the file: one for each slot, two above them, and a little for the rest.
const MOST_TABLES: u64 = 5 << 20;
/// Memory for the pages, and for ten thousand processes, in kB.
const PAGES_NEED: u64 = (SLOTS * HUGE / 1024) as u64 + (200 << 10);
const PROCESSES_NEED: u64 = 3 << 20;

/// A slow machine takes minutes for ten thousand.
const PATIENCE: Duration = Duration::from_secs(800);

/// Words that parent and children share.
const THERE: usize = 0;
const GO: usize = 1;
const WRONG: usize = 2;
const FAULTS: usize = 3;

fn page_of(slot: usize) -> usize {
    slot * GIB + slot % 512 * HUGE
}

/// Looks at the page of each slot; returns the faults that it took and how many were not what they should be.
fn look(map: &Map) -> (u64, u32) {
    let (before, _) = sys::faults();
    let wrong = (0..SLOTS).filter(|slot| map.get_u64(page_of(*slot)) != stamp(4, *slot)).count();
    (sys::faults().0 - before, wrong as u32)
}

fn hundreds() {
    shared_by(300, PAGES_NEED);
}

fn ten_thousand() {
    shared_by(10_000, PAGES_NEED + PROCESSES_NEED);
}

fn shared_by(processes: u32, needs: u64) {
    if sharing::protocol().as_deref() != Some("file-tables") {
        skip("tables do not belong to files here");
    }
    let free = Meminfo::read().get("MemFree");
    if free < needs {
        skip(&format!("{free} kB of memory are free, {needs} are needed"));
    }
    let before = Baseline::take();
    huge::pool(SLOTS as u64);
    let tables_before = counter("table_bytes");
    let file = file();
    file.truncate((SLOTS * GIB) as u64).unwrap();
    let map = file.map(SLOTS * GIB, RW, SHARED | NORESERVE).unwrap();
    for slot in 0..SLOTS {
        map.set_u64(page_of(slot), stamp(4, slot));
    }
    let own = counter("table_bytes") - tables_before;
    assert!(own <= MOST_TABLES, "{own} bytes of tables for one mapping");

    let control = Shared::new();
    look(&map);
    let page_tables = Meminfo::read().get("PageTables");
    let start = Instant::now();
    let mut children = Vec::with_capacity(processes as usize);
    for _ in 0..processes {
        // SAFETY: this process has one thread, and the child ends by _exit.
        match unsafe { libc::fork() } {
            -1 => break,
            0 => {
                let (faults, wrong) = look(&map);
                control.word(WRONG).fetch_add(wrong, std::sync::atomic::Ordering::SeqCst);
                control.word(FAULTS).fetch_max(faults as u32, std::sync::atomic::Ordering::SeqCst);
                control.add(THERE);
                control.wait_for(GO, 1, PATIENCE);
                // SAFETY: nothing of the parent's runs twice.
                unsafe { libc::_exit(0) }
            }
            pid => children.push(pid),
        }
    }
    let started = children.len() as u32;
    if started == processes {
        assert!(control.wait_for(THERE, processes, PATIENCE), "not all children came up");
    }
    let all_there = start.elapsed();
    let (files, attachments) = (counter("table_bytes") - tables_before, counter("attachments"));
    let own = Meminfo::read().get("PageTables").saturating_sub(page_tables);
    control.set(GO, 1);
    for pid in children {
        roundtable_programs::child::waitpid(pid, 0).unwrap();
    }
    println!(
        "# {started} processes with 1 TiB each, there after {:.1} s, gone after {:.1} s: {} KiB of tables for the file, \
         {attachments} attachments, {} KiB of tables for each process",
        all_there.as_secs_f64(),
        (start.elapsed() - all_there).as_secs_f64(),
        files >> 10,
        own / u64::from(started.max(1)),
    );
    assert_eq!(started, processes, "fork failed");
    assert!(files <= MOST_TABLES, "{files} bytes of tables for the file");
    assert_eq!((control.get(WRONG), control.get(FAULTS)), (0, 0), "wrong pages, most faults");
    // Two stores for each process, of which none has a table of its own for the file.
    assert_eq!(attachments, 2 * u64::from(processes + 1));
    drop((map, file));
    assert_eq!(counter("table_bytes"), tables_before);
    huge::set_pool(0);
    before.check();
}
