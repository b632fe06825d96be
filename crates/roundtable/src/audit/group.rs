//! Groups what was seen by file, and within a file by shape: mappings alike in address, offset, access and flags.
//!
//! Ten thousand forked processes have one shape, so memory and time go with the shapes and not with the processes.

use std::collections::{BTreeMap, HashMap};

use super::collect::{Census, File};
use super::files::FileId;
use super::geometry::{Geometry, Tables, scaled};
use super::maps::{Access, Flags};
use super::probe::Probe;

/// A file and all its mappings.
#[derive(Clone, Debug)]
pub struct Group {
    /// Which file.
    pub id: FileId,
    /// Its name and its page size.
    pub file: File,
    /// Bytes from its start to the end of what is mapped.
    pub size: u64,
    /// The processes that map it, in order.
    pub pids: Vec<i32>,
    /// Its mappings.
    pub shapes: Vec<Shape>,
}

/// Mappings that are alike.
#[derive(Clone, Debug)]
pub struct Shape {
    /// First address.
    pub start: u64,
    /// Address behind the last.
    pub end: u64,
    /// Place in the file of the first byte.
    pub offset: u64,
    /// What may be done there.
    pub access: Access,
    /// The flags that the kernel compares.
    pub flags: Flags,
    /// The flags as they are: of userfaultfd too.
    pub all_flags: Flags,
    /// How many mappings there are of this shape.
    pub members: u64,
    /// How many of them were looked into.
    pub probed: u64,
    /// A process that was looked into.
    pub witness: Option<i32>,
    /// For each slot how many of the probed have a page there.
    pub populated: Vec<u32>,
    /// Pages that are there, of the probed mapping that has most.
    pub most_pages: u64,
    /// Private copies of pages that are there, of the probed mapping that has most.
    pub most_private: u64,
    /// Whether the flags were read, and not taken from the protection.
    pub has_flags: bool,
    /// For each slot one of these: not all that are alike have touched the same parts.
    pub witnesses: Vec<Option<i32>>,
    /// Tables that only these mappings need, of the probed together.
    pub exclusive: Tables,
    /// Of the probed, those whose process has mapped all its huge pages by faults of its own.
    pub filled_itself: u64,
}

impl Shape {
    /// The number of the slot that an index of `populated` stands for.
    pub fn slot_start(&self, index: usize, geometry: Geometry) -> u64 {
        (self.start / geometry.slot() + index as u64) * geometry.slot()
    }

    /// Whether the mapping covers all of this slot.
    pub fn fills(&self, index: usize, geometry: Geometry) -> bool {
        let start = self.slot_start(index, geometry);
        self.start <= start && start + geometry.slot() <= self.end
    }

    /// How many of all members have a table for this slot.
    pub fn tables(&self, index: usize) -> u64 {
        scaled(self.populated[index].into(), self.members, self.probed)
    }

    /// Tables that only these mappings need, of all members together, if none is shared.
    pub fn exclusive(&self) -> Tables {
        self.exclusive.scaled(self.members, self.probed)
    }

    /// The part of the file that lies in a slot.
    pub fn file_range(&self, index: usize, geometry: Geometry) -> (u64, u64) {
        let start = self.slot_start(index, geometry).max(self.start);
        let end = (self.slot_start(index, geometry) + geometry.slot()).min(self.end);
        (self.offset + (start - self.start), self.offset + (end - self.start))
    }
}

/// What mappings of one shape have in common before anybody has looked into them.
type Key = (u64, u64, u64, Access);

#[derive(Default)]
struct Building {
    pids: Vec<i32>,
    /// By flags; those without are of mappings that could not share anyway.
    shapes: HashMap<Key, BTreeMap<Option<Flags>, Shape>>,
    unprobed: HashMap<Key, u64>,
}

/// Makes groups of a census and of what looking into processes has shown; `None` stands for processes that were not
/// looked into.
pub fn groups(census: &Census, probes: &HashMap<i32, Option<Probe>>, geometry: Geometry) -> Vec<Group> {
    let mut building: BTreeMap<FileId, Building> = BTreeMap::new();
    for process in &census.processes {
        match probes.get(&process.pid) {
            Some(Some(probe)) => {
                for probed in &probe.mappings {
                    let mapping = &probed.mapping;
                    let group = building.entry(mapping.file).or_default();
                    group.pids.push(process.pid);
                    let key = (mapping.start, mapping.end, mapping.offset, mapping.access);
                    let shapes = group.shapes.entry(key).or_default();
                    let shape = shapes
                        .entry(probed.flags.clone())
                        .or_insert_with(|| empty(key, probed.flags.as_ref(), geometry));
                    let any = probed.populated.iter().any(|&populated| populated);
                    shape.members += 1;
                    shape.probed += 1;
                    shape.witness.get_or_insert(process.pid);
                    shape.exclusive += probed.exclusive;
                    shape.most_pages = shape.most_pages.max(probed.pages);
                    shape.most_private = shape.most_private.max(probed.private_pages);
                    shape.filled_itself += u64::from(probe.filled_itself && any);
                    for (slot, _) in probed.populated.iter().enumerate().filter(|(_, populated)| **populated)
                    {
                        shape.populated[slot] += 1;
                        shape.witnesses[slot].get_or_insert(process.pid);
                    }
                }
            }
            Some(None) | None => {
                for mapping in &process.mappings {
                    let group = building.entry(mapping.file).or_default();
                    group.pids.push(process.pid);
                    let key = (mapping.start, mapping.end, mapping.offset, mapping.access);
                    *group.unprobed.entry(key).or_default() += 1;
                }
            }
        }
    }
    building
        .into_iter()
        .filter_map(|(id, group)| finish(id, census.files.get(&id)?, group, geometry))
        .collect()
}

fn empty(key: Key, flags: Option<&Flags>, geometry: Geometry) -> Shape {
    let (start, end, offset, access) = key;
    let all_flags = flags.cloned().unwrap_or_else(|| Flags::of(access));
    let slots = (end - 1) / geometry.slot() - start / geometry.slot() + 1;
    Shape {
        start,
        end,
        offset,
        access,
        flags: all_flags.compared(),
        all_flags,
        members: 0,
        probed: 0,
        witness: None,
        populated: vec![0; slots as usize],
        most_pages: 0,
        most_private: 0,
        has_flags: flags.is_some(),
        witnesses: vec![None; slots as usize],
        exclusive: Tables::default(),
        filled_itself: 0,
    }
}

fn finish(id: FileId, file: &File, mut group: Building, geometry: Geometry) -> Option<Group> {
    for (key, count) in std::mem::take(&mut group.unprobed) {
        let shapes = group.shapes.entry(key).or_default();
        // Those that nobody looked into are taken to be as most of those alike are.
        match shapes.values_mut().max_by_key(|shape| shape.members) {
            Some(shape) => shape.members += count,
            None => {
                shapes.insert(None, Shape { members: count, ..empty(key, None, geometry) });
            }
        }
    }
    let mut shapes: Vec<Shape> = group.shapes.into_values().flat_map(BTreeMap::into_values).collect();
    shapes.sort_by(|a, b| b.members.cmp(&a.members).then((a.start, &a.flags).cmp(&(b.start, &b.flags))));
    assume_as_the_others(&mut shapes, geometry);
    let size = shapes.iter().map(|shape| shape.offset + (shape.end - shape.start)).max()?;
    group.pids.sort_unstable();
    group.pids.dedup();
    Some(Group { id, file: file.clone(), size, pids: group.pids, shapes })
}

/// Shapes of which no member was looked into are taken to have tables where most slots of the others have
/// one; their flags are those of the others with the same access.
fn assume_as_the_others(shapes: &mut [Shape], geometry: Geometry) {
    let (mut tables, mut slots) = (0, 0);
    for shape in shapes.iter().filter(|shape| shape.probed > 0) {
        slots += shape.populated.len() as u64 * shape.probed;
        tables += shape.populated.iter().map(|&count| u64::from(count)).sum::<u64>();
    }
    let known: Vec<(Access, Flags, Flags)> = shapes
        .iter()
        .filter(|shape| shape.probed > 0)
        .map(|shape| (shape.access, shape.flags.clone(), shape.all_flags.clone()))
        .collect();
    for shape in shapes.iter_mut().filter(|shape| shape.probed == 0) {
        if let Some((_, flags, all_flags)) = known.iter().find(|known| known.0 == shape.access) {
            (shape.flags, shape.all_flags) = (flags.clone(), all_flags.clone());
        }
        if tables * 2 > slots {
            shape.populated.fill(1);
            shape.probed = 1;
            let full =
                (0..shape.populated.len()).filter(|&index| shape.fills(index, geometry)).count() as u64;
            shape.exclusive = Tables { pmd: full, ..Tables::default() };
            // One stands for all.
            shape.members = shape.members.max(1);
        }
    }
}
