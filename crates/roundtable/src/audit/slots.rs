//! Decides for every slot of every mapping whether its PMD table is shared, and why not, by Linux's own rules.
//!
//! Linux looks for a partner when a fault finds the slot (1 GiB where base pages are of 4 KiB) without a table. The
//! mapping must be shared (MAP_SHARED), cover the whole slot, have pages of exactly one PMD entry, and no userfaultfd
//! registration for write-protect or minor faults. The partner is another mapping of the file that also covers a whole
//! slot, has the same part of the file at the same place in it, has the same flags but for those of mlock, and has a
//! table there already. A slot that has got a table of its own in other times keeps it until it is unmapped.
//!
//! So all mappings that may share with each other are those with one *phase* (address less offset, modulo a
//! slot) and one set of flags: a *lane*. Within a lane the slot's number in the file tells which table it is.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use super::coverage::Coverage;
use super::files::FileId;
use super::geometry::{Geometry, scaled};
use super::group::{Group, Shape};
use super::maps::Flags;

/// What became of a slot of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Its table is shared with others.
    Shared,
    /// It has no table yet: nobody has touched it.
    Untouched,
    /// It is the first of several that will share: the others have not touched it yet.
    FirstOfSeveral,
    /// Nobody else maps this part of the file.
    Alone,
    /// Others map this part, but none of them in a way that could ever share.
    NoPartner,
    /// MAP_PRIVATE.
    Private,
    /// The mapping does not fill the slot.
    TooShort,
    /// The others have it at an address that is not congruent with this one's.
    NotCongruent,
    /// The others have another protection.
    ProtectionDiffers,
    /// The others have other VM flags.
    FlagsDiffer,
    /// A userfaultfd is registered for write-protect faults.
    UserfaultfdWriteProtect,
    /// A userfaultfd is registered for minor faults.
    UserfaultfdMinor,
    /// A page as large as a slot or larger needs no table.
    GiganticPage,
    /// Pages of a size of which Linux shares no tables.
    OtherPageSize,
    /// It could share now, but has a table of its own from before.
    OwnTable,
    /// This kernel shares no tables.
    KernelCannot,
    /// It uses a table that belongs to the file.
    FileOwned,
}

/// By what a verdict of sharing is backed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// By the kernel's rules alone.
    Rules,
    /// By HugetlbPages of the processes: who shares a table has mapped fewer pages by faults of its own than it has.
    HugetlbPages,
    /// By /proc/kpagecount: how many tables have an entry for a page.
    Kpagecount,
}

/// Tells in how many tables a page has an entry.
pub trait Witness {
    /// The address of the first page of the file that the process has between these addresses, and its number
    /// of entries.
    fn mapcount(&self, pid: i32, file: FileId, start: u64, end: u64) -> Option<(u64, u64)>;
}

/// Nobody to ask.
pub struct NoWitness;

impl Witness for NoWitness {
    fn mapcount(&self, _: i32, _: FileId, _: u64, _: u64) -> Option<(u64, u64)> {
        None
    }
}

/// What came out for a file.
#[derive(Clone, Debug)]
pub struct Analysis {
    /// Slots of all mappings, by verdict.
    pub verdicts: BTreeMap<Verdict, u64>,
    /// Flags by which mappings differ that could share otherwise, in the kernel's letters.
    pub differing: BTreeSet<String>,
    /// PMD tables that mappings share or could share.
    pub sharable_tables: u64,
    /// How often these are counted in VmPTE.
    pub sharable_uses: u64,
    /// What backs the verdict.
    pub evidence: Evidence,
    /// Whether the tables belong to the file: then slots that a mapping does not fill are shared as well.
    pub owned: bool,
}

/// No more slots of a file than this are checked with the kernel; the others are taken to be alike.
const CHECKED: usize = 4096;

/// Mappings that may share with each other.
#[derive(Debug, Default)]
struct Lane {
    shapes: Vec<usize>,
    /// By the slot's number in the file.
    cells: BTreeMap<u64, Cell>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    mapped: u64,
    touched: u64,
    /// Of those that have a table, how many have filled all of theirs by their own faults.
    filled: u64,
    /// Tables beyond the one that would do.
    extra: u64,
}

/// The phase of a shape: equal for mappings whose addresses are congruent.
pub fn phase(shape: &Shape, geometry: Geometry) -> u64 {
    shape.start.wrapping_sub(shape.offset) % geometry.slot()
}

/// Why no slot of this shape can share, whatever the others do.
fn barrier(shape: &Shape, group: &Group, geometry: Geometry, kernel_shares: bool) -> Option<Verdict> {
    let page_size = group.file.page_size;
    if page_size >= geometry.slot() {
        Some(Verdict::GiganticPage)
    } else if page_size != geometry.huge() {
        Some(Verdict::OtherPageSize)
    } else if !shape.access.shared {
        Some(Verdict::Private)
    } else if shape.all_flags.has(b"uw") {
        Some(Verdict::UserfaultfdWriteProtect)
    } else if shape.all_flags.has(b"ui") {
        Some(Verdict::UserfaultfdMinor)
    } else if !kernel_shares {
        Some(Verdict::KernelCannot)
    } else {
        None
    }
}

/// Decides for all slots of a file's mappings.
pub fn analyse(group: &Group, geometry: Geometry, kernel_shares: bool, witness: &dyn Witness) -> Analysis {
    let slot = geometry.slot();
    let barriers: Vec<Option<Verdict>> =
        group.shapes.iter().map(|shape| barrier(shape, group, geometry, kernel_shares)).collect();
    let mut lanes = lanes(group, geometry, &barriers);
    let evidence = gather(&mut lanes, group, geometry, &barriers, witness);
    let covered = |shapes: &mut dyn Iterator<Item = &Shape>| {
        let ranges =
            shapes.map(|shape| (shape.offset, shape.offset + (shape.end - shape.start), shape.members));
        Coverage::of(ranges.collect::<Vec<_>>())
    };
    let can = || {
        group.shapes.iter().zip(&barriers).filter(|(_, barrier)| barrier.is_none()).map(|(shape, _)| shape)
    };
    let all = covered(&mut group.shapes.iter());
    let capable = covered(&mut can());
    let mut by_phase: HashMap<u64, Vec<&Shape>> = HashMap::new();
    can().for_each(|shape| by_phase.entry(phase(shape, geometry)).or_default().push(shape));
    let capable_by_phase: HashMap<u64, Coverage> =
        by_phase.into_iter().map(|(phase, shapes)| (phase, covered(&mut shapes.into_iter()))).collect();
    let mut analysis = Analysis {
        verdicts: BTreeMap::new(),
        differing: BTreeSet::new(),
        sharable_tables: 0,
        sharable_uses: 0,
        evidence,
        owned: false,
    };
    let mut add = |verdict, count| {
        if count > 0 {
            *analysis.verdicts.entry(verdict).or_insert(0) += count;
        }
    };
    for (index, shape) in group.shapes.iter().enumerate() {
        for slot_index in 0..shape.populated.len() {
            let touched = shape.tables(slot_index);
            add(Verdict::Untouched, shape.members - touched.min(shape.members));
            if let Some(verdict) = barriers[index] {
                add(verdict, touched);
            } else if !shape.fills(slot_index, geometry) {
                let (start, end) = shape.file_range(slot_index, geometry);
                add(if all.over(start, end) > 1 { Verdict::TooShort } else { Verdict::Alone }, touched);
            }
        }
    }
    for ((lane_phase, flags), lane) in &lanes {
        for (&number, cell) in &lane.cells {
            let start = (number * slot).wrapping_sub(*lane_phase);
            let tables = if cell.touched > 0 { 1 + cell.extra } else { 0 };
            analysis.sharable_tables += tables;
            analysis.sharable_uses += cell.touched;
            if cell.touched >= 2 {
                // All but those with a table to themselves; the last of these has no partner left.
                let own = if cell.extra + 1 >= cell.touched { cell.touched } else { cell.extra };
                add(Verdict::Shared, cell.touched - own);
                add(Verdict::OwnTable, own);
                continue;
            }
            let verdict = if cell.mapped >= 2 {
                Verdict::FirstOfSeveral
            } else if all.over(start, start + slot) <= 1 {
                Verdict::Alone
            } else if let Some(difference) = other_flags(&lanes, *lane_phase, flags, number) {
                let protection = difference.iter().any(|name| ["rd", "wr", "ex"].contains(&name.as_str()));
                if cell.touched > 0 {
                    analysis.differing.extend(difference);
                }
                if protection { Verdict::ProtectionDiffers } else { Verdict::FlagsDiffer }
            } else if capable.over(start, start + slot)
                > capable_by_phase[lane_phase].over(start, start + slot)
            {
                Verdict::NotCongruent
            } else {
                Verdict::NoPartner
            };
            add(verdict, cell.touched);
        }
    }
    analysis
}

/// Decides for a kernel whose files own their tables, one for each part of a slot that is mapped at each phase.
pub fn analyse_owned(group: &Group, geometry: Geometry) -> Analysis {
    let mut verdicts = BTreeMap::new();
    let mut tables = BTreeSet::new();
    let mut uses = 0;
    for shape in &group.shapes {
        let barrier = barrier(shape, group, geometry, true);
        for index in 0..shape.populated.len() {
            let touched = shape.tables(index);
            *verdicts.entry(Verdict::Untouched).or_insert(0) += shape.members - touched.min(shape.members);
            *verdicts.entry(barrier.unwrap_or(Verdict::FileOwned)).or_insert(0) += touched;
            if barrier.is_none() && touched > 0 {
                tables.insert((phase(shape, geometry), shape.file_range(index, geometry)));
                uses += touched;
            }
        }
    }
    verdicts.retain(|_, count| *count > 0);
    Analysis {
        verdicts,
        differing: BTreeSet::new(),
        sharable_tables: tables.len() as u64,
        sharable_uses: uses,
        evidence: Evidence::Rules,
        owned: true,
    }
}

fn lanes(group: &Group, geometry: Geometry, barriers: &[Option<Verdict>]) -> BTreeMap<(u64, Flags), Lane> {
    let mut lanes: BTreeMap<(u64, Flags), Lane> = BTreeMap::new();
    for (index, shape) in group.shapes.iter().enumerate().filter(|(index, _)| barriers[*index].is_none()) {
        let phase = phase(shape, geometry);
        let lane = lanes.entry((phase, shape.flags.clone())).or_default();
        lane.shapes.push(index);
        for slot_index in (0..shape.populated.len()).filter(|&slot_index| shape.fills(slot_index, geometry)) {
            let cell = lane.cells.entry(number(shape, slot_index, phase, geometry)).or_default();
            let touched = shape.tables(slot_index);
            cell.mapped += shape.members;
            cell.touched += touched;
            cell.filled += scaled(shape.filled_itself, shape.members, shape.probed).min(touched);
        }
    }
    lanes
}

/// The number in the file of a slot that the mapping fills.
fn number(shape: &Shape, slot_index: usize, phase: u64, geometry: Geometry) -> u64 {
    let (start, _) = shape.file_range(slot_index, geometry);
    start.wrapping_add(phase) / geometry.slot()
}

/// By which flags the mappings differ that have the same part of the file at the same place.
fn other_flags(
    lanes: &BTreeMap<(u64, Flags), Lane>,
    phase: u64,
    flags: &Flags,
    number: u64,
) -> Option<Vec<String>> {
    let others = lanes.range((phase, Flags::default())..).take_while(|((other, _), _)| *other == phase);
    let mut others = others.filter(|((_, other), lane)| other != flags && lane.cells.contains_key(&number));
    others.next().map(|((_, other), _)| flags.difference(other))
}

/// Finds tables beyond those that the rules ask for, and tells by what they were found.
fn gather(
    lanes: &mut BTreeMap<(u64, Flags), Lane>,
    group: &Group,
    geometry: Geometry,
    barriers: &[Option<Verdict>],
    witness: &dyn Witness,
) -> Evidence {
    let slot = geometry.slot();
    // Each mapping here has a table of its own with an entry for the page, or none.
    let loose = Coverage::of(group.shapes.iter().enumerate().flat_map(|(index, shape)| {
        let slots = 0..shape.populated.len();
        let loose =
            slots.filter(move |&slot_index| barriers[index].is_some() || !shape.fills(slot_index, geometry));
        loose.map(move |slot_index| {
            let (start, end) = shape.file_range(slot_index, geometry);
            (start, end, shape.tables(slot_index))
        })
    }));
    let one_each = Coverage::of(lanes.iter().flat_map(|((phase, _), lane)| {
        let touched = lane.cells.iter().filter(|(_, cell)| cell.touched > 0);
        touched.map(move |(&number, _)| {
            ((number * slot).wrapping_sub(*phase), (number * slot).wrapping_sub(*phase) + slot, 1)
        })
    }));
    let several: usize =
        lanes.values().map(|lane| lane.cells.values().filter(|cell| cell.touched >= 2).count()).sum();
    let step = several.div_ceil(CHECKED).max(1);
    let (mut checked, mut position) = (0, 0);
    let mut found: BTreeMap<u64, u64> = BTreeMap::new();
    let mut evidence = Evidence::Rules;
    for ((phase, _), lane) in lanes.iter_mut() {
        let Lane { shapes, cells } = lane;
        let mut last_extra = 0;
        for (&number_in_file, cell) in cells.iter_mut().filter(|(_, cell)| cell.touched >= 2) {
            position += 1;
            if (position - 1) % step != 0 {
                cell.extra = last_extra.min(cell.touched - 1);
                continue;
            }
            let answer = shapes.iter().find_map(|&index| {
                let shape = &group.shapes[index];
                let first = number(shape, usize::from(!shape.fills(0, geometry)), *phase, geometry);
                let slot_index = usize::try_from(number_in_file.checked_sub(first)?).ok()?
                    + usize::from(!shape.fills(0, geometry));
                let touched = shape.populated.get(slot_index).is_some_and(|&count| count > 0);
                if !touched || !shape.fills(slot_index, geometry) {
                    return None;
                }
                let start = shape.slot_start(slot_index, geometry);
                let witness_of_slot = shape.witnesses[slot_index]?;
                let (address, count) = witness.mapcount(witness_of_slot, group.id, start, start + slot)?;
                Some((shape.offset + (address - shape.start), count))
            });
            let extra = match answer {
                Some((page, count)) => {
                    checked += 1;
                    evidence = Evidence::Kpagecount;
                    let expected = loose.over(page, page + 1) + one_each.over(page, page + 1);
                    // Two lanes may have the page; what one of them has too many is not the other's as well.
                    let taken = found.entry(page).or_default();
                    let extra = count.saturating_sub(expected).saturating_sub(*taken).min(cell.touched - 1);
                    *taken += extra;
                    extra
                }
                None => {
                    if cell.filled > 0 && checked == 0 {
                        evidence = evidence.max(Evidence::HugetlbPages);
                    }
                    cell.filled.saturating_sub(1).min(cell.touched - 1)
                }
            };
            cell.extra = extra;
            last_extra = extra;
        }
    }
    evidence
}

#[cfg(test)]
#[path = "slots_tests.rs"]
mod tests;
