//! Numbers of tables, to show.

use crate::addr::Level;
use crate::sync::{Ordering, Tally};

/// Levels whose tables files can have.
const LEVELS: usize = 3;

/// How many tables there are, of all levels, and how many entries of processes lead to them.
#[derive(Default, Debug)]
pub struct Counts {
    tables: [Tally; LEVELS],
    attachments: [Tally; LEVELS],
    pub(crate) reached: Tally,
}

/// The tally of a level, if files can have tables of it.
fn of(tallies: &[Tally; LEVELS], level: Level) -> Option<&Tally> {
    tallies.get((level as usize).checked_sub(Level::Pte as usize)?)
}

fn sum(tallies: &[Tally; LEVELS]) -> u64 {
    // Relaxed: a number to show.
    tallies.iter().fold(0, |sum, tally| sum.wrapping_add(tally.load(Ordering::Relaxed)))
}

impl Counts {
    /// Tables, of 4 KiB each.
    pub fn tables(&self) -> u64 {
        sum(&self.tables)
    }

    /// Tables of a level; none of [`Level::Pgd`].
    pub fn tables_of(&self, level: Level) -> u64 {
        // Relaxed, here and below: a number to show.
        of(&self.tables, level).map_or(0, |tally| tally.load(Ordering::Relaxed))
    }

    /// Entries of processes that lead to tables.
    pub fn attachments(&self) -> u64 {
        sum(&self.attachments)
    }

    /// Entries of processes that lead to tables of a level.
    pub fn attachments_of(&self, level: Level) -> u64 {
        of(&self.attachments, level).map_or(0, |tally| tally.load(Ordering::Relaxed))
    }

    /// Adds to the tables of a level; to subtract one is to add the largest number.
    pub(crate) fn add_tables(&self, level: Level, change: u64) {
        if let Some(tally) = of(&self.tables, level) {
            tally.fetch_add(change, Ordering::Relaxed);
        }
    }

    /// As [`Counts::add_tables`], for attachments.
    pub(crate) fn add_attachments(&self, level: Level, change: u64) {
        if let Some(tally) = of(&self.attachments, level) {
            tally.fetch_add(change, Ordering::Relaxed);
        }
    }

    /// Tables that processes would have of their own in the place of these: each table once for each attachment that leads
    /// to it, directly or by a table above.
    pub fn reached(&self) -> u64 {
        // Relaxed: a number to show.
        self.reached.load(Ordering::Relaxed)
    }
}
