//! What a file's page tables cost now, and what they could cost.

use std::collections::{BTreeSet, HashSet};

use serde::Serialize;

use super::geometry::{Geometry, Tables};
use super::group::{Group, Shape};
use super::slots::Analysis;

/// Page tables that only this file's mappings need, of all processes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// As they are.
    pub now: Tables,
    /// As they would be if no table were shared.
    pub unshared: Tables,
    /// With huge pages of one PMD entry, where there are base pages now; each process with tables of its own.
    pub huge: Tables,
    /// The best on this kernel: every address congruent, nothing else changed.
    pub best_here: Tables,
    /// With tables that the file owns: shared whatever the address, the length and the protection. On huge pages.
    pub best_owned: Tables,
    /// With tables that the file owns, on the pages that it has; at the most, where not all of it is in place.
    pub owned_as_is: Tables,
}

/// Adds up the cost of a file.
pub fn cost(group: &Group, analysis: &Analysis, geometry: Geometry, kernel_shares: bool) -> Cost {
    let mut unshared = Tables::default();
    let mut now = Tables::default();
    for shape in &group.shapes {
        let mut tables = shape.exclusive();
        unshared += tables;
        let filled =
            (0..shape.populated.len()).filter(|&index| analysis.owned || shape.fills(index, geometry));
        if group.file.is_hugetlb && is_sharable(shape, group, geometry) && kernel_shares {
            // Those are counted once below, however many mappings use them.
            tables.pmd -= filled.map(|index| shape.tables(index)).sum::<u64>().min(tables.pmd);
        }
        now += tables;
    }
    now.pmd += analysis.sharable_tables;
    let huge = if group.file.is_hugetlb { unshared } else { Tables { pte: 0, ..unshared } };
    let best = |sharing| best(group, geometry, sharing);
    let least = |pmd: u64, than: Tables| Tables {
        pmd: pmd.min(than.pmd),
        pte: than.pte.min(huge.pte),
        pud: than.pud,
    };
    let best_here = if kernel_shares {
        least(best(Sharing::Linux), huge_or_now(group, now, huge))
    } else {
        huge_or_now(group, now, huge)
    };
    let best_owned = least(best(Sharing::Windows), best_here);
    let owned_as_is = if group.file.is_hugetlb {
        best_owned
    } else {
        Tables {
            pte: owned_pte(group, geometry).min(now.pte),
            pmd: best(Sharing::WholeWindows).min(now.pmd),
            pud: now.pud,
        }
    };
    Cost { now, unshared, huge, best_here, best_owned, owned_as_is }
}

fn huge_or_now(group: &Group, now: Tables, huge: Tables) -> Tables {
    if group.file.is_hugetlb { now } else { huge }
}

/// Whether a shape could share on a kernel that shares, or could if its file were on huge pages.
fn is_sharable(shape: &Shape, group: &Group, geometry: Geometry) -> bool {
    let size_fits = !group.file.is_hugetlb || group.file.page_size == geometry.huge();
    size_fits && shape.access.shared && !shape.all_flags.has(b"uw") && !shape.all_flags.has(b"ui")
}

/// Which parts of a file have one table for all.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sharing {
    /// Whole windows, among mappings with the same flags.
    Linux,
    /// Whole windows, as files of base pages own their tables.
    WholeWindows,
    /// The part of a window that a mapping covers, as files of huge pages own their tables.
    Windows,
}

/// PMD tables if every mapping were congruent.
fn best(group: &Group, geometry: Geometry, sharing: Sharing) -> u64 {
    let slot = geometry.slot();
    let mut apart = 0;
    let mut flags: Vec<&super::maps::Flags> = Vec::new();
    let mut common: HashSet<(usize, u64, u64)> = HashSet::new();
    for shape in &group.shapes {
        if !is_sharable(shape, group, geometry) {
            apart += shape.exclusive().pmd;
            continue;
        }
        let kind = if sharing != Sharing::Linux {
            0
        } else {
            flags.iter().position(|known| **known == shape.flags).unwrap_or_else(|| {
                flags.push(&shape.flags);
                flags.len() - 1
            })
        };
        let (from, to) = (shape.offset, shape.offset + (shape.end - shape.start));
        let mut touched: BTreeSet<u64> = BTreeSet::new();
        for index in (0..shape.populated.len()).filter(|&index| shape.populated[index] > 0) {
            let (start, end) = shape.file_range(index, geometry);
            touched.extend(start / slot..=(end - 1) / slot);
        }
        let most = (0..shape.populated.len()).map(|index| shape.tables(index)).max().unwrap_or(0);
        for number in touched {
            let window = (from.max(number * slot), to.min((number + 1) * slot));
            if sharing == Sharing::Windows || window.1 - window.0 == slot {
                common.insert((kind, window.0, window.1));
            } else {
                apart += most;
            }
        }
    }
    apart + common.len() as u64
}

/// PTE tables if every mapping were congruent and the file had one for each 2 MiB. A mapping has tables of
/// its own for its ends.
fn owned_pte(group: &Group, geometry: Geometry) -> u64 {
    let window = geometry.huge();
    let mut own = 0;
    let mut whole: Vec<(u64, u64)> = Vec::new();
    for shape in &group.shapes {
        if !is_sharable(shape, group, geometry) {
            own += shape.exclusive().pte;
            continue;
        }
        let (from, to) = (shape.offset, shape.offset + (shape.end - shape.start));
        for index in (0..shape.populated.len()).filter(|&index| shape.populated[index] > 0) {
            let (start, end) = shape.file_range(index, geometry);
            // A window that lies over the end of a slot counts in both, and once in all.
            let (first, last) = (start / window * window, end.next_multiple_of(window));
            let (first, last) = (first.max(from.next_multiple_of(window)), last.min(to / window * window));
            if first < last {
                whole.push((first, last));
            }
            let head = start == from && from % window != 0;
            let tail = end == to && to % window != 0;
            let is_one = head && tail && from / window == to / window;
            let ends = u64::from(head) + u64::from(tail) - u64::from(is_one);
            own += ends * shape.tables(index);
        }
    }
    whole.sort_unstable();
    let (mut shared, mut behind) = (0, 0);
    for (start, end) in whole {
        shared += end.saturating_sub(start.max(behind)) / window;
        behind = behind.max(end);
    }
    own + shared
}
