//! Numbers of tables, to show.

use crate::sync::{Ordering, Tally};

/// How many tables there are, of all levels, and how many entries of processes lead to them.
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
