//! Sorting of lists that users make long.

use super::cond_resched;

/// Elements that are sorted without a look at who else wants to run.
const AT_ONCE: usize = 1024;
/// Elements that come to their places in a heap between two looks.
const SIFTED: usize = 32;

/// Sorts by a key, and gives way meanwhile. Equal elements come in any order; nothing is allocated.
pub fn sort_by_key<T, K: Ord>(list: &mut [T], key: impl Fn(&T) -> K) {
    if list.len() <= AT_ONCE {
        list.sort_unstable_by_key(key);
        return;
    }
    // A heap: each step of it is short, which a call of the library's sort is not.
    for first in (0..list.len() / 2).rev() {
        sift(list, first, &key);
        if first.is_multiple_of(SIFTED) {
            cond_resched();
        }
    }
    for end in (1..list.len()).rev() {
        list.swap(0, end);
        sift(&mut list[..end], 0, &key);
        if end.is_multiple_of(SIFTED) {
            cond_resched();
        }
    }
}

/// The element at that place goes down until none below it is larger.
fn sift<T, K: Ord>(heap: &mut [T], mut at: usize, key: &impl Fn(&T) -> K) {
    loop {
        let mut below = 2 * at + 1;
        if below >= heap.len() {
            return;
        }
        if below + 1 < heap.len() && key(&heap[below]) < key(&heap[below + 1]) {
            below += 1;
        }
        if key(&heap[at]) >= key(&heap[below]) {
            return;
        }
        heap.swap(at, below);
        at = below;
    }
}
