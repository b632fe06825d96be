//! A set of page indices, kept as ranges.

use alloc::collections::BTreeMap;
use core::ops::Range;

/// A set of page indices with a value each, as disjoint ranges. Ranges of one value do not touch.
#[derive(Debug)]
pub(crate) struct Regions<V = ()> {
    /// Start to end and value.
    ranges: BTreeMap<u64, (u64, V)>,
}

impl<V> Default for Regions<V> {
    fn default() -> Regions<V> {
        Regions { ranges: BTreeMap::new() }
    }
}

impl<V: Clone + PartialEq> Regions<V> {
    /// How many indices of `range` are in the set.
    pub(crate) fn count(&self, range: Range<u64>) -> u64 {
        let first = self.ranges.range(..=range.start).next_back().map_or(range.start, |(start, _)| *start);
        self.ranges
            .range(first..range.end.max(first))
            .map(|(start, (end, _))| (*end).min(range.end).saturating_sub((*start).max(range.start)))
            .sum()
    }

    /// How many indices of `range` are not in the set.
    pub(crate) fn missing(&self, range: Range<u64>) -> u64 {
        (range.end.saturating_sub(range.start)) - self.count(range)
    }

    pub(crate) fn contains(&self, index: u64) -> bool {
        self.ranges.range(..=index).next_back().is_some_and(|(_, (end, _))| index < *end)
    }

    /// The first indices of `range` that are not in the set, up to the next that is.
    fn gap(&self, range: Range<u64>) -> Option<Range<u64>> {
        let mut start = range.start;
        // Ranges of different values may touch.
        while let Some((_, (end, _))) =
            self.ranges.range(..=start).next_back().filter(|(_, (end, _))| *end > start)
        {
            start = *end;
        }
        let next = self.ranges.range(start..).next().map_or(range.end, |(start, _)| *start);
        (start < range.end).then(|| start..next.min(range.end))
    }

    /// Adds what of `range` is not in the set, with a value; what is there keeps its own.
    pub(crate) fn insert(&mut self, range: Range<u64>, value: &V) {
        let mut from = range.start;
        while let Some(gap) = self.gap(from..range.end) {
            from = gap.end;
            self.fill(gap, value);
        }
    }

    /// Adds a range of which nothing is in the set, and joins it with what it touches.
    fn fill(&mut self, range: Range<u64>, value: &V) {
        let (mut start, mut end) = (range.start, range.end);
        if let Some((&before, _)) =
            self.ranges.range(..start).next_back().filter(|(_, (end, other))| *end == start && other == value)
        {
            start = before;
        }
        if self.ranges.get(&end).is_some_and(|(_, other)| other == value)
            && let Some((behind, _)) = self.ranges.remove(&end)
        {
            end = behind;
        }
        self.ranges.insert(start, (end, value.clone()));
    }

    /// Removes `range`; shows how many indices of it were in the set, by value, and returns how many they are.
    pub(crate) fn remove(&mut self, range: Range<u64>, mut removed: impl FnMut(&V, u64)) -> u64 {
        let mut sum = 0;
        if range.is_empty() {
            return sum;
        }
        while let Some((&start, _)) =
            self.ranges.range(..range.end).next_back().filter(|(_, (end, _))| *end > range.start)
            && let Some((end, value)) = self.ranges.remove(&start)
        {
            if start < range.start {
                self.ranges.insert(start, (range.start, value.clone()));
            }
            if end > range.end {
                self.ranges.insert(range.end, (end, value.clone()));
            }
            let count = end.min(range.end) - start.max(range.start);
            removed(&value, count);
            sum += count;
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;

    fn members(regions: &Regions) -> BTreeSet<u64> {
        regions.ranges.iter().flat_map(|(start, (end, ()))| *start..*end).collect()
    }

    #[test]
    fn ranges_behave_as_a_set_of_indices() {
        let mut seed = 1u64;
        let mut random = move |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        let mut regions = Regions::<()>::default();
        let mut oracle = BTreeSet::new();
        for _ in 0..2000 {
            let start = random(40);
            let range = start..start + random(9);
            assert_eq!(
                regions.count(range.clone()),
                range.clone().filter(|i| oracle.contains(i)).count() as u64
            );
            let first = range.clone().find(|index| !oracle.contains(index));
            let gap = first
                .map(|first| first..(first..range.end).find(|i| oracle.contains(i)).unwrap_or(range.end));
            assert_eq!(regions.gap(range.clone()), gap);
            match random(2) {
                0 => {
                    assert_eq!(
                        regions.missing(range.clone()),
                        range.clone().filter(|index| !oracle.contains(index)).count() as u64
                    );
                    regions.insert(range.clone(), &());
                    oracle.extend(range);
                }
                _ => {
                    let expected = range.clone().filter(|index| oracle.remove(index)).count();
                    assert_eq!(regions.remove(range, |(), _| ()), expected as u64);
                }
            }
            assert_eq!(members(&regions), oracle);
            assert!(regions.ranges.iter().zip(regions.ranges.iter().skip(1)).all(|(a, b)| a.1.0 < *b.0));
        }
    }
}
