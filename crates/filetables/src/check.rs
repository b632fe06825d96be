//! Invariant 1, to be looked at by tests while no operation is under way: a table equals the content.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::addr::PhysAddr;
use crate::format::Format;
use crate::machine::Machine;
use crate::piece::Over;
use crate::sync::Ordering;
use crate::tables::{FileTables, Frame};
use crate::window::Window;

impl<M: Machine, P: Frame + Clone> FileTables<M, P> {
    /// All tables of leaves, as the pieces of their first pages note them.
    fn leaves(&self) -> Vec<Over> {
        let mut tables = Vec::new();
        for stripe in self.stripes.get().map_or(&[][..], |stripes| &stripes[..]) {
            for (number, piece) in stripe.lock().pieces.from(0) {
                let home = |over: &&Over| over.window.first / crate::piece::PIECE_PAGES == *number;
                tables.extend(piece.over().iter().filter(home).copied());
            }
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

    /// Compares each table with the content: inside its window it says what the content says up to the end, outside it says
    /// nothing. A table above leads to the tables of its windows.
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
