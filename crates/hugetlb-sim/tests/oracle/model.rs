//! The oracle: what files and mappings of huge pages are, without tables, frames or locks.
//!
//! It knows pages by one word each. A file is the pages it has and those it promised; a private mapping has copies besides,
//! which a fork gives to the child until one of them writes. What the pool can give is told from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use hugetlb::PageSize;

use crate::operation::{Operation, Outcome, Protection, SLOT};
use crate::supply::Supply;

/// A private copy; relatives hold one of the same number.
#[derive(Clone, Copy, Debug)]
pub struct Copy {
    number: u64,
    value: u64,
}

#[derive(Clone, Debug)]
pub struct MappingModel {
    /// Its age.
    number: u64,
    pub file: usize,
    pub pages: u64,
    pub first: u64,
    pub shared: bool,
    pub protection: Protection,
    copies: BTreeMap<u64, Copy>,
    /// It was promised its pages itself, and has used these up.
    promised: bool,
    used: BTreeSet<u64>,
    /// An owner took a copy away.
    robbed: bool,
}

#[derive(Clone, Debug)]
pub struct FileModel {
    pub page_size: PageSize,
    pub size: u64,
    pub pages: BTreeMap<u64, u64>,
    /// What was promised to shared mappings, or has been used.
    promised: BTreeSet<u64>,
}

impl FileModel {
    /// The pages of 2 MiB in a page of the file.
    pub fn unit(&self) -> u64 {
        self.page_size.bytes() / PageSize::Size2M.bytes()
    }

    /// The pages of the file that begin in a range.
    fn indices(&self, range: &Range<u64>) -> impl Iterator<Item = u64> + use<> {
        let unit = self.unit();
        (range.start.next_multiple_of(unit)..range.end).step_by(unit as usize)
    }

    fn is_aligned(&self, range: &Range<u64>) -> bool {
        range.start.is_multiple_of(self.unit()) && range.end.is_multiple_of(self.unit())
    }
}

pub type ProcessModel = BTreeMap<u64, MappingModel>;

#[derive(Clone, Debug)]
pub struct Model {
    /// Frames that the machine has, of 2 MiB.
    pub frames: u64,
    pub files: Vec<FileModel>,
    pub processes: Vec<ProcessModel>,
    /// Of copies and mappings.
    last_number: u64,
}

impl Model {
    pub fn new(frames: u64, files: &[PageSize]) -> Model {
        let file = |size: &PageSize| FileModel {
            page_size: *size,
            size: 0,
            pages: BTreeMap::new(),
            promised: BTreeSet::new(),
        };
        Model {
            frames,
            files: files.iter().map(file).collect(),
            processes: vec![ProcessModel::new()],
            last_number: 0,
        }
    }

    pub fn mapping_at(&self, process: usize, page: u64) -> Option<(u64, &MappingModel)> {
        let (start, mapping) = self.processes[process].range(..=page).next_back()?;
        (page < start + mapping.pages).then_some((*start, mapping))
    }

    fn is_free(&self, process: usize, range: Range<u64>) -> bool {
        let below = self.processes[process].range(..range.end).next_back();
        range.end < 500 * SLOT && below.is_none_or(|(start, mapping)| start + mapping.pages <= range.start)
    }

    /// Whether one mapping covers the range, which consists of its pages.
    fn is_inside(&self, process: usize, range: &Range<u64>) -> bool {
        !range.is_empty()
            && self.mapping_at(process, range.start).is_some_and(|(start, mapping)| {
                range.end <= start + mapping.pages && self.files[mapping.file].is_aligned(range)
            })
    }

    pub fn is_valid(&self, operation: &Operation) -> bool {
        let lives = |process: &usize| *process < self.processes.len();
        match operation {
            Operation::Map { process, file, start, pages, first, .. } => {
                let file = &self.files[*file];
                lives(process)
                    && file.is_aligned(&(*start..start + pages))
                    && file.is_aligned(&(*first..*first))
                    && self.is_free(*process, *start..start + pages)
            }
            Operation::Unmap { process, range }
            | Operation::Protect { process, range, .. }
            | Operation::Discard { process, range } => lives(process) && self.is_inside(*process, range),
            Operation::Move { process, from, to } => {
                lives(process)
                    && self.processes[*process].get(from).is_some_and(|mapping| {
                        self.files[mapping.file].is_aligned(&(*to..*to))
                            && self.is_free(*process, *to..to + mapping.pages)
                    })
            }
            Operation::Fork { process } => lives(process) && self.processes.len() < 5,
            Operation::Exit { process } => lives(process) && self.processes.len() > 1,
            Operation::Load { process, .. } | Operation::Store { process, .. } => lives(process),
            Operation::Truncate { file, pages } => self.files[*file].is_aligned(&(*pages..*pages)),
            Operation::Punch { .. }
            | Operation::Allocate { .. }
            | Operation::Resize { .. }
            | Operation::Overcommit { .. } => true,
        }
    }

    fn mappings(&self) -> impl Iterator<Item = &MappingModel> {
        self.processes.iter().flat_map(|process| process.values())
    }

    /// The pages of a size that are in use, and those that are promised.
    pub fn counts(&self, size: PageSize) -> (u64, u64) {
        let (mut used, mut promised) = (0, 0);
        for file in self.files.iter().filter(|file| file.page_size == size) {
            used += file.pages.len() as u64;
            promised += file.promised.iter().filter(|index| !file.pages.contains_key(index)).count() as u64;
        }
        let mut copies = BTreeSet::new();
        for mapping in self.mappings().filter(|mapping| self.files[mapping.file].page_size == size) {
            copies.extend(mapping.copies.values().map(|copy| copy.number));
            if mapping.promised {
                promised += mapping.pages / self.files[mapping.file].unit() - mapping.used.len() as u64;
            }
        }
        (used + copies.len() as u64, promised)
    }

    /// A number that nothing had before.
    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    fn split(&mut self, process: usize, at: u64) {
        let number = self.next_number();
        let mappings = &mut self.processes[process];
        if let Some((start, lower)) = mappings.range_mut(..at).next_back()
            && at < start + lower.pages
        {
            let kept = at - start;
            let mut upper = lower.clone();
            upper.number = number;
            upper.pages -= kept;
            upper.first += kept;
            upper.copies = lower.copies.split_off(&upper.first);
            upper.used = lower.used.split_off(&upper.first);
            lower.pages = kept;
            mappings.insert(at, upper);
        }
    }

    fn isolate(&mut self, process: usize, range: &Range<u64>) {
        self.split(process, range.start);
        self.split(process, range.end);
    }

    fn holders(&self, copy: Copy) -> usize {
        let copies = self.mappings().flat_map(|mapping| mapping.copies.values());
        copies.filter(|other| other.number == copy.number).count()
    }

    /// A private mapping gives its copies up; without surplus pages it is promised those again that it held alone.
    fn drop_copies(&mut self, process: usize, start: u64, range: Range<u64>, supply: &mut Supply) {
        let mapping = &self.processes[process][&start];
        let pool = supply.of(self.files[mapping.file].page_size);
        let renews = mapping.promised && !pool.has_surplus();
        let dropped: Vec<(u64, bool)> =
            mapping.copies.range(range).map(|(index, copy)| (*index, self.holders(*copy) == 1)).collect();
        let mapping = self.processes[process].get_mut(&start).unwrap();
        for (index, alone) in dropped {
            mapping.copies.remove(&index);
            if alone {
                pool.give();
            }
            if alone && renews {
                mapping.used.remove(&index);
            }
        }
    }

    /// The private mappings of a file give copies up, in the order of its list, first index and age: who comes last may hold
    /// alone what several had, or find the pool without surplus pages.
    fn drop_all_copies(&mut self, file: usize, range: &Range<u64>, supply: &mut Supply) {
        let mut losers: Vec<(u64, u64, usize, u64)> = Vec::new();
        for (process, mappings) in self.processes.iter().enumerate() {
            let private = mappings.iter().filter(|(_, mapping)| mapping.file == file && !mapping.shared);
            losers.extend(private.map(|(start, mapping)| (mapping.first, mapping.number, process, *start)));
        }
        losers.sort_unstable();
        for (.., process, start) in losers {
            self.drop_copies(process, start, range.clone(), supply);
        }
    }

    /// A page for an index of a file that has none.
    fn add_page(&mut self, file: usize, index: u64, supply: &mut Supply) -> bool {
        let file = &mut self.files[file];
        if !file.promised.contains(&index) && !supply.of(file.page_size).take() {
            return false;
        }
        file.promised.insert(index);
        file.pages.insert(index, 0);
        true
    }

    fn access(&mut self, process: usize, page: u64, store: Option<u64>, supply: &mut Supply) -> Outcome {
        let Some((start, mapping)) = self.mapping_at(process, page) else { return Outcome::Segv };
        let needed = if store.is_some() { Protection::ReadWrite } else { Protection::Read };
        if mapping.protection == Protection::Nothing
            || (needed == Protection::ReadWrite && mapping.protection != Protection::ReadWrite)
        {
            return Outcome::Segv;
        }
        let (file, shared) = (mapping.file, mapping.shared);
        let index = mapping.first + (page - start);
        let unit = self.files[file].unit();
        let index = index - index % unit;
        // As on Linux, a page that the end of the file lies in is behind it, and what was allocated there is reached.
        let is_there = self.files[file].pages.contains_key(&index) || mapping.copies.contains_key(&index);
        if index + unit > self.files[file].size && !is_there {
            return Outcome::Bus;
        }
        if shared {
            if !self.files[file].pages.contains_key(&index) && !self.add_page(file, index, supply) {
                return Outcome::Bus;
            }
            let word = self.files[file].pages.get_mut(&index).unwrap();
            *word = store.unwrap_or(*word);
            return Outcome::Value(*word);
        }
        self.private_access(process, start, index, store, supply)
    }

    fn private_access(
        &mut self,
        process: usize,
        start: u64,
        index: u64,
        store: Option<u64>,
        supply: &mut Supply,
    ) -> Outcome {
        let mapping = &self.processes[process][&start];
        let file = mapping.file;
        let copy = mapping.copies.get(&index).copied();
        let cached = self.files[file].pages.get(&index).copied();
        let alone = copy.is_some_and(|copy| self.holders(copy) == 1);
        let mut value = copy.map(|copy| copy.value).or(cached).unwrap_or(0);
        let mut number = copy.map(|copy| copy.number);
        if !alone && (store.is_some() || (copy.is_none() && cached.is_none())) {
            if copy.is_none() && cached.is_none() && mapping.robbed {
                return Outcome::Bus;
            }
            let promised = mapping.promised && !mapping.used.contains(&index);
            if promised || supply.of(self.files[file].page_size).take() {
                number = Some(self.next_number());
                if promised {
                    self.processes[process].get_mut(&start).unwrap().used.insert(index);
                }
            } else if let (Some(copy), true) = (copy, mapping.promised) {
                self.rob(copy, (process, start), index);
            } else {
                return Outcome::Bus;
            }
        }
        value = store.unwrap_or(value);
        if let Some(number) = number {
            let copies = &mut self.processes[process].get_mut(&start).unwrap().copies;
            copies.insert(index, Copy { number, value });
        }
        Outcome::Value(value)
    }

    /// The owner of a copy takes it away from those who were promised nothing.
    fn rob(&mut self, copy: Copy, owner: (usize, u64), index: u64) {
        for (process, mappings) in self.processes.iter_mut().enumerate() {
            for (start, mapping) in mappings.iter_mut() {
                let same = mapping.copies.get(&index).is_some_and(|other| other.number == copy.number);
                if same && (process, *start) != owner {
                    mapping.copies.remove(&index);
                    mapping.robbed = true;
                }
            }
        }
    }

    fn map(&mut self, operation: &Operation, supply: &mut Supply) -> Outcome {
        let Operation::Map { process, file, start, pages, first, shared, reserve, protection } =
            operation.clone()
        else {
            return Outcome::Done;
        };
        let range = first..first + pages;
        let model = &mut self.files[file];
        let pool = supply.of(model.page_size);
        if reserve && shared {
            let missing: Vec<u64> =
                model.indices(&range).filter(|index| !model.promised.contains(index)).collect();
            if !pool.promise(missing.len() as u64) {
                return Outcome::NoMemory;
            }
            model.promised.extend(missing);
        } else if reserve && !pool.promise(pages / model.unit()) {
            return Outcome::NoMemory;
        }
        if protection == Protection::ReadWrite {
            model.size = model.size.max(range.end);
        }
        let mapping = MappingModel {
            number: self.next_number(),
            file,
            pages,
            first,
            shared,
            protection,
            copies: BTreeMap::new(),
            promised: reserve && !shared,
            used: BTreeSet::new(),
            robbed: false,
        };
        self.processes[process].insert(start, mapping);
        Outcome::Done
    }

    fn punch(&mut self, file: usize, range: &Range<u64>, supply: &mut Supply) {
        let unit = self.files[file].unit();
        let whole = range.start.next_multiple_of(unit)..range.end - range.end % unit;
        if !whole.is_empty() {
            self.drop_all_copies(file, &whole, supply);
        }
        let file = &mut self.files[file];
        let gone: Vec<u64> = file.pages.keys().copied().filter(|index| whole.contains(index)).collect();
        for index in gone {
            file.pages.remove(&index);
            file.promised.remove(&index);
        }
        // Of a page that lies in the range in part that part is zeroed; the word is its first.
        for (index, word) in &mut file.pages {
            if range.contains(index) {
                *word = 0;
            }
        }
    }

    fn allocate(&mut self, file: usize, range: &Range<u64>, keep_size: bool, supply: &mut Supply) -> Outcome {
        let unit = self.files[file].unit();
        let from = range.start - range.start % unit;
        for index in (from..range.end).step_by(unit as usize) {
            if !self.files[file].pages.contains_key(&index) && !self.add_page(file, index, supply) {
                return Outcome::NoSpace;
            }
        }
        if !keep_size {
            let size = &mut self.files[file].size;
            *size = (*size).max(range.end);
        }
        Outcome::Done
    }

    /// Does the operation with what the pools can give.
    pub fn apply(&mut self, operation: &Operation, supply: &mut Supply) -> Outcome {
        match operation.clone() {
            Operation::Map { .. } => return self.map(operation, supply),
            Operation::Unmap { process, range } => {
                self.isolate(process, &range);
                self.processes[process].remove(&range.start);
            }
            Operation::Protect { process, range, protection } => {
                self.isolate(process, &range);
                self.processes[process].get_mut(&range.start).unwrap().protection = protection;
            }
            Operation::Discard { process, range } => {
                let (start, mapping) = self.mapping_at(process, range.start).unwrap();
                if !mapping.shared {
                    let first = range.start - start + mapping.first;
                    let indices = first..first + (range.end - range.start);
                    self.drop_copies(process, start, indices, supply);
                }
            }
            Operation::Move { process, from, to } => {
                let mapping = self.processes[process].remove(&from).unwrap();
                self.processes[process].insert(to, mapping);
            }
            Operation::Fork { process } => {
                let mut child = self.processes[process].clone();
                for mapping in child.values_mut() {
                    mapping.number = self.next_number();
                    mapping.promised = false;
                    mapping.used.clear();
                }
                self.processes.push(child);
            }
            Operation::Exit { process } => drop(self.processes.swap_remove(process)),
            Operation::Truncate { file, pages } => {
                let range = pages..u64::MAX;
                self.drop_all_copies(file, &range, supply);
                let file = &mut self.files[file];
                file.size = pages;
                file.pages.retain(|index, _| *index < pages);
                file.promised.retain(|index| *index < pages);
            }
            Operation::Punch { file, range } => self.punch(file, &range, supply),
            Operation::Allocate { file, range, keep_size } => {
                return self.allocate(file, &range, keep_size, supply);
            }
            Operation::Load { process, page, .. } => return self.access(process, page, None, supply),
            Operation::Store { process, page, value, .. } => {
                return self.access(process, page, Some(value), supply);
            }
            Operation::Resize { size, pages } => {
                return Outcome::Persistent(supply.of(size).resized(pages));
            }
            Operation::Overcommit { .. } => {}
        }
        Outcome::Done
    }
}
