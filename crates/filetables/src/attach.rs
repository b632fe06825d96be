//! Attaching mappings to tables, and what they are attached to.
//!
//! A mapping attaches by one entry at the highest level that it fills and that is free; how a table comes and goes is in
//! [`crate::make`].

use crate::addr::{PhysAddr, VirtAddr};
use crate::error::OutOfMemory;
use crate::format::{Format, Protection};
use crate::frame::Frame;
use crate::levels::{Made, pieces};
use crate::machine::{Entry, Machine, Space};
use crate::mutant::Mutant;
use crate::piece::{MOST_WINDOWS, Over, PIECE_PAGES};
use crate::sync::Ordering;
use crate::tables::FileTables;
use crate::window::{Extent, Slot, Window};

/// What came of an attempt to attach a slot of a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Attached {
    /// The slot leads to a table of the file already.
    Before,
    /// It does now, to a table that was there.
    Shared,
    /// It does now, to a table that was made for it.
    Made,
    /// The window has no page yet, so it has no table.
    Empty,
    /// The host has a table or a page in the slot.
    Occupied,
    /// The slot leads to a table of another mapping, which has another part of the slot.
    Neighbour,
    /// Too many windows lie over the same pages.
    Crowded,
}

impl Attached {
    /// Whether nothing is to be tried one level down.
    fn is_settled(self) -> bool {
        !matches!(self, Attached::Occupied | Attached::Neighbour | Attached::Crowded)
    }
}

/// What came of attempts to attach, by kind.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct AttachTally {
    /// Slots that lead to tables that were there.
    pub shared: u64,
    /// Slots that lead to tables that were made for them.
    pub made: u64,
    /// Slots in which the host has something.
    pub occupied: u64,
    /// Slots that lead to tables of other mappings.
    pub neighbours: u64,
    /// Slots that too many windows lie over.
    pub crowded: u64,
}

impl AttachTally {
    /// Counts one attempt.
    pub fn add(&mut self, attached: Attached) {
        match attached {
            Attached::Shared => self.shared += 1,
            Attached::Made => self.made += 1,
            Attached::Occupied => self.occupied += 1,
            Attached::Neighbour => self.neighbours += 1,
            Attached::Crowded => self.crowded += 1,
            Attached::Before | Attached::Empty => {}
        }
    }
}

impl<M: Machine, P: Frame + Clone> FileTables<M, P> {
    /// Attaches all slots of a new mapping whose windows have pages, each at the highest level that the mapping fills. The
    /// steps depend on the windows with pages, not on the size of the mapping.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] when a table could not be made. What was attached before stays; faults attach the rest.
    pub fn attach_all(
        &self,
        space: &M::Space,
        extent: &Extent,
        rights: Protection,
        tally: &mut AttachTally,
    ) -> Result<(), OutOfMemory> {
        let mut at = extent.first;
        while let Some(index) = self.next(at..self.end().min(extent.end_index())) {
            let address = extent.start + ((index - extent.first) << self.leaf.shift());
            let slot = extent.highest_slot(address);
            if let Some(slot) = slot {
                self.attach_slot(space, extent, slot, rights, tally)?;
            }
            let Some(next) = extent.behind(address, slot).filter(|next| *next < extent.end()) else { break };
            at = extent.first + ((next.0 - extent.start.0) >> self.leaf.shift());
            self.machine.give_way();
        }
        Ok(())
    }

    fn attach_slot(
        &self,
        space: &M::Space,
        extent: &Extent,
        slot: Slot,
        rights: Protection,
        tally: &mut AttachTally,
    ) -> Result<(), OutOfMemory> {
        let attached = match space.entry(slot.address, slot.level)? {
            Some(entry) => self.attach(&slot, entry, rights)?,
            None => Attached::Occupied,
        };
        if slot.window.level > self.leaf && !attached.is_settled() {
            return extent.parts(slot).try_for_each(|part| {
                // Parts without pages need no tables of the host's either.
                match self.is_populated(&part.window) {
                    true => {
                        self.machine.give_way();
                        self.attach_slot(space, extent, part, rights, tally)
                    }
                    false => Ok(()),
                }
            });
        }
        tally.add(attached);
        Ok(())
    }

    /// Attaches the slot around `address`, whose page was added before, at the highest level that it can.
    ///
    /// [`Attached::Crowded`] also comes of a slot that leads to a table above which cannot lead to one for the page. Then
    /// the host has no table there ([`Space::entry`] finds none), and the mapping is to leave the slot first.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] when a table could not be made. What was attached before stays, and is in the tally.
    pub fn attach_for_fault(
        &self,
        space: &M::Space,
        extent: &Extent,
        address: VirtAddr,
        rights: Protection,
        tally: &mut AttachTally,
    ) -> Result<Attached, OutOfMemory> {
        let Some(mut slot) = extent.highest_slot(address) else {
            tally.add(Attached::Occupied);
            return Ok(Attached::Occupied);
        };
        let attached = loop {
            let attached = match space.entry(slot.address, slot.level)? {
                Some(entry) => self.attach(&slot, entry, rights)?,
                None => Attached::Occupied,
            };
            if slot.window.level == self.leaf || attached == Attached::Empty {
                break attached;
            }
            if attached.is_settled() {
                let completed = self.complete(extent, slot, address);
                if completed == Ok(false) {
                    break attached;
                }
                // It is attached all the same. But the mapping has to leave the slot, and to find its way one level down.
                tally.add(attached);
                completed?;
                break Attached::Crowded;
            }
            // One level down there may be a way.
            match slot.level.below().and_then(|level| extent.slot(address, level)) {
                Some(below) => slot = below,
                None => break attached,
            }
        };
        tally.add(attached);
        Ok(attached)
    }

    /// Attaches a slot, whose entry is `entry`, to the table of its window. Makes the table on need, if the window has a page.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] when the table could not be made.
    pub fn attach(&self, slot: &Slot, entry: &Entry, rights: Protection) -> Result<Attached, OutOfMemory> {
        loop {
            if let Some(attached) = self.attach_there(slot, entry, rights) {
                return Ok(attached);
            }
            if !self.is_populated(&slot.window) {
                return Ok(Attached::Empty);
            }
            match self.make(&slot.window)? {
                Made::Now => {
                    if slot.whole {
                        // Tables above may have waited for it.
                        self.link(&slot.window);
                    }
                    let attached = self.attach_there(slot, entry, rights);
                    // The maker's own attachment kept it until here.
                    self.count_out(&slot.window);
                    return Ok(match attached {
                        Some(Attached::Shared) => Attached::Made,
                        Some(attached) => attached,
                        None => Attached::Empty,
                    });
                }
                Made::Before => {}
                Made::Crowded => return Ok(Attached::Crowded),
            }
        }
    }

    fn is_populated(&self, window: &Window) -> bool {
        let indices = window.indices();
        self.next(indices.start..indices.end.min(self.end())).is_some()
    }

    /// Attaches a slot to a table that is there; `None` when there is none.
    fn attach_there(&self, slot: &Slot, entry: &Entry, rights: Protection) -> Option<Attached> {
        // Acquire: with who filled it.
        let now = entry.load(Ordering::Acquire);
        if M::Format::is_present(now) && !Mutant::SlotAttachedTwice.is_on() {
            return Some(self.whose(slot, entry));
        }
        let mut write = |frame: PhysAddr| {
            let value = M::Format::managed(frame, rights);
            if Mutant::SlotAttachedTwice.is_on() {
                entry.store(value, Ordering::Release);
                return Ok(());
            }
            // Another thread of the process, or the host, may have been first.
            entry.fill(value)
        };
        let written = match slot.window.level > self.leaf {
            true => self.attach_upper(&slot.window, &mut write)?,
            false => self.count_in_leaf(&slot.window, &mut write)?.map(|()| 1),
        };
        let Ok(reaches) = written else { return Some(self.whose(slot, entry)) };
        self.count_attachment(slot.window.level, true, reaches);
        Some(Attached::Shared)
    }

    /// Whose table the entry of a slot leads to.
    fn whose(&self, slot: &Slot, entry: &Entry) -> Attached {
        // Acquire: as in `attach_there`.
        if !M::Format::is_managed(slot.level, entry.load(Ordering::Acquire)) {
            return Attached::Occupied;
        }
        match self.is_attached(slot, entry) {
            true => Attached::Before,
            false => Attached::Neighbour,
        }
    }

    /// Whether the entry of a slot leads to the table of the slot's window. The mapping keeps its place meanwhile.
    ///
    /// A slot that the mapping has a part of may lead to the table of another mapping. Tables differ in their windows, so
    /// the one that the file has for this window is this mapping's.
    pub fn is_attached(&self, slot: &Slot, entry: &Entry) -> bool {
        // Acquire: with who attached.
        let leads_to = |value| match M::Format::is_managed(slot.level, value) {
            true => Some(M::Format::table_frame(value)),
            false => None,
        };
        let Some(frame) = leads_to(entry.load(Ordering::Acquire)) else { return false };
        if slot.whole || Mutant::StrangersTableTaken.is_on() {
            return true;
        }
        let is_same = self.with_piece(pieces(&slot.window).0, |piece| {
            // Once more under the lock: both tables are alive at this moment, so one frame is one table.
            piece.find(&slot.window).is_some_and(|over| over.frame == frame)
                && leads_to(entry.load(Ordering::Acquire)) == Some(frame)
        });
        is_same.unwrap_or(false)
    }

    /// Counts an attachment out whose entry was cleared and whose TLBs were flushed. The last one takes the table away;
    /// returns whether this was the last.
    pub fn detach(&self, window: &Window) -> bool {
        let reaches = if window.level > self.leaf { self.detach_upper(window) } else { 1 };
        self.count_attachment(window.level, false, reaches);
        self.count_out(window)
    }

    /// How many mappings show a page through tables of the file, at whatever level they are attached.
    ///
    /// A number to show: mappings come and go meanwhile.
    pub fn viewers(&self, index: u64) -> u64 {
        let mut windows = [None; MOST_WINDOWS];
        self.with_piece(index / PIECE_PAGES, |piece| {
            let showing = piece.over().iter().filter(|over| over.window.entry_of(index).is_some());
            windows.iter_mut().zip(showing).for_each(|(window, over)| *window = Some(over.window));
        });
        let viewers = |window: &Window| {
            let attachments = |over: &Over| over.attachments;
            let found = self.with_piece(pieces(window).0, |piece| piece.find(window).map(attachments));
            let (tables, viewers) = self.above(window);
            found.flatten().unwrap_or(0).saturating_sub(tables) + viewers
        };
        windows.iter().flatten().map(viewers).sum()
    }

    /// The entries of a mapping that lead to tables of the file, in the order of their addresses.
    ///
    /// The mapping keeps its place meanwhile. The steps depend on the tables of the host that are there.
    pub fn attachments<'s>(
        &self,
        space: &'s M::Space,
        extent: &Extent,
    ) -> impl Iterator<Item = (Slot, &'s Entry)> + use<'s, '_, M, P> {
        let extent = *extent;
        let mut next = Some(extent.start);
        core::iter::from_fn(move || {
            while let Some(address) = next.filter(|address| *address < extent.end()) {
                let (found, behind) = self.look(space, &extent, address);
                next = behind;
                if let Found::Attached(slot, entry) = found {
                    return Some((slot, entry));
                }
            }
            None
        })
    }

    /// What a mapping has at an address, and from where on it may have something else.
    pub fn look<'s>(
        &self,
        space: &'s M::Space,
        extent: &Extent,
        address: VirtAddr,
    ) -> (Found<'s>, Option<VirtAddr>) {
        let Some(mut slot) = extent.highest_slot(address) else {
            return (Found::Host, extent.behind(address, None));
        };
        loop {
            let behind = extent.behind(address, Some(slot));
            let Some(entry) = space.find_entry(slot.address, slot.level) else {
                // The host has no table above: nothing is there up to its end.
                let above = slot.level.above().map(|level| Slot { level, ..slot });
                return (Found::Nothing, above.map_or(behind, |above| extent.behind(address, Some(above))));
            };
            // Acquire: with who attached, or installed a table.
            let value = entry.load(Ordering::Acquire);
            if !M::Format::is_present(value) {
                return (Found::Nothing, behind);
            }
            if M::Format::is_managed(slot.level, value) {
                let found = match self.is_attached(&slot, entry) {
                    true => Found::Attached(slot, entry),
                    false => Found::Nothing,
                };
                return (found, behind);
            }
            // The host's: what is below it.
            let is_table = !M::Format::is_leaf(slot.level, value);
            match slot.level.below().and_then(|level| extent.slot(address, level)).filter(|_| is_table) {
                Some(below) => slot = below,
                None => return (Found::Host, behind),
            }
        }
    }
}

/// What a mapping has at an address.
#[derive(Clone, Copy, Debug)]
pub enum Found<'s> {
    /// A table of the file, to which the entry of the slot leads.
    Attached(Slot, &'s Entry),
    /// Entries in tables of the host, if any.
    Host,
    /// Nothing.
    Nothing,
}
