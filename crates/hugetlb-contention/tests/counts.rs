//! What is counted in a build that counts: `cargo xtask test --filter contention`.

use std::process::ExitCode;

use hugetlb::ProtocolKind::{self, FileLock, FileTables, VmaLock};
use hugetlb_contention::heap::CPUS;
#[cfg(roundtable_counted)]
use hugetlb_contention::heap::Heap;
use hugetlb_contention::scene::{self, Cost, Operation};
use hugetlb_contention::{COUNTS, coherence, hooks};
use libtest_mimic::{Arguments, Failed, Trial};

#[cfg(roundtable_counted)]
#[global_allocator]
static HEAP: Heap = Heap::new();

type Test = fn() -> Result<(), Failed>;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One thread simulates all CPUs, and the hooks of atomics are not atomic.
    arguments.test_threads = Some(1);
    let tests: [(&str, Test); 6] = [
        ("contention_is_counted_of_plain_stores_and_atomics", plain_stores_and_atomics),
        ("contention_of_a_present_page_is_nothing_under_file_tables", present_page),
        ("contention_of_a_present_page_is_a_lock_under_file_lock", fences),
        ("contention_of_fresh_pages_does_not_grow", fresh_pages),
        ("contention_of_mappings_does_not_grow_under_file_tables", mappings),
        ("contention_of_a_punch_is_in_the_cpus_that_it_asks", punch),
    ];
    // An ordinary build has nothing to say.
    let trial = |(name, test): (&str, Test)| Trial::test(name, test);
    let tests = tests.into_iter().filter(|_| COUNTS).map(trial).collect();
    libtest_mimic::run(&arguments, tests).exit_code()
}

fn count(protocol: ProtocolKind, operation: Operation, cpus: usize) -> Cost {
    scene::count(protocol, operation, cpus, false)
}

fn check(holds: bool, what: impl FnOnce() -> String) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(what().into()) }
}

/// Each kind of access that the library makes is seen, with its address.
fn plain_stores_and_atomics() -> Result<(), Failed> {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    let mut plain = Box::new([0u64; 16]);
    let shared = Arc::new(AtomicU64::new(1));
    let at = (&raw const plain[8] as usize, &raw const *shared as usize);
    let mut log = Vec::new();
    let clone = hooks::library(3, &mut log, || {
        std::hint::black_box(&mut plain)[8] = 5;
        shared.fetch_add(1, Ordering::Relaxed);
        shared.clone()
    });
    drop(clone);
    let stores = |address| log.contains(&coherence::Access { address, write: true });
    check(stores(at.0) && stores(at.1), || format!("{log:x?}"))?;
    // The count of references stands in front of the value.
    check(stores(at.1 - 16) || stores(at.1 - 8), || format!("no count of references in {log:x?}"))
}

/// The promise: who looks up a present page stores to no line that another CPU's fault on another page stores to.
fn present_page() -> Result<(), Failed> {
    for operation in [Operation::Touch, Operation::ThreadTouch, Operation::PrivateFault] {
        let cost = count(FileTables, operation, CPUS);
        check(cost.hot == 0 && cost.moves == 0.0, || format!("{}: {cost:?}", operation.name()))?;
    }
    Ok(())
}

/// What the other protocols pay shows, so the count can see it.
fn fences() -> Result<(), Failed> {
    let cost = count(FileLock, Operation::PrivateFault, CPUS);
    check(cost.hot == 1 && cost.moves == 1.0, || format!("the file's fence: {cost:?}"))?;
    let cost = count(VmaLock, Operation::PrivateFault, CPUS);
    check(cost.hot == 0, || format!("there is no fence of the file: {cost:?}"))?;
    for protocol in [FileLock, VmaLock] {
        let cost = count(protocol, Operation::Touch, CPUS);
        check(cost.moves >= 5.0, || format!("{}: {cost:?}", protocol.name()))?;
    }
    Ok(())
}

/// An operation costs 64 CPUs no more than it costs 4, each time.
fn is_flat(operation: Operation, most: f64) -> Result<(), Failed> {
    for cpus in [4, CPUS] {
        let cost = count(FileTables, operation, cpus);
        check(cost.moves <= most, || format!("{}, {cpus} CPUs: {cost:?}", operation.name()))?;
    }
    Ok(())
}

fn fresh_pages() -> Result<(), Failed> {
    is_flat(Operation::FreshFault, 20.0)
}

fn mappings() -> Result<(), Failed> {
    is_flat(Operation::Attach, 14.0)?;
    is_flat(Operation::Fork, 18.0)?;
    is_flat(Operation::Exit, 16.0)
}

/// A punch asks each CPU once, and under the other protocols it costs more.
fn punch() -> Result<(), Failed> {
    let ours = count(FileTables, Operation::Punch, CPUS);
    check(ours.interrupts == (CPUS - 1) as f64, || format!("{ours:?}"))?;
    // The lock, the copies and the stamp of a mapping for each CPU.
    check(ours.moves <= 6.0 * CPUS as f64, || format!("{ours:?}"))?;
    let theirs = count(VmaLock, Operation::Punch, CPUS);
    check(ours.moves < theirs.moves, || format!("{ours:?}, under vma-lock {theirs:?}"))
}
