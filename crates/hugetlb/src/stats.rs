//! Counters of page-table sharing and of faults.

use alloc::vec::Vec;

use crate::addr::{PageIndex, TABLE_SIZE};
use crate::sync::{Line, Ordering, Tally};

/// Why a 1 GiB slot of a mapping has private tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Fallback {
    /// The mapping is `MAP_PRIVATE`.
    Private,
    /// The mapping does not cover the slot.
    NotCovered,
    /// The host has a table in the slot.
    Occupied,
    /// Something else in the slot needed a table there, or another mapping has a shared one.
    Neighbour,
    /// Too many windows lie over the same pages of the file.
    Crowded,
}

impl Fallback {
    /// All reasons, in the order of their declaration.
    pub const ALL: [Fallback; 5] =
        [Fallback::Private, Fallback::NotCovered, Fallback::Occupied, Fallback::Neighbour, Fallback::Crowded];

    /// The name of the reason's counter.
    #[must_use]
    pub const fn counter_name(self) -> &'static str {
        match self {
            Fallback::Private => "fallback_private",
            Fallback::NotCovered => "fallback_not_covered",
            Fallback::Occupied => "fallback_occupied",
            Fallback::Neighbour => "fallback_neighbour",
            Fallback::Crowded => "fallback_crowded",
        }
    }
}

/// Declares what is counted: a name and what it means give the field of the snapshot, the live counter, and the entry
/// in the listing.
macro_rules! counted {
    ($($(#[$meaning:meta])* $name:ident,)*) => {
        /// What happened with shared tables, for `/sys/kernel/mm/hugepages/sharing/`.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct SharingStatistics {
            $($(#[$meaning])* pub $name: u64,)*
            /// Faults, ever.
            pub faults: u64,
            /// Faults that took a page from the pool, ever.
            pub faults_allocated: u64,
            /// Faults that copied a page, ever.
            pub faults_copied: u64,
            /// Slots or faults that came to private tables, ever, in the order of [`Fallback::ALL`].
            pub fallbacks: [u64; Fallback::ALL.len()],
        }

        impl SharingStatistics {
            /// All of them by name, derived ones included: a host that lists these shows every counter there is.
            pub fn list(&self) -> impl Iterator<Item = (&'static str, u64)> {
                let counted = [$((stringify!($name), self.$name),)*];
                let faults = [
                    ("faults", self.faults),
                    ("faults_allocated", self.faults_allocated),
                    ("faults_copied", self.faults_copied),
                ];
                let derived = [("table_bytes", self.table_bytes()), ("saved_bytes", self.saved_bytes())];
                let fallbacks =
                    Fallback::ALL.map(|reason| (reason.counter_name(), self.fallbacks[reason as usize]));
                counted.into_iter().chain(faults).chain(derived).chain(fallbacks)
            }
        }

        #[derive(Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
            faults: Faults,
            fallbacks: [Counter; Fallback::ALL.len()],
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> SharingStatistics {
                SharingStatistics {
                    $($name: self.$name.get(),)*
                    faults: self.faults.sum(|faults| &faults.all),
                    faults_allocated: self.faults.sum(|faults| &faults.allocated),
                    faults_copied: self.faults.sum(|faults| &faults.copied),
                    fallbacks: Fallback::ALL.map(|reason| self.fallbacks[reason as usize].get()),
                }
            }
        }
    };
}

counted! {
    /// Tables of the library that are in use.
    tables,
    /// Entries of processes that lead to them.
    attachments,
    /// Tables that processes would have of their own in the place of these: each once for each attachment that leads to it.
    reached,
    /// Slots that were attached to a table that was there already, ever.
    shares,
    /// Slots that gave up a table that others kept, ever.
    unshares,
}

/// Faults are counted in as many lines as a file has fault mutexes, so that faults on different pages have different ones.
const FAULT_LINES: usize = 64;

/// Counts of faults, on the heap: they are larger than a small stack should have to bear.
struct Faults(Vec<Line<FaultCounters>>);

/// What is counted of the faults of a line.
#[derive(Default)]
pub(crate) struct FaultCounters {
    pub(crate) all: Counter,
    pub(crate) allocated: Counter,
    pub(crate) copied: Counter,
}

impl Default for Faults {
    fn default() -> Faults {
        Faults((0..FAULT_LINES).map(|_| Line::default()).collect())
    }
}

impl Faults {
    fn sum(&self, of: impl Fn(&FaultCounters) -> &Counter) -> u64 {
        self.0.iter().map(|line| of(&line.0).get()).sum()
    }
}

impl SharingStatistics {
    /// How often slots or faults came to private tables for that reason, ever.
    #[must_use]
    pub fn fallbacks(&self, reason: Fallback) -> u64 {
        self.fallbacks[reason as usize]
    }

    /// Bytes of shared tables, each counted once: for `PageTables` in `/proc/meminfo`.
    #[must_use]
    pub fn table_bytes(&self) -> u64 {
        self.tables * TABLE_SIZE
    }

    /// Bytes that private tables in the place of the shared ones would take more.
    #[must_use]
    pub fn saved_bytes(&self) -> u64 {
        self.reached.saturating_sub(self.tables) * TABLE_SIZE
    }
}

/// A counter that nothing is ordered by.
#[derive(Default)]
pub(crate) struct Counter(Tally);

impl Counter {
    pub(crate) fn add(&self, amount: u64) {
        // Nothing takes no line from other CPUs.
        if amount == 0 {
            return;
        }
        // Relaxed: a statistic, nothing is concluded from its order.
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    pub(crate) fn subtract(&self, amount: u64) {
        // Relaxed: as `add`.
        self.0.fetch_sub(amount, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        // Relaxed: as `add`.
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    /// The counters of faults on the page of an index.
    pub(crate) fn fault(&self, index: PageIndex) -> &FaultCounters {
        &self.faults.0[index.0 as usize % FAULT_LINES].0
    }

    pub(crate) fn fall_back(&self, reason: Fallback, slots: u64) {
        self.fallbacks[reason as usize].add(slots);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listing_names_every_counter_once() {
        let counters = Counters::default();
        counters.tables.add(2);
        counters.attachments.add(5);
        counters.reached.add(5);
        counters.fall_back(Fallback::Occupied, 3);
        let statistics = counters.snapshot();
        let listed: std::vec::Vec<_> = statistics.list().collect();
        let names: std::collections::BTreeSet<_> = listed.iter().map(|(name, _)| *name).collect();
        assert_eq!(names.len(), listed.len());
        for expected in
            [("tables", 2), ("attachments", 5), ("saved_bytes", 3 * 4096), ("fallback_occupied", 3)]
        {
            assert!(listed.contains(&expected), "{expected:?} of {listed:?}");
        }
        // The order of `ALL` is what `as usize` counts on.
        assert!(Fallback::ALL.iter().enumerate().all(|(index, reason)| *reason as usize == index));
    }
}
