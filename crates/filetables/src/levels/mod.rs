//! How tables come and go: those of leaves here, those above in `upper`. Each kind makes and counts the other.
//!
//! # A table is made
//!
//! with the first page of its window, by who attaches first. It is noted in the pieces that it lies over, that of its first
//! page last, and then filled word by word, each under the lock of its piece. From the note on, every page that comes or
//! goes is written by who brings or takes it. So the table misses nothing, however the filling and they cross.
//!
//! # A table goes
//!
//! with its last attachment. An attachment is counted in the section that writes the entry leading to the table. It is
//! counted out after the entry was cleared and the TLBs were flushed. So who counts the last one out, and takes the
//! notes away under the locks, has the table alone: no entry leads to it, nobody finds it, and nobody writes it.

mod upper;

use crate::addr::{Level, PhysAddr};
use crate::error::OutOfMemory;
use crate::frame::Frame;
use crate::machine::Machine;
use crate::mutant::Mutant;
use crate::piece::{Over, PIECE_PAGES};
use crate::stripe::Need;
use crate::tables::FileTables;
use crate::window::Window;

/// What came of an attempt to make a table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Made {
    /// It is there, and counts its maker as an attachment.
    Now,
    /// Another was first.
    Before,
    Crowded,
}

/// A table that is counted out is there, or a caller counted wrongly.
pub(crate) fn missing(what: &str) -> bool {
    debug_assert!(false, "{what}");
    false
}

/// The pieces that a window's first and last page are in.
pub(crate) fn pieces(window: &Window) -> (u64, u64) {
    (window.first / PIECE_PAGES, window.first.saturating_add(window.pages - 1) / PIECE_PAGES)
}

impl<M: Machine, P: Frame + Clone> FileTables<M, P> {
    /// Makes the table of a window, which counts its maker as an attachment.
    pub(crate) fn make(&self, window: &Window) -> Result<Made, OutOfMemory> {
        if self.is_there(window) && !Mutant::TableMadeTwice.is_on() {
            return Ok(Made::Before);
        }
        let frame = self.machine.allocate_table().ok_or(OutOfMemory)?;
        let made = if window.level > self.leaf {
            self.add_upper(window, frame)
        } else {
            self.add_leaf(&Over { window: *window, frame, attachments: 1 })
        };
        if matches!(made, Ok(Made::Now)) {
            self.count_table(window.level, true);
            if window.level > self.leaf {
                self.fill_upper(window);
            }
        } else {
            self.machine.retire_table(frame);
        }
        made
    }

    fn is_there(&self, window: &Window) -> bool {
        match window.level > self.leaf {
            true => self.has_upper(window),
            false => {
                let found = self.with_piece(pieces(window).0, |piece| piece.find(window).is_some());
                found.unwrap_or(false)
            }
        }
    }

    fn add_leaf(&self, over: &Over) -> Result<Made, OutOfMemory> {
        let (home, last) = pieces(&over.window);
        if last != home {
            let noted = self.change_piece_with(last, Need::Note, |piece| {
                let is_crowded = piece.is_crowded_for(&over.window);
                if !is_crowded {
                    piece.note(Over { attachments: 0, ..*over });
                }
                !is_crowded
            });
            if !noted? {
                return Ok(Made::Crowded);
            }
        }
        let made = self.change_piece_with(home, Need::Note, |piece| {
            if piece.find(&over.window).is_some() && !Mutant::TableMadeTwice.is_on() {
                Made::Before
            } else if piece.is_crowded_for(&over.window) {
                Made::Crowded
            } else {
                piece.note(*over);
                Made::Now
            }
        });
        if !matches!(made, Ok(Made::Now)) {
            if last != home {
                self.forget(last, over);
            }
            return made;
        }
        for number in home..=last {
            let mut from = Some(over.window.first.max(number * PIECE_PAGES));
            while let Some(at) = from {
                let next = self.with_piece(number, |piece| {
                    // The end is looked at under the lock: see `set_end`.
                    let end = over.window.indices().end.min(self.end());
                    if at < end { piece.fill(&*self.machine, over, at, end) } else { None }
                });
                from = next.flatten();
            }
        }
        made
    }

    /// Takes the note of a table out of a piece, with the entries for the piece's pages: nobody is attached.
    fn forget(&self, number: u64, over: &Over) {
        self.change_piece(number, |piece| piece.forget(&*self.machine, over));
    }

    pub(crate) fn count_out(&self, window: &Window) -> bool {
        if window.level > self.leaf {
            return self.count_out_upper(window);
        }
        let (home, last) = pieces(window);
        let counted = self.change_piece(home, |piece| {
            let over = piece.find_mut(window)?;
            over.attachments -= 1;
            let over = *over;
            if over.attachments == 0 {
                piece.forget(&*self.machine, &over);
            }
            Some(over)
        });
        let Some(over) = counted.flatten() else { return missing("no such table") };
        if over.attachments > 0 {
            return false;
        }
        if last != home {
            self.forget(last, &over);
        }
        self.retire(window.level, over.frame);
        true
    }

    pub(crate) fn retire(&self, level: Level, frame: PhysAddr) {
        self.count_table(level, false);
        self.machine.retire_table(frame);
    }

    /// Calls `write` with a table of leaves; counts an attachment if it could. `None` when there is no such table.
    pub(crate) fn count_in_leaf<E>(
        &self,
        window: &Window,
        write: &mut impl FnMut(PhysAddr) -> Result<(), E>,
    ) -> Option<Result<(), E>> {
        self.change_piece(pieces(window).0, |piece| {
            let over = piece.find_mut(window)?;
            let written = write(over.frame);
            if written.is_ok() && !Mutant::AttachmentNotCounted.is_on() {
                over.attachments += 1;
            }
            Some(written)
        })?
    }
}
