//! The contract of [`Machine`] and [`Space`](hugetlb::Space), run against anybody's implementation.
//!
//! A porter implements [`Host`] for the machine, in the kernel's tests that run as programs of the development machine (it takes `std`),
//! and writes `hugetlb_sim::conformance!(MyMachine)`. What is broken is told by the sentence of the contract.

mod locks;
mod memory;
mod spaces;

use std::panic::{AssertUnwindSafe, catch_unwind};

use hugetlb::{Machine, PhysAddr, VirtAddr, filetables};

/// What the kit has to see of a machine beyond the contract: what its programs do, and what is in its memory.
pub trait Host: Machine {
    /// A machine with at least 32 free tables and 4 free huge frames of 2 MiB.
    fn new() -> Self;

    /// A new address space with no mappings.
    fn space(&self) -> <Self as filetables::Machine>::Space;

    /// Where a load of a program leads: through the TLB, and on a miss through the tables, with the TLB filled. `None` where it
    /// faults.
    fn translate(&self, space: &<Self as filetables::Machine>::Space, address: VirtAddr) -> Option<PhysAddr>;

    /// The word at a place in a huge frame.
    fn read(&self, place: PhysAddr) -> u64;

    /// Sets the word at a place in a huge frame.
    fn write(&self, place: PhysAddr, value: u64);

    /// Brings every CPU to a point where no walk through page tables is under way.
    fn pass_grace_period(&self);
}

/// A sentence of the contract, and how the machine broke it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Broken {
    /// What the contract says.
    pub sentence: &'static str,
    /// What was seen instead.
    pub seen: String,
}

/// What a check says: how the sentence was broken, if it was.
type Check = Result<(), String>;
/// A sentence, and the check of it on a new machine.
type Sentence<M> = (&'static str, fn(&M) -> Check);

fn require(holds: bool, otherwise: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(otherwise()) }
}

/// Checks all sentences, each on a new machine; gives those that are broken.
pub fn check<M: Host>() -> Vec<Broken> {
    let sentences: Vec<Sentence<M>> = [memory::sentences(), locks::sentences(), spaces::sentences()].concat();
    let broken = sentences.into_iter().filter_map(|(sentence, check)| {
        let result = catch_unwind(AssertUnwindSafe(|| check(&M::new())));
        let seen = match result {
            Ok(Ok(())) => return None,
            Ok(Err(seen)) => seen,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
                format!("a panic: {text}")
            }
        };
        Some(Broken { sentence, seen })
    });
    broken.collect()
}

/// Panics with all sentences that are broken.
///
/// # Panics
///
/// When one is.
pub fn assert_conforms<M: Host>() {
    let broken = check::<M>();
    let lines: String =
        broken.iter().map(|broken| format!("\n  {:?}: {}", broken.sentence, broken.seen)).collect();
    assert!(broken.is_empty(), "the contract is broken:{lines}");
}

/// A test that a machine keeps the contract of [`Machine`] and [`Space`](hugetlb::Space). The type is a [`Host`].
#[macro_export]
macro_rules! conformance {
    ($machine:ty) => {
        #[test]
        fn the_machine_keeps_the_contract() {
            $crate::conformance::assert_conforms::<$machine>();
        }
    };
}
