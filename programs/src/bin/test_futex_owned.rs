//! Futexes that are owned: waiters that are moved to them, and the calls that are newer than futex(2).

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use roundtable_programs::child::{self, Child};
use roundtable_programs::kinds::{Answer, call};
use roundtable_programs::rows::Rows;
use roundtable_programs::shared::{Shared, wake};
use roundtable_programs::{Errno, procfs, row, sys, tests};

tests! { moved_to_an_owned_word: 60, given_a_free_word, moves_that_are_refused, times_run_out, signals_before_and_after: 60,
owners_to_be_are_not_woken, owner_ends: 60, owner_is_killed: 60, owner_ends_with_many_words: 60, owner_ends_before_a_move: 60, newer_wait_and_wake, newer_requeue, newer_calls_that_are_refused, relative_times_have_no_clock }

const SYS_FUTEX_WAKE: i64 = 454;
const SYS_FUTEX_WAIT: i64 = 455;
const SYS_FUTEX_REQUEUE: i64 = 456;
const SIZE_U32: usize = 2;
const PRIVATE: usize = 128;
/// The words of [`Shared`]: what is waited for, the lock, and how often a child has had it.
const CONDITION: usize = 0;
const LOCK: usize = 8;
const DONE: usize = 16;

fn futex(word: &AtomicU32, operation: i32, value: usize, rest: [usize; 3]) -> Answer {
    call(libc::SYS_futex, [word.as_ptr() as usize, operation as usize, value, rest[0], rest[1], rest[2]])
}

fn address(word: &AtomicU32) -> usize {
    word.as_ptr() as usize
}

/// Waits for the condition, to own the lock.
fn wait_for(shared: &Shared, limit: Option<&libc::timespec>) -> Answer {
    let limit = limit.map_or(0, |time| &raw const *time as usize);
    let rest = [limit, address(shared.word(LOCK)), 0];
    futex(shared.word(CONDITION), libc::FUTEX_WAIT_REQUEUE_PI, 0, rest)
}

/// Moves up to `count` waiters behind the first.
fn move_to(shared: &Shared, wake: usize, count: usize, to: usize, value: usize) -> Answer {
    let rest = [count, address(shared.word(to)), value];
    futex(shared.word(CONDITION), libc::FUTEX_CMP_REQUEUE_PI, wake, rest)
}

fn unlock(shared: &Shared) -> Answer {
    futex(shared.word(LOCK), libc::FUTEX_UNLOCK_PI, 0, [0; 3])
}

fn own_number() -> u32 {
    // SAFETY: takes nothing.
    unsafe { libc::gettid() as u32 }
}

/// The lock is the caller's, as by an uncontended lock in user mode.
fn take(shared: &Shared) {
    shared.word(LOCK).store(own_number(), SeqCst);
}

/// A child that waits for the condition, owns the lock then, counts itself, and lets the lock go.
fn waiter(shared: &Shared) -> Child {
    let child = child::fork(|| {
        assert_eq!(wait_for(shared, None), Ok(0));
        assert_eq!(shared.get(LOCK) & libc::FUTEX_TID_MASK, own_number());
        shared.word(DONE).fetch_add(1, SeqCst);
        assert_eq!(unlock(shared), Ok(0));
    });
    procfs::wait_for_sleep(child.pid);
    child
}

fn moved_to_an_owned_word() {
    let shared = Shared::new();
    take(&shared);
    let children: Vec<_> = (0..40).map(|_| waiter(&shared)).collect();
    assert_eq!(move_to(&shared, 1, 4, LOCK, 0), Ok(5));
    assert_eq!(move_to(&shared, 1, i32::MAX as usize, LOCK, 0), Ok(35));
    assert_eq!(move_to(&shared, 1, i32::MAX as usize, LOCK, 0), Ok(0));
    // They wait for the lock, which is told so.
    children.iter().for_each(|child| procfs::wait_for_sleep(child.pid));
    assert_eq!(shared.get(LOCK), own_number() | libc::FUTEX_WAITERS);
    assert_eq!(shared.get(DONE), 0);
    assert_eq!(unlock(&shared), Ok(0));
    children.into_iter().for_each(Child::ok);
    assert_eq!((shared.get(DONE), shared.get(LOCK) & libc::FUTEX_TID_MASK), (40, 0));
}

fn given_a_free_word() {
    let shared = Shared::new();
    let children: Vec<_> = (0..3).map(|_| waiter(&shared)).collect();
    assert_eq!(move_to(&shared, 1, 0, LOCK, 0), Ok(1));
    assert!(sys::settles(Duration::from_secs(20), || shared.get(DONE) == 1));
    // The first of these owns the lock at once, the other one after it.
    assert_eq!(move_to(&shared, 1, 1, LOCK, 0), Ok(2));
    children.into_iter().for_each(Child::ok);
    assert_eq!(shared.get(DONE), 3);
}

fn moves_that_are_refused() {
    let shared = Shared::new();
    let mut rows = Rows::default();
    let all = i32::MAX as usize;
    let wait = |to: usize| {
        let rest = [0, address(shared.word(to)), 0];
        futex(shared.word(CONDITION), libc::FUTEX_WAIT_REQUEUE_PI, 0, rest)
    };
    row!(rows, EINVAL, wait(CONDITION));
    shared.word(CONDITION).store(1, SeqCst);
    row!(rows, EAGAIN, wait(LOCK));
    row!(rows, EAGAIN, move_to(&shared, 1, all, LOCK, 0));
    shared.word(CONDITION).store(0, SeqCst);
    row!(rows, EINVAL, move_to(&shared, 1, all, CONDITION, 0));
    row!(rows, EINVAL, move_to(&shared, 0, all, LOCK, 0));
    row!(rows, EINVAL, move_to(&shared, 2, all, LOCK, 0));
    row!(rows, EINVAL, move_to(&shared, 1, -1i32 as usize, LOCK, 0));
    row!(rows, OK, move_to(&shared, 1, all, LOCK, 0));
    let child = waiter(&shared);
    // Not where the waiter wants to be, or not in this way.
    row!(rows, EINVAL, move_to(&shared, 1, all, LOCK + 1, 0));
    let plain =
        |operation: i32| futex(shared.word(CONDITION), operation, 1, [all, address(shared.word(LOCK)), 0]);
    row!(rows, EINVAL, plain(libc::FUTEX_WAKE));
    row!(rows, EINVAL, plain(libc::FUTEX_REQUEUE));
    row!(rows, EINVAL, plain(libc::FUTEX_CMP_REQUEUE));
    // Nobody has that number.
    shared.word(LOCK).store(0x3fff_fff0, SeqCst);
    row!(rows, ESRCH, move_to(&shared, 1, all, LOCK, 0));
    // The waiter itself cannot own it already.
    shared.word(LOCK).store(child.pid as u32, SeqCst);
    row!(rows, EDEADLK, move_to(&shared, 1, all, LOCK, 0));
    shared.word(LOCK).store(0, SeqCst);
    row!(rows, OK, move_to(&shared, 1, all, LOCK, 0));
    child.ok();
    // Who waits for the word alone is not moved to own another.
    let child = child::fork(|| _ = futex(shared.word(CONDITION), libc::FUTEX_WAIT, 0, [0; 3]));
    procfs::wait_for_sleep(child.pid);
    row!(rows, EINVAL, move_to(&shared, 1, all, LOCK, 0));
    assert_eq!(wake(shared.word(CONDITION), 1), 1);
    child.ok();
    rows.finish();
}

/// A moment so many milliseconds from now.
fn soon(milliseconds: i64) -> libc::timespec {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time lives through the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_nsec += milliseconds * 1_000_000;
    time.tv_sec += time.tv_nsec / 1_000_000_000;
    time.tv_nsec %= 1_000_000_000;
    time
}

fn times_run_out() {
    let shared = Shared::new();
    let past = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    assert_eq!(wait_for(&shared, Some(&past)), Err(Errno::ETIMEDOUT));
    assert_eq!(wait_for(&shared, Some(&soon(20))), Err(Errno::ETIMEDOUT));
    // One that is moved in time, and does not get the lock in time.
    take(&shared);
    let child = child::fork(|| {
        let limit = soon(1_000);
        assert_eq!(wait_for(&shared, Some(&limit)), Err(Errno::ETIMEDOUT));
    });
    procfs::wait_for_sleep(child.pid);
    // On a busy host it may be too late for that.
    assert!(matches!(move_to(&shared, 1, 0, LOCK, 0), Ok(0 | 1)));
    child.ok();
    assert_eq!(unlock(&shared), Ok(0));
    assert_eq!(shared.get(LOCK), 0);
}

static HANDLED: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(_: i32) {
    HANDLED.fetch_add(1, SeqCst);
}

fn signals_before_and_after() {
    let shared = Shared::new();
    take(&shared);
    let child = child::fork(|| {
        // SAFETY: a handler without SA_RESTART that adds to an atomic.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = count as *const () as usize;
            libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
        }
        // Before it is moved a signal ends nothing; after that the program is to look at its condition.
        assert_eq!(wait_for(&shared, None), Err(Errno::EAGAIN));
        assert_eq!(HANDLED.load(SeqCst), 2);
    });
    procfs::wait_for_sleep(child.pid);
    child.kill(libc::SIGUSR1);
    let pending = || procfs::status_text(child.pid, "ShdPnd").trim_start_matches('0').len();
    assert!(sys::settles(Duration::from_secs(20), || pending() == 0));
    procfs::wait_for_sleep(child.pid);
    assert_eq!(move_to(&shared, 1, 0, LOCK, 0), Ok(1));
    child.kill(libc::SIGUSR1);
    child.ok();
    assert_eq!(unlock(&shared), Ok(0));
}

fn owners_to_be_are_not_woken() {
    let shared = Shared::new();
    take(&shared);
    let child = child::fork(|| {
        assert_eq!(futex(shared.word(LOCK), libc::FUTEX_LOCK_PI, 0, [0; 3]), Ok(0));
        assert_eq!(unlock(&shared), Ok(0));
    });
    procfs::wait_for_sleep(child.pid);
    assert_eq!(futex(shared.word(LOCK), libc::FUTEX_WAKE, 1, [0; 3]), Err(Errno::EINVAL));
    assert_eq!(unlock(&shared), Ok(0));
    child.ok();
}

fn newer_wake(word: &AtomicU32, mask: usize, number: i32, flags: usize) -> Answer {
    call(SYS_FUTEX_WAKE, [address(word), mask, number as usize, flags, 0, 0])
}

fn newer_wait(word: &AtomicU32, value: usize, mask: usize, flags: usize) -> Answer {
    // Long past.
    let limit = libc::timespec { tv_sec: 0, tv_nsec: 1 };
    let arguments = [address(word), value, mask, flags, &raw const limit as usize, 1];
    call(SYS_FUTEX_WAIT, arguments)
}

fn newer_wait_and_wake() {
    let shared = Shared::new();
    let word = shared.word(0);
    assert_eq!(newer_wait(word, 0, 1, SIZE_U32), Err(Errno::ETIMEDOUT));
    assert_eq!(newer_wait(word, 1, 1, SIZE_U32), Err(Errno::EAGAIN));
    let child = child::fork(|| {
        assert_eq!(call(SYS_FUTEX_WAIT, [address(word), 0, 0b100, SIZE_U32, 0, 0]), Ok(0));
    });
    procfs::wait_for_sleep(child.pid);
    assert_eq!(newer_wake(word, 0b011, 10, SIZE_U32), Ok(0));
    assert_eq!(newer_wake(word, 0b100, 10, SIZE_U32 | PRIVATE), Ok(0));
    // None is none.
    assert_eq!(newer_wake(word, 0b100, 0, SIZE_U32), Ok(0));
    assert_eq!(newer_wake(word, 0b110, 10, SIZE_U32), Ok(1));
    child.ok();
}

fn newer_requeue() {
    let shared = Shared::new();
    let children: Vec<_> =
        (0..4).map(|_| child::fork(|| _ = futex(shared.word(0), libc::FUTEX_WAIT, 0, [0; 3]))).collect();
    children.iter().for_each(|child| procfs::wait_for_sleep(child.pid));
    let words = |value: u64, flags: usize| {
        [value, address(shared.word(0)) as u64, flags as u64, 0, address(shared.word(8)) as u64, flags as u64]
    };
    let requeue = |words: &[u64; 6], flags: usize, wake: i32, move_: i32| {
        call(SYS_FUTEX_REQUEUE, [words.as_ptr() as usize, flags, wake as usize, move_ as usize, 0, 0])
    };
    assert_eq!(requeue(&words(1, SIZE_U32), 0, 1, 2), Err(Errno::EAGAIN));
    assert_eq!(requeue(&words(0, SIZE_U32), 0, 1, 2), Ok(3));
    assert_eq!((wake(shared.word(8), 100), wake(shared.word(0), 100)), (2, 1));
    children.into_iter().for_each(Child::ok);
    let mut rows = Rows::default();
    row!(rows, EINVAL, requeue(&words(0, SIZE_U32), 1, 1, 1));
    row!(rows, EINVAL, requeue(&words(0, 0), 0, 1, 1));
    row!(rows, EINVAL, requeue(&words(1 << 32, SIZE_U32), 0, 1, 1));
    row!(rows, EINVAL, requeue(&words(0, SIZE_U32 | 1 << 40), 0, 1, 1));
    row!(rows, EINVAL, requeue(&words(0, SIZE_U32), 0, -1, 1));
    row!(rows, EINVAL, call(SYS_FUTEX_REQUEUE, [0, 0, 1, 1, 0, 0]));
    row!(rows, EFAULT, call(SYS_FUTEX_REQUEUE, [8, 0, 1, 1, 0, 0]));
    rows.finish();
}

fn newer_calls_that_are_refused() {
    let shared = Shared::new();
    let word = shared.word(0);
    let mut rows = Rows::default();
    for flags in [0, 1, 3, SIZE_U32 | 4, SIZE_U32 | 1 << 31] {
        row!(rows, EINVAL, newer_wait(word, 0, 1, flags));
        row!(rows, EINVAL, newer_wake(word, 1, 1, flags));
    }
    row!(rows, EINVAL, newer_wait(word, 1 << 32, 1, SIZE_U32));
    row!(rows, EINVAL, newer_wait(word, 0, 1 << 32, SIZE_U32));
    row!(rows, EINVAL, newer_wait(word, 0, 0, SIZE_U32));
    row!(rows, EINVAL, newer_wake(word, 0, 1, SIZE_U32));
    row!(rows, EINVAL, newer_wake(word, 1 << 32, 1, SIZE_U32));
    row!(rows, EFAULT, call(SYS_FUTEX_WAIT, [8, 0, 1, SIZE_U32, 0, 0]));
    row!(rows, EINVAL, call(SYS_FUTEX_WAIT, [address(word) + 1, 0, 1, SIZE_U32, 0, 0]));
    // A clock that is none counts only where there is a time.
    let limit = libc::timespec { tv_sec: 0, tv_nsec: 1 };
    let by_clock = |clock: usize| {
        call(SYS_FUTEX_WAIT, [address(word), 0, 1, SIZE_U32, &raw const limit as usize, clock])
    };
    row!(rows, ETIMEDOUT, by_clock(0));
    row!(rows, EINVAL, by_clock(7));
    // futex_waitv(2) looks at its words in the same way.
    let words = [1u64 << 32, address(word) as u64, SIZE_U32 as u64];
    row!(rows, EINVAL, call(libc::SYS_futex_waitv, [words.as_ptr() as usize, 1, 0, 0, 0, 0]));
    rows.finish();
}

fn relative_times_have_no_clock() {
    let word = AtomicU32::new(0);
    let limit = libc::timespec { tv_sec: 0, tv_nsec: 1 };
    let rest = [&raw const limit as usize, 0, 0];
    let operation = libc::FUTEX_WAIT | libc::FUTEX_CLOCK_REALTIME;
    assert_eq!(futex(&word, operation, 0, rest), Err(Errno::ENOSYS));
}

fn lock(shared: &Shared, index: usize) -> Answer {
    futex(shared.word(index), libc::FUTEX_LOCK_PI, 0, [0; 3])
}

/// A child that waits to own a word, is told that its last owner has died, and lets it go.
fn heir(shared: &Shared, index: usize) -> Child {
    let child = child::fork(|| {
        assert_eq!(lock(shared, index), Ok(0));
        let word = shared.get(index);
        assert_eq!(word & libc::FUTEX_TID_MASK, own_number());
        shared.word(DONE).fetch_add((word & libc::FUTEX_OWNER_DIED != 0).into(), SeqCst);
        assert_eq!(futex(shared.word(index), libc::FUTEX_UNLOCK_PI, 0, [0; 3]), Ok(0));
    });
    procfs::wait_for_sleep(child.pid);
    child
}

/// Without a list of robust futexes: the kernel knows of the word by who waits for it.
fn owner_ends() {
    let shared = Shared::new();
    std::thread::scope(|scope| {
        let owner = scope.spawn(|| {
            assert_eq!(lock(&shared, LOCK), Ok(0));
            shared.set(CONDITION, 1);
            shared.wait(CONDITION, 2);
        });
        shared.wait(CONDITION, 1);
        let heirs: Vec<_> = (0..3).map(|_| heir(&shared, LOCK)).collect();
        shared.set(CONDITION, 2);
        owner.join().unwrap();
        heirs.into_iter().for_each(Child::ok);
    });
    // The second and third own what the one before has let go of.
    assert_eq!((shared.get(DONE), shared.get(LOCK) & libc::FUTEX_TID_MASK), (1, 0));
}

/// An owner that waits until it is killed.
fn owner(shared: &Shared, words: impl Iterator<Item = usize>) -> Child {
    let child = child::fork(|| {
        words.for_each(|index| assert_eq!(lock(shared, index), Ok(0)));
        loop {
            std::thread::park();
        }
    });
    procfs::wait_for_sleep(child.pid);
    child
}

fn owner_is_killed() {
    let shared = Shared::new();
    let owner = owner(&shared, [LOCK].into_iter());
    // The first gives up before, and one comes when the owner's end is over.
    let first = heir(&shared, LOCK);
    let second = heir(&shared, LOCK);
    first.end();
    owner.end();
    second.ok();
    assert_eq!((shared.get(DONE), shared.get(LOCK) & libc::FUTEX_TID_MASK), (1, 0));
    heir_of_a_free_word(&shared);
    // Nobody waits: the word keeps the number of the dead, and nobody can have it.
    let owner = self::owner(&shared, [LOCK].into_iter());
    owner.end();
    assert_eq!(lock(&shared, LOCK), Err(Errno::ESRCH));
}

fn heir_of_a_free_word(shared: &Shared) {
    assert_eq!(lock(shared, LOCK), Ok(0));
    assert_eq!(unlock(shared), Ok(0));
}

/// An heir that is killed before it runs leaves the word to the next.
fn owner_ends_with_many_words() {
    const WORDS: std::ops::Range<usize> = 100..400;
    let shared = Shared::new();
    let owner = owner(&shared, WORDS);
    let heirs: Vec<_> =
        WORDS.step_by(10).flat_map(|index| [heir(&shared, index), heir(&shared, index)]).collect();
    owner.end();
    let count = heirs.len() as u32;
    heirs.into_iter().for_each(Child::ok);
    assert_eq!(shared.get(DONE), count / 2);
}

/// Waiters of a condition that were moved to a word whose owner ends then.
fn owner_ends_before_a_move() {
    let shared = Shared::new();
    let owner = owner(&shared, [LOCK].into_iter());
    let children: Vec<_> = (0..3).map(|_| waiter(&shared)).collect();
    assert_eq!(move_to(&shared, 1, i32::MAX as usize, LOCK, 0), Ok(3));
    children.iter().for_each(|child| procfs::wait_for_sleep(child.pid));
    owner.end();
    children.into_iter().for_each(Child::ok);
    assert_eq!(shared.get(DONE), 3);
}
