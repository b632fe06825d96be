//! userfaultfd's events: forks, moves, removed pages and unmapped areas, told to a monitor.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

use roundtable_programs::child::{self, End};
use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::huge::{self, HUGE};
use roundtable_programs::inject::Injector;
use roundtable_programs::kinds::call;
use roundtable_programs::mem::{ANON, Map, PRIVATE, RW, SHARED, madvise, mremap, munmap};
use roundtable_programs::sys::PAGE;
use roundtable_programs::uffd::{
    ALL_KINDS, EVENT_FORK, EVENT_REMAP, EVENT_REMOVE, EVENT_UNMAP, FLAG_WP, MISSING, Uffd, WP,
};
use roundtable_programs::{Errno, procfs, sys, tests};

tests! { moves_are_told, moves_of_huge_pages, removed_pages_are_told, unmapped_areas_are_told, children_are_watched: 60,
children_keep_what_is_withheld: 60, nobody_fills_meanwhile, a_closed_monitor_lets_go, a_killed_thread_lets_go, only_who_asks_is_told,
descriptors_run_out, very_many_monitors: 120, no_memory_to_tell }

const FORK: u8 = 0x13;
const REMAP: u8 = 0x14;
const REMOVE: u8 = 0x15;
const UNMAP: u8 = 0x16;

/// The kind of the next message, and its words.
fn event(uffd: &Uffd) -> (u8, [u64; 3]) {
    let mut bytes = [0u8; 32];
    assert_eq!(uffd.0.read(&mut bytes), Ok(32), "a message");
    let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    (bytes[0], [word(8), word(16), word(24)])
}

/// No message is there.
#[track_caller]
fn nothing(uffd: &Uffd) {
    let mut entry = libc::pollfd { fd: uffd.0.raw(), events: libc::POLLIN, revents: 0 };
    assert_eq!(call(libc::SYS_poll, [(&raw mut entry) as usize, 1, 0, 0, 0, 0]), Ok(0));
}

fn monitor(features: u64) -> Uffd {
    let uffd = Uffd::bare(libc::O_NONBLOCK);
    uffd.api(features).expect("UFFDIO_API");
    uffd
}

/// Waits for a message.
fn wait(uffd: &Uffd) {
    let mut entry = libc::pollfd { fd: uffd.0.raw(), events: libc::POLLIN, revents: 0 };
    assert_eq!(call(libc::SYS_poll, [(&raw mut entry) as usize, 1, usize::MAX, 0, 0, 0]), Ok(1));
    assert_eq!(entry.revents, libc::POLLIN);
}

/// Four pages of each kind of memory, and the size of its pages.
fn memories() -> Vec<(&'static str, Map, usize)> {
    huge::pool(24);
    let map = |size: usize, flags: i32| Map::new(4 * size, RW, flags | ANON, -1, 0).unwrap();
    vec![
        ("private", map(PAGE, PRIVATE), PAGE),
        ("shared", map(PAGE, SHARED), PAGE),
        ("huge", map(HUGE, SHARED | libc::MAP_HUGETLB), HUGE),
        ("huge private", map(HUGE, PRIVATE | libc::MAP_HUGETLB), HUGE),
    ]
}

/// Moves a whole map to `to`.
fn move_to(map: &Map, to: usize) -> Result<usize, Errno> {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    mremap(map.address, map.length, map.length, flags, to)
}

fn check_moves(kind: &str, map: &Map, size: usize) {
    let uffd = monitor(ALL_KINDS | EVENT_REMAP);
    map.set(0, 7);
    uffd.register(map, MISSING | WP).expect(kind);
    uffd.protect(map.address, size, 1).expect(kind);
    let place = Map::reserve(4 * size, size);
    thread::scope(|scope| {
        let moving = scope.spawn(|| move_to(map, place.address));
        wait(&uffd);
        assert!(!moving.is_finished());
        let words = [map.address as u64, place.address as u64, 4 * size as u64];
        assert_eq!(event(&uffd), (REMAP, words), "{kind}");
        assert_eq!(moving.join().unwrap(), Ok(place.address));
        // It is watched at the new place: what is missing, and what is withheld.
        let missing = scope.spawn(|| place.get(2 * size));
        wait(&uffd);
        assert_eq!(uffd.next().address, place.address + 2 * size, "{kind}");
        assert_eq!(uffd.copy(place.address + 2 * size, &vec![5; size], 0), Ok(size as i64), "{kind}");
        assert_eq!(missing.join().unwrap(), 5);
        let storing = scope.spawn(|| place.set(0, 8));
        wait(&uffd);
        let message = uffd.next();
        assert_eq!((message.address, message.flags & FLAG_WP), (place.address, FLAG_WP), "{kind}");
        assert_eq!(place.get(0), 7, "{kind}");
        uffd.protect(place.address, size, 0).expect(kind);
        storing.join().unwrap();
        assert_eq!(place.get(0), 8, "{kind}");
    });
}

fn moves_are_told() {
    for (kind, map, size) in memories().into_iter().take(2) {
        check_moves(kind, &map, size);
    }
}

fn moves_of_huge_pages() {
    for (kind, map, size) in memories().into_iter().skip(2) {
        check_moves(kind, &map, size);
    }
}

fn removed_pages_are_told() {
    for (kind, map, size) in memories() {
        let uffd = monitor(ALL_KINDS | EVENT_REMOVE);
        map.set(size, 7);
        uffd.register(&map, MISSING).expect(kind);
        let advice =
            if kind == "private" || kind == "huge private" { libc::MADV_DONTNEED } else { libc::MADV_REMOVE };
        let (at, len) = (map.address + size, 2 * size);
        thread::scope(|scope| {
            let removing = scope.spawn(|| madvise(at, len, advice));
            wait(&uffd);
            // It is told before it happens.
            assert_eq!(map.get(size), 7, "{kind}");
            assert_eq!(event(&uffd), (REMOVE, [at as u64, (at + len) as u64, 0]), "{kind}");
            assert_eq!(removing.join().unwrap(), Ok(()), "{kind}");
            let missing = scope.spawn(|| map.get(size));
            wait(&uffd);
            assert_eq!(uffd.next().address, at, "{kind}");
            assert_eq!(uffd.copy(at, &vec![5; size], 0), Ok(size as i64), "{kind}");
            assert_eq!(missing.join().unwrap(), 5, "{kind}");
        });
    }
}

fn unmapped_areas_are_told() {
    for (kind, map, size) in memories() {
        let uffd = monitor(ALL_KINDS | EVENT_UNMAP);
        // Two areas of one monitor, and one that is not watched between them.
        uffd.register_at(map.address, size, MISSING).expect(kind);
        uffd.register_at(map.address + 2 * size, 2 * size, MISSING).expect(kind);
        let range = |first: usize, end: usize| {
            [(map.address + first * size) as u64, (map.address + end * size) as u64, 0]
        };
        {
            let act = |act: &(dyn Fn() + Sync), words: [u64; 3]| {
                thread::scope(|scope| {
                    let acting = scope.spawn(act);
                    wait(&uffd);
                    assert_eq!(event(&uffd), (UNMAP, words), "{kind}");
                    acting.join().unwrap();
                });
                nothing(&uffd);
            };
            // Once, for the whole range of the call.
            act(&|| munmap(map.address, 3 * size).unwrap(), range(0, 3));
            let flags = PRIVATE | ANON | libc::MAP_FIXED;
            let replace = || {
                std::mem::forget(Map::at(map.address + 3 * size, size, RW, flags, -1, 0).unwrap());
            };
            act(&replace, range(3, 4));
        }
        // Nobody is told of what is not watched.
        munmap(map.address, 4 * size).unwrap();
        nothing(&uffd);
    }
    // A tail that mremap(2) cuts off.
    let map = Map::anonymous(4 * PAGE);
    let uffd = monitor(EVENT_UNMAP);
    uffd.register(&map, MISSING).unwrap();
    thread::scope(|scope| {
        let cutting = scope.spawn(|| mremap(map.address, 4 * PAGE, PAGE, 0, 0));
        wait(&uffd);
        let words = [(map.address + PAGE) as u64, (map.address + 4 * PAGE) as u64, 0];
        assert_eq!(event(&uffd), (UNMAP, words));
        assert_eq!(cutting.join().unwrap(), Ok(map.address));
    });
}

/// Until the reader is past all that takes locks of the C library: a fork holds those until its message is read.
fn await_start(begun: &AtomicBool) {
    while !begun.load(SeqCst) {
        thread::yield_now();
    }
}

/// Forks with a monitor that reads the event: the child, and the descriptor of its memory.
fn fork_watched(uffd: &Uffd, run: impl FnOnce()) -> (child::Child, Uffd) {
    let begun = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            begun.store(true, SeqCst);
            wait(uffd);
            let (kind, words) = event(uffd);
            assert_eq!(kind, FORK);
            Uffd(Fd::own(words[0] as u32 as usize))
        });
        await_start(&begun);
        let child = child::fork(run);
        (child, reader.join().unwrap())
    })
}

fn children_are_watched() {
    for (kind, map, size) in memories() {
        let uffd = monitor(ALL_KINDS | EVENT_FORK);
        map.set(0, 7);
        uffd.register(&map, MISSING).expect(kind);
        let (child, childs) = fork_watched(&uffd, || {
            assert_eq!((map.get(0), map.get(2 * size)), (7, 5));
        });
        // The child's descriptor is about the child's memory, at the same addresses.
        loop {
            wait(&childs);
            let message = childs.next();
            let page = message.address & !(size - 1);
            let content = if page == map.address { 7 } else { 5 };
            match childs.copy(page, &vec![content; size], 0) {
                Ok(_) => {}
                // Memory that both share has it already.
                Err(Errno::EEXIST) => assert_eq!(childs.wake(page, size), Ok(0)),
                Err(error) => panic!("{kind}: {error}"),
            }
            if page == map.address + 2 * size {
                break;
            }
        }
        child.ok();
        // Its memory is gone.
        assert_eq!(childs.copy(map.address + 3 * size, &vec![5; size], 0), Err(Errno::ESRCH), "{kind}");
        nothing(&uffd);
    }
}

fn children_keep_what_is_withheld() {
    for (kind, map, size) in memories() {
        let uffd = monitor(ALL_KINDS | EVENT_FORK);
        for page in 0..3 {
            map.set(page * size, 7);
        }
        uffd.register(&map, WP).expect(kind);
        uffd.protect(map.address, size, 1).expect(kind);
        uffd.protect(map.address + 2 * size, size, 1).expect(kind);
        let (child, childs) = fork_watched(&uffd, || {
            map.set(size, 8);
            map.set(2 * size, 9);
            assert_eq!([0, 1, 2].map(|page| map.get(page * size)), [7, 8, 9]);
        });
        wait(&childs);
        let message = childs.next();
        assert_eq!((message.address, message.flags & FLAG_WP), (map.address + 2 * size, FLAG_WP), "{kind}");
        assert_eq!(childs.protect(map.address + 2 * size, size, 0), Ok(0), "{kind}");
        child.ok();
        // The parent's is withheld as before.
        thread::scope(|scope| {
            let storing = scope.spawn(|| map.set(0, 1));
            wait(&uffd);
            assert_eq!(uffd.next().address, map.address, "{kind}");
            uffd.protect(map.address, size, 0).expect(kind);
            storing.join().unwrap();
        });
    }
}

fn nobody_fills_meanwhile() {
    let map = Map::anonymous(4 * PAGE);
    let other = Map::anonymous(PAGE);
    let uffd = monitor(ALL_KINDS | EVENT_UNMAP);
    uffd.register(&map, MISSING | WP).unwrap();
    uffd.register(&other, MISSING | WP).unwrap();
    thread::scope(|scope| {
        let unmapping = scope.spawn(|| munmap(map.address, PAGE));
        wait(&uffd);
        assert_eq!(uffd.copy(other.address, &[1; PAGE], 0), Err(Errno::EAGAIN));
        assert_eq!(uffd.protect(other.address, PAGE, 1), Err(Errno::EAGAIN));
        assert_eq!(event(&uffd).0, UNMAP);
        assert_eq!(unmapping.join().unwrap(), Ok(()));
    });
    assert_eq!(uffd.copy(other.address, &[1; PAGE], 0), Ok(PAGE as i64));
    assert_eq!(other.get(0), 1);
}

fn a_closed_monitor_lets_go() {
    let map = Map::anonymous(4 * PAGE);
    let uffd = monitor(ALL_KINDS | EVENT_UNMAP | EVENT_FORK);
    uffd.register(&map, MISSING).unwrap();
    thread::scope(|scope| {
        let unmapping = scope.spawn(|| munmap(map.address, PAGE));
        wait(&uffd);
        drop(uffd);
        assert_eq!(unmapping.join().unwrap(), Ok(()));
    });
    if sys::is_linux() {
        // The child's table of descriptors is made before its memory there, so that it keeps the monitor open.
        return;
    }
    // A child whose descriptor nobody took is watched by nobody.
    let uffd = monitor(ALL_KINDS | EVENT_FORK);
    uffd.register_at(map.address + PAGE, 3 * PAGE, MISSING).unwrap();
    let begun = AtomicBool::new(false);
    thread::scope(|scope| {
        let begun = &begun;
        let closing = scope.spawn(move || {
            begun.store(true, SeqCst);
            wait(&uffd);
            drop(uffd);
        });
        await_start(begun);
        let child = child::fork(|| assert_eq!(map.get(PAGE), 0));
        closing.join().unwrap();
        child.ok();
    });
}

fn a_killed_thread_lets_go() {
    let (ready, told) = pipe(0);
    let child = child::fork(|| {
        let map = Map::anonymous(4 * PAGE);
        let uffd = monitor(EVENT_UNMAP);
        uffd.register(&map, MISSING).unwrap();
        told.write(&[1]).unwrap();
        let _ = munmap(map.address, PAGE);
    });
    ready.read(&mut [0]).unwrap();
    // Only a signal that kills ends its sleep.
    assert!(sys::settles(Duration::from_secs(20), || procfs::state(child.pid) == Some('D')));
    child.kill(libc::SIGUSR1);
    assert_eq!(child.wait(), End::Signal(libc::SIGUSR1));
}

fn only_who_asks_is_told() {
    let map = Map::anonymous(8 * PAGE);
    let uffd = monitor(EVENT_REMOVE);
    uffd.register(&map, MISSING).unwrap();
    // Neither moves nor unmappings nor forks are told, and nobody waits.
    child::fork(|| assert_eq!(map.get(0), 0)).ok();
    munmap(map.address + 7 * PAGE, PAGE).unwrap();
    let place = Map::reserve(PAGE, PAGE);
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    assert_eq!(mremap(map.address + 6 * PAGE, PAGE, PAGE, flags, place.address), Ok(place.address));
    assert_eq!(place.get(0), 0);
    nothing(&uffd);
    // A child without the right may not ask for its forks.
    child::in_child(|| {
        // SAFETY: takes an integer.
        sys::check(unsafe { libc::setuid(1000) }).unwrap();
        let flags = libc::O_CLOEXEC as usize | 1;
        let own = Uffd(Fd::own(call(libc::SYS_userfaultfd, [flags, 0, 0, 0, 0, 0]).unwrap()));
        assert_eq!(own.api(EVENT_FORK), Err(Errno::EPERM));
        assert_eq!(own.api(EVENT_REMAP), Ok(0));
    });
}

/// A reader without a free descriptor gets the message later.
fn descriptors_run_out() {
    let map = Map::anonymous(4 * PAGE);
    let uffd = monitor(ALL_KINDS | EVENT_FORK);
    uffd.register(&map, MISSING).unwrap();
    let begun = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            begun.store(true, SeqCst);
            wait(&uffd);
            let limit = |soft: u64| {
                let limit = libc::rlimit { rlim_cur: soft, rlim_max: 1024 };
                // SAFETY: takes a structure that lives through the call.
                sys::check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }).unwrap();
            };
            limit(3);
            let full = uffd.0.read(&mut [0; 32]);
            limit(1024);
            (full, event(&uffd).0)
        });
        await_start(&begun);
        let child = child::fork(|| ());
        assert_eq!(reader.join().unwrap(), (Err(Errno::EMFILE), FORK));
        child.ok();
    });
}

/// Each page has a monitor of its own: that costs the call memory, and it asks for it.
fn very_many_monitors() {
    const MONITORS: usize = 3000;
    let most = libc::rlimit { rlim_cur: 2 * MONITORS as u64, rlim_max: 2 * MONITORS as u64 };
    // SAFETY: the limit is only read.
    sys::check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &most) }).expect("setrlimit");
    let map = Map::anonymous(2 * MONITORS * PAGE);
    let epoll = Fd::own(call(libc::SYS_epoll_create1, [0; 6]).expect("epoll_create1"));
    let monitors: Vec<Uffd> = (0..MONITORS)
        .map(|number| {
            let uffd = monitor(EVENT_UNMAP | EVENT_FORK);
            // Two areas of each, far from each other: it is told once.
            for page in [number, 2 * MONITORS - 1 - number] {
                uffd.register_at(map.address + page * PAGE, PAGE, MISSING).expect("UFFDIO_REGISTER");
            }
            add(&epoll, &uffd, number);
            uffd
        })
        .collect();
    // One message of each, in whatever order they come. What a fork holds of the C library's is not needed.
    let all_are_told = |told: &mut [bool], expected: &dyn Fn(u8, [u64; 3])| {
        for _ in 0..MONITORS {
            let number = ready(&epoll);
            assert!(!std::mem::replace(&mut told[number], true), "{number} is told twice");
            let (kind, words) = event(&monitors[number]);
            expected(kind, words);
        }
    };
    let mut told = vec![false; MONITORS];
    let begun = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            begun.store(true, SeqCst);
            all_are_told(&mut told, &|kind, words| {
                assert_eq!(kind, FORK);
                drop(Fd::own(words[0] as u32 as usize));
            });
        });
        await_start(&begun);
        let child = child::fork(|| {});
        reader.join().unwrap();
        child.ok();
    });
    thread::scope(|scope| {
        let words = [map.address as u64, (map.address + map.length) as u64, 0];
        let unmapping = scope.spawn(|| munmap(map.address, map.length));
        let mut told = vec![false; MONITORS];
        all_are_told(&mut told, &|kind, told| assert_eq!((kind, told), (UNMAP, words)));
        assert_eq!(unmapping.join().unwrap(), Ok(()));
    });
    monitors.iter().for_each(nothing);
    std::mem::forget(map);
}

/// Waits for the next descriptor that is ready; its number.
fn ready(epoll: &Fd) -> usize {
    let mut ready = libc::epoll_event { events: 0, u64: 0 };
    let at = &raw mut ready as usize;
    assert_eq!(call(libc::SYS_epoll_wait, [epoll.raw() as usize, at, 1, usize::MAX, 0, 0]), Ok(1));
    ready.u64 as usize
}

fn add(epoll: &Fd, uffd: &Uffd, number: usize) {
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: number as u64 };
    let at = &raw mut event as usize;
    call(libc::SYS_epoll_ctl, [epoll.raw() as usize, 1, uffd.0.raw() as usize, at, 0, 0])
        .expect("EPOLL_CTL_ADD");
}

/// An unmapping that there is no memory to tell of does not happen.
fn no_memory_to_tell() {
    const MONITORS: usize = 40;
    let injector = Injector::new();
    let map = Map::anonymous(2 * MONITORS * PAGE);
    let epoll = Fd::own(call(libc::SYS_epoll_create1, [0; 6]).expect("epoll_create1"));
    let monitors: Arc<Vec<Uffd>> = Arc::new((0..MONITORS).map(|_| monitor(EVENT_UNMAP)).collect());
    for (number, uffd) in monitors.iter().enumerate() {
        uffd.register_at(map.address + 2 * number * PAGE, PAGE, MISSING).expect("UFFDIO_REGISTER");
        add(&epoll, uffd, number);
    }
    let areas = || std::fs::read_to_string("/proc/self/maps").unwrap();
    let stranger = monitor(0);
    // Not in a scope, which would wait for it should something fail here.
    let of_reader = monitors.clone();
    let reader = thread::spawn(move || {
        (0..MONITORS).for_each(|_| _ = event(&of_reader[ready(&epoll)]));
    });
    procfs::wait_for_sleepers(1);
    let before = areas();
    let mut refused = 0;
    for nth in 1..1000 {
        injector.arm(nth);
        let result = munmap(map.address, map.length);
        injector.disarm();
        if result.is_ok() {
            break;
        }
        refused += 1;
        assert_eq!((result, areas()), (Err(Errno::ENOMEM), before.clone()), "{nth}");
        // What is noted last is the first to be forgotten.
        for number in [0, MONITORS - 1] {
            nothing(&monitors[number]);
            let other = stranger.register_at(map.address + 2 * number * PAGE, PAGE, MISSING);
            assert_eq!(other, Err(Errno::EBUSY), "{number} is watched");
        }
    }
    assert!(refused >= MONITORS, "{refused}");
    reader.join().unwrap();
    monitors.iter().for_each(nothing);
    std::mem::forget(map);
}
