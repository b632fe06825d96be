//! Tables that belong to the file: no faults on what is in it, at any address, for any length, in any process.
//!
//! Linux and the other protocols do less; there these are skipped.

use roundtable_programs::child::{self, Child};
use roundtable_programs::fault::{self, Fault};
use roundtable_programs::file::Fd;
use roundtable_programs::harness::skip;
use roundtable_programs::huge::{self, GIB, HUGE, expect_pool, file, stamp};
use roundtable_programs::kinds::call;
use roundtable_programs::mem::{self, FIXED, Map, NORESERVE, PRIVATE, R, RW, SHARED, mmap, mprotect, munmap};
use roundtable_programs::procfs::Meminfo;
use roundtable_programs::shared::Shared;
use roundtable_programs::sharing::{self, counter};
use roundtable_programs::sys::PAGE;
use roundtable_programs::uffd::{MISSING, Uffd};
use roundtable_programs::{sys, tests};

tests! { attach_faults_nothing: 60, fork_faults_nothing: 60, incongruent_faults_nothing: 60, small_mappings_share: 60,
small_mappings_without_an_address_share: 60, one_table_for_readers_and_writers: 60, new_pages_fault_once: 60,
prot_none_and_back: 60, dontneed_keeps_the_table: 60, neighbour_in_the_slot: 60, kept_free_space_is_no_neighbour: 60,
kept_free_space_in_front_is_checked: 60,
pages_behind_the_end: 60, partial_munmap_shares_the_rest: 60, moved_mapping_faults_nothing: 60, punch_of_many: 60,
sparse_terabyte_forks: 60, retired_tables_come_back: 60, the_checker_misses_an_entry: 60,
the_checker_counts_no_memory_without_a_process: 60 }

const CHECK: &str = "/sys/kernel/mm/hugepages/sharing/check";

/// Pages that a small file has.
const PAGES: usize = 32;

fn only_file_tables() {
    if sharing::protocol().as_deref() != Some("file-tables") {
        skip("tables do not belong to files here");
    }
}

/// A file of 1 GiB, the first pages of which are there and stamped.
fn filled() -> Fd {
    only_file_tables();
    huge::pool(PAGES as u64 + 8);
    let file = file();
    file.fallocate(0, 0, (PAGES * HUGE) as u64).unwrap();
    file.truncate(GIB as u64).unwrap();
    let map = file.map(PAGES * HUGE, RW, SHARED).unwrap();
    (0..PAGES).for_each(|page| map.set_u64(page * HUGE, stamp(2, page)));
    file
}

/// Reads `pages` stamps of a mapping that begins with page `first`; returns the faults that it took.
fn read_all(address: usize, first: usize, pages: usize) -> u64 {
    let (before, _) = sys::faults();
    let mut wrong = 0;
    for page in 0..pages {
        // SAFETY: the caller mapped it.
        let found = unsafe { ((address + page * HUGE) as *const u64).read_volatile() };
        wrong += u64::from(found != stamp(2, first + page));
    }
    let (after, _) = sys::faults();
    assert_eq!(wrong, 0, "pages with another's content");
    after - before
}

/// Once, so that code and stack are there when it counts.
fn warmed_up(address: usize) {
    read_all(address, 0, 0);
    sys::faults();
}

fn map_whole(file: &Fd, shift: usize, protection: i32) -> Map {
    let place = Map::reserve(3 * GIB, GIB);
    let address = place.address + GIB + shift;
    mmap(address, GIB, protection, SHARED | FIXED | NORESERVE, file.raw(), 0).unwrap();
    std::mem::forget(place);
    Map { address, length: GIB }
}

fn attach_faults_nothing() {
    let file = filled();
    let map = map_whole(&file, 0, RW);
    warmed_up(map.address);
    assert_eq!(read_all(map.address, 0, PAGES), 0);
    child::in_child(|| {
        let map = map_whole(&file, 0, R);
        warmed_up(map.address);
        assert_eq!(read_all(map.address, 0, PAGES), 0);
    });
}

fn fork_faults_nothing() {
    let file = filled();
    let map = map_whole(&file, 0, RW);
    child::in_child(|| {
        warmed_up(map.address);
        assert_eq!(read_all(map.address, 0, PAGES), 0);
    });
}

fn incongruent_faults_nothing() {
    let file = filled();
    let before = counter("tables");
    let first = map_whole(&file, 5 * HUGE, RW);
    assert_eq!(counter("tables"), before + 1, "of two slots one has pages");
    child::in_child(|| {
        let second = map_whole(&file, 5 * HUGE, RW);
        assert_eq!(counter("tables"), before + 1, "two at one phase share");
        warmed_up(second.address);
        assert_eq!(read_all(second.address, 0, PAGES), 0);
        let third = map_whole(&file, 77 * HUGE, RW);
        assert_eq!(read_all(third.address, 0, PAGES), 0);
        third.set_u64(8, 3);
    });
    assert_eq!(first.get_u64(8), 3);
}

/// 64 MiB of the file from page 2 on, at a slot of their own.
fn map_small(file: &Fd, slot: usize) -> usize {
    let place = Map::reserve(4 * GIB, GIB);
    let address = place.address + slot * GIB + 2 * HUGE;
    mmap(address, 24 * HUGE, RW, SHARED | FIXED | NORESERVE, file.raw(), (2 * HUGE) as i64).unwrap();
    std::mem::forget(place);
    address
}

fn small_mappings_share() {
    let file = filled();
    let before = counter("tables");
    let children: Vec<Child> = (0..4)
        .map(|number| {
            let file = file.raw();
            child::fork(move || {
                let file = Fd::own(file as usize);
                let address = map_small(&file, number % 3 + 1);
                warmed_up(address);
                assert_eq!(read_all(address, 2, 24), 0);
                assert_eq!(counter("tables"), before + 1);
                std::mem::forget(file);
            })
        })
        .collect();
    let _own = map_small(&file, 1);
    children.into_iter().for_each(|child| child.ok());
    assert_eq!(counter("tables"), before + 1);
}

fn small_mappings_without_an_address_share() {
    let file = filled();
    let before = counter("tables");
    let own = file.map_at((2 * HUGE) as u64, 24 * HUGE, RW, SHARED | NORESERVE).unwrap();
    warmed_up(own.address);
    assert_eq!(read_all(own.address, 2, 24), 0);
    child::in_child(|| {
        // A history of its own: what it maps before must not change the phase.
        let _other = Map::anonymous(3 * 4096);
        let own = file.map_at((2 * HUGE) as u64, 24 * HUGE, R, SHARED | NORESERVE).unwrap();
        let _next = Map::anonymous(5 * 4096);
        warmed_up(own.address);
        assert_eq!(read_all(own.address, 2, 24), 0);
        assert_eq!(counter("tables"), before + 1);
    });
}

fn one_table_for_readers_and_writers() {
    let file = filled();
    let before = counter("tables");
    let writer = map_whole(&file, 0, RW);
    let reader = map_whole(&file, 0, R);
    let executor = map_whole(&file, 0, R | libc::PROT_EXEC);
    assert_eq!(counter("tables"), before + 1);
    writer.set_u64(8, 6);
    assert_eq!((reader.get_u64(8), executor.get_u64(8)), (6, 6));
    for map in [&reader, &executor] {
        assert_eq!(fault::write(map.address, 1), Err(Fault::forbidden(map.address)));
    }
    mprotect(writer.address, GIB, R).unwrap();
    assert_eq!(fault::write(writer.address, 1), Err(Fault::forbidden(writer.address)));
    mprotect(reader.address, GIB, RW).unwrap();
    reader.set_u64(8, 7);
    assert_eq!((writer.get_u64(8), counter("tables")), (7, before + 1));
}

fn new_pages_fault_once() {
    let file = filled();
    let (first, second) = (map_whole(&file, 0, RW), map_whole(&file, 0, RW));
    warmed_up(first.address);
    let (before, _) = sys::faults();
    first.set_u64(40 * HUGE, 1);
    let (between, _) = sys::faults();
    assert_eq!(second.get_u64(40 * HUGE), 1);
    let (after, _) = sys::faults();
    assert_eq!((between - before, after - between), (1, 0));
}

fn prot_none_and_back() {
    let file = filled();
    let map = map_whole(&file, 0, RW);
    warmed_up(map.address);
    mprotect(map.address, GIB, mem::NONE).unwrap();
    assert_eq!(fault::read(map.address), Err(Fault::forbidden(map.address)));
    mprotect(map.address, GIB, R).unwrap();
    assert_eq!(read_all(map.address, 0, PAGES), 0);
}

fn dontneed_keeps_the_table() {
    let file = filled();
    let map = map_whole(&file, 0, RW);
    warmed_up(map.address);
    mem::madvise(map.address, PAGES * HUGE, libc::MADV_DONTNEED).unwrap();
    assert_eq!(read_all(map.address, 0, PAGES), 0);
}

fn neighbour_in_the_slot() {
    let file = filled();
    let before = counter("fallback_neighbour");
    let address = map_small(&file, 1);
    assert_eq!(read_all(address, 2, 24), 0);
    // Base pages in the same slot: right, whatever the tables are.
    let neighbour = address + 24 * HUGE + 4096;
    mmap(neighbour, 4096, RW, PRIVATE | mem::ANON | FIXED, -1, 0).unwrap();
    let neighbour = Map { address: neighbour, length: 4096 };
    neighbour.set_u64(0, 5);
    read_all(address, 2, 24);
    file.punch((2 * HUGE) as u64, HUGE as u64).unwrap();
    // SAFETY: mapped above.
    assert_eq!(unsafe { (address as *const u64).read_volatile() }, 0);
    assert_eq!(neighbour.get_u64(0), 5);
    // Another mapping of the file in the slot.
    let second = address + 100 * HUGE;
    mmap(second, 4 * HUGE, RW, SHARED | FIXED | NORESERVE, file.raw(), (10 * HUGE) as i64).unwrap();
    assert!(counter("fallback_neighbour") > before);
    read_all(second, 10, 4);
    read_all(address + HUGE, 3, 23);
    munmap(second, 4 * HUGE).unwrap();
    assert_eq!(neighbour.get_u64(0), 5);
}

fn kept_free_space_is_no_neighbour() {
    let file = filled();
    let before = counter("fallback_neighbour");
    let place = Map::reserve(2 * GIB, GIB);
    let address = place.address + 7 * HUGE;
    mmap(address, 8 * HUGE, RW, SHARED | FIXED | NORESERVE, file.raw(), 0).unwrap();
    assert_eq!(read_all(address, 0, 8), 0);
    assert_eq!(counter("fallback_neighbour"), before);
    // Now it is one.
    mprotect(place.address, 4096, RW).unwrap();
    place.set_u64(0, 9);
    read_all(address, 0, 8);
    assert_eq!(place.get_u64(0), 9);
}

/// The checker looks at an address space that ends, and free space in front of the huge pages is not taken for theirs.
fn kept_free_space_in_front_is_checked() {
    let file = filled();
    child::in_child(|| {
        let place = Map::reserve(2 * GIB, GIB);
        let address = place.address + 7 * HUGE;
        mmap(address, 8 * HUGE, RW, SHARED | FIXED | NORESERVE, file.raw(), 0).unwrap();
        assert_eq!(read_all(address, 0, 8), 0);
        std::mem::forget(place);
    });
}

fn pages_behind_the_end() {
    only_file_tables();
    huge::pool(8);
    let file = file();
    file.truncate(HUGE as u64).unwrap();
    let map = file.map(4 * HUGE, R, SHARED | NORESERVE).unwrap();
    file.fallocate(libc::FALLOC_FL_KEEP_SIZE, 0, 2 * HUGE as u64).unwrap();
    // What was put there is reached, as on Linux, and nothing behind it.
    assert_eq!((map.get(0), map.get(HUGE)), (0, 0));
    assert_eq!(fault::read(map.address + 2 * HUGE), Err(Fault::bus(map.address + 2 * HUGE)));
    file.truncate(2 * HUGE as u64).unwrap();
    warmed_up(map.address);
    let (before, _) = sys::faults();
    assert_eq!(map.get(HUGE), 0);
    let (after, _) = sys::faults();
    assert_eq!(after - before, 0);
    file.truncate(HUGE as u64).unwrap();
    assert_eq!(fault::read(map.address + HUGE), Err(Fault::bus(map.address + HUGE)));
}

fn partial_munmap_shares_the_rest() {
    let file = filled();
    let map = map_whole(&file, 0, RW);
    warmed_up(map.address);
    munmap(map.address + 16 * HUGE, GIB - 16 * HUGE).unwrap();
    assert_eq!(read_all(map.address, 0, 16), 0);
    let at = map.address + 16 * HUGE;
    assert_eq!(fault::read(at), Err(Fault::unmapped(at)));
}

fn moved_mapping_faults_nothing() {
    let file = filled();
    let map = map_whole(&file, 0, RW);
    let target = Map::reserve(2 * GIB, GIB);
    warmed_up(map.address);
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    mem::mremap(map.address, GIB, GIB, flags, target.address + 3 * HUGE).unwrap();
    assert_eq!(read_all(target.address + 3 * HUGE, 0, PAGES), 0);
}

fn punch_of_many() {
    let file = filled();
    let control = Shared::new();
    let children: Vec<Child> = (0..20)
        .map(|_| {
            child::fork(|| {
                let map = map_whole(&file, 0, R);
                read_all(map.address, 0, PAGES);
                control.add(0);
                control.wait(1, 1);
                (0..16).for_each(|page| assert_eq!(map.get_u64(page * HUGE), 0, "page {page}"));
                read_all(map.address + 16 * HUGE, 16, PAGES - 16);
            })
        })
        .collect();
    control.wait(0, 20);
    file.punch(0, (16 * HUGE) as u64).unwrap();
    expect_pool(8 + 16, 0);
    control.set(1, 1);
    children.into_iter().for_each(|child| child.ok());
}

fn sparse_terabyte_forks() {
    only_file_tables();
    huge::pool(8);
    let file = file();
    file.truncate(1024 * GIB as u64).unwrap();
    let map = file.map(1024 * GIB, RW, SHARED | NORESERVE).unwrap();
    for slot in [0, 511, 1023] {
        map.set_u64(slot * GIB + 9 * HUGE, stamp(3, slot));
    }
    let before = counter("tables");
    for _ in 0..8 {
        child::in_child(|| {
            assert_eq!(counter("tables"), before);
            let (faults, _) = sys::faults();
            let found = [0, 511, 1023].map(|slot| map.get_u64(slot * GIB + 9 * HUGE));
            assert_eq!(sys::faults().0, faults);
            assert_eq!(found, [0, 511, 1023].map(|slot| stamp(3, slot)));
        });
    }
    drop(map);
    assert!(counter("tables") < before);
}

/// A program that gives up a thousand tables again and again, beside one that is never in the kernel of itself: what waits for that
/// one's CPU must not pile up. The tables in retirement count as page tables.
fn retired_tables_come_back() {
    const SLOTS: usize = 1024;
    const ROUNDS: usize = 24;
    // The kernel lets 8 MiB wait, then come those of the call that exceeds it, and those in use.
    let most = (8 << 10) + 3 * (SLOTS as u64) * 4;
    only_file_tables();
    let file = file();
    file.truncate((SLOTS * GIB) as u64).unwrap();
    let busy = child::fork(|| {
        loop {
            std::hint::spin_loop();
        }
    });
    let tables = || Meminfo::read().get("PageTables");
    let before = tables();
    let map = file.map(SLOTS * GIB, RW, SHARED | NORESERVE).unwrap();
    for round in 0..ROUNDS {
        mprotect(map.address, SLOTS * GIB, mem::NONE).unwrap();
        mprotect(map.address, SLOTS * GIB, RW).unwrap();
        let more = tables().saturating_sub(before);
        assert!(more < most, "{more} kB of page tables in round {round}");
    }
    busy.end();
}

/// The kernel counts who leads to a table, over all processes: it notices when one entry is not there any more.
fn the_checker_misses_an_entry() {
    const BREAK: &str = "/sys/kernel/mm/hugepages/sharing/break";
    let check = || std::fs::read_to_string(CHECK).unwrap();
    let file = filled();
    if !std::path::Path::new(BREAK).exists() {
        skip("only a kernel built with the feature lab can be broken");
    }
    let map = map_whole(&file, 0, RW);
    child::in_child(|| {
        let found = check();
        assert!(found.starts_with("ok: "), "{found}");
        std::fs::write(BREAK, format!("{:x}", map.address)).unwrap();
        let found = check();
        std::fs::write(BREAK, "0").unwrap();
        assert!(found.contains("invariant 4: 1 entries lead to the table"), "{found}");
        let found = check();
        assert!(found.starts_with("ok: "), "{found}");
    });
}

/// Who reads a process from outside keeps its memory when it ends, and the tables attached there, though no process has them any more.
fn the_checker_counts_no_memory_without_a_process() {
    let file = filled();
    let page = Map::anonymous(PAGE);
    let shared = Shared::new();
    let from = child::fork(|| {
        let uffd = Uffd::new(0);
        uffd.register(&page, MISSING).unwrap();
        // A process of its own, which outlives this one and its descriptor.
        let _monitor = child::fork(|| {
            shared.set(0, 1);
            uffd.next();
            shared.set(1, 1);
            shared.wait(2, 1);
        })
        .release();
        let map = map_whole(&file, 0, RW);
        assert_eq!(read_all(map.address, 0, PAGES), 0);
        shared.wait_without_limit(3, 1);
    });
    shared.wait(0, 1);
    let reader = child::fork(|| {
        let mut byte = 0u8;
        let (to, from_there) = ([(&raw mut byte) as usize, 1], [page.address, 1]);
        let vectors = [from.pid as usize, to.as_ptr() as usize, 1, from_there.as_ptr() as usize, 1, 0];
        assert_eq!(call(libc::SYS_process_vm_readv, vectors), Ok(1));
    });
    shared.wait(1, 1);
    from.end();
    let found = std::fs::read_to_string(CHECK).unwrap();
    shared.set(2, 1);
    reader.ok();
    assert!(found.starts_with("ok: ") && found.contains("not compared with counts"), "{found}");
    let found = std::fs::read_to_string(CHECK).unwrap();
    assert!(found.starts_with("ok: ") && !found.contains("not compared"), "{found}");
}
