//! Counters of page-table sharing and of faults.

use crate::addr::TABLE_SIZE;
use crate::sync::{AtomicU64, Ordering};

/// Why a 1 GiB slot of a mapping has private tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fallback {
    /// The mapping is `MAP_PRIVATE`.
    Private,
    /// The mapping does not cover the slot.
    NotCovered,
    /// The host has a table in the slot.
    Occupied,
}

/// What happened with shared tables, for `/sys/kernel/mm/hugepages/sharing/`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SharingStatistics {
    /// Tables of the library that are in use.
    pub tables: u64,
    /// PUD entries that lead to them.
    pub attachments: u64,
    /// Slots that adopted another mapping's table, ever.
    pub shares: u64,
    /// Slots that gave up a table that others kept, ever.
    pub unshares: u64,
    /// Slots with private tables because the mapping is private, ever.
    pub fallback_private: u64,
    /// Slots with private tables because the mapping does not cover them, ever.
    pub fallback_not_covered: u64,
    /// Faults that found the host's table in a slot that could be shared, ever.
    pub fallback_occupied: u64,
    /// Faults, ever.
    pub faults: u64,
    /// Faults that took a page from the pool, ever.
    pub faults_allocated: u64,
    /// Faults that copied a page, ever.
    pub faults_copied: u64,
}

impl SharingStatistics {
    /// Bytes of shared tables, each counted once: for `PageTables` in `/proc/meminfo`.
    pub fn table_bytes(&self) -> u64 {
        self.tables * TABLE_SIZE
    }

    /// Bytes that private tables in the place of the shared ones would take more.
    pub fn saved_bytes(&self) -> u64 {
        self.attachments.saturating_sub(self.tables) * TABLE_SIZE
    }
}

/// A counter that nothing is ordered by.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, amount: u64) {
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

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) tables: Counter,
    pub(crate) attachments: Counter,
    pub(crate) shares: Counter,
    pub(crate) unshares: Counter,
    fallbacks: [Counter; 3],
    pub(crate) faults: Counter,
    pub(crate) faults_allocated: Counter,
    pub(crate) faults_copied: Counter,
}

impl Counters {
    pub(crate) fn fall_back(&self, reason: Fallback, slots: u64) {
        self.fallbacks[reason as usize].add(slots);
    }

    pub(crate) fn snapshot(&self) -> SharingStatistics {
        SharingStatistics {
            tables: self.tables.get(),
            attachments: self.attachments.get(),
            shares: self.shares.get(),
            unshares: self.unshares.get(),
            fallback_private: self.fallbacks[Fallback::Private as usize].get(),
            fallback_not_covered: self.fallbacks[Fallback::NotCovered as usize].get(),
            fallback_occupied: self.fallbacks[Fallback::Occupied as usize].get(),
            faults: self.faults.get(),
            faults_allocated: self.faults_allocated.get(),
            faults_copied: self.faults_copied.get(),
        }
    }
}
