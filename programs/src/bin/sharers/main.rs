//! The demonstration: many processes share one huge file, and its page table.
//!
//! One file on hugetlbfs is filled with stamps. Then many processes map it, touch and verify every page, and stay until
//! all of them have. What that costs is measured: page tables, faults, time. Exit status 0 only when every process saw
//! the right data and the pool's counters are back where they were.

mod options;
mod progress;
mod report;
mod sharer;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use roundtable_programs::child::End;
use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, Counters, HUGE, MAGIC};
use roundtable_programs::mem::{Map, RW, SHARED};
use roundtable_programs::procfs::{self, Meminfo};
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{pid, settles};

use options::Options;
use progress::Progress;
use report::Report;
use sharer::{Crew, Kind, stamp_pages};

/// Processes that map without sharing, to see what each of them costs.
const UNSHARED_SAMPLE: usize = 16;
/// Of more processes than this, as many are asked for their VmPTE.
const VMPTE_SAMPLE: usize = 200;
/// What page tables may differ by at the end, in kB: those of processes that have nothing to do with us.
const TABLE_TOLERANCE: u64 = 256;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("sharers: {message}\n{}", options::USAGE);
            return 2.into();
        }
    };
    match run(&options) {
        Ok(()) => 0.into(),
        Err(message) => {
            println!();
            eprintln!("sharers: {message}");
            1.into()
        }
    }
}

/// What the machine says at one moment.
#[derive(Clone, Copy)]
pub struct Snapshot {
    pub pool: Counters,
    pub free_kb: u64,
    pub tables_kb: u64,
}

impl Snapshot {
    fn take() -> Snapshot {
        let meminfo = Meminfo::read();
        Snapshot {
            pool: huge::counters(),
            free_kb: meminfo.get("MemFree"),
            tables_kb: meminfo.get("PageTables"),
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    let pages = options.bytes.div_ceil(HUGE);
    let persistent = procfs::number("/proc/sys/vm/nr_hugepages");
    let before = Snapshot::take();
    let missing = (pages as u64).saturating_sub(before.pool.free - before.pool.reserved);
    if missing > 0 && huge::set_pool(persistent + missing) < persistent + missing {
        let got = huge::counters().total;
        huge::set_pool(persistent);
        return Err(format!("there is no memory for {missing} more huge pages (the pool got to {got})"));
    }
    let result = share(options, pages, before);
    huge::set_pool(persistent);
    let mut report = result?;
    // What the kernel frees after a process has been waited for comes a moment later.
    settles(Duration::from_secs(10), || {
        let now = Snapshot::take();
        now.pool == before.pool && now.tables_kb <= before.tables_kb + TABLE_TOLERANCE
    });
    report.after = Snapshot::take();
    report.print();
    if report.after.pool != before.pool {
        return Err(format!("the pool is not as before: {:?}, then {:?}", before.pool, report.after.pool));
    }
    if report.after.tables_kb > before.tables_kb + TABLE_TOLERANCE {
        return Err("page tables were not freed".to_string());
    }
    Ok(())
}

fn share(options: &Options, pages: usize, before: Snapshot) -> Result<Report, String> {
    let length = pages * HUGE;
    let path = format!("{}/sharers-{}", options.mount, pid());
    let file = Fd::open(&path, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL)
        .map_err(|error| format!("{path}: {}", error.desc()))?;
    std::fs::remove_file(&path).map_err(|error| format!("{path}: {error}"))?;
    let system = file.statfs();
    if system.f_type != MAGIC || system.f_bsize != HUGE as i64 {
        return Err(format!("{} is no hugetlbfs with pages of 2 MiB", options.mount));
    }
    file.truncate(length as u64).map_err(|error| format!("ftruncate: {}", error.desc()))?;
    let start = Instant::now();
    {
        let map: Map = file.map(length, RW, SHARED).map_err(|error| format!("mmap: {}", error.desc()))?;
        stamp_pages(&map, pages);
    }
    println!(
        "One file of {} ({pages} huge pages), filled in {:.0} ms. Starting {} processes.",
        report::size(length as u64),
        start.elapsed().as_secs_f64() * 1e3,
        options.processes
    );
    // Nothing of an unshared mapping may be left when the sharers are measured, so these come first.
    let unshared = gather(&file, pages, Kind::Unshared, options.processes.min(UNSHARED_SAMPLE))?;
    let shared = gather(&file, pages, Kind::Shared, options.processes)?;
    Ok(Report { processes: options.processes, length, before, unshared, shared, after: before })
}

/// What a crowd of processes came to.
pub struct Gathering {
    pub processes: usize,
    /// While all were there.
    pub during: Snapshot,
    /// What page tables grew by, in kB.
    pub tables_kb: u64,
    /// Median VmPTE in kB, and of how many processes.
    pub vmpte_kb: u64,
    pub vmpte_of: usize,
    /// Sorted.
    pub faults: Vec<u64>,
    /// Sorted; nanoseconds to map, touch and verify.
    pub times: Vec<u64>,
    pub start: Duration,
    pub end: Duration,
}

/// Starts processes, waits until all have touched all pages, looks, and lets them go.
fn gather(file: &Fd, pages: usize, kind: Kind, count: usize) -> Result<Gathering, String> {
    let control = Shared::new();
    let crew = Crew::new(count);
    let before = Snapshot::take();
    let mut progress = Progress::new(kind == Kind::Shared, count);
    let start = Instant::now();
    let mut pids = Vec::with_capacity(count);
    let mut result = Ok(());
    for index in 0..count {
        match crew.start(index, file, pages, kind, &control) {
            Ok(pid) => pids.push(pid),
            Err(error) => {
                result = Err(format!("fork of process {}: {}", index + 1, error.desc()));
                break;
            }
        }
        progress.show("attached", control.get(sharer::READY) as usize);
    }
    while result.is_ok() && !control.wait_for(sharer::READY, count as u32, progress.interval()) {
        progress.show("attached", control.get(sharer::READY) as usize);
        if let Ok((pid @ 1.., end)) = roundtable_programs::child::waitpid(-1, libc::WNOHANG) {
            pids.retain(|&other| other != pid);
            result = Err(format!("process {pid} ended before its time: {end:?}"));
        }
    }
    let start = start.elapsed();
    progress.show("attached", control.get(sharer::READY) as usize);
    let during = Snapshot::take();
    let step = (pids.len() / VMPTE_SAMPLE).max(1);
    let mut vmpte: Vec<u64> = pids.iter().step_by(step).map(|&pid| procfs::status(pid, "VmPTE")).collect();
    vmpte.sort_unstable();

    let leave = Instant::now();
    control.set(sharer::GO, 1);
    for (ended, &pid) in pids.iter().enumerate() {
        match roundtable_programs::child::waitpid(pid, 0) {
            Ok((_, End::Code(0))) => {}
            Ok((_, end)) => result = result.and(Err(format!("process {pid} ended: {end:?}"))),
            Err(error) => result = result.and(Err(format!("waitpid: {}", error.desc()))),
        }
        progress.show("gone", ended + 1);
    }
    let end = leave.elapsed();
    progress.finish();
    result?;
    crew.verify()?;
    let (faults, times) = crew.measurements();
    Ok(Gathering {
        processes: count,
        during,
        tables_kb: during.tables_kb.saturating_sub(before.tables_kb),
        vmpte_kb: vmpte[vmpte.len() / 2],
        vmpte_of: vmpte.len(),
        faults,
        times,
        start,
        end,
    })
}
