//! Memory that a simulated CPU allocates is its own: no other CPU's objects lie in the same line, and none is used again.
//!
//! A kernel's allocator keeps free objects by CPU. What moves because an object is freed on another CPU than it was allocated on is not
//! counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;

use crate::hooks;

/// CPUs at most.
pub const CPUS: usize = 64;
/// The memory of a CPU; pages that it never touches cost nothing.
const ARENA: usize = 16 << 20;

/// The allocator of a build that counts.
pub struct Heap {
    arenas: UnsafeCell<Arenas>,
}

struct Arenas {
    /// Where those of all CPUs begin; 0 as long as there are none.
    start: usize,
    /// How much of each is used.
    used: [usize; CPUS],
}

// SAFETY: the arenas are used while `hooks::cpu` names a CPU, which is on the one thread that simulates them. Others only
// compare with `start`, which no longer changes once they can have an object of an arena.
unsafe impl Sync for Heap {}

impl Default for Heap {
    fn default() -> Heap {
        Heap::new()
    }
}

impl Heap {
    /// An allocator without arenas.
    pub const fn new() -> Heap {
        Heap { arenas: UnsafeCell::new(Arenas { start: 0, used: [0; CPUS] }) }
    }

    #[cfg_attr(roundtable_counted, sanitize(thread = "off"))]
    fn in_arena(&self, cpu: usize, layout: Layout) -> *mut u8 {
        // SAFETY: see `Sync`.
        let arenas = unsafe { &mut *self.arenas.get() };
        if arenas.start == 0 {
            // SAFETY: the size is not 0, the alignment a power of two.
            let all = unsafe { System.alloc(Layout::from_size_align_unchecked(CPUS * ARENA, 4096)) };
            if all.is_null() {
                return all;
            }
            arenas.start = all as usize;
        }
        // A slab's objects are 8 bytes apart at least.
        let align = layout.align().max(8);
        let used = &mut arenas.used[cpu];
        let at = (*used + align - 1) & !(align - 1);
        if at + layout.size() > ARENA || align > 4096 {
            return std::ptr::null_mut();
        }
        *used = at + layout.size();
        (arenas.start + cpu * ARENA + at) as *mut u8
    }

    #[cfg_attr(roundtable_counted, sanitize(thread = "off"))]
    fn has(&self, object: *mut u8) -> bool {
        // SAFETY: see `Sync`.
        let start = unsafe { (&raw const (*self.arenas.get()).start).read_volatile() };
        start != 0 && (object as usize).wrapping_sub(start) < CPUS * ARENA
    }
}

// SAFETY: each object of an arena is given out once, with the size and alignment asked for; all others are the system's.
unsafe impl GlobalAlloc for Heap {
    #[cfg_attr(roundtable_counted, sanitize(thread = "off"))]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match hooks::cpu() {
            Some(cpu) => self.in_arena(cpu, layout),
            // SAFETY: the caller's promise.
            None => unsafe { System.alloc(layout) },
        }
    }

    #[cfg_attr(roundtable_counted, sanitize(thread = "off"))]
    unsafe fn dealloc(&self, object: *mut u8, layout: Layout) {
        if !self.has(object) {
            // SAFETY: the caller's promise; it is the system's.
            unsafe { System.dealloc(object, layout) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_of_cpus_lie_in_different_lines_and_none_overlaps() {
        let heap = Heap::new();
        let layout = Layout::from_size_align(24, 8).unwrap();
        let objects: Vec<usize> = (0..40).map(|number| heap.in_arena(number % 4, layout) as usize).collect();
        for (number, object) in objects.iter().enumerate() {
            assert!(heap.has(*object as *mut u8));
            for (other, neighbour) in objects.iter().enumerate().filter(|(other, _)| *other != number) {
                assert!(object.abs_diff(*neighbour) >= 24);
                assert!(other % 4 == number % 4 || object / 64 != neighbour / 64);
            }
        }
        assert!(heap.in_arena(0, Layout::from_size_align(ARENA, 8).unwrap()).is_null());
    }
}
