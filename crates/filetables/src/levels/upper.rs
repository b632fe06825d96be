//! Tables above those of leaves: their entries lead to tables of the same file.
//!
//! A table above is always whole. Its entries lead to the tables one level down of the windows that have had a page. A child
//! counts each of them as an attachment.
//!
//! # A child and a table above it find each other
//!
//! Who makes a child looks for tables above it afterwards ([`FileTables::link`]). Who makes a table above notes it first
//! and looks for children afterwards. Both write the entry under the lock of the tables above, and whoever comes second
//! finds the first.
//!
//! # Lock order
//!
//! The lock of the tables of a level comes before that of the level below, and that before a stripe.

use super::{Made, missing};
use crate::addr::{Level, PhysAddr, TABLE_ENTRIES};
use crate::error::OutOfMemory;
use crate::format::{EntryValue, Format, Protection};
use crate::frame::Frame;
use crate::machine::Machine;
use crate::memory::Leaf;
use crate::mutant::Mutant;
use crate::piece::MOST_WINDOWS;
use crate::sync::Ordering;
use crate::tables::FileTables;
use crate::uppers::{Upper, child, each_over, key, window_of};
use crate::window::{Extent, HIGHEST, Slot, Window};

/// Entries of a table that are looked at with one hold of its lock.
const ENTRIES_AT_A_TIME: usize = if TABLE_ENTRIES < 64 { TABLE_ENTRIES } else { 64 };

impl<M: Machine, P: Frame + Clone> FileTables<M, P> {
    pub(crate) fn has_upper(&self, window: &Window) -> bool {
        self.uppers.of(window.level).lock().get(&key(window)).is_some()
    }

    /// Puts a new table above where makers of children find it.
    pub(crate) fn add_upper(&self, window: &Window, frame: PhysAddr) -> Result<Made, OutOfMemory> {
        let entry = Leaf::try_new(key(window), Upper { frame, attachments: 1, processes: 0, reach: 1 })?;
        // Locked after the allocation, so that it is unlocked before an entry that is not needed is freed.
        let mut uppers = self.uppers.of(window.level).lock();
        if uppers.get(&key(window)).is_some() {
            return Ok(Made::Before);
        }
        let from = (window.first.saturating_sub(window.pages - 1), Protection::empty());
        let mut over = 0;
        uppers.find_from(&from, |(first, _), _| {
            over += usize::from(*first < window.indices().end);
            (over == MOST_WINDOWS || *first >= window.indices().end).then_some(())
        });
        if over == MOST_WINDOWS {
            return Ok(Made::Crowded);
        }
        // It is not there: see above.
        let _ = uppers.insert_entry(entry);
        Ok(Made::Now)
    }

    /// Gives a new table above the children of the windows that have pages; makes those on need. Without memory for one
    /// the rest is left to faults.
    pub(crate) fn fill_upper(&self, window: &Window) {
        let pages = window.pages / TABLE_ENTRIES as u64;
        let mut at = window.first;
        while let Some(index) = self.next(at..window.indices().end.min(self.end())) {
            let entry = (index - window.first) / pages;
            let Some(child) = child(window, entry) else { return };
            if self.make_child(&child).is_err() {
                return;
            }
            at = child.indices().end;
            self.machine.give_way();
        }
    }

    /// Sees to it that a page's table of leaves is there, and that all tables above it lead to it. Returns whether one of
    /// them cannot be made, because too many windows lie over the page.
    pub(crate) fn complete(
        &self,
        extent: &Extent,
        slot: Slot,
        address: crate::addr::VirtAddr,
    ) -> Result<bool, OutOfMemory> {
        let mut level = slot.level;
        while let Some(below) = level.below().filter(|below| *below > self.leaf) {
            let Some(part) = extent.slot(address, below) else { return Ok(false) };
            if self.make_child(&part.window)? == Made::Crowded {
                return Ok(true);
            }
            level = below;
        }
        Ok(false)
    }

    /// Makes a table on need, and tells all tables above of it.
    fn make_child(&self, window: &Window) -> Result<Made, OutOfMemory> {
        let made = self.make(window)?;
        if made != Made::Crowded {
            self.link(window);
        }
        if made == Made::Now {
            // The maker's own attachment kept it until here.
            self.count_out(window);
        }
        Ok(made)
    }

    /// Makes the tables above a child lead to it. The child is whole.
    pub(crate) fn link(&self, window: &Window) {
        let Some(above) = window.level.above().filter(|above| *above <= HIGHEST) else { return };
        if Mutant::ChildNotLinked.is_on() {
            return;
        }
        // Tables two levels up reach the child, too. Their lock comes first.
        let top = above.above().filter(|top| *top <= HIGHEST);
        let mut tops = top.map(|top| self.uppers.of(top).lock());
        let mut uppers = self.uppers.of(above).lock();
        each_over(&mut uppers, window, |first, upper, entry| {
            let Some(reached) = self.link_to(window, upper, entry) else { return };
            self.reach_more(upper, reached);
            if let Some(tops) = &mut tops {
                let middle = window_of(above, self.leaf, (first, window.rights));
                each_over(tops, &middle, |_, top, entry| {
                    // Relaxed: the lock orders all writers.
                    let value = self.machine.table(top.frame)[entry].load(Ordering::Relaxed);
                    if M::Format::is_present(value) && M::Format::table_frame(value) == upper.frame {
                        self.reach_more(top, reached);
                    }
                });
            }
        });
    }

    /// Entries that lead to a table above reach more tables from now on.
    fn reach_more(&self, upper: &mut Upper, tables: u64) {
        upper.reach += tables;
        self.count_reached(upper.processes * tables);
    }

    /// Makes an entry of a table above lead to a child, if it does not yet. Returns how many tables that reaches.
    fn link_to(&self, window: &Window, upper: &Upper, entry: usize) -> Option<u64> {
        let entry = &self.machine.table(upper.frame)[entry];
        // Relaxed: the lock orders all writers.
        if M::Format::is_present(entry.load(Ordering::Relaxed)) {
            return None;
        }
        let mut write = |frame| {
            // Release: who follows the entry finds the table's content.
            entry.store(M::Format::managed(frame, Protection::all()), Ordering::Release);
            Ok::<(), core::convert::Infallible>(())
        };
        let Ok(reached) = match window.level > self.leaf {
            true => self.count_in_upper(window, &mut write)?,
            false => self.count_in_leaf(window, &mut write)?.map(|()| 1),
        };
        if Mutant::ChildNotCounted.is_on() {
            self.count_out(window);
        }
        Some(reached)
    }

    /// As [`FileTables::count_in_leaf`], for a table above. Returns how many tables the entry reaches.
    pub(crate) fn count_in_upper<E>(
        &self,
        window: &Window,
        write: &mut impl FnMut(PhysAddr) -> Result<(), E>,
    ) -> Option<Result<u64, E>> {
        self.count_entry_in(window, false, write)
    }

    /// As [`FileTables::count_in_upper`], for an entry of a process.
    pub(crate) fn attach_upper<E>(
        &self,
        window: &Window,
        write: &mut impl FnMut(PhysAddr) -> Result<(), E>,
    ) -> Option<Result<u64, E>> {
        self.count_entry_in(window, true, write)
    }

    fn count_entry_in<E>(
        &self,
        window: &Window,
        is_process: bool,
        write: &mut impl FnMut(PhysAddr) -> Result<(), E>,
    ) -> Option<Result<u64, E>> {
        let mut uppers = self.uppers.of(window.level).lock();
        let upper = uppers.get_mut(&key(window))?;
        Some(write(upper.frame).map(|()| {
            upper.attachments += u64::from(!Mutant::AttachmentNotCounted.is_on());
            upper.processes += u64::from(is_process);
            upper.reach
        }))
    }

    /// An entry of a process is about to be counted out. Returns how many tables it reached.
    pub(crate) fn detach_upper(&self, window: &Window) -> u64 {
        let mut uppers = self.uppers.of(window.level).lock();
        uppers.get_mut(&key(window)).map_or(0, |upper| {
            upper.processes -= 1;
            upper.reach
        })
    }

    pub(crate) fn count_out_upper(&self, window: &Window) -> bool {
        let mut uppers = self.uppers.of(window.level).lock();
        let Some(upper) = uppers.get_mut(&key(window)) else { return missing("no such table") };
        upper.attachments -= 1;
        if upper.attachments > 0 {
            return false;
        }
        let frame = upper.frame;
        let gone = uppers.remove_entry(&key(window));
        // The lock first, then the memory.
        drop(uppers);
        drop(gone);
        // No entry leads to the table and nobody finds it: it is ours alone.
        for (number, entry) in self.machine.table(frame).iter().enumerate() {
            // Relaxed: no TLB holds any of them.
            if !M::Format::is_present(entry.load(Ordering::Relaxed)) {
                continue;
            }
            entry.store(EntryValue::default(), Ordering::Relaxed);
            if let Some(child) = child(window, number as u64) {
                self.count_out(&child);
            }
            self.machine.give_way();
        }
        self.retire(window.level, frame);
        true
    }

    /// How many entries lead to the table above of a window, if it is this one.
    pub(crate) fn upper_attachments(&self, window: &Window, frame: PhysAddr) -> Option<u64> {
        let uppers = self.uppers.of(window.level).lock();
        uppers.get(&key(window)).filter(|upper| upper.frame == frame).map(|upper| upper.attachments)
    }

    /// How many pages the table of a window shows: all that are in front of the end, but those whose tables are missing below it.
    /// A number to show: the table may go meanwhile.
    pub fn shown(&self, window: &Window) -> u64 {
        if window.level == self.leaf {
            return self.visible(window.indices());
        }
        let mut shown = 0;
        for first in (0..TABLE_ENTRIES).step_by(ENTRIES_AT_A_TIME) {
            let mut present = 0u64;
            {
                // The mapping may leave the slot meanwhile: the lock keeps the table, if it is there still.
                let uppers = self.uppers.of(window.level).lock();
                let Some(upper) = uppers.get(&key(window)) else { break };
                let entries = &self.machine.table(upper.frame)[first..first + ENTRIES_AT_A_TIME];
                for (place, entry) in entries.iter().enumerate() {
                    // Relaxed: a number to show.
                    present |= u64::from(M::Format::is_present(entry.load(Ordering::Relaxed))) << place;
                }
            }
            for place in (0..ENTRIES_AT_A_TIME).filter(|place| present & (1 << place) != 0) {
                if let Some(child) = child(window, (first + place) as u64) {
                    shown += self.shown(&child);
                    self.machine.give_way();
                }
            }
        }
        shown
    }

    /// How many tables of the file an entry that leads to the table of a window reaches: that one, and all below it. A number to show, in a few
    /// steps: the table may go meanwhile.
    pub fn reached(&self, window: &Window) -> u64 {
        if window.level == self.leaf {
            return 1;
        }
        self.uppers.of(window.level).lock().get(&key(window)).map_or(0, |upper| upper.reach)
    }

    /// The tables above that lead to the table of a window: how many they are, and how many entries of processes reach the
    /// table by them.
    pub(crate) fn above(&self, window: &Window) -> (u64, u64) {
        let Some(level) = window.level.above().filter(|above| *above <= HIGHEST) else { return (0, 0) };
        let mut found = [None; MOST_WINDOWS];
        let mut places = found.iter_mut();
        each_over(&mut self.uppers.of(level).lock(), window, |first, upper, entry| {
            // Relaxed: the lock orders all writers.
            let value = self.machine.table(upper.frame)[entry].load(Ordering::Relaxed);
            if M::Format::is_present(value)
                && let Some(place) = places.next()
            {
                *place = Some((first, upper.processes));
            }
        });
        // The lock of the level above comes first, so this one is free again.
        found.iter().flatten().fold((0, 0), |(tables, viewers), &(first, processes)| {
            let (_, further) = self.above(&window_of(level, self.leaf, (first, window.rights)));
            (tables + 1, viewers + processes + further)
        })
    }

    /// The tables above, with their windows, frames and attachments.
    pub(crate) fn each_upper(&self, mut visit: impl FnMut(&Window, PhysAddr, u64)) {
        for level in [Level::Pmd, Level::Pud].into_iter().filter(|level| *level > self.leaf) {
            self.uppers.of(level).lock().find_from(&(0, Protection::empty()), |key, upper| {
                visit(&window_of(level, self.leaf, *key), upper.frame, upper.attachments);
                None::<()>
            });
        }
    }

    /// The window of each entry of a table above.
    pub(crate) fn child(&self, window: &Window, entry: u64) -> Option<Window> {
        child(window, entry)
    }
}
