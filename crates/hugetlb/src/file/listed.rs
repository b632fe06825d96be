//! Things that have a range of page indices, found by range: the list of a file's mappings.
//!
//! A balanced tree (AVL) in the order of first index and age. Each node knows the largest end and the youngest age below it, so
//! a search passes over what ends before its range or is older than it asks for. A stab costs O(log n + found), however
//! many mappings of other pages there are.
//!
//! No crate does this without the standard library and with removal, so it is here, in safe code.

use alloc::boxed::Box;
use core::cmp::Ordering;
use core::ops::Range;

/// The place of an item: its first index, then its age. The age tells items apart, and a younger one has a larger age.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Key {
    first: u64,
    age: u64,
}

struct Node<T> {
    key: Key,
    end: u64,
    item: T,
    height: u8,
    /// The largest end in the subtree.
    last_end: u64,
    /// The largest age in the subtree.
    youngest: u64,
    below: Link<T>,
    above: Link<T>,
}

type Link<T> = Option<Box<Node<T>>>;

impl Key {
    pub(crate) fn new(first: u64, age: u64) -> Key {
        Key { first, age }
    }

    pub(crate) fn age(self) -> u64 {
        self.age
    }
}

/// What a search is for: items that have an index of the range, of these ages.
pub(crate) struct Search {
    pub(crate) indices: Range<u64>,
    pub(crate) ages: Range<u64>,
}

/// Items by the range of indices that they were put in with.
pub(crate) struct RangeList<T> {
    root: Link<T>,
    next_age: u64,
}

fn height<T>(link: &Link<T>) -> u8 {
    link.as_ref().map_or(0, |node| node.height)
}

impl<T> Node<T> {
    fn update(&mut self) {
        let children = [&self.below, &self.above];
        self.height = 1 + children.map(height).into_iter().max().unwrap_or(0);
        (self.last_end, self.youngest) = (self.end, self.key.age);
        for child in [&self.below, &self.above].into_iter().flatten() {
            self.last_end = self.last_end.max(child.last_end);
            self.youngest = self.youngest.max(child.youngest);
        }
    }
}

/// The lower child comes up.
fn rotate_up_below<T>(mut node: Box<Node<T>>) -> Box<Node<T>> {
    let Some(mut top) = node.below.take() else { return node };
    node.below = top.above.take();
    node.update();
    top.above = Some(node);
    top.update();
    top
}

/// The upper child comes up.
fn rotate_up_above<T>(mut node: Box<Node<T>>) -> Box<Node<T>> {
    let Some(mut top) = node.above.take() else { return node };
    node.above = top.below.take();
    node.update();
    top.below = Some(node);
    top.update();
    top
}

/// Makes the heights of the two sides, which differ by two at most, differ by one at most.
fn balance<T>(mut node: Box<Node<T>>) -> Box<Node<T>> {
    let (below, above) = (height(&node.below), height(&node.above));
    if below > above + 1 {
        node.below = node.below.take().map(|child| match height(&child.below) < height(&child.above) {
            true => rotate_up_above(child),
            false => child,
        });
        rotate_up_below(node)
    } else if above > below + 1 {
        node.above = node.above.take().map(|child| match height(&child.above) < height(&child.below) {
            true => rotate_up_below(child),
            false => child,
        });
        rotate_up_above(node)
    } else {
        node.update();
        node
    }
}

fn insert<T>(link: Link<T>, new: Box<Node<T>>) -> Box<Node<T>> {
    let Some(mut node) = link else { return new };
    match new.key < node.key {
        true => node.below = Some(insert(node.below.take(), new)),
        false => node.above = Some(insert(node.above.take(), new)),
    }
    balance(node)
}

/// Takes the first node out; returns it and what is left.
fn take_first<T>(mut node: Box<Node<T>>) -> (Box<Node<T>>, Link<T>) {
    match node.below.take() {
        None => {
            let rest = node.above.take();
            (node, rest)
        }
        Some(below) => {
            let (first, rest) = take_first(below);
            node.below = rest;
            (first, Some(balance(node)))
        }
    }
}

fn remove<T>(link: Link<T>, key: Key) -> (Option<T>, Link<T>) {
    let Some(mut node) = link else { return (None, None) };
    match key.cmp(&node.key) {
        Ordering::Less => {
            let (found, rest) = remove(node.below.take(), key);
            node.below = rest;
            (found, Some(balance(node)))
        }
        Ordering::Greater => {
            let (found, rest) = remove(node.above.take(), key);
            node.above = rest;
            (found, Some(balance(node)))
        }
        Ordering::Equal => {
            let rest = match (node.below.take(), node.above.take()) {
                (below, None) => below,
                (below, Some(above)) => {
                    let (mut top, rest) = take_first(above);
                    (top.below, top.above) = (below, rest);
                    Some(balance(top))
                }
            };
            (Some(node.item), rest)
        }
    }
}

/// The first node behind `after` that is searched for.
fn find<'l, T>(link: &'l Link<T>, search: &Search, after: Option<Key>) -> Option<&'l Node<T>> {
    let node = link.as_ref()?;
    if node.last_end <= search.indices.start || node.youngest < search.ages.start {
        return None;
    }
    if after.is_none_or(|after| after < node.key) {
        if let Some(found) = find(&node.below, search, after) {
            return Some(found);
        }
        if node.key.first >= search.indices.end {
            return None;
        }
        if node.end > search.indices.start && search.ages.contains(&node.key.age) {
            return Some(node);
        }
    }
    find(&node.above, search, after)
}

impl<T> RangeList<T> {
    /// An empty list.
    pub(crate) fn new() -> RangeList<T> {
        RangeList { root: None, next_age: 0 }
    }

    /// Adds an item that has the indices; returns its place. It is the youngest.
    pub(crate) fn insert(&mut self, indices: Range<u64>, item: T) -> Key {
        let key = Key { first: indices.start, age: self.next_age };
        self.next_age += 1;
        let mut node = Box::new(Node {
            key,
            end: indices.end,
            item,
            height: 1,
            last_end: 0,
            youngest: 0,
            below: None,
            above: None,
        });
        node.update();
        self.root = Some(insert(self.root.take(), node));
        key
    }

    /// Takes the item at a place out.
    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let (found, rest) = remove(self.root.take(), key);
        self.root = rest;
        found
    }

    /// The age that the next item gets: all that are there are older.
    pub(crate) fn next_age(&self) -> u64 {
        self.next_age
    }

    /// The first item behind the place `after` that is searched for, and its place.
    pub(crate) fn find(&self, search: &Search, after: Option<Key>) -> Option<(Key, &T)> {
        find(&self.root, search, after).map(|node| (node.key, &node.item))
    }

    /// All items that are searched for.
    pub(crate) fn iter<'l>(&'l self, search: &'l Search) -> impl Iterator<Item = &'l T> {
        let mut after = None;
        core::iter::from_fn(move || {
            let (key, item) = self.find(search, after)?;
            after = Some(key);
            Some(item)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    /// Checks order, balance and what nodes know of their subtrees; returns the height.
    fn check(link: &Link<u64>) -> u8 {
        let Some(node) = link else { return 0 };
        let (below, above) = (check(&node.below), check(&node.above));
        assert!(below.abs_diff(above) <= 1, "not balanced");
        assert_eq!(node.height, 1 + below.max(above));
        let (mut last_end, mut youngest) = (node.end, node.key.age);
        for child in [&node.below, &node.above].into_iter().flatten() {
            last_end = last_end.max(child.last_end);
            youngest = youngest.max(child.youngest);
        }
        assert_eq!((node.last_end, node.youngest), (last_end, youngest));
        assert!(node.below.as_ref().is_none_or(|child| child.key < node.key));
        assert!(node.above.as_ref().is_none_or(|child| node.key < child.key));
        node.height
    }

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
                all.push((list.insert(range.clone(), step), range, step));
            } else if !all.is_empty() {
                let place = random(&mut seed, all.len() as u64) as usize;
                let (key, _, item) = all.swap_remove(place);
                assert_eq!(list.remove(key), Some(item));
                assert_eq!(list.remove(key), None);
            }
            check(&list.root);
            let start = random(&mut seed, 70);
            let oldest = random(&mut seed, list.next_age() + 1);
            let search =
                Search { indices: start..start + 1 + random(&mut seed, 9), ages: oldest..list.next_age() };
            let mut found: Vec<u64> = list.iter(&search).copied().collect();
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
            list.insert(10 + index..11 + index, ());
        }
        assert!(check_height(&list) <= 24);
        let stab = Search { indices: 5..6, ages: 0..u64::MAX };
        assert!(list.find(&stab, None).is_none());
    }

    fn check_height(list: &RangeList<()>) -> u8 {
        height(&list.root)
    }
}
