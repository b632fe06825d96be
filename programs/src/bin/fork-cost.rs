//! What fork costs a process with much private memory: nanoseconds, which are instructions under `--icount`.
//!
//! `fork-cost MEBIBYTES` touches so many, then forks three times: a child that ends at once, one that stores
//! to each page first, and one beside which the parent stores to each page.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use roundtable_programs::child::{self, fork};
use roundtable_programs::mem::Map;
use roundtable_programs::shared::Shared;

fn store(map: &Map, value: u8) {
    (0..map.length).step_by(4096).for_each(|at| map.set(at, value));
}

fn say(what: &str, time: Duration) {
    println!("{what:<44} {:>14}", time.as_nanos());
}

fn main() -> ExitCode {
    let Some(mebibytes) = std::env::args().nth(1).and_then(|text| text.parse::<usize>().ok()) else {
        eprintln!("usage: fork-cost MEBIBYTES");
        return ExitCode::FAILURE;
    };
    let map = Map::anonymous(mebibytes << 20);
    let start = Instant::now();
    store(&map, 1);
    say("first stores", start.elapsed());
    // What the first fork needs once.
    child::in_child(|| ());

    let start = Instant::now();
    let child = fork(|| ());
    say("fork", start.elapsed());
    child.ok();
    say("fork, exit of the child", start.elapsed());

    store(&map, 2);
    let start = Instant::now();
    fork(|| store(&map, 3)).ok();
    say("fork, child stores to each page, exit", start.elapsed());

    store(&map, 4);
    let turn = Shared::new();
    let start = Instant::now();
    let child = fork(|| turn.wait(0, 1));
    store(&map, 5);
    turn.set(0, 1);
    child.ok();
    say("fork, parent stores to each page, exit", start.elapsed());
    ExitCode::SUCCESS
}
