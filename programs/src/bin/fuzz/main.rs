//! A fuzzer of system calls: several processes of an ordinary user make random calls, mostly sensible ones, and remember what they get.
//!
//! A root process, the watcher, plays rounds. Each has a seed, from which all its calls follow; a call can be left out without
//! changing the others. While a round is on, the watcher has the page tables checked and asks a bystander to answer, who has nothing
//! to do with the actors and has memory of its own. After a round all processes of the actors' user must be able to die, mounts to be
//! unmounted, and counters must be back where they were. The seed is printed before a round begins, so that it is known when the
//! machine does not survive. It is an ordinary Linux program, and runs on Linux too.

mod accounts;
mod actor;
mod board;
mod bystander;
mod grammar;
mod journal;
mod options;
mod plan;
mod round;
mod turn;
mod watcher;

use std::ffi::CString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use actor::{PROGRAM, ROUND};
use grammar::Mixture;
use options::Options;
use plan::Plan;

fn main() -> ExitCode {
    let path = std::env::current_exe().expect("this program's path");
    let program = CString::new(path.to_str().expect("a path in UTF-8")).expect("no NUL");
    PROGRAM.get_or_init(|| program);
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some((first, numbers)) = words.split_first()
        && first == grammar::CONTINUE
    {
        go_on(numbers);
    }
    let options = match Options::parse(words.iter().cloned()) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("fuzz: {message}\n{}", options::USAGE);
            return 2.into();
        }
    };
    if options.names {
        grammar::names().for_each(|name| println!("{name}"));
        return 0.into();
    }
    use_the_same_addresses(&path, &words);
    match watcher::run(&options) {
        Ok(None) => {
            println!("fuzz: nothing found");
            0.into()
        }
        Ok(Some(finding)) => {
            println!("fuzz: FINDING {finding}");
            1.into()
        }
        Err(message) => {
            eprintln!("fuzz: {message}");
            2.into()
        }
    }
}

/// Executes this program again without random addresses, unless that is done.
fn use_the_same_addresses(path: &std::path::Path, words: &[String]) {
    const ASK: libc::c_ulong = 0xffff_ffff;
    // SAFETY: takes a number.
    unsafe {
        let now = libc::personality(ASK);
        if now & libc::ADDR_NO_RANDOMIZE == 0
            && libc::personality((now | libc::ADDR_NO_RANDOMIZE) as libc::c_ulong) != -1
        {
            let error = Command::new(path).args(words).exec();
            eprintln!("fuzz: cannot execute itself: {error}");
        }
    }
}

/// An actor's child that has executed this program: it goes on with the calls.
fn go_on(numbers: &[String]) -> ! {
    let plan = std::fs::read_to_string(round::PLAN).ok().as_deref().and_then(Plan::parse);
    let mut numbers = numbers.iter().map_while(|number| number.parse::<u64>().ok());
    let mut next = || numbers.next();
    if let (Some(plan), Some(actor), Some(first), Some(count), Some(salt), Some(depth)) =
        (plan, next(), next(), next(), next(), next())
    {
        let mixture = Mixture::of(&plan);
        ROUND.get_or_init(|| (plan, mixture));
        round::catch_faults();
        let child = grammar::Child {
            actor: actor as u32,
            first: first as u32,
            count: count as u32,
            salt,
            depth: depth as u32,
        };
        grammar::run_child(child);
    }
    std::process::exit(5)
}
