//! What userfaultfd(2) has marked in a mapping: pages from which stores are withheld, and poisoned ones.
//!
//! Marks are behind a spin lock of their own; what is withheld changes under the mapping lock for writing only. As with
//! the private copies, an entry is allocated before the spin lock is taken and freed after it, and what goes through
//! many entries does so some at a time. Who looks meanwhile finds the change half made, as it is half made in the
//! page tables.

use core::ops::Range;

use summary_tree::{Entry, SummaryTree};

use super::few::{Few, few};
use crate::error::OutOfMemory;
use crate::machine::Machine;
use crate::sync::Spin;

/// An entry outside of the tree of ranges: start and end.
pub(crate) type RangeRoom = Entry<u64, u64, ()>;
/// A poisoned index outside of the tree.
type IndexRoom = Entry<u64, (), ()>;

/// The marks of a mapping.
pub(crate) struct Marks {
    /// Indices whose entries do not permit stores: see [`Mapping::withhold_stores`](crate::Mapping::withhold_stores).
    withheld: Ranges,
    /// Indices at which the host poisoned the mapping; nothing is mapped there.
    poisoned: SummaryTree<u64, (), ()>,
}

impl Marks {
    /// None.
    pub(crate) const fn new() -> Marks {
        Marks { withheld: Ranges(SummaryTree::new()), poisoned: SummaryTree::new() }
    }

    /// Whether stores to a page are withheld.
    pub(crate) fn withholds(&self, index: u64) -> bool {
        self.withheld.contains(index)
    }

    /// Whether a page is poisoned.
    pub(crate) fn poisons(&self, index: u64) -> bool {
        self.poisoned.get(&index).is_some()
    }

    /// Takes some of the poisoned indices of a range out.
    fn take_poison(&mut self, indices: &Range<u64>, taken: &mut Few<IndexRoom>) -> bool {
        for place in taken {
            let next = self.poisoned.find_from(&indices.start, |index, ()| Some(*index));
            let Some(index) = next.filter(|index| *index < indices.end) else { return false };
            *place = self.poisoned.remove_entry(&index);
        }
        true
    }
}

/// A set of page indices as disjoint ranges that do not touch, start to end.
struct Ranges(SummaryTree<u64, u64, ()>);

/// A range of an entry.
fn range_of(room: &mut RangeRoom) -> Range<u64> {
    let mut range = 0..0;
    room.change(|start, end| range = *start..*end);
    range
}

impl Ranges {
    fn contains(&self, index: u64) -> bool {
        self.0.floor(&index).is_some_and(|(_, end)| index < *end)
    }

    /// Puts a range in, with the memory of `room`, where nothing touches it.
    fn put(&mut self, range: Range<u64>, mut room: RangeRoom) {
        room.change(|start, end| (*start, *end) = (range.start, range.end));
        let added = self.0.insert_entry(room);
        debug_assert!(added.is_ok(), "ranges are disjoint");
    }

    /// The first range that ends at `start` or later and begins at `last` or earlier, taken out.
    fn take_first(&mut self, start: u64, last: u64) -> Option<RangeRoom> {
        let before = self.0.floor(&start).filter(|(_, end)| **end >= start).map(|(begin, _)| *begin);
        let found = before
            .or_else(|| self.0.find_from(&start, |begin, _| Some(*begin)).filter(|begin| *begin <= last))?;
        self.0.remove_entry(&found)
    }

    /// Whether a range lies inside of one of the set and touches neither of its ends: to take it out makes two of one.
    fn is_inside(&self, range: &Range<u64>) -> bool {
        self.0.floor(&range.start).is_some_and(|(start, end)| *start < range.start && range.end < *end)
    }

    /// Adds the beginning of `range`, as far as it meets few others; `room` is used if it meets none. Returns where to
    /// go on, if that was not all.
    fn add(
        &mut self,
        range: Range<u64>,
        room: &mut Option<RangeRoom>,
        freed: &mut Few<RangeRoom>,
    ) -> Option<u64> {
        let (mut whole, mut next) = (range.clone(), None);
        for place in &mut *freed {
            let Some(mut met) = self.take_first(range.start, range.end) else {
                next = None;
                break;
            };
            let other = range_of(&mut met);
            whole = whole.start.min(other.start)..whole.end.max(other.end);
            next = Some(other.end).filter(|end| *end < range.end);
            *place = Some(met);
        }
        // Those behind were not looked at.
        let end = next.unwrap_or(whole.end);
        let own = freed[0].take().or_else(|| room.take());
        debug_assert!(own.is_some(), "room for an entry was made before");
        if let Some(own) = own {
            self.put(whole.start..end, own);
        }
        next
    }

    /// Takes the beginning of `range` out, as far as it meets few others; `room` is used if the range is inside of one.
    /// Returns where to go on, if that was not all.
    fn take_out(
        &mut self,
        range: Range<u64>,
        room: &mut Option<RangeRoom>,
        freed: &mut Few<RangeRoom>,
    ) -> Option<u64> {
        let mut at = range.start;
        for place in freed {
            // One that ends where the range begins has nothing to give, nor one that begins where it ends.
            let before = self.0.floor(&at).filter(|(_, end)| **end > at).map(|(begin, _)| *begin);
            let found = before.or_else(|| self.0.find_from(&at, |begin, _| Some(*begin)));
            let mut met = self.0.remove_entry(&found.filter(|begin| *begin < range.end)?)?;
            let other = range_of(&mut met);
            let mut own = Some(met);
            let rests = [other.start..range.start.min(other.end), range.end.max(other.start)..other.end];
            for rest in rests.into_iter().filter(|rest| !rest.is_empty()) {
                let memory = own.take().or_else(|| room.take());
                debug_assert!(memory.is_some(), "room for an entry was made before");
                if let Some(memory) = memory {
                    self.put(rest, memory);
                }
            }
            *place = own;
            at = other.end;
        }
        Some(at).filter(|at| *at < range.end)
    }

    /// Takes some of the ranges that begin at `from` or later out. False when there are no more.
    fn take_some(&mut self, from: u64, taken: &mut Few<RangeRoom>) -> bool {
        for place in taken {
            let Some(begin) = self.0.find_from(&from, |begin, _| Some(*begin)) else { return false };
            *place = self.0.remove_entry(&begin);
        }
        true
    }
}

fn range_room<M: Machine>(machine: &M) -> Result<RangeRoom, OutOfMemory> {
    machine.take_step()?;
    RangeRoom::try_new(0, 0).map_err(|_| OutOfMemory)
}

/// A step of a change of ranges: see [`Ranges::add`] and [`Ranges::take_out`].
type Step = fn(&mut Ranges, Range<u64>, &mut Option<RangeRoom>, &mut Few<RangeRoom>) -> Option<u64>;

/// Changes a range that is not empty, a few of its parts in each hold of the lock. Where it goes on in a later step, it meets what it
/// has become in the one before.
fn in_steps<M: Machine>(
    machine: &M,
    marks: &Spin<M, Marks>,
    range: Range<u64>,
    mut room: Option<RangeRoom>,
    step: Step,
) {
    let mut next = Some(range.start);
    while let Some(from) = next {
        let mut freed = few();
        next = step(&mut marks.lock().withheld, from..range.end, &mut room, &mut freed);
        drop(freed);
        machine.give_way();
    }
}

/// Withholds stores from the pages of a range. On failure nothing has changed.
pub(crate) fn withhold<M: Machine>(
    machine: &M,
    marks: &Spin<M, Marks>,
    range: Range<u64>,
) -> Result<(), OutOfMemory> {
    if !range.is_empty() {
        let room = Some(range_room(machine)?);
        in_steps(machine, marks, range, room, Ranges::add);
    }
    Ok(())
}

/// Permits stores again. On failure nothing has changed; a range that is all of a mapping does not fail.
pub(crate) fn permit<M: Machine>(
    machine: &M,
    marks: &Spin<M, Marks>,
    range: Range<u64>,
) -> Result<(), OutOfMemory> {
    if !range.is_empty() {
        // The mapping lock keeps it so.
        let is_inside = marks.lock().withheld.is_inside(&range);
        let room = is_inside.then(|| range_room(machine)).transpose()?;
        in_steps(machine, marks, range, room, Ranges::take_out);
    }
    Ok(())
}

/// Poisons a page. On failure nothing has changed.
pub(crate) fn poison<M: Machine>(machine: &M, marks: &Spin<M, Marks>, index: u64) -> Result<(), OutOfMemory> {
    machine.take_step()?;
    let room = IndexRoom::try_new(index, ()).map_err(|_| OutOfMemory)?;
    // It comes back where the page is poisoned already, and is freed after the lock.
    let refused = marks.lock().poisoned.insert_entry(room);
    drop(refused);
    Ok(())
}

/// Poisons what is poisoned in another mapping. On failure a part of it is.
pub(crate) fn copy_poison<M: Machine>(
    machine: &M,
    from: &Spin<M, Marks>,
    to: &Spin<M, Marks>,
) -> Result<(), OutOfMemory> {
    let mut at = 0;
    loop {
        let next = from.lock().poisoned.find_from(&at, |index, ()| Some(*index));
        let Some(index) = next else { return Ok(()) };
        poison(machine, to, index)?;
        at = index + 1;
        machine.give_way();
    }
}

/// The pages of a range are not poisoned any more.
pub(crate) fn heal<M: Machine>(machine: &M, marks: &Spin<M, Marks>, range: Range<u64>) {
    loop {
        let mut taken = few();
        let more = marks.lock().take_poison(&range, &mut taken);
        drop(taken);
        if !more {
            return;
        }
        machine.give_way();
    }
}

/// Memory for [`split_off`], if it needs any.
pub(crate) fn cut_room<M: Machine>(
    machine: &M,
    marks: &Spin<M, Marks>,
    at: u64,
) -> Result<Option<RangeRoom>, OutOfMemory> {
    let is_across = marks.lock().withheld.is_inside(&(at..at));
    is_across.then(|| range_room(machine)).transpose()
}

/// Moves the marks from `from` on to a mapping that nobody else knows. `room` is of [`cut_room`], under the same hold of
/// the mapping lock.
pub(crate) fn split_off<M: Machine>(
    machine: &M,
    marks: &Spin<M, Marks>,
    from: u64,
    upper: &Spin<M, Marks>,
    mut room: Option<RangeRoom>,
) {
    // Nothing is taken out; the range across the cut becomes two.
    let mut freed = few();
    marks.lock().withheld.take_out(from..from, &mut room, &mut freed);
    drop(freed);
    let indices = from..u64::MAX;
    loop {
        let (mut ranges, mut poisoned) = (few(), few());
        let more = {
            let mut lower = marks.lock();
            let more = lower.withheld.take_some(from, &mut ranges);
            lower.take_poison(&indices, &mut poisoned) | more
        };
        let mut upper = upper.lock();
        for mut room in ranges.into_iter().flatten() {
            let range = range_of(&mut room);
            upper.withheld.put(range, room);
        }
        for room in poisoned.into_iter().flatten() {
            let added = upper.poisoned.insert_entry(room);
            debug_assert!(added.is_ok(), "two mappings have no index in common");
        }
        drop(upper);
        if !more {
            return;
        }
        machine.give_way();
    }
}

/// Forgets all: of a mapping that goes away.
pub(crate) fn forget<M: Machine>(machine: &M, marks: &Spin<M, Marks>) {
    heal(machine, marks, 0..u64::MAX);
    loop {
        let mut ranges = few();
        if !marks.lock().withheld.take_some(0, &mut ranges) {
            return;
        }
        drop(ranges);
        machine.give_way();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::vec::Vec;

    use super::super::few::AT_A_TIME;
    use super::*;
    use crate::sync::Ordering;
    use crate::testing::TestMachine;

    type Locked = Spin<TestMachine, Marks>;

    fn marks() -> Locked {
        Locked::new(Marks::new())
    }

    /// The ranges, which must be disjoint and may not touch.
    fn ranges(marks: &Locked) -> Vec<(u64, u64)> {
        let (marks, mut ranges) = (marks.lock(), Vec::new());
        marks.withheld.0.find_from(&0, |start, end| -> Option<()> {
            ranges.push((*start, *end));
            None
        });
        assert!(ranges.iter().all(|(start, end)| start < end), "{ranges:?}");
        assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0), "{ranges:?}");
        ranges
    }

    fn members(marks: &Locked) -> BTreeSet<u64> {
        ranges(marks).into_iter().flat_map(|(start, end)| start..end).collect()
    }

    #[test]
    fn withheld_ranges_behave_as_a_set_of_indices() {
        let mut seed = 1u64;
        let mut random = move |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        let machine = TestMachine::new();
        for space in [60, 2000] {
            let (marks, mut oracle) = (marks(), BTreeSet::new());
            for _ in 0..3000 {
                // Short ones make many, long ones meet many.
                let length = if random(50) == 0 { random(space) } else { random(4) };
                let start = random(space);
                let range = start..start + length;
                match random(30) {
                    0 => {
                        let upper = self::marks();
                        let room = cut_room(&machine, &marks, start).unwrap();
                        split_off(&machine, &marks, start, &upper, room);
                        assert_eq!(members(&upper), oracle.split_off(&start));
                        for (start, end) in ranges(&upper) {
                            withhold(&machine, &marks, start..end).unwrap();
                            oracle.extend(start..end);
                        }
                    }
                    1..16 => {
                        withhold(&machine, &marks, range.clone()).unwrap();
                        oracle.extend(range);
                    }
                    _ => {
                        permit(&machine, &marks, range.clone()).unwrap();
                        oracle.retain(|index| !range.contains(index));
                    }
                }
                assert_eq!(members(&marks), oracle);
                assert_eq!(marks.lock().withholds(start), oracle.contains(&start));
            }
            forget(&machine, &marks);
            assert_eq!(ranges(&marks), []);
        }
    }

    #[test]
    fn a_step_meets_few_ranges() {
        const MANY: u64 = 3 * AT_A_TIME as u64;
        let machine = TestMachine::new();
        let marks = marks();
        (0..MANY).for_each(|index| withhold(&machine, &marks, 2 * index..2 * index + 1).unwrap());
        let (mut room, mut freed) = (None, few());
        let next = marks.lock().withheld.add(0..2 * MANY, &mut room, &mut freed);
        assert_eq!((next, freed.iter().flatten().count()), (Some(2 * MANY / 3 - 1), AT_A_TIME - 1));
        let mut freed = few();
        let next = marks.lock().withheld.take_out(0..2 * MANY, &mut room, &mut freed);
        assert_eq!(next, Some(2 * (AT_A_TIME as u64 * 2 - 1) - 1));
        assert_eq!(freed.iter().flatten().count(), AT_A_TIME);
    }

    #[test]
    fn without_memory_nothing_changes() {
        let machine = TestMachine::new();
        let marks = marks();
        withhold(&machine, &marks, 10..20).unwrap();
        poison(&machine, &marks, 3).unwrap();
        machine.steps_left.store(0, Ordering::SeqCst);
        assert_eq!(withhold(&machine, &marks, 30..31), Err(OutOfMemory));
        assert_eq!(permit(&machine, &marks, 12..13), Err(OutOfMemory), "two ranges of one");
        assert!(cut_room(&machine, &marks, 15).is_err_and(|OutOfMemory| true));
        assert_eq!(poison(&machine, &marks, 4), Err(OutOfMemory));
        assert_eq!(ranges(&marks), [(10, 20)]);
        assert!(marks.lock().poisons(3) && !marks.lock().poisons(4));
        // What only shortens, or ends all, takes none.
        assert_eq!(permit(&machine, &marks, 0..12), Ok(()));
        assert_eq!(permit(&machine, &marks, 18..30), Ok(()));
        assert_eq!(ranges(&marks), [(12, 18)]);
        assert!(cut_room(&machine, &marks, 12).is_ok_and(|room| room.is_none()));
        assert_eq!(permit(&machine, &marks, 0..100), Ok(()));
        heal(&machine, &marks, 0..100);
        assert_eq!((ranges(&marks), marks.lock().poisons(3)), (Vec::new(), false));
    }
}
