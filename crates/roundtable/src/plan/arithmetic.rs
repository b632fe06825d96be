//! The page tables of processes that all map one memory, counted exactly.

use serde::Serialize;

use crate::audit::geometry::{Geometry, LEVELS, Tables};

/// A way to map the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// Base pages of 4 KiB.
    Base,
    /// Base pages, tables owned by the file.
    BaseFileOwned,
    /// Pages of 2 MiB, each process with tables of its own.
    Huge,
    /// Pages of 2 MiB, whole slots of 1 GiB shared as Linux does where addresses, lengths and flags let it.
    HugeShared,
    /// Pages of 2 MiB, tables owned by the file.
    FileOwned,
    /// Pages of 1 GiB.
    Gigantic,
}

/// All ways, from the dearest to the cheapest for large memory.
pub const WAYS: [Way; 6] =
    [Way::Base, Way::BaseFileOwned, Way::Huge, Way::HugeShared, Way::FileOwned, Way::Gigantic];

impl Way {
    /// Bytes of a page.
    pub fn page_size(self) -> u64 {
        match self {
            Way::Base | Way::BaseFileOwned => 4 << 10,
            Way::Gigantic => 1 << 30,
            _ => 2 << 20,
        }
    }

    /// In words.
    pub fn describe(self) -> &'static str {
        match self {
            Way::Base => "4 KiB pages",
            Way::BaseFileOwned => "4 KiB pages, tables owned by the file",
            Way::Huge => "2 MiB pages, not shared",
            Way::HugeShared => "2 MiB pages, shared by Linux",
            Way::FileOwned => "2 MiB pages, tables owned by the file",
            Way::Gigantic => "1 GiB pages",
        }
    }
}

/// What one way costs. Everything is exact for memory that starts at a multiple of 512 GiB and is touched
/// wholly by all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// The way.
    pub way: Way,
    /// Pages of the memory.
    pub pages: u64,
    /// Tables of all processes together; `None` when the number does not fit.
    pub tables: Option<Tables>,
    /// Their bytes.
    pub bytes: Option<u64>,
    /// Faults that one more process takes to touch all of the memory when it is there already.
    pub faults: u64,
}

/// Counts for memory of so many bytes, mapped by so many processes.
pub fn lines(size: u64, processes: u64) -> Vec<Line> {
    WAYS.into_iter().map(|way| line(way, size, processes)).collect()
}

fn line(way: Way, size: u64, processes: u64) -> Line {
    let geometry = Geometry::four_kib();
    let pages = size.div_ceil(way.page_size());
    let leaf = geometry.leaf_level(way.page_size());
    let covering = |level: usize| size.div_ceil(1 << geometry.table_shift(level));
    let slots = covering(1);
    let whole = size / geometry.slot();
    let once = u64::from(processes > 0);
    let mut tables = Some(Tables::default());
    for level in leaf..LEVELS {
        let count = match (way, level) {
            // Whole slots once for all; the rest of a slot that is not filled in each process.
            (Way::HugeShared, 1) | (Way::BaseFileOwned, 0 | 1) => {
                let whole = size >> geometry.table_shift(level);
                let rest = processes.checked_mul(covering(level) - whole);
                rest.and_then(|rest| rest.checked_add(whole * once))
            }
            (Way::FileOwned, 1) => Some(slots * once),
            _ => processes.checked_mul(covering(level)),
        };
        tables = tables.zip(count).map(|(mut tables, count)| {
            *tables.level(level) = count;
            tables
        });
    }
    let faults = match way {
        // Its first fault in a slot finds the table, and with it all pages of the slot.
        Way::HugeShared => whole + (size - whole * geometry.slot()).div_ceil(geometry.huge()),
        Way::FileOwned => 0,
        // Those at the end, where it has a table of its own.
        Way::BaseFileOwned => (size % geometry.huge()).div_ceil(geometry.page()),
        _ => pages,
    };
    let bytes = tables.and_then(|tables| {
        tables.pte.checked_add(tables.pmd)?.checked_add(tables.pud)?.checked_mul(geometry.page())
    });
    Line { way, pages, tables, bytes, faults }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::tables::Counter;
    use proptest::prelude::*;

    fn of(way: Way, size: u64, processes: u64) -> Line {
        lines(size, processes).into_iter().find(|line| line.way == way).unwrap()
    }

    #[test]
    fn the_design_documents_figures() {
        const TIB: u64 = 1 << 40;
        let pmd = |way| of(way, TIB, 10_000).tables.unwrap().pmd * 4096;
        assert_eq!(pmd(Way::Huge), 10_000 * (4 << 20));
        assert_eq!(pmd(Way::Huge) >> 30, 39);
        assert_eq!((pmd(Way::HugeShared), pmd(Way::FileOwned), pmd(Way::Gigantic)), (4 << 20, 4 << 20, 0));
        assert_eq!((of(Way::Huge, 1 << 30, 10_000).tables.unwrap().pmd * 4096) >> 20, 39);
        // 2 GiB of base-page tables for each process, and what stands above them.
        let base = of(Way::Base, TIB, 10_000);
        assert_eq!(base.tables, Some(Tables { pte: 5_242_880_000, pmd: 10_240_000, pud: 20_000 }));
        assert_eq!(base.bytes, Some(5_253_140_000 * 4096));
    }

    #[test]
    fn faults_are_those_that_the_kernel_was_measured_to_take() {
        let faults: Vec<u64> = lines(1 << 30, 2).iter().map(|line| line.faults).collect();
        assert_eq!(faults, [262_144, 0, 512, 1, 0, 1]);
        assert_eq!(of(Way::HugeShared, 3 << 29, 2).faults, 1 + 256);
    }

    #[test]
    fn a_part_of_a_slot_is_not_shared_by_linux() {
        let tables = |way| of(way, 3 << 29, 100).tables.unwrap().pmd;
        assert_eq!((tables(Way::Huge), tables(Way::HugeShared), tables(Way::FileOwned)), (200, 101, 2));
    }

    #[test]
    fn tables_of_base_pages_belong_to_the_file_but_at_its_end() {
        // What docs/ordinary-memory.md measured: 512 PTE tables and the PMD table over them.
        let exact = of(Way::BaseFileOwned, 1 << 30, 1000);
        assert_eq!(exact.tables, Some(Tables { pte: 512, pmd: 1, pud: 1000 }));
        let more = of(Way::BaseFileOwned, (1 << 30) + (1 << 20), 1000);
        assert_eq!(more.tables, Some(Tables { pte: 1512, pmd: 1001, pud: 1000 }));
        assert_eq!(more.faults, 256);
    }

    #[test]
    fn what_does_not_fit_is_not_told() {
        assert_eq!(of(Way::Base, u64::MAX, u64::MAX).tables, None);
        assert_eq!(of(Way::Base, 0, 10).bytes, Some(0));
        assert_eq!(of(Way::Base, 1 << 40, 0).bytes, Some(0));
    }

    proptest! {
        /// One process counts as the audit's counter does, and no way is dearer than the one before it... of its kind.
        #[test]
        fn the_audits_counter_agrees(size in 1u64..1 << 42, processes in 1u64..20_000) {
            for way in [Way::Base, Way::Huge, Way::Gigantic] {
                let geometry = Geometry::four_kib();
                let mut counter = Counter::new(geometry, 0);
                counter.add(0, size.next_multiple_of(way.page_size()), geometry.leaf_level(way.page_size()), None);
                let one = counter.finish().0;
                let all = of(way, size, processes).tables.unwrap();
                // Rounding up to whole pages may begin another table only above the level of the pages' own.
                prop_assert_eq!(all, Tables { pte: one.pte * processes, pmd: one.pmd * processes, pud: one.pud * processes });
            }
            let bytes = |way| of(way, size, processes).bytes.unwrap();
            prop_assert!(bytes(Way::Huge) <= bytes(Way::Base));
            prop_assert!(bytes(Way::BaseFileOwned) <= bytes(Way::Base));
            prop_assert!(bytes(Way::FileOwned) <= bytes(Way::BaseFileOwned));
            prop_assert!(bytes(Way::HugeShared) <= bytes(Way::Huge));
            prop_assert!(bytes(Way::FileOwned) <= bytes(Way::HugeShared));
        }
    }
}
