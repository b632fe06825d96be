//! How a region of msharefs is used, and what it costs: many processes attach one, touch all of it, and see a
//! change at once.
//!
//! First the region: a file of msharefs, its size, a mapping inside. Then many processes attach it by mmap(2)
//! and read all of it; at the end the mapping inside becomes read-only for all by one call. As many map a
//! memfd of the same size as programs do without regions. Exit status 0 only when every process saw the right
//! data, no newcomer had a fault, and all tables went.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use roundtable_programs::child::{self, End};
use roundtable_programs::fault;
use roundtable_programs::file::Fd;
use roundtable_programs::mem::{ANON, Map, R, RW, SHARED};
use roundtable_programs::mshare::{self, Region};
use roundtable_programs::procfs::Meminfo;
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{self, PAGE, cpu_time, settles};

const USAGE: &str = "usage: mshare-demo [--processes N] [--mebibytes N]
  --processes N  processes that attach the region [1000]
  --mebibytes N  memory in it [64]";

/// Words of the page that all share.
const ATTACHED: usize = 0;
const TOUCHED: usize = 8;
const GO: usize = 16;

struct Options {
    processes: usize,
    bytes: usize,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options { processes: 1000, bytes: 64 << 20 };
    while let Some(word) = words.next() {
        let value = words.next().ok_or(format!("{word} needs a value"))?;
        let value: usize = value.parse().map_err(|_| format!("{value} is no number"))?;
        match word.as_str() {
            "--processes" if value > 0 => options.processes = value,
            "--mebibytes" if (1..1 << 18).contains(&value) => options.bytes = value << 20,
            _ => return Err(format!("what is {word} {value}?")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("mshare-demo: {message}\n{USAGE}");
            return 2.into();
        }
    };
    match run(&options) {
        Ok(()) => 0.into(),
        Err(message) => {
            eprintln!("mshare-demo: {message}");
            1.into()
        }
    }
}

fn tables_kb() -> u64 {
    Meminfo::read().get("PageTables")
}

/// Bytes of the tables of all regions, in kB.
fn region_tables_kb() -> u64 {
    mshare::count("table_bytes") >> 10
}

fn run(options: &Options) -> Result<(), String> {
    mshare::mount().map_err(|error| format!("mount of msharefs: {}", error.desc()))?;
    let before = (tables_kb(), region_tables_kb());
    println!(
        "{} says {} bytes: what sizes and addresses are multiples of.",
        mshare::MOUNT,
        mshare::granule()
    );
    let shared = {
        let region = Region::new();
        region
            .map(0, options.bytes, RW, SHARED | ANON, -1, 0)
            .map_err(|error| format!("MSHAREFS_CREATE_MAPPING: {}", error.desc()))?;
        stamp(&region.attach(), options.bytes);
        println!(
            "{} processes attach a region with {} MiB of memory, then read all of it.",
            options.processes,
            options.bytes >> 20
        );
        let attach = || region.try_attach(RW);
        let crowd = gather(
            options,
            &attach,
            &|| region.protect(0, options.bytes, R).map_err(|error| error.desc().to_string()),
            READ_ONLY,
        )?;
        (crowd, region_tables_kb() - before.1)
    };
    settles(Duration::from_secs(10), || tables_kb() <= before.0 + 64);
    let file = Fd::temporary();
    file.truncate(options.bytes as u64).map_err(|error| error.desc().to_string())?;
    stamp(&file.map(options.bytes, RW, SHARED).map_err(|error| error.desc().to_string())?, options.bytes);
    println!("{} map a memfd of that size, each for itself.", options.processes);
    let own = gather(options, &|| file.map(options.bytes, RW, SHARED), &|| Ok(()), WRITABLE)?;
    print(options, &shared.0, shared.1, &own);
    verdict(&shared.0, before)
}

fn print(options: &Options, shared: &Crowd, region_tables: u64, own: &Crowd) {
    let row = |name: &str, shared: String, own: String| println!("  {name:<40} {shared:>18} {own:>18}");
    println!();
    row("", "a region".into(), "a mapping each".into());
    row("processes", options.processes.to_string(), options.processes.to_string());
    row("page tables of all processes", kib(shared.tables_kb), kib(own.tables_kb));
    row("of these, the region's", kib(region_tables), "-".into());
    let middle = |sorted: &[u64]| sorted[sorted.len() / 2];
    let faults =
        |crowd: &Crowd| format!("{} / {}", middle(&crowd.faults), crowd.faults[crowd.faults.len() - 1]);
    row("faults of a newcomer (median / most)", faults(shared), faults(own));
    let time = |crowd: &Crowd| format!("{} us", middle(&crowd.attach_nanoseconds) / 1000);
    row("time to attach: mmap (median)", time(shared), time(own));
    let time = |crowd: &Crowd| format!("{} us", middle(&crowd.touch_nanoseconds) / 1000);
    row("time to read all of it (median)", time(shared), time(own));
    println!(
        "\n  One call made the memory in the region read-only for all {} processes, in {} us.",
        options.processes,
        shared.change.as_micros()
    );
}

fn kib(kb: u64) -> String {
    if kb < 10 << 10 { format!("{kb} KiB") } else { format!("{:.1} MiB", kb as f64 / 1024.0) }
}

fn verdict(shared: &Crowd, before: (u64, u64)) -> Result<(), String> {
    let most = shared.faults[shared.faults.len() - 1];
    if most > 0 {
        return Err(format!("a newcomer had {most} faults"));
    }
    settles(Duration::from_secs(10), || tables_kb() <= before.0 + 256);
    if tables_kb() > before.0 + 256 || region_tables_kb() != before.1 {
        return Err("page tables were not freed".to_string());
    }
    Ok(())
}

fn stamp(map: &Map, bytes: usize) {
    (0..bytes / PAGE).for_each(|page| map.set_u64(page * PAGE, page as u64));
}

/// The first page that is wrong.
fn wrong_page(map: &Map, bytes: usize) -> Option<usize> {
    (0..bytes / PAGE).find(|&page| map.get_u64(page * PAGE) != page as u64)
}

/// What the processes came to; each list sorted.
struct Crowd {
    tables_kb: u64,
    faults: Vec<u64>,
    attach_nanoseconds: Vec<u64>,
    touch_nanoseconds: Vec<u64>,
    change: Duration,
}

/// What a process ends with: it saw wrong data; or all was right, and in the end it could still store, or
/// not.
const WRONG: i32 = 1;
const WRITABLE: i32 = 0;
const READ_ONLY: i32 = 3;

/// What each process writes for the parent.
const RECORD: usize = 64;

fn gather(
    options: &Options,
    attach: &dyn Fn() -> Result<Map, Errno>,
    change: &dyn Fn() -> Result<(), String>,
    expected: i32,
) -> Result<Crowd, String> {
    let control = Shared::new();
    let length = (options.processes * RECORD).next_multiple_of(PAGE);
    let records = Map::new(length, RW, SHARED | ANON, -1, 0).map_err(|error| error.desc().to_string())?;
    let word = |process: usize, field: usize| {
        // SAFETY: inside the mapping, aligned, and it lives as long as this function.
        unsafe { AtomicU64::from_ptr((records.address + process * RECORD + field * 8) as *mut u64) }
    };
    let before = tables_kb();
    let mut pids = Vec::new();
    for process in 0..options.processes {
        let child = child::fork_code(|| {
            word(process, 0).store(0, Ordering::SeqCst);
            control.get(GO);
            let start = Instant::now();
            let map = attach().expect("attach");
            word(process, 1).store(start.elapsed().as_nanos() as u64, Ordering::SeqCst);
            control.add(ATTACHED);
            control.wait_without_limit(GO, 1);
            let (attached, _) = sys::faults();
            let start = cpu_time();
            let wrong = wrong_page(&map, options.bytes);
            word(process, 2).store(cpu_time() - start, Ordering::SeqCst);
            let (after, _) = sys::faults();
            word(process, 0).store(after - attached, Ordering::SeqCst);
            control.add(TOUCHED);
            control.wait_without_limit(GO, 2);
            match (wrong, fault::store(map.address, 0)) {
                (Some(_), _) => WRONG,
                (None, Ok(())) => WRITABLE,
                (None, Err(_)) => READ_ONLY,
            }
        });
        pids.push(child.release());
    }
    let everybody = options.processes as u32;
    let in_time = |counter| {
        control
            .wait_for(counter, everybody, Duration::from_secs(300))
            .then_some(())
            .ok_or("a process is missing")
    };
    let mut result: Result<(), String> = in_time(ATTACHED).map_err(str::to_string);
    control.set(GO, 1);
    result = result.and(in_time(TOUCHED).map_err(str::to_string));
    let tables_kb = tables_kb().saturating_sub(before);
    let start = Instant::now();
    result = result.and(change());
    let change = start.elapsed();
    control.set(GO, 2);
    let mut ends = Vec::new();
    for pid in pids {
        ends.push(child::waitpid(pid, 0).map_err(|error| error.desc().to_string())?.1);
    }
    result?;
    if let Some(end) = ends.into_iter().find(|end| *end != End::Code(expected)) {
        return Err(format!("a process did not see what it should: {end:?}"));
    }
    let sorted = |field: usize| {
        let mut all: Vec<u64> =
            (0..options.processes).map(|process| word(process, field).load(Ordering::SeqCst)).collect();
        all.sort_unstable();
        all
    };
    Ok(Crowd {
        tables_kb,
        faults: sorted(0),
        attach_nanoseconds: sorted(1),
        touch_nanoseconds: sorted(2),
        change,
    })
}
