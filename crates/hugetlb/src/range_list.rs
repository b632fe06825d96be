//! Things that have a range of page indices, found by range: the list of a file's mappings.
//!
//! They are in the order of first index and age. A tree knows the largest end and the youngest age of each subtree, so a search
//! passes over what ends before its range or is older than it asks for. It costs O(log n) for each item found, however many
//! mappings of other pages there are.

use core::ops::Range;

use summary_tree::{Entry, Summary, SummaryTree};

use crate::error::OutOfMemory;

/// The place of an item: its first index, then its age. The age tells items apart, and a younger one has a larger age.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Key {
    first: u64,
    age: u64,
}

impl Key {
    pub(crate) fn new(first: u64, age: u64) -> Key {
        Key { first, age }
    }

    pub(crate) fn age(self) -> u64 {
        self.age
    }
}

struct Item<T> {
    end: u64,
    item: T,
}

/// What is known of the items of a subtree.
struct Extremes {
    last: Key,
    last_end: u64,
    youngest: u64,
}

impl<T> Summary<Key, Item<T>> for Extremes {
    fn of(key: &Key, item: &Item<T>) -> Extremes {
        Extremes { last: *key, last_end: item.end, youngest: key.age }
    }

    fn join(&mut self, other: &Extremes) {
        self.last = self.last.max(other.last);
        self.last_end = self.last_end.max(other.last_end);
        self.youngest = self.youngest.max(other.youngest);
    }
}

/// What a search is for: items that have an index of the range, of these ages.
pub(crate) struct Search {
    pub(crate) indices: Range<u64>,
    pub(crate) ages: Range<u64>,
}

/// Memory for an item on a list: what puts it there does not fail.
pub(crate) struct Place<T>(Entry<Key, Item<T>, Extremes>);

impl<T> Place<T> {
    /// For an item that has the indices.
    pub(crate) fn new(indices: Range<u64>, item: T) -> Result<Place<T>, OutOfMemory> {
        // The list gives it its age.
        let key = Key { first: indices.start, age: 0 };
        Entry::try_new(key, Item { end: indices.end, item }).map(Place).map_err(|_| OutOfMemory)
    }
}

/// Items by the range of indices that they were put in with.
pub(crate) struct RangeList<T> {
    tree: SummaryTree<Key, Item<T>, Extremes>,
    next_age: u64,
}

impl<T> RangeList<T> {
    /// An empty list.
    pub(crate) fn new() -> RangeList<T> {
        RangeList { tree: SummaryTree::new(), next_age: 0 }
    }

    /// Puts an item on the list; returns its key. It is the youngest.
    pub(crate) fn insert(&mut self, mut place: Place<T>) -> Key {
        let age = self.next_age;
        let mut put = Key { first: 0, age };
        place.0.change(|key, _| {
            key.age = age;
            put = *key;
        });
        self.next_age += 1;
        let added = self.tree.insert_entry(place.0);
        debug_assert!(added.is_ok(), "an age is given once");
        put
    }

    /// Takes the item with a key off the list.
    pub(crate) fn remove(&mut self, key: Key) -> Option<Place<T>> {
        self.tree.remove_entry(&key).map(Place)
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.tree.is_empty()
    }

    /// The age that the next item gets: all that are there are older.
    pub(crate) fn next_age(&self) -> u64 {
        self.next_age
    }

    /// Shows `look` the items behind the place `after` that are searched for, in the order of their places, until it gives
    /// something.
    pub(crate) fn find<'l, R>(
        &'l self,
        search: &Search,
        after: Option<Key>,
        mut look: impl FnMut(Key, &'l T) -> Option<R>,
    ) -> Option<R> {
        let Range { start, end } = search.indices;
        let is_behind = |key: Key| after.is_none_or(|after| after < key);
        let may = |below: &Extremes| {
            is_behind(below.last) && below.last_end > start && below.youngest >= search.ages.start
        };
        self.tree.find_first(&Key { first: end, age: 0 }, may, |key, found| {
            let is_found = is_behind(*key) && found.end > start && search.ages.contains(&key.age);
            if is_found { look(*key, &found.item) } else { None }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    fn random(seed: &mut u64, below: u64) -> u64 {
        *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (*seed >> 33) % below
    }

    #[test]
    fn a_search_finds_what_looking_at_all_finds() {
        let mut seed = 3;
        let (mut list, mut all) = (RangeList::new(), Vec::new());
        for step in 0..4000u64 {
            if random(&mut seed, 5) < 3 {
                let start = random(&mut seed, 60);
                let range = start..start + random(&mut seed, 12);
                let place = Place::new(range.clone(), step).unwrap();
                all.push((list.insert(place), range, step));
            } else if !all.is_empty() {
                let place = random(&mut seed, all.len() as u64) as usize;
                let (key, _, item) = all.swap_remove(place);
                assert_eq!(list.remove(key).map(|place| place.0.into_pair().1.item), Some(item));
                assert!(list.remove(key).is_none());
            }
            let start = random(&mut seed, 70);
            let oldest = random(&mut seed, list.next_age() + 1);
            let search =
                Search { indices: start..start + 1 + random(&mut seed, 9), ages: oldest..list.next_age() };
            let (mut found, mut after) = (Vec::new(), None);
            // In parts, as a walk that lets the lock go between them.
            while list
                .find(&search, after, |key, item| {
                    found.push(*item);
                    after = Some(key);
                    (found.len() % 3 == 0).then_some(())
                })
                .is_some()
            {}
            let mut expected: Vec<u64> = all
                .iter()
                .filter(|(key, range, _)| {
                    let overlap = range.start < search.indices.end && search.indices.start < range.end;
                    overlap && search.ages.contains(&key.age)
                })
                .map(|(_, _, item)| *item)
                .collect();
            found.sort_unstable();
            expected.sort_unstable();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_stab_beside_many_is_as_short_as_beside_none() {
        let mut list = RangeList::new();
        for index in 0..100_000 {
            list.insert(Place::new(10 + index..11 + index, ()).unwrap());
        }
        let mut looks = 0;
        let mut stab = |indices: Range<u64>, after| {
            let search = Search { indices, ages: 0..u64::MAX };
            list.find(&search, after, |_, ()| {
                looks += 1;
                None::<()>
            });
            core::mem::take(&mut looks)
        };
        assert_eq!(stab(5..6, None), 0);
        assert_eq!(stab(60_000..60_001, None), 1);
        assert_eq!(stab(60_000..60_003, Some(Key::new(60_000, 59_990))), 2);
    }
}
