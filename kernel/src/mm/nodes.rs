//! On which memory nodes pages are, and their moves to others.
//!
//! What moves is a private page that nobody else has. Its entry is taken out and flushed before the page is copied, all under the
//! page-table lock: whoever comes meanwhile waits for the lock in a fault, and finds the copy.

use core::ops::Range;
use core::sync::atomic::Ordering;

use super::entry::Entry;
use super::fault::{Access, ENOUGH_ROUNDS, copy_page};
use super::gather::Gather;
use super::policy::Places;
use super::space::AddressSpace;
use super::tables::NoTable;
use super::vma::{Kind, Vma};
use super::{PAGE, page_down};
use crate::errno::{Errno, Result};
use crate::memory::frame::Frame;
use crate::memory::node::{self, MAX_NODES, NodeMask};
use crate::{process, sched};

/// What became of a page that was to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    Done,
    /// It is where it should be.
    NotNeeded,
    /// There is no page.
    Absent,
    /// A page of a file, a huge one, or one that somebody uses just now.
    Busy,
    /// Other processes have it, too.
    Shared,
}

/// Pages of an area that are looked at in one hold of its locks.
const AT_ONCE: usize = 64;

/// Pages by node.
pub type ByNode = [u64; MAX_NODES];

impl AddressSpace {
    /// The node of the page at an address, for move_pages(2). `EFAULT` without an area and for the page of zeroes, `ENOENT` where
    /// nothing is mapped.
    pub fn node_of(&self, address: u64) -> Result<i32> {
        let areas = self.read();
        let vma = areas.set.find(address).ok_or(Errno::EFAULT)?;
        if matches!(vma.kind, Kind::Special(_) | Kind::Anonymous) {
            let entry = self.tables.lock().leaf(address);
            if entry.is_mapped() && !entry.owns_frame() {
                return Err(Errno::EFAULT);
            }
            return if entry.is_mapped() { Ok(node::of(entry.address()) as i32) } else { Err(Errno::ENOENT) };
        }
        let (address, _) = self.tables.lookup(address).ok_or(Errno::ENOENT)?;
        Ok(node::of(address) as i32)
    }

    /// The node of the page that a read of the address finds, for get_mempolicy(2).
    pub fn node_for_reading(&self, address: u64) -> Result<u32> {
        for _ in 0..ENOUGH_ROUNDS {
            self.fault(address, Access::Read).map_err(|_| Errno::EFAULT)?;
            // Race: it may be gone again.
            if let Some((address, _)) = self.tables.lookup(address) {
                return Ok(node::of(address) as u32);
            }
            sched::cond_resched();
        }
        Err(Errno::EFAULT)
    }

    /// Calls `see` with address and node of each page of the process's in a part of an area, some at a time; returns where to go on.
    fn see_pages(&self, vma: &Vma, part: Range<u64>, mut see: impl FnMut(u64, usize)) -> u64 {
        match &vma.kind {
            Kind::Anonymous | Kind::File(_) => {
                let tables = self.tables.lock();
                tables.read(part, AT_ONCE, |address, entry, _| {
                    if entry.owns_frame() {
                        see(address, node::of(entry.address()));
                    }
                })
            }
            Kind::Huge(_) => {
                let mut at = part.start;
                for _ in 0..AT_ONCE {
                    if at >= part.end {
                        break;
                    }
                    if let Some((address, _)) = self.tables.lookup(at) {
                        see(at, node::of(address));
                    }
                    at += vma.page_size();
                }
                at.min(part.end)
            }
            Kind::Special(_) | Kind::Region(_) => part.end,
        }
    }

    /// How many pages of the area at `start` are on which node, of its own size each.
    pub fn pages_by_node(&self, start: u64) -> ByNode {
        let mut sum = [0; MAX_NODES];
        let mut at = start;
        loop {
            let areas = self.read();
            let Some(vma) = areas.set.find(at) else { return sum };
            if at == start && matches!(vma.kind, Kind::File(_)) {
                self.each_page_shown(vma, |page| sum[node::of(page)] += 1);
            }
            at = self.see_pages(vma, at..vma.end, |_, node| sum[node] += 1);
            if at >= vma.end {
                return sum;
            }
            drop(areas);
            sched::cond_resched();
        }
    }

    /// Whether a page of the range is on none of the nodes. `EFAULT` where nothing is mapped: as Linux, before the pages of the area in front of
    /// the gap.
    pub fn has_pages_outside(&self, range: Range<u64>, nodes: NodeMask) -> Result<bool> {
        let mut at = range.start;
        while at < range.end && !process::current().kill_pending() {
            let areas = self.read();
            let vma = areas.set.find(at).ok_or(Errno::EFAULT)?;
            if vma.end < range.end && areas.set.find(vma.end).is_none() {
                return Err(Errno::EFAULT);
            }
            let mut found = false;
            let part = at..vma.end.min(range.end);
            at = self.see_pages(vma, part.clone(), |_, node| found |= nodes >> node & 1 == 0);
            if let Kind::Huge(huge) = &vma.kind {
                // Copies that a fork has handed on have no entries before they are touched.
                let copies = (part.start..at).step_by(vma.page_size() as usize);
                let mut copies = copies.filter_map(|at| {
                    sched::cond_resched();
                    huge.copy_at(at)
                });
                found |= copies.any(|frame| nodes >> node::of(frame) & 1 == 0);
            }
            if found {
                return Ok(true);
            }
            drop(areas);
            sched::cond_resched();
        }
        Ok(false)
    }

    /// Moves the pages of a range whose node `leaves`, each to where `places` says by its node and its index, while it `goes_on`. Returns how
    /// many could not be moved.
    pub fn move_range(
        &self,
        range: Range<u64>,
        all: bool,
        leaves: impl Fn(usize) -> bool,
        places: impl Fn(usize, u64) -> Option<Places>,
        goes_on: impl Fn() -> bool,
    ) -> Result<usize> {
        let (mut at, mut failed) = (range.start, 0);
        while at < range.end && goes_on() && !process::current().kill_pending() {
            let mut found = [(0, 0, 0); AT_ONCE];
            let mut count = 0;
            {
                let areas = self.read();
                let Some(vma) = areas.set.find_in(at..range.end) else { break };
                let part = vma.start.max(at)..vma.end.min(range.end);
                at = self.see_pages(vma, part, |address, node| {
                    if leaves(node) {
                        found[count] = (address, node, vma.index_of(address));
                        count += 1;
                    }
                });
            }
            for (address, node, index) in &found[..count] {
                let places = places(*node, *index).unwrap_or_else(|| Places::near(node::here()));
                match self.move_page(*address, all, &places) {
                    Ok(Move::Busy) => failed += 1,
                    // What is gone needs no move. As on Linux: what others have, too, stays without a word.
                    Ok(_) | Err(Errno::EFAULT) => {}
                    Err(errno) => return Err(errno),
                }
                sched::cond_resched();
            }
        }
        Ok(failed)
    }

    /// Moves the page at an address to the first of `places`, or the next that has room. One that several processes have only if `all`.
    /// `EFAULT` as [`AddressSpace::node_of`].
    pub fn move_page(&self, address: u64, all: bool, places: &Places) -> Result<Move> {
        let page = page_down(address);
        let areas = self.read();
        let vma = areas.set.find(page).ok_or(Errno::EFAULT)?;
        let is_there =
            |physical| places.as_slice().first().is_some_and(|node| usize::from(*node) == node::of(physical));
        let (entry, sharers) = match &vma.kind {
            Kind::Anonymous | Kind::File(_) => self.tables.lock().leaf_and_sharers(page),
            Kind::Special(_) => return Err(Errno::EFAULT),
            Kind::Huge(_) | Kind::Region(_) => (Entry(0), 1),
        };
        if !entry.is_mapped() {
            return Ok(match self.tables.lookup(page) {
                Some((physical, _)) if is_there(physical) => Move::NotNeeded,
                Some(_) => Move::Busy,
                None => Move::Absent,
            });
        }
        if !entry.owns_frame() {
            return Err(Errno::EFAULT);
        }
        if is_there(entry.address()) {
            return Ok(Move::NotNeeded);
        }
        if !entry.has(Entry::ANON) {
            return Ok(Move::Busy);
        }
        if sharers > 1 || Frame::count_at(entry.address()) != 1 {
            return Ok(if all { Move::Busy } else { Move::Shared });
        }
        let copy = Frame::alloc_from(self.private_use(), places.as_slice()).ok_or(Errno::ENOMEM)?;
        if node::of(copy.phys()) == node::of(entry.address()) {
            // Nothing better has room.
            return Ok(Move::NotNeeded);
        }
        // A table that a fork has shared stays so when the child is gone.
        let is_shared = matches!(self.tables.lock().own_leaf(page), Err(NoTable::SlotShared));
        if is_shared {
            self.take_slot(&areas.set, page).map_err(|_| Errno::ENOMEM)?;
        }
        let mut gather = Gather::new(self);
        let tables = self.tables.lock();
        let slot = match tables.own_leaf(page) {
            Ok(Some(slot)) => slot,
            Ok(None) => return Ok(Move::Absent),
            Err(NoTable::NoMemory) => return Err(Errno::ENOMEM),
            // Race: a thread has forked meanwhile.
            Err(NoTable::SlotShared) => return Ok(Move::Busy),
        };
        let now = Entry(slot.load(Ordering::SeqCst));
        if !now.owns_frame() || !now.has(Entry::ANON) || now.address() != entry.address() {
            return Ok(Move::Busy);
        }
        let old = Entry(slot.swap(0, Ordering::SeqCst));
        gather.flush_range(page..page + PAGE);
        gather.flush();
        // SAFETY: the entry owned this reference, and is gone.
        let original = unsafe { Frame::from_raw(old.address()) };
        if original.count() != 1 {
            // Somebody has taken hold of it before: it stays, and the entry has the reference again.
            slot.store(old.0, Ordering::SeqCst);
            let _ = original.into_raw();
            return Ok(Move::Busy);
        }
        copy_page(&copy, &original);
        slot.store(old.moved_to(copy.into_raw()).0, Ordering::SeqCst);
        drop(tables);
        drop(original);
        Ok(Move::Done)
    }
}
