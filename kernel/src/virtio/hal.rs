//! Memory for `virtio-drivers`: what devices read and write, and their registers.

use core::ptr::NonNull;

use virtio_drivers::{BufferDirection, Hal, PhysAddr as Address};

use crate::errno::{Errno, Result};
use crate::memory::{PAGE_SIZE, PhysAddr, Use, VirtAddr, contiguous, paging};

/// The kernel's memory: a device sees it at its physical addresses.
pub struct Memory;

/// Zeroed pages in one piece.
fn allocate(pages: usize) -> Option<(PhysAddr, NonNull<u8>)> {
    let bytes = pages * PAGE_SIZE;
    let start = contiguous::alloc_for(bytes, PAGE_SIZE, Use::Other)?;
    let pointer = NonNull::new(start.as_ptr::<u8>())?;
    // SAFETY: the memory is ours, and the direct map shows it.
    unsafe { pointer.write_bytes(0, bytes) };
    Some((start, pointer))
}

// SAFETY: what is given out is zeroed memory of the direct map that nobody else has, in one piece and from a page on; registers are mapped
// anew for each caller.
unsafe impl Hal for Memory {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (Address, NonNull<u8>) {
        match allocate(pages) {
            Some((start, pointer)) => (start.as_u64(), pointer),
            // Address 0 says that there is none.
            None => (0, NonNull::dangling()),
        }
    }

    unsafe fn dma_dealloc(start: Address, _: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: the caller's promise.
        unsafe { contiguous::free_for(PhysAddr(start), pages * PAGE_SIZE, Use::Other) };
        0
    }

    unsafe fn mmio_phys_to_virt(start: Address, size: usize) -> NonNull<u8> {
        // SAFETY: the caller's promise.
        unsafe { map(start, size) }
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> Address {
        let start = VirtAddr::from_ptr(buffer.as_ptr());
        start.to_phys().expect("buffers of devices lie in the direct map").as_u64()
    }

    unsafe fn unshare(_: Address, _: NonNull<[u8]>, _: BufferDirection) {
        // A device and a CPU see the same memory.
    }
}

/// Shows registers of a device, for good.
///
/// # Safety
/// There are such registers.
pub unsafe fn map(start: Address, size: usize) -> NonNull<u8> {
    let at = paging::map_device(PhysAddr(start), size as u64);
    NonNull::new(at.as_ptr::<u8>()).expect("device memory is not mapped at 0")
}

/// Buffers of one size, for a device, in memory that stays.
pub struct Buffers {
    start: NonNull<u8>,
    count: usize,
    size: usize,
}

// SAFETY: memory that the value owns.
unsafe impl Send for Buffers {}

impl Buffers {
    /// `count` zeroed buffers of `size` bytes. `ENOMEM`.
    pub fn new(count: usize, size: usize) -> Result<Self> {
        let pages = (count * size).div_ceil(PAGE_SIZE);
        let (_, start) = allocate(pages).ok_or(Errno::ENOMEM)?;
        Ok(Self { start, count, size })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// One of them, which no device has at this time.
    pub fn get(&mut self, index: usize) -> &mut [u8] {
        assert!(index < self.count, "there is no such buffer");
        // SAFETY: a part of the memory that this value owns, and that it is borrowed for.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr().add(index * self.size), self.size) }
    }
}
