//! What kernels that look at their locks count: how long spin locks were held, and how long threads kept their CPU.
//!
//! The figures are counts of the time-stamp counter: instructions, where the machine's clock counts them (`--icount`).

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::mem::{ANON, Map, RW, SHARED};
use crate::sys::{PAGE, check};
use crate::{child, harness};

const LOCKS: &str = "/sys/kernel/debug/lock_stat";
const STRETCHES: &str = "/sys/kernel/debug/stretch_stat";

/// A line of such a file: its numbers come first.
pub type Line = Vec<String>;

/// The number at a place of a line.
pub fn number(line: &[String], index: usize) -> u64 {
    line.get(index).and_then(|word| word.parse().ok()).unwrap_or(0)
}

fn lines(path: &str) -> Option<Vec<Line>> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.lines().skip(1).map(|line| line.split_whitespace().map(str::to_string).collect()).collect())
}

/// Each class of spin lock: how often it was taken, its longest hold, allocations under it, where it is made, where it
/// was held longest.
pub fn locks() -> Option<Vec<Line>> {
    lines(LOCKS)
}

/// Each system call: its longest stretch without a look at who else wants to run, its name, where that stretch began and ended.
pub fn stretches() -> Option<Vec<Line>> {
    lines(STRETCHES)
}

/// Counts anew. Does nothing where nothing is counted.
pub fn begin_anew() {
    let _ = (std::fs::write(LOCKS, "0"), std::fs::write(STRETCHES, "0"));
}

/// The longest of each kind since the counts began.
#[derive(Clone, Debug, Default)]
pub struct Longest {
    /// Of holds of a spin lock, and where it was taken.
    pub hold: (u64, String),
    /// Of stretches, and in which call.
    pub stretch: (u64, String),
}

/// The longest so far; zeroes where nothing is counted.
pub fn longest() -> Longest {
    // In this order: to read the first is a stretch of its own, and a short hold.
    let stretch = worst(stretches(), 0, 1..4);
    // Not the look at all page tables at a process's end, which only checked kernels take: it is longer than what it would hide.
    let is_check = |line: &Line| line.get(4).is_some_and(|place| place.contains("mm/check.rs"));
    let locks = locks().map(|lines| lines.into_iter().filter(|line| !is_check(line)).collect());
    Longest { hold: worst(locks, 1, 4..5), stretch }
}

fn worst(lines: Option<Vec<Line>>, figure: usize, names: Range<usize>) -> (u64, String) {
    let lines = lines.unwrap_or_default().into_iter();
    let worst = lines.max_by_key(|line| number(line, figure)).unwrap_or_default();
    (number(&worst, figure), worst.get(names).unwrap_or_default().join(" "))
}

/// What a call may do in one hold or stretch however many things there are, in instructions of a checked kernel.
const HOLD: u64 = 50_000;
const STRETCH: u64 = 150_000;

/// Uses `few` things and then `many`; `work` makes them in the child that it runs in, and `use_them` is what is looked
/// at. The end of the child is, too.
#[track_caller]
pub fn compare(few: usize, many: usize, make: impl Fn(usize), use_them: impl Fn(usize)) {
    compare_within(STRETCH, few, many, make, use_them);
}

/// The same, with another bound of stretches.
#[track_caller]
pub fn compare_within(most: u64, few: usize, many: usize, make: impl Fn(usize), use_them: impl Fn(usize)) {
    if locks().is_none() {
        harness::skip("this kernel does not count its locks");
    }
    let shared = Map::new(PAGE, RW, SHARED | ANON, -1, 0).expect("shared memory");
    let measure = |count: usize| {
        let (ready, go) = (shared.atomic(0), shared.atomic(8));
        ready.store(0, Ordering::SeqCst);
        go.store(0, Ordering::SeqCst);
        let wait_for = |word: &std::sync::atomic::AtomicU32| {
            while word.load(Ordering::SeqCst) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let child = child::fork(|| {
            make(count);
            ready.store(1, Ordering::SeqCst);
            wait_for(go);
            use_them(count);
        });
        wait_for(ready);
        begin_anew();
        go.store(1, Ordering::SeqCst);
        child.ok();
        longest()
    };
    let show = |count: usize, longest: &Longest| {
        let Longest { hold, stretch } = longest;
        println!(
            "# {count}: held for {} at {}, {} without a chance in {}",
            hold.0, hold.1, stretch.0, stretch.1
        );
    };
    let (of_few, of_many) = (measure(few), measure(many));
    show(few, &of_few);
    show(many, &of_many);
    assert!(of_many.hold.0 <= HOLD.max(2 * of_few.hold.0), "{of_many:?}");
    assert!(of_many.stretch.0 <= most.max(2 * of_few.stretch.0), "{of_many:?}");
}

/// Raises one of the process's limits to a million.
pub fn more_of(resource: libc::__rlimit_resource_t) {
    let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
    // SAFETY: the limit lives through the call.
    check(unsafe { libc::setrlimit(resource, &limit) }).expect("setrlimit");
}

/// Processes that do nothing, each after `begin`.
pub fn idlers(count: usize, begin: impl Fn()) -> Vec<i32> {
    let idle = |_| {
        child::fork(|| {
            begin();
            loop {
                std::thread::park();
            }
        })
        .release()
    };
    (0..count).map(idle).collect()
}

/// Kills them and waits for them.
pub fn end(pids: &[i32]) {
    for pid in pids {
        // SAFETY: takes integers.
        check(unsafe { libc::kill(*pid, libc::SIGKILL) }).expect("kill");
        child::waitpid(*pid, libc::__WALL).expect("waitpid");
    }
}
