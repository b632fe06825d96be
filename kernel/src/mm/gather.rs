//! Collects what a change of page tables sets free until no TLB can hold it any more.
//!
//! Frames and tables whose entries are gone go into a [`Gather`]; its flush sends one shootdown to the CPUs that run the address space, and
//! only then lets go of them. A CPU that begins to run the space later has loaded its table after the entries were
//! changed: it marks itself in the space's set first, so either it is in the set that the flush reads or it reads the changed table.

use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{Ordering, fence};

use super::AddressSpace;
use crate::arch::tlb::{self, Flush};
use crate::memory::frame::Frame;
use crate::sync::grace;

/// Frames after which a flush is due.
const LIMIT: usize = 512;

/// What is to be flushed and freed.
pub struct Gather<'a> {
    space: &'a AddressSpace,
    start: u64,
    end: u64,
    frames: Vec<Frame>,
    /// Others may look at them without a lock, so they are freed after a grace period.
    tables: Vec<Frame>,
}

impl<'a> Gather<'a> {
    /// Nothing yet.
    pub fn new(space: &'a AddressSpace) -> Self {
        Self { space, start: u64::MAX, end: 0, frames: Vec::new(), tables: Vec::new() }
    }

    /// The translations of `range` may not be used any more.
    pub fn flush_range(&mut self, range: Range<u64>) {
        self.start = self.start.min(range.start);
        self.end = self.end.max(range.end);
    }

    /// `frame` is no longer mapped at `address`.
    pub fn page(&mut self, address: u64, frame: Frame) {
        self.flush_range(address..address + 4096);
        self.frames.push(frame);
    }

    /// `frame` is no longer the page table for `range`.
    pub fn table(&mut self, range: Range<u64>, frame: Frame) {
        self.flush_range(range);
        self.tables.push(frame);
    }

    /// Is it time for [`Gather::flush`]?
    pub fn is_full(&self) -> bool {
        self.frames.len() + self.tables.len() >= LIMIT
    }

    /// Flushes the TLBs, then frees. May be called under the page-table lock: CPUs that spin for it answer.
    pub fn flush(&mut self) {
        if self.start < self.end {
            // SeqCst: the changed entries are visible before the set is read; see the module.
            fence(Ordering::SeqCst);
            let cpus = self.space.cpus();
            if !cpus.is_empty() {
                // A freed table may be in paging-structure caches for any address below it.
                let what =
                    if !self.tables.is_empty() { Flush::All } else { Flush::range(self.start, self.end) };
                tlb::shootdown(&cpus, what);
            }
            (self.start, self.end) = (u64::MAX, 0);
        }
        self.frames.clear();
        self.tables.drain(..).for_each(grace::retire);
    }

    /// As [`Gather::flush`], for an address space that nobody can look at any more: its tables need no grace period.
    pub fn flush_unseen(&mut self) {
        self.frames.append(&mut self.tables);
        self.flush();
    }
}

impl Drop for Gather<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}
