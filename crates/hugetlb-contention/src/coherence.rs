//! Which CPU has which cache line.

use std::collections::{BTreeMap, HashMap};

/// Bytes of a cache line.
pub const LINE: usize = 64;

/// A load or a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// Where.
    pub address: usize,
    /// Whether it stores.
    pub write: bool,
}

/// Who has a line: one CPU that has stored to it, or all that have loaded it since.
#[derive(Default)]
struct Line {
    /// By number.
    holders: u128,
    /// The holder is the only one, and has stored.
    modified: bool,
    /// Who stored to it since the count began.
    writers: u128,
    /// How often a CPU had to take it.
    moves: u64,
}

/// The caches of all CPUs.
#[derive(Default)]
pub struct Caches {
    lines: HashMap<usize, Line>,
}

/// What was counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Count {
    /// Lines that more than one CPU stored to.
    pub hot: u64,
    /// How often a CPU had to take a line that another had, in any state that forbade the access.
    pub moves: u64,
    /// The same of the line that moved most.
    pub most: u64,
}

impl Caches {
    /// A CPU accesses memory. Returns whether it had to take the line from another.
    pub fn access(&mut self, cpu: usize, access: Access) -> bool {
        let line = self.lines.entry(access.address / LINE).or_default();
        let me = 1 << cpu;
        let others = line.holders & !me != 0;
        let moves = if access.write { others } else { others && line.modified };
        if access.write {
            (line.holders, line.modified) = (me, true);
            line.writers |= me;
        } else {
            line.modified &= !others;
            line.holders |= me;
        }
        line.moves += u64::from(moves);
        moves
    }

    /// Begins the count: who has which line stays.
    pub fn begin(&mut self) {
        for line in self.lines.values_mut() {
            (line.writers, line.moves) = (0, 0);
        }
    }

    /// What was counted since [`Caches::begin`].
    pub fn count(&self) -> Count {
        let mut count = Count::default();
        for line in self.lines.values() {
            count.hot += u64::from(line.writers.count_ones() > 1);
            count.moves += line.moves;
            count.most = count.most.max(line.moves);
        }
        count
    }

    /// The lines that more than one CPU stored to, with how often they moved; those that moved most first.
    pub fn hot(&self) -> Vec<(usize, u64)> {
        let hot = self.lines.iter().filter(|(_, line)| line.writers.count_ones() > 1);
        let by_moves: BTreeMap<_, _> =
            hot.map(|(at, line)| ((u64::MAX - line.moves, *at), line.moves)).collect();
        by_moves.into_iter().map(|((_, at), moves)| (at * LINE, moves)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn load(address: usize) -> Access {
        Access { address, write: false }
    }

    const fn store(address: usize) -> Access {
        Access { address, write: true }
    }

    #[test]
    fn loads_of_what_nobody_stores_to_move_nothing() {
        let mut caches = Caches::default();
        caches.begin();
        for _ in 0..3 {
            for cpu in 0..128 {
                assert!(!caches.access(cpu, load(64)));
            }
        }
        assert_eq!(caches.count(), Count::default());
    }

    #[test]
    fn a_store_takes_the_line_from_all_and_the_next_load_takes_it_back() {
        let mut caches = Caches::default();
        assert!(!caches.access(0, store(100)));
        assert!(!caches.access(0, load(64)));
        assert!(caches.access(1, load(127)));
        assert!(!caches.access(0, load(64)), "two have it to load");
        assert!(caches.access(0, store(64)), "the other has to forget it");
        assert!(!caches.access(0, store(64)));
        assert!(caches.access(1, store(65)));
        assert_eq!(caches.count(), Count { hot: 1, moves: 3, most: 3 });
        assert_eq!(caches.hot(), [(64, 3)]);
    }

    #[test]
    fn neighbours_in_one_line_disturb_each_other_and_in_two_do_not() {
        let mut caches = Caches::default();
        caches.begin();
        for _ in 0..5 {
            caches.access(0, store(0));
            caches.access(1, store(8));
            caches.access(2, store(64));
        }
        assert_eq!(caches.count(), Count { hot: 1, moves: 9, most: 9 });
        caches.begin();
        caches.access(2, store(70));
        assert_eq!(caches.count(), Count::default());
    }
}
