//! Counts the page tables that a process's populated ranges need, and which of them one mapping alone needs.

use super::geometry::{Geometry, LEVELS, Tables};

/// Counts tables over ranges that come in the order of their addresses.
///
/// A table is there as soon as one page below it is; it is exclusive to a mapping when no other mapping has a
/// page below it.
pub struct Counter {
    geometry: Geometry,
    open: [Option<Open>; LEVELS],
    /// All tables so far.
    total: Tables,
    /// The exclusive ones of each mapping that is watched.
    exclusive: Vec<Tables>,
}

/// The last table of a level: the next range may lie in it too.
#[derive(Clone, Copy)]
struct Open {
    key: u64,
    /// The one watched mapping below it; `None` when there is another beside it.
    user: Option<usize>,
}

impl Counter {
    /// A counter that tells the tables of so many mappings apart.
    pub fn new(geometry: Geometry, watched: usize) -> Counter {
        Counter {
            geometry,
            open: [None; LEVELS],
            total: Tables::default(),
            exclusive: vec![Tables::default(); watched],
        }
    }

    /// Adds a populated range whose entries lie in tables of the level `leaf`, of a watched mapping or of any other.
    pub fn add(&mut self, start: u64, end: u64, leaf: usize, user: Option<usize>) {
        if start >= end {
            return;
        }
        for level in leaf..LEVELS {
            let shift = self.geometry.table_shift(level);
            let (first, last) = (start >> shift, (end - 1) >> shift);
            let continued = self.open[level].is_some_and(|open| open.key == first);
            if let Some(open) = self.open[level].as_mut().filter(|_| continued)
                && open.user != user
            {
                open.user = None;
            }
            let fresh = last - first + u64::from(!continued);
            *self.total.level(level) += fresh;
            if last > first || !continued {
                self.close(level);
                // All but the last are closed at once: nothing can come below them any more.
                if let Some(user) = user {
                    *self.exclusive[user].level(level) += fresh - 1;
                }
                self.open[level] = Some(Open { key: last, user });
            }
        }
    }

    fn close(&mut self, level: usize) {
        if let Some(Open { user: Some(user), .. }) = self.open[level].take() {
            *self.exclusive[user].level(level) += 1;
        }
    }

    /// All tables, and the exclusive ones of each watched mapping.
    pub fn finish(mut self) -> (Tables, Vec<Tables>) {
        (0..LEVELS).for_each(|level| self.close(level));
        (self.total, self.exclusive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_gibibyte_of_huge_pages_needs_one_table() {
        let mut counter = Counter::new(Geometry::four_kib(), 1);
        counter.add(4 * GIB, 5 * GIB, 1, Some(0));
        let (total, exclusive) = counter.finish();
        assert_eq!(total, Tables { pte: 0, pmd: 1, pud: 1 });
        assert_eq!(exclusive, [total]);
    }

    #[test]
    fn a_neighbour_in_the_same_slot_makes_the_table_common() {
        let mut counter = Counter::new(Geometry::four_kib(), 1);
        counter.add(4 * GIB, 5 * GIB + (2 << 20), 1, Some(0));
        counter.add(5 * GIB + (4 << 20), 5 * GIB + (4 << 20) + 4096, 0, None);
        let (total, exclusive) = counter.finish();
        assert_eq!(total, Tables { pte: 1, pmd: 2, pud: 1 });
        assert_eq!(exclusive, [Tables { pte: 0, pmd: 1, pud: 0 }]);
    }

    #[test]
    fn base_pages_need_a_table_for_each_two_mebibytes() {
        let mut counter = Counter::new(Geometry::four_kib(), 1);
        counter.add(0, 256 << 20, 0, Some(0));
        assert_eq!(counter.finish().0, Tables { pte: 128, pmd: 1, pud: 1 });
    }

    proptest! {
        /// The same as a set of table numbers, filled page by page.
        #[test]
        fn counts_as_sets_do(steps in prop::collection::vec((0u64..3 << 9, 1u64..2 << 9, 0usize..3), 0..12)) {
            // In units of 1 MiB, so that ranges end inside of tables of every level but the highest.
            let geometry = Geometry::four_kib();
            let mut counter = Counter::new(geometry, 2);
            let mut sets: [BTreeMap<u64, BTreeSet<usize>>; LEVELS] = Default::default();
            let mut at = 500u64 << 30;
            for (gap, length, user) in steps {
                let (start, end) = (at + (gap << 20), at + ((gap + length) << 20));
                at = end;
                counter.add(start, end, 0, (user < 2).then_some(user));
                for (level, set) in sets.iter_mut().enumerate() {
                    for key in start >> geometry.table_shift(level)..=(end - 1) >> geometry.table_shift(level) {
                        set.entry(key).or_default().insert(user);
                    }
                }
            }
            let (total, exclusive) = counter.finish();
            for (level, set) in sets.iter().enumerate() {
                let mut total = total;
                prop_assert_eq!(*total.level(level), set.len() as u64);
                for (user, mine) in exclusive.iter().enumerate() {
                    let alone = set.values().filter(|users| users.len() == 1 && users.contains(&user)).count();
                    let mut mine = *mine;
                    prop_assert_eq!(*mine.level(level), alone as u64);
                }
            }
        }
    }
}
