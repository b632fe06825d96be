//! Random histories of a file and its mappings, at each level of leaves, beside what a map of pages says.
//!
//! A mapping shows a page or nothing, never another page: nothing only where a table is missing. A fault makes that good.

use std::collections::BTreeMap;
use std::vec::Vec;

use super::*;

/// Pages that histories are about: in three tables of leaves and at their borders.
const PAGES: u64 = 3 * 512;

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % end
    }

    /// Often near the border of a table.
    fn index(&mut self) -> u64 {
        match self.below(2) {
            0 => self.below(PAGES),
            _ => (512 * self.below(3) + [0, 1, 255, 510, 511][self.below(5) as usize]).min(PAGES - 1),
        }
    }
}

struct History<'f> {
    machine: &'f TestMachine,
    file: &'f File,
    random: Random,
    /// What the file has, by index.
    pages: BTreeMap<u64, Page>,
    end: u64,
    mappings: Vec<Mapping<'f>>,
    next: u64,
}

impl History<'_> {
    fn expected(&self, index: u64) -> Option<PhysAddr> {
        self.pages.get(&index).filter(|_| index < self.end).map(|page| page.0)
    }

    fn step(&mut self) {
        match self.random.below(10) {
            0..4 => self.insert(),
            4 => self.remove(),
            5 => self.change_end(),
            6 => self.map(),
            7 if !self.mappings.is_empty() => {
                let gone = self.random.below(self.mappings.len() as u64);
                self.mappings.swap_remove(gone as usize);
            }
            _ => self.fault(),
        }
        self.look();
    }

    fn insert(&mut self) {
        let index = self.random.index();
        // No two pages are the same, whatever has gone.
        self.next += 1;
        let new = page(self.file.leaf(), self.next);
        let inserted = self.file.insert_anywhere(index, new);
        match self.pages.get(&index) {
            Some(_) => assert_eq!(inserted, Err(InsertError::Occupied)),
            None => {
                assert_eq!(inserted, Ok(()));
                self.pages.insert(index, new);
            }
        }
    }

    fn remove(&mut self) {
        let from = self.random.index();
        let to = (from + 1 + self.random.below(REMOVED_AT_A_TIME)).min(PAGES);
        self.remove_range(from, to);
    }

    fn remove_range(&mut self, from: u64, to: u64) {
        let mut taken = Vec::new();
        let removed = self.file.remove(from..to, |index, page| taken.push((index, page.0)));
        let there: Vec<_> = self.pages.range(from..to).map(|(index, page)| (*index, page.0)).collect();
        assert_eq!(taken, there);
        assert_eq!(removed.pages, there.len() as u64);
        self.pages.retain(|index, _| !(from..to).contains(index));
    }

    fn change_end(&mut self) {
        self.end = if self.random.below(3) == 0 { self.random.index() } else { PAGES };
        self.file.set_end(self.end);
        // As its owner has to. What comes behind the end later is not shown.
        for from in (self.end..PAGES).step_by(REMOVED_AT_A_TIME as usize) {
            self.remove_range(from, PAGES.min(from + REMOVED_AT_A_TIME));
        }
    }

    /// Maps a part of the file: mostly where tables can be those of others, else wherever.
    fn map(&mut self) {
        if self.mappings.len() == 12 {
            return;
        }
        let leaf = self.file.leaf();
        if leaf < Level::Pud && self.random.below(3) == 0 {
            // All that a table above can show.
            let start = (leaf.span() << 18) * (1 + self.random.below(3));
            return self.mappings.push(Mapping::new(self.machine, self.file, start, 0, 512 * 512));
        }
        let first = [0, 0, 512, self.random.index()][self.random.below(4) as usize];
        let pages = (1 + self.random.index()).min(PAGES - first);
        let table = leaf.span() << 9;
        let phase = match self.random.below(4) {
            0 => self.random.below(512),
            _ => first % 512,
        };
        let start = table * (8 + self.random.below(8)) + phase * leaf.span();
        self.mappings.push(Mapping::new(self.machine, self.file, start, first, pages));
    }

    fn fault(&mut self) {
        if self.mappings.is_empty() {
            return;
        }
        let which = self.random.below(self.mappings.len() as u64) as usize;
        let mapping = &self.mappings[which];
        let index = mapping.extent.first + self.random.below(reach(mapping));
        let expected = self.expected(index);
        if expected.is_none() {
            return;
        }
        match mapping.fault(index) {
            // Then the host has a table of its own.
            Attached::Crowded | Attached::Occupied => {}
            _ => assert_eq!(mapping.sees(index), expected, "a fault on page {index} has shown nothing"),
        }
    }

    fn look(&mut self) {
        let index = self.random.index();
        assert_eq!(self.file.get(index).map(|page| page.0), self.pages.get(&index).map(|page| page.0));
        assert_eq!(self.file.len(), self.pages.len() as u64);
        let next = self.pages.range(index..).next().map(|(index, _)| *index);
        assert_eq!(self.file.next(index..PAGES), next);
        for which in 0..self.mappings.len() {
            for _ in 0..4 {
                let mapping = &self.mappings[which];
                let index = mapping.extent.first + self.random.below(reach(mapping));
                let seen = mapping.sees(index);
                assert!(seen.is_none() || seen == self.expected(index), "page {index} shows {seen:?}");
            }
        }
    }
}

/// Pages of a mapping that the file may have.
fn reach(mapping: &Mapping) -> u64 {
    mapping.extent.pages.min(PAGES - mapping.extent.first)
}

fn histories(leaf: Level) {
    for seed in 1..=40 {
        let machine = TestMachine::new(512);
        let file = file(&machine, leaf, PAGES);
        let mut history = History {
            machine: &machine,
            file: &file,
            random: Random(seed),
            pages: BTreeMap::new(),
            end: PAGES,
            mappings: Vec::new(),
            next: 0,
        };
        for step in 0..400 {
            history.step();
            if step % 100 == 99 {
                file.check().unwrap();
            }
        }
        drop(history);
        assert_eq!((counts(&file), machine.free_tables()), ((0, 0), 512), "{leaf:?}, seed {seed}");
    }
}

#[test]
fn base_pages() {
    histories(Level::Pte);
}

#[test]
fn huge_pages() {
    histories(Level::Pmd);
}

#[test]
fn gigantic_pages() {
    histories(Level::Pud);
}
