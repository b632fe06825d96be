//! A set of page indices, kept as ranges.

use alloc::collections::BTreeMap;
use core::ops::Range;

/// A set of page indices as disjoint ranges that do not touch.
#[derive(Default, Debug)]
pub(crate) struct Regions {
    /// Start to end.
    ranges: BTreeMap<u64, u64>,
}

impl Regions {
    /// How many indices of `range` are in the set.
    pub(crate) fn count(&self, range: Range<u64>) -> u64 {
        let first = self.ranges.range(..=range.start).next_back().map_or(range.start, |(start, _)| *start);
        self.ranges
            .range(first..range.end.max(first))
            .map(|(start, end)| (*end).min(range.end).saturating_sub((*start).max(range.start)))
            .sum()
    }

    /// How many indices of `range` are not in the set.
    pub(crate) fn missing(&self, range: Range<u64>) -> u64 {
        (range.end.saturating_sub(range.start)) - self.count(range)
    }

    pub(crate) fn contains(&self, index: u64) -> bool {
        self.ranges.range(..=index).next_back().is_some_and(|(_, end)| index < *end)
    }

    /// Adds `range`.
    pub(crate) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        while let Some((&other_start, &other_end)) =
            self.ranges.range(..=end).next_back().filter(|(_, other_end)| **other_end >= start)
        {
            self.ranges.remove(&other_start);
            start = start.min(other_start);
            end = end.max(other_end);
        }
        self.ranges.insert(start, end);
    }

    /// Removes `range`; returns how many indices of it were in the set.
    pub(crate) fn remove(&mut self, range: Range<u64>) -> u64 {
        let mut removed = 0;
        if range.is_empty() {
            return removed;
        }
        while let Some((&start, &end)) =
            self.ranges.range(..range.end).next_back().filter(|(_, end)| **end > range.start)
        {
            self.ranges.remove(&start);
            if start < range.start {
                self.ranges.insert(start, range.start);
            }
            if end > range.end {
                self.ranges.insert(range.end, end);
            }
            removed += end.min(range.end) - start.max(range.start);
        }
        removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;

    fn members(regions: &Regions) -> BTreeSet<u64> {
        regions.ranges.iter().flat_map(|(start, end)| *start..*end).collect()
    }

    #[test]
    fn ranges_behave_as_a_set_of_indices() {
        let mut seed = 1u64;
        let mut random = move |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        let mut regions = Regions::default();
        let mut oracle = BTreeSet::new();
        for _ in 0..2000 {
            let start = random(40);
            let range = start..start + random(9);
            assert_eq!(
                regions.count(range.clone()),
                range.clone().filter(|i| oracle.contains(i)).count() as u64
            );
            match random(2) {
                0 => {
                    assert_eq!(
                        regions.missing(range.clone()),
                        range.clone().filter(|index| !oracle.contains(index)).count() as u64
                    );
                    regions.insert(range.clone());
                    oracle.extend(range);
                }
                _ => {
                    let expected = range.clone().filter(|index| oracle.remove(index)).count();
                    assert_eq!(regions.remove(range), expected as u64);
                }
            }
            assert_eq!(members(&regions), oracle);
            assert!(regions.ranges.iter().zip(regions.ranges.iter().skip(1)).all(|(a, b)| a.1 < b.0));
        }
    }
}
