//! `cgroup.freeze`: who rests, who counts as resting, and what still reaches them.

use std::fs;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicI32, AtomicU32};
use std::time::Duration;

use roundtable_programs::cgroup::{Group, ROOT};
use roundtable_programs::child::{Child, End, fork, waitpid};
use roundtable_programs::inet::poll;
use roundtable_programs::rows::Rows;
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{check, settles};
use roundtable_programs::{Errno, row, signals, tests};

tests! { the_file, empty_groups, busy_processes, all_threads, sleepers_go_on, killed_while_frozen, signals_wait, stopped_processes,
groups_below, made_below_a_frozen_one, moved_in_and_out, born_frozen, forks_while_freezing, events_are_told, traced, vfork_parents,
frozen_and_thawed_often }

const LIMIT: Duration = Duration::from_secs(20);

fn freeze(group: &Group, on: bool) {
    group.write("cgroup.freeze", u8::from(on)).unwrap();
}

fn is_frozen(group: &Group) -> bool {
    group.value("cgroup.events", "frozen") == 1
}

#[track_caller]
fn until_frozen(group: &Group) {
    assert!(settles(LIMIT, || is_frozen(group)), "{}", group.path);
}

#[track_caller]
fn frozen_now(group: &Group) {
    freeze(group, true);
    until_frozen(group);
}

/// A child in the group that counts as fast as it can.
fn counting(group: &Group, count: &'static AtomicU32) -> Child {
    let child = fork(|| {
        loop {
            count.fetch_add(1, SeqCst);
        }
    });
    group.attach(child.pid).unwrap();
    child
}

fn moves(count: &AtomicU32) -> bool {
    let before = count.load(SeqCst);
    settles(LIMIT, || count.load(SeqCst) != before)
}

fn rests(count: &AtomicU32) -> bool {
    let before = count.load(SeqCst);
    std::thread::sleep(Duration::from_millis(30));
    count.load(SeqCst) == before
}

fn counter() -> &'static AtomicU32 {
    Box::leak(Box::new(Shared::new())).word(0)
}

fn state(pid: i32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
}

fn paused() -> ! {
    loop {
        // SAFETY: takes nothing.
        unsafe { libc::pause() };
    }
}

fn the_file() {
    let mut rows = Rows::default();
    let group = Group::new("");
    assert_eq!(group.read("cgroup.freeze"), "0\n");
    row!(rows, ERANGE, group.write("cgroup.freeze", 2).map(|()| 0));
    row!(rows, ERANGE, group.write("cgroup.freeze", -1).map(|()| 0));
    row!(rows, EINVAL, group.write("cgroup.freeze", "x").map(|()| 0));
    row!(rows, EINVAL, group.write("cgroup.freeze", "\n").map(|()| 0));
    row!(rows, OK, group.write("cgroup.freeze", " 1\n").map(|()| 0));
    row!(rows, OK, group.write("cgroup.freeze", 1).map(|()| 0));
    assert_eq!(group.read("cgroup.freeze"), "1\n");
    row!(rows, OK, group.write("cgroup.freeze", 0).map(|()| 0));
    assert!(!fs::exists(format!("{ROOT}/cgroup.freeze")).unwrap());
    rows.finish();
}

fn empty_groups() {
    let group = Group::new("");
    assert_eq!(group.read("cgroup.events"), "populated 0\nfrozen 0\n");
    freeze(&group, true);
    assert_eq!(group.read("cgroup.events"), "populated 0\nfrozen 1\n");
    freeze(&group, false);
    assert_eq!(group.read("cgroup.events"), "populated 0\nfrozen 0\n");
}

fn busy_processes() {
    let group = Group::new("");
    let counts: Vec<_> = (0..3).map(|_| counter()).collect();
    let children: Vec<_> = counts.iter().map(|count| counting(&group, count)).collect();
    assert!(counts.iter().all(|count| moves(count)));
    frozen_now(&group);
    assert!(counts.iter().all(|count| rests(count)));
    assert!(children.iter().all(|child| state(child.pid) == 'S'));
    freeze(&group, false);
    assert!(!is_frozen(&group));
    assert!(counts.iter().all(|count| moves(count)));
}

fn all_threads() {
    const THREADS: usize = 40;
    let group = Group::new("");
    let count = counter();
    let child = fork(|| {
        for _ in 0..THREADS {
            std::thread::spawn(|| {
                loop {
                    count.fetch_add(1, SeqCst);
                    std::thread::yield_now();
                }
            });
        }
        paused()
    });
    group.attach(child.pid).unwrap();
    assert!(settles(LIMIT, || group.read("cgroup.threads").lines().count() == THREADS + 1));
    assert!(moves(count));
    frozen_now(&group);
    assert!(rests(count));
    freeze(&group, false);
    assert!(moves(count));
}

/// Who sleeps in a call does not notice.
fn sleepers_go_on() {
    let group = Group::new("");
    let (read, write) = std::io::pipe().unwrap();
    let reader = fork(|| {
        use std::os::fd::AsRawFd;
        let mut byte = [0u8];
        // SAFETY: one byte of room.
        assert_eq!(unsafe { libc::read(read.as_raw_fd(), byte.as_mut_ptr().cast(), 1) }, 1, "not EINTR");
    });
    let sleeper = fork(|| {
        let mut left = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let wanted = libc::timespec { tv_sec: 0, tv_nsec: 200_000_000 };
        // SAFETY: both live through the call.
        assert_eq!(unsafe { libc::nanosleep(&wanted, &mut left) }, 0, "not EINTR");
    });
    for child in [&reader, &sleeper] {
        group.attach(child.pid).unwrap();
    }
    frozen_now(&group);
    std::io::Write::write_all(&mut &write, b"x").unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert!(is_frozen(&group));
    freeze(&group, false);
    reader.ok();
    sleeper.ok();
}

fn killed_while_frozen() {
    for signal in [libc::SIGKILL, libc::SIGTERM] {
        let group = Group::new("");
        let child = counting(&group, counter());
        frozen_now(&group);
        child.kill(signal);
        assert_eq!(child.wait(), End::Signal(signal));
        until_frozen(&group);
    }
    let group = Group::new("");
    let children = [counting(&group, counter()), counting(&group, counter())];
    frozen_now(&group);
    group.write("cgroup.kill", 1).unwrap();
    for child in children {
        assert_eq!(child.wait(), End::Signal(libc::SIGKILL));
    }
}

fn signals_wait() {
    static CAUGHT: AtomicI32 = AtomicI32::new(0);
    let group = Group::new("");
    let count = counter();
    let child = fork(|| {
        extern "C" fn note(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
            CAUGHT.fetch_add(1, SeqCst);
        }
        signals::catch_with(libc::SIGUSR1, note, 0, &[]);
        count.store(1, SeqCst);
        loop {
            // SAFETY: takes nothing.
            unsafe { libc::pause() };
            count.store(10 + CAUGHT.load(SeqCst) as u32, SeqCst);
        }
    });
    assert!(settles(LIMIT, || count.load(SeqCst) == 1));
    group.attach(child.pid).unwrap();
    frozen_now(&group);
    child.kill(libc::SIGUSR1);
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(count.load(SeqCst), 1);
    assert!(is_frozen(&group));
    freeze(&group, false);
    assert!(settles(LIMIT, || count.load(SeqCst) == 11));
}

fn stopped_processes() {
    let group = Group::new("");
    let count = counter();
    let child = counting(&group, count);
    child.kill(libc::SIGSTOP);
    assert_eq!(waitpid(child.pid, libc::WUNTRACED).unwrap().1, End::Stopped(libc::SIGSTOP));
    assert!(!is_frozen(&group));
    frozen_now(&group);
    freeze(&group, false);
    assert!(settles(LIMIT, || state(child.pid) == 'T'));
    assert!(rests(count));
    // It goes on, and comes to rest again before it does anything.
    frozen_now(&group);
    child.kill(libc::SIGCONT);
    assert!(settles(LIMIT, || is_frozen(&group) && state(child.pid) == 'S'));
    assert!(rests(count));
    freeze(&group, false);
    assert!(moves(count));
}

fn groups_below() {
    let top = Group::new("");
    let (a, b) = (top.child("a"), top.child("b"));
    let lowest = a.child("c");
    let counts = [counter(), counter()];
    let _children = [counting(&lowest, counts[0]), counting(&b, counts[1])];
    frozen_now(&a);
    until_frozen(&lowest);
    assert_eq!(lowest.read("cgroup.freeze"), "0\n");
    assert!(!is_frozen(&top) && !is_frozen(&b));
    assert!(rests(counts[0]) && moves(counts[1]));
    frozen_now(&top);
    assert!(is_frozen(&a) && is_frozen(&b) && is_frozen(&lowest));
    // What is above decides.
    freeze(&a, false);
    freeze(&lowest, true);
    assert!(is_frozen(&a) && is_frozen(&lowest) && rests(counts[0]));
    freeze(&top, false);
    assert!(!is_frozen(&top) && !is_frozen(&a) && !is_frozen(&b) && is_frozen(&lowest));
    assert!(rests(counts[0]) && moves(counts[1]));
    freeze(&lowest, false);
    assert!(moves(counts[0]));
    // A group that is not to freeze is not frozen because those below are.
    frozen_now(&a);
    frozen_now(&b);
    assert!(!is_frozen(&top));
}

fn made_below_a_frozen_one() {
    let top = Group::new("");
    frozen_now(&top);
    let below = top.child("a");
    assert!(is_frozen(&below) && is_frozen(&top));
    let count = counter();
    let child = counting(&below, count);
    until_frozen(&top);
    assert!(rests(count));
    child.kill(libc::SIGKILL);
    child.wait();
    until_frozen(&top);
    assert!(settles(LIMIT, || below.remove().is_ok()));
    assert!(is_frozen(&top));
    freeze(&top, false);
    assert!(!is_frozen(&top));
}

fn moved_in_and_out() {
    let (one, other) = (Group::new(""), Group::new(""));
    let count = counter();
    let child = counting(&one, count);
    frozen_now(&other);
    other.attach(child.pid).unwrap();
    until_frozen(&other);
    assert!(rests(count) && !is_frozen(&one));
    one.attach(child.pid).unwrap();
    assert!(moves(count));
    assert!(is_frozen(&other), "it is empty");
    // From one frozen group to another.
    frozen_now(&one);
    other.attach(child.pid).unwrap();
    until_frozen(&one);
    until_frozen(&other);
    freeze(&one, false);
    assert!(rests(count));
    freeze(&other, false);
    assert!(moves(count));
    // To the root.
    frozen_now(&other);
    fs::write(format!("{ROOT}/cgroup.procs"), child.pid.to_string()).unwrap();
    assert!(moves(count));
}

fn born_frozen() {
    let group = Group::new("");
    frozen_now(&group);
    let directory = fs::File::open(&group.path).unwrap();
    let count = counter();
    let mut arguments = [0u64; 11];
    arguments[0] = 0x2_0000_0000;
    arguments[4] = libc::SIGCHLD as u64;
    arguments[10] = std::os::fd::AsRawFd::as_raw_fd(&directory) as u64;
    // SAFETY: a fork; the child counts until it is killed.
    let child = check(unsafe { libc::syscall(libc::SYS_clone3, arguments.as_ptr(), 88usize) }).unwrap();
    if child == 0 {
        loop {
            count.fetch_add(1, SeqCst);
        }
    }
    until_frozen(&group);
    assert!(rests(count));
    freeze(&group, false);
    assert!(moves(count));
    signals::kill(child as i32, libc::SIGKILL).unwrap();
    assert_eq!(waitpid(child as i32, 0).unwrap().1, End::Signal(libc::SIGKILL));
}

/// Processes that make others all the time: none of them escapes.
fn forks_while_freezing() {
    let group = Group::new("");
    let count = counter();
    let parents: Vec<_> = (0..4)
        .map(|_| {
            let child = fork(|| {
                loop {
                    let child = fork(|| _ = count.fetch_add(1, SeqCst));
                    child.ok();
                }
            });
            group.attach(child.pid).unwrap();
            child
        })
        .collect();
    for _ in 0..20 {
        assert!(moves(count));
        frozen_now(&group);
        let before = (count.load(SeqCst), group.read("cgroup.procs"));
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!((count.load(SeqCst), group.read("cgroup.procs")), before);
        assert!(is_frozen(&group));
        freeze(&group, false);
    }
    drop(parents);
}

fn events_are_told() {
    let group = Group::new("");
    let _child = counting(&group, counter());
    let open = fs::File::open(group.file("cgroup.events")).unwrap();
    let read = || {
        use std::os::unix::fs::FileExt;
        let mut text = [0; 64];
        let len = open.read_at(&mut text, 0).unwrap();
        String::from_utf8_lossy(&text[..len]).into_owned()
    };
    read();
    for (on, want) in [(true, "frozen 1"), (false, "frozen 0")] {
        freeze(&group, on);
        let told = settles(LIMIT, || {
            poll(&open, libc::POLLPRI, 10_000) & libc::POLLPRI != 0 && read().contains(want)
        });
        assert!(told, "{want}");
    }
}

fn traced() {
    let group = Group::new("");
    let count = counter();
    let child = counting(&group, count);
    let ptrace = |request, data: usize| {
        // SAFETY: requests that touch nothing of this process but what `data` points to.
        check(unsafe { libc::ptrace(request, child.pid, 0usize, data) })
    };
    frozen_now(&group);
    ptrace(libc::PTRACE_SEIZE, 0).unwrap();
    ptrace(libc::PTRACE_INTERRUPT, 0).unwrap();
    assert!(matches!(waitpid(child.pid, 0).unwrap().1, End::Stopped(_)));
    assert!(is_frozen(&group));
    // SAFETY: a siginfo of zeros.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    ptrace(libc::PTRACE_GETSIGINFO, (&raw mut info) as usize).unwrap();
    ptrace(libc::PTRACE_DETACH, 0).unwrap();
    until_frozen(&group);
    assert!(rests(count));
    // In a stop of its tracer's it counts as resting.
    freeze(&group, false);
    ptrace(libc::PTRACE_SEIZE, 0).unwrap();
    ptrace(libc::PTRACE_INTERRUPT, 0).unwrap();
    assert!(matches!(waitpid(child.pid, 0).unwrap().1, End::Stopped(_)));
    assert!(!is_frozen(&group));
    frozen_now(&group);
    ptrace(libc::PTRACE_CONT, 0).unwrap();
    until_frozen(&group);
    assert!(rests(count));
    freeze(&group, false);
    assert!(moves(count));
}

fn vfork_parents() {
    let group = Group::new("");
    let (count, below) = (counter(), counter());
    let child = fork(|| {
        // SAFETY: the child only stores to shared memory, and is killed.
        unsafe {
            if libc::syscall(libc::SYS_vfork) == 0 {
                below.store(libc::syscall(libc::SYS_getpid) as u32, SeqCst);
                loop {
                    count.fetch_add(1, SeqCst);
                }
            }
        }
    });
    assert!(moves(count));
    for pid in [child.pid, below.load(SeqCst) as i32] {
        group.attach(pid).unwrap();
    }
    frozen_now(&group);
    assert!(rests(count));
    freeze(&group, false);
    assert!(moves(count));
    // Before its child, which has used its stack.
    child.kill(libc::SIGKILL);
    assert_eq!(child.wait(), End::Signal(libc::SIGKILL));
}

fn frozen_and_thawed_often() {
    let group = Group::new("");
    let counts: Vec<_> = (0..4).map(|_| counter()).collect();
    let _children: Vec<_> = counts.iter().map(|count| counting(&group, count)).collect();
    for round in 0..200 {
        freeze(&group, round % 2 == 0);
    }
    assert!(!is_frozen(&group));
    assert!(counts.iter().all(|count| moves(count)));
    frozen_now(&group);
    assert!(counts.iter().all(|count| rests(count)));
    drop(_children);
    assert!(settles(LIMIT, || group.value("cgroup.events", "populated") == 0));
    until_frozen(&group);
    assert_eq!(group.try_read("cgroup.nothing"), Err(Errno::ENOENT));
}
