//! The kernel heap: small objects from slabs, large ones straight from the frame allocator.
//!
//! A slab is a page for objects of one size. Its header is at its beginning, so an object finds its slab by rounding its
//! address down. Slabs with room are on their class's list; full ones on none. A slab that becomes empty goes back
//! to the frame allocator, but for one in each class, which counts as free.
//!
//! An allocation of at most a page needs a single frame if anything, so memory in pieces is as good as memory in one. It cannot fail: why
//! there is always a frame for it is what [`super::reserve`] is about. What is larger needs frames in a row and may fail.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicUsize, Ordering};

use super::usage::Use;
use super::{PAGE_SIZE, PhysAddr, VirtAddr, buddy, contiguous, reserve};
use crate::arch::percpu;
use crate::process;
use crate::sync::IrqLock;

/// Sizes of objects. All are multiples of 16, so that every object is aligned to 16; the larger ones are what fits into a page
/// a whole number of times.
const SIZES: [usize; 18] =
    [16, 32, 48, 64, 96, 128, 192, 256, 320, 384, 448, 576, 672, 800, 1008, 1344, 2016, 4032];
const CLASSES: usize = SIZES.len();
const HEADER_SIZE: usize = 64;
#[repr(C, align(64))]
struct Slab {
    next: *mut Slab,
    previous: *mut Slab,
    /// Freed objects, linked through their first words.
    free: *mut FreeObject,
    /// Objects in use.
    used: usize,
    /// Objects that were handed out at least once: those above were never touched.
    touched: usize,
}

struct FreeObject {
    next: *mut FreeObject,
}

const _: () = assert!(size_of::<Slab>() <= HEADER_SIZE);

struct Class {
    /// Slabs that have room, but are not empty.
    partial: *mut Slab,
    /// At most one empty slab, kept against freeing and allocating in turn.
    spare: *mut Slab,
}

// SAFETY: slabs belong to their class, whose lock is held.
unsafe impl Send for Class {}

static CLASS: [IrqLock<Class>; CLASSES] =
    [const { IrqLock::new(Class { partial: null_mut(), spare: null_mut() }) }; CLASSES];

/// Bytes of the empty slabs that are kept.
static SPARE: AtomicUsize = AtomicUsize::new(0);

/// Bytes that the heap has, but does not use.
pub fn spare_bytes() -> usize {
    SPARE.load(Ordering::SeqCst)
}

const fn capacity(class: usize) -> usize {
    (PAGE_SIZE - HEADER_SIZE) / SIZES[class]
}

/// For each sixteenth of the smaller sizes, the class that serves it.
const CLASS_OF: [u8; SIZES[CLASSES - 1] / 16 + 1] = {
    let mut table = [0; SIZES[CLASSES - 1] / 16 + 1];
    let (mut index, mut class) = (0, 0);
    while index < table.len() {
        if index * 16 > SIZES[class] {
            class += 1;
        }
        table[index] = class as u8;
        index += 1;
    }
    table
};

/// The class for a layout; `None` for what the frame allocator serves.
fn class_of(layout: &Layout) -> Option<usize> {
    if layout.align() > 16 {
        // Objects of a power of two are not aligned to their size, for the header is in the way: only 64 is
        // easy, since header and sizes from 64 on that are multiples of 64 keep it.
        if layout.align() > 64 {
            return None;
        }
        let size = layout.size().next_multiple_of(64);
        let first = *CLASS_OF.get(size.div_ceil(16))? as usize;
        return (first..CLASSES).find(|class| SIZES[*class].is_multiple_of(64));
    }
    CLASS_OF.get(layout.size().div_ceil(16)).map(|class| *class as usize)
}

impl Class {
    fn allocate(&mut self, class: usize) -> Option<NonNull<u8>> {
        let mut slab = self.partial;
        if slab.is_null() {
            slab = self.take_spare().or_else(new_slab)?;
            self.link(slab);
        }
        // SAFETY: slabs of the class, whose lock the caller holds.
        unsafe {
            let header = &mut *slab;
            let object = if header.free.is_null() {
                let object = slab.cast::<u8>().add(HEADER_SIZE + header.touched * SIZES[class]);
                header.touched += 1;
                object
            } else {
                let object = header.free;
                header.free = (*object).next;
                object.cast()
            };
            header.used += 1;
            if header.used == capacity(class) {
                self.unlink(slab);
            }
            NonNull::new(object)
        }
    }

    /// Frees an object; returns its slab when that should go back to the frame allocator.
    fn free(&mut self, class: usize, object: *mut u8) -> Option<*mut Slab> {
        let slab = (object as usize & !(PAGE_SIZE - 1)) as *mut Slab;
        // SAFETY: the object came from this slab, and is no longer used.
        unsafe {
            let header = &mut *slab;
            let free = object.cast::<FreeObject>();
            (*free).next = header.free;
            header.free = free;
            if header.used == capacity(class) {
                self.link(slab);
            }
            header.used -= 1;
            if header.used > 0 {
                return None;
            }
            self.unlink(slab);
        }
        if !self.spare.is_null() {
            return Some(slab);
        }
        self.spare = slab;
        SPARE.fetch_add(PAGE_SIZE, Ordering::SeqCst);
        None
    }

    fn take_spare(&mut self) -> Option<*mut Slab> {
        let spare = core::mem::replace(&mut self.spare, null_mut());
        if spare.is_null() {
            return None;
        }
        SPARE.fetch_sub(PAGE_SIZE, Ordering::SeqCst);
        Some(spare)
    }

    /// Puts a slab on the list of those with room.
    fn link(&mut self, slab: *mut Slab) {
        // SAFETY: slabs of the class.
        unsafe {
            (*slab).next = self.partial;
            (*slab).previous = null_mut();
            if !self.partial.is_null() {
                (*self.partial).previous = slab;
            }
        }
        self.partial = slab;
    }

    fn unlink(&mut self, slab: *mut Slab) {
        // SAFETY: slabs of the class; this one is on the list.
        unsafe {
            let Slab { next, previous, .. } = *slab;
            if previous.is_null() {
                self.partial = next;
            } else {
                (*previous).next = next;
            }
            if !next.is_null() {
                (*next).previous = previous;
            }
        }
    }
}

fn new_slab() -> Option<*mut Slab> {
    let frame = buddy::allocate(0, Use::Heap)?;
    let slab = PhysAddr(frame << super::PAGE_SHIFT).as_ptr::<Slab>();
    // SAFETY: the block is ours.
    unsafe {
        slab.write(Slab { next: null_mut(), previous: null_mut(), free: null_mut(), used: 0, touched: 0 });
    }
    Some(slab)
}

fn free_slab(slab: *mut Slab) {
    let address = VirtAddr::from_ptr(slab).to_phys().expect("slabs are in the direct map");
    buddy::free(address.page_number(), 0, Use::Heap);
}

/// Gives all spare slabs back; true when there were any.
pub(super) fn give_up_spares() -> bool {
    let mut gave = false;
    for lock in &CLASS {
        let spare = lock.lock().take_spare();
        if let Some(slab) = spare {
            free_slab(slab);
            gave = true;
        }
    }
    gave
}

/// Checked kernels: what needs frames in a row can fail, so whoever asks for it has to say that it may. Bring-up and the first process's start may not.
fn check_may_fail(layout: &Layout) {
    if cfg!(debug_assertions)
        && !percpu::allocation_may_fail()
        && !reserve::in_library()
        && process::try_current().is_some_and(|thread| !thread.is_kernel() && thread.process.pid != 1)
    {
        panic!("an allocation of {} bytes has no way to fail", layout.size());
    }
}

struct Heap;

// SAFETY: objects of one slab do not overlap, and a slab belongs to one class; large blocks are the frame
// allocator's.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        crate::sync::lockdep::note_allocation(layout.size());
        let allocate = || match class_of(&layout) {
            Some(class) => CLASS[class].lock().allocate(class).map(NonNull::as_ptr),
            None => contiguous::alloc_for(layout.size(), layout.align(), Use::Heap).map(PhysAddr::as_ptr),
        };
        if layout.size() <= PAGE_SIZE {
            reserve::meter(layout.size() as i64);
        } else {
            check_may_fail(&layout);
        }
        match allocate() {
            Some(object) => object,
            None if give_up_spares() => allocate().unwrap_or(null_mut()),
            None => null_mut(),
        }
    }

    unsafe fn dealloc(&self, object: *mut u8, layout: Layout) {
        if layout.size() <= PAGE_SIZE {
            reserve::meter(-(layout.size() as i64));
        }
        match class_of(&layout) {
            Some(class) => {
                let empty = CLASS[class].lock().free(class, object);
                if let Some(slab) = empty {
                    free_slab(slab);
                }
            }
            None => {
                let address = VirtAddr::from_ptr(object).to_phys().expect("heap memory is in the direct map");
                // SAFETY: the caller gives the memory up.
                unsafe { contiguous::free_for(address, layout.size(), Use::Heap) };
            }
        }
    }
}

#[cfg(target_os = "none")]
#[global_allocator]
static HEAP: Heap = Heap;
