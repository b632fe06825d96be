//! What the killer takes a process for, as `/proc/PID/oom_score` says: all counts that its end gives back, wherever the kernel keeps it.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use roundtable_programs::child::{Child, fork, in_child};
use roundtable_programs::file::Fd;
use roundtable_programs::kinds::call;
use roundtable_programs::mem::{FIXED, PRIVATE, R, mmap};
use roundtable_programs::procfs::{self, Meminfo};
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{PAGE, c_string, check, is_linux, settles};
use roundtable_programs::{Errno, harness, tests};

tests! { a_table_of_a_second_thread: 100, the_first_thread_has_ended: 100, arguments_on_their_way: 100, texts_of_open_files: 100,
texts_of_control_groups: 100, waiters_of_many_words: 100, polls_of_many_files: 100, terminals_without_masters: 100,
names_of_events: 100, messages_that_wait_for_room: 100 }

/// What Linux counts is in address spaces alone.
fn skip_on_linux() {
    if is_linux() {
        harness::skip("Linux counts no such memory");
    }
}

fn score(pid: &str) -> u64 {
    procfs::number(&format!("/proc/{pid}/oom_score"))
}

/// So many bytes that the score tells them from none: a twentieth of all memory.
fn much() -> usize {
    Meminfo::read().get("MemTotal") as usize * 1024 / 20
}

/// By how much the score rises with so many bytes: in thousandths of memory, of which Linux shows two thirds.
fn rise(bytes: usize) -> u64 {
    (bytes / 1024) as u64 * 1000 / Meminfo::read().get("MemTotal") * 2 / 3
}

/// The score rises by at least two thirds of what is to be expected.
#[track_caller]
fn expect_rise(before: u64, after: u64, bytes: usize) {
    let expected = rise(bytes);
    println!("# {before}, then {after}; {expected} more are expected");
    assert!(
        expected > 3 && after >= before + expected * 2 / 3,
        "{before} became {after}, not {expected} more"
    );
}

/// Ends a process whose threads wait for ever: well when the score rises by what so many bytes make.
fn end_when_risen(before: u64, bytes: usize) -> ! {
    let expected = rise(bytes);
    let has_risen = settles(Duration::from_secs(60), || score("self") >= before + expected);
    println!("# {before}, then {}; {expected} more are expected", score("self"));
    // SAFETY: ends the process.
    unsafe { libc::_exit(i32::from(!has_risen || expected < 5)) }
}

fn limit(resource: libc::__rlimit_resource_t, value: u64) {
    let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: the limit is only read.
    check(unsafe { libc::setrlimit(resource, &limit) }).expect("setrlimit");
}

/// Full pipes that stay open.
fn fill_pipes(bytes: usize) {
    const EACH: usize = 65_536;
    limit(libc::RLIMIT_NOFILE, 1 << 20);
    for _ in 0..bytes / EACH {
        let mut ends = [0; 2];
        // SAFETY: two descriptors are written, and the bytes live through the call.
        unsafe {
            check(libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK)).expect("pipe2");
            check(libc::write(ends[1], [1u8; EACH].as_ptr().cast(), EACH) as i64).expect("write");
        }
    }
}

fn a_table_of_a_second_thread() {
    skip_on_linux();
    in_child(|| {
        let (tell, told) = std::sync::mpsc::channel();
        let before = score("self");
        std::thread::spawn(move || {
            // SAFETY: takes an integer.
            check(unsafe { libc::unshare(libc::CLONE_FILES) }).expect("unshare");
            fill_pipes(much());
            tell.send(()).expect("send");
            loop {
                std::thread::park();
            }
        });
        told.recv().expect("a thread");
        expect_rise(before, score("self"), much());
    });
}

fn the_first_thread_has_ended() {
    skip_on_linux();
    // It is for threads that never end.
    let shared: &'static Shared = Box::leak(Box::default());
    let child = fork(|| {
        std::thread::spawn(|| {
            shared.wait(0, 1);
            fill_pipes(much());
            shared.set(1, 1);
            loop {
                std::thread::park();
            }
        });
        shared.wait(1, 1);
        // SAFETY: ends this thread alone.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    });
    let pid = child.pid.to_string();
    let before = score(&pid);
    shared.set(0, 1);
    let threads = || procfs::status(child.pid, "Threads");
    assert!(settles(Duration::from_secs(60), || shared.get(1) == 1 && threads() == 1), "it does not end");
    expect_rise(before, score(&pid), much());
    child.end();
}

/// A process that is asked to execute a program has arguments of the most bytes, and hangs there: its second thread is at its end, and stays
/// there for its tracer.
fn hanging_in_execve(shared: &'static Shared) -> Child {
    let child = fork(|| {
        limit(libc::RLIMIT_STACK, libc::RLIM_INFINITY);
        std::thread::spawn(|| {
            // SAFETY: takes nothing.
            shared.set(0, unsafe { libc::gettid() } as u32);
            loop {
                std::thread::park();
            }
        });
        let long = c_string(&"x".repeat(32 * PAGE - 1));
        let mut arguments = vec![long.as_ptr(); 47];
        arguments.push(std::ptr::null());
        shared.wait(1, 1);
        // SAFETY: the strings live until the new program has them.
        unsafe {
            libc::execv(c"/proc/self/exe".as_ptr(), arguments.as_ptr());
            libc::_exit(1)
        }
    });
    shared.wait(0, 1);
    child
}

fn arguments_on_their_way() {
    let shared: &'static Shared = Box::leak(Box::default());
    let child = hanging_in_execve(shared);
    let thread = shared.get(0) as i32;
    let ptrace = |request: u32, data: i32| {
        call(libc::SYS_ptrace, [request as usize, thread as usize, 0, data as usize, 0, 0])
    };
    assert_eq!(ptrace(libc::PTRACE_SEIZE, libc::PTRACE_O_TRACEEXIT), Ok(0));
    let before = score(&child.pid.to_string());
    shared.set(1, 1);
    let mut status = 0;
    // SAFETY: the status is ours to write.
    let waited = check(unsafe { libc::waitpid(thread, &mut status, libc::__WALL) });
    let at_the_end = (libc::PTRACE_EVENT_EXIT << 8 | libc::SIGTRAP) << 8 | 0x7f;
    assert_eq!((waited, status), (Ok(thread as usize), at_the_end));
    let after = score(&child.pid.to_string());
    // Six MiB of arguments; their pages are on the new program's stack by now. That is a thousandth of memory and more.
    println!("# {before}, then {after}");
    assert!(after > before, "{before} became {after}");
    child.kill(libc::SIGKILL);
    let _ = ptrace(libc::PTRACE_CONT, 0);
    // Who traces a thread waits for its end: before that its process's is not told.
    // SAFETY: no status is asked for.
    unsafe { libc::waitpid(thread, std::ptr::null_mut(), libc::__WALL) };
    child.wait();
}

/// A file whose path is as long as can be, of characters that /proc/PID/maps shows as four; and the directory at the top of it.
fn file_of_a_long_path() -> (Fd, String) {
    let top = format!("/tmp/score-{}", roundtable_programs::sys::pid());
    let part = "\n".repeat(255);
    let mut path = top.clone();
    while path.len() + 2 * (part.len() + 1) < 4096 {
        path = format!("{path}/{part}");
    }
    fs::create_dir_all(&path).expect("mkdir");
    path = format!("{path}/{part}");
    fs::write(std::ffi::OsStr::from_bytes(path.as_bytes()), [0; 8 * PAGE]).expect("a file");
    (Fd::open(&path, libc::O_RDONLY).expect("open"), top)
}

/// Opens `path` so many times and reads a byte of each, then all that is left of each. The score rises, and falls again.
#[track_caller]
fn expect_texts(path: &str, count: usize, each: usize) {
    let before = score("self");
    let files: Vec<Fd> = (0..count).map(|_| Fd::open(path, libc::O_RDONLY).expect("open")).collect();
    files.iter().for_each(|file| assert_eq!(file.read(&mut [0]), Ok(1)));
    let bytes = count * each;
    expect_rise(before, score("self"), bytes);
    let mut buffer = vec![0; 1 << 20];
    for file in &files {
        while file.read(&mut buffer).expect("read") > 0 {}
    }
    let now = score("self");
    assert!(now <= before + rise(bytes) / 3, "{before} became {now}: the texts are still there");
}

fn texts_of_open_files() {
    skip_on_linux();
    in_child(|| {
        limit(libc::RLIMIT_NOFILE, 1 << 20);
        let (file, top) = file_of_a_long_path();
        // Below the program: the text begins with these.
        for page in 0..8 {
            mmap(0x10_0000 + 2 * page * PAGE, PAGE, R, PRIVATE | FIXED, file.raw(), (page * PAGE) as i64)
                .expect("mmap");
        }
        const EACH: usize = 8 * 4 * 3_500;
        expect_texts("/proc/self/maps", much() / 6 / EACH, EACH);
        fs::remove_dir_all(top).expect("remove");
    });
}

fn texts_of_control_groups() {
    const THREADS: usize = 4_000;
    skip_on_linux();
    let group = roundtable_programs::cgroup::Group::new("");
    in_child(|| {
        limit(libc::RLIMIT_NOFILE, 1 << 20);
        group.attach(0).expect("attach");
        for _ in 0..THREADS {
            let wait = || {
                loop {
                    std::thread::park();
                }
            };
            std::thread::Builder::new().stack_size(16 << 10).spawn(wait).expect("a thread");
        }
        // Numbers of three digits and lines' ends.
        const EACH: usize = 4 * THREADS;
        expect_texts(&group.file("cgroup.threads"), much() / 6 / EACH, EACH);
    });
}

fn waiters_of_many_words() {
    const EACH: usize = 128;
    const THREADS: usize = 4_000;
    skip_on_linux();
    in_child(|| {
        let shared = Shared::new();
        let word = shared.word(8).as_ptr() as u64;
        let wait = move || {
            const SIZE_U32: u64 = 2;
            let waiters = [[0, word, SIZE_U32]; EACH];
            assert_eq!(
                call(libc::SYS_futex_waitv, [waiters.as_ptr() as usize, EACH, 0, 0, 0, 0]),
                Err(Errno::EINTR)
            );
        };
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                let thread = || {
                    shared.wait_without_limit(0, 1);
                    wait();
                };
                std::thread::Builder::new()
                    .stack_size(16 << 10)
                    .spawn_scoped(scope, thread)
                    .expect("a thread");
            }
            let before = score("self");
            shared.set(0, 1);
            // A waiter has more than a hundred bytes.
            end_when_risen(before, THREADS * EACH * 100);
        });
    });
}

/// The score rises while threads wait for many files each.
fn polls_of_many_files() {
    const EACH: usize = 20_000;
    skip_on_linux();
    in_child(|| {
        limit(libc::RLIMIT_NOFILE, 1 << 20);
        let event = Fd::own(call(libc::SYS_eventfd2, [0; 6]).expect("eventfd2"));
        let other = |_| {
            // SAFETY: takes an integer.
            check(unsafe { libc::dup(event.raw()) }).expect("dup") as i32
        };
        let files: Vec<_> =
            (0..EACH).map(other).map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
        let before = score("self");
        // Each file of each has more than 64 bytes.
        let threads = much() / (EACH * 64) + 1;
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let (at, count) = (files.as_ptr() as usize, files.len());
                    panic!("{:?}", call(libc::SYS_poll, [at, count, usize::MAX, 0, 0, 0]));
                });
            }
            end_when_risen(before, threads * EACH * 64);
        });
    });
}

/// Who has a terminal open answers for it when its master is closed.
fn terminals_without_masters() {
    const COUNT: usize = 2_000;
    skip_on_linux();
    in_child(|| {
        limit(libc::RLIMIT_NOFILE, 1 << 20);
        let before = score("self");
        for _ in 0..COUNT {
            let master = Fd::open("/dev/ptmx", libc::O_RDWR | libc::O_NOCTTY).expect("/dev/ptmx");
            let mut number = 0u32;
            // SAFETY: the numbers have the types that the requests want.
            unsafe {
                check(libc::ioctl(master.raw(), libc::TIOCGPTN, &mut number)).expect("TIOCGPTN");
                check(libc::ioctl(master.raw(), libc::TIOCSPTLCK, &0i32)).expect("TIOCSPTLCK");
            }
            let path = format!("/dev/pts/{number}");
            std::mem::forget(Fd::open(&path, libc::O_RDWR | libc::O_NOCTTY).expect("a terminal"));
        }
        expect_rise(before, score("self"), COUNT * 24_000);
    });
}

/// Names that inotify keeps count as they are long.
fn names_of_events() {
    const EVENTS: usize = 16_000;
    const EACH: usize = 340;
    skip_on_linux();
    in_child(|| {
        let folder = c_string("/tmp/held-names");
        fs::create_dir_all("/tmp/held-names").unwrap();
        let before = score("self");
        let count = much() / (EVENTS * EACH) + 1;
        let instances: Vec<_> = (0..count)
            .map(|_| {
                let instance = Fd::own(call(libc::SYS_inotify_init1, [0; 6]).expect("inotify_init1"));
                let wanted = (libc::IN_CREATE | libc::IN_DELETE) as usize;
                let watch = [instance.raw() as usize, folder.as_ptr() as usize, wanted, 0, 0, 0];
                call(libc::SYS_inotify_add_watch, watch).expect("inotify_add_watch");
                instance
            })
            .collect();
        let name = format!("/tmp/held-names/{}", "x".repeat(255));
        for _ in 0..EVENTS / 2 {
            fs::write(&name, "").unwrap();
            fs::remove_file(&name).unwrap();
        }
        expect_rise(before, score("self"), count * EVENTS * EACH);
        drop(instances);
        fs::remove_dir("/tmp/held-names").unwrap();
    });
}

/// Threads that wait for room in a socket keep nothing of what they send.
fn messages_that_wait_for_room() {
    const LONG: usize = 200_000;
    for kind in [libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
        in_child(|| {
            let mut ends = [0; 2];
            // SAFETY: two descriptors are written.
            check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) })
                .expect("socketpair");
            let message = vec![1u8; LONG];
            let threads = much() / LONG;
            let free = || Meminfo::read().get("MemFree") as usize * 1024;
            let go = std::sync::Barrier::new(threads + 1);
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    let send = || {
                        go.wait();
                        let arguments = [ends[0] as usize, message.as_ptr() as usize, LONG, 0, 0, 0];
                        loop {
                            let _ = call(libc::SYS_sendto, arguments);
                        }
                    };
                    std::thread::Builder::new()
                        .stack_size(16 << 10)
                        .spawn_scoped(scope, send)
                        .expect("a thread");
                }
                procfs::wait_for_sleepers(threads);
                let before = free();
                go.wait();
                // One message or a few are delivered, and who has sent those waits with the others.
                let delivered = || {
                    let mut bytes = 0i32;
                    // SAFETY: TIOCOUTQ writes a number.
                    check(unsafe { libc::ioctl(ends[0], libc::TIOCOUTQ, &mut bytes) }).expect("TIOCOUTQ");
                    bytes as usize
                };
                let asleep = settles(Duration::from_secs(60), || delivered() >= LONG);
                procfs::wait_for_sleepers(threads);
                let taken = before.saturating_sub(free());
                println!("# {threads} threads have {taken} bytes");
                // The threads wait for ever.
                // SAFETY: ends the process.
                unsafe { libc::_exit(i32::from(!asleep || taken > threads * LONG / 2)) };
            });
        });
    }
}
