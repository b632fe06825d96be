//! MADV_HWPOISON and MADV_SOFT_OFFLINE: memory that counts as broken, and memory that is left before it breaks. Each page here is lost.

use std::sync::Once;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use roundtable_programs::fault;
use roundtable_programs::file::Fd;
use roundtable_programs::harness::skip;
use roundtable_programs::huge::{self, Counters, GIB, HUGE, sized};
use roundtable_programs::mem::{ANON, Map, NONE, NORESERVE, PRIVATE, R, RW, SHARED, madvise, mremap};
use roundtable_programs::shared::Shared;
use roundtable_programs::sys::{check, is_linux};
use roundtable_programs::uffd::{ALL_KINDS, CONTINUE, MINOR, MISSING, POISON, Uffd};
use roundtable_programs::{Errno, child, namespaces, procfs, tests};

tests! { errors, a_file_page, what_is_read, monitored, two_processes, a_private_page, moved, moved_copies,
moved_and_registered, not_moved, base_pages, base_pages_of_many,
base_pages_moved, base_pages_elsewhere, moved_under_stores: 90, gigantic: 90 }

const PAGE: usize = 4096;
const BUS_MCEERR_AR: usize = 4;

/// What the last SIGBUS said: code, address and granule.
static SEEN: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];
/// The handler that lets an access of [`fault`] go on.
static NEXT: AtomicUsize = AtomicUsize::new(0);

extern "C" fn note(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a whole siginfo; SIGBUS has an address, and the granule behind it.
    let found = unsafe { ((*info).si_code, (*info).si_addr(), info.cast::<u16>().add(12).read()) };
    SEEN[0].store(found.0 as usize, Ordering::SeqCst);
    SEEN[1].store(found.1 as usize, Ordering::SeqCst);
    SEEN[2].store(found.2.into(), Ordering::SeqCst);
    let next = NEXT.load(Ordering::SeqCst);
    if next != 0 {
        // SAFETY: the handler that was there before this one, with what the kernel gave.
        unsafe {
            let next: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = std::mem::transmute(next);
            next(signal, info, context);
        }
    }
}

/// Makes SIGBUS noted, before the handler of [`fault`] gets it.
fn install() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        // The first access sets its handler.
        let word = 0u8;
        fault::read(std::ptr::from_ref(&word) as usize).unwrap();
        // SAFETY: a sigaction of zeros is valid; the handler stores to statics.
        unsafe {
            let (mut action, mut old): (libc::sigaction, libc::sigaction) =
                (std::mem::zeroed(), std::mem::zeroed());
            action.sa_sigaction = note as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            check(libc::sigaction(libc::SIGBUS, &action, &mut old)).unwrap();
            PROBES.store(old.sa_sigaction, Ordering::SeqCst);
        }
    });
}

static PROBES: AtomicUsize = AtomicUsize::new(0);

fn seen() -> [usize; 3] {
    SEEN.each_ref().map(|word| word.swap(0, Ordering::SeqCst))
}

/// Breaks a page, and what signal that brought.
fn poison(address: usize) -> (Result<(), Errno>, [usize; 3]) {
    install();
    NEXT.store(0, Ordering::SeqCst);
    seen();
    let result = madvise(address, PAGE, libc::MADV_HWPOISON);
    (result, seen())
}

/// What an access meets: its signal's code and granule, if the address is the access's.
fn access(address: usize) -> Result<u8, (usize, usize)> {
    install();
    NEXT.store(PROBES.load(Ordering::SeqCst), Ordering::SeqCst);
    seen();
    fault::read(address).map_err(|_| {
        let [code, at, granule] = seen();
        assert_eq!(at, address);
        (code, granule)
    })
}

const BROKEN: Result<u8, (usize, usize)> = Err((BUS_MCEERR_AR, 21));

fn corrupted() -> u64 {
    procfs::Meminfo::read().get("HardwareCorrupted")
}

/// Huge pages that Linux counts for ever: it keeps a reference to each that broke in a file, as if somebody used it.
static KEPT: AtomicU64 = AtomicU64::new(0);

fn pool(pages: u64) {
    huge::set_overcommit(0);
    huge::set_pool(0);
    let kept = huge::counters().total;
    assert!(kept == 0 || is_linux(), "{kept} pages are left");
    KEPT.store(kept, Ordering::SeqCst);
    huge::set_pool(pages + kept);
    huge::expect_counters(Counters { total: pages + kept, free: pages, reserved: 0, surplus: 0 });
}

fn counters() -> Counters {
    let counters = huge::counters();
    Counters { total: counters.total - KEPT.load(Ordering::SeqCst), ..counters }
}

/// All pages, the free and the promised ones.
fn counted() -> (u64, u64, u64) {
    let Counters { total, free, reserved, .. } = counters();
    (total, free, reserved)
}

fn soft_offline(address: usize) -> Result<(), Errno> {
    madvise(address, PAGE, libc::MADV_SOFT_OFFLINE)
}

fn errors() {
    pool(2);
    let map = Map::new(PAGE, NONE, PRIVATE | ANON, -1, 0).unwrap();
    let gone = Map::new(PAGE, RW, PRIVATE | ANON, -1, 0).unwrap().address;
    for advice in [libc::MADV_HWPOISON, libc::MADV_SOFT_OFFLINE] {
        assert_eq!(madvise(gone, 0, advice), Ok(()));
        assert_eq!(madvise(gone + 1, PAGE, advice), Err(Errno::EINVAL));
        assert_eq!(madvise(gone, PAGE, advice), Err(Errno::EFAULT), "nothing is mapped");
        assert_eq!(madvise(map.address, PAGE, advice), Err(Errno::EFAULT), "nothing is allowed");
    }
    let file = sized(1);
    let short = file.map(2 * HUGE, R, SHARED).unwrap();
    assert_eq!(soft_offline(short.address + HUGE), Err(Errno::EFAULT), "behind the end");
    child::in_child(|| {
        // SAFETY: plain system calls.
        unsafe {
            assert_eq!(libc::setresuid(1000, 1000, 1000), 0);
        }
        for advice in [libc::MADV_HWPOISON, libc::MADV_SOFT_OFFLINE] {
            assert_eq!(madvise(gone, 0, advice), Ok(()));
            assert_eq!(madvise(gone, PAGE, advice), Err(Errno::EPERM));
        }
    });
    // Root of a user namespace of one's own has no right to the machine's memory.
    child::in_child(|| {
        namespaces::become_root_of_own(0);
        let own = Map::anonymous(PAGE);
        own.set(0, 1);
        for advice in [libc::MADV_HWPOISON, libc::MADV_SOFT_OFFLINE] {
            assert_eq!(madvise(own.address, PAGE, advice), Err(Errno::EPERM));
        }
        assert_eq!(own.get(0), 1);
    });
}

fn a_file_page() {
    pool(4);
    let file = sized(2);
    let map = file.map(2 * HUGE, RW, SHARED).unwrap();
    map.set(0, 1);
    map.set(HUGE, 2);
    let before = corrupted();
    let at = map.address + 5 * PAGE;
    assert_eq!(poison(at), (Ok(()), [BUS_MCEERR_AR, at, 21]));
    assert_eq!(corrupted(), before + 4);
    assert_eq!((access(map.address + 7), access(at)), (BROKEN, BROKEN));
    assert_eq!(access(map.address + HUGE), Ok(2));
    assert_eq!(madvise(at, PAGE, libc::MADV_HWPOISON), Err(Errno::EFAULT));
    assert_eq!(soft_offline(at), Err(Errno::EFAULT));
    // Who comes later finds it, too.
    let late = file.map(2 * HUGE, R, SHARED).unwrap();
    let private = file.map(2 * HUGE, RW, PRIVATE | NORESERVE).unwrap();
    for map in [&late, &private] {
        assert_eq!((access(map.address), access(map.address + HUGE)), (BROKEN, Ok(2)));
    }
    // A system call that comes upon it.
    // SAFETY: plain system call; the kernel looks at the pages by itself.
    let written = check(unsafe { libc::write(Fd::temporary().raw(), map.address as *const _, 16) } as i64);
    assert_eq!(written, Err(Errno::EFAULT));
    assert_eq!(counted(), (4, 2, 0));
    // It leaves the file as other pages do, and a fresh one comes.
    file.punch(0, HUGE as u64).unwrap();
    // Linux keeps it in use for ever.
    assert_eq!(counted(), if is_linux() { (4, 2, 0) } else { (3, 2, 0) });
    assert_eq!((access(map.address), access(late.address)), (Ok(0), Ok(0)));
    map.set(9, 9);
    assert_eq!(late.get(9), 9);
}

fn what_is_read() {
    pool(4);
    let file = sized(2);
    let map = file.map(2 * HUGE, RW, SHARED).unwrap();
    (0..2 * HUGE / PAGE).for_each(|page| map.set(page * PAGE, page as u8));
    let broken = 3;
    poison(map.address + broken * PAGE).0.unwrap();
    let mut bytes = vec![0; 16 * PAGE];
    assert_eq!(file.read_at(&mut bytes, 0), Ok(3 * PAGE));
    assert_eq!([0, 1, 2].map(|page| bytes[page * PAGE]), [0, 1, 2]);
    assert_eq!(file.read_at(&mut bytes, 3 * PAGE as u64), Err(Errno::EIO));
    assert_eq!(file.read_at(&mut bytes, 3 * PAGE as u64 + 100), Err(Errno::EIO));
    assert_eq!(file.read_at(&mut bytes, 2 * PAGE as u64 + 100), Ok(PAGE - 100));
    assert_eq!(file.read_at(&mut bytes, 4 * PAGE as u64), Ok(16 * PAGE));
    assert_eq!([0, 15].map(|page| bytes[page * PAGE]), [4, 19]);
    assert_eq!(file.read_at(&mut bytes, HUGE as u64), Ok(16 * PAGE));
    file.truncate(0).unwrap();
    file.truncate(HUGE as u64).unwrap();
    assert_eq!(file.read_at(&mut bytes, 3 * PAGE as u64), Ok(16 * PAGE));
    assert!(bytes.iter().all(|byte| *byte == 0));
}

/// No monitor can go on with a page that is broken.
fn monitored() {
    pool(4);
    let file = sized(1);
    let map = file.map(HUGE, RW, SHARED).unwrap();
    map.set(0, 1);
    let watched = file.map(HUGE, RW, SHARED).unwrap();
    let uffd = Uffd::new(ALL_KINDS);
    uffd.register(&watched, MINOR).unwrap();
    let goes_on = || uffd.of_range(CONTINUE, watched.address, HUGE, 0);
    poison(map.address).0.unwrap();
    assert_eq!((goes_on(), access(watched.address)), (Err(Errno::EIO), BROKEN));
    assert_eq!(goes_on(), Err(Errno::EIO));
}

fn two_processes() {
    pool(4);
    let file = sized(1);
    let map = file.map(HUGE, RW, SHARED).unwrap();
    map.set(0, 1);
    let shared = Shared::new();
    let child = child::fork(|| {
        assert_eq!(access(map.address), Ok(1));
        shared.add(0);
        shared.wait(1, 1);
        // It was not told, and meets it.
        assert_eq!(seen(), [0; 3]);
        assert_eq!(access(map.address + 77), BROKEN);
        shared.add(0);
        shared.wait(1, 2);
        assert_eq!(access(map.address), Ok(0));
    });
    shared.wait(0, 1);
    poison(map.address).0.unwrap();
    shared.add(1);
    shared.wait(0, 2);
    file.truncate(0).unwrap();
    file.truncate(HUGE as u64).unwrap();
    map.set(1, 1);
    shared.add(1);
    child.ok();
}

fn a_private_page() {
    pool(6);
    let map = Map::new(2 * HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0).unwrap();
    map.set(0, 1);
    map.set(HUGE, 2);
    let shared = Shared::new();
    let child = child::fork(|| {
        shared.add(0);
        shared.wait(1, 1);
        assert_eq!((access(map.address), access(map.address + HUGE)), (BROKEN, Ok(2)));
        child::in_child(|| assert_eq!(access(map.address), BROKEN));
        madvise(map.address, HUGE, libc::MADV_DONTNEED).unwrap();
        assert_eq!(access(map.address), Ok(0));
    });
    shared.wait(0, 1);
    let before = corrupted();
    assert_eq!(poison(map.address), (Ok(()), [BUS_MCEERR_AR, map.address, 21]));
    assert_eq!((corrupted(), counted()), (before + 4, (5, 4, 0)));
    assert_eq!(access(map.address + 8), BROKEN);
    shared.add(1);
    child.ok();
    assert_eq!(access(map.address), BROKEN);
    drop(map);
    assert_eq!(counted(), (5, 5, 0));
}

fn moved() {
    pool(4);
    let file = sized(2);
    let map = file.map(2 * HUGE, RW, SHARED).unwrap();
    map.set(0, 1);
    map.set(HUGE - 1, 2);
    let shared = Shared::new();
    let child = child::fork(|| {
        assert_eq!(map.get(0), 1);
        shared.add(0);
        shared.wait(1, 1);
        assert_eq!((map.get(0), map.get(HUGE - 1)), (1, 2));
        map.set(7, 7);
    });
    shared.wait(0, 1);
    let before = corrupted();
    soft_offline(map.address + 9 * PAGE).unwrap();
    assert_eq!((corrupted(), counted()), (before + 4, (3, 2, 1)));
    assert_eq!((map.get(0), map.get(HUGE - 1)), (1, 2));
    shared.add(1);
    child.ok();
    let mut byte = [0];
    assert_eq!((file.read_at(&mut byte, 7), byte, map.get(7)), (Ok(1), [7], 7));
    drop((map, file));
    assert_eq!(counted(), (3, 3, 0));
}

fn moved_copies() {
    pool(6);
    let map = Map::new(HUGE, RW, PRIVATE | ANON | libc::MAP_HUGETLB, -1, 0).unwrap();
    map.set(0, 1);
    let shared = Shared::new();
    let child = child::fork(|| {
        shared.add(0);
        shared.wait(1, 1);
        assert_eq!(map.get(0), 1);
        map.set(0, 3);
        assert_eq!(map.get(0), 3);
    });
    shared.wait(0, 1);
    soft_offline(map.address).unwrap();
    assert_eq!(counted(), (5, 4, 0));
    map.set(0, 2);
    shared.add(1);
    child.ok();
    assert_eq!(map.get(0), 2);
    drop(map);
    assert_eq!(counted(), (5, 5, 0));
}

/// The entry leads to the new page at once: UFFDIO_POISON finds it.
fn moved_and_registered() {
    pool(4);
    for flags in [SHARED, PRIVATE] {
        let map = sized(1).map(HUGE, RW, flags).unwrap();
        let uffd = Uffd::new(ALL_KINDS);
        uffd.register(&map, MISSING).unwrap();
        assert_eq!(uffd.copy(map.address, &[7; HUGE], 0), Ok(HUGE as i64));
        soft_offline(map.address).unwrap();
        assert_eq!(uffd.of_range(POISON, map.address, HUGE, 0), Err(Errno::EEXIST));
        assert_eq!(map.get(0), 7);
    }
}

fn not_moved() {
    const SETTING: &str = "/proc/sys/vm/enable_soft_offline";
    pool(2);
    let map = sized(1).map(HUGE, RW, SHARED).unwrap();
    map.set(0, 1);
    assert_eq!(procfs::number(SETTING), 1);
    procfs::write(SETTING, 0).unwrap();
    let refused = soft_offline(map.address);
    procfs::write(SETTING, 1).unwrap();
    assert_eq!((refused, counted()), (Err(Errno::EOPNOTSUPP), (2, 1, 0)));
    assert!(procfs::write(SETTING, 2).is_err());
    // Without a free page in the pool it moves to one of the system's, and the pool stays as large.
    let rest = sized(1).map(HUGE, RW, SHARED).unwrap();
    rest.set(0, 1);
    soft_offline(map.address).unwrap();
    assert_eq!((counted(), counters().surplus, map.get(0)), ((2, 0, 0), 0, 1));
}

const BROKEN_BASE: Result<u8, (usize, usize)> = Err((BUS_MCEERR_AR, 12));

fn base_pages() {
    let map = Map::anonymous(4 * PAGE);
    (0..4).for_each(|page| map.set(page * PAGE, page as u8 + 1));
    let before = corrupted();
    let at = map.address + PAGE;
    assert_eq!(poison(at), (Ok(()), [BUS_MCEERR_AR, at, 12]));
    assert_eq!(corrupted(), before + 4);
    assert_eq!((access(at + 9), fault::write(at, 1).is_err()), (BROKEN_BASE, true));
    assert_eq!([0, 2, 3].map(|page| access(map.address + page * PAGE)), [Ok(1), Ok(3), Ok(4)]);
    assert_eq!(madvise(at, PAGE, libc::MADV_HWPOISON), Err(Errno::EFAULT));
    child::in_child(|| assert_eq!(access(at), BROKEN_BASE));
    madvise(at, PAGE, libc::MADV_DONTNEED).unwrap();
    assert_eq!(access(at), Ok(0));
    map.set(PAGE, 9);
    // A copy of a file's page is anonymous memory, too.
    let file = Fd::of_pages(2);
    file.write_at(&[5, 6], 0).unwrap();
    let copy = file.map(2 * PAGE, RW, PRIVATE).unwrap();
    copy.set(1, 1);
    assert_eq!(poison(copy.address), (Ok(()), [BUS_MCEERR_AR, copy.address, 12]));
    assert_eq!(access(copy.address), BROKEN_BASE);
    madvise(copy.address, PAGE, libc::MADV_DONTNEED).unwrap();
    assert_eq!((copy.get(0), copy.get(1)), (5, 6));
}

/// All who have the page since forks meet it, whether they share its table or not.
fn base_pages_of_many() {
    const PAGES: usize = 400;
    let map = Map::anonymous(PAGES * PAGE);
    (0..PAGES).for_each(|page| map.set(page * PAGE, 1));
    let shared = Shared::new();
    let wait_and_see = |stores: bool| {
        if stores {
            map.set(5 * PAGE, 2);
        }
        shared.add(0);
        shared.wait(1, 1);
        assert_eq!((access(map.address), access(map.address + PAGE)), (BROKEN_BASE, Ok(1)));
        assert_eq!(map.get(5 * PAGE), if stores { 2 } else { 1 });
    };
    let children = [false, true, false].map(|stores| child::fork(|| wait_and_see(stores)));
    shared.wait(0, 3);
    poison(map.address).0.unwrap();
    shared.add(1);
    children.into_iter().for_each(|child| child.ok());
    assert_eq!(access(map.address), BROKEN_BASE);
}

fn base_pages_moved() {
    const PAGES: usize = 400;
    let map = Map::anonymous(PAGES * PAGE);
    (0..PAGES).for_each(|page| map.set(page * PAGE, 1));
    let before = corrupted();
    soft_offline(map.address).unwrap();
    assert_eq!((map.get(0), corrupted()), (1, before + 4));
    map.set(0, 2);
    let shared = Shared::new();
    let children = [3, 4].map(|value| {
        child::fork(|| {
            shared.add(0);
            shared.wait(1, 1);
            assert_eq!(map.get(0), 2);
            map.set(0, value);
            assert_eq!(map.get(0), value);
        })
    });
    shared.wait(0, 2);
    for _ in 0..5 {
        soft_offline(map.address).unwrap();
    }
    assert_eq!((map.get(0), corrupted()), (2, before + 24));
    map.set(0, 5);
    shared.add(1);
    children.into_iter().for_each(|child| child.ok());
    assert_eq!(map.get(0), 5);
    // Of a range each page is moved.
    madvise(map.address, 3 * PAGE, libc::MADV_SOFT_OFFLINE).unwrap();
    assert_eq!(([0, 1, 2].map(|page| map.get(page * PAGE)), corrupted()), ([5, 1, 1], before + 36));
}

const MOVED: i32 = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;

/// A page that somebody has elsewhere since a fork: Linux finds it, and here it stays where it is.
fn base_pages_elsewhere() {
    let map = Map::anonymous(2 * PAGE);
    map.set(0, 1);
    let shared = Shared::new();
    let child = child::fork(|| {
        mremap(map.address, PAGE, PAGE, MOVED, map.address + PAGE).unwrap();
        shared.add(0);
        shared.wait(1, 1);
        assert_eq!(map.get(PAGE), 1);
        map.set(PAGE, 3);
    });
    shared.wait(0, 1);
    let before = corrupted();
    let (answer, grown) = if is_linux() { (Ok(()), 4) } else { (Err(Errno::EBUSY), 0) };
    assert_eq!((soft_offline(map.address), corrupted()), (answer, before + grown));
    assert_eq!(map.get(0), 1);
    map.set(0, 2);
    shared.add(1);
    child.ok();
    assert_eq!(map.get(0), 2);
    // Nobody else has it now.
    soft_offline(map.address).unwrap();
    assert_eq!((map.get(0), corrupted()), (2, before + grown + 4));
}

/// Stores of other threads and processes go on while the page moves, and none is lost.
fn moved_under_stores() {
    const MOVES: u32 = 24;
    if is_linux() {
        // EBUSY as long as a fault of another's has the page whenever it is tried: more than 90 s here.
        skip("how often it must be tried depends on when the others come");
    }
    pool(2);
    let file = sized(1);
    let map = file.map(HUGE, RW, SHARED).unwrap();
    let words = [0, 100, 511].map(|page| page * PAGE + 64);
    words.iter().for_each(|at| map.set_u64(*at, 0));
    let shared = Shared::new();
    let children: Vec<_> = words
        .iter()
        .map(|at| {
            child::fork(|| {
                let mut count = 0u64;
                shared.add(0);
                while shared.get(1) == 0 {
                    assert_eq!(map.get_u64(*at), count);
                    count += 1;
                    map.set_u64(*at, count);
                }
                assert!(count > 0);
            })
        })
        .collect();
    shared.wait(0, words.len() as u32);
    let before = corrupted();
    for _ in 0..MOVES {
        soft_offline(map.address).unwrap();
    }
    shared.add(1);
    children.into_iter().for_each(|child| child.ok());
    assert_eq!(corrupted(), before + 4 * u64::from(MOVES));
}

/// A page of 1 GiB is lost as a whole to those who map it, and all but one frame of it is used again.
fn gigantic() {
    const FOLDER: &str = "/sys/kernel/mm/hugepages/hugepages-1048576kB";
    let read = |name: &str| procfs::number(&format!("{FOLDER}/{name}"));
    if procfs::write(&format!("{FOLDER}/nr_hugepages"), 1).is_err() || read("nr_hugepages") != 1 {
        skip("no page of 1 GiB");
    }
    let flags = PRIVATE | ANON | libc::MAP_HUGETLB | libc::MAP_HUGE_1GB;
    let map = Map::new(GIB, RW, flags, -1, 0).unwrap();
    map.set(0, 1);
    let before = corrupted();
    let at = map.address + 5 * PAGE;
    assert_eq!(poison(at), (Ok(()), [BUS_MCEERR_AR, at, 30]));
    assert_eq!(access(map.address + GIB - 1), Err((BUS_MCEERR_AR, 30)));
    assert_eq!((corrupted(), read("nr_hugepages"), read("free_hugepages")), (before + 4, 0, 0));
    drop(map);
    assert_eq!((read("nr_hugepages"), read("resv_hugepages")), (0, 0));
    // Most of it is small pages now.
    assert!(procfs::Meminfo::read().get("MemFree") > 1 << 20);
}
