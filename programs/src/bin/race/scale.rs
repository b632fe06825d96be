//! What is raced on: pages of 2 MiB in slots of 1 GiB, or pages of 4 KiB in windows of 2 MiB. A table shows all of a slot in either case.

use std::sync::atomic::{AtomicBool, Ordering};

use roundtable_programs::file::Fd;
use roundtable_programs::huge::{self, GIB, HUGE};
use roundtable_programs::sys::PAGE;

use crate::SLOT;

static BASE_PAGES: AtomicBool = AtomicBool::new(false);

/// From now on pages are of 4 KiB. Before anything else is done.
pub fn choose_base_pages() {
    // Relaxed, here and below: other threads and processes are started later.
    BASE_PAGES.store(true, Ordering::Relaxed);
}

pub fn has_base_pages() -> bool {
    BASE_PAGES.load(Ordering::Relaxed)
}

/// Bytes of a page.
pub fn page_size() -> usize {
    if has_base_pages() { PAGE } else { HUGE }
}

/// Bytes of a slot.
pub fn slot_size() -> usize {
    if has_base_pages() { HUGE } else { GIB }
}

/// Where the stamps lie in a page, in bytes: apart from each other, the last at its end.
pub fn places() -> [usize; 4] {
    match has_base_pages() {
        true => [0, 24, 2048 | 16, PAGE - 8],
        false => [0, 12 << 10 | 8, 1 << 20 | 16, HUGE - 8],
    }
}

/// A sparse file of so many slots.
pub fn file(slots: usize) -> Fd {
    if !has_base_pages() {
        return huge::sized(slots * SLOT);
    }
    let file = Fd::temporary();
    file.truncate((slots * SLOT * PAGE) as u64).expect("the size of a file");
    file
}
