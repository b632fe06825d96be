//! No allocation grows with the file: what is added or taken out under a lock is linked, not moved.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use hugetlb::{Config, FallocateMode, PageSize, ProtocolKind};
use hugetlb_sim::SimMachine;

/// The system's allocator, which notes the largest allocation.
struct Largest(AtomicUsize);

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Largest {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // Relaxed: one thread.
        self.0.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.0.fetch_max(size, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static LARGEST: Largest = Largest(AtomicUsize::new(0));

#[test]
fn a_sparse_file_takes_no_allocation_of_more_than_a_page() {
    const PAGES: u64 = 2000;
    const SIZE: u64 = 2 << 20;
    // One page in each 64th piece of 512: all of them are behind one lock.
    const STRIDE: u64 = 64 * 512 * SIZE;
    let machine = SimMachine::new(1, 64, PAGES as usize, 0);
    let hugetlb =
        machine.hugetlb(Config { default_size: PageSize::Size2M, protocol: ProtocolKind::FileTables });
    assert_eq!(hugetlb.pool(PageSize::Size2M).set_persistent(PAGES, || false), PAGES);
    let file = hugetlb.anonymous_file(PageSize::Size2M, PAGES * STRIDE).unwrap();
    LARGEST.0.store(0, Ordering::Relaxed);
    for page in (0..PAGES).rev() {
        file.fallocate(FallocateMode::Allocate, page * STRIDE, SIZE, || false).unwrap();
    }
    assert_eq!(file.statistics().pages, PAGES);
    file.truncate(0).unwrap();
    assert_eq!(file.statistics().pages, 0);
    let largest = LARGEST.0.load(Ordering::Relaxed);
    assert!(largest <= 4096, "{largest} bytes at once");
}
