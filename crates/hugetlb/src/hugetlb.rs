//! The handle to the whole subsystem: pools, protocol, fault mutexes, counters.

use core::fmt;

use crate::addr::PageSize;
use crate::machine::Machine;
use crate::pool::Pool;
use crate::protocol::ProtocolKind;
use crate::stats::{Counters, SharingStatistics};
use crate::sync::{Arc, Ordering, Tally};

/// How the subsystem is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// The page size of `MAP_HUGETLB` without a size, `/proc/meminfo`'s `Hugepagesize` (`default_hugepagesz=`).
    pub default_size: PageSize,
    /// How page tables are shared (`hugetlb_sharing=`).
    pub protocol: ProtocolKind,
}

impl Default for Config {
    fn default() -> Config {
        Config { default_size: PageSize::Size2M, protocol: ProtocolKind::default() }
    }
}

/// The huge-page subsystem of a machine.
pub struct Hugetlb<M: Machine> {
    machine: Arc<M>,
    config: Config,
    pools: [Arc<Pool<M>>; 2],
    counters: Counters,
    /// What the tables of all files are counted by.
    tables: Arc<filetables::Totals>,
    next_id: Tally,
}

impl<M: Machine> fmt::Debug for Hugetlb<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hugetlb")
            .field("config", &self.config)
            .field("pools", &self.pools)
            .field("sharing", &self.sharing())
            .finish_non_exhaustive()
    }
}

impl<M: Machine> Hugetlb<M> {
    /// A subsystem with empty pools.
    pub fn new(machine: M, config: Config) -> Arc<Hugetlb<M>> {
        let machine = Arc::new(machine);
        Arc::new(Hugetlb {
            pools: PageSize::ALL.map(|size| Arc::new(Pool::new(machine.clone(), size))),
            machine,
            config,
            counters: Counters::default(),
            tables: Arc::default(),
            next_id: Tally::new(1),
        })
    }

    /// The machine it runs on.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    pub(crate) fn shared_machine(&self) -> &Arc<M> {
        &self.machine
    }

    /// The pool of a page size.
    pub fn pool(&self, size: PageSize) -> &Arc<Pool<M>> {
        &self.pools[size.slot()]
    }

    /// The page size of `MAP_HUGETLB` without a size.
    pub fn default_size(&self) -> PageSize {
        self.config.default_size
    }

    /// How page tables are shared.
    pub fn protocol_kind(&self) -> ProtocolKind {
        self.config.protocol
    }

    pub(crate) fn pools(&self) -> &[Arc<Pool<M>>] {
        &self.pools
    }

    /// `/proc/meminfo`'s `Hugetlb`: the bytes of all pools.
    pub fn total_bytes(&self) -> u64 {
        self.pools.iter().map(|pool| pool.statistics().total * pool.page_size().bytes()).sum()
    }

    /// Counters of table sharing.
    pub fn sharing(&self) -> SharingStatistics {
        let mut counted = self.counters.snapshot();
        counted.tables += self.tables.all().tables();
        counted.attachments += self.tables.all().attachments();
        counted.reached += self.tables.all().reached();
        counted
    }

    pub(crate) fn table_counts(&self) -> Arc<filetables::Totals> {
        self.tables.clone()
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// An identity that is never used again. Ids grow: the younger of two has the larger one.
    pub(crate) fn next_id(&self) -> u64 {
        // Relaxed: only that each value is given out once matters; lists order by it under their own locks.
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }
}
