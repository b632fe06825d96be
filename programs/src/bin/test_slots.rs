//! Base pages and huge pages in one GiB of addresses: whoever needs a page table of its own there gets it, whatever comes first.

use std::sync::atomic::{AtomicBool, Ordering};

use roundtable_programs::child::in_child;
use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, GIB, HUGE, sized, stamp};
use roundtable_programs::mem::{
    ANON, FIXED, Map, NONE, NORESERVE, PRIVATE, RW, SHARED, mmap, mprotect, mremap, munmap,
};
use roundtable_programs::{sys, tests};

tests! { moved_page, moved_page_stays_mapped, moved_page_that_was_not_touched, segment_at_an_address, grown_in_place,
grown_stack, hidden_page_at_fork, hidden_page_comes_into_sight, moves_wherever_the_kernel_likes: 60,
two_files_in_a_slot, private_beside_shared, private_before_shared, parts_of_one_file, remote_reader, heap_beside,
faults_against_a_newcomer: 60, removal_against_a_newcomer: 60 }

const PAGE: usize = 4096;
/// Huge pages of a test's mapping, which begins half way up its slot.
const PAGES: usize = 4;
const MIDDLE: usize = GIB / 2;

/// Addresses of a whole slot and of the one below, kept free, and a shared mapping of huge pages in it.
struct Slot {
    _place: Map,
    start: usize,
    huge: usize,
    file: Fd,
}

impl Slot {
    /// A slot with nothing in it.
    fn empty() -> Slot {
        let place = Map::reserve(2 * GIB, GIB);
        let start = place.address + GIB;
        Slot { _place: place, start, huge: start + MIDDLE, file: sized(2 * PAGES) }
    }

    fn map(&self) {
        let at = self.huge;
        mmap(at, PAGES * HUGE, RW, SHARED | FIXED | NORESERVE, self.file.raw(), 0).unwrap();
    }

    /// With the mapping, all of which was touched.
    fn touched() -> Slot {
        huge::pool(2 * PAGES as u64);
        let slot = Slot::empty();
        slot.map();
        (0..PAGES).for_each(|page| write(slot.huge + page * HUGE, stamp(1, page)));
        slot
    }

    #[track_caller]
    fn check(&self) {
        (0..PAGES).for_each(|page| assert_eq!(read(self.huge + page * HUGE), stamp(1, page)));
    }

    /// Addresses near and far from the mapping.
    fn places(&self) -> [usize; 4] {
        let above = self.huge + PAGES * HUGE;
        [self.huge - 4 * PAGE, above, self.start, self.start + GIB - PAGE]
    }
}

fn read(address: usize) -> u64 {
    // SAFETY: mapped by the test.
    unsafe { (address as *const u64).read_volatile() }
}

fn write(address: usize, value: u64) {
    // SAFETY: mapped by the test, which has no references into it.
    unsafe { (address as *mut u64).write_volatile(value) }
}

const MOVE: i32 = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;

fn move_beside(flags: i32) {
    for number in 0..4 {
        let slot = Slot::touched();
        let to = slot.places()[number];
        let page = Map::anonymous(PAGE);
        page.set_u64(0, 42);
        assert_eq!(mremap(page.address, PAGE, PAGE, MOVE | flags, to), Ok(to));
        assert_eq!(read(to), 42);
        slot.check();
        // The huge pages are there for the next in the same way.
        write(to, 43);
        in_child(|| {
            assert_eq!(read(to), 43);
            slot.check();
        });
        munmap(to, PAGE).unwrap();
        slot.check();
    }
}

fn moved_page() {
    move_beside(0);
}

fn moved_page_stays_mapped() {
    move_beside(libc::MREMAP_DONTUNMAP);
}

fn moved_page_that_was_not_touched() {
    for touched in [false, true] {
        huge::pool(2 * PAGES as u64);
        let slot = Slot::empty();
        slot.map();
        if touched {
            write(slot.huge, 7);
        }
        let page = Map::anonymous(PAGE);
        let to = slot.huge + PAGES * HUGE;
        assert_eq!(mremap(page.address, PAGE, PAGE, MOVE, to), Ok(to));
        write(to, 1);
        assert_eq!((read(to), read(slot.huge)), (1, if touched { 7 } else { 0 }));
    }
}

fn segment_at_an_address() {
    let slot = Slot::touched();
    // SAFETY: plain calls; the address is in the test's slot, and the segment goes with its attachment.
    let at = unsafe {
        let id = sys::check(libc::shmget(libc::IPC_PRIVATE, PAGE, libc::IPC_CREAT | 0o600)).unwrap() as i32;
        let at = libc::shmat(id, (slot.huge - 4 * PAGE) as *const _, libc::SHM_REMAP) as usize;
        sys::check(libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut())).unwrap();
        at
    };
    assert_eq!(at, slot.huge - 4 * PAGE);
    write(at, 5);
    slot.check();
    assert_eq!(read(at), 5);
}

fn grown_in_place() {
    let slot = Slot::empty();
    huge::pool(2 * PAGES as u64);
    // From the slot below into this one.
    let at = slot.start - PAGE;
    munmap(at, 3 * PAGE).unwrap();
    mmap(at, PAGE, RW, PRIVATE | ANON | FIXED, -1, 0).unwrap();
    write(at, 1);
    slot.map();
    write(slot.huge, stamp(1, 0));
    assert_eq!(mremap(at, PAGE, 3 * PAGE, 0, 0), Ok(at));
    write(at + 2 * PAGE, 2);
    assert_eq!((read(at), read(at + 2 * PAGE), read(slot.huge)), (1, 2, stamp(1, 0)));
}

fn grown_stack() {
    let slot = Slot::touched();
    let top = slot.huge + PAGES * HUGE + 256 * HUGE;
    let at = top - PAGE;
    munmap(at - HUGE, HUGE).unwrap();
    let flags = PRIVATE | ANON | FIXED | libc::MAP_GROWSDOWN;
    mmap(at, PAGE, RW, flags, -1, 0).unwrap();
    // The first touch of the area is of what it grows by.
    write(at - PAGE, 1);
    assert_eq!((read(at - PAGE), read(at)), (1, 0));
    slot.check();
}

/// Address space with content that PROT_NONE hides, then huge pages in the same slot.
fn hidden() -> (Slot, usize) {
    huge::pool(2 * PAGES as u64);
    let slot = Slot::empty();
    let hidden = slot.huge + PAGES * HUGE + HUGE;
    mmap(hidden, PAGE, RW, PRIVATE | ANON | FIXED, -1, 0).unwrap();
    write(hidden, 42);
    mprotect(hidden, PAGE, NONE).unwrap();
    slot.map();
    (0..PAGES).for_each(|page| write(slot.huge + page * HUGE, stamp(1, page)));
    (slot, hidden)
}

fn hidden_page_at_fork() {
    let (slot, hidden) = hidden();
    in_child(|| {
        mprotect(hidden, PAGE, RW).unwrap();
        assert_eq!(read(hidden), 42);
        slot.check();
        in_child(|| {
            slot.check();
            assert_eq!(read(hidden), 42);
        });
    });
    slot.check();
}

fn hidden_page_comes_into_sight() {
    let (slot, hidden) = hidden();
    mprotect(hidden, PAGE, RW).unwrap();
    assert_eq!(read(hidden), 42);
    slot.check();
}

/// As realloc(3) of large blocks does.
fn moves_wherever_the_kernel_likes() {
    let slot = Slot::touched();
    let length = 40 << 20;
    for _ in 0..40 {
        let block = Map::new(length, RW, PRIVATE | ANON | NORESERVE, -1, 0).unwrap();
        block.set_u64(0, 1);
        std::mem::forget(Map::anonymous(PAGE));
        let moved = mremap(block.address, length, 2 * length, libc::MREMAP_MAYMOVE, 0).unwrap();
        assert_eq!(read(moved), 1);
        write(moved + 2 * length - PAGE, 2);
        std::mem::forget(block);
    }
    slot.check();
}

/// Maps pages of `file` from `first` on above the slot's own mapping, with something in between.
fn second(slot: &Slot, file: &Fd, first: usize, flags: i32) -> usize {
    let at = slot.huge + (PAGES + 3) * HUGE;
    mmap(at, PAGES * HUGE, RW, flags | FIXED | NORESERVE, file.raw(), (first * HUGE) as i64).unwrap();
    at
}

fn two_files_in_a_slot() {
    let slot = Slot::touched();
    let other = sized(PAGES);
    let at = second(&slot, &other, 0, SHARED);
    for page in 0..PAGES {
        write(at + page * HUGE, stamp(2, page));
        slot.check();
    }
    in_child(|| {
        // In the child's tables the second comes first.
        (0..PAGES).for_each(|page| assert_eq!(read(at + page * HUGE), stamp(2, page)));
        slot.check();
    });
    slot.file.punch(0, HUGE as u64).unwrap();
    other.truncate(HUGE as u64).unwrap();
    assert_eq!((read(slot.huge), read(slot.huge + HUGE), read(at)), (0, stamp(1, 1), stamp(2, 0)));
    munmap(slot.huge, PAGES * HUGE).unwrap();
    assert_eq!(read(at), stamp(2, 0));
}

fn private_beside_shared() {
    let slot = Slot::touched();
    let at = second(&slot, &slot.file, 0, PRIVATE);
    assert_eq!(read(at + HUGE), stamp(1, 1));
    write(at, 5);
    slot.check();
    assert_eq!(read(at), 5);
}

fn private_before_shared() {
    huge::pool(3 * PAGES as u64);
    let slot = Slot::empty();
    let at = second(&slot, &slot.file, 0, PRIVATE);
    write(at, 5);
    slot.map();
    write(slot.huge, 6);
    assert_eq!((read(at), read(slot.huge)), (5, 6));
    in_child(|| assert_eq!((read(slot.huge), read(at)), (6, 5)));
}

/// munmap and mprotect cut a mapping into parts that stay in one slot.
fn parts_of_one_file() {
    let slot = Slot::touched();
    munmap(slot.huge + HUGE, HUGE).unwrap();
    mprotect(slot.huge + 3 * HUGE, HUGE, libc::PROT_READ).unwrap();
    for page in [3, 0, 2] {
        assert_eq!(read(slot.huge + page * HUGE), stamp(1, page));
    }
    in_child(|| {
        for page in [2, 3, 0] {
            assert_eq!(read(slot.huge + page * HUGE), stamp(1, page));
        }
    });
    // What lies between them is free for base pages.
    let page = mmap(slot.huge + HUGE, PAGE, RW, PRIVATE | ANON | FIXED, -1, 0).unwrap();
    write(page, 1);
    assert_eq!((read(page), read(slot.huge)), (1, stamp(1, 0)));
}

/// A process that reads another's memory makes its faults.
fn remote_reader() {
    let slot = Slot::touched();
    let at = second(&slot, &slot.file, 0, SHARED);
    let mut value = 0u64;
    let local = libc::iovec { iov_base: (&raw mut value).cast(), iov_len: 8 };
    let remote = libc::iovec { iov_base: (at + HUGE) as *mut _, iov_len: 8 };
    // SAFETY: the buffers are of these lengths, and live through the call.
    let read = unsafe { libc::process_vm_readv(sys::pid(), &raw const local, 1, &raw const remote, 1, 0) };
    assert_eq!((read, value), (8, stamp(1, 1)));
    slot.check();
}

/// Memory that grows page by page into a slot of huge pages, as a heap does.
fn heap_beside() {
    let slot = Slot::touched();
    let start = slot.huge - 64 * PAGE;
    for page in 0..64 {
        let at = start + page * PAGE;
        mmap(at, PAGE, RW, PRIVATE | ANON | FIXED, -1, 0).unwrap();
        write(at, page as u64);
    }
    slot.check();
    (0..64).for_each(|page| assert_eq!(read(start + page * PAGE), page as u64));
}

/// Threads fault in huge pages of a slot while another thread comes into the slot with base pages.
fn faults_against_a_newcomer() {
    huge::pool(2 * PAGES as u64);
    for round in 0..100 {
        let slot = Slot::empty();
        slot.map();
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let slot = &slot;
                scope.spawn(move || {
                    for page in (0..PAGES).map(|page| (page + thread * 2) % PAGES) {
                        write(slot.huge + page * HUGE + thread * 8, stamp(thread as u64, page));
                    }
                });
            }
            let at = slot.places()[round % 4];
            mmap(at, PAGE, RW, PRIVATE | ANON | FIXED, -1, 0).unwrap();
            write(at, round as u64);
            assert_eq!(read(at), round as u64);
        });
        for (thread, page) in (0..2).flat_map(|thread| (0..PAGES).map(move |page| (thread, page))) {
            assert_eq!(read(slot.huge + page * HUGE + thread * 8), stamp(thread as u64, page));
        }
    }
}

/// The file loses pages and gets them again while its mapping loses the shared table.
fn removal_against_a_newcomer() {
    huge::pool(2 * PAGES as u64);
    // Linux zeroes each page in its fault, which takes it ten times as long.
    let rounds = if sys::is_linux() { 20 } else { 100 };
    for round in 0..rounds {
        let slot = Slot::empty();
        slot.map();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    slot.file.punch(0, (PAGES * HUGE) as u64).unwrap();
                }
            });
            let at = slot.places()[round % 4];
            mmap(at, PAGE, RW, PRIVATE | ANON | FIXED, -1, 0).unwrap();
            for step in 1..20u64 {
                for page in 0..PAGES {
                    let address = slot.huge + page * HUGE;
                    let found = read(address);
                    assert!(found == 0 || found == step - 1, "{found} of another page");
                    write(address, step);
                }
                if step == 3 {
                    write(at, round as u64);
                }
            }
            assert_eq!(read(at), round as u64);
            done.store(true, Ordering::SeqCst);
        });
    }
}
