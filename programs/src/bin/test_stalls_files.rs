//! As `test_stalls`, of files: large ones that end, deep trees, many events, many waiting signals of a directory.

use roundtable_programs::child;
use roundtable_programs::file::Fd;
use roundtable_programs::held::compare;
use roundtable_programs::kinds::call;
use roundtable_programs::mem::{ANON, Map, POPULATE, R, RW, SHARED};
use roundtable_programs::place::{self, Place};
use roundtable_programs::sys::{c_string, check};
use roundtable_programs::tests;

tests! { end_of_a_file: 200, end_of_shared_memory: 200, end_of_a_mapping: 200, allocated_twice: 200, chain_of_removed_directories: 200, events_of_inotify: 200,
items_that_are_not_ready: 200, notes_of_a_directory: 200 }

const MIB: usize = 1 << 20;

fn allocate(file: &Fd, bytes: usize) {
    // SAFETY: takes integers.
    check(unsafe { libc::fallocate(file.raw(), 0, 0, bytes as i64) }).expect("fallocate");
}

fn filled(bytes: usize) -> Fd {
    let file = Fd::memfd("filled", 0).expect("memfd");
    allocate(&file, bytes);
    file
}

/// Puts what the second closure is to use where it finds it: both run in one process.
fn keep(file: Fd, at: i32) {
    // SAFETY: takes integers.
    check(unsafe { libc::dup2(file.raw(), at) }).expect("dup2");
}

const KEPT: i32 = 100;

fn close(fd: i32) {
    // SAFETY: takes an integer.
    check(unsafe { libc::close(fd) }).expect("close");
}

fn end_of_a_file() {
    compare(4, 256, |mib| keep(filled(mib * MIB), KEPT), |_| close(KEPT));
}

fn end_of_a_mapping() {
    // Not by the end of the process: a checked kernel looks at all of its tables then.
    let place = std::cell::RefCell::new(None);
    let make = |mib: usize| {
        place.replace(Some(filled(mib * MIB).map(mib * MIB, R, SHARED).expect("a mapping")));
    };
    compare(4, 256, make, |_| drop(place.take()));
}

fn end_of_shared_memory() {
    let place = std::cell::RefCell::new(None);
    let make = |mib: usize| {
        place.replace(Some(Map::new(mib * MIB, RW, SHARED | ANON | POPULATE, -1, 0).expect("shared memory")));
    };
    compare(4, 256, make, |_| drop(place.take()));
}

fn allocated_twice() {
    let again = |mib: usize| {
        // SAFETY: takes integers.
        check(unsafe { libc::fallocate(KEPT, 0, 0, (mib * MIB) as i64) }).expect("fallocate");
    };
    compare(4, 256, |mib| keep(filled(mib * MIB), KEPT), again);
}

fn chain_of_removed_directories() {
    let place = Place::new("");
    let open = |at: i32, name: &str| {
        let name = c_string(name);
        // SAFETY: the name lives through the call.
        Fd::own(
            check(unsafe { libc::openat(at, name.as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY) })
                .expect("openat"),
        )
    };
    let make = |depth: usize| {
        let name = c_string("d");
        let mut at = open(libc::AT_FDCWD, &place.path(""));
        for _ in 0..depth {
            // SAFETY: the name lives through the call.
            check(unsafe { libc::mkdirat(at.raw(), name.as_ptr(), 0o755) }).expect("mkdirat");
            at = open(at.raw(), "d");
        }
        // SAFETY: takes integers.
        check(unsafe { libc::dup2(at.raw(), KEPT) }).expect("dup2");
        for _ in 0..depth {
            at = open(at.raw(), "..");
            // SAFETY: the name lives through the call.
            check(unsafe { libc::unlinkat(at.raw(), name.as_ptr(), libc::AT_REMOVEDIR) }).expect("unlinkat");
        }
    };
    compare(10, 4000, make, |_| close(KEPT));
}

fn events_of_inotify() {
    let place = Place::new("");
    let make = |count: usize| {
        // SAFETY: takes an integer.
        let group = Fd::own(check(unsafe { libc::inotify_init1(libc::IN_NONBLOCK) }).expect("inotify_init1"));
        let path = c_string(&place.path(""));
        // SAFETY: the path lives through the call.
        check(unsafe { libc::inotify_add_watch(group.raw(), path.as_ptr(), libc::IN_CREATE) })
            .expect("a watch");
        for number in 0..count {
            drop(place.create(&format!("{number}-{}", std::process::id())));
        }
        keep(group, KEPT);
    };
    let read_all = |count: usize| {
        let mut buffer = vec![0u8; count * 64];
        let arguments = [KEPT as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0];
        assert!(call(libc::SYS_read, arguments).expect("events") >= count * 32);
    };
    compare(10, 4000, make, read_all);
}

fn items_that_are_not_ready() {
    let make = |count: usize| {
        let limit = libc::rlimit { rlim_cur: 1 << 14, rlim_max: 1 << 14 };
        // SAFETY: the limit is a local.
        check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }).expect("RLIMIT_NOFILE");
        // SAFETY: takes an integer.
        let epoll = Fd::own(check(unsafe { libc::epoll_create1(0) }).expect("epoll_create1"));
        for _ in 0..count {
            // SAFETY: takes integers.
            let event = Fd::own(check(unsafe { libc::eventfd(0, 0) }).expect("eventfd"));
            let mut interest = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
            // SAFETY: the interest is a local.
            check(unsafe { libc::epoll_ctl(epoll.raw(), libc::EPOLL_CTL_ADD, event.raw(), &mut interest) })
                .expect("a watch");
            // Ready, and ready no more: it stays on the list until somebody looks.
            event.write(&1u64.to_ne_bytes()).expect("write");
            event.read(&mut [0; 8]).expect("read");
            std::mem::forget(event);
        }
        // SAFETY: takes integers.
        check(unsafe { libc::dup2(epoll.raw(), KEPT) }).expect("dup2");
        std::mem::forget(epoll);
    };
    let look = |_: usize| {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: room for one event.
        assert_eq!(check(unsafe { libc::epoll_wait(KEPT, &mut event, 1, 0) }), Ok(0));
    };
    compare(10, 4000, make, look);
}

/// As many as one user may have, told by an ordinary creation.
fn notes_of_a_directory() {
    const NOTIFY: i32 = 1026;
    const CREATE: u32 = 4;
    const MULTISHOT: u32 = 1 << 31;
    let place = Place::new("");
    // SAFETY: ignores a signal.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    let make = |count: usize| {
        let path = c_string(&place.path(""));
        for _ in 0..count {
            // SAFETY: the path lives through the call, and fcntl takes integers.
            unsafe {
                let fd = check(libc::open(path.as_ptr(), libc::O_RDONLY)).expect("open");
                let events = CREATE | MULTISHOT;
                check(libc::fcntl(fd as i32, NOTIFY, events)).expect("a note");
            }
        }
    };
    let use_them = |_: usize| {
        let name = format!("made-{}", std::process::id());
        child::in_child(|| drop(place.create(&name)));
        place::unlink(&place.path(&name)).expect("unlink");
    };
    compare(10, 900, make, use_them);
}
