//! A call upon many of a thing holds no spin lock, and keeps its CPU, for longer than one upon few.
//!
//! Each test makes some of a thing and many times as many, uses them, and compares the kernel's own counts of
//! instructions. `stalls` prints more, of the kernel as it is shipped.

use std::cell::RefCell;
use std::time::Duration;

use roundtable_programs::child;
use roundtable_programs::file::{Fd, pipe};
use roundtable_programs::held::{compare, end, idlers, more_of};
use roundtable_programs::huge::{self, HUGE};
use roundtable_programs::kinds::call;
use roundtable_programs::mem::{ANON, FIXED, Map, NORESERVE, PRIVATE, R, RW, SHARED, mmap, mprotect, munmap};
use roundtable_programs::sys::{PAGE, check};
use roundtable_programs::uffd::{MISSING, Uffd, ZEROPAGE};
use roundtable_programs::{Errno, place, procfs, tests};

tests! { descriptors: 200, areas: 200, separate_areas: 200, windows: 200, tables_far_apart: 200, sizes: 200, reprints: 200, erasures: 200, random_numbers: 200, removed_messages: 200, undone_operations: 200, completions: 200, emptied_pipes: 200, lists_of_objects: 200, watched_faults: 200 }

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

/// Many page tables with nothing near them, one of which a child shares: what looks for that one.
fn tables_far_apart() {
    const GIB: usize = 1 << 30;
    let at = Map::new(PAGE, RW, SHARED | ANON, -1, 0).expect("shared memory");
    let make = |count: usize| {
        let map = Map::new((count + 2) * GIB, RW, PRIVATE | ANON | NORESERVE, -1, 0).expect("mmap");
        let first = map.address.next_multiple_of(GIB);
        // Too few pages for a child to share their tables, and enough, in the highest one.
        let pages = (0..count).map(|number| number * GIB);
        let shared = (0..128).map(|page| count * GIB + page * PAGE);
        pages.chain(shared).for_each(|offset| map.set(first - map.address + offset, 1));
        at.set_u64(0, first as u64);
        std::mem::forget(map);
    };
    compare(4, 300, make, |count| {
        let first = at.get_u64(0) as usize;
        child::in_child(|| munmap(first, (count + 1) * GIB).expect("munmap"));
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
