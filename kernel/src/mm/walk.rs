//! Looking at page tables without a lock.
//!
//! Tables come and go while these functions walk: each one that they meet was reachable a moment ago, and is not reused before the read
//! section ends ([`grace`]). What they find is true of some moment during the call.

use core::sync::atomic::{AtomicU64, Ordering};

use super::entry::Entry;
use super::tables::{PageTables, TOP, entries, index, span};
use crate::memory::PhysAddr;
use crate::sync::grace::{self, ReadSection};

impl PageTables {
    /// The entry of `level`, above the leaves, for `address`, if there are tables of this address space's own
    /// down to it.
    pub fn find<'a>(&'a self, address: u64, level: u32, _reading: &'a ReadSection) -> Option<&'a AtomicU64> {
        debug_assert!(level > 1, "leaves are looked at under the lock");
        let (mut table, mut at) = (self.root, TOP);
        loop {
            // SAFETY: the handle keeps the root; a table below it is not freed before the read section ends.
            let entry = unsafe { &entries(table)[index(address, at)] };
            if at == level {
                return Some(entry);
            }
            // Acquire: with the store that installed the table, after its content.
            let value = Entry(entry.load(Ordering::Acquire));
            if value.is_end(at) {
                return None;
            }
            table = value.address();
            at -= 1;
        }
    }

    /// Where `address` leads to, and the leaf, as the hardware would find it, through the tables of huge pages that processes
    /// share as well. The leaf is writable if all levels are.
    pub fn lookup(&self, address: u64) -> Option<(PhysAddr, Entry)> {
        let _reading = grace::read();
        let mut table = self.root;
        let mut rights = Entry::WRITABLE;
        for level in (1..=TOP).rev() {
            // SAFETY: as in `find`; that goes for tables of the library, too, which are retired the same way.
            let slot = unsafe { &entries(table)[index(address, level)] };
            // Acquire: as in `find`.
            let value = Entry(slot.load(Ordering::Acquire));
            if !value.is_present() {
                return None;
            }
            rights &= value.0;
            if level == 1 || value.has(Entry::HUGE) {
                let size = span(level);
                let physical = value.address().0 & !(size - 1) | address & (size - 1);
                return Some((PhysAddr(physical), value.without(Entry::WRITABLE).with(rights)));
            }
            table = value.address();
        }
        None
    }
}
