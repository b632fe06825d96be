//! Invariant 1, to be looked at by tests while no operation is under way: a file's table equals its cache.

use alloc::format;
use alloc::string::String;

use super::File;
use crate::addr::{PageIndex, PageSize};
use crate::format::{is_leaf, leaf_frame};
use crate::machine::Machine;
use crate::sync::Ordering;

impl<M: Machine> File<M> {
    /// Compares each of the file's tables with the cache: inside its window it says what the cache says up to the end of the
    /// file, outside it says nothing.
    ///
    /// # Errors
    ///
    /// What is different.
    #[doc(hidden)]
    pub fn check_tables(&self) -> core::result::Result<(), String> {
        let cache = self.cache.lock();
        for (window, frame) in cache.mirror().tables() {
            for (entry, value) in self.hugetlb.machine().table(frame).iter().enumerate() {
                // Relaxed: the cache lock orders it.
                let value = value.load(Ordering::Relaxed);
                let within = entry.checked_sub(window.entry).filter(|within| (*within as u64) < window.pages);
                let index = within.map(|within| window.first + within as u64);
                let page = index.filter(|index: &PageIndex| cache.covers(*index));
                let wanted = page.and_then(|index| cache.get(index)).map(|page| page.frame());
                let shown = is_leaf(value).then(|| leaf_frame(value, PageSize::Size2M));
                if shown != wanted || (shown.is_none() && value != 0) {
                    return Err(format!(
                        "{window:?}, entry {entry}: the table says {value:#x}, the cache {wanted:?}"
                    ));
                }
            }
        }
        Ok(())
    }
}
