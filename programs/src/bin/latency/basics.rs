//! What every program pays, of huge pages or not: the rows that LMbench made customary, in instructions.

use std::ffi::CString;
use std::time::Instant;

use guest_link::profile::marked;
use guest_link::record::{Basic, Operation, Record};
use roundtable_programs::child::{End, waitpid};
use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::mem::{ANON, Map, PRIVATE, R, RW, SHARED, madvise, mprotect};
use roundtable_programs::signals;
use roundtable_programs::sys::{PAGE, faults};

use crate::stage::Stage;

/// The argument with which the program ends as soon as it has begun: what `Basic::ForkAndExec` starts.
pub const END_AT_ONCE: &str = "end-at-once";
/// How many rounds count, after one that does not: an emulator translates code when it first comes to it.
const ROUNDS: usize = 5;
/// Pages of each piece of memory: 1 MiB.
const PAGES: usize = 256;

/// Measures all.
pub fn measure(stage: &Stage) {
    let me = CString::new("/proc/self/exe").expect("no zero inside");
    let argument = CString::new(END_AT_ONCE).expect("no zero inside");
    row(stage, Basic::ForkAndExit, 10, || child(|| ()));
    row(stage, Basic::ForkAndExec, 10, || {
        child(|| {
            let arguments = [me.as_ptr(), argument.as_ptr(), std::ptr::null()];
            // SAFETY: the strings live until the new program has them.
            unsafe { libc::execv(me.as_ptr(), arguments.as_ptr()) };
        });
    });
    let file = Fd::of_pages(PAGES);
    row(stage, Basic::MapFile, 20, || {
        let map = file.map(PAGES * PAGE, RW, SHARED).expect("mmap");
        touch(&map);
        map.unmap().expect("munmap");
    });
    let map = file.map(PAGES * PAGE, RW, SHARED).expect("mmap");
    faulted(stage, Basic::FileFault, &map);
    let map = Map::new(PAGES * PAGE, RW, PRIVATE | ANON, -1, 0).expect("mmap");
    faulted(stage, Basic::AnonymousFault, &map);
    protection_faults(stage);
    signals::catch(libc::SIGUSR1);
    row(stage, Basic::Signal, Operation::Signal.turns(), || signals::raise(libc::SIGUSR1));
    // Once more, for who counts from outside.
    marked(Operation::Signal, || (0..Operation::Signal.turns()).for_each(|_| signals::raise(libc::SIGUSR1)));
    pipes(stage);
}

/// A child that does something and ends; its end is waited for.
fn child(run: impl FnOnce()) {
    // SAFETY: this process has one thread.
    let child = unsafe { libc::fork() };
    if child == 0 {
        run();
        // SAFETY: ends the process; the parent's values must not be dropped here.
        unsafe { libc::_exit(0) }
    }
    assert_eq!(waitpid(child, 0), Ok((child, End::Code(0))), "a child that ends at once");
}

/// Stores to each page.
fn touch(map: &Map) {
    (0..PAGES).for_each(|page| map.set(page * PAGE, 1));
}

/// The least of several rounds of `count` turns, for each turn.
fn least(count: u64, mut turn: impl FnMut()) -> u64 {
    let round = |_| {
        let start = Instant::now();
        (0..count).for_each(|_| turn());
        start.elapsed().as_nanos() as u64 / count
    };
    (0..=ROUNDS).map(round).skip(1).min().expect("there are rounds")
}

fn row(stage: &Stage, basic: Basic, count: u64, turn: impl FnMut()) {
    say(stage, basic, least(count, turn), 0);
}

fn say(stage: &Stage, basic: Basic, length: u64, faults_percent: u64) {
    stage.say(&Record::Path { path: basic.name().to_string(), length, faults_percent });
}

/// A store to each page after the mapping's entries are gone, for each page; how many of them fault is told.
fn faulted(stage: &Stage, basic: Basic, map: &Map) {
    let (mut length, mut taken) = (u64::MAX, 0);
    for _ in 0..=ROUNDS {
        madvise(map.address, PAGES * PAGE, libc::MADV_DONTNEED).expect("madvise");
        let (before, _) = faults();
        let start = Instant::now();
        touch(map);
        length = length.min(start.elapsed().as_nanos() as u64 / PAGES as u64);
        taken = faults().0 - before;
    }
    say(stage, basic, length, taken * 100 / PAGES as u64);
}

/// The page that [`protection_faults`] stores to.
static PROTECTED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

/// A store that is not allowed, the handler that allows it, and the call that forbids it again.
fn protection_faults(stage: &Stage) {
    extern "C" fn allow(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        let address = PROTECTED.load(std::sync::atomic::Ordering::Relaxed);
        mprotect(address, PAGE, RW).expect("mprotect");
    }
    let map = Map::anonymous(PAGE);
    map.set(0, 1);
    PROTECTED.store(map.address, std::sync::atomic::Ordering::Relaxed);
    signals::catch_with(libc::SIGSEGV, allow, 0, &[]);
    let fault = || {
        mprotect(map.address, PAGE, R).expect("mprotect");
        map.set(0, 1);
    };
    let turns = Operation::ProtectionFault.turns();
    row(stage, Basic::ProtectionFault, turns, fault);
    marked(Operation::ProtectionFault, || (0..turns).for_each(|_| fault()));
    // SAFETY: whoever stores where it must not from now on is a bug, and shall end.
    unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
}

/// A byte to another process and back, and what of that is neither writing nor reading: two switches.
fn pipes(stage: &Stage) {
    let ((from_child, to_parent), (from_parent, to_child)) = (pipe(0), pipe(0));
    // SAFETY: this process has one thread.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let mut byte = [0];
        while from_parent.read(&mut byte) == Ok(1) && byte[0] != 0 {
            let _ = to_parent.write(&byte);
        }
        // SAFETY: ends the process; the parent's values must not be dropped here.
        unsafe { libc::_exit(0) }
    }
    let mut byte = [1];
    let there_and_back = least(200, || {
        to_child.write(&[1]).expect("write");
        from_child.read(&mut byte).expect("read");
    });
    to_child.write(&[0]).expect("write");
    assert_eq!(waitpid(child, 0), Ok((child, End::Code(0))), "the one at the other end");
    let (mine, other_end) = pipe(0);
    let alone = least(200, || {
        other_end.write(&[1]).expect("write");
        mine.read(&mut byte).expect("read");
    });
    say(stage, Basic::Pipe, there_and_back, 0);
    say(stage, Basic::Switch, there_and_back.saturating_sub(2 * alone) / 2, 0);
}
