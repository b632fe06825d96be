//! Futexes: wait, wake, requeue, time limits, keys, robust lists.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicU32, AtomicUsize};
use std::time::{Duration, Instant};

use roundtable_programs::file::Fd;
use roundtable_programs::kinds::call;
use roundtable_programs::mem::{ANON, Map, PRIVATE, RW, SHARED};
use roundtable_programs::place::become_user;
use roundtable_programs::shared::{Shared, wait, wake};
use roundtable_programs::{Errno, child, procfs, sys, tests};

tests! { value_differs, times_out, absolute_time_limit, wakes_one_and_all, wake_counts, between_processes,
key_is_the_page_not_the_address, private_keys_are_apart, anonymous_private_is_apart_after_fork, requeue,
requeue_of_many, wrong_value_requeues_nothing, bitset, interrupted_by_a_signal, killed_while_waiting, unaligned, bad_operation, strangers_have_other_keys,
robust_list, robust_lists_of_others, wake_op, no_lost_wake_up: 60 }

fn futex(word: &AtomicU32, operation: i32, value: u32, rest: [usize; 3]) -> Result<usize, Errno> {
    let arguments = [word.as_ptr() as usize, operation as usize, value as usize, rest[0], rest[1], rest[2]];
    // SAFETY: the words live through the call.
    unsafe { sys::raw(libc::SYS_futex, arguments) }
}

fn value_differs() {
    let word = AtomicU32::new(5);
    assert_eq!(wait(&word, 4, None), libc::EAGAIN);
}

fn times_out() {
    let word = AtomicU32::new(5);
    let start = Instant::now();
    assert_eq!(wait(&word, 5, Some(Duration::from_millis(50))), libc::ETIMEDOUT);
    assert!(start.elapsed() >= Duration::from_millis(50));
    assert_eq!(wait(&word, 5, Some(Duration::ZERO)), libc::ETIMEDOUT);
}

fn absolute_time_limit() {
    let word = AtomicU32::new(5);
    // The moment of the boot.
    let past = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let start = Instant::now();
    let limit = |time: &libc::timespec| [&raw const *time as usize, 0, u32::MAX as usize];
    assert_eq!(futex(&word, libc::FUTEX_WAIT_BITSET, 5, limit(&past)), Err(Errno::ETIMEDOUT));
    assert!(start.elapsed() < Duration::from_secs(5));
    let wrong = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000_000 };
    assert_eq!(futex(&word, libc::FUTEX_WAIT, 5, limit(&wrong)), Err(Errno::EINVAL));
}

fn wakes_one_and_all() {
    let shared = Shared::new();
    let children: Vec<_> = (0..5)
        .map(|_| {
            child::fork(|| {
                wait(shared.word(0), 0, Some(Duration::from_secs(30)));
                shared.word(1).fetch_add(1, SeqCst);
            })
        })
        .collect();
    children.iter().for_each(|child| procfs::wait_for_sleep(child.pid));
    assert_eq!(wake(shared.word(0), 1), 1);
    assert!(sys::settles(Duration::from_secs(20), || shared.get(1) == 1));
    assert_eq!(wake(shared.word(0), 2), 2);
    assert_eq!(wake(shared.word(0), 100), 2);
    assert_eq!(wake(shared.word(0), 100), 0);
    children.into_iter().for_each(|child| child.ok());
    assert_eq!(shared.get(1), 5);
}

fn wake_counts() {
    let word = AtomicU32::new(0);
    assert_eq!(wake(&word, 10), 0);
    assert_eq!(wake(&word, i32::MAX), 0);
}

fn between_processes() {
    let shared = Shared::new();
    let child = child::fork(|| {
        for round in 0..500 {
            shared.wait(0, round + 1);
            shared.add(1);
        }
    });
    for round in 0..500 {
        shared.add(0);
        shared.wait(1, round + 1);
    }
    child.ok();
}

fn key_is_the_page_not_the_address() {
    let file = Fd::temporary();
    file.truncate(8192).unwrap();
    let here = file.map(8192, RW, SHARED).unwrap();
    let child = child::fork(|| {
        let there = file.map_at(4096, 4096, RW, SHARED).unwrap();
        while there.atomic(100).load(SeqCst) == 0 {
            wait(there.atomic(100), 0, Some(Duration::from_secs(30)));
        }
    });
    procfs::wait_for_sleep(child.pid);
    here.atomic(4196).store(1, SeqCst);
    assert_eq!(wake(here.atomic(4196), 10), 1);
    child.ok();
}

fn private_keys_are_apart() {
    let shared = Shared::new();
    let child = child::fork(|| {
        let time = libc::timespec { tv_sec: 1, tv_nsec: 0 };
        let limit = [&raw const time as usize, 0, 0];
        let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
        assert_eq!(futex(shared.word(0), operation, 0, limit), Err(Errno::ETIMEDOUT));
    });
    procfs::wait_for_sleep(child.pid);
    assert_eq!(futex(shared.word(0), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, 10, [0; 3]), Ok(0));
    child.ok();
}

fn anonymous_private_is_apart_after_fork() {
    let map = Map::new(4096, RW, PRIVATE | ANON, -1, 0).unwrap();
    map.set(0, 0);
    let child =
        child::fork(|| assert_eq!(wait(map.atomic(0), 0, Some(Duration::from_secs(1))), libc::ETIMEDOUT));
    procfs::wait_for_sleep(child.pid);
    assert_eq!(wake(map.atomic(0), 10), 0);
    child.ok();
}

/// futex_waitv(2) for a word, so many times.
fn waitv(word: &AtomicU32, count: usize) -> Result<usize, Errno> {
    const SIZE_U32: u64 = 2;
    let waiter = [0, word.as_ptr() as u64, SIZE_U32];
    call(libc::SYS_futex_waitv, [vec![waiter; count].as_ptr() as usize, count, 0, 0, 0, 0])
}

fn requeue() {
    let shared = Shared::new();
    let children: Vec<_> =
        (0..4).map(|_| child::fork(|| _ = wait(shared.word(0), 0, Some(Duration::from_secs(30))))).collect();
    children.iter().for_each(|child| procfs::wait_for_sleep(child.pid));
    // One is woken, two are moved, one stays.
    let rest = [2, shared.word(8).as_ptr() as usize, 0];
    assert_eq!(futex(shared.word(0), libc::FUTEX_CMP_REQUEUE, 1, rest), Ok(3));
    assert_eq!(wake(shared.word(8), 100), 2);
    assert_eq!(wake(shared.word(0), 100), 1);
    children.into_iter().for_each(|child| child.ok());
}

/// More are moved than in one hold of a lock, in the order in which they came.
fn requeue_of_many() {
    const EACH: usize = 100;
    let shared = Shared::new();
    let start = || {
        let child = child::fork(|| _ = waitv(shared.word(0), EACH));
        procfs::wait_for_sleep(child.pid);
        child
    };
    let children = [start(), start(), start()];
    // To the word itself: each once, behind those that are left alone.
    let to = |index: usize, count: usize| [count, shared.word(index).as_ptr() as usize, 0];
    assert_eq!(futex(shared.word(0), libc::FUTEX_CMP_REQUEUE, 0, to(0, EACH)), Ok(EACH));
    assert_eq!(futex(shared.word(0), libc::FUTEX_CMP_REQUEUE, 0, to(0, 1 << 20)), Ok(3 * EACH));
    assert_eq!(futex(shared.word(0), libc::FUTEX_CMP_REQUEUE, 0, to(8, EACH)), Ok(EACH));
    // A thread that one of its waiters has woken takes the others away, perhaps before they are counted: how many threads that
    // concerns is told by who ends. Which one comes first after two moves to the same word is each kernel's own affair.
    let is_counted =
        |woken: i32, most: usize| assert!(1 <= woken && woken <= most as i32, "{woken} of {most}");
    let states = || children.each_ref().map(|child| procfs::state(child.pid));
    let ended = || states().into_iter().filter(|state| *state == Some('Z')).count();
    is_counted(wake(shared.word(8), 1000), EACH);
    assert!(
        sys::settles(Duration::from_secs(20), || ended() == 1),
        "one child's waiters were moved: {:?}",
        states()
    );
    is_counted(wake(shared.word(0), 1000), 2 * EACH);
    children.into_iter().for_each(|child| child.ok());
}

fn wrong_value_requeues_nothing() {
    let shared = Shared::new();
    let rest = [2, shared.word(8).as_ptr() as usize, 77];
    assert_eq!(futex(shared.word(0), libc::FUTEX_CMP_REQUEUE, 1, rest), Err(Errno::EAGAIN));
}

fn bitset() {
    let shared = Shared::new();
    let child = child::fork(|| {
        assert_eq!(futex(shared.word(0), libc::FUTEX_WAIT_BITSET, 0, [0, 0, 0b100]), Ok(0));
    });
    procfs::wait_for_sleep(child.pid);
    assert_eq!(futex(shared.word(0), libc::FUTEX_WAKE_BITSET, 10, [0, 0, 0b011]), Ok(0));
    assert_eq!(futex(shared.word(0), libc::FUTEX_WAKE_BITSET, 10, [0, 0, 0b110]), Ok(1));
    child.ok();
    assert_eq!(futex(shared.word(0), libc::FUTEX_WAKE_BITSET, 10, [0, 0, 0]), Err(Errno::EINVAL));
}

/// A key is a device, a number and an offset: no two files, segments or pieces of memory without a file may have the same.
fn strangers_have_other_keys() {
    const HUGE: usize = 2 << 20;
    roundtable_programs::huge::pool(0);
    let huge = |flags: i32| libc::MAP_HUGETLB | libc::MAP_NORESERVE | flags;
    let (mut files, mut maps) = (Vec::new(), Vec::new());
    for number in 0..24 {
        maps.push(Map::new(4096, RW, SHARED | ANON, -1, 0).unwrap());
        maps.push(Map::new(HUGE, RW, huge(SHARED | ANON), -1, 0).unwrap());
        let of_huge_pages = Fd::memfd("huge", libc::MFD_HUGETLB).unwrap();
        of_huge_pages.truncate(HUGE as u64).unwrap();
        let small = Fd::memfd("small", 0).unwrap();
        small.truncate(4096).unwrap();
        // Of the root file system.
        let path = format!("/key-{number}");
        let root = Fd::open(&path, libc::O_RDWR | libc::O_CREAT).unwrap();
        std::fs::remove_file(&path).unwrap();
        root.truncate(4096).unwrap();
        maps.push(of_huge_pages.map(HUGE, RW, SHARED | libc::MAP_NORESERVE).unwrap());
        maps.push(small.map(4096, RW, SHARED).unwrap());
        maps.push(root.map(4096, RW, SHARED).unwrap());
        files.push([of_huge_pages, small, root]);
    }
    let text = std::fs::read_to_string("/proc/self/maps").unwrap();
    let key = |map: &Map| {
        let start = format!("{:x}-", map.address);
        let line = text.lines().find(|line| line.starts_with(&start));
        // Neighbours of one file may be one line; of different files they never are.
        let words: Vec<&str> = line.unwrap_or_else(|| panic!("{start}\n{text}")).split_whitespace().collect();
        (words[3].to_owned(), words[4].to_owned())
    };
    let mut keys: Vec<_> = maps.iter().map(key).collect();
    keys.sort();
    let twice: Vec<_> = keys.windows(2).filter(|pair| pair[0] == pair[1]).collect();
    assert!(twice.is_empty(), "{twice:?}");
    // The root file system is not where shared memory is.
    let device = |map: usize| key(&maps[map]).0;
    assert_ne!(device(0), device(4), "files of the root file system can have the numbers of shared memory");
}

extern "C" fn nothing(_: i32) {}

fn interrupted_by_a_signal() {
    // SAFETY: a handler without SA_RESTART that does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
    }
    let parent = sys::pid();
    let child = child::fork(move || {
        loop {
            std::thread::sleep(Duration::from_millis(20));
            // SAFETY: takes integers.
            unsafe { libc::kill(parent, libc::SIGUSR1) };
        }
    });
    let word = AtomicU32::new(0);
    assert_eq!(wait(&word, 0, None), libc::EINTR);
    child.end();
}

fn killed_while_waiting() {
    let shared = Shared::new();
    let child = child::fork(|| _ = wait(shared.word(0), 0, None));
    procfs::wait_for_sleep(child.pid);
    child.kill(libc::SIGKILL);
    assert_eq!(child.wait(), child::End::Signal(libc::SIGKILL));
    // It does not stand in the queue any more.
    assert_eq!(wake(shared.word(0), 10), 0);
}

fn unaligned() {
    let words = [0u32; 2];
    let arguments = [words.as_ptr() as usize + 1, libc::FUTEX_WAIT as usize, 0, 0, 0, 0];
    // SAFETY: it is refused.
    assert_eq!(unsafe { sys::raw(libc::SYS_futex, arguments) }, Err(Errno::EINVAL));
}

fn bad_operation() {
    let word = AtomicU32::new(0);
    assert_eq!(futex(&word, 100, 0, [0; 3]), Err(Errno::ENOSYS));
}

/// The kernel's `struct robust_list_head`, and one entry behind it.
#[repr(C)]
struct RobustList {
    next: AtomicUsize,
    offset: usize,
    pending: usize,
    entry: AtomicUsize,
    word: AtomicU32,
}

fn robust_list() {
    let map = Map::new(4096, RW, SHARED | ANON, -1, 0).unwrap();
    // SAFETY: a zeroed page, large enough and shared, whose fields are atomics.
    let list = unsafe { &*(map.address as *const RobustList) };
    let child = child::fork(|| {
        // SAFETY: the list lives in shared memory.
        unsafe {
            let head = map.address as *mut RobustList;
            (*head).offset = std::mem::offset_of!(RobustList, word) - std::mem::offset_of!(RobustList, entry);
            (*head).entry.store(map.address, SeqCst);
            (*head).next.store(map.address + std::mem::offset_of!(RobustList, entry), SeqCst);
            sys::raw(libc::SYS_set_robust_list, [map.address, 24, 0, 0, 0, 0]).unwrap();
            // Held by this thread, with somebody waiting.
            (*head).word.store(libc::gettid() as u32 | libc::FUTEX_WAITERS, SeqCst);
            libc::kill(libc::getpid(), libc::SIGKILL);
        }
    });
    assert_eq!(child.wait(), child::End::Signal(libc::SIGKILL));
    let value = list.word.load(SeqCst);
    assert_ne!(value & libc::FUTEX_OWNER_DIED, 0, "{value:#x}");
    assert_eq!(value & libc::FUTEX_TID_MASK, 0, "{value:#x}");
}

/// Where a thread's list is tells of its memory: whoever may not look into that learns nothing.
fn robust_lists_of_others() {
    const USER: u32 = 31_415;
    let ask = |pid: i32| {
        let (mut head, mut length) = (0usize, 0usize);
        let arguments = [pid as usize, (&raw mut head) as usize, (&raw mut length) as usize, 0, 0, 0];
        call(libc::SYS_get_robust_list, arguments).map(|_| length)
    };
    let shared = Shared::new();
    let sleeper = |dumpable: usize| {
        child::fork(|| {
            become_user(USER, USER);
            assert_eq!(call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as usize, dumpable, 0, 0, 0, 0]), Ok(0));
            shared.set(dumpable, 1);
            shared.wait_without_limit(2, 1);
        })
    };
    let (shut, open) = (sleeper(0), sleeper(1));
    shared.wait(0, 1);
    shared.wait(1, 1);
    child::in_child(|| {
        become_user(USER, USER);
        assert_eq!(
            [open.pid, shut.pid, 1, 0].map(ask),
            [Ok(24), Err(Errno::EPERM), Err(Errno::EPERM), Ok(24)]
        );
    });
    assert_eq!([open.pid, shut.pid].map(ask), [Ok(24), Ok(24)]);
}

fn wake_op() {
    let shared = Shared::new();
    let child = child::fork(|| _ = wait(shared.word(8), 0, Some(Duration::from_secs(30))));
    procfs::wait_for_sleep(child.pid);
    // Word 4: set to 3; if it was 0, wake word 8's too.
    let operation = 3 << 12;
    let rest = [10, shared.word(8).as_ptr() as usize, operation];
    // The second word is both the one changed and the one of the second wake.
    assert_eq!(futex(shared.word(0), libc::FUTEX_WAKE_OP, 1, rest), Ok(1));
    assert_eq!(shared.get(8), 3);
    child.ok();
}

fn no_lost_wake_up() {
    // Three processes hand a token around; a lost wake-up would end it.
    let shared = Shared::new();
    let children: Vec<_> = (0..3u32)
        .map(|me| {
            let shared = &shared;
            child::fork(move || {
                for round in 0..1000 {
                    let mine = round * 3 + me;
                    while shared.get(0) != mine {
                        let now = shared.get(0);
                        if now != mine {
                            wait(shared.word(0), now, None);
                        }
                    }
                    shared.set(0, mine + 1);
                }
            })
        })
        .collect();
    children.into_iter().for_each(|child| child.ok());
    assert_eq!(shared.get(0), 3000);
}
