//! membarrier(2): its commands, and who has registered for which.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;

use roundtable_programs::child::fork;
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::rows::Rows;
use roundtable_programs::{Errno, row, tests};

tests! { commands, registrations, registrations_of_children, barriers_of_threads }

const GLOBAL: usize = 1;
const GLOBAL_EXPEDITED: usize = 2;
const PRIVATE: usize = 8;
const SYNC_CORE: usize = 32;
const RSEQ: usize = 128;
const GET_REGISTRATIONS: usize = 512;

fn barrier(command: usize, flags: usize, cpu: usize) -> Answer {
    call(libc::SYS_membarrier, [command, flags, cpu, 0, 0, 0])
}

fn commands() {
    let mut rows = Rows::default();
    assert_eq!(barrier(0, 0, 0), Ok(1023));
    row!(rows, EINVAL, barrier(0, 1, 0));
    row!(rows, EINVAL, barrier(1024, 0, 0));
    row!(rows, EINVAL, barrier(3, 0, 0));
    row!(rows, EINVAL, barrier(GLOBAL, 1, 0));
    row!(rows, EINVAL, barrier(RSEQ, 2, 0));
    row!(rows, EINVAL, barrier(GET_REGISTRATIONS, 1, 0));
    row!(rows, EPERM, barrier(RSEQ, 1, 0));
    row!(rows, EPERM, barrier(RSEQ, 0, 0));
    row!(rows, EPERM, barrier(PRIVATE, 0, 0));
    row!(rows, EPERM, barrier(SYNC_CORE, 0, 0));
    row!(rows, OK, barrier(GLOBAL, 0, 0));
    row!(rows, OK, barrier(GLOBAL_EXPEDITED, 0, 0));
    row!(rows, OK, barrier(RSEQ << 1, 0, 0));
    row!(rows, OK, barrier(RSEQ, 0, 0));
    row!(rows, OK, barrier(RSEQ, 1, 0));
    row!(rows, OK, barrier(RSEQ, 1, 100_000));
    row!(rows, EINVAL, barrier(RSEQ << 1, 1, 0));
    rows.finish();
}

fn registrations() {
    assert_eq!(barrier(GET_REGISTRATIONS, 0, 0), Ok(0));
    assert_eq!(barrier(GLOBAL_EXPEDITED << 1, 0, 0), Ok(0));
    assert_eq!(barrier(GET_REGISTRATIONS, 0, 0), Ok(4));
    // One of the special kinds shows the plain kind too, and does not allow it.
    assert_eq!(barrier(SYNC_CORE << 1, 0, 0), Ok(0));
    assert_eq!(barrier(GET_REGISTRATIONS, 0, 0), Ok(4 | 16 | 64));
    assert_eq!(barrier(PRIVATE, 0, 0), Err(Errno::EPERM));
    assert_eq!(barrier(PRIVATE << 1, 0, 0), Ok(0));
    assert_eq!(barrier(PRIVATE, 0, 0), Ok(0));
    assert_eq!(barrier(RSEQ << 1, 0, 0), Ok(0));
    assert_eq!(barrier(RSEQ << 1, 0, 0), Ok(0));
    assert_eq!(barrier(GET_REGISTRATIONS, 0, 0), Ok(4 | 16 | 64 | 256));
}

fn registrations_of_children() {
    assert_eq!(barrier(PRIVATE << 1, 0, 0), Ok(0));
    fork(|| assert_eq!(barrier(GET_REGISTRATIONS, 0, 0), Ok(16))).ok();
    std::thread::spawn(|| assert_eq!(barrier(GET_REGISTRATIONS, 0, 0), Ok(16))).join().unwrap();
}

/// Stores of the one and loads of the other, with the barrier on one side only: not both may miss what the other wrote.
fn barriers_of_threads() {
    use std::sync::atomic::Ordering::Relaxed;
    use std::sync::atomic::compiler_fence;
    assert_eq!(barrier(PRIVATE << 1, 0, 0), Ok(0));
    static MINE: AtomicU32 = AtomicU32::new(0);
    static YOURS: AtomicU32 = AtomicU32::new(0);
    static SEEN: AtomicU32 = AtomicU32::new(0);
    let ready = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..2000 {
                ready.wait();
                YOURS.store(round, Relaxed);
                compiler_fence(SeqCst);
                SEEN.store(MINE.load(Relaxed), Relaxed);
                ready.wait();
            }
        });
        for round in 1..2000 {
            ready.wait();
            MINE.store(round, Relaxed);
            barrier(PRIVATE, 0, 0).unwrap();
            let seen = YOURS.load(Relaxed);
            ready.wait();
            assert!(seen == round || SEEN.load(Relaxed) == round, "round {round}");
        }
    });
}
