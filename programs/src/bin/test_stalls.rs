//! A call upon many of a thing holds no spin lock, and keeps its CPU, for longer than one upon few.
//!
//! Each test makes some of a thing and many times as many, uses them, and compares the kernel's own counts of
//! instructions. `stalls` prints more, of the kernel as it is shipped.

use std::cell::RefCell;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use roundtable_programs::child::{self, Child, End};
use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::held::compare;
use roundtable_programs::huge::{self, HUGE};
use roundtable_programs::kinds::call;
use roundtable_programs::mem::{ANON, FIXED, Map, NORESERVE, PRIVATE, R, RW, SHARED, mmap, mprotect, munmap};
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{PAGE, c_string, check};
use roundtable_programs::uffd::{MISSING, Uffd, ZEROPAGE};
use roundtable_programs::{Errno, namespaces, place, procfs, tests};

tests! { descriptors: 200, areas: 200, separate_areas: 200, windows: 200, sizes: 200, waiters: 200, waiters_of_another_word: 200, requeued: 200,
pending_signals: 200, timers: 200, threads: 200, signals_to_threads: 200, stopped_threads: 200, exec_of_threads: 200,
filters_of_threads: 200, groups: 200, chains_of_orphans: 200, zombies_of_a_namespace: 200, children: 200, tracees: 200,
kept_mounts: 200, reprints: 200, erasures: 200, random_numbers: 200, signals_looked_at: 200, lists_of_groups: 200, removed_messages: 200,
filters_of_a_thread: 200, undone_operations: 200, completions: 200, emptied_pipes: 200, lists_of_objects: 200, watched_faults: 200,
trees_and_groups: 200, stacked_mounts: 200, ends_of_ipc_namespaces: 200, lists_of_mounts: 200 }

fn more_of(resource: libc::__rlimit_resource_t) {
    let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
    // SAFETY: the limit lives through the call.
    check(unsafe { libc::setrlimit(resource, &limit) }).expect("setrlimit");
}

/// fork(2), and the end of a process, with many descriptors.
fn descriptors() {
    let make = |count: usize| {
        more_of(libc::RLIMIT_NOFILE);
        for _ in 0..count {
            // SAFETY: takes an integer.
            check(unsafe { libc::dup(0) }).expect("dup");
        }
    };
    compare(100, 50_000, make, |_| child::in_child(|| ()));
}

/// Many areas that never become one: what looks at all of them, though there is nothing to do. The process ends with them.
fn separate_areas() {
    procfs::write("/proc/sys/vm/max_map_count", 1 << 20).expect("max_map_count");
    let at = Map::new(PAGE, RW, SHARED | ANON, -1, 0).expect("shared memory");
    let make = |count: usize| {
        let file = Fd::of_pages(1);
        let place = Map::reserve(count * PAGE, PAGE);
        for index in 0..count {
            let address = place.address + index * PAGE;
            mmap(address, PAGE, R, SHARED | FIXED, file.raw(), 0).expect("mmap");
        }
        at.set_u64(0, place.address as u64);
        std::mem::forget(place);
    };
    compare(100, 30_000, make, |count| {
        let (address, length) = (at.get_u64(0) as usize, count * PAGE);
        mprotect(address, length, R).expect("mprotect");
        let arguments = [address, length, 0, 0, 0, 0];
        assert_eq!(call(libc::SYS_munlock, arguments), Ok(0));
        assert_eq!(call(libc::SYS_msync, [address, length, libc::MS_ASYNC as usize, 0, 0, 0]), Ok(0));
        for name in ["statm", "status", "smaps_rollup"] {
            std::fs::read(format!("/proc/self/{name}")).expect(name);
        }
        // A child has to find out where there is room.
        child::in_child(|| drop(Map::new(PAGE, RW, PRIVATE | ANON, -1, 0).expect("mmap")));
    });
}

/// Many windows of one file of huge pages: a page comes and goes, and the process forks and ends.
fn windows() {
    const PAGES: usize = 64;
    procfs::write("/proc/sys/vm/max_map_count", 1 << 20).expect("max_map_count");
    huge::pool(PAGES as u64 + 8);
    let file = huge::sized(4 * 512);
    let at = Map::new(PAGE, RW, SHARED | ANON, -1, 0).expect("shared memory");
    let make = |count: usize| at.set_u64(0, huge::windows(&file, count)[0].0 as u64);
    compare(1, 4_000, make, |_| {
        let (offset, length) = ((220 * HUGE) as u64, (PAGES * HUGE) as u64);
        // SAFETY: in the first window, which begins with the file.
        unsafe { ((at.get_u64(0) as usize + 230 * HUGE) as *mut u64).write_volatile(1) }
        file.fallocate(0, offset, length).expect("fallocate");
        child::in_child(|| ());
        file.punch(offset, length).expect("punch");
    });
}

/// Mappings of much that is empty, in TiB.
fn sizes() {
    const TIB: usize = 1 << 40;
    huge::pool(8);
    let file = huge::sized(64 * TIB / HUGE);
    compare(
        1,
        32,
        |_| (),
        |count| {
            let map = file.map(count * TIB, RW, SHARED | NORESERVE).expect("mmap");
            let private = file.map(count * TIB, RW, PRIVATE | NORESERVE).expect("mmap");
            map.set(TIB / 2, 1);
            child::in_child(|| ());
            mprotect(map.address, map.length, R).expect("mprotect");
            file.punch(0, (count * TIB) as u64).expect("punch");
            drop((map, private));
            file.truncate(0).expect("ftruncate");
            file.truncate((64 * TIB) as u64).expect("ftruncate");
        },
    );
}

/// fork(2), mprotect(2) and munmap(2) of many areas.
fn areas() {
    const MANY: usize = 20_000;
    let at = Map::new(PAGE, RW, SHARED | ANON, -1, 0).expect("shared memory");
    let cut = |count: usize| {
        let length = count * PAGE;
        let address = mmap(0, length, RW, PRIVATE | ANON | NORESERVE, -1, 0).expect("mmap");
        (0..count).step_by(2).for_each(|index| mprotect(address + index * PAGE, PAGE, R).expect("mprotect"));
        at.set_u64(0, address as u64);
    };
    compare(100, MANY, cut, |count| {
        let (address, length) = (at.get_u64(0) as usize, count * PAGE);
        child::in_child(|| munmap(address, length).expect("munmap"));
        mprotect(address, length, R).expect("mprotect");
        munmap(address, length).expect("munmap");
    });
}

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

/// Processes that do nothing, each after `begin`.
fn idlers(count: usize, begin: impl Fn()) -> Vec<i32> {
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
fn end(pids: &[i32]) {
    for pid in pids {
        // SAFETY: takes integers.
        check(unsafe { libc::kill(*pid, libc::SIGKILL) }).expect("kill");
        child::waitpid(*pid, libc::__WALL).expect("waitpid");
    }
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

/// A walk in a tree that was taken out, past what locked mounts cover there.
fn kept_mounts() {
    const FROM: &str = "/tmp/kept";
    const TO: &str = "/tmp/kept-here";
    let mount = |source: &str, target: &str, kind: &str, flags: u64| {
        let [source, target, kind] = [source, target, kind].map(c_string);
        // SAFETY: all are NUL-terminated and live through the call.
        let result =
            unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) };
        check(result).expect("mount");
    };
    let make = |count: usize| {
        for path in [FROM, TO] {
            let _ = std::fs::create_dir(path);
        }
        namespaces::unshare(namespaces::NEWNS).expect("unshare");
        mount("none", FROM, "tmpfs", 0);
        for index in 0..count {
            let path = format!("{FROM}/{index}");
            std::fs::create_dir(&path).expect("mkdir");
            mount(TO, &path, "", libc::MS_BIND);
        }
        namespaces::unshare(namespaces::NEWUSER | namespaces::NEWNS).expect("unshare");
        mount(FROM, TO, "", libc::MS_BIND | libc::MS_REC);
        std::env::set_current_dir(TO).expect("chdir");
        // SAFETY: the text lives through the call.
        check(unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) }).expect("umount");
    };
    compare(50, 4_000, make, |count| {
        for index in [0, 1, count - 1] {
            std::fs::metadata(index.to_string()).expect("stat");
        }
    });
}

fn mount(source: &str, target: &str, kind: &str, flags: u64) {
    place::mount(source, target, kind, flags, "").unwrap_or_else(|errno| panic!("{target}: {errno}"));
}

/// A tmpfs in a mount namespace of one's own.
fn own_mounts(at: &str) {
    let _ = std::fs::create_dir(at);
    namespaces::unshare(namespaces::NEWNS).expect("unshare");
    mount("none", "/", "", libc::MS_REC | libc::MS_PRIVATE);
    mount("none", at, "tmpfs", 0);
}

/// A tree comes to where a mount is that has many groups of slaves, which show nothing of it.
fn trees_and_groups() {
    const AT: &str = "/tmp/stalls-groups";
    let path = |name: &str| format!("{AT}/{name}");
    let folder = |name: &str| {
        std::fs::create_dir(path(name)).expect("mkdir");
        path(name)
    };
    let make = |count: usize| {
        own_mounts(AT);
        let shared = folder("shared");
        mount("none", &shared, "tmpfs", 0);
        mount("none", &shared, "", libc::MS_SHARED);
        let (_, part) = (folder("shared/place"), folder("shared/part"));
        for index in 0..count {
            let slave = folder(&format!("slave-{index}"));
            mount(&part, &slave, "", libc::MS_BIND);
            mount("none", &slave, "", libc::MS_SLAVE);
            mount("none", &slave, "", libc::MS_SHARED);
        }
        let tree = folder("tree");
        mount("none", &tree, "tmpfs", 0);
        for index in 0..count {
            let below = folder(&format!("tree/{index}"));
            mount(&below, &below, "", libc::MS_BIND);
        }
    };
    compare(10, 300, make, |_| mount(&path("tree"), &path("shared/place"), "", libc::MS_MOVE));
}

/// A walk over many mounts that are each on the one before.
fn stacked_mounts() {
    const AT: &str = "/tmp/stalls-stack";
    let make = |count: usize| {
        own_mounts(AT);
        // The lowest: all others are on it.
        std::env::set_current_dir(AT).expect("chdir");
        for _ in 0..count.ilog2() {
            mount(".", ".", "", libc::MS_BIND | libc::MS_REC);
        }
    };
    compare(16, 4096, make, |_| {
        std::fs::metadata(AT).expect("stat");
    });
}

/// The list of many mounts is put in order.
fn lists_of_mounts() {
    const AT: &str = "/tmp/stalls-list";
    let make = |count: usize| {
        own_mounts(AT);
        for index in 0..256 {
            std::fs::create_dir(format!("{AT}/{index}")).expect("mkdir");
        }
        for index in 0..count {
            let path = format!("{AT}/{}", index % 256);
            mount(&path, &path, "", libc::MS_BIND);
        }
    };
    compare(100, 8_000, make, |_| {
        let file = Fd::open("/proc/self/mounts", libc::O_RDONLY).expect("mounts");
        assert_eq!(file.read(&mut [0; 1]), Ok(1));
    });
}

/// A namespace ends with what System V objects it has.
fn ends_of_ipc_namespaces() {
    let make = |count: usize| {
        namespaces::unshare(namespaces::NEWIPC).expect("unshare");
        for _ in 0..count {
            let flags = libc::IPC_CREAT as usize | 0o600;
            call(libc::SYS_semget, [0, 1, flags, 0, 0, 0]).expect("semget");
            call(libc::SYS_msgget, [0, flags, 0, 0, 0, 0]).expect("msgget");
        }
    };
    compare(100, 8_000, make, |_| ());
}

/// A terminal that edits lines and shows them, by its master: `line` is typed.
fn typed(line: &[u8]) -> (Fd, Fd) {
    if std::fs::metadata("/dev/pts/ptmx").is_err() {
        let _ = place::mkdir("/dev/pts", 0o755);
        let _ = place::mount("devpts", "/dev/pts", "devpts", 0, "");
    }
    let master = Fd::open("/dev/ptmx", libc::O_RDWR | libc::O_NOCTTY).expect("/dev/ptmx");
    let (mut number, mut lock) = (0u32, 0i32);
    // SAFETY: the numbers live through the calls.
    unsafe {
        check(libc::ioctl(master.raw(), libc::TIOCGPTN, &mut number)).expect("TIOCGPTN");
        check(libc::ioctl(master.raw(), libc::TIOCSPTLCK, &mut lock)).expect("TIOCSPTLCK");
    }
    let slave = Fd::open(&format!("/dev/pts/{number}"), libc::O_RDWR | libc::O_NOCTTY).expect("slave");
    assert_eq!(master.write(line), Ok(line.len()));
    (master, slave)
}

/// ^R shows the line again, each time.
fn reprints() {
    let terminal = RefCell::new(None);
    let make = |count: usize| *terminal.borrow_mut() = Some(typed(&vec![b'a'; count]));
    compare(10, 4_000, make, |_| {
        let terminal = terminal.borrow();
        let (master, _) = terminal.as_ref().expect("made");
        assert_eq!(master.write(&[0x12; 512]), Ok(512));
    });
}

/// Erasing a tab looks at what is before it in the line; ^U and ^W take the line away, character by character.
fn erasures() {
    let terminal = RefCell::new(None);
    let make = |count: usize| *terminal.borrow_mut() = Some(typed(&vec![b'a'; count]));
    compare(10, 4_000, make, |count| {
        let terminal = terminal.borrow();
        let (master, _) = terminal.as_ref().expect("made");
        assert_eq!(master.write(&[b'\t', 0x7f].repeat(256)), Ok(512));
        for kill in [0x17, 0x15] {
            assert_eq!(master.write(&[kill]), Ok(1));
            assert_eq!(master.write(&vec![b'a'; count]), Ok(count));
        }
    });
}

/// getrandom(2), and a read of the device.
fn random_numbers() {
    compare(
        64,
        1 << 18,
        |_| (),
        |count| {
            // Touched: a fault would be a new stretch.
            let mut buffer = vec![1u8; count];
            let into = buffer.as_mut_ptr() as usize;
            assert_eq!(call(libc::SYS_getrandom, [into, count, 0, 0, 0, 0]), Ok(count));
            let device = Fd::open("/dev/urandom", libc::O_RDONLY).expect("/dev/urandom");
            assert_eq!(device.read(&mut buffer), Ok(count));
        },
    );
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

/// A queue of many messages: looks for one of another type, and its end.
fn removed_messages() {
    let queue = RefCell::new(0);
    let make = |count: usize| {
        let id = call(libc::SYS_msgget, [0, libc::IPC_CREAT as usize | 0o600, 0, 0, 0, 0]).expect("msgget");
        let kind = 1u64;
        for _ in 0..count {
            assert_eq!(call(libc::SYS_msgsnd, [id, &raw const kind as usize, 0, 0, 0, 0]), Ok(0));
        }
        *queue.borrow_mut() = id;
    };
    compare(100, 16_000, make, |_| {
        let (id, mut kind) = (*queue.borrow(), 0u64);
        let flags = (libc::MSG_EXCEPT | libc::IPC_NOWAIT) as usize;
        let found = call(libc::SYS_msgrcv, [id, &raw mut kind as usize, 0, 1, flags, 0]);
        assert_eq!(found, Err(Errno::ENOMSG));
        assert_eq!(call(libc::SYS_msgctl, [id, libc::IPC_RMID as usize, 0, 0, 0, 0]), Ok(0));
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

/// SETVAL and SETALL of a set whose operations many processes would undo.
fn undone_operations() {
    const NUMBER: usize = 1000;
    let set = RefCell::new((0, Vec::new()));
    let make = |count: usize| {
        let id =
            call(libc::SYS_semget, [0, NUMBER, libc::IPC_CREAT as usize | 0o600, 0, 0, 0]).expect("semget");
        let pids = idlers(count, || {
            let operation = libc::sembuf { sem_num: 0, sem_op: 1, sem_flg: libc::SEM_UNDO as i16 };
            assert_eq!(call(libc::SYS_semop, [id, &raw const operation as usize, 1, 0, 0, 0]), Ok(0));
        });
        let value = || call(libc::SYS_semctl, [id, 0, libc::GETVAL as usize, 0, 0, 0]).expect("GETVAL");
        while value() != count {
            std::thread::sleep(Duration::from_millis(1));
        }
        *set.borrow_mut() = (id, pids);
    };
    compare(10, 400, make, |_| {
        let (id, pids) = set.take();
        assert_eq!(call(libc::SYS_semctl, [id, 0, libc::SETVAL as usize, 0, 0, 0]), Ok(0));
        let values = vec![0u16; NUMBER];
        let all = values.as_ptr() as usize;
        assert_eq!(call(libc::SYS_semctl, [id, 0, libc::SETALL as usize, all, 0, 0]), Ok(0));
        end(&pids);
        assert_eq!(call(libc::SYS_semctl, [id, 0, libc::IPC_RMID as usize, 0, 0, 0]), Ok(0));
    });
}

/// io_getevents(2) of many requests that are done.
fn completions() {
    const MANY: usize = 30_000;
    let context = RefCell::new((0usize, Vec::new()));
    let make = |count: usize| {
        let mut id = 0usize;
        assert_eq!(call(libc::SYS_io_setup, [count, &raw mut id as usize, 0, 0, 0, 0]), Ok(0));
        let file = Fd::temporary();
        const FSYNC: u64 = 2;
        let request = [0u64, 0, FSYNC | (file.raw() as u64) << 32, 0, 0, 0, 0, 0];
        let requests = vec![&raw const request; 64];
        let mut left = count;
        while left > 0 {
            let list = requests.as_ptr() as usize;
            let some = left.min(requests.len());
            left -= call(libc::SYS_io_submit, [id, some, list, 0, 0, 0]).expect("io_submit");
        }
        // Touched: a fault would be a new stretch.
        *context.borrow_mut() = (id, vec![[1u64; 4]; MANY]);
    };
    compare(64, MANY, make, |count| {
        let (id, events) = &mut *context.borrow_mut();
        let into = events.as_mut_ptr() as usize;
        assert_eq!(call(libc::SYS_io_getevents, [*id, 1, count, into, 0, 0]), Ok(count));
    });
}

/// splice(2) of all that comes into a device that takes all, while somebody writes.
fn emptied_pipes() {
    compare(
        1 << 16,
        64 << 20,
        |_| (),
        |count| {
            let (read, write) = pipe(0);
            let writer = child::fork(|| {
                let buffer = vec![0u8; 1 << 16];
                (0..count >> 16).for_each(|_| assert_eq!(write.write(&buffer), Ok(buffer.len())));
            });
            drop(write);
            let null = Fd::open("/dev/null", libc::O_WRONLY).expect("/dev/null");
            let mut moved = 0;
            while moved < count {
                let (from, to) = (read.raw() as usize, null.raw() as usize);
                moved += call(libc::SYS_splice, [from, 0, to, 0, count - moved, 0]).expect("splice");
            }
            writer.ok();
        },
    );
}

/// Lists of System V objects, and sums over them.
fn lists_of_objects() {
    let sets = RefCell::new(Vec::new());
    let make = |count: usize| {
        let get = |_| call(libc::SYS_semget, [0, 1, libc::IPC_CREAT as usize | 0o600, 0, 0, 0]);
        *sets.borrow_mut() = (0..count).map(get).map(|id| id.expect("semget")).collect();
    };
    compare(100, 16_000, make, |_| {
        let list = Fd::open("/proc/sysvipc/sem", libc::O_RDONLY).expect("sem");
        let mut some = [0; 64];
        assert_eq!(list.read_at(&mut some, 1), Ok(some.len()));
        for id in sets.take() {
            assert_eq!(call(libc::SYS_semctl, [id, 0, libc::IPC_RMID as usize, 0, 0, 0]), Ok(0));
        }
    });
}

/// Many threads wait for one userfaultfd: the read of their messages, and the wake of all.
fn watched_faults() {
    let watch = RefCell::new(None);
    let make = |count: usize| {
        let memory = Map::anonymous(PAGE);
        let uffd = Uffd::new(0);
        uffd.register(&memory, MISSING).expect("UFFDIO_REGISTER");
        let address = memory.address;
        for _ in 0..count {
            // SAFETY: the map stays as long as the process.
            let wait = move || _ = unsafe { (address as *const u8).read_volatile() };
            std::thread::Builder::new().stack_size(16 << 10).spawn(wait).expect("a thread");
        }
        // Touched: a fault would be a new stretch.
        *watch.borrow_mut() = Some((memory, uffd, vec![1u8; count * 32]));
    };
    compare(10, 2_000, make, |count| {
        let mut watch = watch.borrow_mut();
        let (memory, uffd, messages) = watch.as_mut().expect("a monitor");
        let mut read = 0;
        while read < count {
            read += uffd.0.read(messages).expect("messages") / 32;
        }
        uffd.wake(memory.address, PAGE).expect("UFFDIO_WAKE");
        // They come back, for there is no page yet.
        uffd.of_range(ZEROPAGE, memory.address, PAGE, 0).expect("UFFDIO_ZEROPAGE");
    });
}
