//! The free ranges of an address space, searched by what they are good for.
//!
//! Each range between two areas is an entry with the sizes that [`Placement`](super::layout::Placement) asks for, and a tree that knows the
//! largest of each size below each node. A program's areas and holes may be many, and of sizes that it chose to be looked at in vain: each
//! search takes O(log n) steps all the same.

use core::ops::Range;

use summary_tree::{Summary, SummaryTree};

use super::TASK_SIZE;
use super::layout::{SLOT, STACK_GUARD};
use super::vma::{VmFlags, Vma};
use crate::errno::{Errno, Result};
use crate::memory::{PAGE_SIZE, reserve};
use crate::sched;

/// What a free range is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// All of it, but for the guard below a stack.
    Any,
    /// What has no slot in common with huge pages at either end whose tables are shared.
    ApartFromShared,
    /// Whole slots.
    Slots,
}

const WANTS: [Want; 3] = [Want::Any, Want::ApartFromShared, Want::Slots];

/// A free range; its begin is the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gap {
    end: u64,
    /// Huge pages with shared tables end where it begins.
    shares_below: bool,
    /// Such pages begin where it ends.
    shares_above: bool,
    /// A stack begins where it ends.
    stack_above: bool,
}

impl Gap {
    /// What lies between the areas `below` and `above` and ends at `end`.
    fn new(end: u64, below: Option<&Vma>, above: Option<&Vma>) -> Self {
        Self {
            end,
            shares_below: below.is_some_and(Vma::shares_tables),
            shares_above: above.is_some_and(Vma::shares_tables),
            stack_above: above.is_some_and(|vma| vma.flags.contains(VmFlags::GROWS_DOWN)),
        }
    }

    /// The part in `within` that is good for `want`, of the gap that begins at `start`.
    fn usable(&self, start: u64, within: &Range<u64>, want: Want) -> Range<u64> {
        let guard = if self.stack_above { STACK_GUARD } else { 0 };
        let last = self.end.saturating_sub(guard);
        let (from, to) = (start.max(within.start), last.min(within.end));
        let (round_from, round_to) = match want {
            Want::Any => (false, false),
            Want::ApartFromShared => {
                (self.shares_below && from == start, self.shares_above && to == self.end)
            }
            // Neither the first nor the last slot may have a stranger in it.
            Want::Slots => (true, true),
        };
        let from = if round_from { from.next_multiple_of(SLOT) } else { from };
        let to = if round_to { to & !(SLOT - 1) } else { to };
        from..to.max(from)
    }

    fn size(&self, start: u64, want: Want) -> u64 {
        let usable = self.usable(start, &(0..TASK_SIZE), want);
        usable.end - usable.start
    }
}

/// The largest sizes of some gaps, one for each [`Want`].
struct Largest([u64; 3]);

impl Summary<u64, Gap> for Largest {
    fn of(start: &u64, gap: &Gap) -> Self {
        Self(WANTS.map(|want| gap.size(*start, want)))
    }

    fn join(&mut self, other: &Self) {
        for (largest, other) in self.0.iter_mut().zip(other.0) {
            *largest = other.max(*largest);
        }
    }
}

/// All free ranges.
pub struct Gaps {
    tree: SummaryTree<u64, Gap, Largest>,
}

impl Gaps {
    /// Everything is free.
    pub fn new() -> Self {
        let mut gaps = Self { tree: SummaryTree::new() };
        gaps.set(0..TASK_SIZE, None, None);
        gaps
    }

    /// What `areas`, which are in order, leave free. `ENOMEM` when there is no memory for that.
    pub fn between<'a>(areas: impl Iterator<Item = &'a Vma> + Clone) -> Result<Self> {
        /// Gaps that are made in a page of memory.
        const STEP: usize = 32;
        let count = Self::around(areas.clone()).count();
        let mut made = 0;
        let gaps = Self::around(areas).map(|gap| {
            if made % STEP == 0 {
                reserve::ask(PAGE_SIZE)?;
                sched::cond_resched();
            }
            made += 1;
            Ok::<_, Errno>(gap)
        });
        Ok(Self { tree: SummaryTree::from_sorted(count, gaps)? })
    }

    /// The gaps between `areas`, which are in order, with where they begin.
    fn around<'a>(areas: impl Iterator<Item = &'a Vma>) -> impl Iterator<Item = (u64, Gap)> {
        let mut below = None;
        areas.map(Some).chain([None]).filter_map(move |above| {
            let start = below.map_or(0, |vma: &Vma| vma.end);
            let end = above.map_or(TASK_SIZE, |vma| vma.start);
            let gap = Gap::new(end, below, above);
            below = above;
            (start < end).then_some((start, gap))
        })
    }

    /// Frees what is known, and gives way meanwhile.
    pub fn free(self) {
        self.tree.into_iter().for_each(|_| sched::cond_resched());
    }

    /// `range`, between the areas `below` and `above`, is free as a whole.
    fn set(&mut self, range: Range<u64>, below: Option<&Vma>, above: Option<&Vma>) {
        let gap = Gap::new(range.end, below, above);
        if !self.tree.update(&range.start, |old| *old = gap) {
            self.tree.insert(range.start, gap);
        }
    }

    /// `range` became free. `below` and `above` are the areas around it.
    pub fn open(&mut self, range: Range<u64>, below: Option<&Vma>, above: Option<&Vma>) {
        let start = below.map_or(0, |vma| vma.end);
        let end = above.map_or(TASK_SIZE, |vma| vma.start);
        if range.end < end {
            self.tree.remove(&range.end);
        }
        self.set(start..end, below, above);
    }

    /// `area` came into the free range between `below` and `above`.
    pub fn close(&mut self, area: &Vma, below: Option<&Vma>, above: Option<&Vma>) {
        let start = below.map_or(0, |vma| vma.end);
        let end = above.map_or(TASK_SIZE, |vma| vma.start);
        if start < area.start {
            self.set(start..area.start, below, Some(area));
        } else {
            self.tree.remove(&start);
        }
        if area.end < end {
            self.set(area.end..end, Some(area), above);
        }
    }

    /// The highest place in `within` that `fit` finds in what is good for `want`, among the gaps where that is `len` bytes or more. `fit` is
    /// sure to find one where it is `sure` bytes; the others are tried for a while only.
    pub fn search(
        &self,
        within: Range<u64>,
        want: Want,
        len: u64,
        sure: u64,
        fit: impl Fn(Range<u64>) -> Option<u64>,
    ) -> Option<u64> {
        const TRIES: usize = 16;
        let mut tries = TRIES;
        // The outer option ends the search, the inner one is what it found.
        let mut look = |start: &u64, gap: &Gap| {
            if gap.end <= within.start || tries == 0 {
                return Some(None);
            }
            tries -= 1;
            fit(gap.usable(*start, &within, want)).map(Some)
        };
        let may = |least: u64| move |largest: &Largest| largest.0[want as usize] >= least;
        let found = self.tree.find_last(&within.end, may(len), &mut look).flatten();
        if found.is_some() || sure == len {
            return found;
        }
        self.tree
            .find_last(&within.end, may(sure), |start, gap| {
                if gap.end <= within.start {
                    return Some(None);
                }
                fit(gap.usable(*start, &within, want)).map(Some)
            })
            .flatten()
    }

    /// Is it what `areas`, in order, leave free? For the checker.
    pub fn matches<'a>(&self, areas: impl Iterator<Item = &'a Vma>) -> bool {
        let mut expected = Self::around(areas);
        let different = |start: &u64, gap: &Gap| (expected.next() != Some((*start, *gap))).then_some(());
        self.tree.find_first(&u64::MAX, |_| true, different).is_none() && expected.next().is_none()
    }
}
