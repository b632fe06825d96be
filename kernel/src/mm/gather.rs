//! Collects what a change of page tables sets free until no TLB can hold it any more.
//!
//! Frames and tables whose entries are gone go into a [`Gather`]; its flush sends one shootdown to the CPUs that run the address space, and
//! only then lets go of them. A CPU that begins to run the space later has loaded its table after the entries were
//! changed: it marks itself in the space's set first, so either it is in the set that the flush reads or it reads the changed table.

use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{Ordering, fence};

use smallvec::SmallVec;

use super::AddressSpace;
use super::forked::{self, FREED};
use super::space::cpus_running;
use crate::arch::tlb::{self, Flush};
use crate::memory::frame::{Frame, FrameList};
use crate::sched;
use crate::sync::grace;

/// Frames after which a flush is due: their list is a page at the most.
const LIMIT: usize = 512;
/// Most pages that are added between two looks at [`Gather::is_full`].
pub const BATCH: usize = LIMIT / 2;

/// Tables shared since a fork after which a flush is due. What the last sharer frees may be [`LIMIT`] pages
/// for each.
const FORKED: usize = 8;

/// What is to be flushed and freed.
pub struct Gather<'a> {
    space: &'a AddressSpace,
    start: u64,
    end: u64,
    frames: Vec<Frame>,
    /// Others may look at them without a lock, so they are freed after a grace period.
    tables: FrameList,
    /// References to tables that other address spaces share, or did.
    forked: SmallVec<[Frame; FORKED]>,
    /// Pages that other address spaces have, too, whichever: the CPUs of all are flushed.
    everybodys: bool,
}

impl<'a> Gather<'a> {
    /// Nothing yet.
    pub fn new(space: &'a AddressSpace) -> Self {
        Self {
            space,
            start: u64::MAX,
            end: 0,
            frames: Vec::new(),
            tables: FrameList::new(),
            forked: SmallVec::new(),
            everybodys: false,
        }
    }

    /// The translations of `range` may not be used any more.
    pub fn flush_range(&mut self, range: Range<u64>) {
        self.start = self.start.min(range.start);
        self.end = self.end.max(range.end);
    }

    /// Makes room for `pages` pages, for who adds them where nothing can be allocated.
    pub(super) fn reserve(&mut self, pages: usize) {
        self.frames.reserve(pages);
    }

    /// `frame` is no longer mapped at `address`.
    pub fn page(&mut self, address: u64, frame: Frame) {
        debug_assert!(self.frames.len() < LIMIT, "nobody has looked whether there is room");
        self.flush_range(address..address + 4096);
        self.frames.push(frame);
    }

    /// `frame` is no longer mapped by a table that other address spaces share since a fork.
    pub(super) fn shared_page(&mut self, frame: Frame) {
        debug_assert!(self.frames.len() < LIMIT, "nobody has looked whether there is room");
        self.everybodys = true;
        self.frames.push(frame);
    }

    /// `frame` is no longer the page table for `range`.
    pub fn table(&mut self, range: Range<u64>, frame: Frame) {
        self.flush_range(range);
        self.tables.push(frame);
    }

    /// The window `range` no longer uses the table of `frame`, which address spaces share since a fork. There
    /// is room while it is not full.
    pub(super) fn forked(&mut self, range: Range<u64>, frame: Frame) {
        self.flush_range(range);
        self.forked.push(frame);
    }

    /// Is it time for [`Gather::flush`]? There is room for a [`BATCH`] as long as it is not.
    pub fn is_full(&self) -> bool {
        self.frames.len() > LIMIT - BATCH || self.tables.len() >= BATCH || self.forked.len() == FORKED
    }

    /// Flushes the TLBs, then frees. May be called under the page-table lock, as long as there is little to free: CPUs that spin for it
    /// answer.
    pub fn flush(&mut self) {
        self.flush_tlb();
        while self.frames.len() > FREED {
            // Who has so many holds no spin lock.
            self.frames.truncate(self.frames.len() - FREED);
            sched::cond_resched();
        }
        self.frames.clear();
        while let Some(table) = self.tables.pop() {
            grace::retire(table);
        }
        for table in self.forked.drain(..) {
            // Who has these holds no spin lock.
            forked::let_go(table);
            sched::cond_resched();
        }
    }

    /// Flushes the TLBs only.
    pub(super) fn flush_tlb(&mut self) {
        if core::mem::take(&mut self.everybodys) {
            // SeqCst: as below.
            fence(Ordering::SeqCst);
            let cpus = cpus_running(&|_| true);
            if !cpus.is_empty() {
                tlb::shootdown(&cpus, Flush::All);
            }
        }
        if self.start < self.end {
            // SeqCst: the changed entries are visible before the set is read; see the module.
            fence(Ordering::SeqCst);
            let cpus = self.space.cpus();
            if !cpus.is_empty() {
                // A freed table may be in paging-structure caches for any address below it. A region is at another address in each process.
                let all = !self.tables.is_empty() || !self.forked.is_empty() || self.space.is_region();
                let what = if all { Flush::All } else { Flush::range(self.start, self.end) };
                tlb::shootdown(&cpus, what);
            }
            (self.start, self.end) = (u64::MAX, 0);
        }
    }

    /// As [`Gather::flush`], for an address space that nobody can look at any more: its tables need no grace period.
    pub fn flush_unseen(&mut self) {
        let tables = core::mem::take(&mut self.tables);
        self.flush();
        drop(tables);
    }
}

impl Drop for Gather<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}
