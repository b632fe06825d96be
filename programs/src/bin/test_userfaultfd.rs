//! userfaultfd(2): who is told of which faults in which kind of memory, and what resolves them.

use std::sync::atomic::{AtomicUsize, Ordering};

use libc::SYS_userfaultfd;
use roundtable_programs::child::{End, fork, fork_code, in_child};
use roundtable_programs::fault::{self, Fault};
use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, HUGE};
use roundtable_programs::kinds::call;
use roundtable_programs::mem::{
    ANON, FIXED, Map, NONE, NORESERVE, PRIVATE, RW, SHARED, madvise, mmap, mprotect, mremap,
};
use roundtable_programs::rows::Rows;
use roundtable_programs::sys::PAGE;
use roundtable_programs::uffd::{
    ALL_KINDS, API, CONTINUE, COPY, EXACT, FLAG_MINOR, FLAG_WP, FLAG_WRITE, MINOR, MISSING, POISON, POISONS,
    SIGBUS, THREAD_ID, UNREGISTER, Uffd, WP, WP_ASYNC, WP_UNPOPULATED, ZEROPAGE,
};
use roundtable_programs::{Errno, row, tests};

tests! { missing_pages, zero_pages, minor_faults, withheld_stores, withheld_from_the_unpopulated, asynchronous_stores,
sigbus_feature, poisoned_pages, poison_is_lifted, poison_stays, system_calls_wait, wake_without_a_page, close_lets_go, fork_move_and_unmap, messages_and_poll,
many_threads, shared_tables_are_left, copies_into_shared_slots, copies_into_tables_of_a_fork, copies_behind_the_end, copies_are_pages_of_the_file, errors }

/// The kinds of memory that files stand behind: two mappings of the same four pages, and the size of a page.
fn files() -> Vec<(&'static str, Map, Map, usize)> {
    let anonymous = Map::new(4 * PAGE, RW, SHARED | ANON, -1, 0).expect("shared memory");
    let same = mremap(anonymous.address, 0, 4 * PAGE, libc::MREMAP_MAYMOVE, 0).expect("mremap");
    let same = Map { address: same, length: 4 * PAGE };
    let file = Fd::memfd("test", 0).expect("memfd");
    file.truncate(4 * PAGE as u64).expect("ftruncate");
    let huge = huge::sized(4);
    let twice = |fd: &Fd, length| {
        let map = || fd.map(length, RW, SHARED).expect("mmap");
        (map(), map())
    };
    let (first, second) = twice(&file, 4 * PAGE);
    let (first_huge, second_huge) = twice(&huge, 4 * HUGE);
    vec![
        ("shared memory", anonymous, same, PAGE),
        ("memory file", first, second, PAGE),
        ("huge", first_huge, second_huge, HUGE),
    ]
}

/// All kinds of memory: four pages of each, with the size of a page.
fn memories() -> Vec<(&'static str, Map, usize)> {
    let private = Map::new(4 * HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0).expect("huge pages");
    let mut all: Vec<_> = files().into_iter().map(|(kind, map, _, size)| (kind, map, size)).collect();
    all.push(("anonymous", Map::anonymous(4 * PAGE), PAGE));
    all.push(("private huge", private, HUGE));
    all
}

/// Runs `access` in a thread while `resolve` runs in this one.
fn beside<T: Send>(access: impl FnOnce() -> T + Send, resolve: impl FnOnce()) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(access);
        resolve();
        thread.join().expect("the thread that faulted")
    })
}

fn missing_pages() {
    huge::pool(16);
    for (kind, map, size) in memories() {
        let uffd = Uffd::new(ALL_KINDS);
        uffd.register(&map, MISSING).expect(kind);
        let page = vec![7u8; size];
        let read = beside(
            || map.get(size + 5),
            || {
                let message = uffd.next();
                assert_eq!(
                    (message.address, message.flags, message.thread),
                    (map.address + size, 0, 0),
                    "{kind}"
                );
                assert_eq!(uffd.copy(map.address + size, &page, 0), Ok(size as i64), "{kind}");
            },
        );
        assert_eq!(read, 7, "{kind}");
        beside(
            || map.set(9, 1),
            || {
                let message = uffd.next();
                assert_eq!((message.address, message.flags), (map.address, FLAG_WRITE), "{kind}");
                assert_eq!(uffd.copy(map.address, &page, 0), Ok(size as i64), "{kind}");
            },
        );
        assert_eq!((map.get(8), map.get(9), map.get(size - 1)), (7, 1, 7), "{kind}");
        assert_eq!(uffd.copy(map.address, &page, 0), Err(Errno::EEXIST), "{kind}");
        let two = vec![8u8; 2 * size];
        let mut words = [(map.address + 3 * size) as u64, two.as_ptr() as u64, (2 * size) as u64, 0, 0];
        assert_eq!(uffd.ioctl(COPY, &mut words), Err(Errno::ENOENT), "{kind}: beyond the area");
        assert_eq!(words[4] as i64, -2, "{kind}");
    }
}

fn zero_pages() {
    huge::pool(16);
    for (kind, map, size) in memories() {
        let uffd = Uffd::new(ALL_KINDS);
        uffd.register(&map, MISSING).expect(kind);
        if size == HUGE {
            assert_eq!(uffd.of_range(ZEROPAGE, map.address, size, 0), Err(Errno::EINVAL), "{kind}");
            continue;
        }
        let read = beside(
            || map.get(1),
            || {
                assert_eq!(uffd.next().address, map.address, "{kind}");
                assert_eq!(uffd.of_range(ZEROPAGE, map.address, 2 * size, 0), Ok(2 * size as i64), "{kind}");
            },
        );
        assert_eq!((read, map.get(size)), (0, 0), "{kind}");
        map.set(size, 3);
        assert_eq!((map.get(0), map.get(size)), (0, 3), "{kind}");
    }
}

fn minor_faults() {
    huge::pool(16);
    for (kind, map, other, size) in files() {
        other.set(0, 5);
        other.set(2 * size, 6);
        let uffd = Uffd::new(ALL_KINDS);
        uffd.register(&map, MINOR).expect(kind);
        forget(&map, 0, map.length);
        let read = beside(
            || map.get(2 * size),
            || {
                let message = uffd.next();
                assert_eq!(message.address, map.address + 2 * size, "{kind}");
                assert_eq!(message.flags, FLAG_MINOR, "{kind}");
                other.set(2 * size, 16);
                let done = uffd.of_range(CONTINUE, map.address + 2 * size, size, 0);
                assert_eq!(done, Ok(size as i64), "{kind}");
            },
        );
        assert_eq!(read, 16, "{kind}");
        let again = uffd.of_range(CONTINUE, map.address + 2 * size, size, 0);
        assert_eq!(again, Err(Errno::EEXIST), "{kind}");
        // Nothing to go on with, and no fault of that mode either.
        let hole = uffd.of_range(CONTINUE, map.address + size, size, 0);
        assert_eq!(hole, Err(Errno::EFAULT), "{kind}");
        map.set(size, 1);
        assert_eq!(other.get(size), 1, "{kind}");
    }
}

fn withheld_stores() {
    huge::pool(16);
    for (kind, map, size) in memories() {
        let uffd = Uffd::new(ALL_KINDS);
        map.set(0, 1);
        map.set(size, 2);
        uffd.register(&map, WP).expect(kind);
        map.set(0, 3);
        assert_eq!(uffd.protect(map.address, 2 * size, 1), Ok(0), "{kind}");
        assert_eq!((map.get(0), map.get(size)), (3, 2), "{kind}: loads go on");
        beside(
            || map.set(size + 1, 9),
            || {
                let message = uffd.next();
                assert_eq!(message.address, map.address + size, "{kind}");
                assert_eq!(message.flags, FLAG_WP | FLAG_WRITE, "{kind}");
                assert_eq!(map.get(size + 1), 0, "{kind}: the store waits");
                assert_eq!(uffd.protect(map.address + size, size, 0), Ok(0), "{kind}");
            },
        );
        assert_eq!(map.get(size + 1), 9, "{kind}");
        // mprotect gives no right that is withheld.
        mprotect(map.address, 4 * size, libc::PROT_READ).expect(kind);
        mprotect(map.address, 4 * size, RW).expect(kind);
        beside(
            || map.set(0, 4),
            || {
                assert_eq!(uffd.next().flags, FLAG_WP | FLAG_WRITE, "{kind}");
                assert_eq!(uffd.protect(map.address, size, 0), Ok(0), "{kind}");
            },
        );
        assert_eq!(map.get(0), 4, "{kind}");
        // A copy can come with stores withheld.
        let page = vec![5u8; size];
        assert_eq!(uffd.copy(map.address + 3 * size, &page, 2), Ok(size as i64), "{kind}");
        beside(
            || map.set(3 * size, 6),
            || {
                assert_eq!(uffd.next().address, map.address + 3 * size, "{kind}");
                assert_eq!(uffd.protect(map.address + 3 * size, size, 0), Ok(0), "{kind}");
            },
        );
        assert_eq!((map.get(3 * size), map.get(3 * size + 1)), (6, 5), "{kind}");
    }
}

fn withheld_from_the_unpopulated() {
    huge::pool(16);
    for (kind, map, size) in memories() {
        let uffd = Uffd::new(ALL_KINDS | WP_UNPOPULATED);
        uffd.register(&map, WP).expect(kind);
        assert_eq!(uffd.protect(map.address, 2 * size, 1), Ok(0), "{kind}");
        assert_eq!(map.get(0), 0, "{kind}: a load brings the page");
        for offset in [0, size] {
            beside(
                || map.set(offset, 1),
                || {
                    let message = uffd.next();
                    assert_eq!(message.flags, FLAG_WP | FLAG_WRITE, "{kind}");
                    assert_eq!(message.address, map.address + offset, "{kind}");
                    assert_eq!(uffd.protect(map.address + offset, size, 0), Ok(0), "{kind}");
                },
            );
        }
        map.set(2 * size, 1);
    }
}

fn asynchronous_stores() {
    huge::pool(16);
    for (kind, map, size) in memories() {
        let uffd = Uffd::new(ALL_KINDS | WP_UNPOPULATED | WP_ASYNC);
        map.set(0, 1);
        map.set(size, 1);
        uffd.register(&map, WP).expect(kind);
        assert_eq!(uffd.protect(map.address, 4 * size, 1), Ok(0), "{kind}");
        let withheld = || [0, 1].map(|page| pagemap(&map, page * size) >> 57 & 1);
        assert_eq!(withheld(), [1, 1], "{kind}");
        map.set(0, 2);
        assert_eq!(withheld(), [0, 1], "{kind}: nobody is asked, and it can be seen");
    }
}

fn sigbus_feature() {
    huge::pool(16);
    for (kind, map, size) in memories() {
        let uffd = Uffd::new(ALL_KINDS | SIGBUS);
        uffd.register(&map, MISSING).expect(kind);
        let expected = Fault::bus(map.address + size);
        assert_eq!(fault::read(map.address + size), Err(expected), "{kind}");
        assert_eq!(fault::write(map.address + size, 1), Err(expected), "{kind}");
        assert_eq!(uffd.copy(map.address + size, &vec![4; size], 0), Ok(size as i64), "{kind}");
        assert_eq!(fault::read(map.address + size), Ok(4), "{kind}");
        // A system call gets EFAULT.
        let bad = call(libc::SYS_getcwd, [map.address, 100, 0, 0, 0, 0]);
        assert_eq!(bad, Err(Errno::EFAULT), "{kind}");
    }
}

fn poisoned_pages() {
    const BUS_MCEERR_AR: i32 = 4;
    huge::pool(16);
    for (kind, map, size) in memories() {
        let uffd = Uffd::new(ALL_KINDS | POISONS);
        uffd.register(&map, MISSING).expect(kind);
        assert_eq!(uffd.of_range(POISON, map.address, 2 * size, 0), Ok(2 * size as i64), "{kind}");
        let expected = Fault { signal: libc::SIGBUS, code: BUS_MCEERR_AR, address: map.address };
        assert_eq!(fault::read(map.address), Err(expected), "{kind}");
        assert_eq!(fault::write(map.address, 1), Err(expected), "{kind}");
        assert_eq!(uffd.copy(map.address + size, &vec![4; size], 0), Ok(size as i64), "{kind}: heals");
        assert_eq!(fault::read(map.address + size), Ok(4), "{kind}");
        assert_eq!(uffd.of_range(POISON, map.address + size, size, 0), Err(Errno::EEXIST), "{kind}");
    }
}

/// UFFDIO_CONTINUE shows the page that the file has, whatever was said before.
fn poison_is_lifted() {
    huge::pool(16);
    for (kind, map, other, size) in files() {
        other.set(0, 5);
        let uffd = Uffd::new(ALL_KINDS | POISONS);
        uffd.register(&map, MINOR).expect(kind);
        forget(&map, 0, map.length);
        assert_eq!(uffd.of_range(POISON, map.address, size, 0), Ok(size as i64), "{kind}");
        assert!(fault::read(map.address).is_err(), "{kind}");
        assert_eq!(uffd.of_range(CONTINUE, map.address, size, 0), Ok(size as i64), "{kind}");
        assert_eq!(fault::read(map.address), Ok(5), "{kind}");
    }
}

/// Poison outlives who put it there, and children of private memory have it, too.
fn poison_stays() {
    huge::pool(16);
    for (kind, map, size) in memories() {
        let uffd = Uffd::new(ALL_KINDS | POISONS);
        uffd.register(&map, MISSING).expect(kind);
        let at = map.address + size;
        assert_eq!(uffd.of_range(POISON, at, size, 0), Ok(size as i64), "{kind}");
        drop(uffd);
        let is_poisoned = || fault::read(at).is_err_and(|fault| fault.signal == libc::SIGBUS);
        assert!(is_poisoned(), "{kind}");
        let mut byte = 0u8;
        let to = [(&raw mut byte) as usize, 1];
        let from = [at, 1];
        let me = std::process::id() as usize;
        let vectors = [me, to.as_ptr() as usize, 1, from.as_ptr() as usize, 1, 0];
        assert_eq!(call(libc::SYS_process_vm_readv, vectors), Err(Errno::EFAULT), "{kind}");
        let expected = kind == "anonymous" || kind == "private huge";
        in_child(|| assert_eq!(is_poisoned(), expected, "{kind}, in a child"));
        madvise(at, size, libc::MADV_DONTNEED).expect(kind);
        assert!(!is_poisoned(), "{kind}, emptied");
    }
}

fn system_calls_wait() {
    let map = Map::anonymous(4 * PAGE);
    let uffd = Uffd::new(0);
    uffd.register(&map, MISSING).unwrap();
    let got = beside(
        || call(libc::SYS_getcwd, [map.address + 10, 100, 0, 0, 0, 0]),
        || {
            assert_eq!(uffd.next().address, map.address);
            assert_eq!(uffd.copy(map.address, &[1; PAGE], 0), Ok(PAGE as i64));
        },
    );
    assert!(got.is_ok_and(|length| length >= 2));
    assert_eq!((map.get(9), map.get(10)), (1, b'/'));
    // Who asked only for the faults of user mode has system calls fail.
    let uffd = Uffd::bare(1);
    uffd.api(0).unwrap();
    let map = Map::anonymous(PAGE);
    uffd.register(&map, MISSING).unwrap();
    assert_eq!(call(libc::SYS_getcwd, [map.address, 100, 0, 0, 0, 0]), Err(Errno::EFAULT));
}

fn wake_without_a_page() {
    let map = Map::anonymous(PAGE);
    let uffd = Uffd::new(0);
    uffd.register(&map, MISSING).unwrap();
    let read = beside(
        || map.get(0),
        || {
            assert_eq!(uffd.next().address, map.address);
            assert_eq!(uffd.wake(map.address, PAGE), Ok(0));
            // Nothing was put there: the fault comes again.
            assert_eq!(uffd.next().address, map.address);
            assert_eq!(uffd.copy(map.address, &[3; PAGE], 1), Ok(PAGE as i64));
            assert_eq!(uffd.wake(map.address, PAGE), Ok(0));
        },
    );
    assert_eq!(read, 3);
}

fn close_lets_go() {
    huge::pool(16);
    for (kind, map, size) in memories() {
        let uffd = Uffd::new(ALL_KINDS);
        map.set(size, 1);
        uffd.register(&map, MISSING | WP).expect(kind);
        assert_eq!(uffd.protect(map.address, 4 * size, 1), Ok(0), "{kind}");
        std::thread::scope(|scope| {
            let threads = [scope.spawn(|| map.set(0, 1)), scope.spawn(|| map.set(size, 2))];
            uffd.next();
            uffd.next();
            drop(uffd);
            for thread in threads {
                thread.join().unwrap();
            }
        });
        assert_eq!((map.get(0), map.get(size)), (1, 2), "{kind}");
        // Unregistering does the same for a part.
        let uffd = Uffd::new(ALL_KINDS);
        uffd.register(&map, MISSING).expect(kind);
        beside(
            || map.set(2 * size, 3),
            || {
                uffd.next();
                let part = [(map.address + 2 * size) as u64, size as u64];
                assert_eq!(uffd.ioctl(UNREGISTER, &mut part.clone()), Ok(0), "{kind}");
            },
        );
        assert_eq!(map.get(2 * size), 3, "{kind}");
    }
}

fn fork_move_and_unmap() {
    huge::pool(16);
    for (kind, map, size) in memories() {
        let uffd = Uffd::new(ALL_KINDS);
        map.set(0, 1);
        uffd.register(&map, MISSING | WP).expect(kind);
        assert_eq!(uffd.protect(map.address, size, 1), Ok(0), "{kind}");
        // A child is not watched.
        in_child(|| {
            map.set(0, 2);
            assert_eq!(map.get(size), 0);
        });
        // Nor is what has moved.
        let place = Map::reserve(4 * size, size);
        let moved =
            mremap(map.address, 4 * size, 4 * size, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, place.address);
        assert_eq!(moved, Ok(place.address), "{kind}");
        place.set(0, 3);
        place.set(2 * size, 4);
        assert_eq!(uffd.copy(place.address + 3 * size, &vec![1; size], 0), Err(Errno::ENOENT), "{kind}");
    }
}

fn messages_and_poll() {
    let map = Map::anonymous(4 * PAGE);
    let blocking = Uffd::bare(0);
    let poll = |uffd: &Uffd| {
        let mut entry = libc::pollfd { fd: uffd.0.raw(), events: libc::POLLIN, revents: 0 };
        let result = call(libc::SYS_poll, [(&raw mut entry) as usize, 1, 0, 0, 0, 0]);
        (result, entry.revents)
    };
    assert_eq!(poll(&blocking), (Ok(1), libc::POLLERR));
    assert_eq!(blocking.0.read(&mut [0; 32]), Err(Errno::EINVAL), "before UFFDIO_API");
    blocking.api(0).unwrap();
    assert_eq!(poll(&blocking), (Ok(1), libc::POLLERR));
    let uffd = Uffd::bare(libc::O_NONBLOCK);
    uffd.api(EXACT | THREAD_ID).unwrap();
    uffd.register(&map, MISSING).unwrap();
    assert_eq!(poll(&uffd), (Ok(0), 0));
    assert_eq!(uffd.0.read(&mut [0; 32]), Err(Errno::EAGAIN));
    assert_eq!(uffd.0.read(&mut [0; 31]), Err(Errno::EINVAL));
    std::thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = scope.spawn(|| {
            // SAFETY: takes nothing.
            sender.send(unsafe { libc::gettid() }).unwrap();
            drop(sender);
            map.get(PAGE + 123)
        });
        let mut entry = libc::pollfd { fd: uffd.0.raw(), events: libc::POLLIN, revents: 0 };
        assert_eq!(call(libc::SYS_poll, [(&raw mut entry) as usize, 1, usize::MAX, 0, 0, 0]), Ok(1));
        let message = uffd.next();
        assert_eq!(message.address, map.address + PAGE + 123);
        assert_eq!(message.thread, receiver.recv().unwrap() as u32);
        assert_eq!(uffd.copy(map.address + PAGE, &[6; PAGE], 0), Ok(PAGE as i64));
        assert_eq!(thread.join().unwrap(), 6);
    });
}

/// Threads that fault at once are all told of, and all go on.
fn many_threads() {
    const THREADS: usize = 24;
    const PAGES: usize = 64;
    let map = Map::anonymous(PAGES * PAGE);
    let uffd = Uffd::new(0);
    uffd.register(&map, MISSING).unwrap();
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (map, done) = (&map, &done);
            scope.spawn(move || {
                for step in 0..PAGES {
                    let page = (step * 7 + thread * 11) % PAGES;
                    assert_eq!(map.get(page * PAGE), page as u8 + 1);
                }
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        for _ in 0..PAGES {
            // A page that others wait for too is filled once; a message that was read before stands for all.
            loop {
                let address = uffd.next().address;
                let page = (address - map.address) / PAGE;
                match uffd.copy(address, &[page as u8 + 1; PAGE], 0) {
                    Ok(_) => break,
                    Err(error) => assert_eq!(error, Errno::EEXIST),
                }
            }
        }
    });
    assert_eq!(done.load(Ordering::SeqCst), THREADS);
}

/// A whole slot of a file that others map too: where minor faults are asked for, present pages fault all the same.
fn shared_tables_are_left() {
    huge::pool(4);
    let file = huge::sized(512);
    let place = Map::reserve(huge::GIB, huge::GIB);
    let flags = SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE;
    let map = Map::at(place.address, huge::GIB, RW, flags, file.raw(), 0).expect("mmap");
    std::mem::forget(place);
    map.set(0, 1);
    map.set(HUGE, 2);
    let other = fork(|| {
        assert_eq!(map.get(HUGE), 2);
        let uffd = Uffd::new(ALL_KINDS);
        uffd.register(&map, MINOR | WP).unwrap();
        forget(&map, 0, map.length);
        let read = beside(
            || map.get(HUGE),
            || {
                assert_eq!(uffd.next().flags, FLAG_MINOR);
                assert_eq!(uffd.of_range(CONTINUE, map.address, 2 * HUGE, 2), Ok(2 * HUGE as i64));
            },
        );
        assert_eq!(read, 2);
        beside(
            || map.set(HUGE, 3),
            || {
                assert_eq!(uffd.next().flags, FLAG_WP | FLAG_WRITE);
                assert_eq!(uffd.protect(map.address, huge::GIB, 0), Ok(0));
            },
        );
    });
    other.ok();
    assert_eq!(map.get(HUGE), 3);
    map.set(0, 4);
}

/// A place of 1 GiB that nothing else is in, at a multiple of that.
fn empty_slot() -> usize {
    const SLOT: usize = 1 << 30;
    let place = Map::new(2 * SLOT, NONE, PRIVATE | ANON | NORESERVE, -1, 0).expect("address space");
    let at = place.address.next_multiple_of(SLOT);
    // What is mapped there replaces it.
    std::mem::forget(place);
    at
}

fn map_there(at: usize, length: usize, file: &Fd) -> Map {
    let address = mmap(at, length, RW, SHARED | FIXED, file.raw(), 0).expect("mmap");
    Map { address, length }
}

fn copies_into_shared_slots() {
    huge::pool(8);
    let page = vec![6u8; HUGE];
    for mode in [MISSING, MISSING | WP, MISSING | MINOR] {
        let at = empty_slot();
        let [file, other] = [huge::sized(1), huge::sized(1)];
        let neighbour = map_there(at + HUGE, HUGE, &other);
        neighbour.set(0, 1);
        let map = map_there(at, HUGE, &file);
        let uffd = Uffd::new(ALL_KINDS);
        uffd.register(&map, mode).unwrap();
        let read = beside(
            || map.get(9),
            || {
                assert_eq!(uffd.next().address, map.address, "{mode}");
                assert_eq!(uffd.copy(map.address, &page, 0), Ok(HUGE as i64), "{mode}");
            },
        );
        assert_eq!((read, neighbour.get(0)), (6, 1), "{mode}");
        assert_eq!(uffd.copy(map.address, &page, 0), Err(Errno::EEXIST), "{mode}");
    }
}

fn copies_into_tables_of_a_fork() {
    const WINDOW: usize = 2 << 20;
    let page = vec![6u8; PAGE];
    let at = empty_slot();
    let private = mmap(at, WINDOW / 2, RW, PRIVATE | ANON | FIXED, -1, 0).expect("mmap");
    let private = Map { address: private, length: WINDOW / 2 };
    (0..WINDOW / 2).step_by(PAGE).for_each(|offset| private.set(offset, 1));
    let child = fork(|| {
        loop {
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
    });
    let file = Fd::memfd("test", 0).expect("memfd");
    file.truncate(PAGE as u64).expect("ftruncate");
    let map = map_there(at + WINDOW / 2, PAGE, &file);
    let uffd = Uffd::new(ALL_KINDS);
    uffd.register(&map, MISSING).unwrap();
    let read = beside(
        || map.get(9),
        || {
            assert_eq!(uffd.next().address, map.address);
            assert_eq!(uffd.copy(map.address, &page, 0), Ok(PAGE as i64));
        },
    );
    assert_eq!(read, 6);
    child.end();
}

fn copies_behind_the_end() {
    let page = vec![6u8; PAGE];
    for flags in [SHARED, PRIVATE] {
        let file = Fd::memfd("test", 0).expect("memfd");
        file.truncate(2 * PAGE as u64).expect("ftruncate");
        let map = file.map(2 * PAGE, RW, flags).expect("mmap");
        let uffd = Uffd::new(ALL_KINDS);
        uffd.register(&map, MISSING).unwrap();
        file.truncate(PAGE as u64).expect("ftruncate");
        assert_eq!(uffd.copy(map.address + PAGE, &page, 0), Err(Errno::EFAULT));
        assert_eq!(uffd.copy(map.address, &page, 0), Ok(PAGE as i64));
        let expected = Fault { signal: libc::SIGBUS, code: libc::BUS_ADRERR, address: map.address + PAGE };
        assert_eq!(fault::read(map.address + PAGE), Err(expected));
        assert_eq!(fault::read(map.address), Ok(6));
    }
}

fn errors() {
    let mut rows = Rows::default();
    let map = Map::anonymous(4 * PAGE);
    let (at, page) = (map.address, PAGE as u64);
    row!(rows, EINVAL, call(SYS_userfaultfd, [2, 0, 0, 0, 0, 0]));
    let uffd = Uffd::bare(0);
    row!(rows, EINVAL, uffd.register(&map, MISSING));
    row!(rows, EINVAL, uffd.ioctl(API, &mut [0xab, 0, 0]));
    row!(rows, EINVAL, uffd.api(1 << 40));
    row!(rows, OK, uffd.api(ALL_KINDS));
    row!(rows, EINVAL, uffd.api(ALL_KINDS));
    row!(rows, EINVAL, uffd.register(&map, 0));
    row!(rows, EINVAL, uffd.register(&map, 8));
    row!(rows, EINVAL, uffd.register(&map, MINOR));
    row!(rows, EINVAL, uffd.register_at(at + 1, PAGE, MISSING));
    row!(rows, EINVAL, uffd.register_at(at, 0, MISSING));
    row!(rows, EINVAL, uffd.register_at(at, PAGE + 1, MISSING));
    row!(rows, EINVAL, uffd.register_at(0, PAGE, MISSING));
    row!(rows, EINVAL, uffd.register_at(1 << 47, PAGE, MISSING));
    row!(rows, OK, uffd.register(&map, MISSING));
    let other = Uffd::new(ALL_KINDS);
    row!(rows, EBUSY, other.register(&map, MISSING));
    let gap = Map::anonymous(PAGE);
    let gap_at = gap.address;
    gap.unmap().unwrap();
    row!(rows, EINVAL, uffd.register_at(gap_at, PAGE, MISSING));
    row!(rows, EINVAL, uffd.ioctl(UNREGISTER, &mut [gap_at as u64, page]));
    let bytes = [0u8; PAGE];
    let source = bytes.as_ptr() as u64;
    row!(rows, EINVAL, uffd.ioctl(COPY, &mut [at as u64, source, 0, 0, 0]));
    row!(rows, EINVAL, uffd.ioctl(COPY, &mut [at as u64, source, page, 4, 0]));
    row!(rows, EINVAL, uffd.ioctl(COPY, &mut [at as u64, source, page, 2, 0]));
    row!(rows, EFAULT, uffd.ioctl(COPY, &mut [at as u64, gap_at as u64, page, 0, 0]));
    row!(rows, ENOENT, uffd.ioctl(COPY, &mut [source & !4095, at as u64, page, 0, 0]));
    row!(rows, EINVAL, uffd.ioctl(CONTINUE, &mut [at as u64, page, 0, 0]));
    row!(rows, EINVAL, uffd.ioctl(CONTINUE, &mut [at as u64, page, 4, 0]));
    row!(rows, EINVAL, uffd.ioctl(ZEROPAGE, &mut [at as u64, page, 2, 0]));
    row!(rows, EINVAL, uffd.ioctl(POISON, &mut [at as u64, page, 2, 0]));
    row!(rows, ENOENT, uffd.protect(at, PAGE, 1));
    row!(rows, EINVAL, uffd.protect(at, PAGE, 3));
    row!(rows, EINVAL, uffd.protect(at, PAGE, 4));
    row!(rows, EINVAL, uffd.wake(at, 5));
    row!(rows, EINVAL, uffd.ioctl(0xc018_aa99, &mut [0, 0]));
    let read_only =
        Map::new(PAGE, libc::PROT_READ, SHARED, Fd::open("/proc/self/exe", libc::O_RDONLY).unwrap().raw(), 0);
    let read_only = read_only.expect("a map of the program");
    row!(rows, EPERM, uffd.register(&read_only, MISSING));
    // Nobody but who may trace has one that can hold up the kernel.
    let stranger = fork_code(|| {
        // SAFETY: takes integers.
        assert_eq!(unsafe { libc::setuid(1000) }, 0);
        assert_eq!(call(SYS_userfaultfd, [0, 0, 0, 0, 0, 0]), Err(Errno::EPERM));
        i32::from(call(SYS_userfaultfd, [1, 0, 0, 0, 0, 0]).is_err())
    });
    assert_eq!(stranger.wait(), End::Code(0));
    // The device gives one too.
    let device = Fd::open("/dev/userfaultfd", libc::O_RDWR).expect("/dev/userfaultfd");
    let made = call(libc::SYS_ioctl, [device.raw() as usize, 0xaa00, libc::O_CLOEXEC as usize, 0, 0, 0]);
    let made = Uffd(Fd::own(made.expect("USERFAULTFD_IOC_NEW")));
    row!(rows, OK, made.api(0));
    row!(rows, EINVAL, call(libc::SYS_ioctl, [device.raw() as usize, 0xaa01, 0, 0, 0, 0]));
    rows.finish();
}

/// Gives the memory back, or the entries for it: a file keeps its pages.
fn forget(map: &Map, offset: usize, length: usize) {
    madvise(map.address + offset, length, libc::MADV_DONTNEED).expect("madvise");
}

/// What is copied into a file is the file's, and mapped once.
fn copies_are_pages_of_the_file() {
    const ANONYMOUS: u64 = 1 << 12;
    let file = Fd::memfd("test", 0).expect("memfd");
    file.truncate(4 * PAGE as u64).expect("ftruncate");
    let map = file.map(4 * PAGE, RW, SHARED).expect("mmap");
    let uffd = Uffd::new(0);
    uffd.register(&map, MISSING).expect("UFFDIO_REGISTER");
    assert_eq!(uffd.copy(map.address, &vec![7u8; PAGE], 0), Ok(PAGE as i64));
    let frame = pagemap(&map, 0) & ((1 << 55) - 1);
    let of_frame = |name: &str| {
        let mut word = [0u8; 8];
        assert_eq!(Fd::open(name, libc::O_RDONLY).expect(name).read_at(&mut word, 8 * frame), Ok(8));
        u64::from_ne_bytes(word)
    };
    assert_eq!(of_frame("/proc/kpageflags") & ANONYMOUS, 0);
    assert_eq!(of_frame("/proc/kpagecount"), 1);
}

/// The word of a page in `/proc/self/pagemap`.
fn pagemap(map: &Map, offset: usize) -> u64 {
    let file = Fd::open("/proc/self/pagemap", libc::O_RDONLY).expect("pagemap");
    let mut word = [0u8; 8];
    assert_eq!(file.read_at(&mut word, ((map.address + offset) / PAGE * 8) as u64), Ok(8));
    u64::from_ne_bytes(word)
}
