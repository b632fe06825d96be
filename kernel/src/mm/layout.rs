//! Where mappings go, and how much there may be: address choice, stack growth, limits.

use core::ops::Range;

use linux_raw_sys::general as abi;

use super::gaps::{Gaps, Want};
use super::mshare::GRANULE;
use super::space::{Areas, Layout};
use super::vma::{VmFlags, Vma, VmaSet};
use super::windows::WINDOW;
use super::{PAGE, TASK_SIZE, accounting, limit, page_down};
use crate::errno::{Errno, Result};

/// No area comes closer to the begin of a stack than this.
pub const STACK_GUARD: u64 = 256 * PAGE;
/// mmap(2) places nothing below unless told to.
pub const MIN_ADDRESS: u64 = 0x1_0000;
/// A huge-page table's reach: the unit in which tables are shared.
pub const SLOT: u64 = 1 << 30;
/// The reach of a table above: who maps all of that shares it by one entry.
const WIDE_SLOT: u64 = SLOT << 9;

/// Where a free range is looked for, and how it must lie.
#[derive(Clone, Copy)]
pub struct Placement {
    pub len: u64,
    /// The address modulo `align`, a power of two, is to be `phase`.
    pub align: u64,
    pub phase: u64,
    /// What the address must be a multiple of, come what may.
    pub granule: u64,
    /// Keep away from slots of huge pages whose tables are shared: what small areas do where there is room.
    pub avoid_slots: bool,
    /// Take whole slots of one's own.
    pub own_slots: bool,
}

impl Placement {
    /// Base pages anywhere.
    pub fn pages(len: u64) -> Self {
        Self { len, align: PAGE, phase: 0, granule: PAGE, avoid_slots: true, own_slots: false }
    }

    /// Base pages from byte `offset` of a file on, shared by the file's tables: congruent with the offset modulo what the mapping could fill.
    pub fn windows(len: u64, offset: u64) -> Self {
        // Has it all of a part that one table of this reach shows?
        let fills = |reach: u64| {
            let first = offset.checked_next_multiple_of(reach);
            first.is_some_and(|first| first - offset <= len && len - (first - offset) >= reach)
        };
        match [SLOT, WINDOW].into_iter().find(|reach| fills(*reach)) {
            Some(align) => Self { align, phase: offset & (align - 1), ..Self::pages(len) },
            None => Self::pages(len),
        }
    }

    /// Huge pages of `granule` bytes from byte `offset` of a file on. Shared ones get addresses at which all mappings of the file share
    /// their tables, whatever each process has mapped before: congruent with the offset modulo the slot, in slots that
    /// nothing else uses. Private ones share none, and lie close together.
    pub fn huge(len: u64, granule: u64, offset: u64, shared: bool) -> Self {
        let any = Self { align: granule, granule, ..Self::pages(len) };
        if !shared {
            return any;
        }
        // Has the mapping all of a part of the file that such a table shows?
        let first = offset.checked_next_multiple_of(WIDE_SLOT);
        let is_wide = first.is_some_and(|first| first - offset <= len && len - (first - offset) >= WIDE_SLOT);
        let align = if is_wide { WIDE_SLOT } else { SLOT.max(granule) };
        Self { align, phase: offset & (align - 1), avoid_slots: false, own_slots: true, ..any }
    }

    /// A region, in slots of its own.
    pub fn region(len: u64) -> Self {
        Self { align: GRANULE, granule: GRANULE, avoid_slots: false, ..Self::pages(len) }
    }

    /// The same where there is no room for tables that show 512 GiB.
    fn narrow(&self) -> Option<Self> {
        let align = SLOT.max(self.granule);
        (self.align > align).then_some(Self { align, phase: self.phase & (align - 1), ..*self })
    }

    /// Wherever there is room.
    fn anywhere(&self) -> Self {
        Self { align: self.granule, phase: 0, avoid_slots: false, own_slots: false, ..*self }
    }

    /// The highest start in `free` that fits.
    fn fit(&self, free: Range<u64>) -> Option<u64> {
        let highest = free.end.checked_sub(self.len)?;
        let below = highest.wrapping_sub(self.phase) & (self.align - 1);
        let start = highest.checked_sub(below)?;
        (start >= free.start).then_some(start)
    }
}

/// A free range of `place.len` bytes in `within`, as high as there is one.
fn search(gaps: &Gaps, within: Range<u64>, place: &Placement, want: Want) -> Option<u64> {
    if within.is_empty() {
        return None;
    }
    // Wherever an aligned address may be in a range, it is there for sure if the range is longer by what alignment can cost.
    let sure = place.len.saturating_add(place.align - PAGE.min(place.align));
    gaps.search(within, want, place.len, sure, |free| place.fit(free))
}

/// Where a mapping without a fixed address goes: at `hint` if that is free, else as high as possible below the base, else anywhere.
pub fn choose(areas: &mut Areas, hint: u64, place: &Placement) -> Result<u64> {
    if place.len > TASK_SIZE - MIN_ADDRESS {
        return Err(Errno::ENOMEM);
    }
    if hint != 0 {
        // What was asked for comes before what would be good for sharing.
        // Down to a page of its size, as Linux does on this architecture.
        let at = (hint & !(place.granule - 1)).max(MIN_ADDRESS).next_multiple_of(place.granule);
        if at <= TASK_SIZE - place.len && is_free(&areas.set, at..at + place.len) {
            return Ok(at);
        }
    }
    let within = areas.layout.ranges();
    let wants = match () {
        () if place.own_slots => &[Want::Slots][..],
        () if place.avoid_slots => &[Want::ApartFromShared, Want::Any],
        () => &[Want::Any],
    };
    if let Some(narrow) = place.narrow() {
        let gaps = areas.set.gaps()?;
        let wide = within[..2].iter().find_map(|range| search(gaps, range.clone(), place, Want::Slots));
        return wide.map_or_else(|| choose(areas, 0, &narrow), Ok);
    }
    for within in within {
        for want in wants {
            if let Some(found) = search(areas.set.gaps()?, within.clone(), place, *want) {
                return Ok(found);
            }
        }
    }
    if place.own_slots {
        return choose(areas, 0, &Placement { own_slots: false, ..*place });
    }
    // Sharing is not worth a failure.
    if place.align > place.granule { choose(areas, 0, &place.anywhere()) } else { Err(Errno::ENOMEM) }
}

/// As [`choose`], in the lowest 2 GiB: MAP_32BIT.
pub fn choose_low(areas: &mut Areas, hint: u64, place: &Placement) -> Result<u64> {
    let within = 0x4000_0000..0x8000_0000;
    if hint != 0 {
        // A hint may be anything, and what is behind it wrap around.
        let at = page_down(hint).checked_next_multiple_of(place.granule);
        let range = at.and_then(|at| Some(at..at.checked_add(place.len)?));
        if let Some(range) = range
            && range.start >= MIN_ADDRESS
            && range.end <= within.end
            && is_free(&areas.set, range.clone())
        {
            return Ok(range.start);
        }
    }
    let gaps = areas.set.gaps()?;
    let search = |place: &Placement| search(gaps, within.clone(), place, Want::Any);
    search(place).or_else(|| search(&place.anywhere())).ok_or(Errno::ENOMEM)
}

/// Is nothing in `range`, nor a stack so close above that it would lose its guard gap?
pub fn is_free(set: &VmaSet, range: Range<u64>) -> bool {
    match set.find_from(range.start) {
        None => true,
        Some(next) if next.flags.contains(VmFlags::GROWS_DOWN) => {
            range.end <= next.start.saturating_sub(STACK_GUARD)
        }
        Some(next) => range.end <= next.start,
    }
}

/// May the stack `vma` begin at `start`?
pub fn may_grow_stack(set: &VmaSet, vma: &Vma, start: u64) -> Result<()> {
    if start < MIN_ADDRESS || vma.end - start > limit(abi::RLIMIT_STACK) {
        return Err(Errno::ENOMEM);
    }
    match set.before(vma.start) {
        Some(below) if below.flags.contains(VmFlags::GROWS_DOWN) && below.end <= start => Ok(()),
        Some(below) if !below.flags.intersects(VmFlags::ACCESS) && below.end <= start => Ok(()),
        Some(below) if start < below.end || start - below.end < STACK_GUARD => Err(Errno::ENOMEM),
        _ => Ok(()),
    }
}

/// What areas count for, in pages.
#[derive(Clone, Copy, Default)]
pub struct Sums {
    total: u64,
    data: u64,
    locked: u64,
    accounted: u64,
}

impl Sums {
    /// Of what lies in a range.
    pub fn of(set: &VmaSet, range: &Range<u64>) -> Self {
        let mut sums = Self::default();
        for vma in set.overlapping(range.clone()) {
            let pages = (vma.end.min(range.end) - vma.start.max(range.start)) / PAGE;
            let count = |counts: bool| if counts { pages } else { 0 };
            sums.total += pages;
            sums.data += count(vma.is_data());
            sums.locked += count(vma.flags.contains(VmFlags::LOCKED));
            sums.accounted += count(vma.flags.contains(VmFlags::ACCOUNT));
        }
        sums
    }
}

/// May there be `pages` more pages of an area with `flags`? Commits them when they count; [`accounting::uncommit`] undoes that.
pub fn charge(set: &VmaSet, flags: VmFlags, pages: u64) -> Result<()> {
    charge_instead(set, Sums::default(), flags, pages)
}

/// As [`charge`], when what is in `replaced` is about to go.
pub fn charge_instead(set: &VmaSet, replaced: Sums, flags: VmFlags, pages: u64) -> Result<()> {
    check_limits(set, replaced, flags, pages)?;
    if flags.contains(VmFlags::LOCKED) {
        super::lock::check_limit(set.locked - replaced.locked + pages).map_err(|_| Errno::EAGAIN)?;
    }
    if flags.contains(VmFlags::ACCOUNT) {
        accounting::commit_instead(replaced.accounted, pages)
    } else {
        Ok(())
    }
}

/// RLIMIT_DATA for `pages` pages that get the right to be written to.
pub fn check_limits_data(set: &VmaSet, flags: VmFlags, pages: u64) -> Result<()> {
    if set.is_region {
        return Ok(());
    }
    let over = (set.data + pages).saturating_mul(PAGE) > limit(abi::RLIMIT_DATA);
    if over && !flags.contains(VmFlags::GROWS_DOWN) { Err(Errno::ENOMEM) } else { Ok(()) }
}

/// RLIMIT_AS and RLIMIT_DATA for `pages` more pages in place of `replaced`.
fn check_limits(set: &VmaSet, replaced: Sums, flags: VmFlags, pages: u64) -> Result<()> {
    if set.is_region {
        return Ok(());
    }
    let over = |present: u64, resource| (present + pages).saturating_mul(PAGE) > limit(resource);
    if over(set.total - replaced.total, abi::RLIMIT_AS) {
        return Err(Errno::ENOMEM);
    }
    let data = flags & (VmFlags::WRITE | VmFlags::SHARED | VmFlags::GROWS_DOWN) == VmFlags::WRITE;
    if data && over(set.data - replaced.data, abi::RLIMIT_DATA) {
        return Err(Errno::ENOMEM);
    }
    Ok(())
}

impl Layout {
    /// Where mmap(2) without an address looks, one range after the other; the first two are below the base.
    fn ranges(&self) -> [Range<u64>; 4] {
        let (base, room) = (self.mmap_base.min(TASK_SIZE), &self.stack_room);
        if room.is_empty() {
            return [MIN_ADDRESS..base, 0..0, base..TASK_SIZE, 0..0];
        }
        [room.end..base, MIN_ADDRESS..room.start, base..TASK_SIZE, room.clone()]
    }

    /// Is `vma` the heap?
    pub fn is_heap(&self, vma: &Vma) -> bool {
        vma.start <= self.brk && vma.end >= self.brk_start && self.brk_start < self.brk
    }

    /// Is `vma` the main stack?
    pub fn is_stack(&self, vma: &Vma) -> bool {
        vma.start <= self.stack_start && self.stack_start <= vma.end
    }
}
