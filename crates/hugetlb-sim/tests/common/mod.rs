//! The oracle: what files and mappings of huge pages are, without tables, reservations or locks.
//!
//! It knows pages by one word each. A file is the pages it has; a private mapping has copies besides.

use std::collections::BTreeMap;
use std::ops::Range;

/// 2 MiB pages in a 1 GiB slot.
pub const SLOT: u64 = 512;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protection {
    Nothing,
    Read,
    ReadWrite,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Value(u64),
    Segv,
    Bus,
}

/// All addresses and sizes are in huge pages.
#[derive(Clone, Debug)]
pub enum Operation {
    Map {
        process: usize,
        file: usize,
        start: u64,
        pages: u64,
        first: u64,
        shared: bool,
        reserve: bool,
        protection: Protection,
    },
    Unmap {
        process: usize,
        range: Range<u64>,
    },
    Protect {
        process: usize,
        range: Range<u64>,
        protection: Protection,
    },
    Discard {
        process: usize,
        range: Range<u64>,
    },
    Move {
        process: usize,
        from: u64,
        to: u64,
    },
    Fork {
        process: usize,
    },
    Exit {
        process: usize,
    },
    Truncate {
        file: usize,
        pages: u64,
    },
    Punch {
        file: usize,
        range: Range<u64>,
    },
    Allocate {
        file: usize,
        range: Range<u64>,
        keep_size: bool,
    },
    Load {
        process: usize,
        cpu: usize,
        page: u64,
    },
    Store {
        process: usize,
        cpu: usize,
        page: u64,
        value: u64,
    },
}

#[derive(Clone, Debug)]
pub struct MappingModel {
    pub file: usize,
    pub pages: u64,
    pub first: u64,
    pub shared: bool,
    pub protection: Protection,
    pub copies: BTreeMap<u64, u64>,
}

#[derive(Clone, Debug, Default)]
pub struct FileModel {
    pub size: u64,
    pub pages: BTreeMap<u64, u64>,
}

pub type ProcessModel = BTreeMap<u64, MappingModel>;

#[derive(Clone, Debug)]
pub struct Model {
    pub files: Vec<FileModel>,
    pub processes: Vec<ProcessModel>,
    /// What the last load or store gave.
    pub outcome: Option<Outcome>,
}

impl Model {
    pub fn new(files: usize) -> Model {
        Model {
            files: vec![FileModel::default(); files],
            processes: vec![ProcessModel::new()],
            outcome: None,
        }
    }

    pub fn is_free(&self, process: usize, range: Range<u64>) -> bool {
        self.processes[process]
            .range(..range.end)
            .next_back()
            .is_none_or(|(start, m)| start + m.pages <= range.start)
    }

    pub fn mapping_at(&self, process: usize, page: u64) -> Option<(u64, &MappingModel)> {
        let (start, mapping) = self.processes[process].range(..=page).next_back()?;
        (page < start + mapping.pages).then_some((*start, mapping))
    }

    /// Whether one mapping covers the range.
    pub fn is_inside(&self, process: usize, range: &Range<u64>) -> bool {
        !range.is_empty()
            && self.mapping_at(process, range.start).is_some_and(|(start, m)| range.end <= start + m.pages)
    }

    pub fn is_valid(&self, operation: &Operation) -> bool {
        let lives = |process: &usize| *process < self.processes.len();
        match operation {
            Operation::Map { process, start, pages, .. } => {
                lives(process) && self.is_free(*process, *start..start + pages)
            }
            Operation::Unmap { process, range }
            | Operation::Protect { process, range, .. }
            | Operation::Discard { process, range } => lives(process) && self.is_inside(*process, range),
            Operation::Move { process, from, to } => {
                lives(process)
                    && self.processes[*process]
                        .get(from)
                        .is_some_and(|m| self.is_free(*process, *to..to + m.pages))
            }
            Operation::Fork { process } => lives(process) && self.processes.len() < 5,
            Operation::Exit { process } => lives(process) && self.processes.len() > 1,
            Operation::Load { process, .. } | Operation::Store { process, .. } => lives(process),
            Operation::Truncate { .. } | Operation::Punch { .. } | Operation::Allocate { .. } => true,
        }
    }

    fn split(&mut self, process: usize, at: u64) {
        let mappings = &mut self.processes[process];
        if let Some((start, lower)) = mappings.range_mut(..at).next_back()
            && at < start + lower.pages
        {
            let kept = at - start;
            let mut upper = lower.clone();
            upper.pages -= kept;
            upper.first += kept;
            upper.copies = lower.copies.split_off(&upper.first);
            lower.pages = kept;
            mappings.insert(at, upper);
        }
    }

    fn isolate(&mut self, process: usize, range: &Range<u64>) {
        self.split(process, range.start);
        self.split(process, range.end);
    }

    fn forget(&mut self, file: usize, range: Range<u64>) {
        self.files[file].pages.retain(|index, _| !range.contains(index));
        for mapping in self.processes.iter_mut().flat_map(|process| process.values_mut()) {
            if mapping.file == file {
                mapping.copies.retain(|index, _| !range.contains(index));
            }
        }
    }

    fn access(&mut self, process: usize, page: u64, store: Option<u64>) -> Outcome {
        let Some((start, _)) = self.mapping_at(process, page) else { return Outcome::Segv };
        let mapping = self.processes[process].get_mut(&start).unwrap();
        let needed = if store.is_some() { Protection::ReadWrite } else { Protection::Read };
        if mapping.protection == Protection::Nothing
            || (needed == Protection::ReadWrite && mapping.protection != Protection::ReadWrite)
        {
            return Outcome::Segv;
        }
        let index = mapping.first + (page - start);
        let file = &mut self.files[mapping.file];
        if index >= file.size {
            return Outcome::Bus;
        }
        let word = if mapping.shared {
            file.pages.entry(index).or_insert(0)
        } else if let (None, None, Some(cached)) =
            (store, mapping.copies.get(&index), file.pages.get_mut(&index))
        {
            cached
        } else {
            let origin = file.pages.get(&index).copied().unwrap_or(0);
            mapping.copies.entry(index).or_insert(origin)
        };
        if let Some(value) = store {
            *word = value;
        }
        Outcome::Value(*word)
    }

    pub fn apply(&mut self, operation: &Operation) {
        self.outcome = None;
        match operation.clone() {
            Operation::Map { process, file, start, pages, first, shared, protection, .. } => {
                if protection == Protection::ReadWrite {
                    let size = &mut self.files[file].size;
                    *size = (*size).max(first + pages);
                }
                let copies = BTreeMap::new();
                let mapping = MappingModel { file, pages, first, shared, protection, copies };
                self.processes[process].insert(start, mapping);
            }
            Operation::Unmap { process, range } => {
                self.isolate(process, &range);
                self.processes[process].remove(&range.start);
            }
            Operation::Protect { process, range, protection } => {
                self.isolate(process, &range);
                self.processes[process].get_mut(&range.start).unwrap().protection = protection;
            }
            Operation::Discard { process, range } => {
                let (start, _) = self.mapping_at(process, range.start).unwrap();
                let mapping = self.processes[process].get_mut(&start).unwrap();
                let (from, to) = (range.start - start + mapping.first, range.end - start + mapping.first);
                mapping.copies.retain(|index, _| !(from..to).contains(index));
            }
            Operation::Move { process, from, to } => {
                let mapping = self.processes[process].remove(&from).unwrap();
                self.processes[process].insert(to, mapping);
            }
            Operation::Fork { process } => {
                let child = self.processes[process].clone();
                self.processes.push(child);
            }
            Operation::Exit { process } => drop(self.processes.swap_remove(process)),
            Operation::Truncate { file, pages } => {
                self.files[file].size = pages;
                self.forget(file, pages..u64::MAX);
            }
            Operation::Punch { file, range } => self.forget(file, range),
            Operation::Allocate { file, range, keep_size } => {
                for index in range.clone() {
                    self.files[file].pages.entry(index).or_insert(0);
                }
                if !keep_size {
                    let size = &mut self.files[file].size;
                    *size = (*size).max(range.end);
                }
            }
            Operation::Load { process, page, .. } => self.outcome = Some(self.access(process, page, None)),
            Operation::Store { process, page, value, .. } => {
                self.outcome = Some(self.access(process, page, Some(value)));
            }
        }
    }
}
