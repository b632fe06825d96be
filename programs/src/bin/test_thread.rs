//! Threads: that they run at once, share what they should, and see each other's unmapping at once.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Condvar, Mutex, RwLock, mpsc};
use std::time::{Duration, Instant};

use roundtable_programs::fault::{self, Fault};
use roundtable_programs::file::Fd;
use roundtable_programs::harness::skip;
use roundtable_programs::huge::{self, HUGE};
use roundtable_programs::mem::{ANON, Map, PRIVATE, R, RW, SHARED, mprotect, munmap};
use roundtable_programs::procfs;
use roundtable_programs::{child, sys, tests};

tests! { two_cpus_at_once: 60, spinning_threads_share_one_cpu: 60, unmapped_by_another_cpu: 60,
protected_by_another_cpu: 60, huge_unmapped_by_another_cpu: 60, huge_punched_by_another_cpu: 60, join_gives_values,
mutex_and_condvar, channels, barrier_of_many, thread_locals, rwlock, scoped, many_short_threads: 60,
tids_and_tasks, stack_sizes, panic_in_a_thread, parallel_faults: 60, parallel_mmap: 60, fork_from_a_thread,
exec_from_a_thread, sleeping_threads_wake, vector_registers_are_each_threads_own, cpus_are_all_used, threads_that_end_at_once: 60 }

fn two_cpus() -> (usize, usize) {
    let cpus = sys::cpus();
    if cpus.len() < 2 {
        skip("one CPU");
    }
    (cpus[0], cpus[1])
}

/// Waits without a system call.
fn spin_until(condition: impl Fn() -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        for _ in 0..1000 {
            if condition() {
                return true;
            }
            std::hint::spin_loop();
        }
        if Instant::now() > end {
            return false;
        }
    }
}

fn two_cpus_at_once() {
    let (one, two) = two_cpus();
    let turn = Arc::new(AtomicU32::new(0));
    // Each waits for the other's answer, without giving up its CPU. Were they to take turns on one CPU, or on two CPUs
    // of which one stands still, each hand-over would take a time slice of some milliseconds.
    const ROUNDS: u32 = 20_000;
    let other = turn.clone();
    let thread = std::thread::spawn(move || {
        sys::pin(two);
        for round in 0..ROUNDS {
            assert!(spin_until(|| other.load(SeqCst) == 2 * round + 1));
            other.store(2 * round + 2, SeqCst);
        }
        sys::current_cpu()
    });
    sys::pin(one);
    let start = Instant::now();
    for round in 0..ROUNDS {
        turn.store(2 * round + 1, SeqCst);
        assert!(spin_until(|| turn.load(SeqCst) == 2 * round + 2), "round {round}");
    }
    let time = start.elapsed();
    assert_eq!((sys::current_cpu(), thread.join().unwrap()), (one, two));
    assert!(time < Duration::from_secs(30), "{ROUNDS} rounds took {time:?}");
}

fn spinning_threads_share_one_cpu() {
    let cpu = sys::cpus()[0];
    let counts = Arc::new([const { AtomicU32::new(0) }; 3]);
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..3)
        .map(|index| {
            let (counts, stop) = (counts.clone(), stop.clone());
            std::thread::spawn(move || {
                sys::pin(cpu);
                while !stop.load(SeqCst) {
                    counts[index].fetch_add(1, SeqCst);
                }
            })
        })
        .collect();
    // None of them makes a system call: only preemption lets all of them run.
    let all = sys::settles(Duration::from_secs(20), || counts.iter().all(|count| count.load(SeqCst) > 1000));
    stop.store(true, SeqCst);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(all, "{counts:?}");
}

/// One thread writes without pause; another CPU takes the page away, and from then on no write may succeed.
fn taken_by_another_cpu(
    (one, two): (usize, usize),
    map: &Map,
    expected: impl Fn(usize) -> Fault,
    take: impl Fn(),
) {
    let (address, started, taken, late) = (
        map.address,
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let thread = {
        let (started, taken, late) = (started.clone(), taken.clone(), late.clone());
        std::thread::spawn(move || {
            sys::pin(two);
            loop {
                let was_taken = taken.load(SeqCst);
                let result = fault::write(address, 1);
                started.store(true, SeqCst);
                if let Err(fault) = result {
                    return fault;
                }
                if was_taken {
                    late.fetch_add(1, SeqCst);
                }
            }
        })
    };
    sys::pin(one);
    assert!(spin_until(|| started.load(SeqCst)));
    take();
    taken.store(true, SeqCst);
    let fault = thread.join().unwrap();
    assert_eq!(late.load(SeqCst), 0, "writes succeeded after the page was taken away");
    assert_eq!(fault, expected(address));
}

fn unmapped_by_another_cpu() {
    let cpus = two_cpus();
    for _ in 0..50 {
        let map = Map::anonymous(4096);
        taken_by_another_cpu(cpus, &map, Fault::unmapped, || munmap(map.address, 4096).unwrap());
    }
}

fn protected_by_another_cpu() {
    let cpus = two_cpus();
    for _ in 0..50 {
        let map = Map::anonymous(4096);
        taken_by_another_cpu(cpus, &map, Fault::forbidden, || mprotect(map.address, 4096, R).unwrap());
    }
}

fn huge_unmapped_by_another_cpu() {
    let cpus = two_cpus();
    huge::pool(2);
    for _ in 0..20 {
        let map = Map::new(HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0).unwrap();
        taken_by_another_cpu(cpus, &map, Fault::unmapped, || munmap(map.address, HUGE).unwrap());
    }
}

fn huge_punched_by_another_cpu() {
    let cpus = two_cpus();
    huge::pool(2);
    for _ in 0..20 {
        let file = huge::sized(1);
        let map = file.map(HUGE, RW, SHARED).unwrap();
        taken_by_another_cpu(cpus, &map, Fault::bus, || file.truncate(0).unwrap());
        huge::expect_pool(2, 0);
    }
}

fn join_gives_values() {
    let threads: Vec<_> = (0..10u64).map(|number| std::thread::spawn(move || number * number)).collect();
    let sum: u64 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert_eq!(sum, 285);
}

fn mutex_and_condvar() {
    let pair = Arc::new((Mutex::new(0u32), Condvar::new()));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let pair = pair.clone();
            std::thread::spawn(move || {
                for _ in 0..2000 {
                    *pair.0.lock().unwrap() += 1;
                    pair.1.notify_one();
                }
            })
        })
        .collect();
    let mut count = pair.0.lock().unwrap();
    while *count < 8000 {
        let (guard, timeout) = pair.1.wait_timeout(count, Duration::from_secs(20)).unwrap();
        count = guard;
        assert!(!timeout.timed_out(), "{count}");
    }
    drop(count);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

fn channels() {
    let (send, receive) = mpsc::sync_channel(2);
    let thread = std::thread::spawn(move || (0..5000).for_each(|number| send.send(number).unwrap()));
    assert!(receive.iter().eq(0..5000));
    thread.join().unwrap();
}

fn barrier_of_many() {
    let barrier = Arc::new(Barrier::new(16));
    let count = Arc::new(AtomicU32::new(0));
    let threads: Vec<_> = (0..16)
        .map(|_| {
            let (barrier, count) = (barrier.clone(), count.clone());
            std::thread::spawn(move || {
                for round in 1..=20 {
                    count.fetch_add(1, SeqCst);
                    barrier.wait();
                    assert_eq!(count.load(SeqCst), 16 * round);
                    barrier.wait();
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

fn thread_locals() {
    thread_local!(static MINE: std::cell::Cell<u64> = const { std::cell::Cell::new(0) });
    let threads: Vec<_> = (1..=8u64)
        .map(|number| {
            std::thread::spawn(move || {
                for turn in 0..500 {
                    MINE.set(number * 1000 + turn);
                    if turn % 50 == 0 {
                        std::thread::yield_now();
                    }
                    assert_eq!(MINE.get(), number * 1000 + turn);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(MINE.get(), 0);
}

fn rwlock() {
    let lock = Arc::new(RwLock::new((0u64, 0u64)));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..2000 {
                    let pair = lock.read().unwrap();
                    assert_eq!(pair.0 * 2, pair.1);
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..1000 {
                    let mut pair = lock.write().unwrap();
                    pair.0 += 1;
                    pair.1 += 2;
                }
            });
        }
    });
    assert_eq!(*lock.read().unwrap(), (2000, 4000));
}

fn scoped() {
    let mut numbers = vec![0; 1000];
    std::thread::scope(|scope| {
        for (index, part) in numbers.chunks_mut(250).enumerate() {
            scope.spawn(move || part.fill(index));
        }
    });
    assert_eq!(numbers.iter().sum::<usize>(), 250 * 6);
}

fn many_short_threads() {
    for round in 0..300 {
        assert_eq!(std::thread::spawn(move || round).join().unwrap(), round);
    }
}

fn tids_and_tasks() {
    // SAFETY: takes nothing.
    let tid = || unsafe { libc::gettid() };
    assert_eq!(tid(), sys::pid());
    let (send, receive) = mpsc::channel();
    let stop = Arc::new(Barrier::new(2));
    let thread = {
        let stop = stop.clone();
        std::thread::Builder::new().name("worker".into()).spawn(move || {
            send.send((tid(), sys::pid())).unwrap();
            stop.wait();
        })
    };
    let (other, process) = receive.recv().unwrap();
    assert_eq!(process, sys::pid());
    assert_ne!(other, tid());
    let mut tasks: Vec<i32> = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    tasks.sort_unstable();
    assert_eq!(tasks, [tid(), other]);
    assert_eq!(procfs::status(sys::pid(), "Threads"), 2);
    let comm = std::fs::read_to_string(format!("/proc/self/task/{other}/comm")).unwrap();
    assert_eq!(comm, "worker\n");
    stop.wait();
    thread.unwrap().join().unwrap();
    assert!(sys::settles(Duration::from_secs(5), || procfs::status(sys::pid(), "Threads") == 1));
}

fn stack_sizes() {
    #[inline(never)]
    fn dive(depth: u32) -> u32 {
        let space = std::hint::black_box([depth; 256]);
        if depth == 0 { 0 } else { dive(depth - 1) + std::hint::black_box(space)[3] / depth }
    }
    let thread = std::thread::Builder::new().stack_size(32 << 20).spawn(|| dive(8_000)).unwrap();
    assert_eq!(thread.join().unwrap(), 8_000);
}

fn panic_in_a_thread() {
    let thread = std::thread::spawn(|| {
        if std::hint::black_box(true) {
            std::panic::resume_unwind(Box::new("expected"));
        }
    });
    assert_eq!(thread.join().unwrap_err().downcast_ref::<&str>(), Some(&"expected"));
}

fn parallel_faults() {
    let pages = 2000;
    let map = Map::anonymous(pages * 4096);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let map = &map;
            scope.spawn(move || {
                for page in 0..pages {
                    // All threads fault on all pages, at about the same time.
                    map.set(page * 4096 + thread, thread as u8 + 1);
                }
            });
        }
    });
    for page in 0..pages {
        assert_eq!([0, 1, 2, 3].map(|thread| map.get(page * 4096 + thread)), [1, 2, 3, 4], "page {page}");
    }
}

fn parallel_mmap() {
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            scope.spawn(move || {
                for _ in 0..300 {
                    let map = Map::anonymous(8 * 4096);
                    (0..8).for_each(|page| map.set(page * 4096, thread));
                    mprotect(map.address + 4096, 4096, R).unwrap();
                    assert!((0..8).all(|page| map.get(page * 4096) == thread));
                }
            });
        }
    });
}

fn fork_from_a_thread() {
    std::thread::spawn(|| {
        // SAFETY: the child makes system calls only.
        let pid = sys::check(unsafe { libc::fork() }).unwrap() as i32;
        if pid == 0 {
            // Only the thread that forked is in the child, and it is its first.
            // SAFETY: these take integers.
            unsafe { libc::_exit(i32::from(libc::gettid() != libc::getpid())) }
        }
        assert_eq!(child::waitpid(pid, 0).unwrap().1, child::End::Code(0));
    })
    .join()
    .unwrap();
}

fn exec_from_a_thread() {
    let end = child::fork(|| {
        let before = sys::pid();
        std::thread::spawn(move || {
            assert_eq!(before, sys::pid());
            let path = sys::c_string("/proc/self/exe");
            let list = sys::c_string("--list");
            let words = [path.as_ptr(), list.as_ptr(), std::ptr::null()];
            let null = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
            // SAFETY: the words are NUL-terminated, the list ends with null; dup2 takes integers.
            unsafe {
                libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), 1);
                libc::execv(path.as_ptr(), words.as_ptr());
            }
        })
        .join()
        .unwrap();
        panic!("execv came back");
    });
    // The process keeps its number, and the thread that called becomes its first.
    end.ok();
}

fn sleeping_threads_wake() {
    let start = Instant::now();
    let threads: Vec<_> =
        (0..20).map(|_| std::thread::spawn(|| std::thread::sleep(Duration::from_millis(200)))).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(start.elapsed() >= Duration::from_millis(200));
    assert!(start.elapsed() < Duration::from_secs(15), "they slept one after the other");
}

fn vector_registers_are_each_threads_own() {
    let cpu = sys::cpus()[0];
    let threads: Vec<_> = (1..=4u64)
        .map(|number| {
            std::thread::spawn(move || {
                sys::pin(cpu);
                for turn in 0..2000u64 {
                    let mine = number << 32 | turn;
                    let (low, high): (u64, u64);
                    // SAFETY: a system call between setting and reading registers that it must keep.
                    unsafe {
                        std::arch::asm!(
                            "movq xmm3, {mine}", "movq xmm15, {mine}", "syscall",
                            "movq {low}, xmm3", "movq {high}, xmm15",
                            mine = in(reg) mine, low = lateout(reg) low, high = lateout(reg) high,
                            inlateout("rax") libc::SYS_sched_yield => _,
                            out("rcx") _, out("r11") _, out("xmm3") _, out("xmm15") _,
                        );
                    }
                    assert_eq!((low, high), (mine, mine));
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

fn cpus_are_all_used() {
    let cpus = sys::cpus();
    let seen = Mutex::new(std::collections::BTreeSet::new());
    let end = Instant::now() + Duration::from_secs(20);
    std::thread::scope(|scope| {
        for _ in 0..cpus.len() {
            scope.spawn(|| {
                while Instant::now() < end {
                    for _ in 0..10_000 {
                        std::hint::spin_loop();
                    }
                    let mut seen = seen.lock().unwrap();
                    seen.insert(sys::current_cpu());
                    if seen.len() == cpus.len() {
                        break;
                    }
                }
            });
        }
    });
    assert!(seen.lock().unwrap().iter().eq(cpus.iter()), "the scheduler left CPUs idle");
}

/// The last of a process's threads gives its memory back, also if several end at the same moment and nobody waits for the process.
fn threads_that_end_at_once() {
    const THREADS: u32 = 4;
    for _ in 0..100 {
        let file = Fd::memfd("sealed", libc::MFD_ALLOW_SEALING).unwrap();
        file.truncate(sys::PAGE as u64).unwrap();
        let child = child::fork(|| {
            let map = file.map(sys::PAGE, RW, SHARED).unwrap();
            let map: &'static Map = Box::leak(Box::new(map));
            let end_together = move || {
                map.atomic(0).fetch_add(1, SeqCst);
                while map.atomic(0).load(SeqCst) < THREADS {
                    std::hint::spin_loop();
                }
                // SAFETY: ends the thread, on whose stack nothing waits to be dropped.
                unsafe { libc::syscall(libc::SYS_exit, 0) };
            };
            for _ in 1..THREADS {
                std::thread::spawn(end_together);
            }
            end_together();
        });
        // SAFETY: the structure is a local; the child stays to be waited for.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let flags = libc::WEXITED | libc::WNOWAIT;
            assert_eq!(libc::waitid(libc::P_PID, child.pid as u32, &mut info, flags), 0);
        }
        // SAFETY: takes integers.
        let sealed = || unsafe { libc::fcntl(file.raw(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE) };
        // Refused as long as somebody has it mapped so that stores reach it.
        assert!(
            sys::settles(Duration::from_secs(5), || sealed() == 0),
            "a process that has ended keeps its memory"
        );
        child.ok();
    }
}
