//! A call upon many threads, processes, waiters and signals holds no spin lock, and keeps its CPU, for longer than one upon few.
//!
//! Each test makes some of a thing and many times as many, uses them, and compares the kernel's own counts of
//! instructions.

use std::cell::RefCell;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use roundtable_programs::child::{self, Child, End};
use roundtable_programs::held::{compare, end, idlers, more_of};
use roundtable_programs::kinds::call;
use roundtable_programs::mem::{ANON, Map, RW, SHARED};
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{PAGE, check};
use roundtable_programs::{namespaces, procfs, tests};

tests! { waiters: 200, waiters_of_another_word: 200, requeued: 200, pending_signals: 200, timers: 200, threads: 200, signals_to_threads: 200, stopped_threads: 200, exec_of_threads: 200, filters_of_threads: 200, groups: 200, chains_of_orphans: 200, zombies_of_a_namespace: 200, children: 200, tracees: 200, signals_looked_at: 200, lists_of_groups: 200, filters_of_a_thread: 200 }

/// The wake of many who wait for one word, and their ends.
fn waiters() {
    let shared = Map::new(PAGE, RW, SHARED | ANON, -1, 0).expect("shared memory");
    let word = shared.atomic(0);
    let wait = || {
        while word.load(Ordering::SeqCst) == 0 {
            let none = std::ptr::null::<libc::timespec>();
            // SAFETY: the word lives as long as the shared page.
            unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, 0, none) };
        }
    };
    compare(
        10,
        500,
        |_| word.store(0, Ordering::SeqCst),
        |count| {
            let children: Vec<Child> = (0..count).map(|_| child::fork(wait)).collect();
            word.store(1, Ordering::SeqCst);
            // SAFETY: as above.
            unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
            children.into_iter().for_each(Child::ok);
        },
    );
}

/// Waiters of a thread: futex_waitv(2) takes no more.
const EACH: usize = 128;

/// Children that wait for a word, each [`EACH`] times.
fn wait_by(count: usize, word: usize) -> Vec<Child> {
    let wait = || {
        const SIZE_U32: u64 = 2;
        let waiters = [[0, word as u64, SIZE_U32]; EACH];
        let _ = call(libc::SYS_futex_waitv, [waiters.as_ptr() as usize, EACH, 0, 0, 0, 0]);
    };
    let children: Vec<Child> = (0..count).map(|_| child::fork(wait)).collect();
    children.iter().for_each(|child| procfs::wait_for_sleep(child.pid));
    children
}

/// Calls upon words for which nobody waits, beside many who wait for another one. Some of these words are in the same
/// bucket: there are 256.
fn waiters_of_another_word() {
    const OTHERS: usize = 4096;
    let shared = Map::new(OTHERS * 4 + PAGE, RW, SHARED | ANON, -1, 0).expect("shared memory");
    let word = |index: usize| shared.address + PAGE + index * 4;
    compare(
        1,
        200,
        |_| (),
        |count| {
            let children = wait_by(count, shared.address);
            for other in (0..OTHERS).map(word) {
                assert_eq!(call(libc::SYS_futex, [other, libc::FUTEX_WAKE as usize, 1, 0, 0, 0]), Ok(0));
                for operation in [libc::FUTEX_LOCK_PI, libc::FUTEX_UNLOCK_PI] {
                    assert_eq!(call(libc::SYS_futex, [other, operation as usize, 0, 0, 0, 0]), Ok(0));
                }
                let moved = call(libc::SYS_futex, [other, libc::FUTEX_REQUEUE as usize, 1, 1, word(0), 0]);
                assert_eq!(moved, Ok(0));
            }
            children.into_iter().for_each(Child::end);
        },
    );
}

/// Many who wait for one word, and are to wait for another one.
fn requeued() {
    let shared = Map::new(PAGE, RW, SHARED | ANON, -1, 0).expect("shared memory");
    let (from, to) = (shared.atomic(0).as_ptr() as usize, shared.atomic(8).as_ptr() as usize);
    compare(
        1,
        40,
        |_| (),
        |count| {
            let children = wait_by(count, from);
            let all = i32::MAX as usize;
            let moved = call(libc::SYS_futex, [from, libc::FUTEX_CMP_REQUEUE as usize, 0, all, to, 0]);
            assert_eq!(moved, Ok(count * EACH));
            children.into_iter().for_each(Child::end);
        },
    );
}

/// The end of a process to which many signals were sent that it has not taken.
fn pending_signals() {
    let make = |count: usize| {
        more_of(libc::RLIMIT_SIGPENDING);
        // SAFETY: the set is filled first; the rest takes integers.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut set);
            libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            for _ in 0..count {
                let value = libc::sigval { sival_ptr: std::ptr::null_mut() };
                check(libc::sigqueue(libc::getpid(), libc::SIGRTMIN(), value)).expect("sigqueue");
            }
        }
    };
    compare(100, 20_000, make, |_| ());
}

/// The end of a process with many timers.
fn timers() {
    let make = |count: usize| {
        more_of(libc::RLIMIT_SIGPENDING);
        for _ in 0..count {
            let mut timer: libc::timer_t = std::ptr::null_mut();
            let hour = libc::timespec { tv_sec: 3600, tv_nsec: 0 };
            let setting = libc::itimerspec { it_interval: hour, it_value: hour };
            // SAFETY: the identifier is written; the setting lives through the call.
            unsafe {
                check(libc::timer_create(libc::CLOCK_MONOTONIC, std::ptr::null_mut(), &mut timer))
                    .and_then(|_| check(libc::timer_settime(timer, 0, &setting, std::ptr::null_mut())))
                    .expect("timer");
            }
        }
    };
    compare(100, 10_000, make, |_| ());
}

/// Threads that wait for ever, with whatever signals the current one blocks.
fn make_threads(count: usize) {
    for _ in 0..count {
        let wait = || {
            loop {
                std::thread::park();
            }
        };
        std::thread::Builder::new().stack_size(16 << 10).spawn(wait).expect("a thread");
    }
}

const FEW_THREADS: usize = 10;

const MANY_THREADS: usize = 1_000;

/// What asks all threads of a process for something: a signal that becomes ignored, sums over threads, their list. The
/// process ends with them.
fn threads() {
    compare(FEW_THREADS, MANY_THREADS, make_threads, |count| {
        // SAFETY: ignores a signal; the rest writes to what lives through the call.
        unsafe {
            libc::signal(libc::SIGUSR1, libc::SIG_IGN);
            let mut usage: libc::rusage = std::mem::zeroed();
            check(libc::getrusage(libc::RUSAGE_SELF, &mut usage)).expect("getrusage");
            let mut time: libc::timespec = std::mem::zeroed();
            check(libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time)).expect("clock_gettime");
            check(libc::setpriority(libc::PRIO_PGRP, 0, 0)).expect("setpriority");
        }
        let tasks = std::fs::read_dir("/proc/self/task").expect("task").count();
        assert_eq!(tasks, count + 1);
        // The next process is behind the numbers of all these.
        assert!(std::fs::read_dir("/proc").expect("proc").count() > 2);
    });
}

fn change_mask(how: i32, signals: &[i32]) {
    // SAFETY: the set is filled first, and lives through the call.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        signals.iter().for_each(|signal| {
            libc::sigaddset(&mut set, *signal);
        });
        check(libc::sigprocmask(how, &set, std::ptr::null_mut())).expect("sigprocmask");
    }
}

/// A signal that all threads block, and one that only the last one takes; both change hands.
fn signals_to_threads() {
    let make = |count: usize| {
        change_mask(libc::SIG_BLOCK, &[libc::SIGUSR1, libc::SIGUSR2]);
        make_threads(count);
        let take = || {
            let mut taken = 0;
            // SAFETY: the set is filled first; the number lives through the call.
            unsafe {
                let mut set: libc::sigset_t = std::mem::zeroed();
                libc::sigemptyset(&mut set);
                libc::sigaddset(&mut set, libc::SIGUSR2);
                assert_eq!(libc::sigwait(&set, &mut taken), 0);
            }
            assert_eq!(taken, libc::SIGUSR2);
            TAKEN.store(1, Ordering::SeqCst);
        };
        std::thread::Builder::new().stack_size(16 << 10).spawn(take).expect("a thread");
    };
    compare(FEW_THREADS, MANY_THREADS, make, |_| {
        // SAFETY: takes integers.
        unsafe {
            check(libc::kill(libc::getpid(), libc::SIGUSR1)).expect("kill");
            check(libc::kill(libc::getpid(), libc::SIGUSR2)).expect("kill");
        }
        while TAKEN.load(Ordering::SeqCst) == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        // SAFETY: ignores a signal that is pending.
        unsafe { libc::signal(libc::SIGUSR1, libc::SIG_IGN) };
        change_mask(libc::SIG_UNBLOCK, &[libc::SIGUSR1]);
    });
}

static TAKEN: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

/// A process with many threads stops and goes on, several times in a row, and is killed by a stranger.
fn stopped_threads() {
    compare(
        FEW_THREADS,
        MANY_THREADS,
        |_| (),
        |count| {
            let child = child::fork(|| {
                make_threads(count);
                loop {
                    std::thread::park();
                }
            });
            let threads =
                || std::fs::read_dir(format!("/proc/{}/task", child.pid)).map_or(0, Iterator::count);
            while threads() <= count {
                std::thread::sleep(Duration::from_millis(1));
            }
            for _ in 0..3 {
                child.kill(libc::SIGSTOP);
                let stopped = (child.pid, End::Stopped(libc::SIGSTOP));
                assert_eq!(child::waitpid(child.pid, libc::WUNTRACED), Ok(stopped));
                child.kill(libc::SIGCONT);
            }
            child.end();
        },
    );
}

/// execve(2) of one of many threads: the others end.
fn exec_of_threads() {
    compare(FEW_THREADS, MANY_THREADS, make_threads, |_| {
        let busybox = [c"/bin/busybox".as_ptr(), c"true".as_ptr(), std::ptr::null()];
        // SAFETY: the strings and their list live through the call.
        unsafe { libc::execv(busybox[0], busybox.as_ptr()) };
        panic!("execv: {}", std::io::Error::last_os_error());
    });
}

/// seccomp(2) with SECCOMP_FILTER_FLAG_TSYNC: all threads get the filter.
fn filters_of_threads() {
    compare(FEW_THREADS, MANY_THREADS, make_threads, |_| {
        const ALLOW: u32 = 0x7fff_0000;
        let instruction = libc::sock_filter { code: 6, jt: 0, jf: 0, k: ALLOW };
        let program = libc::sock_fprog { len: 1, filter: (&raw const instruction).cast_mut() };
        let arguments = [1, 1, (&raw const program) as usize, 0, 0, 0];
        assert_eq!(call(libc::SYS_seccomp, arguments), Ok(0));
        let filtered = std::fs::read_dir("/proc/self/task").expect("task").all(|task| {
            let status =
                std::fs::read_to_string(task.expect("a task").path().join("status")).expect("status");
            status.contains("Seccomp:\t2")
        });
        assert!(filtered);
    });
}

/// A signal to many processes, by their group and as all of a PID namespace.
fn groups() {
    compare(
        10,
        800,
        |_| (),
        |count| {
            let first = namespaces::as_first(0, || {
                for all in [false, true] {
                    let leader = child::fork(|| {
                        // SAFETY: takes integers.
                        check(unsafe { libc::setpgid(0, 0) }).expect("setpgid");
                        for _ in 0..count {
                            child::fork(|| {
                                loop {
                                    std::thread::park();
                                }
                            })
                            .release();
                        }
                    });
                    let target = if all { -1 } else { -leader.pid };
                    leader.ok();
                    // SAFETY: takes integers.
                    check(unsafe { libc::kill(target, libc::SIGTERM) }).expect("kill");
                    while child::waitpid(-1, 0).is_ok() {}
                }
            });
            first.ok();
        },
    );
}

/// Waits for the end of a child, which stays a zombie.
fn await_end(child: i32) {
    // SAFETY: a siginfo of zeros is valid, and ours to write.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let options = libc::WEXITED | libc::WNOWAIT;
    // SAFETY: as above.
    check(unsafe { libc::waitid(libc::P_PID, child as u32, &mut info, options) }).expect("waitid");
}

/// Each process of a chain ends when its child has, and leaves that one to the next that adopts.
fn chains_of_orphans() {
    let shared = Shared::new();
    let make = |count: usize| {
        shared.set(0, 0);
        shared.set(1, 0);
        let link = || {
            for left in (0..count).rev() {
                // SAFETY: the child goes on with the loop.
                let child = check(unsafe { libc::fork() }).expect("fork");
                if child != 0 {
                    await_end(child as i32);
                    break;
                }
                if left == 0 {
                    shared.set(0, 1);
                    shared.wait_without_limit(1, 1);
                }
            }
            // SAFETY: nothing of the maker's may run in these.
            unsafe { libc::_exit(0) };
        };
        shared.set(2, child::fork(link).release() as u32);
        shared.wait_without_limit(0, 1);
    };
    compare(50, 2_500, make, |_| {
        shared.set(1, 1);
        assert_eq!(child::waitpid(shared.get(2) as i32, 0).expect("waitpid").1, End::Code(0));
    });
}

/// Nobody has waited for them when the first process of their namespace ends.
fn zombies_of_a_namespace() {
    compare(
        20,
        1_000,
        |_| (),
        |count| {
            let first = namespaces::as_first(0, || {
                let children: Vec<i32> = (0..count).map(|_| child::fork(|| ()).release()).collect();
                children.into_iter().for_each(await_end);
            });
            first.ok();
        },
    );
}

/// wait(2) for a stop of one of many children, of which none has stopped.
fn children() {
    let pids = RefCell::new(Vec::new());
    let make = |count: usize| *pids.borrow_mut() = idlers(count, || ());
    compare(16, 1_500, make, |_| {
        for group in [-1, 0] {
            let found = child::waitpid(group, libc::WUNTRACED | libc::WCONTINUED | libc::WNOHANG);
            assert_eq!(found.map(|(pid, _)| pid), Ok(0));
        }
        end(&pids.borrow());
    });
}

/// The end of a thread that traces a few, in a process whose other threads trace many.
fn tracees() {
    let trace_me = || {
        call(libc::SYS_ptrace, [libc::PTRACE_TRACEME as usize, 0, 0, 0, 0, 0]).expect("PTRACE_TRACEME");
    };
    let pids = Mutex::new(Vec::new());
    let make = |count: usize| {
        // It stays as long as this process does, and so do its tracees.
        let (made, wait) = mpsc::channel();
        std::thread::spawn(move || {
            made.send(idlers(count, trace_me)).expect("send");
            loop {
                std::thread::park();
            }
        });
        *pids.lock().unwrap() = wait.recv().expect("recv");
    };
    compare(16, 1_000, make, |_| {
        let few = std::thread::spawn(move || idlers(16, trace_me)).join().expect("join");
        end(&few);
        end(&pids.lock().unwrap());
    });
}

/// PTRACE_PEEKSIGINFO of many signals that wait.
fn signals_looked_at() {
    const MANY: usize = 20_000;
    let tracee = RefCell::new(None);
    // Touched, and of one size: a fault would be a new stretch, and its end is another matter.
    let buffer = RefCell::new(vec![1u8; 128 * MANY]);
    let make = |count: usize| {
        more_of(libc::RLIMIT_SIGPENDING);
        let ready = Shared::new();
        let child = child::fork(|| {
            change_mask(libc::SIG_BLOCK, &[libc::SIGRTMIN()]);
            for _ in 0..count {
                let value = libc::sigval { sival_ptr: std::ptr::null_mut() };
                // SAFETY: takes integers.
                check(unsafe { libc::sigqueue(libc::getpid(), libc::SIGRTMIN(), value) }).expect("sigqueue");
            }
            ready.set(0, 1);
            loop {
                std::thread::park();
            }
        });
        ready.wait_without_limit(0, 1);
        *tracee.borrow_mut() = Some(child);
    };
    compare(100, MANY, make, |count| {
        let child = tracee.take().expect("made");
        let trace = |request: u32, address: usize, data: usize| {
            call(libc::SYS_ptrace, [request as usize, child.pid as usize, address, data, 0, 0])
        };
        trace(libc::PTRACE_ATTACH, 0, 0).expect("PTRACE_ATTACH");
        child::waitpid(child.pid, libc::__WALL).expect("waitpid");
        let into = buffer.borrow_mut().as_mut_ptr() as usize;
        const SHARED_QUEUE: u64 = 1;
        let all = [0u64, SHARED_QUEUE | (count as u64) << 32];
        assert_eq!(trace(0x4209, all.as_ptr() as usize, into), Ok(count));
        // The last one, behind all others.
        let last = [count as u64 - 1, SHARED_QUEUE | 2 << 32];
        assert_eq!(trace(0x4209, last.as_ptr() as usize, into), Ok(1));
        child.end();
    });
}

/// getgroups(2), and what /proc shows of them.
fn lists_of_groups() {
    let groups = |count: usize| -> Vec<u32> { (0..count as u32).collect() };
    let make = |count: usize| {
        let groups = groups(count);
        assert_eq!(call(libc::SYS_setgroups, [count, groups.as_ptr() as usize, 0, 0, 0, 0]), Ok(0));
    };
    compare(16, 60_000, make, |count| {
        let mut found = vec![0u32; count];
        let into = found.as_mut_ptr() as usize;
        assert_eq!(call(libc::SYS_getgroups, [count, into, 0, 0, 0, 0]), Ok(count));
        assert_eq!(groups(count), found);
        std::fs::read("/proc/self/status").expect("status");
    });
}

/// The end of a thread with many filters, each on the last.
fn filters_of_a_thread() {
    compare(
        10,
        6_000,
        |_| (),
        |count| {
            child::in_child(|| {
                const ALLOW: u32 = 0x7fff_0000;
                let instruction = libc::sock_filter { code: 6, jt: 0, jf: 0, k: ALLOW };
                let program = libc::sock_fprog { len: 1, filter: (&raw const instruction).cast_mut() };
                let mut installed = 0;
                while installed < count
                    && call(libc::SYS_seccomp, [1, 0, (&raw const program) as usize, 0, 0, 0]).is_ok()
                {
                    installed += 1;
                }
                assert!(installed > 9, "{installed}");
            });
        },
    );
}
