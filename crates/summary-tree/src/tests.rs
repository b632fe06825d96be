//! The tree against a model, and its bounds.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::cell::Cell;

use proptest::prelude::*;

use super::entry::Link;
use super::{Entry, Summary, SummaryTree};

/// The largest value.
struct Largest(u32);

impl Summary<u32, u32> for Largest {
    fn of(_: &u32, value: &u32) -> Self {
        Self(*value)
    }

    fn join(&mut self, other: &Self) {
        self.0 = self.0.max(other.0);
    }
}

type Tree = SummaryTree<u32, u32, Largest>;

/// Checks order, balance and summaries; gives the height, the number of entries and the largest value.
fn check(link: &Link<u32, u32, Largest>, low: Option<u32>, high: Option<u32>) -> (u8, usize, u32) {
    let Some(node) = link else { return (0, 0, 0) };
    assert!(low.is_none_or(|low| low < node.key) && high.is_none_or(|high| node.key < high), "order");
    let left = check(&node.left, low, Some(node.key));
    let right = check(&node.right, Some(node.key), high);
    assert!(left.0.abs_diff(right.0) <= 1, "balance");
    assert_eq!(node.height, 1 + left.0.max(right.0));
    let largest = node.value.max(left.2).max(right.2);
    assert_eq!(node.summary.0, largest);
    (node.height, 1 + left.1 + right.1, largest)
}

/// Checks balance and heights.
fn height(link: &Link<u32, u32, ()>) -> u8 {
    let Some(node) = link else { return 0 };
    let (left, right) = (height(&node.left), height(&node.right));
    assert!(left.abs_diff(right) <= 1 && node.height == 1 + left.max(right), "balance");
    node.height
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u32, u32),
    Remove(u32),
    Update(u32, u32),
}

/// Does a step to a tree and its model, and compares them.
fn apply(tree: &mut Tree, model: &mut BTreeMap<u32, u32>, step: Step) -> Result<(), TestCaseError> {
    match step {
        Step::Insert(key, value) => prop_assert_eq!(tree.insert(key, value), model.insert(key, value)),
        Step::Remove(key) => prop_assert_eq!(tree.remove(&key), model.remove(&key)),
        Step::Update(key, value) => {
            let there = model.get_mut(&key).map(|old| *old = value).is_some();
            prop_assert_eq!(tree.update(&key, |old| *old = value), there);
        }
    }
    let (_, len, _) = check(&tree.root, None, None);
    prop_assert_eq!((len, tree.len(), tree.is_empty()), (model.len(), model.len(), model.is_empty()));
    Ok(())
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Few keys, so that steps meet.
    let key = 0..60u32;
    let value = 0..1000u32;
    let step = prop_oneof![
        (key.clone(), value.clone()).prop_map(|(key, value)| Step::Insert(key, value)),
        key.clone().prop_map(Step::Remove),
        (key, value).prop_map(|(key, value)| Step::Update(key, value)),
    ];
    proptest::collection::vec(step, 0..300)
}

proptest! {
    #[test]
    fn is_made_of_what_is_sorted(len in 0..300u32, steps in steps()) {
        let entries = (0..len).map(|key| Ok::<_, ()>((key, key.wrapping_mul(0x9e37_79b9) >> 16)));
        let mut tree = Tree::from_sorted(len as usize, entries.clone()).unwrap();
        prop_assert_eq!(tree.len(), len as usize);
        prop_assert_eq!(check(&tree.root, None, None).1, len as usize);
        let mut model: BTreeMap<u32, u32> = entries.map(Result::unwrap).collect();
        for step in steps {
            apply(&mut tree, &mut model, step)?;
        }
        prop_assert!(tree.into_iter().eq(model));
        let failing = (0..len).map(|key| if key == len / 2 { Err(key) } else { Ok((key, key)) });
        prop_assert_eq!(Tree::from_sorted(len as usize, failing).err(), (len > 0).then_some(len / 2));
    }

    #[test]
    fn behaves_as_a_map(steps in steps()) {
        let (mut tree, mut model) = (Tree::new(), BTreeMap::new());
        for step in steps {
            apply(&mut tree, &mut model, step)?;
        }
        for key in 0..61 {
            prop_assert_eq!(tree.get(&key), model.get(&key));
            prop_assert_eq!(tree.floor(&key), model.range(..=key).next_back());
        }
    }

    #[test]
    fn finds_what_a_scan_finds(steps in steps(), end in 0..62u32, least in 0..1000u32) {
        let (mut tree, mut model) = (Tree::new(), BTreeMap::new());
        for step in steps {
            if let Step::Insert(key, value) = step {
                tree.insert(key, value);
                model.insert(key, value);
            }
        }
        let wanted = |key: &u32, value: &u32| (*value >= least).then_some(*key);
        let may = |largest: &Largest| largest.0 >= least;
        let mut matches = model.range(..end).filter_map(|(key, value)| wanted(key, value));
        prop_assert_eq!(tree.find_first(&end, may, wanted), matches.clone().next());
        prop_assert_eq!(tree.find_last(&end, may, wanted), matches.next_back());
        let mut all = Vec::new();
        let found: Option<()> = tree.find_first(&end, may, |key, value| {
            all.extend(wanted(key, value));
            None
        });
        prop_assert_eq!(found, None);
        let expected: Vec<u32> = model.range(..end).filter_map(|(key, value)| wanted(key, value)).collect();
        prop_assert_eq!(all, expected);
    }
}

proptest! {
    #[test]
    fn entries_come_and_go_as_they_are(steps in steps(), start in 0..62u32) {
        let (mut tree, mut model) = (SummaryTree::<u32, u32, ()>::new(), BTreeMap::new());
        let mut taken = Vec::new();
        for step in steps {
            match step {
                Step::Insert(key, value) => {
                    let back = tree.insert_entry(Entry::try_new(key, value).unwrap());
                    let expected = if model.contains_key(&key) { Some((key, value)) } else { None };
                    prop_assert_eq!(back.err().map(Entry::into_pair), expected);
                    model.entry(key).or_insert(value);
                }
                Step::Remove(key) => {
                    let entry = tree.remove_entry(&key);
                    prop_assert_eq!(entry.is_some(), model.remove(&key).is_some());
                    taken.extend(entry);
                }
                Step::Update(key, value) => {
                    // What was taken out can come back.
                    if let Some(entry) = taken.pop() {
                        if let Err(entry) = tree.insert_entry(entry) {
                            prop_assert!(model.contains_key(&entry.into_pair().0));
                        } else {
                            model = BTreeMap::new();
                            tree.find_from(&0, |key, value| {
                                model.insert(*key, *value);
                                None::<()>
                            });
                        }
                    }
                    let there = tree.get_mut(&key).map(|old| *old = value).is_some();
                    prop_assert_eq!(there, model.get_mut(&key).map(|old| *old = value).is_some());
                }
            }
            height(&tree.root);
            prop_assert_eq!((tree.len(), tree.is_empty()), (model.len(), model.is_empty()));
        }
        let (mut seen, mut changed) = (Vec::new(), Vec::new());
        tree.find_from(&start, |key, value| {
            seen.push((*key, *value));
            None::<()>
        });
        prop_assert!(seen.iter().copied().eq(model.range(start..).map(|(key, value)| (*key, *value))));
        let third = tree.find_from_mut(&start, |key, value| {
            *value += 1;
            changed.push((*key, *value - 1));
            (changed.len() == 3).then_some(*key)
        });
        prop_assert_eq!(&changed[..], &seen[..seen.len().min(3)]);
        prop_assert_eq!(third, seen.get(2).map(|(key, _)| *key));
        for (key, value) in changed {
            prop_assert_eq!(tree.get(&key), Some(&(value + 1)));
        }
    }
}

#[test]
fn a_search_is_as_short_as_the_tree_is_high() {
    let mut tree = Tree::new();
    // In order, which a tree without balance would not survive.
    const N: u32 = 100_000;
    for key in 0..N {
        tree.insert(key, 1);
    }
    let (height, ..) = check(&tree.root, None, None);
    assert!(height <= 24, "{height}");
    for (key, end) in [(0, N), (77_777, N), (77_777, 77_778), (0, 1)] {
        tree.update(&key, |value| *value = 5);
        let looks = Cell::new(0);
        let may = |largest: &Largest| {
            looks.set(looks.get() + 1);
            largest.0 >= 5
        };
        assert_eq!(tree.find_last(&end, may, |key, value| (*value >= 5).then_some(*key)), Some(key));
        assert!(looks.get() <= 3 * u32::from(height), "{} looks", looks.get());
        tree.update(&key, |value| *value = 1);
    }
    for key in 0..N {
        assert_eq!(tree.remove(&key), Some(1));
    }
    assert!(tree.is_empty() && tree.summary().is_none());
}

/// Neither the end of a tree nor that of its pieces recurses once for each entry.
#[test]
fn many_entries_are_dropped_without_deep_recursion() {
    const MANY: u32 = 300_000;
    let entries = || (0..MANY).map(|key| Ok::<_, ()>((key, key)));
    drop(Tree::from_sorted(MANY as usize, entries()).unwrap());
    let mut pieces = Tree::from_sorted(MANY as usize, entries()).unwrap().into_iter();
    assert_eq!(pieces.by_ref().take(3).last(), Some((2, 2)));
    drop(pieces);
}
