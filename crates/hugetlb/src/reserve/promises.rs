//! The promises of a file: which pages were promised or used, and who pays for them.
//!
//! A fault takes a page from the pool, writes its content, which is long, and puts it in the file. In between the pool's promise
//! is used up and the file does not have the page yet. Such an index is *on its way*: who deletes promises meanwhile must not take
//! it back from the pool, which would be the second time, and the page must not stay in a file that has forgotten its promise.

use alloc::vec::Vec;
use core::ops::Range;

use super::Regions;
use crate::addr::PageSize;
use crate::error::OutOfMemory;
use crate::mutant::Mutant;
use crate::payer::{self, Expense, Payer};

/// The reservation map of a file. Each index has who pays for its promise: nobody if its page does itself.
pub(crate) struct Promises<P: Payer> {
    map: Regions<P>,
    /// Indices of the map, in no order. Each is of who holds a fault mutex of the file, so they are few.
    on_the_way: Vec<u64>,
}

impl<P: Payer> Promises<P> {
    /// None.
    pub(crate) fn new() -> Promises<P> {
        Promises { map: Regions::default(), on_the_way: Vec::new() }
    }

    /// How many indices of `range` are not promised.
    pub(crate) fn missing(&self, range: Range<u64>) -> u64 {
        self.map.missing(range)
    }

    pub(crate) fn contains(&self, index: u64) -> bool {
        self.map.contains(index)
    }

    /// Memory for one more page on its way.
    pub(crate) fn make_room(&mut self) -> Result<(), OutOfMemory> {
        self.on_the_way.try_reserve(1).map_err(|_| OutOfMemory)
    }

    /// A page for the index was taken from the pool. If nothing was promised the page pays for its promise itself. There is room.
    pub(crate) fn set_out(&mut self, index: u64) {
        if !self.contains(index) {
            self.map.insert(index..index + 1, &P::nobody());
        }
        self.on_the_way.push(index);
    }

    /// The page comes to the file. False when its promise was deleted on the way: then nobody would delete it again.
    pub(crate) fn arrive(&mut self, index: u64) -> bool {
        let found = self.on_the_way.iter().position(|other| *other == index);
        found.map(|at| self.on_the_way.swap_remove(at)).is_some()
    }

    /// Adds `range`; `payer` was charged for what of it was missing.
    pub(crate) fn insert(&mut self, range: Range<u64>, payer: &P) {
        self.map.insert(range, payer);
    }

    /// Removes `range`, of pages of a size, and discharges who paid; returns how many indices of it were in the map, without those
    /// whose pages are on their way.
    pub(crate) fn remove(&mut self, size: PageSize, range: Range<u64>) -> u64 {
        let removed = self.map.remove(range.clone(), |payer, pages| {
            payer::discharge(payer, Expense::Promise, size, pages);
        });
        let before = self.on_the_way.len();
        if !Mutant::PageOnItsWayPromised.is_on() {
            self.on_the_way.retain(|index| !range.contains(index));
        }
        removed - (before - self.on_the_way.len()) as u64
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::vec::Vec;

    use super::*;
    use crate::payer::Refused;

    const SIZE: PageSize = PageSize::Size2M;

    /// Nobody's is full from the beginning.
    #[derive(Clone)]
    struct Purse(Arc<AtomicU64>);

    const NOBODY: u64 = u64::MAX;

    impl PartialEq for Purse {
        fn eq(&self, other: &Purse) -> bool {
            Arc::ptr_eq(&self.0, &other.0) || self.is_nobody() && other.is_nobody()
        }
    }

    impl Payer for Purse {
        fn nobody() -> Purse {
            Purse(Arc::new(AtomicU64::new(NOBODY)))
        }

        fn is_nobody(&self) -> bool {
            self.0.load(Ordering::SeqCst) == NOBODY
        }

        fn charge(&self, _: Expense, _: PageSize, pages: u64) -> Result<(), Refused> {
            self.0.fetch_add(pages, Ordering::SeqCst);
            Ok(())
        }

        fn discharge(&self, _: Expense, _: PageSize, pages: u64) {
            let before = self.0.fetch_sub(pages, Ordering::SeqCst);
            assert!(before >= pages, "more is taken back than was charged");
        }
    }

    #[test]
    fn each_index_is_paid_by_who_promised_it_first_until_it_goes() {
        let mut seed = 7u64;
        let mut random = move |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        let purses = [(); 3].map(|()| Purse(Arc::default()));
        let mut promises = Promises::new();
        // Who pays for each index: nobody knows it, a page pays, or a purse.
        let mut oracle: Vec<Option<Option<usize>>> = std::vec![None; 48];
        for _ in 0..5000 {
            let start = random(40);
            let range = start..start + random(9);
            let places = range.start as usize..range.end as usize;
            match random(3) {
                0 => {
                    let payer = random(3) as usize;
                    let missing = promises.missing(range.clone());
                    purses[payer].charge(Expense::Promise, SIZE, missing).unwrap();
                    promises.insert(range, &purses[payer]);
                    oracle[places].iter_mut().for_each(|place| *place = place.or(Some(Some(payer))));
                }
                1 => {
                    promises.make_room().unwrap();
                    promises.set_out(start);
                    oracle[start as usize] = oracle[start as usize].or(Some(None));
                    if random(2) == 0 {
                        // Gone on the way, once.
                        assert_eq!(promises.remove(SIZE, start..start + 1), 0);
                        oracle[start as usize] = None;
                    }
                    assert_eq!(promises.arrive(start), oracle[start as usize].is_some());
                    assert!(!promises.arrive(start));
                }
                _ => {
                    let known = oracle[places.clone()].iter().flatten().count() as u64;
                    assert_eq!(promises.remove(SIZE, range), known);
                    oracle[places].fill(None);
                }
            }
            for (number, purse) in purses.iter().enumerate() {
                let due = oracle.iter().filter(|place| **place == Some(Some(number))).count() as u64;
                assert_eq!(purse.0.load(Ordering::SeqCst), due);
            }
        }
        promises.remove(SIZE, 0..u64::MAX);
        assert!(purses.iter().all(|purse| purse.0.load(Ordering::SeqCst) == 0));
    }
}
