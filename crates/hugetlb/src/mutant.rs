//! Points at which a test can break the library on purpose, to see that a checker notices.
//!
//! Each mutant drops one flush, one lock, one look or one count. With the feature `mutants` a test selects one by its name;
//! without it a mutant is a constant `false`, and nothing of it is left in the program. `cargo xtask mutants` breaks the
//! library in each way and shows who catches it: a mutant that nobody catches fails the tests.

#[cfg(all(feature = "mutants", target_os = "none"))]
compile_error!("mutants are for tests on a host: no kernel has them");

/// Declares the mutants: the documentation says what is dropped.
macro_rules! mutants {
    ($($(#[doc = $dropped:literal])* $name:ident,)*) => {
        /// A way in which the library can be broken.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum Mutant {
            $($(#[doc = $dropped])* $name,)*
        }

        /// All mutants: the name, what is dropped.
        #[cfg(feature = "mutants")]
        const ALL: &[(Mutant, &str, &str)] = &[
            $((Mutant::$name, stringify!($name), concat!($($dropped),*)),)*
        ];
    };
}

mutants! {
    /// A batch does not flush the addresses that it noted.
    FlushForgotten,
    /// A batch does not flush those who are attached to the file's tables.
    SharersNotFlushed,
    /// A flush of a cleared PUD entry leaves the paging-structure caches alone.
    TablesNotFlushed,
    /// Pages are counted out before the TLBs are flushed.
    PagesBeforeFlush,
    /// An adopted table is counted out before the TLBs are flushed.
    ReleaseBeforeFlush,
    /// A table of the file is counted out before the TLBs are flushed.
    DetachBeforeFlush,
    /// The mapping lock is let go before the flush of an unmapping.
    UnlockedFlush,
    /// An address space is forgotten by the file before its TLBs are flushed.
    LeaveBeforeFlush,
    /// A mapping keeps its page indices when it goes: a walk that meets it late takes what came to its place.
    DeadMappingKeepsPages,
    /// A right that a mapping loses is not flushed.
    LostRightNotFlushed,
    /// A mapping that is asked for its slot keeps the shared table.
    CrowdedSlotKept,
    /// A mapping that is asked for its slot does not flush.
    CrowdedSlotNotFlushed,
    /// The shared table of another mapping in the slot is taken for the mapping's own.
    StrangersTableTaken,
    /// A slot that a split cuts keeps its shared table.
    SplitSlotKept,
    /// A slot that a split cuts is attached again before the cut: CVE-2025-38084.
    SharedAgainInSplit,
    /// The fault mutex of a page index keeps nobody out.
    IndexNotLocked,
    /// A fresh page is not zeroed.
    PageNotZeroed,
    /// A leaf is written without a release, so that it may be seen before the zeroes.
    LeafWithoutRelease,
    /// An entry is written and not counted.
    EntryNotCounted,
    /// A private copy shows before the TLBs have forgotten the origin.
    CopyShownBeforeFlush,
    /// A copy that relatives hold too is written to.
    CopyOfRelatives,
    /// A mapping's share of a private page is given up before its TLBs are flushed.
    ShareDroppedBeforeFlush,
    /// The entries that a fork makes read-only are not flushed.
    ForkNotFlushed,
    /// A truncation sets the size after it has taken the pages.
    SizeSetLast,
    /// A page that was mapped again between the passes of a removal is not unmapped once more.
    MappedAgainNotMet,
    /// The fence of a removal is taken behind the fault mutex.
    FenceBehindIndex,
    /// The fault mutex of a page that is removed is let go before the flush.
    IndexUnlockedEarly,
    /// A fault adds its page without a second look at the end of the file.
    EndNotLookedAtAgain,
    /// A page leaves the cache and stays in the file's tables.
    RemovedButShown,
    /// A table is adopted whose last sharer is taking it down.
    DyingTableAdopted,
    /// A table is adopted while its entries change.
    ClosedTableAdopted,
    /// A table is adopted whose entries permit something else.
    OtherRightsAdopted,
    /// Who adopts a table is not counted.
    SharerNotCounted,
    /// A table is changed in place whoever shares it: CVE-2026-23100.
    SharersNotNoticed,
    /// A table goes with the last reference to it, not with the last sharer: CVE-2024-57883.
    CountedByReferences,
    /// The second of two first faults does not look again under the lock.
    SlotNotLookedAtAgain,
    /// A mapping that leaves a table keeps its PUD entry.
    UpperEntryKept,
    /// Mappings adopt tables while a page is removed from them.
    AdoptedDuringRemoval,
    /// A fault lets its mapping go before it writes the leaf (protocol `vma-lock`).
    MappingUnlockedEarly,
    /// Faults do not take the fence of the file (protocol `file-lock`).
    FaultNotFenced,
    /// Changes do not take the fence of the file (protocol `file-lock`).
    ChangeNotFenced,
    /// A page that a removal hid ahead is not shown again.
    NotShownAgain,
    /// A mapping with entries in tables of the host is not on the file's list.
    NotEnlisted,
    /// An attachment to a table of the file is not counted.
    AttachmentNotCounted,
    /// A new table of the file does not get the pages that are there.
    TableNotFilled,
    /// An entry in a table of the file is written without a release.
    ShownWithoutRelease,
    /// A fresh page is not shown in the file's tables.
    FreshPageNotShown,
    /// The entries of a table of the file that goes are not counted out.
    EmptiedNotCounted,
    /// A slot is attached whatever is in its PUD entry.
    SlotAttachedTwice,
    /// The address space that attaches is not known to the file.
    SpaceNotJoined,
    /// A fault that a truncation overtook does not leave the promise behind that its page used up.
    PromiseTakenAlong,
    /// The promise of a private mapping is not given back with it.
    PromiseOfMappingLost,
    /// A hole punch leaves the promises of its pages.
    PromiseOutlivesPunch,
    /// A page that is promised to somebody is taken by somebody else.
    PromisedPageTaken,
    /// A page that goes back with its promise is not promised again.
    PromiseNotRenewed,
    /// A page that is taken by a promise leaves the promise.
    PromiseNotUsedUp,
    /// Pages that come into sight when a file grows are not shown.
    GrownFileNotShown,
}

#[cfg(feature = "mutants")]
mod selection {
    use core::sync::atomic::{AtomicUsize, Ordering};

    use super::{ALL, Mutant};

    /// One more than the place of the selected mutant, 0 for none. No model schedules it: it is set before all.
    static SELECTED: AtomicUsize = AtomicUsize::new(0);

    /// Breaks the library in one way from now on, for the whole program.
    ///
    /// # Panics
    ///
    /// When there is no such mutant: a test that selects nothing would find nothing.
    pub fn select(name: &str) {
        let place = ALL.iter().position(|(_, known, _)| *known == name);
        let place = place.unwrap_or_else(|| panic!("no such mutant: {name}"));
        SELECTED.store(place + 1, Ordering::SeqCst);
    }

    /// All mutants: the name, and what is dropped.
    pub fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
        ALL.iter().map(|(_, name, dropped)| (*name, dropped.trim()))
    }

    impl Mutant {
        /// Whether the library is to be broken in this way.
        pub(crate) fn is_on(self) -> bool {
            // Relaxed: set before the threads start.
            match SELECTED.load(Ordering::Relaxed) {
                0 => false,
                selected => ALL[selected - 1].0 == self,
            }
        }
    }
}

#[cfg(feature = "mutants")]
pub use selection::{all, select};

#[cfg(not(feature = "mutants"))]
impl Mutant {
    /// Whether the library is to be broken in this way: never.
    #[inline(always)]
    pub(crate) const fn is_on(self) -> bool {
        false
    }
}
