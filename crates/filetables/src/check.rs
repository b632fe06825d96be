//! Invariant 1, to be looked at by tests while no operation is under way: a table equals the content.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::addr::PhysAddr;
use crate::format::Format;
use crate::frame::Frame;
use crate::machine::Machine;
use crate::piece::{Over, PIECE_PAGES};
use crate::sync::Ordering;
use crate::tables::FileTables;
use crate::window::Window;

/// What a check found.
#[derive(Debug)]
pub enum Seen<'p, P> {
    /// A table, and how many entries it counts to lead to it.
    Table(PhysAddr, u64),
    /// A page, with its index.
    Page(u64, &'p P),
}

impl<M: Machine, P: Frame + Clone> FileTables<M, P> {
    /// All tables of leaves, as the pieces of their first pages note them.
    fn leaves(&self) -> Vec<Over> {
        let mut tables = Vec::new();
        for stripe in self.stripes.get().map_or(&[][..], |stripes| &stripes[..]) {
            stripe.lock().pieces.find_from(&0, |number, piece| {
                let home = |over: &&Over| over.window.first / PIECE_PAGES == *number;
                tables.extend(piece.over().iter().filter(home).copied());
                None::<()>
            });
        }
        tables
    }

    /// The windows, frames and attachments of all tables.
    pub fn tables(&self) -> Vec<(Window, PhysAddr, u64)> {
        let mut tables: Vec<_> =
            self.leaves().iter().map(|over| (over.window, over.frame, over.attachments)).collect();
        self.each_upper(|window, frame, attachments| tables.push((*window, frame, attachments)));
        tables
    }

    /// The table of a window, and how many entries lead to it.
    pub fn table(&self, window: &Window) -> Option<(PhysAddr, u64)> {
        self.tables().into_iter().find(|(other, ..)| other == window).map(|(_, frame, count)| (frame, count))
    }

    /// Looks at all that the hardware can reach through the entry of a slot that a mapping is attached by, while everything else
    /// goes on: each part is looked at under its lock. `seen` gets each table, and answers whether to look into it, and each
    /// page.
    ///
    /// # Errors
    ///
    /// Which entry leads where it should not.
    pub fn check_slot(
        &self,
        window: &Window,
        frame: PhysAddr,
        seen: &mut dyn FnMut(Seen<'_, P>) -> Result<bool, String>,
    ) -> Result<(), String> {
        let Some(attachments) = self.attachments_of(window, frame) else {
            return Err(format!("invariant 3: an entry leads to {frame:?}, which is no table of {window:?}"));
        };
        if !seen(Seen::Table(frame, attachments))? {
            return Ok(());
        }
        if window.level == self.leaf {
            return self.check_leaves(window, frame, seen);
        }
        for (number, entry) in self.machine.table(frame).iter().enumerate() {
            // Acquire: with who linked the child.
            let value = entry.load(Ordering::Acquire);
            if value.0 == 0 {
                continue;
            }
            let child =
                self.child(window, number as u64).filter(|_| M::Format::is_managed(window.level, value));
            let Some(child) = child else {
                return Err(format!("invariant 1: entry {number} of the table {frame:?} is {value:?}"));
            };
            self.check_slot(&child, M::Format::table_frame(value), seen)?;
        }
        Ok(())
    }

    /// How many entries lead to the table of a window, if it is this one.
    fn attachments_of(&self, window: &Window, frame: PhysAddr) -> Option<u64> {
        if window.level > self.leaf {
            return self.upper_attachments(window, frame);
        }
        self.with_piece(window.first / PIECE_PAGES, |piece| {
            piece.find(window).filter(|over| over.frame == frame).map(|over| over.attachments)
        })?
    }

    fn check_leaves(
        &self,
        window: &Window,
        frame: PhysAddr,
        seen: &mut dyn FnMut(Seen<'_, P>) -> Result<bool, String>,
    ) -> Result<(), String> {
        for (number, entry) in self.machine.table(frame).iter().enumerate() {
            // Acquire: as in `check_slot`. A first look without the lock: most entries of most tables are empty.
            if entry.load(Ordering::Acquire).0 == 0 {
                continue;
            }
            let within = number.checked_sub(usize::from(window.entry)).map(|within| within as u64);
            let index = within.filter(|within| *within < window.pages).map(|within| window.first + within);
            // Under the lock of the piece: what a leaf leads to cannot leave the content before it was compared.
            let mut compare = |page: Option<&P>| {
                let value = entry.load(Ordering::Acquire);
                if value.0 == 0 {
                    return Ok(());
                }
                let found = M::Format::is_leaf(window.level, value)
                    .then(|| M::Format::leaf_frame(window.level, value));
                match (index, page) {
                    (Some(index), Some(page)) if found == Some(page.frame()) => {
                        seen(Seen::Page(index, page)).map(|_| ())
                    }
                    _ => {
                        let wanted = page.map(|page| page.frame());
                        Err(format!(
                            "invariant 1: entry {number} of the table {frame:?} is {value:?}, the page {wanted:?}"
                        ))
                    }
                }
            };
            let compared = index
                .and_then(|index| self.with_piece(index / PIECE_PAGES, |piece| compare(piece.get(index))));
            compared.unwrap_or_else(|| compare(None))?;
        }
        Ok(())
    }

    /// Compares each table with the content: inside its window it says what the content says up to the end, outside it says
    /// nothing, and nothing of pages that are not to be shown yet. A table above leads to the tables of its windows.
    ///
    /// # Errors
    ///
    /// What is different.
    pub fn check(&self) -> Result<(), String> {
        let tables = self.tables();
        for (window, frame, _) in &tables {
            for (number, entry) in self.machine.table(*frame).iter().enumerate() {
                // Relaxed: nothing else runs.
                let value = entry.load(Ordering::Relaxed);
                let (shown, wanted) = if window.level > self.leaf {
                    let child = self.child(window, number as u64);
                    let known = tables.iter().find(|(other, ..)| Some(*other) == child);
                    let shown = M::Format::is_managed(window.level, value);
                    // A child without pages may be missing.
                    let shown = shown.then(|| M::Format::table_frame(value));
                    (shown, shown.and(known.map(|(_, frame, _)| *frame)))
                } else {
                    let within = number.checked_sub(usize::from(window.entry)).map(|within| within as u64);
                    let index = within.filter(|within| *within < window.pages).map(|at| window.first + at);
                    let page = index.filter(|index| *index < self.end()).and_then(|index| self.get(index));
                    let page = page.filter(|page| page.is_shown());
                    let shown = M::Format::is_leaf(window.level, value);
                    (shown.then(|| M::Format::leaf_frame(window.level, value)), page.map(|page| page.frame()))
                };
                if shown != wanted || (shown.is_none() && M::Format::is_present(value)) {
                    return Err(format!(
                        "invariant 1: {window:?}, entry {number}: the table says {value:?}, the content {wanted:?}"
                    ));
                }
            }
        }
        Ok(())
    }
}
