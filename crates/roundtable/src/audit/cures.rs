//! What an operator can do about tables that are not shared.

use serde::Serialize;

use super::cost::Cost;
use super::geometry::Geometry;
use super::group::{Group, Shape};
use super::kernel_version::Kernel;
use super::slots::{Analysis, Verdict};
use crate::output::human;

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cure {
    /// In the operator's words.
    pub what: String,
    /// Bytes of page tables that it saves; 0 where that cannot be told.
    pub saves: u64,
}

/// Below this no cure is worth a line.
const WORTH: u64 = 16 << 10;

/// Cures for a file on huge pages.
pub fn for_huge(
    group: &Group,
    analysis: &Analysis,
    cost: &Cost,
    kernel: &Kernel,
    geometry: Geometry,
) -> Vec<Cure> {
    let slots = |verdict| analysis.verdicts.get(&verdict).copied().unwrap_or(0);
    let (page, slot) = (geometry.page(), geometry.slot());
    let unit = human::bytes(slot);
    let mut cures = Vec::new();
    let mut add = |saves: u64, what: String| cures.push(Cure { what, saves });
    let wrong = slots(Verdict::NotCongruent);
    if wrong > 0 {
        let saves = cost.now.pmd.saturating_sub(cost.best_here.pmd) * page;
        add(saves, congruence(group, geometry, &unit));
    }
    let short = slots(Verdict::TooShort);
    if short > 1 && (wrong == 0 || !group.size.is_multiple_of(slot)) {
        add((short - 1) * page, length(group, geometry, &unit));
    }
    let protection = slots(Verdict::ProtectionDiffers);
    if protection > 0 {
        let writers =
            group.shapes.iter().filter(|shape| shape.access.write).map(|shape| shape.members).sum::<u64>();
        let all: u64 = group.shapes.iter().map(|shape| shape.members).sum();
        add(
            protection * page,
            format!(
                "Map it with the same protection everywhere: {} of {} mappings may write, and Linux lets readers and writers share no table.",
                human::count(writers),
                human::count(all)
            ),
        );
    }
    let flags = slots(Verdict::FlagsDiffer);
    if flags > 0 {
        let names: Vec<&str> = analysis.differing.iter().map(String::as_str).collect();
        add(
            flags * page,
            format!(
                "Map it with the same flags everywhere: the mappings differ in {} (see proc(5), VmFlags; nr is MAP_NORESERVE, dc is MADV_DONTFORK, dd is MADV_DONTDUMP, um is a userfaultfd, kN is protection key N, sd comes and goes with /proc/PID/clear_refs).",
                names.join(", ")
            ),
        );
    }
    let userfaultfd = slots(Verdict::UserfaultfdWriteProtect) + slots(Verdict::UserfaultfdMinor);
    if userfaultfd > 0 {
        add(
            userfaultfd.saturating_sub(1) * page,
            "Linux shares no table where a userfaultfd waits for write-protect or minor faults (live migration, snapshots): let that end, then map the memory anew."
                .into(),
        );
    }
    let private = slots(Verdict::Private);
    if private > 1 && group.pids.len() > 1 {
        add(
            (private - 1) * page,
            "Map it with MAP_SHARED if its processes mean to share it: private mappings share no table, and each write copies a huge page.".into(),
        );
    }
    let own = slots(Verdict::OwnTable);
    if own > 1 {
        add(
            (own - 1) * page,
            "These slots could share, but got a table of their own at another time (before a partner was there, or with another protection): start those processes again, or map the memory anew."
                .into(),
        );
    }
    if slots(Verdict::KernelCannot) > 1 {
        add(0, format!("This kernel shares no page tables: {}.", kernel.reason));
    }
    // The other way, where tables are what costs.
    let left = cost.now.pmd * page;
    if group.file.page_size == geometry.huge() && left >= WORTH.max(2 * page) && group.size >= slot {
        add(
            left,
            format!(
                "Or use pages of {unit}, which need no such table: boot with hugepagesz=1G hugepages={}; PostgreSQL 14 and later: huge_page_size=1GB, Oracle: USE_LARGE_PAGES with a 1 GiB pool.",
                group.size.div_ceil(slot)
            ),
        );
    }
    cures.sort_by_key(|cure| std::cmp::Reverse(cure.saves));
    cures
}

/// Where to map it so that addresses are congruent.
fn congruence(group: &Group, geometry: Geometry, unit: &str) -> String {
    let slot = geometry.slot();
    let shared: Vec<&Shape> = group.shapes.iter().filter(|shape| shape.access.shared).collect();
    // The place that most have already is the cheapest for all.
    let most = shared.iter().max_by_key(|shape| shape.members);
    let Some(most) = most else { return String::new() };
    let aligned = most.start.wrapping_sub(most.offset).next_multiple_of(slot).wrapping_add(most.offset);
    let fills = (0..most.populated.len()).any(|index| most.fills(index, geometry));
    let (place, others) =
        if fills && most.members > 1 { (most.start, "the others") } else { (aligned, "all") };
    format!(
        "Let {others} map it at {place:#x}, or any other address that differs from it by a multiple of {unit} ({slot:#x}): pass the address to mmap or shmat, or map it once and fork. The mappings of the {} are at {} different distances from such an address now.",
        human::processes(group.pids.len() as u64),
        shared
            .iter()
            .map(|shape| super::slots::phase(shape, geometry))
            .collect::<std::collections::BTreeSet<_>>()
            .len()
    )
}

/// How large to make it so that slots are filled.
fn length(group: &Group, geometry: Geometry, unit: &str) -> String {
    let slot = geometry.slot();
    let up = group.size.next_multiple_of(slot);
    let aligned = group
        .shapes
        .iter()
        .filter(|shape| shape.access.shared)
        .all(|shape| shape.start.wrapping_sub(shape.offset) % slot == 0);
    if !aligned {
        format!(
            "Only whole slots of {unit} are shared, at addresses that are multiples of {unit}; {} at {:#x} leaves parts over at its ends. Start it at {:#x} and make it {} long (shared_buffers or SGA plus its overhead). Where the program cannot choose the address, each process pays for the two ends.",
            human::bytes(group.size),
            group.shapes[0].start,
            group.shapes[0].start.next_multiple_of(slot),
            human::bytes(up)
        )
    } else {
        format!(
            "Only whole slots of {unit} are shared: make it {} instead of {}, so that the last slot is filled too.",
            human::bytes(up),
            human::bytes(group.size)
        )
    }
}

/// Cures for shared memory on base pages.
pub fn for_base(group: &Group, cost: &Cost, geometry: Geometry, is_postgres: bool) -> Vec<Cure> {
    let saves = cost.now.bytes(geometry).saturating_sub(cost.best_here.bytes(geometry));
    let pages = group.size.div_ceil(geometry.huge());
    let how = if is_postgres {
        "set huge_pages=on in postgresql.conf"
    } else {
        "let the program ask for them (MAP_HUGETLB, SHM_HUGETLB, MFD_HUGETLB, or a file on hugetlbfs)"
    };
    vec![Cure {
        what: format!(
            "Put it on huge pages: {how} and reserve them with vm.nr_hugepages={pages} (pages of {}), at boot or before memory is fragmented.",
            human::bytes(geometry.huge())
        ),
        saves,
    }]
}
