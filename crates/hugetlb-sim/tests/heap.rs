//! What a file, a mapping and a table take of the host's heap: the figures of docs/porting.md.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering};

use hugetlb::{
    Access, Config, MapOptions, MapRequest, PageSize, Protection, ProtocolKind, SLOT_SIZE, SpaceToken,
    VirtAddr,
};
use hugetlb_sim::SimMachine;

/// The system's allocator, which counts the bytes that are in use.
struct Counting(AtomicIsize);

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // Relaxed: one thread.
        self.0.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.0.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.0.fetch_add(size as isize - layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting(AtomicIsize::new(0));

/// Bytes that each of so many things takes.
fn each<T>(count: usize, mut make: impl FnMut(u64) -> T) -> (isize, Vec<T>) {
    let mut things = Vec::with_capacity(count);
    let before = COUNTING.0.load(Ordering::Relaxed);
    (0..count).for_each(|index| things.push(make(index as u64)));
    ((COUNTING.0.load(Ordering::Relaxed) - before) / count as isize, things)
}

#[test]
fn heap_per_file_mapping_table_and_page() {
    const COUNT: usize = 100;
    const BYTES: u64 = PageSize::Size2M.bytes();
    let machine = SimMachine::new(1, 2048, 2 * COUNT, 0);
    let hugetlb =
        machine.hugetlb(Config { default_size: PageSize::Size2M, protocol: ProtocolKind::FileTables });
    assert_eq!(hugetlb.pool(PageSize::Size2M).set_persistent(2 * COUNT as u64, || false), 2 * COUNT as u64);
    let options =
        MapOptions { shared: true, no_reserve: true, protection: Protection::READ | Protection::WRITE };
    let place = |slot| VirtAddr((slot + 1) * SLOT_SIZE);
    let size = COUNT as u64 * SLOT_SIZE;

    let (file, files) = each(COUNT, |_| hugetlb.anonymous_file(PageSize::Size2M, size).unwrap());
    let process = machine.process().unwrap();
    let mut token = SpaceToken::new(process.space().clone());
    // One slot each, all of one file.
    let (mapping, mappings) = each(COUNT, |slot| {
        let request = MapRequest { start: place(slot), length: SLOT_SIZE, offset: slot * SLOT_SIZE, options };
        files[0].map(&mut token, request).unwrap()
    });
    // The first page of a file brings its locks, and the first page of a window its table.
    let (first, _) = each(1, |slot| mappings[slot as usize].fault(place(slot), Access::Write).unwrap());
    let (table, _) = each(COUNT - 1, |slot| {
        mappings[slot as usize + 1].fault(place(slot + 1), Access::Write).unwrap();
    });
    let (page, _) = each(COUNT, |slot| {
        mappings[slot as usize].fault(VirtAddr(place(slot).0 + BYTES), Access::Write).unwrap()
    });
    assert_eq!((hugetlb.sharing().tables, files[0].statistics().pages), (COUNT as u64, 2 * COUNT as u64));
    let locks = first - table;
    println!(
        "bytes of heap: {file} a file, {locks} its locks, {mapping} a mapping, {table} a table with its first page, {page} a page more"
    );
    // Not the tables themselves, nor the mapping that the host keeps in its VMA.
    let most = [
        ("file", file, 448),
        ("locks", locks, 7168),
        ("mapping", mapping, 208),
        ("table", table, 4480),
        ("page", page, 64),
    ];
    for (name, bytes, limit) in most {
        assert!(bytes <= limit, "{name}: {bytes} bytes, docs/porting.md says {limit}");
    }
    mappings.into_iter().for_each(|mapping| mapping.unmap(&mut token));
}
