//! The demonstration: many processes share one huge file, and its page table.
//!
//! One file on hugetlbfs is filled with stamps. Then many processes map it; when all have, they touch and verify every
//! page, and stay until all have done that, too. As many do the same without sharing. What that costs is measured: page
//! tables, faults, time. Exit status 0 only when every process saw the right data, the figures are what the kernel's
//! protocol promises, and the pool's counters are back where they were. With `--base-pages` the same of memory with
//! base pages.

mod base;
mod memory;
mod options;
mod progress;
mod report;
mod sharer;
mod verdict;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use roundtable_programs::child::End;
use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, Counters, GIB, HUGE, MAGIC};
use roundtable_programs::mem::{Map, RW, SHARED};
use roundtable_programs::procfs::{self, Meminfo};
use roundtable_programs::shared::Shared;
use roundtable_programs::sharing;
use roundtable_programs::sys::{pid, settles};

use memory::{Kind, Memory};
use options::Options;
use progress::Progress;
use report::Report;
use sharer::{Crew, Measurements, stamp_pages};
use verdict::{Crowd, contradiction};

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
    let result = if options.base_pages { base::run(&options) } else { run(&options) };
    match result {
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
    /// Of the kernel's shared tables, where it tells.
    pub sharing: Option<Sharing>,
}

/// The kernel's counters of shared tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sharing {
    pub tables: u64,
    pub attachments: u64,
    pub table_bytes: u64,
    pub saved_bytes: u64,
}

impl Sharing {
    fn read() -> Option<Sharing> {
        sharing::protocol()?;
        Some(Sharing {
            tables: sharing::counter("tables"),
            attachments: sharing::counter("attachments"),
            table_bytes: sharing::counter("table_bytes"),
            saved_bytes: sharing::counter("saved_bytes"),
        })
    }
}

impl Snapshot {
    fn take() -> Snapshot {
        let meminfo = Meminfo::read();
        Snapshot {
            pool: huge::counters(),
            free_kb: meminfo.get("MemFree"),
            tables_kb: meminfo.get("PageTables"),
            sharing: Sharing::read(),
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
    settle(before.tables_kb);
    settles(Duration::from_secs(10), || Snapshot::take().pool == before.pool);
    report.after = Snapshot::take();
    report.print();
    if report.after.pool != before.pool {
        return Err(format!("the pool is not as before: {:?}, then {:?}", before.pool, report.after.pool));
    }
    if report.after.tables_kb > before.tables_kb + TABLE_TOLERANCE {
        return Err("page tables were not freed".to_string());
    }
    if report.after.sharing != before.sharing {
        return Err(format!("shared tables were not given back: {:?}", report.after.sharing));
    }
    let slots = options.bytes.div_ceil(GIB) as u64;
    match contradiction(report.protocol.as_deref(), slots, &report.shared.crowd(), &report.unshared.crowd()) {
        Some(what) => Err(format!("the figures are not what sharing promises: {what}")),
        None => Ok(()),
    }
}

/// Waits for what the kernel frees only a moment after a process has been waited for.
fn settle(tables_kb: u64) {
    settles(Duration::from_secs(10), || Snapshot::take().tables_kb <= tables_kb + TABLE_TOLERANCE);
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
        stamp_pages(&map, pages, HUGE);
    }
    println!(
        "One file of {} ({pages} huge pages), filled in {:.0} ms.",
        report::size(length as u64),
        start.elapsed().as_secs_f64() * 1e3,
    );
    let protocol = sharing::protocol();
    let how = protocol.as_ref().map(|name| format!(" (protocol {name})")).unwrap_or_default();
    println!("{} processes map it, then touch all of it{how}:", options.processes);
    memory::find_place(length);
    let mut memory = Memory::File(file);
    let shared = gather(&mut memory, pages, HUGE, Kind::Shared, options.processes)?;
    // Nothing of these may be left when the others are measured.
    settle(before.tables_kb);
    println!("{} do so without sharing, by private mappings:", options.unshared);
    let unshared = gather(&mut memory, pages, HUGE, Kind::Unshared, options.unshared)?;
    Ok(Report { protocol, length, before, unshared, shared, after: before })
}

/// What a crowd of processes came to.
pub struct Gathering {
    pub processes: usize,
    pub before: Snapshot,
    /// When all have mapped the file.
    pub attached: Snapshot,
    /// When all have touched it.
    pub touched: Snapshot,
    pub measurements: Measurements,
    pub start: Duration,
    pub end: Duration,
}

impl Gathering {
    /// What page tables grew by, in kB.
    pub fn tables_kb(&self) -> u64 {
        self.touched.tables_kb.saturating_sub(self.before.tables_kb)
    }

    /// The figures that a protocol makes promises about.
    pub fn crowd(&self) -> Crowd {
        let counted = |of: fn(&Sharing) -> u64, at: &Snapshot| {
            let value = |snapshot: &Snapshot| snapshot.sharing.as_ref().map_or(0, of);
            value(at).saturating_sub(value(&self.before))
        };
        let faults = &self.measurements;
        Crowd {
            processes: self.processes as u64,
            tables_kb: self.tables_kb(),
            touched_kb: self.touched.tables_kb.saturating_sub(self.attached.tables_kb),
            shared_tables: counted(|sharing| sharing.tables, &self.touched),
            attachments_at_mmap: counted(|sharing| sharing.attachments, &self.attached),
            attachments: counted(|sharing| sharing.attachments, &self.touched),
            least_faults: faults.faults[0],
            most_touch_faults: faults.touch_faults[faults.touch_faults.len() - 1],
        }
    }
}

/// Starts processes, waits until all have mapped and then touched all pages, looks each time, and lets them go.
fn gather(
    memory: &mut Memory,
    pages: usize,
    page_size: usize,
    kind: Kind,
    count: usize,
) -> Result<Gathering, String> {
    memory.ready(kind).map_err(|error| format!("mremap: {}", error.desc()))?;
    let control = Shared::new();
    let crew = Crew::new(count, page_size);
    let before = Snapshot::take();
    let mut progress = Progress::new(count);
    let start = Instant::now();
    let mut pids = Vec::with_capacity(count);
    let mut result = Ok(());
    for index in 0..count {
        match crew.start(index, memory, pages, kind, &control) {
            Ok(pid) => pids.push(pid),
            Err(error) => {
                result = Err(format!("fork of process {}: {}", index + 1, error.desc()));
                break;
            }
        }
        progress.show("attached", control.get(sharer::ATTACHED) as usize);
    }
    let mut moments = [before; 2];
    let steps = [("attached", sharer::ATTACHED), ("touched", sharer::TOUCHED)];
    for (step, (verb, counter)) in steps.into_iter().enumerate() {
        if result.is_ok() {
            result = watch(&control, counter, verb, &mut pids, &mut progress);
        }
        moments[step] = Snapshot::take();
        control.set(sharer::GO, step as u32 + 1);
    }
    let start = start.elapsed();
    let leave = Instant::now();
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
    let [attached, touched] = moments;
    let measurements = crew.measurements();
    Ok(Gathering { processes: count, before, attached, touched, measurements, start, end })
}

/// Waits until all processes have counted themselves; fails when one ends.
fn watch(
    control: &Shared,
    counter: usize,
    verb: &'static str,
    pids: &mut Vec<i32>,
    progress: &mut Progress,
) -> Result<(), String> {
    let count = pids.len();
    while !control.wait_for(counter, count as u32, progress.interval()) {
        progress.show(verb, control.get(counter) as usize);
        if let Ok((pid @ 1.., end)) = roundtable_programs::child::waitpid(-1, libc::WNOHANG) {
            pids.retain(|&other| other != pid);
            return Err(format!("process {pid} ended before its time: {end:?}"));
        }
    }
    progress.show(verb, count);
    Ok(())
}
