//! How much of something lies over a place: weighted ranges, summed once, asked often.

/// Ranges with weights.
#[derive(Debug, Default)]
pub struct Coverage {
    starts: Vec<(u64, u64)>,
    ends: Vec<(u64, u64)>,
}

impl Coverage {
    /// Sums up these ranges, each with its weight.
    pub fn of(ranges: impl IntoIterator<Item = (u64, u64, u64)>) -> Coverage {
        let mut coverage = Coverage::default();
        for (start, end, weight) in ranges {
            coverage.starts.push((start, weight));
            coverage.ends.push((end, weight));
        }
        for list in [&mut coverage.starts, &mut coverage.ends] {
            list.sort_unstable();
            let mut sum = 0;
            for (_, weight) in list.iter_mut() {
                sum += *weight;
                *weight = sum;
            }
        }
        coverage
    }

    /// The weight of all ranges that have a place in common with this one.
    pub fn over(&self, start: u64, end: u64) -> u64 {
        let begun = sum_below(&self.starts, end);
        // Those that end at or before the start.
        begun - sum_below(&self.ends, start + 1)
    }
}

/// The summed weight of all places below this one.
fn sum_below(list: &[(u64, u64)], place: u64) -> u64 {
    let count = list.partition_point(|&(at, _)| at < place);
    if count == 0 { 0 } else { list[count - 1].1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sums_as_a_scan_does(
            ranges in prop::collection::vec((0u64..50, 1u64..20, 1u64..5), 0..20),
            start in 0u64..60, length in 1u64..20,
        ) {
            let ranges: Vec<_> = ranges.into_iter().map(|(start, length, weight)| (start, start + length, weight)).collect();
            let scan: u64 = ranges.iter().filter(|range| range.0 < start + length && start < range.1).map(|range| range.2).sum();
            prop_assert_eq!(Coverage::of(ranges).over(start, start + length), scan);
        }
    }
}
