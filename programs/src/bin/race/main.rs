//! Provokes the race between a fault and whoever takes a shared page table away, and looks for what it destroys.
//!
//! Several processes map the same sparse files of 1 GiB, each over a whole slot, so that their page tables are shared.
//! Threads fault absent pages in, which takes long because a huge page is zeroed; meanwhile tables are taken away: by
//! protecting, unmapping, moving, cutting, forgetting, truncating, punching, forking and exiting. Bystanders build
//! tables all the time, so that a table that was lost is soon somebody else's. An ordinary Linux program. With `--base-pages`
//! the files are of 2 MiB, on tmpfs, and all happens one level below; with `--regions` they are mapped in regions of msharefs.

mod actor;
mod board;
mod cast;
mod compare;
mod options;
mod report;
mod scale;
mod stamp;
mod victim;
mod view;
mod ways;

use std::process::ExitCode;
use std::time::Instant;

use roundtable_programs::file::Fd;
use roundtable_programs::huge;
use roundtable_programs::leak::Baseline;
use roundtable_programs::mem::{NORESERVE, RW, SHARED};
use roundtable_programs::rng::Rng;
use roundtable_programs::{Errno, mshare, procfs};

use cast::Plot;
use options::Options;
use scale::{page_size, places, slot_size};
use stamp::{LAST_QUARTER, USED, stamp};
use view::Ground;

/// The files that are raced on.
const FILES: usize = 3;
/// Pages in a slot.
const SLOT: usize = 512;

/// The files of a run.
pub struct Scene {
    pub grounds: Vec<Ground>,
    pub sitter: Fd,
    pub canary: Fd,
}

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("race: {message}\n{}", options::USAGE);
            return 2.into();
        }
    };
    match run(&options) {
        Ok(false) => {
            println!("race: no corruption");
            0.into()
        }
        Ok(true) => {
            println!("race: CORRUPTION");
            1.into()
        }
        Err(message) => {
            eprintln!("race: {message}");
            2.into()
        }
    }
}

/// Whether there was corruption.
fn run(options: &Options) -> Result<bool, String> {
    if options.base_pages {
        scale::choose_base_pages();
        return race(options);
    }
    const NR: &str = "/proc/sys/vm/nr_hugepages";
    let persistent = procfs::number(NR);
    procfs::write(NR, options.pages.max(persistent)).map_err(|error| format!("{NR}: {error}"))?;
    let free = huge::counters().free;
    // All pages that are used: the files', the sitter's, the canary's, the victims' own; and what waits for its flush.
    let least = (FILES * (USED.len() + 1) + 4 + victim::CANARY_SLOTS + 2 + 8) as u64;
    if free < least {
        huge::set_pool(persistent);
        return Err(format!("{least} free huge pages are the least, and there are {free}"));
    }
    let result = race(options);
    huge::set_pool(persistent);
    result
}

fn race(options: &Options) -> Result<bool, String> {
    let baseline = Baseline::take();
    let start = Instant::now();
    let mut outcomes = Vec::new();
    let mut rng = Rng::new(options.seed);
    let shapes = options.shapes();
    let ways = options.ways.iter().copied().filter(|way| !options.regions || way.goes_in_regions());
    let ways: Vec<_> = ways.collect();
    let casts = (ways.len() * shapes.len() * 2) as u32;
    {
        let in_regions = options.regions;
        let scene = Scene::set_up(in_regions)?;
        for way in ways {
            for (shape, in_company) in shapes.iter().flat_map(|&shape| [(shape, false), (shape, true)]) {
                let time = options.time / casts;
                let anonymous = !options.until_found;
                let until_found = options.until_found;
                let plot = Plot { way, shape, in_company, in_regions, anonymous, until_found };
                let outcome = cast::run(&scene, plot, time, rng.draw())?;
                report::progress(&outcome, start.elapsed());
                let end = options.until_found && outcome.corruptions() > 0;
                outcomes.push(outcome);
                if end {
                    // Nothing is taken down any more, and nothing given back: see `cast`.
                    report::table(&outcomes);
                    println!("race: CORRUPTION");
                    std::process::exit(1);
                }
            }
        }
    }
    let leak = baseline.leak();
    report::table(&outcomes);
    if let Some(leak) = &leak {
        println!("race: {leak}");
    }
    Ok(leak.is_some() || outcomes.iter().any(|outcome| outcome.corruptions() > 0))
}

impl Scene {
    fn set_up(in_regions: bool) -> Result<Scene, String> {
        if in_regions {
            mshare::mount().map_err(|error| format!("mount of msharefs: {}", error.desc()))?;
        }
        let ground = |_| Ground::new(scale::file(1), in_regions);
        let grounds: Result<_, Errno> = (0..FILES).map(ground).collect();
        let sitter = USED.into_iter().filter(|&index| index >= LAST_QUARTER);
        let canary = (0..victim::CANARY_SLOTS).map(|slot| slot * SLOT + victim::CANARY_PAGE);
        Ok(Scene {
            grounds: grounds.map_err(|error| format!("a region: {}", error.desc()))?,
            sitter: filled(ways::SITTER, 1, sitter)?,
            canary: filled(victim::CANARY, victim::CANARY_SLOTS, canary)?,
        })
    }
}

/// A sparse file of so many slots with stamps in some of its pages.
fn filled(number: usize, slots: usize, pages: impl IntoIterator<Item = usize>) -> Result<Fd, String> {
    let file = scale::file(slots);
    let map = file
        .map(slots * slot_size(), RW, SHARED | NORESERVE)
        .map_err(|error| format!("mmap: {}", error.desc()))?;
    for index in pages {
        for place in places() {
            map.set_u64(index * page_size() + place, stamp(number, index, 0));
        }
    }
    Ok(file)
}
