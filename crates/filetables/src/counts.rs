//! Numbers of tables, to show.

use crate::addr::Level;
use crate::sync::{Ordering, Tally};

/// How many tables a file has, of all levels, and how many entries of processes lead to them.
#[derive(Default, Debug)]
pub struct Counts {
    pub(crate) tables: Tally,
    pub(crate) attachments: Tally,
    pub(crate) reached: Tally,
}

impl Counts {
    /// Tables, of 4 KiB each.
    pub fn tables(&self) -> u64 {
        // Relaxed: a number to show.
        self.tables.load(Ordering::Relaxed)
    }

    /// Entries of processes that lead to tables.
    pub fn attachments(&self) -> u64 {
        // Relaxed: a number to show.
        self.attachments.load(Ordering::Relaxed)
    }

    /// Tables that processes would have of their own in the place of these: each table once for each attachment that leads
    /// to it, directly or by a table above.
    pub fn reached(&self) -> u64 {
        // Relaxed: a number to show.
        self.reached.load(Ordering::Relaxed)
    }
}

/// Levels whose tables files can have.
const LEVELS: usize = 3;

/// The sums of many files, by level.
// Lines of their own: all CPUs that attach store to them.
#[repr(align(64))]
#[derive(Default, Debug)]
pub struct Totals {
    pub(crate) all: Counts,
    tables: [Tally; LEVELS],
    attachments: [Tally; LEVELS],
}

/// The tally of a level, if files can have tables of it.
fn of(tallies: &[Tally; LEVELS], level: Level) -> Option<&Tally> {
    tallies.get((level as usize).checked_sub(Level::Pte as usize)?)
}

impl Totals {
    /// Of all levels.
    pub fn all(&self) -> &Counts {
        &self.all
    }

    /// Tables of a level; none of [`Level::Pgd`].
    pub fn tables_of(&self, level: Level) -> u64 {
        // Relaxed, here and below: numbers to show.
        of(&self.tables, level).map_or(0, |tally| tally.load(Ordering::Relaxed))
    }

    /// Entries of processes that lead to tables of a level.
    pub fn attachments_of(&self, level: Level) -> u64 {
        of(&self.attachments, level).map_or(0, |tally| tally.load(Ordering::Relaxed))
    }

    /// Adds to the tables of a level; to subtract one is to add the largest number.
    pub(crate) fn add_tables(&self, level: Level, change: u64) {
        self.all.tables.fetch_add(change, Ordering::Relaxed);
        of(&self.tables, level).map(|tally| tally.fetch_add(change, Ordering::Relaxed));
    }

    /// As [`Totals::add_tables`], for attachments.
    pub(crate) fn add_attachments(&self, level: Level, change: u64) {
        self.all.attachments.fetch_add(change, Ordering::Relaxed);
        of(&self.attachments, level).map(|tally| tally.fetch_add(change, Ordering::Relaxed));
    }
}
