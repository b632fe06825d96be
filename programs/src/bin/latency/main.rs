//! Measures what sharing page tables costs and spares: delays of bystanders, costs of operations, memory of tables.
//!
//! An ordinary Linux program. Each result is a line for the host, see `guest_link::record`.

mod attach;
mod basics;
mod bystander;
mod cost;
mod crew;
mod options;
mod path;
mod stage;
mod tables;

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use guest_link::record::Record;
use roundtable_programs::huge::{self, GIB};
use roundtable_programs::{procfs, sharing, sys};

use crew::Crew;
use options::{Options, Part};
use stage::{BATCH, PAGES, Stage, touch, touch_one};

/// Huge pages at least: a slot of present ones, and one of fresh ones or one page in each of 1,024 slots.
const POOL: u64 = 1024 + 16;
/// The same, where only paths are measured.
const SMALL_POOL: u64 = 96;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(basics::END_AT_ONCE) {
        return 0.into();
    }
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("latency: {message}\n{}", options::USAGE);
            return 2.into();
        }
    };
    if let Err(error) = place_as_always() {
        eprintln!("latency: the addresses cannot be made to be the same in each run: {error}");
        return 1.into();
    }
    let persistent = procfs::number("/proc/sys/vm/nr_hugepages");
    let pool = if options.needs_little() { SMALL_POOL } else { POOL };
    if persistent < pool && huge::set_pool(pool) < pool {
        huge::set_pool(persistent);
        eprintln!("latency: there is no memory for {pool} huge pages");
        return 1.into();
    }
    let result = measure(&options);
    huge::set_pool(persistent);
    match result {
        Ok(()) => 0.into(),
        Err(message) => {
            eprintln!("latency: {message}");
            1.into()
        }
    }
}

/// Starts the program anew without randomised addresses: where stack and mappings happen to be decides how many page tables they need.
fn place_as_always() -> std::io::Result<()> {
    const ASK: libc::c_ulong = 0xffff_ffff;
    // SAFETY: asks, and sets a flag that counts for programs to come.
    let before = unsafe { libc::personality(ASK) };
    if before < 0 {
        return Err(std::io::Error::last_os_error());
    }
    if before & libc::ADDR_NO_RANDOMIZE != 0 {
        return Ok(());
    }
    // SAFETY: the same.
    if unsafe { libc::personality((before | libc::ADDR_NO_RANDOMIZE) as libc::c_ulong) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Err(Command::new("/proc/self/exe").args(std::env::args_os().skip(1)).exec())
}

fn measure(options: &Options) -> Result<(), String> {
    let stage = Stage::new()?;
    stage.say(&Record::Machine {
        release: sys::release(),
        cpus: sys::cpus().len() as u32,
        protocol: sharing::protocol(),
    });
    let wants = |part| options.parts.contains(&part);
    if wants(Part::Path) {
        path::measure(&stage)?;
    }
    if wants(Part::Basics) {
        basics::measure(&stage);
    }
    if !options.needs_little() {
        stage.fill(0, PAGES);
    }
    if wants(Part::Attach) {
        attach::measure(&stage)?;
    }
    if wants(Part::Cost) || wants(Part::Bystander) {
        crowded(&stage, options)?;
    }
    if wants(Part::Tebibyte) {
        // Room in the pool.
        stage.punch(0, PAGES);
        tables::tebibyte(&stage, &options.tib_sharers)?;
    }
    stage.end();
    Ok(())
}

/// All that is measured against the number of sharers, in one crew that grows.
fn crowded(stage: &Stage, options: &Options) -> Result<(), String> {
    let mut jobs: Vec<(u32, Part)> = Vec::new();
    if options.parts.contains(&Part::Cost) {
        // The acting process is one of them.
        jobs.extend(options.cost_sharers.iter().map(|&sharers| (sharers - 1, Part::Cost)));
    }
    if options.parts.contains(&Part::Bystander) {
        jobs.extend(options.sharers.iter().map(|&sharers| (sharers, Part::Bystander)));
    }
    jobs.sort_by_key(|&(crew, _)| crew);
    let before = tables::table_bytes();
    let mine = stage.address(0, 0);
    touch(mine, PAGES);
    let mut crew = Crew::new();
    for (count, part) in jobs {
        // One page is enough to have the table, and it is one that is never taken away.
        if let Err(message) = crew.grow(count as usize, || touch_one(stage.address(0, BATCH))) {
            // What was measured with fewer stands.
            stage.note(&format!("no more than {} sharers could be started: {message}", crew.count()));
            break;
        }
        if part == Part::Cost {
            tables::say(stage, &crew, before, GIB as u64, PAGES, count as usize + 1);
            cost::measure(stage, &crew, options.runs)?;
        } else {
            bystander::measure(stage, &crew, options.time)?;
        }
    }
    crew.leave()
}
