//! The areas of an address space in order.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use super::{Costs, VmFlags, Vma};
use crate::errno::{Errno, Result};
use crate::mm::gaps::Gaps;
use crate::mm::{AddressSpace, accounting};
use crate::sched;

/// Goes through areas, of which a program may have very many, and gives way after some.
#[derive(Clone)]
struct GivingWay<I> {
    areas: I,
    seen: usize,
}

impl<I> GivingWay<I> {
    fn new(areas: I) -> Self {
        Self { areas, seen: 0 }
    }
}

impl<'a, I: Iterator<Item = &'a Vma>> Iterator for GivingWay<I> {
    type Item = &'a Vma;

    fn next(&mut self) -> Option<&'a Vma> {
        /// Areas between two looks at who else wants to run.
        const STEP: usize = 64;
        self.seen += 1;
        if self.seen.is_multiple_of(STEP) {
            sched::cond_resched();
        }
        self.areas.next()
    }
}

/// What an area adds to the sums of its set, in pages.
struct Addends {
    total: u64,
    data: u64,
    locked: u64,
    stack: u64,
    code: u64,
    sealed: u64,
}

impl Addends {
    fn of(vma: &Vma) -> Self {
        let total = vma.pages();
        let if_so = |is_so: bool| if is_so { total } else { 0 };
        let has = |flag| if_so(vma.flags.contains(flag));
        Self {
            total,
            data: if_so(vma.is_data()),
            locked: has(VmFlags::LOCKED),
            stack: has(VmFlags::GROWS_DOWN),
            code: if_so(vma.is_code()),
            sealed: has(VmFlags::SEALED),
        }
    }
}

/// The areas of an address space in order.
pub struct VmaSet {
    areas: BTreeMap<u64, Vma>,
    /// What is between them; `None` until it is asked for.
    gaps: Option<Gaps>,
    costs: Arc<Costs>,
    /// A region's areas are in no process's limits: it counts as a whole where it is attached.
    pub(in crate::mm) is_region: bool,
    /// Sum of all areas, pages.
    pub(in crate::mm) total: u64,
    /// The most that `total` ever was.
    pub(in crate::mm) peak: u64,
    /// Sum of those that RLIMIT_DATA counts, pages.
    pub(in crate::mm) data: u64,
    /// Sum of the locked ones, pages.
    pub(in crate::mm) locked: u64,
    /// Sum of those that grow down, pages.
    pub(in crate::mm) stack: u64,
    /// Sum of those that are executed and not written, pages.
    pub(in crate::mm) code: u64,
    /// Sum of the sealed ones, pages.
    pub(in crate::mm) sealed: u64,
}

impl VmaSet {
    /// No areas.
    pub(in crate::mm) fn new(is_region: bool) -> Self {
        Self {
            is_region,
            areas: BTreeMap::new(),
            gaps: Some(Gaps::new()),
            costs: Arc::default(),
            total: 0,
            peak: 0,
            data: 0,
            locked: 0,
            stack: 0,
            code: 0,
            sealed: 0,
        }
    }

    /// The free ranges, or `ENOMEM` when they were not known and there is no memory for that.
    pub(in crate::mm) fn gaps(&mut self) -> Result<&Gaps> {
        let gaps = match self.gaps.take() {
            Some(gaps) => gaps,
            None => Gaps::between(GivingWay::new(self.areas.values()))?,
        };
        Ok(self.gaps.insert(gaps))
    }

    /// The free ranges, if they are known.
    pub(in crate::mm) fn known_gaps(&self) -> Option<&Gaps> {
        self.gaps.as_ref()
    }

    /// Leaves it to whoever searches the free ranges first to find them: that costs less than keeping them up to date while very many areas
    /// come in.
    pub(in crate::mm) fn forget_gaps(&mut self) {
        self.gaps = None;
    }

    /// How many areas there are.
    pub fn count(&self) -> usize {
        self.areas.len()
    }

    /// May there be so many areas more as it takes to make a part of `vma` one by itself? What cuts nothing always may, with more than there
    /// may be as well: a last mmap(2) takes a space one beyond the limit, and the limit may have been lowered. `ENOMEM`.
    pub fn allow_cut(&self, vma: &Vma, part: &Range<u64>) -> Result<()> {
        let splits = usize::from(vma.start < part.start) + usize::from(part.end < vma.end);
        let allowed = splits == 0 || self.count() + splits <= accounting::max_map_count();
        if allowed { Ok(()) } else { Err(Errno::ENOMEM) }
    }

    /// What the areas take.
    pub(in crate::mm) fn costs(&self) -> Arc<Costs> {
        self.costs.clone()
    }

    /// Puts an area into the map.
    fn add(&mut self, vma: Vma) {
        self.costs.add(&vma);
        let replaced = self.areas.insert(vma.start, vma);
        // Its tables would outlive it, and lead to what is a stranger's by then.
        assert!(replaced.is_none(), "two areas at one address");
    }

    /// Takes an area out of the map.
    fn take(&mut self, start: u64) -> Option<Vma> {
        let vma = self.areas.remove(&start)?;
        self.costs.subtract(&vma);
        Some(vma)
    }

    /// In ascending order; not under a spin lock.
    pub fn iter(&self) -> impl Iterator<Item = &Vma> + Clone {
        GivingWay::new(self.areas.values())
    }

    /// The area that contains `address`.
    pub fn find(&self, address: u64) -> Option<&Vma> {
        self.areas.range(..=address).next_back().map(|(_, vma)| vma).filter(|vma| address < vma.end)
    }

    /// The first area that ends after `address`: it contains it or is the next above.
    pub fn find_from(&self, address: u64) -> Option<&Vma> {
        self.find(address).or_else(|| self.areas.range(address..).next().map(|(_, vma)| vma))
    }

    /// The first area that has a byte in `range`; none in an empty one. Who goes through a range by its parts ends so, whether or not the last
    /// area reaches beyond.
    pub fn find_in(&self, range: Range<u64>) -> Option<&Vma> {
        if range.is_empty() {
            return None;
        }
        self.find_from(range.start).filter(|vma| vma.start < range.end)
    }

    /// As [`VmaSet::find_from`], where one thread looks for the same area again and again: `hint` is where the last one began.
    pub fn find_near(&self, address: u64, hint: &AtomicU64) -> Option<&Vma> {
        // Relaxed, here and below: the number only says where to look first.
        if let Some(vma) = self.areas.get(&hint.load(Ordering::Relaxed))
            && (vma.start..vma.end).contains(&address)
        {
            return Some(vma);
        }
        let found = self.find_from(address);
        if let Some(vma) = found {
            hint.store(vma.start, Ordering::Relaxed);
        }
        found
    }

    /// The last area that begins before `address`.
    pub fn before(&self, address: u64) -> Option<&Vma> {
        self.areas.range(..address).next_back().map(|(_, vma)| vma)
    }

    /// The areas that have a byte in `range`, in ascending order; not under a spin lock.
    pub fn overlapping(&self, range: Range<u64>) -> impl Iterator<Item = &Vma> {
        GivingWay::new(self.overlapping_at_once(range))
    }

    /// As [`VmaSet::overlapping`], for who must not give way: the range is too small for many areas, or the kernel a checked one.
    pub(in crate::mm) fn overlapping_at_once(&self, range: Range<u64>) -> impl Iterator<Item = &Vma> {
        let start = self.find(range.start).map_or(range.start, |vma| vma.start);
        self.areas.range(start..range.end.max(start)).map(|(_, vma)| vma)
    }

    /// The last area that has a byte in `range`.
    pub(in crate::mm) fn last_overlapping(&self, range: &Range<u64>) -> Option<&Vma> {
        self.before(range.end).filter(|vma| range.start < vma.end)
    }

    /// Is any byte of `range` in an area?
    pub fn is_occupied(&self, range: Range<u64>) -> bool {
        self.last_overlapping(&range).is_some()
    }

    /// Is every byte of `range` in an area?
    pub fn covers(&self, range: Range<u64>) -> bool {
        let mut at = range.start;
        for vma in self.overlapping(range.clone()) {
            if vma.start > at {
                return false;
            }
            at = vma.end;
        }
        at >= range.end
    }

    fn count_in(&mut self, adds: &Addends) {
        self.total += adds.total;
        self.peak = self.peak.max(self.total);
        self.data += adds.data;
        self.locked += adds.locked;
        self.stack += adds.stack;
        self.code += adds.code;
        self.sealed += adds.sealed;
    }

    fn count_out(&mut self, adds: &Addends) {
        self.total -= adds.total;
        self.data -= adds.data;
        self.locked -= adds.locked;
        self.stack -= adds.stack;
        self.code -= adds.code;
        self.sealed -= adds.sealed;
    }

    /// Adds an area where there is none.
    pub(in crate::mm) fn insert(&mut self, vma: Vma) {
        debug_assert!(!self.is_occupied(vma.range()));
        self.count_in(&Addends::of(&vma));
        if let Some(gaps) = &mut self.gaps {
            let below = self.areas.range(..vma.start).next_back().map(|(_, vma)| vma);
            let above = self.areas.range(vma.start..).next().map(|(_, vma)| vma);
            gaps.close(&vma, below, above);
        }
        self.add(vma);
    }

    /// Takes the area that starts at `start` out.
    pub(in crate::mm) fn remove(&mut self, start: u64) -> Option<Vma> {
        let vma = self.take(start)?;
        self.count_out(&Addends::of(&vma));
        self.open_gap(vma.range());
        Some(vma)
    }

    /// No area is in `range` any more.
    fn open_gap(&mut self, range: Range<u64>) {
        if let Some(gaps) = &mut self.gaps {
            let below = self.areas.range(..range.start).next_back().map(|(_, vma)| vma);
            let above = self.areas.range(range.start..).next().map(|(_, vma)| vma);
            gaps.open(range, below, above);
        }
    }

    /// Takes all areas out, and what was known of the gaps between them: there may be very many of either.
    pub(in crate::mm) fn take_all(&mut self) -> (BTreeMap<u64, Vma>, Option<Gaps>) {
        self.costs.heap.store(0, Ordering::Relaxed);
        self.costs.windows.store(0, Ordering::Relaxed);
        // Relaxed: statistics; the space is at its end.
        let all = Self { peak: self.peak, ..Self::new(self.is_region) };
        let Self { areas, gaps, .. } = core::mem::replace(self, all);
        (areas, gaps)
    }

    /// Changes the area at `start` in place; its start stays, or `change` moves it where nothing is in the way.
    pub(in crate::mm) fn update<R>(&mut self, start: u64, change: impl FnOnce(&mut Vma) -> R) -> Option<R> {
        let vma = self.areas.get_mut(&start)?;
        let (range, adds, costs) = (vma.range(), Addends::of(vma), (vma.kernel_bytes(), vma.windows()));
        let result = change(vma);
        let is_same = vma.range() == range;
        let after = (Addends::of(vma), vma.kernel_bytes(), vma.windows());
        self.count_out(&adds);
        if is_same && costs == (after.1, after.2) {
            self.count_in(&after.0);
            return Some(result);
        }
        self.costs.heap.fetch_sub(costs.0, Ordering::Relaxed);
        self.costs.windows.fetch_sub(costs.1, Ordering::Relaxed);
        let vma = self.areas.remove(&start)?;
        if is_same {
            self.count_in(&after.0);
            self.add(vma);
        } else {
            self.open_gap(range);
            self.insert(vma);
        }
        Some(result)
    }

    /// Makes an area begin at `at` when one goes across it.
    pub(in crate::mm) fn split(&mut self, at: u64, space: &Weak<AddressSpace>) -> Result<()> {
        let Some(start) = self.find(at).map(|vma| vma.start).filter(|start| *start < at) else {
            return Ok(());
        };
        let Some(vma) = self.areas.get_mut(&start) else { return Ok(()) };
        // The sums stay: both parts together are what it was.
        let windows = vma.windows();
        let upper = vma.split_off(at, space)?;
        self.costs.windows.fetch_sub(windows - vma.windows(), Ordering::Relaxed);
        self.add(upper);
        Ok(())
    }

    /// Makes `range` begin and end at area borders.
    pub(in crate::mm) fn isolate(&mut self, range: Range<u64>, space: &Weak<AddressSpace>) -> Result<()> {
        if self.areas.get(&range.start).is_some_and(|vma| vma.end == range.end) {
            return Ok(());
        }
        self.split(range.start, space)?;
        self.split(range.end, space)
    }

    /// Makes a part of an area one by itself, changes it, and merges it with what is like it then.
    pub(in crate::mm) fn change(
        &mut self,
        part: Range<u64>,
        space: &Weak<AddressSpace>,
        change: impl FnOnce(&mut Vma),
    ) -> Result<()> {
        let isolated = self.isolate(part.clone(), space);
        if isolated.is_ok() {
            self.update(part.start, change);
        }
        self.merge(part);
        isolated
    }

    /// Merges areas that touch inside `range` and at its ends where they can be one. As on Linux, who changes areas does so for each that it
    /// has changed: neighbours that a fork has made alike stay two.
    pub(in crate::mm) fn merge(&mut self, range: Range<u64>) {
        let mut at = match self.before(range.start) {
            Some(vma) => vma.start,
            None => range.start,
        };
        while let Some((start, end)) = self.next_mergeable(at, range.end) {
            if let Some(next) = self.take(end)
                && let Some(vma) = self.areas.get_mut(&start)
            {
                vma.merge(next);
            }
            at = start;
            // A range may have a hundred thousand that become one.
            sched::cond_resched();
        }
    }

    /// The first area that begins from `from` to `last` and can be one with the next: where it begins and ends.
    fn next_mergeable(&self, from: u64, last: u64) -> Option<(u64, u64)> {
        let mut areas = self.areas.range(from..);
        let mut vma = areas.next()?.1;
        for (_, next) in areas {
            if vma.start >= last {
                return None;
            }
            if vma.can_merge(next) {
                return Some((vma.start, vma.end));
            }
            vma = next;
            // A range may have a hundred thousand.
            sched::cond_resched();
        }
        None
    }
}
