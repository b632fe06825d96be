//! The windows in which the kernel may touch user pages (STAC and CLAC).
//!
//! Each place where the kernel opens or closes a window is a three-byte NOP, listed in a section of its own,
//! and becomes the instruction when the boot CPU has SMAP: the kernel's code is still writable then.

use core::arch::asm;

use super::features;

/// Opens the window: kernel accesses to user pages work until [`forbid`].
#[inline(always)]
pub fn allow() {
    // SAFETY: STAC changes only what the kernel may touch; three bytes that do nothing without SMAP.
    unsafe {
        asm!(
            ".pushsection .smap_stac, \"a\"",
            ".quad 2f",
            ".popsection",
            "2: .byte 0x0f, 0x1f, 0x00",
            options(nostack)
        )
    };
}

/// Closes the window again.
#[inline(always)]
pub fn forbid() {
    // SAFETY: as `allow`.
    unsafe {
        asm!(
            ".pushsection .smap_clac, \"a\"",
            ".quad 2f",
            ".popsection",
            "2: .byte 0x0f, 0x1f, 0x00",
            options(nostack)
        )
    };
}

unsafe extern "C" {
    static smap_stac_start: [u64; 0];
    static smap_stac_end: [u64; 0];
    static smap_clac_start: [u64; 0];
    static smap_clac_end: [u64; 0];
}

/// Puts the instructions in their places.
///
/// # Safety
/// Before other CPUs run, while the kernel's code is mapped writable.
pub(super) unsafe fn patch() {
    if !features::has_smap() {
        return;
    }
    let lists = [
        (&raw const smap_stac_start, &raw const smap_stac_end, [0x0f, 0x01, 0xcb]),
        (&raw const smap_clac_start, &raw const smap_clac_end, [0x0f, 0x01, 0xca]),
    ];
    for (start, end, instruction) in lists {
        let count = (end as usize - start as usize) / 8;
        // SAFETY: the linker collected `count` addresses there, each of a three-byte gap in the code.
        unsafe {
            for place in core::slice::from_raw_parts(start.cast::<u64>(), count) {
                (*place as *mut [u8; 3]).write_volatile(instruction);
            }
        }
    }
}
